"""Whether the gap of two scores, taken for a Bradley-Terry log-odds, says how often the better one is the chosen."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 10
FOLDS = 5


class ReliabilityBin(NamedTuple):
    """Pairs whose scores give the response that they hold better about the same probability."""

    confidence: float  # mean of that probability, between 0.5 and 1
    accuracy: float  # share of the pairs where it was the chosen one, ties counted as half
    pairs: int


def log_loss(gap: Tensor) -> float:
    r"""
    Mean negative log-likelihood of the chosen responses under the Bradley-Terry model.

    $$ -\frac1P \sum_i \log \sigma(r^+_i - r^-_i) $$

    Bradley and Terry (1952), "Rank analysis of incomplete block designs", Biometrika 39.

    Args:
        gap (`torch.Tensor` of shape `(P,)`, float):
            Score of the chosen response less that of the rejected one, in nats.

    Returns:
        `float`: In nats; ln 2 = 0.693 is what a constant score has.
    """
    return F.softplus(-gap.double()).mean().item()


def reliability(gap: Tensor, bins: int = BINS) -> list[ReliabilityBin]:
    r"""
    Points of a reliability diagram, with both sides of a pair counted alike.

    Which side is called the first is arbitrary, so each pair counts once with the probability $p = \sigma(gap)$ that
    the chosen response wins, outcome 1, and once with $1 - p$ that the rejected one does, outcome 0. The two halves of
    the diagram are then mirror images, and `2 bins` bins of equal width over 0 to 1 say the same as `bins` over 0.5 to
    1, into which the pair falls with $\max(p, 1 - p)$: these are returned. Only so can a bin be off its diagonal: with
    chosen sides alone every outcome would be 1.

    Args:
        gap (`torch.Tensor` of shape `(P,)`, float):
            Score of the chosen response less that of the rejected one, in nats.
        bins (`int`, *optional*, defaults to `10`):
            Bins of equal width between 0.5 and 1.

    Returns:
        `list[ReliabilityBin]`: Those that hold a pair, in rising order.
    """
    return _binned(torch.sigmoid(gap.double().abs()), _outcomes(gap), bins)


def calibration_error(gap: Tensor, bins: int = BINS) -> float:
    r"""
    Expected calibration error, over the bins of [`reliability`].

    $$ \sum_b \frac{n_b}{P} \, | \text{accuracy}_b - \text{confidence}_b | $$

    Guo et al. (2017), Eq. (3) of https://arxiv.org/abs/1706.04599, after Naeini et al. (2015). It is above 0 for
    calibrated scores, too, by chance; [`calibration_error_by_chance`] says how far.

    Args:
        gap (`torch.Tensor` of shape `(P,)`, float):
            Score of the chosen response less that of the rejected one, in nats.
        bins (`int`, *optional*, defaults to `10`):
            Bins of equal width between 0.5 and 1.

    Returns:
        `float`: Between 0 and 1.
    """
    return sum(bin.pairs * abs(bin.accuracy - bin.confidence) for bin in reliability(gap, bins)) / gap.numel()


def calibration_error_by_chance(
    gap: Tensor, bins: int = BINS, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> float:
    """
    What the calibration error of these scores rarely exceeds if every probability is right: a quantile over outcomes
    that are drawn from the probabilities themselves, pair by pair.

    Broecker and Smith (2007), "Increasing the reliability of reliability diagrams", Weather and Forecasting 22.

    Args:
        gap (`torch.Tensor` of shape `(P,)`, float):
            Score of the chosen response less that of the rejected one, in nats.
        bins (`int`, *optional*, defaults to `10`):
            Bins of equal width between 0.5 and 1.
        confidence (`float`, *optional*, defaults to `0.95`):
            Share of the draws that have no greater error.
        resamples (`int`, *optional*, defaults to `1000`), seed (`int`, *optional*, defaults to `0`):
            Number of draws, and seed of their own generator.

    Returns:
        `float`: Between 0 and 1.
    """
    said = torch.sigmoid(gap.double().abs())
    place = _bin_of(said, bins)
    total = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, said)
    generator = torch.Generator().manual_seed(seed)
    errors = []
    for _ in range(resamples):
        right = (torch.rand(said.shape, generator=generator, dtype=torch.float64) < said).double()
        errors.append((torch.zeros_like(total).index_add_(0, place, right) - total).abs().sum() / gap.numel())
    return torch.stack(errors).quantile(confidence).item()


def fit_temperature(gap: Tensor) -> float:
    r"""
    The temperature by which gaps are best divided.

    $$ \min_{T > 0} -\frac1P \sum_i \log \sigma(gap_i / T) $$

    Guo et al. (2017), section 4.2 of https://arxiv.org/abs/1706.04599. The loss is convex in $1/T$; bisection
    finds where its slope is 0.

    Args:
        gap (`torch.Tensor` of shape `(P,)`, float):
            Score of the chosen response less that of the rejected one, in nats.

    Returns:
        `float`: Above 1 where the scores are too sure. Infinite where the rejected responses score higher on average,
        so that no temperature is better than a constant score. At least a hundredth of the mean size of a gap, since
        the loss has no minimum where every pair is right; 1 where all gaps are 0.
    """
    gap = gap.double()
    size = gap.abs().mean().item()
    if size == 0:
        return 1.0

    def falls(inverse: float) -> bool:
        return (gap * torch.sigmoid(-inverse * gap)).mean().item() > 0

    low, high = 0.0, 100 / size
    if not falls(low):
        return math.inf
    if falls(high):
        return size / 100
    for _ in range(200):  # until the two are neighbours in float64
        middle = (low + high) / 2
        low, high = (middle, high) if falls(middle) else (low, middle)
    return 2 / (low + high)


def cross_fitted(gap: Tensor, clusters: Tensor, folds: int = FOLDS) -> Tensor:
    """
    Each gap over the temperature that was fitted on the other folds.

    Args:
        gap (`torch.Tensor` of shape `(P,)`, float):
            Score of the chosen response less that of the rejected one, in nats.
        clusters (`torch.Tensor` of shape `(P,)`, int64):
            Number of each pair's prompt, from 0, all of whose pairs are in one fold: its number modulo `folds`.
        folds (`int`, *optional*, defaults to `5`):
            Most folds; as many as there are prompts, if these are fewer.

    Returns:
        `torch.Tensor` of shape `(P,)`, float64.

    Raises:
        `ValueError`: If there is one prompt only.
    """
    _, numbers = clusters.unique(return_inverse=True)
    folds = min(folds, int(numbers.max()) + 1)
    if folds < 2:
        raise ValueError(
            "All pairs have one prompt, so no others are left to fit a temperature on. Give more prompts."
        )
    fold, scaled = numbers % folds, gap.double().clone()
    for k in range(folds):
        scaled[fold == k] /= fit_temperature(gap[fold != k])
    return scaled


def _outcomes(gap: Tensor) -> Tensor:
    """1 where the chosen response scores higher, 0 where the rejected one does, half for a tie."""
    return (gap.sign().double() + 1) / 2


def _bin_of(said: Tensor, bins: int) -> Tensor:
    return ((said - 0.5) * 2 * bins).long().clamp(max=bins - 1)


def _binned(said: Tensor, outcomes: Tensor, bins: int) -> list[ReliabilityBin]:
    place = _bin_of(said, bins)
    held = [place == k for k in range(bins)]
    return [
        ReliabilityBin(said[some].mean().item(), outcomes[some].mean().item(), int(some.sum()))
        for some in held
        if bool(some.any())
    ]
