"""Losses of a policy on its own samples.

Shapes: `B` responses, `T` tokens of a response. A mask is `True` where a token counts.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class ClippedLoss(NamedTuple):
    """Loss of an off-policy step, and where the ratio was clipped."""

    loss: Tensor  # () float32
    clipped: Tensor  # (B, T) bool, True where the gradient is cut off


def reinforce_loss(logprobs: Tensor, advantages: Tensor, completion_mask: Tensor) -> Tensor:
    r"""
    REINFORCE on samples of the policy itself: no ratio, no clip.

    $$ -\frac1B \sum_i \sum_t A_{i,t} \log \pi(y_{i,t} \mid x_i, y_{i,<t}) $$

    Williams (1992), "Simple statistical gradient-following algorithms for connectionist reinforcement learning",
    Machine Learning 8, with a baseline for every token. Its value means nothing; its gradient is what counts.

    Args:
        logprobs (`torch.Tensor` of shape `(B, T)`, float):
            Log-probabilities of the sampled tokens, in nats, with gradient.
        advantages (`torch.Tensor` of shape `(B, T)`, float):
            Advantage of each token.
        completion_mask (`torch.Tensor` of shape `(B, T)`, bool or integer):
            Tokens up to and including the end of each response.

    Returns:
        `torch.Tensor` of shape `()`.

    Raises:
        `ValueError`: If the shapes differ; `(B,)` advantages would broadcast in silence where `T == B`.
    """
    _check_shapes(logprobs, advantages, completion_mask)
    # Summed over a response's tokens, since log pi(y|x) is that sum: dividing by each length would blame a long
    # wrong answer less per token than a short one (https://huggingface.co/papers/2503.20783).
    return -(logprobs * advantages.detach() * completion_mask).sum(1).mean()


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    completion_mask: Tensor,
    epsilon_low: float,
    epsilon_high: float,
) -> ClippedLoss:
    r"""
    Loss on samples of an earlier policy: importance ratio and clip of every token on its own.

    $$ -\frac1B \sum_i \sum_t \min\left(\rho_{i,t} A_{i,t},
       \operatorname{clip}(\rho_{i,t}, 1 - \epsilon_{low}, 1 + \epsilon_{high}) A_{i,t}\right), \quad
       \rho = \pi / \pi_{old} $$

    Eq. (7) of https://huggingface.co/papers/1707.06347. A ratio of whole responses, TRL's choice in RLOO, grows with
    the length: a drift of 0.02 nats a token is a ratio of 28,000 after 512 tokens. Where the policy has not moved
    yet the gradient is that of [`reinforce_loss`].

    Args:
        logprobs (`torch.Tensor` of shape `(B, T)`, float):
            Log-probabilities of the sampled tokens, in nats, with gradient.
        old_logprobs (`torch.Tensor` of shape `(B, T)`, float):
            Log-probabilities of the same tokens under the policy that sampled them.
        advantages (`torch.Tensor` of shape `(B, T)`, float):
            Advantage of each token.
        completion_mask (`torch.Tensor` of shape `(B, T)`, bool or integer):
            Tokens up to and including the end of each response.
        epsilon_low (`float`):
            How far below 1 a ratio counts.
        epsilon_high (`float`):
            How far above 1 a ratio counts.

    Returns:
        [`ClippedLoss`]

    Raises:
        `ValueError`: If the shapes differ.
    """
    _check_shapes(logprobs, advantages, completion_mask)
    advantages = advantages.detach()
    ratio = torch.exp((logprobs - old_logprobs).clamp(max=20))  # beyond every clip; an infinite one would give NaN
    bounded = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    objective = torch.minimum(ratio * advantages, bounded * advantages)
    too_low = (ratio < 1 - epsilon_low) & (advantages < 0)
    too_high = (ratio > 1 + epsilon_high) & (advantages > 0)
    return ClippedLoss(-(objective * completion_mask).sum(1).mean(), (too_low | too_high) & completion_mask.bool())


def sampling_weights(
    logprobs: Tensor, sampled_logprobs: Tensor, completion_mask: Tensor, cap: float, whole_response: bool
) -> Tensor:
    r"""
    Weight of every token of responses that another program has sampled, whose probabilities $\mu$ differ a little.

    $$ w_{i,t} = \min\left(c, \prod_{u \le T_i} \frac{\pi(y_{i,u})}{\mu(y_{i,u})}\right) \quad \text{or} \quad
       w_{i,t} = \min\left(c, \frac{\pi(y_{i,t})}{\mu(y_{i,t})}\right) $$

    Importance sampling, truncated as in Ionides (2008), "Truncated importance sampling", Journal of Computational and
    Graphical Statistics 17. The weight of the whole response leaves the gradient exact where nothing is truncated,
    and varies more the longer the responses are. That of the token alone corrects the choice of the token, but not
    how often its prefix was met and what has followed.

    Args:
        logprobs (`torch.Tensor` of shape `(B, T)`, float):
            Log-probabilities of the sampled tokens under the policy, in nats.
        sampled_logprobs (`torch.Tensor` of shape `(B, T)`, float):
            Those under the program that sampled them; NaN for a token of which it did not say, which counts as equal.
        completion_mask (`torch.Tensor` of shape `(B, T)`, bool or integer):
            Tokens up to and including the end of each response.
        cap (`float`):
            Largest weight.
        whole_response (`bool`):
            Whether a response has one weight, or each token its own.

    Returns:
        `torch.Tensor` of shape `(B, T)`, float, without gradient: 1 after a response's end, or its one weight.

    Raises:
        `ValueError`: If the shapes differ.
    """
    _check_shapes(logprobs, sampled_logprobs, completion_mask)
    gap = (logprobs.detach() - sampled_logprobs).nan_to_num().masked_fill(completion_mask == 0, 0)
    if whole_response:
        gap = gap.sum(1, keepdim=True).expand_as(gap)
    return gap.exp().clamp(max=cap)


def _check_shapes(logprobs: Tensor, advantages: Tensor, completion_mask: Tensor) -> None:
    if not logprobs.shape == advantages.shape == completion_mask.shape:
        raise ValueError(
            "`logprobs`, `advantages` and `completion_mask` must have one shape, got "
            f"{tuple(logprobs.shape)}, {tuple(advantages.shape)} and {tuple(completion_mask.shape)}."
        )
