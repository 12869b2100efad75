"""The gradient of the policy where another program samples whose probabilities are a little off, exactly.

`python -m tests.policy.test_mismatch` prints bias and variance without and with the correction.
"""

import math

import pytest
import torch
from torch import Tensor

from tests.policy.test_gradient import (
    World,
    advantages_of,
    all_batches,
    arbitrary_world,
    batch_gradients,
    exact_gradient,
    response_probabilities,
    token_logprobs,
    valued_world,
)
from toolkit.policy.losses import sampling_weights

CORRECTIONS = {
    "none": None,
    "token, cap 3": (3.0, False),
    "response, cap 3": (3.0, True),
    "response, no cap": (math.inf, True),
}


def wrong_sampler(world: World, nats: float, seed: int = 7) -> World:
    """The same world with a policy whose log-probabilities are so far off, on the mean over the tokens it chooses."""
    right = world.logits.log_softmax(1)
    noise = torch.randn(right.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low, high = 0.0, 10.0
    for _ in range(50):
        size = (low + high) / 2
        wrong = (right + size * noise).log_softmax(1)
        off = ((wrong - right).abs() * right.exp()).sum(1).mean()
        low, high = (size, high) if off < nats else (low, size)
    return world._replace(logits=wrong)


def weights_of(correction: tuple[float, bool] | None, sampler: World, world: World) -> Tensor:
    """Weight `(Y, T)` of every token of every response."""
    if correction is None:
        return torch.ones(world.mask.shape, dtype=torch.float64)
    logprobs, sampled = token_logprobs(world.logits, world), token_logprobs(sampler.logits, world)
    return sampling_weights(logprobs, sampled, world.mask, *correction)


def bias_and_variance(correction, nats: float, world: World, baseline: str = "leave_one_out") -> tuple[float, float]:
    """Of the gradient on all batches that the wrong sampler draws: relative to the exact one's length, and trace."""
    sampler, (batches, _) = wrong_sampler(world, nats), all_batches(world)
    weights = weights_of(correction, sampler, world)
    gradients = batch_gradients(advantages_of(baseline, False, world) * weights[batches], world)
    probabilities = response_probabilities(sampler)[batches].prod(1)
    mean, exact = probabilities @ gradients, exact_gradient(world).flatten()
    variance = probabilities @ (gradients - mean).square().sum(1)
    return ((mean - exact).norm() / exact.norm()).item(), variance.item()


def mismatch_table(world: World) -> str:
    lines = [f"{'baseline':<15}{'nats a token':>12}  " + "".join(f"{name:>24}" for name in CORRECTIONS)]
    for baseline in ("none", "leave_one_out"):
        for nats in (0.01, 0.03, 0.1):
            found = [bias_and_variance(each, nats, world, baseline) for each in CORRECTIONS.values()]
            cells = [f"{100 * bias:>13.2f}% {variance:>9.3f}" for bias, variance in found]
            lines.append(f"{baseline:<15}{nats:>12}  " + "".join(cells))
    return "\n".join(lines)


def test_weights_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0, -9.0], [-1.0, -1.0, -1.0]]).requires_grad_()
    sampled = torch.tensor([[-1.5, -1.0, -1.0], [-1.0, torch.nan, -3.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    tokens = sampling_weights(logprobs, sampled, mask, 3.0, whole_response=False)
    assert not tokens.requires_grad
    # exp(0.5), exp(-1), and 1 on padding and where nothing is known; exp(2) is more than 3
    torch.testing.assert_close(tokens, torch.tensor([[math.exp(0.5), math.exp(-1), 1.0], [1.0, 1.0, 3.0]]))
    whole = sampling_weights(logprobs, sampled, mask, 3.0, whole_response=True)
    torch.testing.assert_close(whole, torch.tensor([[math.exp(-0.5)] * 3, [3.0] * 3]))


@pytest.mark.parametrize("whole_response", [False, True])
def test_the_same_probabilities_weigh_nothing(whole_response):
    logprobs = -torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    weights = sampling_weights(logprobs, logprobs.clone(), torch.ones(3, 4), 3.0, whole_response)
    assert torch.equal(weights, torch.ones(3, 4))


def test_weights_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="must have one shape"):
        sampling_weights(torch.zeros(2, 3), torch.zeros(2), torch.ones(2, 3), 3.0, True)


@pytest.mark.parametrize("baseline", ["none", "moving_average", "leave_one_out"])
@pytest.mark.parametrize("nats", [0.01, 0.1, 0.5])
def test_the_whole_responses_weight_leaves_the_gradient_exact(nats, baseline):
    bias, _ = bias_and_variance((math.inf, True), nats, arbitrary_world(), baseline)
    assert bias < 1e-10


@pytest.mark.parametrize("make", [arbitrary_world, valued_world])
@pytest.mark.parametrize("nats", [0.01, 0.03, 0.1])
def test_the_truncated_weight_has_far_less_bias_than_none(make, nats):
    without, _ = bias_and_variance(None, nats, make())
    whole, _ = bias_and_variance((1.25, True), nats, make())  # so low that it truncates some
    token, _ = bias_and_variance((3.0, False), nats, make())
    assert whole < without / 4
    assert token < without


if __name__ == "__main__":
    for make in (arbitrary_world, valued_world):
        print(f"{make.__name__}: bias, and trace of the covariance\n{mismatch_table(make())}\n")
