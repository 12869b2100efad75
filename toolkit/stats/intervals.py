"""Estimates with intervals around them, by arithmetic alone: nothing heavy is imported."""

import math
from statistics import NormalDist
from typing import NamedTuple


class Interval(NamedTuple):
    """An estimate and the interval around it."""

    value: float
    low: float
    high: float


class PairAccuracy(NamedTuple):
    """Share of pairs ranked right, with ties counted as half."""

    value: float
    low: float  # of the Wilson interval
    high: float
    ties: int
    pairs: int


def wilson_interval(successes: float, trials: float, confidence: float = 0.95) -> Interval:
    r"""
    Interval of a share that stays inside 0 and 1 and holds for few trials.

    $$ \frac{p + z^2/2n \pm z \sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n} $$

    Wilson (1927), "Probable inference, the law of succession, and statistical inference", J. Am. Stat. Assoc. 22.

    Args:
        successes (`float`):
            Number of successes; half ones are allowed.
        trials (`float`):
            Number of trials; an effective one need not be whole.
        confidence (`float`, *optional*, defaults to `0.95`):
            Probability that the interval covers the true share.

    Returns:
        [`Interval`]: The share and its interval; `nan` and the whole of 0 to 1 without a trial.
    """
    if trials == 0:
        return Interval(math.nan, 0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # At 0 and 1 one bound is the share itself, which rounding must not put on its other side
    return Interval(
        share, max(0.0, min(share, (centre - half) / scale)), min(1.0, max(share, (centre + half) / scale))
    )
