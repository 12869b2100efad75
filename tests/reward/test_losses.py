import math

import pytest
import torch
import torch.nn.functional as F

from toolkit.reward.losses import (
    centering_penalty,
    multi_scale_loss,
    pairwise_logistic_loss,
    pointwise_logistic_loss,
    strength_weights,
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def nll(gap: float) -> float:
    """-log sigmoid(gap), written out."""
    return math.log(1 + math.exp(-gap))


def test_even_pair_costs_log_two():
    # sigmoid(0) = 1/2, whatever the common level of the two rewards
    torch.testing.assert_close(pairwise_logistic_loss(double(3.0), double(3.0)), double(math.log(2)))


def test_pair_by_hand():
    # odds of 3 to 1 for the chosen response: probability 3/4, so log(4/3); against it: log 4
    chosen, rejected = double(math.log(3), 0.0), double(0.0, math.log(3))
    torch.testing.assert_close(pairwise_logistic_loss(chosen, rejected), double(math.log(4 / 3), math.log(4)))


def test_shift_of_both_rewards_changes_nothing():
    chosen, rejected = randn(8), randn(8, seed=1)
    torch.testing.assert_close(
        pairwise_logistic_loss(chosen + 5, rejected + 5), pairwise_logistic_loss(chosen, rejected)
    )


def test_pairwise_loss_is_cross_entropy_on_the_gap():
    chosen, rejected = randn(8, 3), randn(8, 3, seed=1)
    expected = torch.nn.BCEWithLogitsLoss(reduction="none")(chosen - rejected, torch.ones(8, 3, dtype=torch.float64))
    torch.testing.assert_close(pairwise_logistic_loss(chosen, rejected), expected)


def test_pairwise_loss_with_margin_is_the_formula_of_trl():
    # trl.RewardTrainer.compute_loss: -logsigmoid(rewards_chosen - rewards_rejected - margin).mean()
    chosen, rejected, margin = randn(8), randn(8, seed=1), randn(8, seed=2).abs()
    expected = -F.logsigmoid(chosen - rejected - margin).mean()
    torch.testing.assert_close(pairwise_logistic_loss(chosen, rejected, margin).mean(), expected)


def test_a_gap_equal_to_the_margin_costs_log_two():
    torch.testing.assert_close(pairwise_logistic_loss(double(5.0), double(2.0), double(3.0)), double(math.log(2)))


def test_a_margin_is_a_raise_of_the_rejected_reward():
    chosen, rejected, margin = randn(8), randn(8, seed=1), randn(8, seed=2).abs()
    torch.testing.assert_close(
        pairwise_logistic_loss(chosen, rejected, margin, 0.1),
        pairwise_logistic_loss(chosen, rejected + margin, None, 0.1),
    )


@pytest.mark.parametrize("loss", [pairwise_logistic_loss, pointwise_logistic_loss])
def test_label_smoothing_is_the_expected_loss_when_a_label_may_be_wrong(loss):
    chosen, rejected = randn(8), randn(8, seed=1)
    expected = 0.8 * loss(chosen, rejected) + 0.2 * loss(rejected, chosen)
    torch.testing.assert_close(loss(chosen, rejected, label_smoothing=0.2), expected)


def test_smoothed_pair_by_hand():
    # a gap of log 3 is least costly at a label that is wrong one time in four: the entropy of (3/4, 1/4)
    entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    loss = pairwise_logistic_loss(double(math.log(3)), double(0.0), label_smoothing=0.25)
    torch.testing.assert_close(loss, double(entropy))


def test_smoothed_loss_is_least_where_the_odds_are_those_of_the_label():
    gap = double(math.log(3)).requires_grad_()
    pairwise_logistic_loss(gap, double(0.0), label_smoothing=0.25).sum().backward()
    torch.testing.assert_close(gap.grad, double(0.0))


def test_an_unsmoothed_loss_stays_finite_at_a_hopeless_gap():
    torch.testing.assert_close(pairwise_logistic_loss(double(-1e4, 1e4), double(0.0, 0.0)), double(1e4, 0.0))


def test_pointwise_pair_by_hand():
    # chosen has probability 3/4 of the label 1, rejected 1/2 of the label 0
    loss = pointwise_logistic_loss(double(math.log(3)), double(0.0))
    torch.testing.assert_close(loss, double((math.log(4 / 3) + math.log(2)) / 2))


def test_pointwise_loss_is_cross_entropy_of_two_labels():
    chosen, rejected = randn(8), randn(8, seed=1)
    logits, labels = torch.stack([chosen, rejected]), torch.stack([torch.ones(8), torch.zeros(8)]).double()
    expected = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(0)
    torch.testing.assert_close(pointwise_logistic_loss(chosen, rejected), expected)


def test_pointwise_loss_does_not_compare_the_two_responses():
    # the mixed second derivative is 0: how chosen is judged does not depend on rejected
    chosen, rejected = double(0.3).requires_grad_(), double(-0.4).requires_grad_()
    (slope,) = torch.autograd.grad(pointwise_logistic_loss(chosen, rejected).sum(), chosen, create_graph=True)
    assert torch.autograd.grad(slope.sum(), rejected, allow_unused=True, materialize_grads=True)[0] == 0


@pytest.mark.parametrize("loss", [pairwise_logistic_loss, pointwise_logistic_loss])
def test_raising_the_chosen_reward_lowers_the_loss(loss):
    chosen, rejected = randn(8).requires_grad_(), randn(8, seed=1).requires_grad_()
    loss(chosen, rejected).sum().backward()
    assert (chosen.grad < 0).all()
    assert (rejected.grad > 0).all()


@pytest.mark.parametrize("loss", [pairwise_logistic_loss, pointwise_logistic_loss, centering_penalty])
def test_shapes_must_match(loss):
    with pytest.raises(ValueError, match=r"`chosen` and `rejected` must match, got \(2,\) and \(2, 1\)"):
        loss(torch.zeros(2), torch.zeros(2, 1))


def test_centering_by_hand():
    torch.testing.assert_close(centering_penalty(double(1.0, 2.0, 1.0), double(-1.0, 1.0, 1.0)), double(0.0, 9.0, 4.0))


def test_centering_leaves_the_gap_alone():
    # it pulls both rewards the same way, so their difference has no part in it
    chosen, rejected = double(2.0).requires_grad_(), double(1.0).requires_grad_()
    centering_penalty(chosen, rejected).sum().backward()
    torch.testing.assert_close(chosen.grad, double(6.0))  # 2 (2 + 1)
    torch.testing.assert_close(rejected.grad, chosen.grad)


def test_strength_weights_by_hand():
    torch.testing.assert_close(strength_weights(double(1.0, 2.0, 3.0)), double(0.5, 1.0, 1.5))
    torch.testing.assert_close(strength_weights(double(0.0, 4.0)), double(0.0, 2.0))


def test_strength_weights_have_mean_one_in_any_unit():
    strength = randn(50).abs()
    torch.testing.assert_close(strength_weights(strength).mean(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(strength_weights(1000 * strength), strength_weights(strength))


@pytest.mark.parametrize("bad", [[1.0, -0.1], [1.0, math.nan], [1.0, math.inf], [0.0, 0.0], []])
def test_strengths_that_weigh_nothing_are_refused(bad):
    with pytest.raises(
        ValueError, match="Strengths must be finite and non-negative, and at least one must be positive"
    ):
        strength_weights(torch.tensor(bad))


def test_multi_scale_loss_by_hand():
    # mixed gap 1 with margin 0.5, gaps of the scales 2 and -1; weight 3, lambda 0.5
    losses = multi_scale_loss(
        double(1.0),
        double(0.0),
        double(2.0, 1.0)[None],
        double(0.0, 2.0)[None],
        weight=double(3.0),
        margin=double(0.5),
        scale_weight=0.5,
    )
    torch.testing.assert_close(losses.total, double(3 * (nll(0.5) + 0.5 * (nll(2.0) + nll(-1.0)))))
    torch.testing.assert_close(
        losses.scales, double(nll(2.0), nll(-1.0))[None]
    )  # neither weighted nor held to a margin


def test_pointwise_multi_scale_loss_by_hand():
    losses = multi_scale_loss(
        double(1.0), double(0.0), double(2.0, 1.0)[None], double(0.0, 2.0)[None], pointwise=True, scale_weight=2.0
    )
    # a chosen reward r costs nll(r), a rejected one nll(-r), and a pair the mean of the two
    scales = [(nll(2.0) + nll(0.0)) / 2, (nll(1.0) + nll(-2.0)) / 2]
    torch.testing.assert_close(losses.total, double((nll(1.0) + nll(0.0)) / 2 + 2 * sum(scales)))
    torch.testing.assert_close(losses.scales, double(*scales)[None])


def test_without_a_scale_weight_only_the_mixed_score_is_trained():
    chosen, rejected, by_scale = randn(8), randn(8, seed=1), randn(8, 3, seed=2)
    losses = multi_scale_loss(chosen, rejected, by_scale, -by_scale)
    torch.testing.assert_close(losses.total, pairwise_logistic_loss(chosen, rejected))


def test_a_single_scale_is_not_counted_twice():
    chosen, rejected = randn(8), randn(8, seed=1)
    losses = multi_scale_loss(chosen, rejected, chosen[:, None], rejected[:, None], scale_weight=0.5)
    torch.testing.assert_close(losses.total, pairwise_logistic_loss(chosen, rejected))
    torch.testing.assert_close(losses.scales, losses.total[:, None])


@pytest.mark.parametrize("pointwise", [False, True])
def test_smoothing_reaches_the_mixed_score_and_every_scale(pointwise):
    chosen, rejected, a, b = randn(8), randn(8, seed=1), randn(8, 3, seed=2), randn(8, 3, seed=3)
    options = {"pointwise": pointwise, "scale_weight": 0.5}
    right, wrong = (
        multi_scale_loss(chosen, rejected, a, b, **options),
        multi_scale_loss(rejected, chosen, b, a, **options),
    )
    smoothed = multi_scale_loss(chosen, rejected, a, b, label_smoothing=0.2, **options)
    torch.testing.assert_close(smoothed.total, 0.8 * right.total + 0.2 * wrong.total)
    torch.testing.assert_close(smoothed.scales, 0.8 * right.scales + 0.2 * wrong.scales)


def test_every_scale_gets_its_own_gradient():
    # even where the mixed score ignores a scale, the second term trains it
    by_scale = randn(8, 3).requires_grad_()
    multi_scale_loss(
        randn(8), randn(8, seed=1), by_scale, randn(8, 3, seed=2), scale_weight=0.5
    ).total.sum().backward()
    assert (by_scale.grad < 0).all()


def test_the_pointwise_loss_holds_no_margin():
    zeros = torch.zeros(2)
    with pytest.raises(ValueError, match="A margin needs the pairwise loss"):
        multi_scale_loss(zeros, zeros, zeros[:, None], zeros[:, None], pointwise=True, margin=zeros)


def test_scales_must_match_too():
    zeros = torch.zeros(2)
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(2, 1\)"):
        multi_scale_loss(zeros, zeros, torch.zeros(2, 3), torch.zeros(2, 1))
