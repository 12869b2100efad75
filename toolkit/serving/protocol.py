"""What goes over the wire: rows of token ids as JSON, scores as a file of tensors, so that no digit is lost."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..reward.scores import ResponseScore

MODEL_HEADER = "X-Prefscale-Model"  # of an answer: by what the model behind it is known
TENSORS = ("scale_scores", "gate", "prompt_value", "prefix_values", "token_scores", "segment_scores", "segment_ends")
OF_READERS = ("z", "weights")  # of heads with several outputs
OF_TOKENS = TENSORS[3:]  # one entry a token of the response; the others have one a response


def known_by(about: dict[str, Any]) -> str:
    """Hash of all that a server says of its model."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def pack_scores(scores: Sequence[ResponseScore]) -> bytes:
    """
    Scores as the bytes of a safetensors file.

    Args:
        scores (`Sequence[ResponseScore]`):
            `N` scores, one at least.

    Returns:
        `bytes`: What [`unpack_scores`] reads; some 20 bytes a token and 50 a response.
    """
    tensors: dict[str, Tensor] = {
        "reward": torch.tensor([score.reward for score in scores], dtype=torch.float64),
        "tokens": torch.tensor([len(score.token_scores) for score in scores]),
    }
    for name in (*TENSORS, *(name for name in OF_READERS if getattr(scores[0], name) is not None)):
        parts = [getattr(score, name) for score in scores]
        tensors[name] = torch.cat(parts) if name in OF_TOKENS else torch.stack(parts)
    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


def unpack_scores(content: bytes, ends: Sequence[list[int]]) -> list[ResponseScore]:
    """
    The scores that [`pack_scores`] packed, to the last bit.

    Args:
        content (`bytes`):
            Its result.
        ends (`Sequence[list[int]]`):
            Of each response the places in its text where its tokens end, which the server does not know.

    Returns:
        `list[ResponseScore]`

    Raises:
        `ValueError`: If there are not as many scores as responses.
    """
    tensors = load(content)
    counts = tensors["tokens"].tolist()
    if len(counts) != len(ends):
        raise ValueError(f"The reward server returned {len(counts)} scores for {len(ends)} responses.")
    columns: dict[str, Any] = {
        name: tensors[name].split(counts) if name in OF_TOKENS else tensors[name].unbind()
        for name in (*TENSORS, *(tensors.keys() & OF_READERS))
    }
    rewards = tensors["reward"].tolist()
    return [
        ResponseScore(reward=rewards[i], ends=ends[i], **{name: column[i] for name, column in columns.items()})
        for i in range(len(counts))
    ]
