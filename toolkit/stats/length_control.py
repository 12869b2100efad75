"""How much of what a score ranks right is more than the length of the responses."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

LIKE = 1.2


class LengthRegression(NamedTuple):
    """Gaps of scores after that part is taken out that goes with length. `P` pairs."""

    slope: float  # score for a response e times as long
    residuals: Tensor  # (P,) float64, in the unit of the scores


def of_like_length(first: Tensor, second: Tensor, ratio: float = LIKE) -> Tensor:
    """
    Whether the longer response of each pair is at most so many times as long as the other one.

    The field has no threshold that all keep to; 1.2 leaves in what a reader would call equally long.

    Args:
        first (`torch.Tensor` of shape `(P,)`):
            Lengths, above 0.
        second (`torch.Tensor` of shape `(P,)`):
            Lengths of the other side, above 0.
        ratio (`float`, *optional*, defaults to `1.2`):
            The threshold, at least 1.

    Returns:
        `torch.Tensor` of shape `(P,)`, bool.
    """
    return torch.maximum(first, second).double() <= ratio * torch.minimum(first, second).double()


def without_length(gap: Tensor, first: Tensor, second: Tensor) -> LengthRegression:
    r"""
    Take out of the gap of two scores what goes with the logarithm of the ratio of their lengths.

    $$ \beta = \frac{\sum_i \Delta_i \ell_i}{\sum_i \ell_i^2}, \qquad \Delta_i - \beta \ell_i, \qquad
       \ell_i = \ln \frac{|y^+_i|}{|y^-_i|} $$

    This is the regression of the score on the logarithm of the length with an intercept for each pair, and so for
    each prompt. Swapping a pair's sides changes the sign of $\Delta_i$ and $\ell_i$ both, so which response was
    preferred does not enter the fit: what is taken out is what the score gives to length, whatever people give to it.

    The logarithm of the ratio is what Stiennon et al. (2020), https://arxiv.org/abs/2009.01325, control for; the
    residual of a reward on length in place of the reward is from Huang et al. (2024), https://arxiv.org/abs/2409.17407,
    whose local regression is a line here.

    Args:
        gap (`torch.Tensor` of shape `(P,)`, float):
            Score of the first response less that of the second one.
        first (`torch.Tensor` of shape `(P,)`):
            Length of the first response, above 0.
        second (`torch.Tensor` of shape `(P,)`):
            Length of the second response, above 0.

    Returns:
        [`LengthRegression`]: With slope 0 where all pairs are of equal length.

    Raises:
        `ValueError`: If a length is not above 0.
    """
    if bool((first <= 0).any()) or bool((second <= 0).any()):
        raise ValueError("A response has no length. Leave its pair out.")
    ratios = first.double().log() - second.double().log()
    square = (ratios @ ratios).item()
    slope = (gap.double() @ ratios).item() / square if square > 0 else 0.0
    assert math.isfinite(slope), "scores are finite"
    return LengthRegression(slope, gap.double() - slope * ratios)
