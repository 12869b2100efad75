import math

import numpy as np
import pytest
import torch

from toolkit.stats.intervals import difference_of_shares, wilson_interval
from toolkit.stats.metrics import (
    PairScores,
    correlation,
    effective_count,
    mean_interval,
    pair_accuracy,
    summarize_pairs,
)

SCALES = ["token", "segment", "response"]


def pair_scores(pairs: int, seed: int = 0, scales: int = 3) -> PairScores:
    """Scores with some ties, as of a reward trainer's evaluation."""
    generator = torch.Generator().manual_seed(seed)

    def scores(*shape):
        return torch.randint(-3, 4, shape, generator=generator) / 2

    return PairScores(
        chosen=scores(pairs),
        rejected=scores(pairs),
        scale_chosen=scores(pairs, scales),
        scale_rejected=scores(pairs, scales),
        gate=torch.rand(pairs, scales, generator=generator).softmax(1),
        chosen_length=torch.randint(1, 9, (pairs,), generator=generator),
        rejected_length=torch.randint(1, 9, (pairs,), generator=generator),
        loss=torch.rand(pairs, generator=generator),
        scale_losses=torch.rand(pairs, scales, generator=generator),
    )


def test_wilson_interval_of_eight_in_ten():
    # the textbook figure: 0.8 lies in (0.4902, 0.9433) at 95%
    value, low, high = wilson_interval(8, 10)
    assert value == 0.8
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)


def test_wilson_interval_of_no_success_by_hand():
    # p = 0 leaves (z^2/2n +- z^2/2n) / (1 + z^2/n): from 0 to z^2 / (n + z^2), with z = 1.959964
    interval = wilson_interval(0, 10)
    assert interval.low == pytest.approx(0.0, abs=1e-15)
    assert round(interval.high, 4) == round(3.841459 / 13.841459, 4)


@pytest.mark.parametrize("trials", [7, 10, 20, 40, 1000, 2000])  # at which rounding puts a bound past the share
def test_a_share_of_all_or_none_is_its_own_bound(trials):
    assert wilson_interval(trials, trials)[::2] == (1.0, 1.0)
    assert wilson_interval(0, trials)[:2] == (0.0, 0.0)


@pytest.mark.parametrize(("successes", "trials"), [(1, 3), (8, 10), (4.5, 9), (97, 100)])
@pytest.mark.parametrize(("confidence", "z"), [(0.95, 1.959963984540054), (0.99, 2.5758293035489004)])
def test_at_wilsons_bounds_the_share_lies_z_standard_errors_off(successes, trials, confidence, z):
    share, low, high = wilson_interval(successes, trials, confidence)
    for bound in (low, high):
        assert abs(share - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / trials))
    assert 0 <= low < share < high <= 1


def test_wilson_interval_is_symmetric_in_success_and_failure():
    hits, misses = wilson_interval(3, 10), wilson_interval(7, 10)
    assert (hits.low, hits.high) == pytest.approx((1 - misses.high, 1 - misses.low))


def test_without_a_trial_nothing_is_known():
    value, low, high = wilson_interval(0, 0)
    assert math.isnan(value)
    assert (low, high) == (0.0, 1.0)


def test_ties_count_as_half():
    accuracy = pair_accuracy(torch.tensor([2.0, 1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert (accuracy.value, accuracy.ties, accuracy.pairs) == (0.5, 2, 4)  # one win, one loss, two ties
    assert (accuracy.low, accuracy.high) == wilson_interval(2, 4)[1:]


def test_a_constant_score_has_accuracy_one_half():
    assert pair_accuracy(torch.ones(7), torch.ones(7)).value == 0.5


def test_swapping_the_sides_turns_the_accuracy_over():
    pairs = pair_scores(41)
    there, back = pair_accuracy(pairs.chosen, pairs.rejected), pair_accuracy(pairs.rejected, pairs.chosen)
    assert there.value + back.value == pytest.approx(1.0)
    assert there.ties == back.ties > 0


@pytest.mark.parametrize("side", [0, 1])
def test_a_score_that_is_not_a_number_has_no_accuracy(side):
    scores = [torch.zeros(3), torch.ones(3)]
    scores[side][1] = math.nan
    with pytest.raises(ValueError, match=r"Some scores are not numbers \(nan\)"):
        pair_accuracy(*scores)


def test_mean_interval_by_hand():
    # mean 3, standard deviation 2 (squares 4 + 0 + 4 over 2), standard error 2 / sqrt(3)
    half = 1.959963984540054 * 2 / math.sqrt(3)
    assert mean_interval(torch.tensor([1.0, 3.0, 5.0])) == pytest.approx((3.0, 3 - half, 3 + half))


def test_mean_interval_shifts_and_stretches_with_its_values():
    values = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = [2 * bound + 7 for bound in mean_interval(values, 0.9)]
    assert mean_interval(2 * values + 7, 0.9) == pytest.approx(expected)


def test_one_value_says_nothing_of_its_error():
    assert mean_interval(torch.tensor([4.0])) == (4.0, -math.inf, math.inf)


def test_correlation_by_hand():
    # deviations (-1, 0, 1) and (-1, 1, 0): product 1 over norms sqrt(2) sqrt(2)
    assert correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])) == pytest.approx(0.5)


def test_correlation_is_numpys():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 30, generator=generator)
    second = second + first / 2
    assert correlation(first, second) == pytest.approx(np.corrcoef(first.double(), second.double())[0, 1])
    lengths = torch.randint(1, 99, (30,), generator=generator)
    assert correlation(first, lengths) == pytest.approx(np.corrcoef(first.double(), lengths)[0, 1])


def test_correlation_does_not_depend_on_units():
    first, second = torch.randn(2, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert correlation(1000 * first - 5, -0.1 * second) == pytest.approx(-correlation(first, second))


@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, 7.0])
def test_a_constant_correlates_with_nothing(constant):
    varied = torch.randn(10, generator=torch.Generator().manual_seed(0))
    assert correlation(torch.full((10,), constant), varied) == 0.0
    assert correlation(varied, torch.full((10,), constant)) == 0.0


def test_summary_by_hand():
    pairs = PairScores(
        chosen=torch.tensor([2.0, 0.0]),
        rejected=torch.tensor([1.0, 3.0]),
        scale_chosen=torch.tensor([[1.0, 3.0], [2.0, 1.0]]),
        scale_rejected=torch.tensor([[0.0, 3.0], [1.0, 2.0]]),
        gate=torch.tensor([[0.25, 0.75], [0.75, 0.25]]),
        chosen_length=torch.tensor([4, 2]),
        rejected_length=torch.tensor([5, 3]),
        loss=torch.tensor([0.5, 1.5]),
        scale_losses=torch.tensor([[0.1, 0.7], [0.3, 0.9]]),
    )
    none, quarter, half, both = (wilson_interval(successes, 2) for successes in (0, 0.5, 1, 2))
    assert summarize_pairs(pairs, ["token", "response"]) == pytest.approx(
        {
            "accuracy": 0.5,
            "accuracy_low": half.low,
            "accuracy_high": half.high,
            "ties": 0,
            "pairs": 2,
            "loss": 1.0,
            "margin": -1.0,  # of 1 and -3
            "min_reward": 0.0,
            "mean_reward": 1.5,
            "max_reward": 3.0,
            "length_correlation": 0.2,  # deviations (1, -3, -1, 3) / 2 and (1, -3, 3, -1) / 2: 1 over 5
            "accuracy/longer_wins": 0.0,
            "accuracy_low/longer_wins": none.low,
            "accuracy_high/longer_wins": none.high,
            "ties/longer_wins": 0,
            "accuracy/token": 1.0,
            "accuracy_low/token": both.low,
            "accuracy_high/token": both.high,
            "ties/token": 0,
            "loss/token": 0.2,
            "margin/token": 1.0,
            "gate/token": 0.5,
            "accuracy/response": 0.25,  # a tie and a loss
            "accuracy_low/response": quarter.low,
            "accuracy_high/response": quarter.high,
            "ties/response": 1,
            "loss/response": 0.8,
            "margin/response": -0.5,
            "gate/response": 0.5,
        }
    )


@pytest.mark.parametrize("sizes", [[60], [1] * 60, [7, 20, 33]])
def test_summary_does_not_depend_on_the_batches(sizes):
    pairs = pair_scores(60)
    batches = zip(*(part.split(sizes) for part in pairs), strict=True)
    gathered = PairScores(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
    assert summarize_pairs(gathered, SCALES) == summarize_pairs(pairs, SCALES)


def test_summary_does_not_depend_on_the_order_of_pairs():
    pairs, order = pair_scores(60), torch.randperm(60, generator=torch.Generator().manual_seed(1))
    shuffled = PairScores(*(part[order] for part in pairs))
    assert summarize_pairs(shuffled, SCALES) == pytest.approx(summarize_pairs(pairs, SCALES), rel=1e-5)


@pytest.mark.parametrize("scales", [["response"], ["token", "response"], SCALES])
def test_every_scale_has_the_same_figures(scales):
    summary = summarize_pairs(pair_scores(20, scales=len(scales)), scales)
    names = {"accuracy", "accuracy_low", "accuracy_high", "ties", "loss", "margin", "gate"}
    assert {key for key in summary if key.endswith(tuple(SCALES))} == {
        f"{n}/{scale}" for n in names for scale in scales
    }


def test_pairs_of_one_prompt_that_go_together_count_as_one():
    # ten prompts of four pairs, all four right or all four wrong: ten outcomes, however often each is told
    outcomes = torch.tensor([1.0, 0.0] * 5)
    whole, prompts = outcomes.repeat_interleave(4), torch.arange(10).repeat_interleave(4)
    # design effect: 10/9 * 10 * (4/2)^2 over 40/39 * 40/4
    assert effective_count(whole, prompts) == pytest.approx(40 / ((10 / 9 * 40) / (40 / 39 * 10)))
    assert effective_count(whole, prompts) == pytest.approx(9.23, abs=0.01)


def test_pairs_that_differ_within_their_prompts_count_each():
    assert effective_count(torch.tensor([1.0, 0.0] * 6), torch.arange(6).repeat_interleave(2)) == 12
    assert effective_count(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([5, 1, 9])) == 3


def test_outcomes_that_are_all_equal_tell_as_much_as_there_are_prompts():
    assert effective_count(torch.ones(6), torch.tensor([0, 0, 0, 1, 1, 1])) == 2
    assert effective_count(torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.long)) == 1


def test_the_interval_of_clustered_pairs_is_wilsons_of_their_effective_count():
    chosen, rejected = torch.tensor([1.0, 0.0] * 5).repeat_interleave(4), torch.full((40,), 0.5)
    prompts = torch.arange(10).repeat_interleave(4)
    found = pair_accuracy(chosen, rejected, clusters=prompts)
    trials = effective_count(chosen, prompts)
    assert (found.value, found.pairs) == (0.5, 40)
    assert found[1:3] == wilson_interval(trials / 2, trials)[1:]
    assert pair_accuracy(chosen, rejected, clusters=torch.arange(40)) == pair_accuracy(chosen, rejected)


@pytest.mark.parametrize(
    ("shares", "low", "high"),
    [((56, 70, 48, 80), 0.0524, 0.3339), ((9, 10, 3, 10), 0.1705, 0.8090), ((10, 10, 0, 20), 0.6791, 1.0)],
)
def test_difference_of_shares_is_newcombes(shares, low, high):
    # Three rows of Table II of Newcombe (1998), method 10
    found = difference_of_shares(*shares)
    assert found.value == pytest.approx(shares[0] / shares[1] - shares[2] / shares[3])
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    back = difference_of_shares(*shares[2:], *shares[:2])
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))
