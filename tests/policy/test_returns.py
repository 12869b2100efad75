import math

import pytest
import torch

from toolkit.policy.returns import (
    Moments,
    RidgeStatistics,
    batch_mean_baseline,
    batch_ridge_statistics,
    check_rewards,
    decay_and_add,
    leave_one_out_baseline,
    moving_average,
    prefix_features,
    reward_to_go,
    ridge_coefficients,
    update_moments,
    whiten,
)

NAN = math.nan


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_reward_to_go_by_hand():
    kl = torch.tensor([[1.0, 2.0, 3.0, 50.0], [4.0, 50.0, 50.0, 50.0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    # 10 - (6, 5, 3) / 2, and 20 - 4 / 2
    expected = torch.tensor([[7.0, 7.5, 8.5, 0.0], [18.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(reward_to_go(torch.tensor([10.0, 20.0]), kl, mask, beta=0.5), expected)
    torch.testing.assert_close(reward_to_go(torch.tensor([10.0, 20.0]), kl, mask.bool(), beta=0.5), expected)


def test_without_a_price_every_token_gets_the_reward():
    rewards, mask = randn(5), torch.ones(5, 7)
    torch.testing.assert_close(reward_to_go(rewards, randn(5, 7), mask, beta=0.0), rewards[:, None].expand(5, 7))


def test_a_return_less_the_next_is_the_price_of_the_token_between():
    kl = randn(5, 7)
    returns = reward_to_go(randn(5, seed=1), kl, torch.ones(5, 7), beta=0.3)
    torch.testing.assert_close(returns[:, :-1] - returns[:, 1:], -0.3 * kl[:, :-1])
    torch.testing.assert_close(returns[:, 0], randn(5, seed=1) - 0.3 * kl.sum(1))


def test_batch_mean_by_hand():
    torch.testing.assert_close(batch_mean_baseline(torch.tensor([1.0, 2.0, 6.0])), torch.full((3,), 3.0))


def test_batch_mean_passes_over_what_was_not_scored():
    torch.testing.assert_close(batch_mean_baseline(torch.tensor([1.0, NAN, 6.0])), torch.full((3,), 3.5))


def test_leave_one_out_by_hand():
    returns = torch.tensor([1.0, 2.0, 6.0, 10.0, 20.0, 60.0])
    expected = torch.tensor([4.0, 3.5, 1.5, 40.0, 35.0, 15.0])
    torch.testing.assert_close(leave_one_out_baseline(returns, 3), expected)


@pytest.mark.parametrize("group_size", [2, 3, 4, 6, 12])
def test_leave_one_out_is_the_mean_of_the_others(group_size):
    returns = randn(12)
    returns[[2, 5, 6]] = NAN
    expected = []
    for i in range(12):
        first = i - i % group_size
        others = [returns[j].item() for j in range(first, first + group_size) if j != i and not returns[j].isnan()]
        expected.append(sum(others) / len(others) if others else NAN)
    baseline = leave_one_out_baseline(returns, group_size)
    torch.testing.assert_close(baseline, torch.tensor(expected, dtype=torch.float64), equal_nan=True)


def test_no_other_scored_response_leaves_no_baseline():
    returns = torch.tensor([1.0, NAN, NAN, NAN, 3.0, 5.0])
    torch.testing.assert_close(
        leave_one_out_baseline(returns, 2), torch.tensor([NAN, 1.0, NAN, NAN, 5.0, 3.0]), equal_nan=True
    )


def test_a_return_has_no_part_in_its_own_leave_one_out_baseline():
    returns, changed = randn(12), randn(12)
    changed[4] = 100.0
    before, after = leave_one_out_baseline(returns, 4), leave_one_out_baseline(changed, 4)
    torch.testing.assert_close(after[4], before[4])
    torch.testing.assert_close(after[5:8] - before[5:8], (100 - returns[4]).expand(3) / 3)
    torch.testing.assert_close(after[8:], before[8:])


def test_leave_one_out_is_the_batch_mean_stretched():
    # G - b is k / (k - 1) times what is left after the group's mean, Eq. (8) of 2402.14740 rearranged
    returns = randn(5)
    stretched = (returns - batch_mean_baseline(returns)) * 5 / 4
    torch.testing.assert_close(returns - leave_one_out_baseline(returns, 5), stretched)


@pytest.mark.parametrize("group_size", [0, 1, 4])
def test_leave_one_out_needs_whole_groups_of_at_least_two(group_size):
    with pytest.raises(ValueError, match=f"got groups of {group_size} in 6 responses"):
        leave_one_out_baseline(torch.zeros(6), group_size)


def test_moving_average_by_hand():
    average = moving_average(None, torch.tensor([2.0, 4.0]), decay=0.75)
    assert average == 3.0  # the first batch's own mean
    assert moving_average(average, torch.tensor([5.0, NAN, 9.0]), decay=0.75) == 0.75 * 3 + 0.25 * 7


def test_a_batch_without_scores_leaves_the_moving_average():
    empty = torch.tensor([NAN, NAN])
    assert moving_average(3.0, empty, decay=0.75) == 3.0
    unknown = moving_average(None, empty, decay=0.75)
    assert unknown is None
    assert moving_average(unknown, torch.tensor([2.0]), decay=0.75) == 2.0


def test_moving_average_weighs_batches_by_powers_of_the_decay():
    batches, average = randn(6, 4), None
    for batch in batches:
        average = moving_average(average, batch, decay=0.8)
    weights = torch.tensor([0.8**5] + [0.2 * 0.8 ** (5 - i) for i in range(1, 6)], dtype=torch.float64)
    assert average == pytest.approx((weights @ batches.mean(1)).item())


def test_moments_by_hand():
    # mean 5, squares 9 + 1 + 16
    moments = update_moments(Moments(), torch.tensor([2.0, 4.0, 9.0]))
    assert moments == (3, 5.0, 26.0)
    assert moments.std == math.sqrt(13)


@pytest.mark.parametrize("shift", [0.0, 1e6])
@pytest.mark.parametrize("sizes", [[40], [1] * 40, [3, 17, 20]])
def test_moments_of_batches_are_those_of_all_values(sizes, shift):
    values = randn(40) + shift
    values[[0, 5, 6, 30]] = NAN
    moments = Moments()
    for batch in values.split(sizes):
        moments = update_moments(moments, batch)
    kept = values[~values.isnan()]
    assert moments.size == 36
    assert moments.mean == pytest.approx(kept.mean().item())
    assert moments.std == pytest.approx(torch.std(kept).item())


@pytest.mark.parametrize("values", [[], [3.0], [3.0, 3.0], [NAN, NAN]])
def test_values_that_do_not_vary_have_unit_deviation(values):
    assert update_moments(Moments(), torch.tensor(values)).std == 1.0


def test_prefix_features_by_hand():
    values = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]], [[4.0, 40.0], [5.0, 50.0], [6.0, 60.0]]])
    prompt_value = torch.tensor([[0.5, 0.0], [0.7, 0.1]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    features = prefix_features(values, prompt_value, mask, max_length=4)
    # (1, value of each scale before the token), then the same times t / 4
    first = [
        [1.0, 0.5, 0.0, 0.0, 0.0, 0.0],
        [1.0, 1.0, 10.0, 0.25, 0.25, 2.5],
        [1.0, 2.0, 20.0, 0.5, 1.0, 10.0],
    ]
    second = [[1.0, 0.7, 0.1, 0.0, 0.0, 0.0], [1.0, 4.0, 40.0, 0.25, 1.0, 10.0], [0.0] * 6]
    torch.testing.assert_close(features, torch.tensor([first, second]))


def test_the_features_of_a_token_do_not_see_it_or_what_follows():
    prompt_value, mask = randn(4, 3, seed=2), torch.ones(4, 6)
    values, other = randn(4, 6, 3), randn(4, 6, 3, seed=1)
    before = prefix_features(values, prompt_value, mask, max_length=6)
    for t in range(6):
        changed = torch.cat([values[:, :t], other[:, t:]], dim=1)
        after = prefix_features(changed, prompt_value, mask, max_length=6)
        assert torch.equal(after[:, : t + 1], before[:, : t + 1])
        assert not torch.isclose(after[:, t + 1 :, 1:4], before[:, t + 1 :, 1:4]).any()


def test_the_first_feature_of_the_prefix_is_the_value_of_the_prompt():
    prompt_value = randn(4, 3, seed=2)
    features = prefix_features(randn(4, 6, 3), prompt_value, torch.ones(4, 6), max_length=8)
    torch.testing.assert_close(features[:, 0, 1:4], prompt_value)
    torch.testing.assert_close(features[..., 4], (torch.arange(6) / 8).double().expand(4, 6))
    assert features.shape == (4, 6, 8)


def test_ridge_statistics_by_hand():
    statistics = batch_ridge_statistics(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([5.0, 6.0]))
    torch.testing.assert_close(statistics.gram, torch.tensor([[10.0, 14.0], [14.0, 20.0]], dtype=torch.float64))
    torch.testing.assert_close(statistics.moment, torch.tensor([23.0, 34.0], dtype=torch.float64))


def test_ridge_coefficient_of_one_feature_by_hand():
    # sum of xg = 10, of xx = 5; a penalty of 1/4 of xx leaves 10 / 6.25
    statistics = batch_ridge_statistics(torch.tensor([[1.0], [2.0]]), torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(ridge_coefficients(statistics, 0.0), torch.tensor([2.0], dtype=torch.float64))
    torch.testing.assert_close(ridge_coefficients(statistics, 0.25), torch.tensor([1.6], dtype=torch.float64))


def test_statistics_of_parts_add_up():
    features, targets = randn(40, 5), randn(40, seed=1)
    whole = batch_ridge_statistics(features, targets)
    parts = [batch_ridge_statistics(features[half], targets[half]) for half in (slice(15), slice(15, None))]
    for total, left, right in zip(whole, *parts, strict=True):
        torch.testing.assert_close(left + right, total)
    for total, summed in zip(whole, decay_and_add(*parts, decay=1.0), strict=True):
        torch.testing.assert_close(summed, total)


def test_an_older_batch_weighs_less_by_the_decay():
    features, targets = randn(2, 20, 4), randn(2, 20, seed=1)
    old, new = (batch_ridge_statistics(features[i], targets[i]) for i in range(2))
    coefficients = ridge_coefficients(decay_and_add(old, new, decay=0.25), 0.0)
    # the least-squares fit in which each sample of the older batch counts a quarter, its root on both sides
    root = torch.tensor([0.5, 1.0], dtype=torch.float64)[:, None]
    expected = torch.linalg.lstsq((features * root[..., None]).flatten(0, 1), (targets * root).flatten()).solution
    torch.testing.assert_close(coefficients, expected)


def test_without_penalty_a_linear_target_is_recovered():
    features, coefficients = randn(40, 5), randn(5, seed=1)
    statistics = batch_ridge_statistics(features, features @ coefficients)
    torch.testing.assert_close(ridge_coefficients(statistics, 0.0), coefficients)


def test_ridge_coefficients_minimise_the_penalised_error():
    features, targets = randn(40, 5), randn(40, seed=1)
    theta = ridge_coefficients(batch_ridge_statistics(features, targets), 0.1).requires_grad_()
    penalty = 0.1 * (features.square().sum(0) * theta.square()).sum()
    ((targets - features @ theta).square().sum() + penalty).backward()
    torch.testing.assert_close(theta.grad, torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("penalty", [0.0, 0.01, 1.0])
def test_the_unit_of_a_feature_does_not_change_the_fit(penalty):
    features, targets = randn(40, 5), randn(40, seed=1)
    units = torch.tensor([1.0, 10.0, 0.1, 100.0, 0.01], dtype=torch.float64)
    fit, other = (
        ridge_coefficients(batch_ridge_statistics(x, targets), penalty) for x in (features, features * units)
    )
    torch.testing.assert_close((features * units) @ other, features @ fit)


def test_a_penalty_shrinks_the_fit():
    statistics = batch_ridge_statistics(randn(40, 5), randn(40, seed=1))
    norms = [ridge_coefficients(statistics, penalty).norm().item() for penalty in (0.0, 0.1, 1.0, 10.0)]
    assert norms == sorted(norms, reverse=True)


def test_before_any_batch_nothing_is_subtracted():
    empty = RidgeStatistics.empty(8)
    assert torch.equal(ridge_coefficients(empty, 0.01), torch.zeros(8, dtype=torch.float64))
    first = batch_ridge_statistics(randn(20, 8), randn(20, seed=1))
    for summed, alone in zip(decay_and_add(empty, first, decay=0.5), first, strict=True):
        assert torch.equal(summed, alone)


def test_a_feature_that_is_always_zero_gets_no_coefficient():
    features, targets = randn(40, 5), randn(40, seed=1)
    features[:, 2] = 0.0
    coefficients = ridge_coefficients(batch_ridge_statistics(features, targets), 0.01)
    kept = [0, 1, 3, 4]
    torch.testing.assert_close(coefficients[2], torch.tensor(0.0, dtype=torch.float64))
    torch.testing.assert_close(
        coefficients[kept], ridge_coefficients(batch_ridge_statistics(features[:, kept], targets), 0.01)
    )


def test_two_equal_features_share_one_coefficient():
    feature, targets = randn(40, 1), randn(40, seed=1)
    alone = ridge_coefficients(batch_ridge_statistics(feature, targets), 0.0)
    both = ridge_coefficients(batch_ridge_statistics(feature.expand(40, 2), targets), 0.0)
    torch.testing.assert_close(both, alone.expand(2) / 2)


def test_whitening_by_hand():
    advantages, mask = torch.tensor([[1.0, 3.0], [5.0, 50.0]]), torch.tensor([[1, 1], [1, 0]])
    whitened = whiten(advantages, torch.tensor(3.0), torch.tensor(2.0 - 1e-4), mask)
    torch.testing.assert_close(whitened, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))


def test_equal_advantages_are_whitened_to_nothing():
    whitened = whiten(torch.full((2, 3), 7.0), torch.tensor(7.0), torch.tensor(0.0), torch.ones(2, 3))
    assert torch.equal(whitened, torch.zeros(2, 3))


def test_an_infinite_reward_is_named_with_its_function_and_step():
    rewards = torch.tensor([[1.0, 2.0], [0.5, -math.inf]])
    with pytest.raises(ValueError, match=r"'judge' returned -inf for response 2 of 2 after step 7\. Return a finite"):
        check_rewards(rewards, ["model", "judge"], 7, scored_before=True)


def test_responses_that_one_function_scored_are_enough():
    nothing = torch.full((2, 1), math.nan)
    check_rewards(torch.tensor([[math.nan, 1.0], [math.nan, math.nan]]), ["model", "judge"], 0, scored_before=False)
    check_rewards(nothing, ["judge"], 3, scored_before=True)
    with pytest.raises(
        ValueError, match=r"None of the reward functions \['judge'\] has scored any response up to step 3"
    ):
        check_rewards(nothing, ["judge"], 3, scored_before=False)
