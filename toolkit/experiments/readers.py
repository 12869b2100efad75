"""What readers are worth: on planted circles and tastes, on labels of real people, and on attributes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus
from transformers import Qwen3Config, set_seed

from ..data.loading import load_pairs
from ..data.messages import text_of
from ..reward.head import MultiScaleSettings
from ..reward.losses import pairwise_logistic_loss
from ..reward.model import reward_model_class
from ..reward.readers import Taste, annotator_test, fit_taste, taste_gap
from ..reward.reading import read_pairs, taste_losses
from .study.decoder_states import load_states, rows_of
from .study.division import said
from .study.task_pairs import TaskPairs, cut
from .study.tasks import TASKS

EPOCHS = 8
SIZE, LAYER, LAYERS = 64, 1, 5  # principal components of the states after the second of the layers that are cached
WAYS: dict[str, dict[str, Any]] = {
    "linear": {},
    "gaussian": {"outputs": 2, "reader": "gaussian"},
    "mixture of 2": {"outputs": 2, "reader": "mixture"},
    "mixture of 3": {"outputs": 3, "reader": "mixture"},
    "skew": {"outputs": 4, "reader": "skew"},
}
PERSONAL: dict[str, dict[str, Any]] = {"linear": {"outputs": 4}, "mixture": {"outputs": 2, "reader": "mixture"}}
Found = dict[str, list[float]]


def read(model: Any, x: Tensor, rows: Tensor, label: dict[str, Tensor]) -> tuple[Any, Tensor]:
    """Output and scores of the sides of pairs `(P, 2)` of rows of features, read by those who labelled them."""
    who = label.get("annotator", torch.full((len(rows),), -1))
    output = model(states=x[rows.T.flatten(), None].expand(-1, 4, -1), annotator=who.repeat(2))
    return output, read_pairs(output, torch.arange(2 * len(rows)).view(2, -1).T, model.settings.reader)[0]


def train(
    x: Tensor, rows: Tensor, label: dict[str, Tensor], options: dict[str, Any], seed: int, rate: float = 1e-2
) -> Any:
    """A head on features `(N, H)` that learns pairs `(P, 2)` of them by the trainer's losses."""
    set_seed(seed)
    config = Qwen3Config(vocab_size=8, hidden_size=x.size(1), intermediate_size=8, num_hidden_layers=1)
    config.multi_scale = asdict(MultiScaleSettings(["response"], **options))
    model = reward_model_class(Qwen3Config)(config)
    if options.get("reader_weights") == "annotator":
        label = label | {"annotator_share": 1 / label["annotator"].bincount()[label["annotator"]]}
    optimizer = torch.optim.AdamW(model.score.parameters(), lr=rate, weight_decay=0.3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, EPOCHS * -(-len(rows) // 32))
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(rows)).split(32):
            labels = {name: values[batch] for name, values in label.items()}
            output, scores = read(model, x, rows[batch], labels)
            loss = pairwise_logistic_loss(scores[:, 0], scores[:, 1]) + taste_losses(output, labels, 0.0)
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            schedule.step()
    return model


def figures(gaps: Tensor) -> list[float]:
    """Percent of pairs that are ranked right, and log-loss."""
    won = ((gaps > 0).double() + (gaps == 0).double() / 2).mean().item()
    return [round(100 * won, 2), round(softplus(-gaps).mean().item(), 4)]


@torch.no_grad()
def right(model: Any, x: Tensor, rows: Tensor, label: dict[str, Tensor]) -> list[float]:
    """The same of what a model says of pairs."""
    return figures(read(model, x, rows, label)[1].diff()[:, 0].neg())


def styles(seed: int, circular: bool) -> Found:
    """Pairs of three styles, of which each beats the next one, or of texts that a score ranks; 1,000 are held out."""
    kinds, rows = torch.randint(3, (12_000,)), torch.arange(12_000).view(-1, 2)
    x = one_hot(kinds, 3).float() @ torch.randn(3, 16) + 0.3 * torch.randn(12_000, 16)
    wins = torch.rand(len(rows)) < torch.sigmoid((x[rows[:, 0]] - x[rows[:, 1]]) @ torch.randn(16))
    if circular:
        rows = rows[kinds[rows[:, 0]] != kinds[rows[:, 1]]]
        wins = (kinds[rows[:, 0]] - kinds[rows[:, 1]]) % 3 == 1
    rows = torch.where(wins[:, None], rows, rows.flip(1))[:4000]
    return {name: right(train(x, rows[1000:], {}, own, seed), x, rows[:1000], {}) for name, own in WAYS.items()}


def features(data: str, states: str, name: str, file: str) -> tuple[Tensor, Tensor, Tensor, list[dict[str, Any]]]:
    """Principal components of the mean states of a task's rows; its file's pairs of them, and the cluster of each."""
    pairs = TaskPairs(data, next(task for task in TASKS if task.name == name))
    x = load_states(Path(states, name), pairs, LAYERS).vectors[:, LAYER, 1].float()
    x = x - x.mean(0)
    x = x @ torch.linalg.eigh(x.T @ x).eigenvectors[:, -SIZE:]
    places = {(said(p), text_of(r)): i for i, (p, r) in enumerate(zip(*rows_of(pairs)[:2], strict=True))}
    units = sorted(set(pairs.pairs["cluster"]))
    clusters = {said(row["prompt"]): units.index(row["cluster"]) for row in pairs.pairs}
    found = []
    for row in load_pairs(f"{data}/{file}.jsonl.gz"):
        whole = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
        prompt = said(cut(whole, pairs.task.prompt_length, pairs.task.keep_beginning))
        sides = [places.get((prompt, text_of(row[side]))) for side in ("chosen", "rejected")]
        if None not in sides:
            found.append((sides, clusters[prompt], row))
    rows, of_rows, table = zip(*found, strict=True)
    return x / x.std(0), torch.tensor(rows), torch.tensor(of_rows), list(table)


def people(seed: int, x: Tensor, rows: Tensor, clusters: Tensor, table: list[dict[str, Any]], planted: bool) -> Found:
    """Weights of each annotator's own against shared ones; a quarter of clusters and a fifth of people held out."""
    names = sorted({row["annotator"] for row in table})
    who, difference = torch.tensor([names.index(row["annotator"]) for row in table]), x[rows[:, 0]] - x[rows[:, 1]]
    if planted:  # two tastes around one direction that all share
        who = torch.randint(50, (len(rows),))
        names, (common, other) = list(map(str, range(50))), (difference @ torch.randn(SIZE, 2)).T
        gold = 2 * (common / common.std() + (who % 2 * 2 - 1) * other / other.std())
        wins = torch.rand(len(rows)) < torch.sigmoid(gold)
        rows, gold = torch.where(wins[:, None], rows, rows.flip(1)), torch.where(wins, gold, -gold)
    new = torch.randperm(len(names))[: max(1, len(names) // 5)]
    held, known = torch.randperm(int(clusters.max()) + 1)[clusters] % 4 == 0, ~torch.isin(who, new)
    fit, test = ((rows[mask], {"annotator": who[mask]}) for mask in (known & ~held, known & held))
    shared = train(x, fit[0], {}, {}, seed)
    personal = {"reader_weights": "annotator", "annotators": names}
    models = {way: train(x, *fit, {**personal, **own}, seed) for way, own in PERSONAL.items()}
    found: Found = {"pairs": [len(rows)], "shared": right(shared, x, test[0], {})}
    found |= {way: right(model, x, *test) for way, model in models.items()}
    with torch.no_grad():
        good, bad = read(models["linear"], x, rows, {})[0].outputs[:, 0].split(len(rows))
        seen = ~torch.isin(torch.arange(len(names)), new)
        own = models["linear"].score.reader_annotator[seen]
        prior = Taste(models["linear"].score.reader + own.mean(0), own.T.cov() + 1e-4 * torch.eye(own.size(1)))
    found["new, shared"] = right(shared, x, rows[~known & held], {})
    for shots in (0, 5, 20, 80):
        gaps = []
        for one in new:
            first = (good - bad)[(who == one) & ~held][:shots]
            gaps.append(taste_gap((good - bad)[(who == one) & held], fit_taste(first, prior))[0])
        found[f"new, {shots} pairs"] = figures(torch.cat(gaps))
    judged = torch.unique(fit[0].sort(1).values, dim=0, return_inverse=True)[1]
    alike = Taste(shared.score.weight[0].detach(), 0.01 * torch.eye(SIZE))
    found["p-value"] = [annotator_test(x[fit[0][:, 0]] - x[fit[0][:, 1]], fit[1]["annotator"], judged, alike)]
    if planted:
        groups = models["mixture"].score.reader_annotator.argmax(1)[seen] == torch.arange(len(names))[seen] % 2
        found["groups found"] = [100 * max(groups.float().mean().item(), 1 - groups.float().mean().item())]
        found |= {"gold": figures(gold[known & held]), "new, gold": figures(gold[~known & held])}
    return found


def attributes(seed: int, x: Tensor, rows: Tensor, clusters: Tensor, table: list[dict[str, Any]]) -> Found:
    """Attributes taught together, each and their learnt sum, and a model that learns the whole alone."""
    names = sorted(table[0]["attributes"]["chosen"].keys() - {"overall"})
    sides = [[[row["attributes"][side][one] for one in names] for row in table] for side in ("chosen", "rejected")]
    gaps = torch.tensor(sides[0]) - torch.tensor(sides[1])
    held = torch.randperm(int(clusters.max()) + 1)[clusters] % 4 == 0
    model = train(x, rows[~held], {"attribute_gaps": gaps[~held]}, {"outputs": len(names), "attributes": names}, seed)
    alone = train(x, rows[~held], {}, {}, seed)
    with torch.no_grad():
        good, bad = read(model, x, rows[held], {})[0].outputs[:, 0].split(int(held.sum()))
    found = {"whole alone": right(alone, x, rows[held], {}), "learnt sum": right(model, x, rows[held], {})}
    of_each = zip(names, ((good - bad) * gaps[held].sign()).T, gaps[held].T, strict=True)
    return found | {one: figures(said_right[gap != 0]) for one, said_right, gap in of_each}
