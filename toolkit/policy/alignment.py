"""Prefix values at the tokens of a policy that cuts text otherwise than the reward model."""

import re

import torch
from torch import Tensor

from ..reward.scorer import ResponseScore


def settled_length(text: str) -> int:
    """
    Characters at the beginning of a text that any continuation leaves cut into the same tokens.

    The word in progress is not among them: after "numbe" a tokenizer may already know whether "r" or "#" follows, so
    a baseline that read its tokens would depend on the very token whose log-probability it multiplies.

    Args:
        text (`str`):
            Beginning of a response.

    Returns:
        `int`: Where the last space after a word stands; 0 without one.
    """
    return max((space.start() for space in re.finditer(r"(?<=\S) ", text)), default=0)


def align_by_offsets(score: ResponseScore, ends: list[int]) -> Tensor:
    """
    Prefix values at the policy's tokens, when the reward model cuts the same text into other tokens.

    After a policy token, the value is that of the last reward-model token that ends within the settled length of the
    text so far: what is known of the prefix without looking ahead.

    Args:
        score ([`ResponseScore`]):
            Score of the response, with the character ends of its own tokens.
        ends (`list[int]` of length `T`):
            Settled length of the response text after each policy token, from [`settled_length`].

    Returns:
        `torch.Tensor` of shape `(T, S)`.
    """
    known = torch.cat([score.prompt_value[None], score.prefix_values])
    count = torch.searchsorted(torch.tensor(score.ends), torch.tensor(ends), right=True)
    return known[count]
