"""How fast and how steadily a policy learns: smoothed curves, when they are at a level, and the noise around them."""

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from .intervals import Interval


class NoiseToSignal(NamedTuple):
    """Noise of a gradient estimate beside the gradient, and how well that is known."""

    value: float  # variance over squared mean, without unit
    standard_error: float  # of the value, by jackknife


def trailing_mean(values: Tensor, window: int) -> Tensor:
    """
    Mean of each value and of the ones before it, so that a point knows nothing of what comes after it.

    Args:
        values (`torch.Tensor` of shape `(..., T)`, float):
            A measurement at each of `T` steps.
        window (`int`):
            Number of values in a mean, at least 1. The first `window - 1` means are over the fewer there are.

    Returns:
        `torch.Tensor` of shape `(..., T)`, float64: In the unit of `values`.

    Raises:
        `ValueError`: If `window` is below 1.
    """
    if window < 1:
        raise ValueError(f"`window` is {window}. A mean needs 1 value or more.")
    # Windows are summed one by one: differences of running sums would carry the rounding of all earlier values.
    steps = range(values.size(-1))
    return torch.stack([values[..., max(0, t - window + 1) : t + 1].double().mean(-1) for t in steps], dim=-1)


def tokens_to_level(tokens: Tensor, curves: Tensor, level: float) -> Tensor:
    r"""
    Tokens generated until a measurement is first at a level, in each of several runs.

    $$ \min \{ n_t : c_t \ge \ell \} $$

    Args:
        tokens (`torch.Tensor` of shape `(..., T)`, integer):
            Tokens $n_t$ generated from the beginning up to and including each of `T` steps, which they measure.
        curves (`torch.Tensor` of shape `(..., T)`, float):
            Measurement $c_t$ at each step, such as the smoothed reward of the step's responses.
        level (`float`):
            The level $\ell$, in the unit of `curves`.

    Returns:
        `torch.Tensor` of shape `(...)`, float64: Infinite where the level is not reached, which leaves the median of
        several runs right as long as more than half of them get there.

    Raises:
        `ValueError`: If `tokens` and `curves` differ in shape, which would otherwise broadcast.
    """
    if tokens.shape != curves.shape:
        raise ValueError(f"`tokens` and `curves` must match, got {tuple(tokens.shape)} and {tuple(curves.shape)}.")
    # Tokens only grow, so that the fewest at the level are those of the first step there.
    # What is no number is not at the level, hence no `<`.
    return tokens.double().masked_fill(~(curves >= level), math.inf).amin(-1)


def convergence_step(curve: Tensor, level: float, window: int) -> Tensor:
    r"""
    First step from which on the trailing mean stays at or above a level until the end, in each of several runs.

    $$ \min \{ t : \bar c_u \ge \ell \text{ for all } t \le u \le T \} $$

    Args:
        curve (`torch.Tensor` of shape `(..., T)`, float):
            Measurement at steps 1 to `T`; step $t$ is after $t$ updates.
        level (`float`):
            The level $\ell$, in the unit of `curve`.
        window (`int`):
            Number of values in the mean $\bar c_t$, at least 1; see [`trailing_mean`].

    Returns:
        `torch.Tensor` of shape `(...)`, float64: In steps, infinite where the mean is not at the level at the end. A
        mean that is not a number is not at any level.

    Raises:
        `ValueError`: If `window` is below 1.
    """
    below = ~(trailing_mean(curve, window) >= level)
    steps = torch.arange(1, curve.size(-1) + 1, dtype=torch.float64, device=curve.device)
    last_below = (below * steps).amax(-1)
    return (last_below + 1).masked_fill(below[..., -1], math.inf)


def instability(curve: Tensor) -> Tensor:
    r"""
    Standard deviation of a curve around its least-squares line, over the second half of the steps.

    $$ \sqrt{\frac{1}{n - 2} \sum_{t > \lfloor T/2 \rfloor} (c_t - \hat a - \hat b t)^2},
       \qquad n = T - \lfloor T/2 \rfloor $$

    The line takes out what a run still learns, and the divisor counts its two fitted parameters, so that values which
    are independent around a line have their own variance as the expectation of the square.

    Args:
        curve (`torch.Tensor` of shape `(..., T)`, float):
            Measurement at each of `T` steps, not smoothed.

    Returns:
        `torch.Tensor` of shape `(...)`, float64: In the unit of `curve`.

    Raises:
        `ValueError`: If fewer than 3 values are in the second half, through which a line would go without a rest.
    """
    half = curve[..., curve.size(-1) // 2 :].double()
    count = half.size(-1)
    if count < 3:
        raise ValueError(f"The second half of {curve.size(-1)} steps has {count} values. Give 5 steps or more.")
    steps = torch.arange(count, dtype=torch.float64, device=curve.device) - (count - 1) / 2
    centred = half - half.mean(-1, keepdim=True)
    slope = (centred * steps).sum(-1, keepdim=True) / steps.square().sum()
    return ((centred - slope * steps).square().sum(-1) / (count - 2)).sqrt()


def changes_to_last(values: Tensor, parts: int, confidence: float = 0.95) -> list[Interval]:
    r"""
    How far the mean of a run's last part is above that of each earlier part, judged by the noise from step to step.

    The noise is half the mean squared difference of successive values, which a slow trend hardly moves:

    $$ \hat\sigma^2 = \frac{1}{2 (T - 1)} \sum_t (c_{t+1} - c_t)^2, \qquad
       \bar c_P - \bar c_p \pm t_\nu \, \hat\sigma \sqrt{1 / n_P + 1 / n_p}, \qquad
       \nu = \frac{2 (T - 1)^2}{3 T - 4} $$

    von Neumann et al. (1941), "The mean square successive difference", Ann. Math. Stat. 12. Student's quantile
    $t_\nu$ is taken from the normal one by the first two terms of its expansion (Abramowitz and Stegun, 26.7.5).

    Args:
        values (`torch.Tensor` of shape `(T,)`, float):
            Measurement at each of `T` steps, each with noise of its own.
        parts (`int`):
            Number of parts, of as equal length as can be, at least 2.
        confidence (`float`, *optional*, defaults to `0.95`):
            Level of each interval.

    Returns:
        `list[Interval]`: In the unit of `values`, of each part but the last, the first one first.

    Raises:
        `ValueError`: If there are fewer than two values a part, or fewer than two parts.
    """
    noise = _half_width(values, parts, confidence)
    *earlier, last = values.double().tensor_split(parts)
    changes = []
    for part in earlier:
        change, half = (last.mean() - part.mean()).item(), noise * math.sqrt(1 / len(last) + 1 / len(part))
        changes.append(Interval(change, change - half, change + half))
    return changes


def level_at_end(values: Tensor, parts: int, confidence: float = 0.95) -> Interval:
    """
    Mean of a run's last part, with the interval that the noise from step to step makes. Arguments, units and errors as
    in [`changes_to_last`].
    """
    last = values.double().tensor_split(parts)[-1]
    mean, half = last.mean().item(), _half_width(values, parts, confidence) / math.sqrt(len(last))
    return Interval(mean, mean - half, mean + half)


def _half_width(values: Tensor, parts: int, confidence: float) -> float:
    """Of the interval around a single value."""
    count = values.numel()
    if parts < 2 or count < 2 * parts:
        raise ValueError(f"{count} values make no {parts} parts of 2 or more. Give fewer parts, 2 at least.")
    noise = (values.double().diff().square().mean() / 2).sqrt().item()
    degrees, z = 2 * (count - 1) ** 2 / (3 * count - 4), NormalDist().inv_cdf((1 + confidence) / 2)
    return noise * (z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2))


def noise_to_signal(gram: Tensor) -> NoiseToSignal:
    r"""
    Variance of a gradient estimate over the squared norm of its mean, from `K` independent estimates at one policy.

    $$ \frac{\operatorname{tr} \operatorname{Cov} g}{\lVert \mathbb{E} g \rVert^2} \approx \frac{A - B}{B}, \qquad
       A = \frac{1}{K} \sum_i g_i \cdot g_i, \qquad B = \frac{1}{K (K - 1)} \sum_{i \ne j} g_i \cdot g_j $$

    $A - B$ and $B$ are unbiased, their ratio is not quite. It is the noise scale $B_\text{simple}$ of
    https://arxiv.org/abs/1812.06162: the number of such estimates whose mean has as much noise as signal.

    Args:
        gram (`torch.Tensor` of shape `(K, K)`, float):
            Inner products $g_i \cdot g_j$ of the estimates, in one unit, best summed in float64. Sums over parts of
            the parameters add up, so that no one needs to hold `K` whole gradients.

    Returns:
        [`NoiseToSignal`]: Computed in float64. The value is infinite where $B \le 0$: the noise hides the mean
        gradient. The standard error is the jackknife's over the `K` estimates, infinite where $B \le 0$ without one of
        them.

    Raises:
        `ValueError`: If `gram` is not square, or `K` is below 3, without which the jackknife has no pairs.
    """
    if gram.dim() != 2 or gram.size(0) != gram.size(1) or gram.size(0) < 3:
        raise ValueError(f"`gram` has shape {tuple(gram.shape)}. Give the inner products of 3 gradients or more.")
    gram, count = gram.double(), gram.size(0)
    squares = gram.diagonal()
    products = gram.sum(0) + gram.sum(1) - 2 * squares  # of each estimate with the others, both ways round
    value = _ratio(squares.sum(), products.sum() / 2, count)
    without = _ratio(squares.sum() - squares, products.sum() / 2 - products, count - 1)
    error = ((count - 1) * without.var(correction=0)).sqrt().item() if bool(without.isfinite().all()) else math.inf
    return NoiseToSignal(value.item(), error)


def _ratio(squares: Tensor, products: Tensor, count: int) -> Tensor:
    """Noise over signal from sums of `count` squares and of all products of two; infinite without a signal."""
    total, signal = squares / count, products / (count * (count - 1))
    return ((total - signal) / signal).masked_fill(signal <= 0, math.inf)
