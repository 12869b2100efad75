"""Losses of a preference pair. One loss a pair, never reduced; all rewards and losses in nats.

Shapes: `P` pairs, `S` scales.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..stats.metrics import PairScores


class PairLosses(NamedTuple):
    """Losses of a batch of pairs."""

    total: Tensor  # (P,) float32, weighted
    scales: Tensor  # (P, S) float32, of each scale ranking the pair on its own, not weighted


def _check_same_shape(chosen: Tensor, rejected: Tensor) -> None:
    if chosen.shape != rejected.shape:
        raise ValueError(f"`chosen` and `rejected` must match, got {tuple(chosen.shape)} and {tuple(rejected.shape)}.")


def pairwise_logistic_loss(
    chosen: Tensor, rejected: Tensor, margin: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    r"""
    Negative log-likelihood that the chosen response beats the rejected one (Bradley-Terry).

    $$ -(1 - \epsilon) \log \sigma(d) - \epsilon \log \sigma(-d), \quad
       d = r_{\text{chosen}} - r_{\text{rejected}} - m $$

    Eq. (1) of https://huggingface.co/papers/2203.02155; the margin `m` is Eq. (2) of
    https://huggingface.co/papers/2307.09288; the smoothing is Eq. (3) of the note on conservative DPO
    (https://ericmitchell.ai/cdpo.pdf), the likelihood when a label is wrong with probability `label_smoothing`.

    Args:
        chosen (`torch.Tensor` of shape `(P,)` or `(P, S)`, float):
            Rewards of the preferred responses.
        rejected (`torch.Tensor` of the same shape, float):
            Rewards of the other responses.
        margin (`torch.Tensor` that broadcasts to that shape, *optional*):
            Least gap that counts as a clear win.
        label_smoothing (`float`, *optional*, defaults to `0.0`):
            Probability that a label is wrong.

    Returns:
        `torch.Tensor` of the shape of `chosen`: Loss of each pair.

    Raises:
        `ValueError`: If `chosen` and `rejected` differ in shape, which would otherwise broadcast.
    """
    _check_same_shape(chosen, rejected)
    gap = chosen - rejected if margin is None else chosen - rejected - margin
    loss = -F.logsigmoid(gap)
    return loss if label_smoothing == 0 else (1 - label_smoothing) * loss - label_smoothing * F.logsigmoid(-gap)


def pointwise_logistic_loss(chosen: Tensor, rejected: Tensor, label_smoothing: float = 0.0) -> Tensor:
    r"""
    Cross-entropy of two independent labels, chosen 1 and rejected 0, averaged over the two responses.

    $$ -\tfrac12 \left[ \log \sigma(r_{\text{chosen}}) + \log \sigma(-r_{\text{rejected}}) \right] $$

    It has no preference structure: a response is judged without the one it was compared with.

    Args:
        chosen (`torch.Tensor` of shape `(P,)` or `(P, S)`, float):
            Rewards of the preferred responses.
        rejected (`torch.Tensor` of the same shape, float):
            Rewards of the other responses.
        label_smoothing (`float`, *optional*, defaults to `0.0`):
            Probability that a label is wrong.

    Returns:
        `torch.Tensor` of the shape of `chosen`: Loss of each pair.

    Raises:
        `ValueError`: If `chosen` and `rejected` differ in shape.
    """
    _check_same_shape(chosen, rejected)
    right = F.logsigmoid(chosen) + F.logsigmoid(-rejected)
    wrong = F.logsigmoid(-chosen) + F.logsigmoid(rejected)
    return -((1 - label_smoothing) * right + label_smoothing * wrong) / 2


def centering_penalty(chosen: Tensor, rejected: Tensor) -> Tensor:
    r"""
    Pull of a pair's rewards towards mean zero, $(r_{\text{chosen}} + r_{\text{rejected}})^2$.

    Eq. (2) of https://huggingface.co/papers/2312.09244, as TRL's `center_rewards_coefficient` weighs it.

    Args:
        chosen (`torch.Tensor` of shape `(P,)`, float):
            Rewards of the preferred responses.
        rejected (`torch.Tensor` of shape `(P,)`, float):
            Rewards of the other responses.

    Returns:
        `torch.Tensor` of shape `(P,)`.

    Raises:
        `ValueError`: If `chosen` and `rejected` differ in shape.
    """
    _check_same_shape(chosen, rejected)
    return (chosen + rejected) ** 2


def strength_weights(strength: Tensor) -> Tensor:
    r"""
    Weight of each pair from how clear its preference was, $\omega_i = s_i / \bar s$.

    The mean weight is 1, so the learning rate keeps its meaning whatever unit the strengths have.

    Args:
        strength (`torch.Tensor` of shape `(N,)`, float):
            Strengths of a whole data set, non-negative and not all zero.

    Returns:
        `torch.Tensor` of shape `(N,)`.

    Raises:
        `ValueError`: If a strength is negative or not finite, or all are zero.
    """
    if not bool(torch.isfinite(strength).all()) or bool((strength < 0).any()) or not bool((strength > 0).any()):
        raise ValueError("Strengths must be finite and non-negative, and at least one must be positive.")
    return strength / strength.mean()


def multi_scale_loss(
    chosen: Tensor,
    rejected: Tensor,
    scale_chosen: Tensor,
    scale_rejected: Tensor,
    *,
    pointwise: bool = False,
    weight: Tensor | None = None,
    margin: Tensor | None = None,
    scale_weight: float = 0.0,
    label_smoothing: float = 0.0,
) -> PairLosses:
    r"""
    Loss of the mixed score, and of each scale that must rank the pair on its own.

    $$ \omega \left[ \ell(R^+, R^-) + \lambda \sum_{scale} \ell(R^+_{scale}, R^-_{scale}) \right] $$

    The second sum gives every scale its own gradient from a label that says only which response won. With a single
    scale it would repeat the first term, so it is left out there. The margin belongs to the mixed score alone.

    Args:
        chosen (`torch.Tensor` of shape `(P,)`, float):
            Mixed scores of the preferred responses.
        rejected (`torch.Tensor` of shape `(P,)`, float):
            Mixed scores of the other responses.
        scale_chosen (`torch.Tensor` of shape `(P, S)`, float):
            Scores of the preferred responses at each scale.
        scale_rejected (`torch.Tensor` of shape `(P, S)`, float):
            Scores of the other responses at each scale.
        pointwise (`bool`, *optional*, defaults to `False`):
            Use the pointwise loss in place of the pairwise one.
        weight (`torch.Tensor` of shape `(P,)`, *optional*):
            Weight of each pair.
        margin (`torch.Tensor` of shape `(P,)`, *optional*):
            Least gap that counts as a clear win; pairwise only.
        scale_weight (`float`, *optional*, defaults to `0.0`):
            The factor $\lambda$.
        label_smoothing (`float`, *optional*, defaults to `0.0`):
            Probability that a label is wrong.

    Returns:
        [`PairLosses`]

    Raises:
        `ValueError`: If shapes differ, or a margin is given to the pointwise loss, which has no gap to hold it to.
    """
    if pointwise:
        if margin is not None:
            raise ValueError("A margin needs the pairwise loss: the pointwise one does not compare the two responses.")
        total = pointwise_logistic_loss(chosen, rejected, label_smoothing)
        scales = pointwise_logistic_loss(scale_chosen, scale_rejected, label_smoothing)
    else:
        total = pairwise_logistic_loss(chosen, rejected, margin, label_smoothing)
        scales = pairwise_logistic_loss(scale_chosen, scale_rejected, label_smoothing=label_smoothing)
    if scales.size(1) > 1:
        total = total + scale_weight * scales.sum(1)
    return PairLosses(total if weight is None else weight * total, scales)


def score_pairs(
    scores: Tensor,
    scale_scores: Tensor,
    gate: Tensor,
    lengths: Tensor,
    *,
    pointwise: bool = False,
    weight: Tensor | None = None,
    margin: Tensor | None = None,
    scale_weight: float = 0.0,
    label_smoothing: float = 0.0,
    centering: float | None = None,
) -> PairScores:
    """
    Losses and scores of a batch of pairs, [`multi_scale_loss`] with the pull towards mean zero.

    Args:
        scores (`torch.Tensor` of shape `(P, 2)`, float):
            Mixed scores, of chosen and rejected.
        scale_scores (`torch.Tensor` of shape `(P, 2, S)`, float):
            Scores of each scale.
        gate (`torch.Tensor` of shape `(P, 2, S)`, float):
            Weights of the scales.
        lengths (`torch.Tensor` of shape `(P, 2)`, int64):
            Response tokens.
        pointwise, weight, margin, scale_weight, label_smoothing:
            As in [`multi_scale_loss`].
        centering (`float`, *optional*):
            Weight of [`centering_penalty`].

    Returns:
        [`~toolkit.stats.metrics.PairScores`]: `loss` has all terms and carries the gradient.

    Raises:
        `ValueError`: As in [`multi_scale_loss`].
    """
    chosen, rejected = scores.unbind(1)
    scale_chosen, scale_rejected = scale_scores.unbind(1)
    chosen_length, rejected_length = lengths.unbind(1)
    losses = multi_scale_loss(
        chosen,
        rejected,
        scale_chosen,
        scale_rejected,
        pointwise=pointwise,
        weight=weight,
        margin=margin,
        scale_weight=scale_weight,
        label_smoothing=label_smoothing,
    )
    total = losses.total
    if centering is not None:
        total = total + centering * centering_penalty(chosen, rejected)
    return PairScores(
        chosen=chosen,
        rejected=rejected,
        scale_chosen=scale_chosen,
        scale_rejected=scale_rejected,
        gate=gate.mean(1),
        chosen_length=chosen_length,
        rejected_length=rejected_length,
        loss=total,
        scale_losses=losses.scales,
    )
