"""What GPUs want: to share prompts where the kernels of attention make that pay, and to be waited for seldom."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.logging import get_logger

logger = get_logger(__name__)

BLOCK = 128  # tokens of a block of FlexAttention
# Time of an operation on a pair of tokens, in that of one in a product of matrices: in causal attention, which skips
# half of the pairs, and with an additive mask, which skips none. Those of a GPU are assumed of an H100's kernels;
# those of a CPU, and the width that norms and the like add to a decoder's, fit the measurements of docs/scaling.md.
CAUSAL, MASKED = {"cuda": 2.0, "cpu": 1.1}, {"cuda": 5.2, "cpu": 1.4}
OTHER_WIDTH = 300


def is_flex(model: PreTrainedModel) -> bool:
    """
    Whether attention is FlexAttention.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The decoder, or a model around it.

    Returns:
        `bool`
    """
    return bool(model.config.get_text_config()._attn_implementation == "flex_attention")


def in_one_row(values: Tensor, padding: int) -> Tensor:
    """
    Packed rows as FlexAttention gets them.

    FlexAttention is compiled anew for a batch of one row, for a row of one block, and for lengths that are no whole
    blocks; after eight times it is compiled no more, and takes all pairs of tokens. One row of two blocks or more is
    the shape that every batch can have. Its mask keeps the rows apart, and skips what they do not see.

    Args:
        values (`torch.Tensor` of shape `(B, T)`):
            Of each token.
        padding (`int`):
            Value after the last row.

    Returns:
        `torch.Tensor` of shape `(1, N)`: The rows one after the other.
    """
    length = max(2 * BLOCK, -(-values.numel() // BLOCK) * BLOCK)
    return F.pad(values.flatten(), (0, length - values.numel()), value=padding)[None]


def sharing_pays(
    model: PreTrainedModel, packed: list[int], shared: list[int], sizes: list[int], device_type: str
) -> bool:
    r"""
    Whether packed rows take less time than their rows by themselves.

    Of $w$ hidden units, $T$ tokens take about $24 w^2 T$ operations in the products of a layer and $4 w$ for each pair
    of tokens in its attention. SDPA takes every pair of a packed row, and half of those of rows by themselves.
    FlexAttention leaves out the pairs that do not see each other, so that a packed row always pays.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The decoder, or a model around it.
        packed (`list[int]`):
            Tokens of each packed row.
        shared (`list[int]`):
            Tokens with which the rows of each begin.
        sizes (`list[int]`):
            Rows of each, which count as equally long.
        device_type (`str`):
            `"cuda"`, `"cpu"`, …

    Returns:
        `bool`: Where it is `False`, the log says once why.
    """
    config = model.config.get_text_config()
    if device_type not in CAUSAL or config._attn_implementation != "sdpa":
        return True
    linear, together, apart = 6 * (config.hidden_size + OTHER_WIDTH), 0.0, 0.0
    for tokens, prefix, size in zip(packed, shared, sizes, strict=True):
        alone = prefix + (tokens - prefix) / size
        together += linear * tokens + MASKED[device_type] * tokens**2
        apart += size * (linear * alone + CAUSAL[device_type] * alone**2 / 2)
    pays = together <= apart
    if not pays and max(sizes) > 1:
        logger.warning_once(
            "Responses to one prompt run in rows of their own: with SDPA's mask they would take more time together, "
            "by an estimate from their lengths. On a GPU `attn_implementation='flex_attention'` shares at any length."
        )
    return pays


def on_cpu(tensors: Iterable[Tensor]) -> list[Tensor]:
    """
    Tensors on the CPU, from a GPU in one copy, since a program waits for it at each.

    Args:
        tensors (`Iterable[torch.Tensor]`):
            Of any shapes and dtypes, on one device.

    Returns:
        `list[torch.Tensor]`: The same to the bit, without their graphs.
    """
    found = [tensor.detach() for tensor in tensors]
    if all(tensor.device.type == "cpu" for tensor in found):
        return found
    parts = [tensor.flatten().view(torch.uint8) for tensor in found]
    copied = torch.cat(parts).cpu().split([len(part) for part in parts])
    return [part.clone().view(tensor.dtype).view(tensor.shape) for part, tensor in zip(copied, found, strict=True)]
