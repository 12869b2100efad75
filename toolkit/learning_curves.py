"""How fast a policy learns: smoothed curves, and what was generated until a curve is at a level."""

import math

import torch
from torch import Tensor


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
    return tokens.double().masked_fill(curves < level, math.inf).amin(-1)
