"""Scores of held-out pairs and lists, from which every figure of a reward model is made."""

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..data.templates import TEMPLATE_COLUMNS
from ..stats.metrics import PairScores
from ..stats.rankings import ListScores
from .comparisons import list_loss
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
    chosen, rejected = (_all_scored(reward.score(prompts, list(pairs[side]), **columns), side) for side in SIDES)
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
    columns = {name: list(lists[name]) for name in ("prompt", *TEMPLATE_COLUMNS) if name in lists.column_names}
    repeated = {name: [column[row] for row in of_row] for name, column in columns.items()}
    responses = [response for group in lists["responses"] for response in group]
    found = reward.score(repeated.pop("prompt"), responses, **repeated)
    for row, score in zip(of_row, found, strict=True):
        if score is None:
            raise ValueError(f"List {row + 1}, column 'responses': a response is empty. Leave the list out.")
    known = [score for score in found if score is not None]

    def of_lists(values: list[Tensor]) -> Tensor:
        return pad_sequence(list(torch.stack(values).split(sizes)), batch_first=True)

    scores, scale_scores = (
        of_lists([torch.tensor(s.reward) for s in known]),
        of_lists([s.scale_scores for s in known]),
    )
    ranks = pad_sequence(list(map(torch.tensor, lists["ranks"])), batch_first=True, padding_value=-1)
    return ListScores(
        scores=scores,
        scale_scores=scale_scores,
        gate=of_lists([score.gate for score in known])[:, 0],
        lengths=of_lists(list(_lengths(known))),
        ranks=ranks,
        loss=list_loss(scores, ranks),
        scale_losses=torch.stack([list_loss(each, ranks) for each in scale_scores.unbind(2)], dim=1),
    )


def _all_scored(scores: list[ResponseScore | None], side: str) -> list[ResponseScore]:
    for number, score in enumerate(scores, start=1):
        if score is None:
            raise ValueError(f"Pair {number}, column '{side}': the response is empty. Leave the pair out.")
    return [score for score in scores if score is not None]


def _lengths(scores: list[ResponseScore]) -> Tensor:
    return torch.tensor([len(score.token_scores) for score in scores])
