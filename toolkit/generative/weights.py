r"""What a judge's thoughts and answers weigh in the gradient of a loss of preferences.

A judge draws a thought $o \sim \pi(\cdot \mid x, y)$ about a response $y$ and then gives the good answer with
probability $\omega(o)$. The response's utility is $u = \log p$ with $p = E_o[\omega(o)]$: of Bradley-Terry, in nats.
For any loss $L$ of the utilities of the responses to a prompt

$$ \nabla L = \sum_y L_y\, E_o\left[\frac{\omega(o)}{p_y}
   \big(\nabla \log \pi(o) + \nabla \log \omega(o)\big)\right], \qquad L_y = \frac{\partial L}{\partial u_y}, $$

which for a pair is Dual-Weighted Reinforcement Learning (https://huggingface.co/papers/2510.15242): $-L_y$ is the
pair's misalignment weight, $\omega / p$ the thought's conditional preference score. docs/judge.md derives it.

Shapes: `P` prompts, `K` responses to each (2 of a pair, the preferred one first), `N` thoughts about each response.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..policy.returns import leave_one_out_baseline

Loss = Callable[[Tensor], Tensor]  # from utilities (P, K) to losses (P,), each of its own prompt alone


class ThoughtWeights(NamedTuple):
    """Advantages: `-(thoughts * log pi + answers * log omega).sum()` has the gradient of the prompts' summed loss."""

    thoughts: Tensor  # (P, K, N)
    answers: Tensor  # (P, K, N)


def utilities(log_answers: Tensor) -> Tensor:
    r"""Utility `(P, K)` of each response, $\hat u = \log \frac1N \sum_i \omega_i$, from $\log \omega$ `(P, K, N)`."""
    return (log_answers.logsumexp(-1) - math.log(log_answers.size(-1))).clamp(max=0)  # rounded, it may lie above


def verdict_loss(values: Tensor, label_smoothing: float = 0.0) -> Tensor:
    r"""
    Negative log-likelihood `(P,)` of a pairwise judge's verdicts $p_k$ in both orders of the responses.

    $$ -\tfrac12 \sum_k \left[(1 - \epsilon) \log p_k + \epsilon \log(1 - p_k)\right] $$

    `values` `(P, 2)` are $\log p_k$ of the right verdicts, `label_smoothing` is $\epsilon$.
    """
    if not label_smoothing:
        return -values.mean(1)
    wrong = torch.log(-torch.expm1(values.clamp(max=-torch.finfo(values.dtype).eps)))  # also of p that rounds to 1
    return -((1 - label_smoothing) * values + label_smoothing * wrong).mean(1)


def slopes(loss: Loss, values: Tensor) -> Tensor:
    """Derivative `(P, K)` of each prompt's loss by the utilities `(P, K)` of its responses."""
    with torch.enable_grad():
        values = values.detach().requires_grad_()
        return torch.autograd.grad(loss(values).sum(), values)[0]


def likelihood_weights(log_answers: Tensor, loss: Loss) -> ThoughtWeights:
    r"""
    Weights from all thoughts at once: $a_i = -L_y(\hat u)\, \omega_i / \sum_j \omega_j$ for answers, and for thoughts
    the same less the mean of the response's other ones; 0 for one thought alone.

    Those of the answers are $-\partial L(\hat u) / \partial \log \omega_i$: with the thoughts held fixed, ordinary
    backpropagation. As $\omega_i$ stands in the numerator and in $\hat u$, the expected gradient is off by a share
    that falls as 1 / N. `log_answers` `(P, K, N)` are $\log \omega$ of each thought, in nats.
    """
    log_answers = log_answers.detach()
    answers = -slopes(loss, utilities(log_answers))[..., None] * log_answers.softmax(-1)
    count = log_answers.size(-1)
    others = answers.flatten() if count == 1 else leave_one_out_baseline(answers.flatten(), count)
    return ThoughtWeights(answers - others.view_as(answers), answers)


def crossed_weights(log_answers: Tensor, loss: Loss) -> ThoughtWeights:
    r"""
    Weights in which a thought meets only what does not depend on it.

    $$ a_i = -\frac{L_y(\hat u_{-i})}{N \hat p_{-i}}\, \omega_i \quad \text{and for its thought} \quad
       -\frac{L_y(\hat u_{-i})}{N \hat p_{-i}}\, (\omega_i - \hat p_{-i}), $$

    with $\hat p_{-i}$ the mean of the response's other thoughts, also in its utility. The factor is independent of
    the thought, so that the expected gradient of each response is parallel to the true one, whatever N; its length is
    not the same, and with few thoughts it varies more. `log_answers` `(P, K, N)` are $\log \omega$, in nats; of one
    thought alone they are a `ValueError`.
    """
    log_answers, count = log_answers.detach(), log_answers.size(-1)
    if count < 2:
        raise ValueError("Crossed weights compare a thought with others. Give at least 2 thoughts a response.")
    whole, factors, others = utilities(log_answers), torch.empty_like(log_answers), torch.empty_like(log_answers)
    for side in range(log_answers.size(1)):
        for i in range(count):
            known = whole.clone()
            rest = torch.cat([log_answers[:, side, :i], log_answers[:, side, i + 1 :]], dim=1)
            known[:, side] = others[:, side, i] = utilities(rest)
            factors[:, side, i] = -slopes(loss, known)[:, side] / count
    answers = factors * (log_answers - others).exp()
    return ThoughtWeights(answers - factors, answers)
