import math

import pytest
import torch

from toolkit.stats.length_control import of_like_length, without_length
from toolkit.stats.metrics import pair_accuracy


def test_like_is_up_to_a_fifth_longer_on_either_side():
    first, second = torch.tensor([10, 12, 13, 10, 10, 100]), torch.tensor([10, 10, 10, 12, 13, 12])
    assert of_like_length(first, second).tolist() == [True, True, False, True, False, False]
    assert of_like_length(first, second, 1.3).tolist() == [True, True, True, True, True, False]


def test_a_score_that_is_length_has_nothing_left():
    first, second = torch.tensor([20.0, 5.0, 80.0]), torch.tensor([10.0, 10.0, 10.0])
    gap = 3 * (first.log() - second.log())
    slope, rest = without_length(gap, first, second)
    assert slope == pytest.approx(3)
    torch.testing.assert_close(rest, torch.zeros(3, dtype=torch.float64), atol=1e-6, rtol=0)


def test_slope_and_rest_by_hand():
    # log ratios 1 and -2, gaps 1 and 1: slope (1 - 2) / (1 + 4), rests 1 + 1/5 and 1 - 2/5
    first, second = torch.tensor([math.e, 1.0]).double(), torch.tensor([1.0, math.e**2]).double()
    slope, rest = without_length(torch.ones(2), first, second)
    assert slope == pytest.approx(-0.2)
    assert rest.tolist() == pytest.approx([1.2, 0.6])


def test_swapped_sides_have_the_same_slope():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(1, 99, (2, 50), generator=generator)
    gap = torch.randn(50, generator=generator).double()
    swap = torch.rand(50, generator=generator) < 0.5
    lengths = torch.where(swap, second, first), torch.where(swap, first, second)
    swapped = without_length(torch.where(swap, -gap, gap), *lengths)
    assert swapped.slope == pytest.approx(without_length(gap, first, second).slope)


def test_what_is_right_beside_length_stays_right():
    # quality decides, and length is added to it: on longer, worse responses the score alone is wrong
    quality = torch.tensor([1.0, 1.0, 1.0, 1.0]).double()
    first, second = torch.tensor([10.0, 10.0, 40.0, 40.0]), torch.tensor([40.0, 40.0, 10.0, 10.0])
    gap = quality + 2 * (first.log() - second.log()).double()
    zero = torch.zeros(4)
    assert pair_accuracy(gap, zero).value == 0.5
    assert pair_accuracy(without_length(gap, first, second).residuals, zero).value == 1


def test_equal_lengths_leave_the_gap_and_none_is_refused():
    assert without_length(torch.ones(2), torch.ones(2), torch.ones(2)).slope == 0
    with pytest.raises(ValueError, match="A response has no length"):
        without_length(torch.ones(1), torch.zeros(1), torch.ones(1))
