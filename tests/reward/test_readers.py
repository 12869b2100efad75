"""Readers: numbers worked by hand, laws, and the taste of one annotator against numerical integration."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from toolkit.reward.readers import (
    READERS,
    Taste,
    annotator_test,
    fit_taste,
    gaussian_gap,
    linear_gap,
    mixture_gap,
    moderated,
    number_of_weights,
    read_gap,
    score_weights,
    skew_gap,
    taste_gap,
    unit_vectors,
    weights_of,
)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(READERS), st.sampled_from(["shared", "prompt"]), st.integers(0, 999))
def test_every_reader_says_the_opposite_of_the_opposite_pair(reader, by, seed):
    outputs = 2 if reader == "gaussian" else 4
    first, second = drawn(seed, 2, 5, outputs)
    count = number_of_weights(reader, outputs)
    weights = weights_of(drawn(seed + 1, 5, count), reader, by) if count else None
    torch.testing.assert_close(read_gap(first, second, weights, reader), -read_gap(second, first, weights, reader))
    torch.testing.assert_close(read_gap(first, first, weights, reader), torch.zeros(5, dtype=torch.float64))


def test_with_one_output_linear_is_a_difference_of_scores():
    first, second = drawn(0, 2, 6, 1)
    torch.testing.assert_close(linear_gap(first, second, tensor([1.0])), (first - second)[:, 0])


def test_a_mixture_of_one_is_linear():
    first, second = drawn(0, 2, 6, 1)
    torch.testing.assert_close(mixture_gap(first, second, tensor([1.0])), (first - second)[:, 0])


def test_two_groups_that_disagree_cost_log_two_until_the_group_is_known():
    chosen, rejected = tensor([2.0, -2.0]), tensor([0.0, 0.0])  # gaps of 2 and -2
    even = -F.logsigmoid(mixture_gap(chosen, rejected, tensor([0.5, 0.5])))
    known = -F.logsigmoid(mixture_gap(chosen, rejected, tensor([1.0, 0.0])))
    torch.testing.assert_close(even, tensor(math.log(2)))
    torch.testing.assert_close(known, tensor(math.log(1 + math.exp(-2))))
    assert known.item() == pytest.approx(0.127, abs=5e-4)


def test_a_mixtures_loss_is_the_log_of_the_mixed_probability():
    first, second = drawn(3, 2, 7, 3)
    shares = weights_of(drawn(4, 7, 3), "mixture", "prompt")
    mixed = (shares * torch.sigmoid(first - second)).sum(-1)
    torch.testing.assert_close(-F.logsigmoid(mixture_gap(first, second, shares)), -mixed.log())


def test_skew_of_scores_with_one_beside_them_is_bradley_terry():
    scores = drawn(0, 2, 6)
    first, second = (torch.stack([each, torch.ones_like(each)], dim=-1) for each in scores)
    torch.testing.assert_close(skew_gap(first, second, tensor([1.0])), scores[0] - scores[1])


def test_three_vectors_in_a_circle_beat_each_other_by_the_sine_of_120_degrees():
    angles = tensor([0, 2, 4], dtype=torch.float64) * math.pi / 3
    styles = torch.stack([angles.cos(), angles.sin()], dim=-1)
    gaps = skew_gap(styles, styles.roll(-1, 0), tensor([1.0]))
    torch.testing.assert_close(gaps, torch.full((3,), math.sqrt(3) / 2, dtype=torch.float64))


def test_skew_vectors_of_nothing_are_all_the_same():
    vectors = unit_vectors(torch.zeros(3, 4))
    torch.testing.assert_close(vectors, tensor([0, math.sqrt(0.5), 0, math.sqrt(0.5)]).expand(3, 4))
    assert unit_vectors(drawn(0, 5, 4)).norm(dim=-1).tolist() == pytest.approx([1.0] * 5)


def test_small_skew_outputs_are_read_as_their_score():
    first, second = 1e-5 * drawn(0, 2, 6, 4)
    weights = weights_of(drawn(1, 2), "skew", "shared")
    read = skew_gap(unit_vectors(first), unit_vectors(second), weights) * 2  # of the squared length of two planes
    score = linear_gap(first, second, score_weights(weights, "skew", 4))
    torch.testing.assert_close(read, score, atol=1e-8, rtol=0)


def test_without_variance_a_gaussian_gap_is_that_of_the_means():
    means = drawn(0, 2, 6)
    first, second = (torch.stack([each, torch.full_like(each, -60.0)], dim=-1) for each in means)
    torch.testing.assert_close(gaussian_gap(first, second), means[0] - means[1])


def test_the_formula_of_an_uncertain_gap_against_integration():
    places = torch.linspace(-15, 17, 100_001, dtype=torch.float64)  # N(1, 4)
    density = torch.exp(-((places - 1) ** 2) / 8) / math.sqrt(8 * math.pi)
    assert torch.trapezoid(torch.sigmoid(places) * density, places).item() == pytest.approx(0.648, abs=5e-4)
    mean, log_variance = tensor([1.0, math.log(2.0)]), tensor([0.0, math.log(2.0)])  # of which the sum is 4
    assert torch.sigmoid(gaussian_gap(mean, log_variance)).item() == pytest.approx(0.651, abs=5e-4)
    assert torch.sigmoid(moderated(tensor(1.0), tensor(4.0))).item() == pytest.approx(0.651, abs=5e-4)


@pytest.mark.parametrize("reader", ["mixture", "skew", "linear"])
def test_weights_read_from_a_prompt_are_shares(reader):
    weights = weights_of(drawn(0, 5, 3), reader, "prompt")
    assert (weights > 0).all()
    assert weights.sum(-1).tolist() == pytest.approx([3.0 if reader == "skew" else 1.0] * 5)


def test_scores_alone():
    assert score_weights(None, "gaussian", 2).tolist() == [1, 0]
    assert score_weights(tensor([0.5, 1.5]), "skew", 4).tolist() == [0.5, 0, 1.5, 0]
    assert score_weights(tensor([0.5, -1.5]), "linear", 2).tolist() == [0.5, -1.5]


def standard(outputs: int) -> Taste:
    return Taste(torch.zeros(outputs, dtype=torch.float64), torch.eye(outputs, dtype=torch.float64))


def test_without_pairs_a_taste_is_the_prior():
    prior = Taste(tensor([1.0, 2.0]), tensor([[2.0, 0.5], [0.5, 1.0]]))
    found = fit_taste(torch.zeros(0, 2), prior)
    torch.testing.assert_close(found.mean, prior.mean.double())
    torch.testing.assert_close(found.covariance, prior.covariance.double())


def test_a_taste_of_one_pair_by_hand():
    found = fit_taste(tensor([[1.0]]), standard(1))
    mode = found.mean.item()  # where c = sigma(-c)
    assert mode == pytest.approx(1 / (1 + math.exp(mode)), abs=1e-9)
    assert mode == pytest.approx(0.4011, abs=5e-5)
    assert found.covariance.item() == pytest.approx(1 / (1 + mode * (1 - mode)), abs=1e-6)


def test_a_taste_is_where_the_gradient_vanishes_and_the_covariance_is_the_inverse_hessian():
    prior = Taste(drawn(1, 3), torch.diag(tensor([0.5, 2.0, 30.0], dtype=torch.float64)))
    gaps = 20 * drawn(0, 40, 3)  # from where a whole Newton step overshoots
    found = fit_taste(gaps, prior)

    def loss(weights):
        off = weights - prior.mean
        return -F.logsigmoid(gaps @ weights).sum() + off @ torch.linalg.solve(prior.covariance, off) / 2

    hessian = torch.autograd.functional.hessian(loss, found.mean)
    torch.testing.assert_close(found.covariance, torch.linalg.inv(hessian))
    start = found.mean.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(start), start)
    assert (gradient @ found.covariance @ gradient).item() < 1e-9


def test_what_a_taste_says_of_pairs_by_hand():
    taste = Taste(tensor([1.0, 0.0]), tensor([[2.0, 1.0], [1.0, 2.0]]))
    gaps, variances = taste_gap(tensor([[1.0, 1.0], [1.0, -1.0]]), taste)
    assert variances.tolist() == [6, 2]
    expected = [1 / math.sqrt(1 + math.pi * v / 8) for v in (6, 2)]
    assert gaps.tolist() == pytest.approx(expected, abs=1e-12)


def test_many_pairs_of_a_new_annotator_find_their_taste():
    truth, gaps = tensor([1.5, -1.0], dtype=torch.float64), drawn(0, 4000, 2)
    labels = torch.rand(4000, generator=torch.Generator().manual_seed(1)) < torch.sigmoid(gaps @ truth)
    found = fit_taste(torch.where(labels[:, None], gaps, -gaps), standard(2))
    off = found.mean - truth
    assert (off @ torch.linalg.solve(found.covariance, off)).item() < 9  # a chi-squared of two degrees, 99%
    assert found.covariance.diag().sqrt().max().item() < 0.06


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_annotators_who_differ_are_told_from_noise_and_from_the_prompts_that_they_saw(strength):
    groups, people = torch.arange(400) % 20, torch.arange(400) // 40
    gaps = drawn(0, 400, 2) + drawn(1, 20, 2)[groups]  # prompts differ
    taste = 1 + strength * torch.where(people % 2 == 0, 1.0, -1.0)[:, None]
    wins = torch.rand(400, generator=torch.Generator().manual_seed(2)) < torch.sigmoid((taste * gaps).sum(1))
    gaps, prior = torch.where(wins[:, None], gaps, -gaps), Taste(torch.ones(2), torch.eye(2))
    found = annotator_test(gaps, people, groups, prior, permutations=19)
    assert found == 0.05 if strength else found > 0.1


def test_gradients_of_a_share_of_0_and_of_a_boundless_variance_are_numbers():
    values = tensor([200.0, 0.0], requires_grad=True)  # in float32 the second share is 0
    gap = mixture_gap(tensor([1.0, 2.0]), tensor([0.0, 0.0]), values.softmax(-1))
    assert torch.autograd.grad(gap, values)[0].isfinite().all()
    first = tensor([1.0, 100.0], requires_grad=True)
    gap = gaussian_gap(first, tensor([0.0, 0.0]))
    assert torch.autograd.grad(gap, first)[0].isfinite().all()
