import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from toolkit.reward.comparisons import (
    compared_loss,
    comparison_weights,
    list_loss,
    log_sum_exp_loss,
    plackett_luce_loss,
    reach_at,
    score_lists,
)
from toolkit.reward.losses import pairwise_logistic_loss, score_pairs

LOSS_TYPES = ["pairwise", "pointwise", "plackett_luce", "log_sum_exp"]
ALL = torch.tensor([[0, 1, 2]])


def randn(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def double(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def softplus(gap: float) -> float:
    return math.log(1 + math.exp(gap))


def sums(scores: torch.Tensor, ranks: torch.Tensor = ALL) -> dict[str, float]:
    """Every loss of one list, added up and not averaged."""
    return {
        "pairs": compared_loss(scores, comparison_weights(ranks), pairwise_logistic_loss).item(),
        "neighbours": compared_loss(scores, comparison_weights(ranks, 1), pairwise_logistic_loss).item(),
        "plackett_luce": plackett_luce_loss(scores, ranks)[0].item(),
        "log_sum_exp": log_sum_exp_loss(scores, comparison_weights(ranks)).item(),
    }


def test_three_equal_scores_by_hand():
    # 3! orders are equally likely; three even pairs; 1 and three terms of 1
    expected = {"pairs": 3 * math.log(2), "plackett_luce": math.log(6), "log_sum_exp": math.log(4)}
    assert sums(double(0, 0, 0)) == pytest.approx(expected | {"neighbours": 2 * math.log(2)})


def test_three_scores_by_hand():
    # With t = 1/e the sum over all pairs is 1 + 2t + t² = (1 + t)², the product over neighbours: the same logarithm
    found = sums(double(2, 1, 0))
    assert found == pytest.approx(
        {
            "pairs": 2 * softplus(-1) + softplus(-2),
            "neighbours": 2 * softplus(-1),
            "plackett_luce": math.log(1 + math.e**-1 + math.e**-2) + softplus(-1),
            "log_sum_exp": 2 * softplus(-1),
        }
    )
    rounded = {"pairs": 0.7535, "neighbours": 0.6265, "plackett_luce": 0.7209, "log_sum_exp": 0.6265}
    assert found == pytest.approx(rounded, abs=5e-5)


def test_weights_by_hand():
    # best to worst: the second, then the first and the last, which are tied; the third is not there
    weights = comparison_weights(torch.tensor([[1, 0, -1, 1]]))
    assert weights.tolist() == [[[0, 0, 0, 0.5], [1, 0, 0, 1], [0, 0, 0, 0], [0.5, 0, 0, 0]]]
    assert comparison_weights(torch.tensor([[0, 1, 2, 2]]), reach=1).tolist() == [
        [[0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0.5], [0, 0, 0.5, 0]]
    ]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_list_of_two_costs_what_a_pair_does(loss_type):
    scores, ranks = randn(64, 2, seed=1, dtype=torch.float32), torch.tensor([[0, 1]] * 64)
    if loss_type == "pointwise":
        expected = (F.softplus(-scores[:, 0]) + F.softplus(scores[:, 1])) / 2
    else:
        expected = F.softplus(scores[:, 1] - scores[:, 0])
    torch.testing.assert_close(list_loss(scores, ranks, loss_type), expected)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"centering": 0.3}, {"loss_type": "pointwise"}])
def test_lists_of_two_are_pairs_to_the_last_bit(options):
    pairs, lists = (
        [values.requires_grad_() for values in (randn(37, 2, dtype=torch.float32), randn(37, 2, 3).float())]
        for _ in range(2)
    )
    gate, lengths = randn(37, 2, 3).softmax(2), torch.ones(37, 2, dtype=torch.long)
    shared = {"weight": randn(37).abs().float(), "scale_weight": 0.5, **options}
    of_lists = score_lists(*lists, gate, lengths, torch.tensor([[0, 1]] * 37), **shared)
    pointwise = shared.pop("loss_type", "") == "pointwise"
    of_pairs = score_pairs(*pairs, gate, lengths, pointwise=pointwise, **shared)
    assert torch.equal(of_lists.loss, of_pairs.loss)
    assert torch.equal(of_lists.scale_losses, of_pairs.scale_losses)
    for scored in (of_lists, of_pairs):
        scored.loss.mean().backward()
    for one, other in zip(lists, pairs, strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_tie_of_two_is_half_a_pair_each_way(loss_type):
    scores, tied = double(0.7, -0.4), torch.tensor([[0, 0]])
    both = [list_loss(scores, torch.tensor([ranks]), loss_type) for ranks in ([0, 1], [1, 0])]
    found = list_loss(scores, tied, loss_type)
    if loss_type == "log_sum_exp":  # one logarithm, which is log 2 where the scores are equal and more elsewhere
        torch.testing.assert_close(list_loss(double(3, 3), tied, loss_type), double(math.log(2))[0])
        assert found > math.log(2)
    else:
        torch.testing.assert_close(found, (both[0] + both[1]) / 2)


def test_the_sum_over_pairs_is_never_less_than_one_logarithm():
    scores, ranks = 3 * randn(200, 4), torch.arange(4).expand(200, 4)
    weights = comparison_weights(ranks)
    assert (compared_loss(scores, weights, pairwise_logistic_loss) > log_sum_exp_loss(scores, weights)).all()


@pytest.mark.parametrize("k", [3, 4])
def test_likelihoods_of_all_orders_add_up_to_one(k):
    orders = torch.tensor(list(itertools.permutations(range(k))))
    loss, choices = plackett_luce_loss(randn(k).expand(len(orders), k), orders)
    torch.testing.assert_close(torch.exp(-loss).sum(), torch.tensor(1.0, dtype=torch.float64))
    assert choices.tolist() == [k - 1] * len(orders)


def test_tied_responses_are_each_chosen_among_all_that_are_left():
    # one above two that are tied, Breslow's form written out
    a, b, c = 0.3, -0.2, 0.5
    expected = math.log(math.exp(a) + math.exp(b) + math.exp(c)) - a
    expected += 2 * math.log(math.exp(b) + math.exp(c)) - b - c
    loss, choices = plackett_luce_loss(double(a, b, c), torch.tensor([[0, 1, 1]]))
    assert loss.item() == pytest.approx(expected)
    assert choices.item() == 3


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_only_a_lists_own_differences_count(loss_type):
    ranks = torch.tensor([[0, 2, 1, 2], [1, 0, -1, -1]])
    scores = randn(2, 4).requires_grad_()

    def loss_and_gradient(scores, ranks, reach=2):
        loss = list_loss(scores, ranks, loss_type, reach=None if loss_type == "plackett_luce" else reach)
        return loss.detach(), torch.autograd.grad(loss.sum(), scores)[0]

    loss, gradient = loss_and_gradient(scores, ranks)
    assert torch.equal(gradient[1, 2:], torch.zeros(2, dtype=torch.float64))  # where no response is
    if loss_type != "pointwise":  # which has a level of its own
        shifted = (scores + torch.tensor([[7.0], [-3.0]])).detach().requires_grad_()
        for found, expected in zip(loss_and_gradient(shifted, ranks), (loss, gradient), strict=True):
            torch.testing.assert_close(found, expected)
    order = torch.tensor([3, 0, 2, 1])
    moved = scores[:, order].detach().requires_grad_()
    for found, expected in zip(loss_and_gradient(moved, ranks[:, order]), (loss, gradient[:, order]), strict=True):
        torch.testing.assert_close(found, expected)
    # A list is what it is by itself, without padding and without the others of the batch
    alone = scores[1:, :2].detach().requires_grad_()
    found = loss_and_gradient(alone, ranks[1:, :2])
    torch.testing.assert_close(found[0], loss[1:])
    torch.testing.assert_close(found[1], gradient[1:, :2])


def test_losses_are_means_so_that_a_list_counts_as_much_as_a_pair():
    scores, ranks = double(0, 0, 0, 0), torch.tensor([[0, 1, 2, 3]])
    assert list_loss(scores, ranks).item() == pytest.approx(math.log(2))
    assert list_loss(scores, ranks, "plackett_luce").item() == pytest.approx(math.log(24) / 3)


def test_the_reach_grows_from_neighbours_to_all_in_equal_steps():
    assert [reach_at(progress, 3) for progress in (0, 0.3, 0.34, 0.66, 0.67, 0.99, 1, 7)] == [1, 1, 2, 2, 3, 3, 3, 3]
    assert reach_at(0.5, 1) == 1


def test_scales_weights_and_centring_of_a_list_by_hand():
    scores, scale_scores = double(1, 0, -1), randn(1, 3, 2)
    gate, lengths = torch.full((1, 3, 2), 0.5), torch.tensor([[4, 2, 3]])
    found = score_lists(
        scores, scale_scores, gate, lengths, ALL, weight=double(2.0)[0], scale_weight=0.25, centering=0.1
    )
    of_scales = [list_loss(scale_scores[..., s], ALL) for s in range(2)]
    own = (2 * softplus(-1) + softplus(-2)) / 3
    pull = ((1 + 0) ** 2 + (0 - 1) ** 2 + (1 - 1) ** 2) / 3
    expected = 2 * (own + 0.25 * (of_scales[0] + of_scales[1])) + 0.1 * pull
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.scale_losses, torch.stack(of_scales, dim=1))
