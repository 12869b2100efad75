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


def difference_of_shares(
    successes: float, trials: int, other_successes: float, other_trials: int, confidence: float = 0.95
) -> Interval:
    r"""
    Difference of two shares of independent trials, with the interval that their Wilson intervals make.

    $$ p - q - \sqrt{(p - l_p)^2 + (u_q - q)^2} \quad \text{to} \quad p - q + \sqrt{(u_p - p)^2 + (q - l_q)^2} $$

    Newcombe (1998), "Interval estimation for the difference between independent proportions", Stat. Med. 17, its
    method 10.

    Args:
        successes (`float`), trials (`int`):
            Of the first share $p$; half successes are allowed.
        other_successes (`float`), other_trials (`int`):
            Of the second share $q$.
        confidence (`float`, *optional*, defaults to `0.95`):
            Probability that the interval covers the true difference.

    Returns:
        [`Interval`]: The first share less the second. Too wide where the same trials are behind both.
    """
    p, q = (wilson_interval(*one, confidence) for one in ((successes, trials), (other_successes, other_trials)))
    difference = p.value - q.value
    below, above = math.hypot(p.value - p.low, q.high - q.value), math.hypot(p.high - p.value, q.value - q.low)
    return Interval(difference, difference - below, difference + above)
