import math

import numpy as np
import pytest
import torch

from toolkit.stats.calibration import (
    calibration_error,
    calibration_error_by_chance,
    cross_fitted,
    fit_temperature,
    log_loss,
    reliability,
)

# σ(ln 3) = 3/4 and σ(ln 9) = 9/10
THREE, NINE = math.log(3), math.log(9)


def gaps(*counts):
    """So many gaps of a size, of which so many are right."""
    parts = [
        torch.tensor([size] * right + [-size] * (count - right), dtype=torch.float64) for size, count, right in counts
    ]
    return torch.cat(parts)


def test_log_loss_by_hand():
    # right with 3/4: ln 4/3; wrong with 3/4: ln 4
    assert log_loss(gaps((THREE, 2, 1))) == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert log_loss(torch.zeros(3)) == pytest.approx(math.log(2))


def test_a_score_that_is_right_as_often_as_it_says_has_no_error():
    assert calibration_error(gaps((THREE, 8, 6), (NINE, 10, 9))) == pytest.approx(0)


def test_calibration_error_by_hand():
    # 8 pairs said 75% and 4 right: off by 1/4. 2 pairs said 90% and 2 right: off by 1/10.
    gap = gaps((THREE, 8, 4), (NINE, 2, 2))
    assert calibration_error(gap) == pytest.approx((8 * 0.25 + 2 * 0.1) / 10)
    assert [tuple(map(float, point)) for point in reliability(gap)] == [
        pytest.approx((0.75, 0.5, 8)),
        pytest.approx((0.9, 1.0, 2)),
    ]


def test_ties_are_said_to_be_even_and_are():
    assert calibration_error(torch.zeros(5)) == 0
    assert reliability(torch.zeros(5)) == [(0.5, 0.5, 5)]


def test_a_sure_score_falls_into_the_last_bin():
    assert reliability(torch.tensor([1000.0])) == [(1.0, 1.0, 1)]


def test_both_sides_counted_over_all_probabilities_give_the_same_error():
    # the definition with each pair once as p and once as 1 - p, over twice as many bins between 0 and 1
    gap = 3 * torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.7
    p = 1 / (1 + np.exp(-gap.numpy()))
    said, came = np.concatenate([p, 1 - p]), np.concatenate([np.ones(500), np.zeros(500)])
    place = np.minimum((said * 20).astype(int), 19)
    error = sum(abs(came[place == k].sum() - said[place == k].sum()) for k in range(20)) / 1000
    assert calibration_error(gap) == pytest.approx(error, rel=1e-12)


def test_swapping_the_sides_of_right_and_wrong_pairs_alike_changes_nothing_but_the_outcomes():
    gap = torch.tensor([1.0, -2.0, 0.5])
    assert [point.confidence for point in reliability(gap)] == [point.confidence for point in reliability(-gap)]


def test_the_temperature_of_known_odds():
    # 3 of 4 right at gaps of 2 ln 3: σ(2 ln 3 / T) = 3/4 at T = 2
    assert fit_temperature(gaps((2 * THREE, 4, 3))) == pytest.approx(2)
    assert fit_temperature(gaps((THREE / 5, 4, 3))) == pytest.approx(0.2)


def test_a_score_that_is_wrong_more_often_has_no_temperature_and_one_that_is_never_wrong_the_least():
    assert fit_temperature(gaps((1.0, 4, 1))) == math.inf
    assert fit_temperature(torch.tensor([1.0, 3.0])) == 0.02  # a hundredth of the mean gap
    assert fit_temperature(torch.zeros(3)) == 1


def test_gaps_are_divided_by_the_temperature_of_the_other_prompts():
    one, other = gaps((2 * THREE, 4, 3)), gaps((3 * NINE, 10, 9))
    gap, clusters = torch.cat([one, other]), torch.tensor([7] * 4 + [2] * 10)
    scaled = cross_fitted(gap, clusters)
    torch.testing.assert_close(scaled, torch.cat([one / 3, other / 2]))


def test_temperatures_need_two_prompts():
    with pytest.raises(ValueError, match="All pairs have one prompt"):
        cross_fitted(torch.ones(3), torch.zeros(3, dtype=torch.long))


def test_chance_alone_rarely_exceeds_its_bound():
    generator = torch.Generator().manual_seed(0)
    above = 0
    for seed in range(100):
        gap = 2 * torch.randn(200, generator=generator).abs()
        right = torch.rand(200, generator=generator) < torch.sigmoid(gap)
        drawn = torch.where(right, gap, -gap)
        above += calibration_error(drawn) > calibration_error_by_chance(drawn, resamples=200, seed=seed)
    assert above <= 12  # 5 are expected; 13 or more come about once in a thousand times


def test_a_score_that_is_too_sure_is_beyond_chance():
    gap = gaps((NINE, 100, 70))
    assert calibration_error(gap) == pytest.approx(0.2)
    assert calibration_error_by_chance(gap) < 0.07
