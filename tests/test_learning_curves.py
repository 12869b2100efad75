import math

import pytest
import torch

from toolkit.learning_curves import tokens_to_level, trailing_mean


def test_trailing_mean_by_hand():
    # 3; (3 + 5) / 2; (3 + 5 + 1) / 3; (5 + 1 + 6) / 3: fewer values at the beginning, none of those to come
    mean = trailing_mean(torch.tensor([3.0, 5.0, 1.0, 6.0]), 3)
    torch.testing.assert_close(mean, torch.tensor([3.0, 4.0, 3.0, 4.0], dtype=torch.float64))


def test_a_window_of_one_changes_nothing():
    values = torch.randn(7, dtype=torch.float64)
    torch.testing.assert_close(trailing_mean(values, 1), values)


def test_a_window_longer_than_the_run_is_the_mean_so_far():
    values = torch.tensor([2.0, 4.0, 9.0])
    torch.testing.assert_close(trailing_mean(values, 99), torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64))


def test_runs_are_smoothed_each_on_its_own():
    runs = torch.randn(4, 9)
    apart = torch.stack([trailing_mean(run, 5) for run in runs])
    torch.testing.assert_close(trailing_mean(runs, 5), apart)


def test_the_future_does_not_move_a_trailing_mean():
    values = torch.randn(9)
    later = values.clone()
    later[6:] += 100
    assert trailing_mean(values, 4)[:6].equal(trailing_mean(later, 4)[:6])


def test_a_window_of_nothing_is_refused():
    with pytest.raises(ValueError, match="`window` is 0"):
        trailing_mean(torch.ones(3), 0)


def test_tokens_to_level_by_hand():
    # at 2: from the third step on, though the fourth is below; exactly at it in the last; never
    curves = torch.tensor([[0.0, 1.0, 2.5, 1.5], [0.0, 1.0, 1.9, 2.0], [0.0, 1.0, 1.5, 1.9]])
    tokens = torch.tensor([[10, 20, 31, 40], [11, 22, 33, 44], [10, 20, 30, 40]])
    assert tokens_to_level(tokens, curves, 2.0).tolist() == [31, 44, math.inf]


def test_a_level_below_the_start_costs_the_first_step():
    assert tokens_to_level(torch.tensor([7, 14]), torch.tensor([1.0, 0.0]), 0.5).item() == 7


def test_a_higher_level_never_costs_less():
    curves, tokens = torch.randn(30).cumsum(0), torch.arange(1, 31)
    needed = [tokens_to_level(tokens, curves, level).item() for level in (-1.0, 0.0, 1.0, 2.0, 4.0)]
    assert needed == sorted(needed)


def test_a_run_reaches_its_own_end():
    # the level of one run is its last smoothed value, which rounding must not put out of its reach
    values = torch.randn(60)
    curve = trailing_mean(values, 5)
    assert math.isfinite(tokens_to_level(torch.arange(60), curve, curve[-1].item()).item())


def test_shapes_must_match():
    with pytest.raises(ValueError, match=r"\(1, 3\) and \(2, 3\)"):
        tokens_to_level(torch.ones(1, 3), torch.ones(2, 3), 0.0)
