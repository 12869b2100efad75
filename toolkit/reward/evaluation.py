"""Scores of held-out pairs and lists, from which every figure of a reward model is made."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..data.templates import TEMPLATE_COLUMNS
from ..stats.metrics import PairScores
from ..stats.rankings import ListScores
from .comparisons import score_lists
from .losses import pairwise_logistic_loss
from .scorer import RewardFunction
from .scores import ResponseScore

SIDES = ("chosen", "rejected")


def evaluate_pairs(reward: RewardFunction, pairs: Dataset) -> PairScores:
    """
    Score both responses of every pair.

    [`~toolkit.stats.metrics.summarize_pairs`] makes the figures of it, as it does of what the trainer's own evaluation
    finds. The loss is the pairwise one of the mixed score alone, without margins and weights.

    Args:
        reward ([`RewardFunction`]):
            The reward model.
        pairs (`datasets.Dataset`):
            `P` pairs as [`~toolkit.data.loading.load_pairs`] gives them.

    Returns:
        [`~toolkit.stats.metrics.PairScores`]: In the order of `pairs`, on the CPU.

    Raises:
        `ValueError`: If a response has no token to score; the message names the pair.
    """
    prompts = list(pairs["prompt"])
    columns = {name: list(pairs[name]) for name in TEMPLATE_COLUMNS if name in pairs.column_names}
    chosen, rejected = (
        _all_scored(reward.score(prompts, list(pairs[side]), **columns), side, range(len(pairs))) for side in SIDES
    )
    good, bad = (torch.tensor([score.reward for score in side]) for side in (chosen, rejected))
    good_scales, bad_scales = (torch.stack([score.scale_scores for score in side]) for side in (chosen, rejected))
    gates = [torch.stack([score.gate for score in side]) for side in (chosen, rejected)]
    return PairScores(
        chosen=good,
        rejected=bad,
        scale_chosen=good_scales,
        scale_rejected=bad_scales,
        gate=torch.stack(gates).mean(0),
        chosen_length=_lengths(chosen),
        rejected_length=_lengths(rejected),
        loss=pairwise_logistic_loss(good, bad),
        scale_losses=pairwise_logistic_loss(good_scales, bad_scales),
    )


def evaluate_lists(reward: RewardFunction, lists: Dataset) -> ListScores:
    """
    Score all responses of every ranked list, for [`~toolkit.stats.rankings.summarize_lists`].

    The loss is the pairwise one of the mixed score alone, without weights.

    Args:
        reward ([`RewardFunction`]):
            The reward model.
        lists (`datasets.Dataset`):
            `G` lists as [`~toolkit.data.loading.load_pairs`] gives them with `whole_lists`.

    Returns:
        [`~toolkit.stats.rankings.ListScores`]: In the order of `lists`, each with its responses in their order there,
            on the CPU.

    Raises:
        `ValueError`: If a response has no token to score; the message names the list.
    """
    sizes = [len(ranks) for ranks in lists["ranks"]]
    of_row = [row for row, size in enumerate(sizes) for _ in range(size)]
    present = [name for name in ("prompt", *TEMPLATE_COLUMNS) if name in lists.column_names]
    columns = {name: [column[row] for row in of_row] for name in present for column in (list(lists[name]),)}
    responses = [response for each in lists["responses"] for response in each]
    known = _all_scored(reward.score(columns.pop("prompt"), responses, **columns), "responses", of_row)

    def of_lists(values: Iterable[Any]) -> Tensor:
        return pad_sequence(list(torch.stack(list(values)).split(sizes)), batch_first=True)

    return score_lists(
        of_lists(torch.tensor(score.reward) for score in known),
        of_lists(score.scale_scores for score in known),
        of_lists(score.gate for score in known),
        of_lists(_lengths(known)),
        pad_sequence([torch.tensor(ranks) for ranks in lists["ranks"]], batch_first=True, padding_value=-1),
    )


def _all_scored(scores: list[ResponseScore | None], column: str, rows: Sequence[int]) -> list[ResponseScore]:
    for row, score in zip(rows, scores, strict=True):
        if score is None:
            raise ValueError(f"Row {row + 1}, column '{column}': the response is empty. Leave the row out.")
    return [score for score in scores if score is not None]


def _lengths(scores: list[ResponseScore]) -> Tensor:
    return torch.tensor([len(score.token_scores) for score in scores])
