"""Sums over the tokens of every process.

Processes hold unequal numbers of tokens, so sums and counts are reduced, never means.
"""

import torch
from accelerate.utils import reduce
from torch import Tensor


def reduced_sums(mask: Tensor, *values: Tensor) -> Tensor:
    """
    Number of kept tokens and the kept sum of each of `values`, over every process.

    Args:
        mask (`torch.Tensor` of shape `(B, T)`, bool or integer):
            Tokens of this process that count.
        values (`torch.Tensor` of shape `(B, T)`):
            What is summed.

    Returns:
        `torch.Tensor` of shape `(1 + len(values),)`, float64.
    """
    sums = torch.stack([mask.sum().double(), *((value * mask).double().sum() for value in values)])
    return torch.as_tensor(reduce(sums, "sum"))


def mean_and_std(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """
    Mean and standard deviation of the kept values of every process.

    Args:
        values (`torch.Tensor` of shape `(B, T)`, float):
            Values of this process.
        mask (`torch.Tensor` of shape `(B, T)`, bool or integer):
            Tokens that count.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]` of shape `()`, float64: 0 where none is kept.
    """
    count, total, squares = reduced_sums(mask, values, values**2)
    mean = total / count.clamp(min=1)
    return mean, (squares / count.clamp(min=1) - mean**2).clamp(min=0).sqrt()
