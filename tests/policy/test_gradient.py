"""The gradient of the policy, exactly: every response, and every batch of two responses, is enumerated.

`python -m tests.policy.test_gradient` prints how much each baseline lets the gradient vary.
"""

from itertools import product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from toolkit.data.positions import last_kept
from toolkit.policy.losses import clipped_policy_loss, reinforce_loss
from toolkit.policy.returns import (
    batch_mean_baseline,
    batch_ridge_statistics,
    leave_one_out_baseline,
    moving_average,
    prefix_features,
    reward_to_go,
    ridge_coefficients,
)
from toolkit.reward.scales import scale_prefix_values

EOS, VOCABULARY, BATCH = 2, 3, 2
BASELINES = ["none", "batch_mean", "moving_average", "leave_one_out"]
UNBIASED = ["none", "moving_average", "leave_one_out"]


class World(NamedTuple):
    """All responses to one prompt. `Y` responses, `T` tokens of the longest, `P` prefixes that a token can follow."""

    logits: Tensor  # (P, 3) float64, the policy's parameters
    reference: Tensor  # (P, 3) float64, those of the reference
    tokens: Tensor  # (Y, T) int64
    states: Tensor  # (Y, T) int64, row of the prefix that each token follows
    mask: Tensor  # (Y, T) bool
    rewards: Tensor  # (Y,) float64
    values: Tensor  # (Y, T, 3) float64, prefix value of each scale after each token
    prompt_value: Tensor  # (3,) float64, the same before the first token
    beta: float


def all_responses(max_length: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """Tokens, states and mask of every response, and the number of states."""
    prefixes = [prefix for length in range(max_length) for prefix in product(range(EOS), repeat=length)]
    row = {prefix: i for i, prefix in enumerate(prefixes)}
    ended = [(*prefix, EOS) for prefix in prefixes]
    cut_off = [(*prefix, token) for prefix in prefixes if len(prefix) == max_length - 1 for token in range(EOS)]
    tokens, states, mask = [], [], []
    for response in ended + cut_off:
        padding = [0] * (max_length - len(response))
        tokens.append([*response, *padding])
        states.append([*(row[response[:t]] for t in range(len(response))), *padding])
        mask.append([t < len(response) for t in range(max_length)])
    return torch.tensor(tokens), torch.tensor(states), torch.tensor(mask), len(prefixes)


def arbitrary_world(seed: int = 0, max_length: int = 3) -> World:
    """A policy, a reference, rewards and prefix values that have nothing to do with each other."""
    tokens, states, mask, prefixes = all_responses(max_length)
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # A table by prefix and token, so that equal prefixes have equal values whatever follows.
    values = randn(prefixes, VOCABULARY, 3)[states, tokens] * mask[..., None]
    return World(
        randn(prefixes, 3), randn(prefixes, 3), tokens, states, mask, 3 * randn(len(tokens)), values, randn(3), 0.3
    )


def valued_world(seed: int = 0, max_length: int = 3) -> World:
    """A reward of which the prefix values know all but a part of the response as a whole; mostly token-level."""
    world = arbitrary_world(seed, max_length)
    generator = torch.Generator().manual_seed(seed + 1)
    table = torch.randn(3, *world.logits.shape, generator=generator, dtype=torch.float64)
    token, segment, whole = table[:, world.states, world.tokens]
    no_boundary = torch.zeros_like(world.mask)
    values = scale_prefix_values(3 * token, segment, whole, no_boundary, no_boundary, world.mask)
    unknown = torch.randn(len(values), generator=generator, dtype=torch.float64)
    return world._replace(
        logits=world.logits / 3,
        rewards=values[torch.arange(len(values)), last_kept(world.mask)].sum(1) + unknown,
        values=values,
        prompt_value=torch.zeros(3, dtype=torch.float64),
    )


def token_logprobs(logits: Tensor, world: World) -> Tensor:
    """Log-probability `(Y, T)` of every token of every response; 0 after its end."""
    return logits.log_softmax(1)[world.states, world.tokens] * world.mask


def divergence(world: World) -> Tensor:
    """What every token costs, `(Y, T)`: the policy's log-probability less the reference's."""
    return token_logprobs(world.logits, world) - token_logprobs(world.reference, world)


def expected_return(logits: Tensor, world: World) -> Tensor:
    """E[R] - beta KL, summed over all responses. No sampling, no log-derivative trick."""
    logprobs = token_logprobs(logits, world)
    gap = (logprobs - token_logprobs(world.reference, world)).sum(1)
    return (logprobs.sum(1).exp() * (world.rewards - world.beta * gap)).sum()


def exact_gradient(world: World) -> Tensor:
    logits = world.logits.clone().requires_grad_()
    return torch.autograd.grad(expected_return(logits, world), logits)[0]


def response_probabilities(world: World) -> Tensor:
    return token_logprobs(world.logits, world).sum(1).exp()


def all_batches(world: World) -> tuple[Tensor, Tensor]:
    """Every batch of two responses `(Y * Y, 2)`, and its probability `(Y * Y,)`."""
    batches = torch.cartesian_prod(*[torch.arange(len(world.tokens))] * BATCH)
    return batches, response_probabilities(world)[batches].prod(1)


def earlier_batch(world: World, size: int = 400) -> Tensor:
    """Responses `(size,)` drawn before: neither the moving average nor the prefix fit may see the batch itself."""
    return response_probabilities(world).multinomial(size, True, generator=torch.Generator().manual_seed(5))


def baseline_of(name: str, returns: Tensor, world: World) -> Tensor:
    """Baseline `(batches, N)` of whole returns `(batches, N)`."""
    if name == "batch_mean":
        return torch.stack([batch_mean_baseline(batch) for batch in returns])
    if name == "leave_one_out":
        return leave_one_out_baseline(returns.flatten(), returns.size(1)).view_as(returns)
    if name == "moving_average":
        whole = reward_to_go(world.rewards, divergence(world), world.mask, world.beta)[:, 0]
        earlier = whole[earlier_batch(world)]
        average = moving_average(moving_average(None, earlier[:200], decay=0.9), earlier[200:], decay=0.9)
        return torch.full_like(returns, average)
    return torch.zeros_like(returns)


def features_of(world: World) -> Tensor:
    """Features `(Y, T, 8)` of the prefix before every token."""
    prompt_value = world.prompt_value.expand(len(world.tokens), 3)
    return prefix_features(world.values, prompt_value, world.mask, world.tokens.size(1))


def fit_prefix(returns: Tensor, baseline: Tensor, features: Tensor, mask: Tensor) -> Tensor:
    statistics = batch_ridge_statistics(features[mask], (returns - baseline[..., None])[mask])
    return ridge_coefficients(statistics, penalty=0.01)


def advantages_of(name: str, prefix: bool, world: World) -> Tensor:
    """Advantages `(batches, N, T)` in every batch."""
    batches, _ = all_batches(world)
    to_go = reward_to_go(world.rewards, divergence(world), world.mask, world.beta)
    baseline = baseline_of(name, to_go[:, 0][batches], world)
    advantages = to_go[batches] - baseline[..., None]
    if prefix:
        features, earlier = features_of(world), earlier_batch(world).view(-1, BATCH)
        theta = fit_prefix(
            to_go[earlier], baseline_of(name, to_go[:, 0][earlier], world), features[earlier], world.mask[earlier]
        )
        advantages = advantages - (features @ theta)[batches]
    return advantages * world.mask[batches]


def expected_loss_gradient(advantages: Tensor, world: World) -> Tensor:
    """Minus the gradient of the loss, averaged over all batches by autograd through the loss that is trained."""
    logits = world.logits.clone().requires_grad_()
    logprobs = token_logprobs(logits, world)
    batches, probabilities = all_batches(world)
    losses = [
        probability * reinforce_loss(logprobs[batch], advantage, world.mask[batch])
        for batch, probability, advantage in zip(batches, probabilities, advantages, strict=True)
    ]
    return -torch.autograd.grad(torch.stack(losses).sum(), logits)[0]


def batch_gradients(advantages: Tensor, world: World) -> Tensor:
    """The estimate `(batches, 3 P)` of every single batch, from the score function of each token."""
    score = torch.nn.functional.one_hot(world.tokens, VOCABULARY) - world.logits.softmax(1)[world.states]
    place = torch.nn.functional.one_hot(world.states, len(world.logits)).double()
    batches, _ = all_batches(world)
    weighted = advantages[..., None] * (score * world.mask[..., None])[batches]
    return torch.einsum("bntv,bntp->bpv", weighted, place[batches]).flatten(1) / BATCH


def total_variance(name: str, prefix: bool, world: World) -> float:
    """Trace of the covariance of the estimate over all batches."""
    gradients = batch_gradients(advantages_of(name, prefix, world), world)
    _, probabilities = all_batches(world)
    mean = probabilities @ gradients
    return (probabilities @ (gradients - mean).square().sum(1)).item()


def variance_table(world: World) -> str:
    lines = [f"{'baseline':<16}{'alone':>10}{'with prefix':>14}{'ratio':>8}"]
    for name in BASELINES:
        alone, with_prefix = (total_variance(name, prefix, world) for prefix in (False, True))
        lines.append(f"{name:<16}{alone:>10.4f}{with_prefix:>14.4f}{with_prefix / alone:>8.3f}")
    return "\n".join(lines)


def test_every_response_is_there_once():
    # 1 of one token, 2 of two, 4 of three with an end and 8 without
    world = arbitrary_world()
    assert world.tokens.shape == (15, 3)
    assert len(world.logits) == 7
    torch.testing.assert_close(response_probabilities(world).sum(), torch.tensor(1.0, dtype=torch.float64))


def test_the_exact_gradient_is_the_slope_of_the_expected_return():
    world, step = arbitrary_world(), 1e-5
    slope = torch.zeros_like(world.logits)
    for index in product(range(len(world.logits)), range(VOCABULARY)):
        nudge = torch.zeros_like(slope)
        nudge[index] = step
        up, down = (expected_return(world.logits + sign * nudge, world) for sign in (1, -1))
        slope[index] = (up - down) / (2 * step)
    torch.testing.assert_close(exact_gradient(world), slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("prefix", [False, True], ids=["alone", "with prefix"])
@pytest.mark.parametrize("name", UNBIASED)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_expected_gradient_is_exact(name, prefix, seed):
    world = arbitrary_world(seed)
    gradient = expected_loss_gradient(advantages_of(name, prefix, world), world)
    torch.testing.assert_close(gradient, exact_gradient(world))


@pytest.mark.parametrize("prefix", [False, True], ids=["alone", "with prefix"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_batch_mean_shrinks_the_whole_gradient_by_its_own_share(prefix, seed):
    # The mean holds a response's own whole return over N. E[(R - beta sum_u kl_u) grad log pi(y)] is the exact
    # gradient, divergence included: a token's return leaves out the divergence before it, but that part has
    # expectation 0, as has the gradient of the price's own logarithm. So what is lost is 1 / N of all of it.
    world = arbitrary_world(seed)
    gradient = expected_loss_gradient(advantages_of("batch_mean", prefix, world), world)
    torch.testing.assert_close(gradient, exact_gradient(world) * (BATCH - 1) / BATCH)


@pytest.mark.parametrize("name", BASELINES)
def test_single_batches_give_the_gradient_of_the_loss(name):
    # the arithmetic behind the variances, against autograd through both losses
    world = arbitrary_world()
    advantages, (batches, _) = advantages_of(name, True, world), all_batches(world)
    gradients = batch_gradients(advantages, world)
    for i in range(0, len(batches), 31):
        logits = world.logits.clone().requires_grad_()
        logprobs, mask = token_logprobs(logits, world)[batches[i]], world.mask[batches[i]]
        on_policy = reinforce_loss(logprobs, advantages[i], mask)
        first_step = clipped_policy_loss(logprobs, logprobs.detach(), advantages[i], mask, 0.2, 0.2).loss
        for loss in (on_policy, first_step):
            (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
            torch.testing.assert_close(gradients[i], -gradient.flatten())


def test_a_baseline_that_sees_the_token_it_judges_is_biased():
    # the enumeration can tell: the same prefix values, one token later, pull the expected gradient away
    world = arbitrary_world()
    late = prefix_features(world.values.roll(-1, 1), world.values[:, 0], world.mask, 3)
    theta = torch.ones(8, dtype=torch.float64)
    for features, is_exact in ((features_of(world), True), (late, False)):
        batches, _ = all_batches(world)
        advantages = advantages_of("none", False, world) - (features @ theta)[batches]
        gradient = expected_loss_gradient(advantages, world)
        assert torch.allclose(gradient, exact_gradient(world)) is is_exact


@pytest.mark.parametrize("name", BASELINES)
def test_the_prefix_baseline_takes_away_variance(name):
    world = valued_world()
    assert total_variance(name, True, world) < total_variance(name, False, world)


def test_credit_for_earlier_divergence_has_no_expectation():
    # the return leaves it out: a token has no influence on what the tokens before it cost
    world = arbitrary_world()
    batches, _ = all_batches(world)
    whole = (world.rewards - world.beta * divergence(world).sum(1))[:, None] * world.mask
    to_go = reward_to_go(world.rewards, divergence(world), world.mask, world.beta)
    assert not torch.allclose(whole, to_go)
    torch.testing.assert_close(expected_loss_gradient(whole[batches], world), exact_gradient(world))


def test_variance_of_every_baseline():
    table = variance_table(valued_world())
    print(f"\n{table}")
    assert len(table.splitlines()) == 1 + len(BASELINES)


if __name__ == "__main__":
    print(variance_table(valued_world()))
