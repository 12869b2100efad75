"""Accuracy of pairs and means, with intervals that say how far a figure can be trusted."""

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from .intervals import Interval, PairAccuracy, wilson_interval


def pair_accuracy(chosen: Tensor, rejected: Tensor, confidence: float = 0.95) -> PairAccuracy:
    """
    Share of pairs whose chosen response scores higher. A tie counts as half: a constant score gets 0.5, not 0.

    Args:
        chosen (`torch.Tensor` of shape `(P,)`, float):
            Scores of the preferred responses.
        rejected (`torch.Tensor` of shape `(P,)`, float):
            Scores of the other responses.
        confidence (`float`, *optional*, defaults to `0.95`):
            Level of the interval.

    Returns:
        [`PairAccuracy`]

    Raises:
        `ValueError`: If a score is not a number, which no comparison would count.
    """
    if bool(torch.isnan(chosen).any()) or bool(torch.isnan(rejected).any()):
        raise ValueError("Some scores are not numbers (nan); no accuracy can be given.")
    wins, ties = int((chosen > rejected).sum()), int((chosen == rejected).sum())
    interval = wilson_interval(wins + ties / 2, chosen.numel(), confidence)
    return PairAccuracy(*interval, ties, chosen.numel())


def mean_interval(values: Tensor, confidence: float = 0.95) -> Interval:
    """
    Mean with its normal interval, half-width z times the standard error.

    Args:
        values (`torch.Tensor` of shape `(N,)`, float):
            Independent measurements, or differences of paired ones.
        confidence (`float`, *optional*, defaults to `0.95`):
            Level of the interval.

    Returns:
        [`Interval`]: Infinitely wide with fewer than two values.
    """
    mean = values.double().mean().item()
    if values.numel() < 2:
        return Interval(mean, -math.inf, math.inf)
    half = NormalDist().inv_cdf((1 + confidence) / 2) * values.double().std().item() / math.sqrt(values.numel())
    return Interval(mean, mean - half, mean + half)


def correlation(first: Tensor, second: Tensor) -> float:
    """
    Pearson correlation.

    Args:
        first (`torch.Tensor` of shape `(N,)`, float):
            One quantity.
        second (`torch.Tensor` of shape `(N,)`, float):
            The other.

    Returns:
        `float`: 0 where either is constant.
    """
    first, second = first.double() - first.double().mean(), second.double() - second.double().mean()
    scale = first.norm() * second.norm()
    return float(first @ second / scale) if scale > 0 else 0.0


def logistic_regression(gaps: Tensor, penalty: float, steps: int = 20) -> Tensor:
    r"""
    Weights of features by which pairs are ranked, by Newton's method.

    $$ \min_w \tfrac1P \sum_i -\log \sigma(w \cdot d_i) + \lambda \|w\|^2 $$

    Args:
        gaps (`torch.Tensor` of shape `(P, F)`, float):
            Features $d_i$ of chosen less those of rejected.
        penalty (`float`):
            The factor $\lambda$, above 0.
        steps (`int`, *optional*, defaults to `20`):
            Newton steps.

    Returns:
        `torch.Tensor` of shape `(F,)`, float64.
    """
    gaps = gaps.double()
    weights, ridge = gaps.new_zeros(gaps.size(1)), 2 * penalty * torch.eye(gaps.size(1), dtype=gaps.dtype)
    for _ in range(steps):
        wrong = torch.sigmoid(-gaps @ weights)  # probability of the other order
        curvature = (gaps.T * wrong * (1 - wrong)) @ gaps / len(gaps) + ridge
        weights = weights + torch.linalg.solve(curvature, gaps.T @ wrong / len(gaps) - ridge @ weights)
    return weights


class PairScores(NamedTuple):
    """What the reward trainer keeps of every pair. `P` pairs, `S` scales."""

    chosen: Tensor  # (P,) float32, mixed score
    rejected: Tensor  # (P,) float32
    scale_chosen: Tensor  # (P, S) float32, score of each scale
    scale_rejected: Tensor  # (P, S) float32
    gate: Tensor  # (P, S) float32, mean of the pair's two gates, which the prompt makes equal
    chosen_length: Tensor  # (P,) int64, response tokens
    rejected_length: Tensor  # (P,) int64
    loss: Tensor  # (P,) float32, in nats, all terms and the weight included
    scale_losses: Tensor  # (P, S) float32, in nats, not weighted


def summarize_pairs(pairs: PairScores, scales: list[str]) -> dict[str, float]:
    """
    Figures of a set of pairs, exact over them however they were batched.

    Args:
        pairs ([`PairScores`]):
            Scores of all pairs.
        scales (`list[str]` of length `S`):
            Names of the scales.

    Returns:
        `dict[str, float]`: Of the mixed score `accuracy`, `accuracy_low`, `accuracy_high`, `ties`, `pairs`, `loss`,
        `margin`, `min_reward`, `mean_reward`, `max_reward` and `length_correlation` (of score and response length).
        Of each scale `accuracy/<scale>` and the like, `loss/<scale>`, `margin/<scale>`, and its mean weight
        `gate/<scale>`. Of preferring the longer response `accuracy/longer_wins` and the like.
    """
    scores = torch.cat([pairs.chosen, pairs.rejected])
    lengths = torch.cat([pairs.chosen_length, pairs.rejected_length])
    summary = {
        **_accuracy_figures(pair_accuracy(pairs.chosen, pairs.rejected)),
        "pairs": float(pairs.chosen.numel()),
        "loss": pairs.loss.double().mean().item(),
        "margin": (pairs.chosen - pairs.rejected).mean().item(),
        "min_reward": scores.min().item(),
        "mean_reward": scores.mean().item(),
        "max_reward": scores.max().item(),
        "length_correlation": correlation(scores, lengths),
        **_accuracy_figures(pair_accuracy(pairs.chosen_length, pairs.rejected_length), "/longer_wins"),
    }
    for i, scale in enumerate(scales):
        chosen, rejected = pairs.scale_chosen[:, i], pairs.scale_rejected[:, i]
        summary |= _accuracy_figures(pair_accuracy(chosen, rejected), f"/{scale}")
        summary[f"loss/{scale}"] = pairs.scale_losses[:, i].mean().item()
        summary[f"margin/{scale}"] = (chosen - rejected).mean().item()
        summary[f"gate/{scale}"] = pairs.gate[:, i].mean().item()
    return summary


def _accuracy_figures(accuracy: PairAccuracy, suffix: str = "") -> dict[str, float]:
    figures = {"accuracy": accuracy.value, "accuracy_low": accuracy.low, "accuracy_high": accuracy.high}
    return {f"{name}{suffix}": value for name, value in {**figures, "ties": float(accuracy.ties)}.items()}
