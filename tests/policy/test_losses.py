import math

import pytest
import torch

from toolkit.policy.losses import clipped_policy_loss, reinforce_loss


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities with gradient, advantages and the mask of four responses of up to six tokens."""
    mask = torch.arange(6) < torch.tensor([6, 1, 3, 5])[:, None]
    return -randn(4, 6).abs().requires_grad_(), randn(4, 6, seed=1), mask


def test_reinforce_loss_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0, -9.0], [-0.5, -9.0, -9.0]])
    advantages = torch.tensor([[3.0, -1.0, 9.0], [4.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    # -((-3 + 2) + (-2)) / 2: summed over tokens, averaged over responses
    torch.testing.assert_close(reinforce_loss(logprobs, advantages, mask), torch.tensor(1.5))
    torch.testing.assert_close(reinforce_loss(logprobs, advantages, mask.bool()), torch.tensor(1.5))


def test_the_gradient_at_a_token_is_its_advantage_over_the_number_of_responses():
    logprobs, advantages, mask = random_batch()
    (gradient,) = torch.autograd.grad(reinforce_loss(logprobs, advantages, mask), logprobs)
    torch.testing.assert_close(gradient, -advantages * mask / 4)


def test_no_gradient_flows_into_the_advantages():
    logprobs, advantages, mask = random_batch()
    advantages.requires_grad_()
    losses = (
        reinforce_loss(logprobs, advantages, mask),
        clipped_policy_loss(logprobs, logprobs.detach(), advantages, mask, 0.2, 0.2).loss,
    )
    for loss in losses:
        assert torch.autograd.grad(loss, advantages, allow_unused=True) == (None,)


def test_padding_changes_no_loss():
    logprobs, advantages, mask = random_batch()
    padded = [
        torch.nn.functional.pad(part, (0, 3), value=value) for part, value in ((logprobs, -7.0), (advantages, 5.0))
    ]
    wider = torch.nn.functional.pad(mask, (0, 3), value=False)
    old = logprobs.detach() + 0.3 * randn(4, 6, seed=2)
    torch.testing.assert_close(reinforce_loss(*padded, wider), reinforce_loss(logprobs, advantages, mask))
    torch.testing.assert_close(
        clipped_policy_loss(padded[0], torch.nn.functional.pad(old, (0, 3)), padded[1], wider, 0.2, 0.2).loss,
        clipped_policy_loss(logprobs, old, advantages, mask, 0.2, 0.2).loss,
    )


def test_clipped_loss_by_hand():
    # ratios 1/2 and 2 with both signs of the advantage, bounds 0.8 and 1.3; padding last
    logprobs = torch.log(torch.tensor([[0.25, 0.25, 0.5, 0.5, 0.5]]))
    old = torch.log(torch.tensor([[0.5, 0.5, 0.25, 0.25, 0.25]]))
    advantages = torch.tensor([[1.0, -3.0, 1.0, -1.0, 10.0]])
    loss, clipped = clipped_policy_loss(logprobs, old, advantages, torch.tensor([[1, 1, 1, 1, 0]]), 0.2, 0.3)
    # the worse of the two: 0.5 stays, -3 (0.8) for -3 (0.5), 1.3 for 2, -2 stays
    torch.testing.assert_close(loss, torch.tensor(-(0.5 - 2.4 + 1.3 - 2.0)))
    assert clipped.tolist() == [[False, True, True, False, False]]


@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_a_ratio_beyond_all_numbers_leaves_the_gradient_one(advantage):
    logprobs = torch.tensor([[-1.0]], requires_grad=True)
    options = (torch.tensor([[-106.0]]), torch.tensor([[advantage]]), torch.ones(1, 1), 0.2, 0.2)
    loss = clipped_policy_loss(logprobs, *options).loss
    assert loss.isfinite()
    assert torch.autograd.grad(loss, logprobs)[0].isfinite().all()


def test_the_loss_is_averaged_over_responses():
    logprobs, old = torch.log(torch.tensor([[0.5], [0.4]])), torch.log(torch.tensor([[0.5], [0.5]]))
    # ratios 1 and 0.8, advantages 3 and 5: -(3 + 4) / 2
    loss = clipped_policy_loss(logprobs, old, torch.tensor([[3.0], [5.0]]), torch.ones(2, 1), 0.5, 0.5).loss
    torch.testing.assert_close(loss, torch.tensor(-3.5))


def test_before_the_policy_moves_the_clipped_gradient_is_that_of_reinforce():
    logprobs, advantages, mask = random_batch()
    loss, clipped = clipped_policy_loss(logprobs, logprobs.detach(), advantages, mask, 0.2, 0.28)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    (expected,) = torch.autograd.grad(reinforce_loss(logprobs, advantages, mask), logprobs)
    torch.testing.assert_close(gradient, expected)
    assert not clipped.any()


def test_clipped_tokens_are_those_without_gradient():
    logprobs, advantages, mask = random_batch()
    old = logprobs.detach() + 0.5 * randn(4, 6, seed=2)
    loss, clipped = clipped_policy_loss(logprobs, old, advantages, mask, 0.2, 0.28)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert 0 < clipped.sum() < mask.sum()
    assert torch.equal(gradient == 0, clipped | ~mask)
    ratio = torch.exp(logprobs.detach() - old)
    torch.testing.assert_close(gradient, -ratio * advantages * mask * ~clipped / 4)


def test_wide_bounds_leave_the_importance_weighted_loss():
    logprobs, advantages, mask = random_batch()
    old = logprobs.detach() + 0.5 * randn(4, 6, seed=2)
    loss, clipped = clipped_policy_loss(logprobs, old, advantages, mask, 1.0, 1e9)
    torch.testing.assert_close(loss, -(torch.exp(logprobs - old) * advantages * mask).sum() / 4)
    assert not clipped.any()


def test_the_ratio_is_of_a_token_and_not_of_the_response():
    # 512 tokens that each drifted by 0.02 nats: every one is inside the bounds, their product is exp(10.24)
    logprobs, ones = torch.full((1, 512), -1.0), torch.ones(1, 512)
    loss, clipped = clipped_policy_loss(logprobs, logprobs - 0.02, ones, ones, 0.2, 0.2)
    torch.testing.assert_close(loss, torch.tensor(-512 * math.exp(0.02)))
    assert not clipped.any()


def test_one_advantage_a_response_is_refused_even_where_it_would_broadcast():
    with pytest.raises(ValueError, match=r"must have one shape, got \(3, 3\), \(3,\) and \(3, 3\)"):
        reinforce_loss(torch.zeros(3, 3), torch.zeros(3), torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"must have one shape, got \(3, 3\), \(3,\) and \(3, 3\)"):
        clipped_policy_loss(torch.zeros(3, 3), torch.zeros(3, 3), torch.zeros(3), torch.ones(3, 3), 0.2, 0.2)


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"got \(2, 3\), \(2, 3\) and \(2, 1\)"):
        reinforce_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 1))
