import math

import numpy as np
import pytest
import torch

from toolkit.stats.curves import (
    changes_to_last,
    convergence_step,
    instability,
    level_at_end,
    noise_to_signal,
    tokens_to_level,
    trailing_mean,
)


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


def test_what_is_no_number_is_not_at_the_level():
    curves, tokens = torch.tensor([[math.nan, 0.0], [math.nan, 2.0]]), torch.tensor([[10, 20], [10, 20]])
    assert tokens_to_level(tokens, curves, 1.0).tolist() == [math.inf, 20]


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


def test_convergence_step_by_hand():
    # means of two: 0, 1, 3, 2, 3; 4, 2, 1, 3, 4; 0, 2, 3, 2.5, 1.5. At 2 for good from step 3; from 4; not at the end
    curves = torch.tensor([[0.0, 2.0, 4.0, 0.0, 6.0], [4.0, 0.0, 2.0, 4.0, 4.0], [0.0, 4.0, 2.0, 3.0, 0.0]])
    steps = convergence_step(curves, 2.0, 2)
    assert steps.dtype == torch.float64
    assert steps.tolist() == [3, 4, math.inf]


def test_a_run_that_is_never_below_the_level_converges_at_its_first_step():
    assert convergence_step(torch.full((6,), 0.5), 0.5, 3).item() == 1


def test_convergence_step_is_that_of_a_loop():
    curves = torch.randn(30, 25, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    for curve, found in zip(curves, convergence_step(curves, 0.5, 4).tolist(), strict=True):
        means = trailing_mean(curve, 4).tolist()
        good = [t for t in range(1, 26) if all(mean >= 0.5 for mean in means[t - 1 :])]
        assert found == min(good, default=math.inf)


def test_a_curve_that_ends_in_no_number_does_not_converge():
    assert convergence_step(torch.tensor([1.0, 1.0, math.nan]), 0.0, 1).item() == math.inf
    assert convergence_step(torch.tensor([1.0, math.nan, 1.0]), 0.0, 1).item() == 3


def test_instability_by_hand():
    # the last three of five: 1, 4, 1 have slope 0 and mean 2, so squares 1 + 4 + 1 over 3 - 2
    spread = instability(torch.tensor([90.0, -70.0, 1.0, 4.0, 1.0]))
    torch.testing.assert_close(spread, torch.tensor(math.sqrt(6.0), dtype=torch.float64))


def test_instability_is_what_numpy_fits():
    curves = torch.randn(3, 21, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for curve, found in zip(curves, instability(curves).tolist(), strict=True):
        _, squares, *_ = np.polyfit(np.arange(11), curve[10:].numpy(), 1, full=True)
        assert found == pytest.approx(math.sqrt(squares.item() / 9))


@pytest.mark.parametrize("steps", [5, 6, 40])
def test_a_line_is_not_instability_and_a_scale_is(steps):
    curve = torch.randn(2, steps, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    line = 7 - 0.3 * torch.arange(steps, dtype=torch.float64)
    torch.testing.assert_close(instability(curve + line), instability(curve))
    torch.testing.assert_close(instability(-3 * curve), 3 * instability(curve))
    torch.testing.assert_close(instability(line), torch.tensor(0.0, dtype=torch.float64), rtol=0.0, atol=1e-12)


def test_the_square_of_instability_is_the_variance_of_noise_around_a_line():
    # the mean of 4,000 estimates from 5 values has an error of sqrt(2 / 3 / 4000) = 1.3% of the variance
    noise = torch.randn(4000, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert instability(2 * noise + torch.arange(9)).square().mean().item() == pytest.approx(4.0, rel=0.04)


def test_a_line_through_two_values_leaves_nothing_to_measure():
    with pytest.raises(ValueError, match="second half of 4 steps has 2 values"):
        instability(torch.ones(2, 4))


def test_noise_to_signal_by_hand():
    # total (4 + 5 + 5) / 3 = 14/3, signal (4 + 4 + 3) / 3 = 11/3, ratio (3/3) / (11/3) = 3/11. Without the first
    # (5 - 3) / 3 = 2/3, without another (4.5 - 4) / 4 = 1/8: off their mean 11/36 by 26/72, -13/72 and -13/72, so
    # that the error is sqrt(2/3 * 6) * 13/72 = 13/36
    gradients = torch.tensor([[2.0, 0.0], [2.0, 1.0], [2.0, -1.0]])
    assert noise_to_signal(gradients @ gradients.T) == pytest.approx((3 / 11, 13 / 36))


def noisy_gradients(repeats: int, estimates: int) -> torch.Tensor:
    """Of mean `(2, 1, 0, ...)`, squared norm 5, and deviations `(3, 1, 1, 0.5, ...)` in 20 axes, variance 15."""
    deviations = torch.tensor([3.0, 1.0, 1.0] + 17 * [0.5])
    deviations[3:] *= math.sqrt(4 / (17 * 0.25))
    noise = torch.randn(repeats, estimates, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = torch.zeros(20)
    mean[:2] = torch.tensor([2.0, 1.0])
    return mean + deviations * noise


def test_noise_to_signal_of_a_known_mean_and_covariance():
    figures = [noise_to_signal(gradients @ gradients.T) for gradients in noisy_gradients(200, 100)]
    values, errors = torch.tensor(figures).double().unbind(1)
    assert values.mean().item() == pytest.approx(15 / 5, rel=0.05)
    assert errors.mean().item() == pytest.approx(values.std().item(), rel=0.15)


def test_a_common_scale_and_a_rotation_do_not_matter():
    (gradients,) = noisy_gradients(1, 12)
    rotation = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64)).Q
    turned = 1e-6 * gradients @ rotation
    assert noise_to_signal(turned @ turned.T) == pytest.approx(noise_to_signal(gradients @ gradients.T))


def test_equal_gradients_have_no_noise():
    assert noise_to_signal(torch.full((4, 4), 9.0)) == (0.0, 0.0)


def test_noise_can_hide_the_mean_gradient():
    # products -1, 1 and -1, signal -1/3; and products 1, 1 and 0, of which only the last is left without the first
    assert noise_to_signal(torch.tensor([[2.0, -1, 1], [-1, 2, -1], [1, -1, 2]])) == (math.inf, math.inf)
    value, error = noise_to_signal(torch.tensor([[1.0, 1, 1], [1, 2, 0], [1, 0, 2]]))
    assert (value, error) == (pytest.approx(1.5), math.inf)  # total 5/3, signal 2/3


@pytest.mark.parametrize("shape", [(2, 2), (3, 4), (3, 3, 3)])
def test_a_matrix_of_three_gradients_is_needed(shape):
    with pytest.raises(ValueError, match=rf"`gram` has shape \({shape[0]}, {shape[1]}"):
        noise_to_signal(torch.ones(shape))


def test_changes_to_the_last_part_by_hand():
    # parts of two: means 1, 1.5 and 4; differences 2, -1, 1, 2, 0 and so a variance of 10 / 5 / 2 = 1
    values = torch.tensor([0.0, 2, 1, 2, 4, 4])
    first, second = changes_to_last(values, parts=3)
    assert (first.value, second.value) == (3.0, 2.5)
    degrees, z = 2 * 25 / 14, 1.959964
    t = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    assert first.high - first.value == pytest.approx(t, rel=1e-5)  # the root of 1 · (1/2 + 1/2)
    end = level_at_end(values, parts=3)
    assert (end.value, end.high - end.value) == (4.0, pytest.approx(t / 2**0.5, rel=1e-5))


def test_noise_alone_rarely_passes_for_a_change():
    generator = torch.Generator().manual_seed(0)
    runs = torch.randn(4000, 20, generator=generator)
    beyond = sum(change.low > 0 or change.high < 0 for run in runs for change in changes_to_last(run, 5)[:1])
    assert 0.035 < beyond / len(runs) < 0.065


def test_a_slow_trend_is_no_noise():
    trend = torch.linspace(0, 1, 100)
    (change,) = changes_to_last(trend, parts=2)
    assert change.value == pytest.approx(50 / 99)
    assert change.high - change.low < 0.01


@pytest.mark.parametrize(("count", "parts"), [(9, 5), (10, 1)])
def test_parts_need_two_values(count, parts):
    with pytest.raises(ValueError, match=f"{count} values make no {parts} parts"):
        changes_to_last(torch.zeros(count), parts)
