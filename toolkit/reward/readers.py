r"""From the numbers that a head says of two responses to one gap, and how the taste of one annotator is found.

A head with several outputs says $z \in \mathbb R^m$ of a response. A reader makes of two of them the gap
$s(i, j) = -s(j, i)$, which the losses of a pair take in place of a difference of scores: the probability that $i$ is
preferred to $j$ is $\sigma(s(i, j))$. Its weights are the same for all, read from the prompt, or of an annotator.

Shapes: `first` and `second` are outputs `(*, m)` of the two responses, `weights` `(*, K)` those of the reader, all of
them float, and a gap, in nats, has the shape `(*)`. They broadcast over what stands before the last dimension.
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
    r"""Gap of weighted sums, $c \cdot (z_i - z_j)$."""
    return (weights * (first - second)).sum(-1)


def mixture_gap(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    r"""
    Log-odds of a preference that is one of several Bradley-Terry models', with probabilities $\alpha$ that sum to 1.

    $$ \log \sum_k \alpha_k \sigma(z_{ik} - z_{jk}) - \log \sum_k \alpha_k \sigma(z_{jk} - z_{ik}) $$

    Its pairwise loss is $-\log P$ of https://huggingface.co/papers/2505.24846.
    """
    gaps, shares = first - second, weights.clamp(min=torch.finfo(weights.dtype).tiny).log()  # of one that is 0, too
    return torch.logsumexp(shares + F.logsigmoid(gaps), -1) - torch.logsumexp(shares + F.logsigmoid(-gaps), -1)


def skew_gap(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    r"""
    Gap that can go in circles, as no difference of scores does: areas between vectors in `m / 2` planes.

    $$ \sum_l \lambda_l\, (v_{i,2l-1} v_{j,2l} - v_{i,2l} v_{j,2l-1}), \quad \lambda \ge 0 $$

    The score of the general preference model, https://huggingface.co/papers/2410.02197. With $v = (r, 1)$ in a single
    plane it is $r_i - r_j$.
    """
    return (weights * (first[..., ::2] * second[..., 1::2] - first[..., 1::2] * second[..., ::2])).sum(-1)


def unit_vectors(outputs: Tensor) -> Tensor:
    """
    Vectors of length 1 for [`skew_gap`], of the shape of `outputs`, those of small ones near (0, 1) in every plane.

    To turn all vectors by one angle changes no gap; this says where they stand, and that training begins close to
    Bradley-Terry.
    """
    return F.normalize(outputs + outputs.new_tensor([0.0, 1.0]).repeat(outputs.size(-1) // 2), dim=-1)


def moderated(mean: Tensor, variance: Tensor) -> Tensor:
    r"""
    Log-odds of a preference whose gap has a mean $\mu$ and a variance $v$, $\mu / \sqrt{1 + \pi v / 8}$.

    MacKay (1992), "The evidence framework applied to classification networks", Neural Computation 4: close to the
    log-odds of $\mathbb E\, \sigma(s)$ where $s$ is normally distributed.
    """
    return mean / torch.sqrt(1 + math.pi * variance / 8)


def gaussian_gap(first: Tensor, second: Tensor) -> Tensor:
    """Gap of two scores of which the two outputs are mean and log variance, [`moderated`] by the sum of the variances,
    after https://huggingface.co/papers/2306.03615."""
    variances = [each[..., 1].clamp(max=30).exp() for each in (first, second)]  # 1e13: infinite ones would give NaN
    return moderated(first[..., 0] - second[..., 0], variances[0] + variances[1])


def read_gap(first: Tensor, second: Tensor, weights: Tensor | None, reader: str) -> Tensor:
    """Gap of two responses by a reader's name, with weights from [`weights_of`], of which `"gaussian"` has none."""
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
    Weights of a reader from parameters `(*, K)`, or from what is read of a prompt.

    For `"linear"` they are as they are, and may be negative, but by the prompt, which mixes outputs by shares that sum
    to 1. Else they are such shares, for `"skew"` with a mean of 1.
    """
    if reader == "linear" and by != "prompt":
        return values
    return values.softmax(-1) * (values.size(-1) if reader == "skew" else 1)


def score_weights(weights: Tensor | None, reader: str, outputs: int) -> Tensor:
    r"""
    By what the outputs of a response alone add up to its score, $\sum_k c_k z_k$, as `(*, m)`.

    The weights themselves for `"linear"` and `"mixture"`; the mean alone for `"gaussian"`; for `"skew"` what the gap
    to a response with outputs 0 is before both have length 1.
    """
    if weights is None:
        return torch.eye(outputs)[0]
    if reader == "skew":
        return torch.stack([weights, torch.zeros_like(weights)], dim=-1).flatten(-2)
    return weights


def group_scores(outputs: Tensor, weights: Tensor | None, reader: str) -> Tensor:
    """
    Mean gap `(k,)` of each response of a group to the others, from their outputs `(k, m)` and the reader's weights.

    Of a linear reader it is the score less the mean of the others' scores; one that can go in circles has no scores
    of its own, and with this it can rank a group. In a circle all are 0. `k` is at least 2.
    """
    gaps = read_gap(outputs[:, None], outputs[None], weights, reader)
    return gaps.sum(1) / (len(outputs) - 1)  # the gap to itself is 0


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
    What an annotator would say of pairs with differences `(P, m)` of outputs, and how far it is known.

    Their gaps, [`moderated`], and the variances of these, $d^\top \Sigma d$, `(P,)` float64 each. The pair with the
    largest variance is the one to ask about.
    """
    gaps = gaps.double()
    variance = ((gaps @ taste.covariance.double()) * gaps).sum(-1)
    return moderated(gaps @ taste.mean.double(), variance), variance


def own_taste_gaps(
    gaps: Tensor, annotator: Tensor, fold: Tensor, prior: Taste, variance: float
) -> tuple[Tensor, Tensor]:
    """
    Gaps of held-out pairs by weights that all share, and by their annotators' own, both from the other folds.

    Args:
        gaps (`torch.Tensor` of shape `(P, m)`, float), annotator (`torch.Tensor` of shape `(P,)`, int64):
            As in [`annotator_test`].
        fold (`torch.Tensor` of shape `(P,)`, int64):
            Part of each pair.
        prior ([`Taste`]):
            Of the weights that all share.
        variance (`float`):
            Of an annotator's weight around the shared one, as it is believed before their pairs are seen.

    Returns:
        `tuple[Tensor, Tensor]`: `(P,)` float64 each, in nats. Before an annotator's own pairs are seen, what all
        others' pairs say is believed of them, and `variance` beside it.
    """
    shared, own = torch.zeros(2, len(gaps), dtype=torch.float64)
    around = variance * torch.eye(gaps.size(1), dtype=torch.float64)
    for part in fold.unique():
        rest, held = fold != part, fold == part
        of_all = fit_taste(gaps[rest], prior)
        shared[held] = taste_gap(gaps[held], of_all)[0]
        for one in annotator[held].unique():
            mine = annotator == one
            others = fit_taste(gaps[rest & ~mine], prior)
            taste = fit_taste(gaps[rest & mine], Taste(others.mean, others.covariance + around))
            own[held & mine] = taste_gap(gaps[held & mine], taste)[0]
    return shared, own


def annotator_test(
    gaps: Tensor, annotator: Tensor, group: Tensor, prior: Taste, permutations: int = 99, seed: int = 0
) -> float:
    r"""
    p-value of the hypothesis that annotators differ by noise alone.

    By how many nats weights of each one's own explain their pairs better than the prior's mean, its cost included,
    against the same where the annotators of the pairs of each group have changed places with each other.

    Args:
        gaps (`torch.Tensor` of shape `(P, m)`, float):
            As in [`fit_taste`], of features or outputs that no annotator's name has taught.
        annotator, group (`torch.Tensor` of shape `(P,)`, int64):
            Each pair's annotator, and which pair it is, or of which prompt where few judged the same: annotators who
            saw other pairs differ by these.
        prior ([`Taste`]):
            What all share, and by how much one may differ.
        permutations, seed (`int`, *optional*, default to `99` and `0`):
            Number of times, and where chance begins.
    """
    precision = torch.linalg.inv(prior.covariance.double())

    def gain(who: Tensor) -> float:
        total = 0.0
        for own in (gaps[who == one].double() for one in who.unique()):
            off = fit_taste(own, prior).mean - prior.mean
            better = F.logsigmoid(own @ (prior.mean + off)) - F.logsigmoid(own @ prior.mean.double())
            total += (better.sum() - off @ precision @ off / 2).item()
        return total

    generator, observed = torch.Generator().manual_seed(seed), gain(annotator)
    as_large = sum(gain(exchanged(annotator, group, generator)) >= observed for _ in range(permutations))
    return (1 + as_large) / (permutations + 1)


def exchanged(annotator: Tensor, group: Tensor, generator: torch.Generator) -> Tensor:
    """The annotators `(P,)` of pairs, of which those of each group have changed places at random."""
    moved, order = annotator.clone(), torch.randperm(len(group), generator=generator)
    moved[group.argsort(stable=True)] = annotator[order[group[order].argsort(stable=True)]]
    return moved
