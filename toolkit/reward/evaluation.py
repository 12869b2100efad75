"""Scores of held-out pairs, from which every figure of a reward model is made."""

import torch
from datasets import Dataset
from torch import Tensor

from ..data.batches import SIDES
from ..data.prompts import REJECTED_PROMPT
from ..data.templates import TEMPLATE_COLUMNS
from ..stats.metrics import PairScores
from .losses import pairwise_logistic_loss
from .scorer import RewardFunction
from .scores import ResponseScore


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
    others = REJECTED_PROMPT if REJECTED_PROMPT in pairs.column_names else "prompt"
    columns = {name: list(pairs[name]) for name in TEMPLATE_COLUMNS if name in pairs.column_names}
    chosen, rejected = (
        _all_scored(reward.score(list(pairs[asked]), list(pairs[side]), **columns), side)
        for side, asked in zip(SIDES, ("prompt", others), strict=True)
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


def _all_scored(scores: list[ResponseScore | None], side: str) -> list[ResponseScore]:
    for number, score in enumerate(scores, start=1):
        if score is None:
            raise ValueError(f"Pair {number}, column '{side}': the response is empty. Leave the pair out.")
    return [score for score in scores if score is not None]


def _lengths(scores: list[ResponseScore]) -> Tensor:
    return torch.tensor([len(score.token_scores) for score in scores])
