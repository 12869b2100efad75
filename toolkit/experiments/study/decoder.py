"""The grid on a frozen decoder: which preference model ranks unseen pairs right, each read as well as it can be.

Of every model the layer, the token that stands for the response, the learning rate and the weight decay are chosen on
development folds, over all tasks at once; test pairs are scored once. docs/decoder_grid.md has tasks and division.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer

from ...reward.losses import strength_weights
from .decoder_states import CONTENT, END, LAST, PROMPT, SEGMENT, TOKEN, States, cache_states, load_states
from .division import Part
from .heads import Maps, Plan, read, train
from .models import four_digits, ranked_right
from .task_pairs import TaskPairs, transferred
from .tasks import DRAWS, TASKS, weights

RESPONSE = ("response",)
READINGS = {"last": LAST, "end of turn": END, "content": CONTENT}
TRL, BEST, AVERAGED, MIX = "as TRL trains it", "best simple contrast", "three heads averaged", "multi-scale"
PLANS = {
    TRL: Plan(RESPONSE, weight_by_strength=False),
    BEST: Plan(RESPONSE, weight_by_strength=False),
    AVERAGED: Plan(RESPONSE, weight_by_strength=False),
    "unbiased": Plan(RESPONSE, loss_type="pointwise", weight_by_strength=False),
    "weighted": Plan(RESPONSE),
    "context-aware": Plan(RESPONSE, "head"),
    "token": Plan(("token",)),
    "segment": Plan(("segment",)),
    "multi-scale, no strengths": Plan(weight_by_strength=False),
    "multi-scale, gate as it was": Plan(context="gate", unit_prompt=False),
    "multi-scale, gate": Plan(context="gate"),
    MIX: Plan(),
}
COMPARED = [TRL, BEST, MIX]  # along the axes
# Models that read as another one does, of which the rate and the decay alone are searched
READ_AS = {
    AVERAGED: BEST,
    "unbiased": BEST,
    "weighted": BEST,
    "context-aware": BEST,
    "multi-scale, no strengths": MIX,
    "multi-scale, gate as it was": MIX,
    "multi-scale, gate": MIX,
}
TRANSFER_SEEDS = 3  # heads on the pairs of all other tasks, of which the seed changes little
TOGETHER = 3  # heads whose scores are averaged, of as many seeds


class Choice(NamedTuple):
    """How a model reads and is trained."""

    layer: int
    reading: str
    rate: float
    decay: float


@dataclass
class DecoderStudy:
    """Settings of the grid; `data` is the folder of the tasks' files, `decoder` a folder or a hub name."""

    data: str
    decoder: str
    layers: list[int] = field(default_factory=lambda: [10, 15, 20, 25, 30])
    rates: list[float] = field(default_factory=lambda: [3e-4, 1e-3, 3e-3, 1e-2, 3e-2])
    decays: list[float] = field(default_factory=lambda: [0.01, 3.0])
    epochs: int = 5
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5])
    search_seed: int = 0
    tasks: list[str] = field(default_factory=lambda: [task.name for task in TASKS])
    models: list[str] = field(default_factory=lambda: list(PLANS))

    @classmethod
    def of(cls, data: str, decoder: str) -> "DecoderStudy":
        """The grid on a decoder, read after a third, a half, two thirds and five sixths of its layers, and all."""
        count = AutoConfig.from_pretrained(decoder).get_text_config().num_hidden_layers
        return cls(data, decoder, layers=sorted({max(1, round(count * sixth / 6)) for sixth in (2, 3, 4, 5, 6)}))

    @classmethod
    def quick(cls, data: str, decoder: str) -> "DecoderStudy":
        """The same grid in little: it shows that everything runs, not how the methods compare."""
        whole = cls.of(data, decoder)
        return replace(whole, layers=whole.layers[-2:], rates=[1e-2], seeds=[1, 2], epochs=1, tasks=["WQRM", "USR"])


def vectors(states: States, layer: int, reading: str) -> Tensor:
    """
    What heads read, `(N, 4, H)` float32, with the response's token as `reading` says.

    Where it is not the last one, a row ends there: what the template writes behind it, one token, is in no mean.
    """
    at = states.vectors[:, layer].float()
    token, count = at[:, TOKEN], states.tokens[:, None].float()
    behind = [LAST, END][: list(READINGS).index(reading)]
    if reading != "last" and torch.equal(at[:, LAST], at[:, END]):
        behind = behind[1:]  # nothing is written behind the end of turn
    if behind:
        token = (count * token - at[:, behind].sum(1)) / (count - len(behind)).clamp(min=1)
    return torch.stack([at[:, PROMPT], token, at[:, SEGMENT], at[:, READINGS[reading]]], 1)


def tries(settings: DecoderStudy, model: str) -> list[tuple[int, str]]:
    """Layers and readings that are tried for a model."""
    if model == TRL:
        return [(settings.layers[-1], "last")]
    readings = list(READINGS) if "response" in PLANS[model].scales else ["last"]
    return list(product(settings.layers, readings))


class Loaded:
    """A task's pairs with the states of their responses."""

    def __init__(self, folder: Path, data: str, layers: tuple[int, ...], task: str) -> None:
        self.pairs = TaskPairs(data, {t.name: t for t in TASKS}[task])
        self.states = load_states(states_folder(folder, task), self.pairs, len(layers))
        self.layers = layers
        self.strength = torch.tensor(self.pairs.pairs["strength"][:], dtype=torch.float64)

    @staticmethod
    @cache
    def _cached(folder: Path, data: str, layers: tuple[int, ...], task: str) -> "Loaded":
        return Loaded(folder, data, layers, task)

    @classmethod
    def cached(cls, folder: Path, settings: DecoderStudy, task: str) -> "Loaded":
        """The task, which a process reads once."""
        return cls._cached(folder, settings.data, tuple(settings.layers), task)

    def sides(self, choice: Choice | tuple[int, str], pairs: Sequence[int]) -> list[Tensor]:
        """Vectors of chosen and rejected of some pairs."""
        rows = self.states.pairs[list(pairs)]
        read_at = vectors(self.states, self.layers.index(choice[0]), choice[1])
        return [read_at[rows[:, side]] for side in (0, 1)]

    def weight(self, pairs: Sequence[int]) -> Tensor:
        """Weights of pairs that are trained on."""
        return strength_weights(self.strength[list(pairs)]).float()


def states_folder(folder: Path, task: str) -> Path:
    """Where a task's states are."""
    return folder / "models" / "states" / task.replace(" ", "_")


def states_cell(folder: Path, settings: DecoderStudy, task: str) -> dict[str, Any]:
    """The states of a task's responses, the size of its training halves, and what is known of its test pairs."""
    model: Any = AutoModel.from_pretrained(settings.decoder, dtype=torch.float32, attn_implementation="sdpa").eval()
    pairs = TaskPairs(settings.data, {t.name: t for t in TASKS}[task])
    tokenizer = AutoTokenizer.from_pretrained(settings.decoder)
    cache_states(states_folder(folder, task), pairs, model, tokenizer, settings.layers)
    states = load_states(states_folder(folder, task), pairs, len(settings.layers))
    numbers: dict[str, int] = {}
    test = [i for part in pairs.parts for i in part.test]
    longer = states.tokens[states.pairs[test, 0]] - states.tokens[states.pairs[test, 1]]
    return {
        "training": [len(part.train) for part in pairs.parts],
        "units": [numbers.setdefault(pairs.division.clusters[i], len(numbers)) for i in test],
        "seen": [seen for part in pairs.parts for seen in part.seen],
        "longer": longer.tolist(),
    }


def search(
    loaded: Loaded, plan: Plan, settings: DecoderStudy, at: tuple[int, str], pairs: Sequence[int], fold: Sequence[int]
) -> Tensor:
    """Development accuracy `(rates, decays)`: pairs of every fold ranked by heads that were trained on the others."""
    folds, held = sorted(set(fold)), torch.tensor(fold)
    grid = list(product(folds, settings.rates, settings.decays))
    out = torch.stack([held == number for number, _, _ in grid])
    rates, decays = (torch.tensor([row[i] for row in grid]) for i in (1, 2))
    chosen, rejected = loaded.sides(at, pairs)
    options: dict[str, Any] = {"epochs": settings.epochs, "seed": settings.search_seed}
    weight = loaded.weight(pairs)
    maps = train(plan, chosen, rejected, weight, rates=rates, decays=decays, seen=~out, **options)
    right = (gaps(plan, maps, chosen, rejected)[0].sign() + 1) / 2
    shape = (len(folds), len(settings.rates), len(settings.decays))
    return (right * out).sum(1).view(shape).sum(0) / len(pairs)


def gaps(plan: Plan, maps: Maps, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of chosen less rejected `(K, P)`, those of each scale, and the scales' weights, `(K, P, S)`."""
    (good, good_scales, gate), (bad, bad_scales, _) = (read(plan, maps, side) for side in (chosen, rejected))
    return good - bad, good_scales - bad_scales, gate


def search_cell(
    folder: Path, settings: DecoderStudy, task: str, model: str, at: list[list[Any]] | None = None
) -> dict[str, Any]:
    """
    Development accuracy of a model on a task, for every part: of each layer and reading, by rate and decay.

    A model that reads as another one has the layer and reading of each part in `at`; of a task with one part, the
    first.
    """
    loaded, found = Loaded.cached(folder, settings, task), []
    for number, part in enumerate(loaded.pairs.parts):
        places: list[Any] = tries(settings, model) if at is None else [at[number]]
        one = [search(loaded, PLANS[model], settings, place, part.train, part.inner).tolist() for place in places]
        found.append(one)
    return {"accuracy": found}


def choose(
    settings: DecoderStudy, places: Sequence[tuple[int, str]], found: Mapping[str, Any], part: int | None
) -> Choice:
    """
    The choice that ranks most development pairs right, on the mean over tasks.

    Args:
        settings ([`DecoderStudy`]):
            Settings.
        places (`Sequence[tuple[int, str]]`):
            Layers and readings that were tried.
        found (`Mapping[str, Any]`):
            Result of [`search_cell`] of each task.
        part (`int`, *optional*):
            The part of tasks with several that is looked at; the mean over theirs where it is not given. Tasks with
            one part have that.

    Returns:
        [`Choice`]
    """
    names = list(found)
    total: Any = 0
    for name, weight in zip(names, weights(names), strict=True):
        parts = torch.tensor(found[name]["accuracy"], dtype=torch.float64)
        total = total + weight * (parts.mean(0) if part is None or len(parts) == 1 else parts[part])
    place, rate, decay = (int(i) for i in torch.unravel_index(total.argmax(), total.shape))
    layer, reading = places[place]
    return Choice(layer, reading, settings.rates[rate], settings.decays[decay])


def fit(loaded: Loaded, plan: Plan, choice: Choice, settings: DecoderStudy, pairs: Sequence[int], seed: int) -> Maps:
    """One head, trained on some pairs."""
    rate, decay = torch.tensor([choice.rate]), torch.tensor([choice.decay])
    (chosen, rejected), weight = loaded.sides(choice, pairs), loaded.weight(pairs)
    return train(plan, chosen, rejected, weight, rates=rate, decays=decay, epochs=settings.epochs, seed=seed)


def seeds_of(model: str, seed: int) -> list[int]:
    """Seeds of the heads whose scores are averaged."""
    return [seed + 10 * i for i in range(TOGETHER)] if model == AVERAGED else [seed]


def heads_cell(
    folder: Path, settings: DecoderStudy, task: str, model: str, choices: list[Sequence[Any]]
) -> dict[str, Any]:
    """A model's gaps on the test pairs of all parts, by seed; `choices` has that of each part."""
    loaded, plan = Loaded.cached(folder, settings, task), PLANS[model]
    result: dict[str, Any] = {"gaps": [], "scale_gaps": [], "gate": []}
    for seed in settings.seeds:
        parts = list[tuple[Tensor, ...]]()
        for part, chosen in zip(loaded.pairs.parts, choices, strict=True):
            choice, several = Choice(*chosen), list[tuple[Tensor, ...]]()
            for own in seeds_of(model, seed):
                maps = fit(loaded, plan, choice, settings, part.train, own)
                several.append(gaps(plan, maps, *loaded.sides(choice, part.test)))
            parts.append(tuple(torch.stack(column).mean(0)[0] for column in zip(*several, strict=True)))
        mixed, by_scale, gate = (torch.cat(column) for column in zip(*parts, strict=True))
        result["gaps"].append(four_digits(mixed))
        result["scale_gaps"].append([four_digits(column) for column in by_scale.T] if len(plan.scales) > 1 else [])
        result["gate"].append([four_digits(column) for column in gate.T] if plan.context == "gate" else [])
    return result


def accuracy_of(loaded: Loaded, part: Part, choice: Choice, plan: Plan, maps: Maps) -> list[float]:
    """Of each test pair of a part, whether it is ranked right."""
    return ranked_right(gaps(plan, maps, *loaded.sides(choice, part.test))[0][0].tolist()).tolist()


def number_search_cell(
    folder: Path, settings: DecoderStudy, task: str, model: str, number: int, at: tuple[int, str]
) -> dict[str, Any]:
    """Development accuracy with fewer pairs, by draw and part: rate and decay are chosen anew for every number."""
    loaded, found = Loaded.cached(folder, settings, task), []
    for draw in DRAWS:
        for part in loaded.pairs.parts:
            pairs = loaded.pairs.smaller(part, draw, number)
            fold = dict(zip(part.train, part.inner, strict=True))
            found.append(search(loaded, PLANS[model], settings, at, pairs, [fold[i] for i in pairs]).tolist())
    return {"accuracy": torch.tensor(found).mean(0).tolist()}


def number_cell(
    folder: Path, settings: DecoderStudy, task: str, model: str, number: int, choice: Sequence[Any]
) -> dict[str, Any]:
    """Test pairs ranked right with fewer pairs, by draw."""
    loaded, plan, chosen = Loaded.cached(folder, settings, task), PLANS[model], Choice(*choice)
    right = []
    for draw in DRAWS:
        of_draw = list[float]()
        for part in loaded.pairs.parts:
            maps = fit(loaded, plan, chosen, settings, loaded.pairs.smaller(part, draw, number), draw)
            of_draw += accuracy_of(loaded, part, chosen, plan, maps)
        right.append(of_draw)
    return {"right": right}


def transfer_cell(
    folder: Path, settings: DecoderStudy, train_on: list[str], task: str, model: str, choice: Sequence[Any]
) -> dict[str, Any]:
    """A model that was trained on other tasks' training halves, on a task's test pairs: gaps by seed."""
    chosen, plan = Choice(*choice), PLANS[model]
    target = Loaded.cached(folder, settings, task)
    sides, weight = list[list[Tensor]](), list[Tensor]()
    sources = [Loaded.cached(folder, settings, name) for name in train_on]
    kept, test, seen = transferred([source.pairs for source in sources], target.pairs)
    for source, pairs in zip(sources, kept, strict=True):
        sides.append(source.sides(chosen, pairs))
        weight.append(source.weight(pairs))
    good, bad = (torch.cat(side) for side in zip(*sides, strict=True))
    options = {"rates": torch.tensor([chosen.rate]), "decays": torch.tensor([chosen.decay])}
    found, by_scale = list[list[float]](), list[list[list[float]]]()
    for seed in settings.seeds[:TRANSFER_SEEDS]:
        maps = train(plan, good, bad, torch.cat(weight), **options, epochs=settings.epochs, seed=seed)
        mixed, scales, _ = gaps(plan, maps, *target.sides(chosen, test))
        found.append(four_digits(mixed[0]))
        by_scale.append([four_digits(column) for column in scales[0].T])
    clusters = [target.pairs.division.clusters[i] for i in test]
    place = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    return {
        "pairs": len(good),
        "gaps": found,
        "scale_gaps": by_scale,
        "seen": seen,
        "units": [place[c] for c in clusters],
    }
