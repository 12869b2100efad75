import itertools
import math
import random
import statistics

import pytest
import torch

from toolkit.stats import resampling
from toolkit.stats.resampling import bootstrap_figures, bootstrap_interval


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def looped_mean(measurements: list[list[list[float]]], seeds: list[int], units: list[int]) -> float:
    """Mean of all measurements `[seed][unit]` of the drawn seeds on the drawn units, each as often as it is drawn."""
    return statistics.fmean(value for s in seeds for n in units for value in measurements[s][n])


def test_estimate_by_hand():
    # 1 + 2 + 3 + 6 over 2 seeds of 1 + 3 measurements
    values, sizes = torch.tensor([[1, 2], [3, 6]]), torch.tensor([1, 3])
    assert bootstrap_interval(values, sizes).value == 12 / 8
    assert bootstrap_interval(values).value == 12 / 4


def test_two_seeds_on_one_unit_by_hand():
    # the mean of two draws from 0 and 8 is 0, 4, 4 or 8: 1/4 of the draws at either end
    values = torch.tensor([[0.0], [8.0]])
    assert bootstrap_interval(values) == (4.0, 0.0, 8.0)
    assert bootstrap_interval(values, confidence=0.4) == (4.0, 4.0, 4.0)  # 30% to 70%


def test_one_seed_on_two_units_by_hand():
    # sums 0 and 6 of 1 and 3 measurements: 0/2, 6/4, 6/4 or 12/6
    values, sizes = torch.tensor([[0.0, 6.0]]), torch.tensor([1, 3])
    assert bootstrap_interval(values, sizes) == (1.5, 0.0, 2.0)
    assert bootstrap_interval(values, sizes, confidence=0.4) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.9])
def test_few_seeds_and_units_have_the_quantiles_of_all_their_draws(confidence):
    # all 3^3 * 4^4 draws are equally likely; with 200,000 of them a quantile lies within 0.005 of its level
    sizes = [1, 3, 2, 1]
    generator = random.Random(0)
    measurements = [[[generator.gauss(s, 1 + n) for _ in range(sizes[n])] for n in range(4)] for s in range(3)]
    sums = torch.tensor([[sum(unit) for unit in row] for row in measurements], dtype=torch.float64)
    draws = itertools.product(itertools.product(range(3), repeat=3), itertools.product(range(4), repeat=4))
    means = sorted(looped_mean(measurements, *draw) for draw in draws)
    interval = bootstrap_interval(sums, torch.tensor(sizes), confidence=confidence, resamples=200_000)
    assert interval.value == pytest.approx(looped_mean(measurements, range(3), range(4)))
    for found, level in [(interval.low, (1 - confidence) / 2), (interval.high, (1 + confidence) / 2)]:
        least, most = means[int((level - 0.005) * len(means))], means[int((level + 0.005) * len(means))]
        assert least - 1e-12 <= found <= most + 1e-12, (level, least, found, most)


def test_interval_is_that_of_a_loop_over_draws():
    values = normal(5, 30) + normal(5, 1, seed=1) + normal(1, 30, seed=2)
    measurements = values[..., None].tolist()
    generator = random.Random(0)
    means = [
        looped_mean(measurements, generator.choices(range(5), k=5), generator.choices(range(30), k=30))
        for _ in range(4000)
    ]
    low, *_, high = statistics.quantiles(means, n=40)
    # a 2.5% quantile of 4,000 normal draws has an error of 0.042 standard deviations, the difference of two 0.06
    error = 4 * 0.06 * statistics.stdev(means)
    assert bootstrap_interval(values)[1:] == pytest.approx((low, high), abs=error)


def test_equal_measurements_leave_no_width():
    sizes = torch.tensor([3.0, 1.0, 2.0, 5.0])
    assert bootstrap_interval(0.75 * sizes.expand(5, 4), sizes) == (0.75, 0.75, 0.75)


def test_a_constant_shifts_and_a_factor_stretches():
    values, sizes = normal(4, 9), torch.arange(1, 10)
    expected = [2 * bound + 7 for bound in bootstrap_interval(values, sizes)]
    assert bootstrap_interval(2 * values + 7 * sizes, sizes) == pytest.approx(expected)


def test_the_order_of_seeds_and_units_does_not_matter():
    values, sizes = normal(4, 50), torch.arange(1, 51)
    seeds, units = torch.tensor([2, 0, 3, 1]), torch.arange(50).flip(0)
    there, back = bootstrap_interval(values, sizes), bootstrap_interval(values[seeds][:, units], sizes[units])
    assert there.value == pytest.approx(back.value)
    assert there[1:] == pytest.approx(back[1:], abs=0.1 * (there.high - there.low))  # of other draws


def test_a_unit_of_three_is_three_of_one_that_are_drawn_together():
    # how the sum of a unit is spread over its measurements is nothing to the interval, and drawing single
    # measurements instead would make it sqrt(3) narrower where those of a unit are equal
    means = normal(1, 200)
    together = bootstrap_interval(3 * means, torch.full((200,), 3))
    apart = bootstrap_interval(means.repeat_interleave(3, 1))
    assert together == pytest.approx(bootstrap_interval(means))
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(math.sqrt(3), rel=0.1)


def test_what_two_models_share_cancels_in_their_difference():
    shared, first, second = 10 * normal(1, 60), 0.1 * normal(3, 60, seed=1), 0.1 * normal(3, 60, seed=2)
    paired = bootstrap_interval((shared + first) - (shared + second))
    assert paired == pytest.approx(bootstrap_interval(first - second))


def coverage(seeds: int, units: int, of_seeds: float, of_units: float, of_noise: float) -> float:
    """Share of 400 samples of a normal two-way model, of mean 0, whose 95% interval covers 0."""
    covered = 0
    for i in range(400):
        # one draw of all, as neighbouring seeds would share a part of it
        effects = normal(seeds + 1, units + 1, seed=i)
        values = of_seeds * effects[1:, :1] + of_units * effects[:1, 1:] + of_noise * effects[1:, 1:]
        _, low, high = bootstrap_interval(values, resamples=800, seed=i)
        covered += low <= 0 <= high
    return covered / 400


def test_95_percent_of_intervals_cover_the_mean():
    # 400 samples know a share of 95% to 1.1%
    assert 0.92 <= coverage(20, 40, of_seeds=1.0, of_units=1.0, of_noise=1.0) <= 0.98
    assert 0.92 <= coverage(5, 100, of_seeds=0.1, of_units=1.0, of_noise=1.0) <= 0.99  # as is usual for accuracies


def test_five_seeds_that_vary_are_too_few():
    # with t of four degrees: the interval is 1.96 sqrt(4/5) standard errors wide, which covers 85%
    assert 0.79 <= coverage(5, 1, of_seeds=1.0, of_units=0.0, of_noise=0.0) <= 0.89


def test_noise_of_neither_is_counted_up_to_three_times():
    assert coverage(20, 40, of_seeds=0.0, of_units=0.0, of_noise=1.0) >= 0.98
    interval = bootstrap_interval(normal(50, 50))
    assert (interval.high - interval.low) / (2 * 1.96 / 50) == pytest.approx(math.sqrt(3), rel=0.1)


def test_a_single_value_says_nothing_of_its_error():
    assert bootstrap_interval(torch.tensor([[3.0]]), torch.tensor([2])) == (1.5, -math.inf, math.inf)


def test_draws_are_those_of_the_seed_alone():
    values = normal(3, 20)
    state = torch.get_rng_state()
    first = bootstrap_interval(values, seed=5)
    torch.rand(1)
    assert bootstrap_interval(values, seed=5) == first
    assert bootstrap_interval(values, seed=6) != first
    torch.set_rng_state(state)
    bootstrap_interval(values)
    assert torch.get_rng_state().equal(state)


def test_draws_do_not_depend_on_how_many_are_held_at_once(monkeypatch):
    values, sizes = normal(3, 20), torch.arange(1, 21)
    expected = bootstrap_interval(values, sizes)
    for draws in (1, 20 * 7):
        monkeypatch.setattr(resampling, "DRAWS_AT_ONCE", draws)
        assert bootstrap_interval(values, sizes) == pytest.approx(expected, rel=1e-12)


def test_arguments_are_left_as_they_are():
    values, sizes = normal(3, 4).requires_grad_(), torch.tensor([1.0, 2.0, 3.0, 4.0])
    before = values.detach().clone(), sizes.clone()
    bootstrap_interval(values, sizes)
    assert values.equal(before[0])
    assert sizes.equal(before[1])


def test_values_that_are_not_finite_are_counted():
    values = torch.zeros(2, 4)
    values[0, 1], values[1, 2], values[1, 3] = math.nan, math.inf, -math.inf
    with pytest.raises(ValueError, match="3 of the values and sizes are not finite"):
        bootstrap_interval(values)
    with pytest.raises(ValueError, match="1 of the values and sizes"):
        bootstrap_interval(torch.zeros(1, 2), torch.tensor([1.0, math.nan]))


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (0, 3), (2, 0)])
def test_a_matrix_of_values_is_needed(shape):
    with pytest.raises(ValueError, match=r"`values` has shape \("):
        bootstrap_interval(torch.zeros(shape))


def test_sizes_must_fit():
    with pytest.raises(ValueError, match=r"`sizes` has shape \(3,\), `values` \(2, 4\)"):
        bootstrap_interval(torch.zeros(2, 4), torch.ones(3))
    with pytest.raises(ValueError, match="2 of 4 sizes are not above 0"):
        bootstrap_interval(torch.zeros(2, 4), torch.tensor([0, 1, 2, -1]))


def test_figures_have_the_intervals_of_means():
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(4, 30, generator=generator, dtype=torch.float64)

    def figures(seeds, units):
        mean = seeds @ values @ units
        return torch.stack([mean, 2 * mean + 1, torch.where(mean > 10, mean, torch.inf)])

    found, doubled, never = bootstrap_figures(figures, 4, 30, resamples=8000)
    expected = bootstrap_interval(values, resamples=8000)
    assert found == pytest.approx(expected, abs=0.02)
    assert doubled == pytest.approx([2 * bound + 1 for bound in found])
    assert never == (torch.inf,) * 3


def test_a_figure_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="no number"):
        bootstrap_figures(lambda seeds, units: torch.tensor([torch.nan]), 2, 2)
