"""Accuracy of pairs and means, with intervals that say how far a figure can be trusted."""

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from .intervals import Interval, PairAccuracy, wilson_interval


def pair_accuracy(
    chosen: Tensor, rejected: Tensor, confidence: float = 0.95, clusters: Tensor | None = None
) -> PairAccuracy:
    """
    Share of pairs whose chosen response scores higher. A tie counts as half: a constant score gets 0.5, not 0.

    Args:
        chosen (`torch.Tensor` of shape `(P,)`, float):
            Scores of the preferred responses.
        rejected (`torch.Tensor` of shape `(P,)`, float):
            Scores of the other responses.
        confidence (`float`, *optional*, defaults to `0.95`):
            Level of the interval.
        clusters (`torch.Tensor` of shape `(P,)`, int64, *optional*):
            Number of the prompt of each pair. The interval is then that of [`effective_count`] independent pairs.

    Returns:
        [`PairAccuracy`]

    Raises:
        `ValueError`: If a score is not a number, which no comparison would count.
    """
    if bool(torch.isnan(chosen).any()) or bool(torch.isnan(rejected).any()):
        raise ValueError("Some scores are not numbers (nan); no accuracy can be given.")
    wins, ties = int((chosen > rejected).sum()), int((chosen == rejected).sum())
    count = chosen.numel()
    value, low, high = wilson_interval(wins + ties / 2, count, confidence)
    if clusters is not None and count:
        trials = effective_count(((chosen > rejected).double() + (chosen >= rejected).double()) / 2, clusters)
        _, low, high = wilson_interval(value * trials, trials, confidence)
    return PairAccuracy(value, low, high, ties, count)


def effective_count(outcomes: Tensor, clusters: Tensor) -> float:
    r"""
    How many independent outcomes tell as much as these, of which those of one cluster go together.

    $$ \frac{n}{\max(1, d)}, \qquad
       d = \frac{\tfrac{G}{G - 1} \sum_g (\sum_{i \in g} e_i)^2}{\tfrac{n}{n - 1} \sum_i e_i^2}, \qquad
       e_i = x_i - \bar x $$

    $d$ is the design effect: the variance of the mean with clusters over that without. Rao and Scott (1992),
    "A simple method for the analysis of clustered binary data", Biometrics 48.

    Args:
        outcomes (`torch.Tensor` of shape `(n,)`, float):
            Outcomes $x_i$, such as 1 for a pair that is ranked right.
        clusters (`torch.Tensor` of shape `(n,)`, int64):
            Number of each one's cluster, such as its prompt; there are $G$.

    Returns:
        `float`: `n` where each cluster has one outcome. The number of clusters where all outcomes are equal, which
        tells nothing of how they go together, and 1 for one cluster.
    """
    _, numbers = clusters.unique(return_inverse=True)
    count, groups = len(outcomes), int(numbers.max()) + 1
    rests = outcomes.double() - outcomes.double().mean()
    alone = rests.square().sum().item()
    if groups == 1 or alone == 0:
        return float(groups)
    together = torch.zeros(groups, dtype=rests.dtype).index_add_(0, numbers, rests).square().sum().item()
    return count / max(1.0, groups / (groups - 1) * together / (count / (count - 1) * alone))


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
