"""The preference models as heads on a pretrained encoder whose weights stay as they are.

An encoder reads in both directions, so that it gives scores at three scales and no values of prefixes. All that linear
heads need of a response are four vectors: the hidden state of the prompt's end, the mean over the response's tokens,
the mean over its segment ends, and that of its last token. They are computed once.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, get_cosine_schedule_with_warmup
from transformers.trainer_utils import set_seed

from ...data.batches import SIDES
from ...data.messages import text_of
from ...data.positions import last_kept, segment_ends
from ...data.tokens import segment_boundary_ids
from ...reward.head import MultiScaleHead, MultiScaleSettings
from ...reward.losses import multi_scale_loss, strength_weights
from ...reward.scales import mix
from .grid import Cell, Study, cell_name
from .models import STUDY_MODELS, four_digits, ranked_right
from .real import SEARCH_SHARE, RealStudy, TaskPairs, at_most, distinct, in_second_part, prompt_text, trained_as


@torch.no_grad()
def response_features(
    model: Any, tokenizer: Any, prompts: Sequence[str], responses: Sequence[str], batch_size: int = 32
) -> tuple[Tensor, int]:
    """
    The vectors of `N` responses that linear heads read, `(N, 4, H)` float32, and the number of rows that were cut.

    The four are the prompt's end, the mean of the response's tokens, that of its segment ends, and its last token.
    The tokenizer must mark the second of two texts in `token_type_ids`. Where a prompt and its response are too long
    together for the encoder, the longer of them loses its end.
    """
    boundaries = torch.tensor(segment_boundary_ids(tokenizer))
    most, cut = model.config.max_position_embeddings, 0
    features = torch.empty(len(prompts), 4, model.config.hidden_size)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(responses[i]))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        texts = [prompts[i] for i in rows], [responses[i] for i in rows]
        cut += sum(len(ids) > most for ids in tokenizer(*texts)["input_ids"])
        batch = tokenizer(*texts, padding=True, truncation=True, max_length=most, return_tensors="pt")
        hidden = model(**batch).last_hidden_state
        response = (batch["token_type_ids"] == 1) & batch["attention_mask"].bool()
        boundary = torch.isin(batch["input_ids"], boundaries) & response
        last = last_kept(response)
        ends = segment_ends(boundary, response)
        ends[torch.arange(len(rows)), last] |= ~boundary[torch.arange(len(rows)), last]  # an open one ends there
        prompt = batch["attention_mask"].bool() & ~response
        features[rows] = torch.stack(
            [
                hidden[torch.arange(len(rows)), last_kept(prompt)],
                _masked_mean(hidden, response),
                _masked_mean(hidden, ends),
                hidden[torch.arange(len(rows)), last],
            ],
            dim=1,
        )
    return features, cut


def _masked_mean(hidden: Tensor, keep: Tensor) -> Tensor:
    return (hidden * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)


def read_head(head: MultiScaleHead, features: Tensor) -> tuple[Tensor, Tensor]:
    """Scores `(N,)` of responses and those of each scale `(N, S)`, from their features `(N, 4, H)`."""
    scores, read = head.read_states(features)
    return mix(scores, read.gate), scores


def train_head(
    model: str, chosen: Tensor, rejected: Tensor, strength: Tensor, *, rate: float, epochs: int, seed: int
) -> MultiScaleHead:
    """
    Train a preference model's head on features `(P, 4, H)` of pairs with strengths `(P,)`.

    AdamW, batches of 32 pairs, cosine schedule; the seed is that of the head and of the order.
    """
    options = STUDY_MODELS[model]
    set_seed(seed)
    head = MultiScaleHead(chosen.size(2), MultiScaleSettings(options["scales"], options["context"], unit_prompt=False))
    nn.init.normal_(head.weight, std=0.02)
    head.initialize(std=0.02)
    weights = strength_weights(strength).float() if options["weight_by_strength"] else torch.ones(len(chosen))
    steps = epochs * -(-len(chosen) // 32)
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, 20, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(chosen)).split(32):
            (good, good_scales), (bad, bad_scales) = (read_head(head, side[rows]) for side in (chosen, rejected))
            losses = multi_scale_loss(
                good,
                bad,
                good_scales,
                bad_scales,
                pointwise=options["loss_type"] == "pointwise",
                weight=weights[rows],
                scale_weight=options.get("scale_loss_weight", 0.5),
            )
            optimizer.zero_grad()
            losses.total.mean().backward()
            optimizer.step()
            schedule.step()
    return head


def features_name(task: str) -> str:
    """Cell of a task's features."""
    return cell_name("features", task)


def encoder_name(model: str, task: str, seed: int) -> str:
    """Cell of a head on the encoder."""
    return cell_name("encoder", task, trained_as(model, task), seed)


def features_cell(folder: Path, settings: RealStudy, task: str) -> dict[str, Any]:
    """Features of a task's pairs, kept beside the models."""
    assert settings.encoder is not None  # or no stage has this cell
    model = AutoModel.from_pretrained(settings.encoder).eval()
    tokenizer = AutoTokenizer.from_pretrained(settings.encoder)
    pairs = TaskPairs(settings.data, task)
    train, test = at_most(pairs.train, settings.most_pairs), at_most(pairs.test, settings.most_pairs)
    kept: dict[str, Any] = {"search": in_second_part(train["prompt"], SEARCH_SHARE, "search")}
    cut = 0
    for part, rows in (("train", train), ("test", test)):
        kept[f"{part} strength"] = torch.tensor(rows["strength"][:], dtype=torch.float64)
        prompts = [prompt_text(prompt) for prompt in rows["prompt"]]
        for side in SIDES:
            responses = [text_of(messages) for messages in rows[side]]
            kept[f"{part} {side}"], too_long = response_features(model, tokenizer, prompts, responses)
            cut += too_long
    (folder / "models").mkdir(exist_ok=True)
    torch.save(kept, folder / "models" / f"{features_name(task)}.pt")
    return {"cut": cut, "responses": 2 * (len(train) + len(test))}


def encoder_cell(folder: Path, settings: RealStudy, model: str, task: str, seed: int) -> dict[str, Any]:
    """A head on the encoder: its rate by the search's pairs, then trained on all and tested."""
    kept = torch.load(folder / "models" / f"{features_name(task)}.pt", weights_only=True)
    search = torch.tensor(kept["search"])
    train = [kept[f"train {column}"] for column in (*SIDES, "strength")]
    epochs, accuracy = settings.encoder_epochs, dict[float, float]()
    for rate in settings.encoder_rates:
        head = train_head(
            model, *(column[~search] for column in train), rate=rate, epochs=epochs, seed=settings.search_seed
        )
        gaps, _ = _gaps(head, *(column[search] for column in train[:2]))
        accuracy[rate] = ranked_right(gaps.tolist()).mean().item()
    rate = max(accuracy, key=lambda rate: accuracy[rate])
    head = train_head(model, *train, rate=rate, epochs=epochs, seed=seed)
    gaps, by_scale = _gaps(head, kept["test chosen"], kept["test rejected"])
    return {
        "search": {f"{rate:g}": right for rate, right in accuracy.items()},
        "gaps": four_digits(gaps),
        "scale_gaps": [four_digits(column) for column in by_scale.T],
    }


@torch.no_grad()
def _gaps(head: MultiScaleHead, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of chosen less rejected, `(P,)`, and those of each scale, `(P, S)`."""
    (good, good_scales), (bad, bad_scales) = read_head(head, chosen), read_head(head, rejected)
    return good - bad, good_scales - bad_scales


def encoder_stages(study: Study) -> Iterator[list[Cell]]:
    """Stages of the study on the encoder, features and heads; none where the settings name no encoder."""
    settings: RealStudy = study.settings
    if settings.encoder is None:
        return
    yield [Cell(features_name(task), features_cell, {"task": task}) for task in settings.tasks]
    yield distinct(
        Cell(
            encoder_name(model, task, seed),
            encoder_cell,
            {"model": trained_as(model, task), "task": task, "seed": seed},
            (features_name(task),),
        )
        for task in settings.tasks
        for seed in settings.seeds
        for model in settings.models
    )
