"""Rotary positions whose frequencies depend on the length of a row: dynamic NTK and LongRoPE."""

from typing import Any

import torch
from torch import Tensor, nn

# Transformers computes the frequencies of these anew in every forward pass, from the longest row of the batch.
KINDS = ("dynamic", "longrope")


def rope_parameters(config: Any) -> list[dict[str, Any]]:
    """
    Parameters of rotary positions.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of a decoder.

    Returns:
        `list[dict[str, Any]]`: One set, or one for each kind of layers.
    """
    found = getattr(config, "rope_parameters", None) or {}
    return [one for one in (found, *found.values()) if isinstance(one, dict) and "rope_type" in one]


def longest_fixed_row(config: Any) -> int | None:
    """
    Longest row whose rotary frequencies do not depend on its length.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of a decoder.

    Returns:
        `int`, or `None` where the frequencies of no row depend on its length.
    """
    config = config.get_text_config()
    limits = [
        one.get("original_max_position_embeddings") or config.max_position_embeddings
        for one in rope_parameters(config)
        if one["rope_type"] in KINDS
    ]
    return min(limits, default=None)


class _FrequenciesOfEachRow:
    """Stands before a class of rotary positions: every row has the frequencies of its own length."""

    def forward(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        parts = []
        for row in position_ids:
            self._forget()
            parts.append(super().forward(x[:1], row[None], *args, **kwargs))  # type: ignore[misc]
        cos, sin = (torch.cat(part) for part in zip(*parts, strict=True))
        return cos, sin

    def _forget(self) -> None:
        """Dynamic frequencies stay those of the longest row so far, until there is a short one."""
        this: Any = self
        prefixes = [f"{kind}_" for kind in this.rope_type] if isinstance(this.rope_type, dict) else [""]
        for prefix in prefixes:
            if hasattr(this, f"{prefix}original_inv_freq"):
                setattr(this, f"{prefix}inv_freq", getattr(this, f"{prefix}original_inv_freq").clone())
                setattr(this, f"{prefix}max_seq_len_cached", this.original_max_seq_len)


def settle_frequencies(model: nn.Module) -> None:
    """
    Let each row of a batch have the rotary frequencies of its own length, whatever the other rows and those before.

    It costs a small computation a row and no pass through the decoder, and does nothing where frequencies are fixed.
    Beyond [`longest_fixed_row`] a row is then still read otherwise than a longer one that begins with it.

    Args:
        model (`torch.nn.Module`):
            A decoder, whose modules of rotary positions are changed in place.
    """
    for module in model.modules():
        kind: Any = getattr(module, "rope_type", None)
        kinds = kind.values() if isinstance(kind, dict) else [kind]
        if any(one in KINDS for one in kinds) and not isinstance(module, _FrequenciesOfEachRow):
            stock = type(module)
            module.__class__ = type(stock.__name__, (_FrequenciesOfEachRow, stock), {"__module__": stock.__module__})
