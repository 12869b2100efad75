import pytest
import torch

from toolkit.policy.reductions import mean_and_std, reduced_sums

VALUES = torch.tensor([[1.0, 3.0, 100.0], [5.0, 100.0, 100.0]])
MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])


def test_sums_of_kept_values_by_hand():
    assert reduced_sums(MASK, VALUES, VALUES**2).tolist() == [3.0, 9.0, 35.0]


def test_mean_and_standard_deviation_by_hand():
    mean, std = mean_and_std(VALUES, MASK)
    assert mean.item() == 3.0
    assert std.item() == pytest.approx((8 / 3) ** 0.5)  # of 1, 3 and 5


def test_nothing_kept_has_no_mean_and_no_deviation():
    assert [value.item() for value in mean_and_std(VALUES, torch.zeros_like(MASK))] == [0.0, 0.0]
