"""The gradient of a judge that thinks, exactly: every thought, and every tuple of thoughts, is enumerated."""

import math
from functools import partial
from itertools import product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from toolkit.generative.weights import (
    ThoughtWeights,
    crossed_weights,
    likelihood_weights,
    slopes,
    utilities,
    verdict_loss,
)
from toolkit.reward.losses import pairwise_logistic_loss

THOUGHTS, PARAMETERS = 4, 7


def pair_loss(values: Tensor, **options) -> Tensor:
    return pairwise_logistic_loss(values[:, 0], values[:, 1], **options)


def plackett_luce(values: Tensor) -> Tensor:
    """Negative log-likelihood of the order as it stands."""
    return sum(values[:, i:].logsumexp(1) - values[:, i] for i in range(values.size(1) - 1))


LOSSES = {
    "pair": (pair_loss, 2),
    "margin": (partial(pair_loss, margin=torch.tensor([0.7], dtype=torch.float64)), 2),
    "smoothing": (partial(pair_loss, label_smoothing=0.2), 2),
    "weight": (lambda values: 3.5 * pair_loss(values), 2),
    "list": (plackett_luce, 3),
}
EVERY_LOSS = pytest.mark.parametrize(("loss", "responses"), LOSSES.values(), ids=LOSSES)


class World(NamedTuple):
    """A judge with shared parameters, and responses of which every thought is known."""

    parameters: Tensor  # (7,) float64
    thoughts: Tensor  # (K, 4, 7), by which the logits of the thoughts follow from the parameters
    answers: Tensor  # (K, 4, 7), the same for the good answer after each thought

    def log_pi(self, parameters: Tensor) -> Tensor:
        return (self.thoughts @ parameters).log_softmax(1)

    def log_omega(self, parameters: Tensor) -> Tensor:
        return torch.nn.functional.logsigmoid(self.answers @ parameters)

    def true_loss(self, loss, parameters: Tensor) -> Tensor:
        """Loss of the utilities themselves: sums over all thoughts, no sampling."""
        return loss((self.log_pi(parameters) + self.log_omega(parameters)).logsumexp(1)[None]).sum()


def world(responses: int = 2, seed: int = 0) -> World:
    generator = torch.Generator().manual_seed(seed)
    shapes = (PARAMETERS,), (responses, THOUGHTS, PARAMETERS), (responses, THOUGHTS, PARAMETERS)
    return World(*(torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes))


def gradient(of, parameters: Tensor) -> Tensor:
    parameters = parameters.clone().requires_grad_()
    return torch.autograd.grad(of(parameters), parameters)[0]


def estimates(w: World, count: int, weigh) -> tuple[Tensor, Tensor]:
    """Gradient `(tuples, K, 7)` of each response from every tuple of thoughts, and the probability of each tuple."""
    every = torch.tensor(list(product(range(THOUGHTS), repeat=count)))
    responses = len(w.thoughts)
    draws = torch.cartesian_prod(*[torch.arange(len(every))] * responses)
    picked = every[draws]  # (tuples, K, N)
    side = torch.arange(responses)[None, :, None]
    log_pi, log_omega = w.log_pi(w.parameters), w.log_omega(w.parameters)
    chance = log_pi[side, picked].sum((1, 2)).exp()
    weights: ThoughtWeights = weigh(log_omega[side, picked])
    by_pi, by_omega = (
        torch.autograd.functional.jacobian(function, w.parameters) for function in (w.log_pi, w.log_omega)
    )
    per_thought = (
        weights.thoughts[..., None] * by_pi[side, picked] + weights.answers[..., None] * by_omega[side, picked]
    )
    return -per_thought.sum(2), chance


def expected(w: World, count: int, weigh) -> Tensor:
    """Expected gradient `(K, 7)` of each response."""
    found, chance = estimates(w, count, weigh)
    return torch.einsum("t,tkp->kp", chance, found)


def by_response(w: World, loss) -> Tensor:
    """The true gradient `(K, 7)`, parted by the response whose utility it moves."""
    values = (w.log_pi(w.parameters) + w.log_omega(w.parameters)).logsumexp(1)
    slope = slopes(loss, values[None])[0]
    jacobian = torch.autograd.functional.jacobian(lambda p: (w.log_pi(p) + w.log_omega(p)).logsumexp(1), w.parameters)
    return slope[:, None] * jacobian


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def test_utility_is_the_logarithm_of_the_mean_answer():
    # one half and one quarter: their mean is three eighths
    found = utilities(torch.tensor([[[0.5, 0.25]]]).log())
    torch.testing.assert_close(found, torch.tensor([[math.log(3 / 8)]]))


def test_many_certain_answers_make_no_more_than_certain():
    for count in range(1, 60):  # for some of which the rounded mean is more than 1
        assert utilities(torch.zeros(1, 1, count)).item() <= 0


def test_a_verdicts_loss_by_hand():
    # right with 3/4 and 1/2, one label in ten wrong: 0.9 log p + 0.1 log (1 - p), mean of both
    expected = -(0.9 * math.log(3 / 4) + 0.1 * math.log(1 / 4) + math.log(1 / 2)) / 2
    values = torch.tensor([[3 / 4, 1 / 2]]).log()
    torch.testing.assert_close(verdict_loss(values, 0.1), torch.tensor([expected]))
    torch.testing.assert_close(verdict_loss(values), torch.tensor([-(math.log(3 / 4) + math.log(1 / 2)) / 2]))
    certain = torch.zeros(1, 2, requires_grad=True)
    loss = verdict_loss(certain, 0.1).sum()
    assert loss.isfinite()
    assert torch.autograd.grad(loss, certain)[0].isfinite().all()


def test_weights_by_hand():
    # Chosen: 0.6 and 0.2, mean 0.4. Rejected: 0.1 and 0.5, mean 0.3. The pair's weight is 0.3 / 0.7 = 3/7, and a
    # thought's share of it 3/4 and 1/4, 1/6 and 5/6. Less the other one, what a thought weighs is the difference.
    log_answers = torch.tensor([[[0.6, 0.2], [0.1, 0.5]]], dtype=torch.float64).log()
    weights = likelihood_weights(log_answers, pair_loss)
    expected_answers = torch.tensor([[[9 / 28, 3 / 28], [-1 / 14, -5 / 14]]], dtype=torch.float64)
    torch.testing.assert_close(weights.answers, expected_answers)
    thoughts = torch.tensor([[[6 / 28, -6 / 28], [4 / 14, -4 / 14]]], dtype=torch.float64)
    torch.testing.assert_close(weights.thoughts, thoughts)
    # Crossed, the first thought meets the second alone: p = 0.2 there, the pair's weight 0.3 / 0.5, and half of it
    crossed = crossed_weights(log_answers, pair_loss)
    torch.testing.assert_close(crossed.answers[0, 0, 0].item(), 0.5 * 0.6 * 0.6 / 0.2)
    torch.testing.assert_close(crossed.thoughts[0, 0, 0].item(), 0.5 * 0.6 * (0.6 - 0.2) / 0.2)


@EVERY_LOSS
def test_the_gradient_is_exact_where_every_thought_counts_by_its_probability(loss, responses):
    w = world(responses)
    # N thoughts of which the i-th has N pi(o) omega(o) for its answer have the true mean
    log_answers = w.log_pi(w.parameters) + w.log_omega(w.parameters) + math.log(THOUGHTS)
    answers = likelihood_weights(log_answers[None], loss).answers[0]
    dual = -gradient(lambda p: (answers * (w.log_pi(p) + w.log_omega(p))).sum(), w.parameters)
    step, slope = 1e-5, torch.zeros(PARAMETERS, dtype=torch.float64)
    for i in range(PARAMETERS):
        nudge = torch.zeros_like(slope)
        nudge[i] = step
        slope[i] = (w.true_loss(loss, w.parameters + nudge) - w.true_loss(loss, w.parameters - nudge)) / (2 * step)
    assert (dual - slope).abs().max() < 1e-8
    assert (dual - gradient(partial(w.true_loss, loss), w.parameters)).abs().max() < 1e-12


@EVERY_LOSS
def test_frozen_thoughts_leave_ordinary_backpropagation(loss, responses):
    w = world(responses)
    picked = torch.tensor([[0, 2, 2], [1, 3, 0], [3, 3, 1]])[:responses]
    side = torch.arange(responses)[:, None]
    answers = likelihood_weights(w.log_omega(w.parameters)[side, picked][None], loss).answers[0]
    dual = -gradient(lambda p: (answers * w.log_omega(p)[side, picked]).sum(), w.parameters)
    plain = gradient(lambda p: loss(utilities(w.log_omega(p)[side, picked][None])).sum(), w.parameters)
    assert plain.norm() > 0.1
    assert (dual - plain).abs().max() < 1e-12


def test_the_baseline_of_a_thought_has_no_expectation():
    # what leave-one-out subtracts does not depend on the thought but by the common mean: with utilities that are
    # known, nothing of the expected gradient changes
    w = world()
    known = likelihood_weights(
        (w.log_pi(w.parameters) + w.log_omega(w.parameters)).logsumexp(1)[None, :, None], pair_loss
    )

    def weigh(centred: bool, log_answers: Tensor) -> ThoughtWeights:
        p = (w.log_pi(w.parameters) + w.log_omega(w.parameters)).logsumexp(1)[None, :, None]
        answers = known.answers * (log_answers - p).exp() / log_answers.size(-1)
        less = (answers.sum(-1, keepdim=True) - answers) / (log_answers.size(-1) - 1)
        return ThoughtWeights(answers - less if centred else answers, answers)

    true = by_response(w, pair_loss)
    for centred in (False, True):
        assert (expected(w, 3, partial(weigh, centred)) - true).abs().max() < 1e-12


@EVERY_LOSS
@pytest.mark.parametrize("count", [2, 3])
def test_crossed_weights_are_parallel_to_the_truth_for_each_response(loss, responses, count):
    if responses == 3 and count == 3:
        pytest.skip("a quarter of a million tuples")
    w = world(responses)
    found, true = expected(w, count, partial(crossed_weights, loss=loss)), by_response(w, loss)
    for mine, its in zip(found, true, strict=True):
        # A smoothed loss rises again, so that where its true slope is small the mean one may have the other sign
        sign = its.dot(mine).sign() if loss is LOSSES["smoothing"][0] else 1
        assert sign * cosine(mine, its) == pytest.approx(1.0, abs=1e-12)
    # and the usual ones are not
    usual = expected(w, count, partial(likelihood_weights, loss=loss))
    assert min(cosine(mine, its) for mine, its in zip(usual, true, strict=True)) < 0.9999


def test_the_bias_falls_as_one_over_the_number_of_thoughts():
    w = world(seed=1)
    true = by_response(w, pair_loss).sum(0)
    off = [(expected(w, n, partial(likelihood_weights, loss=pair_loss)).sum(0) - true).norm().item() for n in (2, 4)]
    assert off[1] == pytest.approx(off[0] / 2, rel=0.02)


def test_centring_takes_away_noise_as_a_rule():
    def noise(w: World, weigh) -> float:
        found, chance = estimates(w, 3, weigh)
        whole = found.sum(1)
        return (chance @ (whole - chance @ whole).square().sum(1)).item()

    def uncentred(log_answers: Tensor) -> ThoughtWeights:
        answers = likelihood_weights(log_answers, pair_loss).answers
        return ThoughtWeights(answers, answers)

    worlds = [world(seed=seed) for seed in range(6)]
    ratios = [noise(w, partial(likelihood_weights, loss=pair_loss)) / noise(w, uncentred) for w in worlds]
    assert sorted(ratios)[3] < 0.9  # not in every world: a thought's share of the whole is no estimate of its own


def test_one_thought_alone_has_no_weight():
    log_answers = torch.tensor([[[0.6], [0.1]]]).log()
    weights = likelihood_weights(log_answers, pair_loss)
    assert not weights.thoughts.any()
    torch.testing.assert_close(weights.answers, torch.tensor([[[1 / 7], [-1 / 7]]]))
    with pytest.raises(ValueError, match="Give at least 2 thoughts"):
        crossed_weights(log_answers, pair_loss)
