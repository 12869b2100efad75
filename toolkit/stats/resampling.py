"""How far a mean over training seeds and test units can be trusted, when both are samples: the two-way bootstrap."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .intervals import Interval

DRAWS_AT_ONCE = 2**20  # about 32 MB, whatever the number of resamples


def bootstrap_interval(
    values: Tensor, sizes: Tensor | None = None, *, confidence: float = 0.95, resamples: int = 4000, seed: int = 0
) -> Interval:
    r"""
    Mean over training seeds and test units, with the percentile interval of the pigeonhole bootstrap: seeds and units
    are each drawn with replacement, independently, and a drawn seed is taken with every drawn unit.

    $$ \hat\mu = \frac{\sum_{s,n} v_{sn}}{S \sum_n m_n}, \qquad
       \hat\mu^* = \frac{\sum_{s,n} a_s b_n v_{sn}}{\sum_s a_s \sum_n b_n m_n} $$

    with counts $a \sim \text{Multinomial}(S; 1/S, \dots)$ and $b \sim \text{Multinomial}(N; 1/N, \dots)$.

    Owen (2007), "The pigeonhole bootstrap", Ann. Appl. Stat. 1, https://arxiv.org/abs/0712.1111.

    It is no exact interval. The spread of few seeds is underestimated: with five of them, and all the variance between
    them, an interval of 95% covers the truth in some 84% of cases. Noise that belongs to neither a seed nor a unit is
    counted up to three times, which makes the interval too wide where there is little else. And the split into
    training and test data is held fixed: what another split would change is not in it.

    Args:
        values (`torch.Tensor` of shape `(S, N)`, any real dtype):
            Sum $v_{sn}$ of the measurements on each of `N` units (such as the pairs of a prompt that are ranked
            right) by the model of each of `S` seeds. Differences of two models' sums give a paired comparison. With
            `S` or `N` of 1, such as for one figure a seed, only the other is drawn.
        sizes (`torch.Tensor` of shape `(N,)`, any real dtype, *optional*, defaults to 1 each):
            Number $m_n$ of measurements on each unit, above 0.
        confidence (`float`, *optional*, defaults to `0.95`):
            Level of the interval.
        resamples (`int`, *optional*, defaults to `4000`):
            Number of draws, at least 1.
        seed (`int`, *optional*, defaults to `0`):
            Of the draws, which have a generator of their own. Equal seeds and shapes give equal draws.

    Returns:
        [`Interval`]: Of the mean of one measurement, in its unit, from float64. Infinitely wide for a single value.

    Raises:
        `ValueError`: If `values` is not a matrix or empty, `sizes` does not fit it or is not above 0, or a value or
            size is not finite.
    """
    if values.dim() != 2 or values.numel() == 0:
        raise ValueError(f"`values` has shape {tuple(values.shape)}. Give one row a seed and one column a unit.")
    seeds, units = values.shape
    sizes = torch.ones(units) if sizes is None else sizes
    if sizes.shape != (units,):
        raise ValueError(
            f"`sizes` has shape {tuple(sizes.shape)}, `values` {tuple(values.shape)}. Give {units} sizes."
        )
    # The sizes are summed as one more row, by the same matrix product as the values.
    table = torch.cat([values.detach().double().cpu(), sizes.detach().double().cpu()[None]])
    if broken := int((~table.isfinite()).sum()):
        raise ValueError(f"{broken} of the values and sizes are not finite. Leave their seeds or units out.")
    if empty := int((table[-1] <= 0).sum()):
        raise ValueError(f"{empty} of {units} sizes are not above 0. Leave units without measurements out.")

    mean = (table[:-1].sum() / (seeds * table[-1].sum())).item()
    if values.numel() == 1:
        return Interval(mean, -math.inf, math.inf)
    generator = torch.Generator().manual_seed(seed)
    drawn_seeds = _drawn_counts(resamples, seeds, generator)
    rows = max(1, DRAWS_AT_ONCE // units)
    means = []
    for start in range(0, resamples, rows):
        some_seeds = drawn_seeds[start : start + rows]
        sums = _drawn_counts(len(some_seeds), units, generator) @ table.T  # (rows, S + 1)
        means.append((some_seeds * sums[:, :-1]).sum(1) / (seeds * sums[:, -1]))
    tails = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = torch.cat(means).quantile(tails).tolist()
    return Interval(mean, low, high)


def bootstrap_figures(
    figures: Callable[[Tensor, Tensor], Tensor],
    seeds: int,
    units: int,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Interval]:
    """
    Figures that are no means, such as when a mean curve is at a level, with the intervals of [`bootstrap_interval`].

    Args:
        figures (`Callable`):
            Takes what each seed weighs, `(S,)` float64, and what each unit weighs, `(N,)` float64, which sum to 1, and
            returns `F` numbers, `(F,)` float64. Infinite ones, of what is never reached, count as the greatest.
        seeds (`int`):
            Number of training seeds, `S`.
        units (`int`):
            Number of test units, `N`.
        confidence (`float`, *optional*, defaults to `0.95`):
            Level of the intervals.
        resamples (`int`, *optional*, defaults to `2000`):
            Number of draws, at least 1.
        seed (`int`, *optional*, defaults to `0`):
            Of the draws.

    Returns:
        `list[Interval]`: Of each figure, which is that of all seeds and units alike; a bound is one of its draws.

    Raises:
        `ValueError`: If a figure is no number.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = [_drawn_counts(resamples, number, generator) / number for number in (seeds, units)]
    even = [torch.full((number,), 1 / number, dtype=torch.float64) for number in (seeds, units)]
    values = figures(even[0], even[1])
    drawn = torch.stack([figures(own, other) for own, other in zip(*weights, strict=True)])
    if bool(drawn.isnan().any() | values.isnan().any()):
        raise ValueError("A figure is no number. Leave it out, or say what it is where it cannot be told.")
    tails = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    # Between a number and an infinite one there is nothing to interpolate
    low, high = drawn.quantile(tails, dim=0, interpolation="nearest").tolist()
    return [Interval(*bounds) for bounds in zip(values.tolist(), low, high, strict=True)]


def _drawn_counts(rows: int, things: int, generator: torch.Generator) -> Tensor:
    """How often each thing is among as many draws with replacement: `(rows, things)` float64, rows independent."""
    draws = torch.randint(things, (rows, things), generator=generator)
    bins = draws + things * torch.arange(rows)[:, None]
    return bins.flatten().bincount(minlength=rows * things).view(rows, things).double()
