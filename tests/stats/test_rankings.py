import itertools
import math

import pytest
import torch

from toolkit.stats.metrics import summarize_pairs
from toolkit.stats.rankings import ListScores, best_found, kendall_tau, pairs_of_lists, summarize_lists


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tau_by_counting(scores: list[float], ranks: list[int]) -> float:
    """Kendall's tau-b over every two items, one after the other."""
    agree = disagree = tied_scores = tied_ranks = 0
    for (one, first), (other, second) in itertools.combinations(zip(scores, ranks, strict=True), 2):
        tied_scores += one == other
        tied_ranks += first == second
        if one != other and first != second:
            agree += (one > other) == (first < second)
            disagree += (one > other) != (first < second)
    pairs = math.comb(len(scores), 2)
    below = (pairs - tied_scores) * (pairs - tied_ranks)
    return (agree - disagree) / math.sqrt(below) if below else 0.0


def test_kendalls_tau_by_hand():
    scores = torch.tensor([[3.0, 2, 1], [1, 2, 3], [2, 3, 1], [0, 0, 0], [5, 1, -9], [2, 2, 1]])
    ranks = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, -1], [0, 1, 2]])
    expected = torch.tensor([1, -1, 1 / 3, 0, 1, 2 / math.sqrt(6)], dtype=torch.float64)
    torch.testing.assert_close(kendall_tau(scores, ranks), expected)


def test_kendalls_tau_is_that_of_counting():
    generator = torch.Generator().manual_seed(0)
    scores, ranks = (torch.randint(0, most, (50, 6), generator=generator) for most in (5, 4))
    expected = [tau_by_counting(*row) for row in zip(scores.tolist(), ranks.tolist(), strict=True)]
    assert kendall_tau(scores.float(), ranks).tolist() == pytest.approx(expected)


def test_the_best_by_hand():
    scores = torch.tensor([[3.0, 2, 1], [3, 2, 1], [2, 2, 1], [2, 2, 1], [0, 1, 9]])
    ranks = torch.tensor([[0, 1, 2], [1, 0, 2], [0, 1, 2], [0, 0, 1], [1, 0, -1]])
    assert best_found(scores, ranks).tolist() == [1, 0, 0.5, 1, 1]


def lists_of(scores, ranks) -> ListScores:
    count, k = scores.shape
    lengths = torch.arange(count * k).view(count, k)
    scale_scores = torch.stack([scores, -scores], dim=2)
    return ListScores(scores, scale_scores, randn(count, 2).softmax(1), lengths, ranks, randn(count), randn(count, 2))


def test_pairs_of_lists_by_hand():
    pairs = pairs_of_lists(lists_of(torch.tensor([[1.0, 2, 3], [4, 5, 6]]), torch.tensor([[1, 0, 1], [0, 1, -1]])))
    assert pairs.chosen.tolist() == [2, 2, 4]
    assert pairs.rejected.tolist() == [1, 3, 5]
    assert pairs.scale_rejected.tolist() == [[1, -1], [3, -3], [5, -5]]
    assert pairs.chosen_length.tolist() == [1, 1, 3]


def test_lists_of_two_have_the_figures_of_pairs():
    lists = lists_of(randn(40, 2), torch.tensor([[0, 1]] * 40))
    found, expected = summarize_lists(lists, ["a", "b"]), summarize_pairs(pairs_of_lists(lists), ["a", "b"])
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert found.keys() - expected.keys() == {
        "lists", *(f"{name}{end}" for name in ("kendall_tau", "top_1") for end in ("", "_low", "_high"))
    }  # fmt: skip
    assert found["top_1"] == found["accuracy"]
    assert found["kendall_tau"] == pytest.approx(2 * found["accuracy"] - 1)


def test_figures_count_every_response_and_every_list_once():
    lists = lists_of(torch.tensor([[3.0, 2, 1], [0, 4, 9]]), torch.tensor([[0, 1, 2], [0, 1, -1]]))
    found = summarize_lists(lists, ["a", "b"])
    assert (found["lists"], found["pairs"], found["mean_reward"], found["max_reward"]) == (2, 4, 2.0, 4.0)
    assert found["accuracy"] == 0.75
    assert (found["kendall_tau"], found["top_1"]) == (0, 0.5)
    assert found["loss"] == pytest.approx(lists.loss.mean().item())
    assert found["gate/b"] == pytest.approx(lists.gate[:, 1].mean().item())
