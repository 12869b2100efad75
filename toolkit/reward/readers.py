r"""From the numbers that a head says of two responses to one gap, and how the taste of one annotator is found.

A head with several outputs says $z \in \mathbb R^m$ of a response. A reader makes of two of them the gap
$s(i, j) = -s(j, i)$, which the losses of a pair take in place of a difference of scores: the probability that $i$ is
preferred to $j$ is $\sigma(s(i, j))$. Its weights are the same for all, read from the prompt, or of an annotator.

Shapes: `m` outputs, `K` weights, which broadcast over what stands before the last dimension. Gaps are in nats.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

READERS = ("linear", "mixture", "skew", "gaussian")
WEIGHTS = ("shared", "prompt", "annotator")
# A skew gap of vectors of length 1 is at most the largest weight, so that no label could be near certain. As in the
# code of https://huggingface.co/papers/2410.02197
SKEW_TEMPERATURE = 0.1


def linear_gap(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    r"""
    Gap of weighted sums, $c \cdot (z_i - z_j)$.

    Args:
        first (`torch.Tensor` of shape `(*, m)`, float):
            Outputs for one response.
        second (`torch.Tensor` of the same shape, float):
            Outputs for the other.
        weights (`torch.Tensor` of shape `(*, m)`, float):
            The weights $c$.

    Returns:
        `torch.Tensor` of shape `(*)`.
    """
    return (weights * (first - second)).sum(-1)


def mixture_gap(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    r"""
    Log-odds of a preference that is one of several Bradley-Terry models'.

    $$ \log \sum_k \alpha_k \sigma(z_{ik} - z_{jk}) - \log \sum_k \alpha_k \sigma(z_{jk} - z_{ik}) $$

    Its pairwise loss is $-\log P$ of https://huggingface.co/papers/2505.24846.

    Args:
        first, second (`torch.Tensor` of shape `(*, m)`, float):
            Outputs for the two responses.
        weights (`torch.Tensor` of shape `(*, m)`, float):
            Probabilities $\alpha$ of the models; they sum to 1.

    Returns:
        `torch.Tensor` of shape `(*)`.
    """
    gaps, shares = first - second, weights.log()
    return torch.logsumexp(shares + F.logsigmoid(gaps), -1) - torch.logsumexp(shares + F.logsigmoid(-gaps), -1)


def skew_gap(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    r"""
    Gap that can go in circles, as no difference of scores does: areas between vectors in `m / 2` planes.

    $$ \sum_l \lambda_l\, (v_{i,2l-1} v_{j,2l} - v_{i,2l} v_{j,2l-1}) $$

    The score of the general preference model, https://huggingface.co/papers/2410.02197. With $v = (r, 1)$ in a single
    plane it is $r_i - r_j$.

    Args:
        first, second (`torch.Tensor` of shape `(*, m)`, float):
            Vectors of the two responses.
        weights (`torch.Tensor` of shape `(*, m / 2)`, float):
            The weights $\lambda \ge 0$.

    Returns:
        `torch.Tensor` of shape `(*)`.
    """
    return (weights * (first[..., ::2] * second[..., 1::2] - first[..., 1::2] * second[..., ::2])).sum(-1)


def unit_vectors(outputs: Tensor) -> Tensor:
    """
    Vectors of length 1 for [`skew_gap`], of which those that a head begins with are all near (0, 1) in every plane.

    To turn all vectors by one angle changes no gap; this says where they stand, and that training begins close to
    Bradley-Terry.

    Args:
        outputs (`torch.Tensor` of shape `(*, m)`, float):
            Outputs of a head.

    Returns:
        `torch.Tensor` of that shape.
    """
    return F.normalize(outputs + outputs.new_tensor([0.0, 1.0]).repeat(outputs.size(-1) // 2), dim=-1)


def moderated(mean: Tensor, variance: Tensor) -> Tensor:
    r"""
    Log-odds of a preference whose gap is uncertain, $\mathrm{mean} / \sqrt{1 + \pi\, \mathrm{variance} / 8}$.

    MacKay (1992), "The evidence framework applied to classification networks", Neural Computation 4: close to the
    log-odds of $\mathbb E\, \sigma(s)$ where $s$ is normally distributed.

    Args:
        mean, variance (`torch.Tensor` of one shape, float):
            Of the gap.

    Returns:
        `torch.Tensor` of that shape.
    """
    return mean / torch.sqrt(1 + math.pi * variance / 8)


def gaussian_gap(first: Tensor, second: Tensor) -> Tensor:
    """
    Gap of two uncertain scores, [`moderated`] by the sum of their variances, after
    https://huggingface.co/papers/2306.03615.

    Args:
        first, second (`torch.Tensor` of shape `(*, 2)`, float):
            Mean and log variance of the scores of the two responses.

    Returns:
        `torch.Tensor` of shape `(*)`.
    """
    return moderated(first[..., 0] - second[..., 0], first[..., 1].exp() + second[..., 1].exp())


def read_gap(first: Tensor, second: Tensor, weights: Tensor | None, reader: str) -> Tensor:
    """
    Gap of two responses by a reader's name.

    Args:
        first, second (`torch.Tensor` of shape `(*, m)`, float):
            Outputs of the head.
        weights (`torch.Tensor` of shape `(*, K)`, float, *optional*):
            From [`weights_of`]; none for `"gaussian"`.
        reader (`str`):
            One of `READERS`.

    Returns:
        `torch.Tensor` of shape `(*)`.
    """
    if reader == "gaussian":
        return gaussian_gap(first, second)
    assert weights is not None, "all others have some"
    if reader == "skew":
        return skew_gap(unit_vectors(first), unit_vectors(second), weights) / SKEW_TEMPERATURE
    return mixture_gap(first, second, weights) if reader == "mixture" else linear_gap(first, second, weights)


def number_of_weights(reader: str, outputs: int) -> int:
    """`K` of a reader with `m` outputs: `m`, one a plane for `"skew"`, none for `"gaussian"`."""
    return {"skew": outputs // 2, "gaussian": 0}.get(reader, outputs)


def weights_of(values: Tensor, reader: str, by: str) -> Tensor:
    """
    Weights of a reader from unbounded numbers: these themselves, or positive ones.

    Args:
        values (`torch.Tensor` of shape `(*, K)`, float):
            Parameters, or what is read from a prompt.
        reader (`str`):
            One of `READERS`.
        by (`str`):
            One of `WEIGHTS`. A prompt mixes outputs by shares that sum to 1; weights that all share, or an annotator
            has, may be negative.

    Returns:
        `torch.Tensor` of shape `(*, K)`: As they are for `"linear"` but by the prompt, else a softmax, whose mean is 1
        for `"skew"`.
    """
    if reader == "linear" and by != "prompt":
        return values
    return values.softmax(-1) * (values.size(-1) if reader == "skew" else 1)


def score_weights(weights: Tensor | None, reader: str, outputs: int) -> Tensor:
    r"""
    By what the outputs of a response alone add up to its score, $\sum_k c_k z_k$.

    Args:
        weights (`torch.Tensor` of shape `(*, K)`, float, *optional*):
            From [`weights_of`].
        reader (`str`):
            One of `READERS`.
        outputs (`int`):
            The number `m`.

    Returns:
        `torch.Tensor` of shape `(*, m)`: The weights themselves for `"linear"` and `"mixture"`; the first output alone
        for `"gaussian"`; for `"skew"` what the gap to a response with outputs 0 is before both have length 1.
    """
    if weights is None:
        return torch.eye(outputs)[0]
    if reader == "skew":
        return torch.stack([weights, torch.zeros_like(weights)], dim=-1).flatten(-2)
    return weights


class Taste(NamedTuple):
    """Weights of a linear reader that one annotator has, as far as they are known: a normal distribution."""

    mean: Tensor  # (m,) float64
    covariance: Tensor  # (m, m) float64


def fit_taste(gaps: Tensor, prior: Taste, tolerance: float = 1e-12) -> Taste:
    r"""
    What an annotator's pairs say of their taste: logistic regression with a normal prior, by Newton's method.

    $$ \min_c \sum_i -\log \sigma(c \cdot d_i) + \tfrac12 (c - \mu)^\top \Sigma^{-1} (c - \mu) $$

    The covariance is the inverse Hessian there (Laplace's approximation). In place of the encoder of
    https://huggingface.co/papers/2408.10075, whose decoder is linear here.

    Args:
        gaps (`torch.Tensor` of shape `(P, m)`, float):
            Outputs of chosen less those of rejected, $d_i$, of the annotator's pairs, which may be none.
        prior ([`Taste`]):
            Tastes of annotators at large, $\mu$ and $\Sigma$.
        tolerance (`float`, *optional*, defaults to `1e-12`):
            Twice the gain of a step, in nats, after which it was the last.

    Returns:
        [`Taste`]
    """
    gaps, mean = gaps.double(), prior.mean.double()
    precision: Tensor = torch.linalg.inv(prior.covariance.double())

    def loss(weights: Tensor) -> float:
        off = weights - mean
        return (-F.logsigmoid(gaps @ weights).sum() + off @ precision @ off / 2).item()

    weights = mean
    while True:
        wrong = torch.sigmoid(-gaps @ weights)
        gradient = precision @ (weights - mean) - gaps.T @ wrong
        curvature = (gaps.T * wrong * (1 - wrong)) @ gaps + precision
        step = torch.linalg.solve(curvature, gradient)
        gain, size = gradient @ step, 1.0
        # Where gaps are large a whole step may go too far; near the end it does not, and rounding would hide a gain
        while gain > 1e-4 and loss(weights - size * step) > loss(weights) - size * gain / 4:
            size /= 2
        weights = weights - size * step
        if not gain > tolerance:
            return Taste(weights, torch.linalg.inv(curvature))


def taste_gap(gaps: Tensor, taste: Taste) -> tuple[Tensor, Tensor]:
    r"""
    What an annotator would say of pairs, and how far it is known.

    Args:
        gaps (`torch.Tensor` of shape `(P, m)`, float):
            Outputs of one response less those of the other, $d$.
        taste ([`Taste`]):
            The annotator's.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Gaps, [`moderated`], and their variances $d^\top \Sigma d$, `(P,)` float64
        each. The pair with the largest variance is the one to ask about.
    """
    gaps = gaps.double()
    variance = ((gaps @ taste.covariance.double()) * gaps).sum(-1)
    return moderated(gaps @ taste.mean.double(), variance), variance
