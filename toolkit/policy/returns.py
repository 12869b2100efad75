r"""Returns, baselines and advantages of REINFORCE.

$$ G_t = R - \beta \sum_{u \ge t} kl_u \qquad A_t = G_t - b - \theta \cdot \varphi_{t-1} $$

A baseline leaves the expected gradient alone as long as it does not depend on the tokens whose log-probability it
multiplies. `b` comes from other responses (or earlier ones), and `theta` from earlier batches.

Shapes: `N` responses (of every process where it matters), `T` tokens, `S` scales, `F` features. A response that no
reward function scored has the reward `nan`: it enters no baseline, and its advantage is 0.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.positions import running_sum


def check_rewards(rewards: Tensor, names: Sequence[str], step: int, scored_before: bool) -> None:
    """
    Refuse rewards from which nothing, or nothing but damage, would be learnt.

    Args:
        rewards (`torch.Tensor` of shape `(N, F)`, float):
            Rewards of `N` responses by `F` functions; NaN for a response that a function did not score.
        names (`Sequence[str]` of length `F`):
            Names of the functions.
        step (`int`):
            Optimizer steps so far.
        scored_before (`bool`):
            Whether a batch without any reward may pass, since others had some.

    Raises:
        `ValueError`: If a reward is infinite, or no function has scored any response.
    """
    infinite = rewards.isinf().nonzero().tolist()
    if infinite:
        row, column = infinite[0]
        raise ValueError(
            f"Reward function '{names[column]}' returned {rewards[row, column].item()} for response {row + 1} of "
            f"{len(rewards)} after step {step}. Return a finite number, or None for a response that shall not count."
        )
    if not scored_before and bool(rewards.isnan().all()):
        raise ValueError(
            f"None of the reward functions {list(names)} has scored any response up to step {step}: nothing would be "
            "learnt. Return numbers."
        )


def reward_to_go(rewards: Tensor, kl: Tensor, completion_mask: Tensor, beta: float) -> Tensor:
    r"""
    Return of every token: the reward of the response, less the divergence that is still to come.

    $$ G_t = R - \beta \sum_{u \ge t} kl_u $$

    A token has no influence on the divergence of the tokens before it: that part adds nothing to the expected
    gradient.

    Args:
        rewards (`torch.Tensor` of shape `(N,)`, float):
            Reward of each response.
        kl (`torch.Tensor` of shape `(N, T)`, float):
            Log-probability of each token under the policy less that under the reference, in nats.
        completion_mask (`torch.Tensor` of shape `(N, T)`, bool or integer):
            Tokens up to and including the end of each response.
        beta (`float`):
            Price of a nat, in units of the reward.

    Returns:
        `torch.Tensor` of shape `(N, T)`: 0 outside the mask.
    """
    kl = kl * completion_mask
    to_go = running_sum(kl.flip(1)).flip(1)
    return (rewards[:, None] - beta * to_go).masked_fill(completion_mask == 0, 0)


def batch_mean_baseline(returns: Tensor) -> Tensor:
    """
    Mean return of the batch. It contains the response's own return, which shrinks the gradient by `(N - 1) / N`.

    Args:
        returns (`torch.Tensor` of shape `(N,)`, float):
            Return of each response.

    Returns:
        `torch.Tensor` of shape `(N,)`.
    """
    return returns.nanmean().expand_as(returns)


def leave_one_out_baseline(returns: Tensor, group_size: int) -> Tensor:
    r"""
    Mean return of the *other* responses to the same prompt.

    $$ b_i = \frac{1}{k - 1} \sum_{j \ne i} G_j $$

    Eq. (8) of https://huggingface.co/papers/2402.14740.

    Args:
        returns (`torch.Tensor` of shape `(N,)`, float):
            Return of each response; those to one prompt are neighbours.
        group_size (`int`):
            Responses to a prompt, `k`, at least 2.

    Returns:
        `torch.Tensor` of shape `(N,)`: `nan` where no other response was scored.

    Raises:
        `ValueError`: If `group_size` is below 2 or does not divide `N`.
    """
    if group_size < 2 or returns.numel() % group_size:
        raise ValueError(
            f"Leave-one-out needs at least 2 responses a prompt and whole groups; got groups of {group_size} in "
            f"{returns.numel()} responses."
        )
    groups = returns.view(-1, group_size)
    scored = ~groups.isnan()
    others = scored.sum(1, keepdim=True) - scored.int()
    return (
        ((groups.nansum(1, keepdim=True) - groups.nan_to_num()) / others)
        .view(-1)
        .masked_fill(others.view(-1) == 0, math.nan)
    )


def moving_average(previous: float | None, returns: Tensor, decay: float) -> float | None:
    r"""
    Exponential moving average of the batches' mean returns.

    $$ b \leftarrow \gamma b + (1 - \gamma) \bar G $$

    Args:
        previous (`float` or `None`):
            Average so far; `None` before the first batch.
        returns (`torch.Tensor` of shape `(N,)`, float):
            Returns of the batch.
        decay (`float`):
            Share of the old average that stays, in [0, 1].

    Returns:
        `float` or `None`: The new average, `None` before the first return. As a baseline, use it for the *next* batch.
    """
    mean = returns.nanmean().item()
    if math.isnan(mean):
        return previous
    return mean if previous is None else decay * previous + (1 - decay) * mean


class Moments(NamedTuple):
    """Number, mean and sum of squared deviations of all values seen so far."""

    size: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        """Standard deviation, with `size - 1` in the divisor; 1 before there are two different values."""
        return math.sqrt(self.squares / (self.size - 1)) if self.size > 1 and self.squares > 0 else 1.0


def update_moments(moments: Moments, values: Tensor) -> Moments:
    """
    Add a batch of values to running moments, in one pass and without cancellation.

    Chan, Golub, LeVeque (1983), "Algorithms for computing the sample variance", Am. Stat. 37, Eq. (2.1).

    Args:
        moments ([`Moments`]):
            Moments so far.
        values (`torch.Tensor` of shape `(N,)`, float):
            New values; `nan` is passed over.

    Returns:
        [`Moments`]
    """
    values = values.cpu()  # from where its sums come without waiting
    values = values[~values.isnan()].double()
    if values.numel() == 0:
        return moments
    mean, size = values.mean().item(), values.numel()
    total, gap = moments.size + size, mean - moments.mean
    squares = moments.squares + ((values - mean) ** 2).sum().item() + gap**2 * moments.size * size / total
    return Moments(total, moments.mean + gap * size / total, squares)


def prefix_features(values: Tensor, prompt_value: Tensor, completion_mask: Tensor, max_length: int) -> Tensor:
    r"""
    What is known before each token, $\varphi_{t-1}$: the state that it is chosen in.

    The products of (1, position) with (1, value at each scale). The products matter: for a reward that is a mean over
    `n` tokens, the best coefficient of the mean of the first `t` of them is `t / n`, so a constant one would add
    noise early in the response.

    Args:
        values (`torch.Tensor` of shape `(N, T, S)`, float):
            Prefix value at each scale *after* each token, times its gate weight.
        prompt_value (`torch.Tensor` of shape `(N, S)`, float):
            The same before the first token.
        completion_mask (`torch.Tensor` of shape `(N, T)`, bool or integer):
            Tokens up to and including the end of each response.
        max_length (`int`):
            Longest response, which is position 1.

    Returns:
        `torch.Tensor` of shape `(N, T, F)`, `F = 2 * (1 + S)`: 0 outside the mask. Column `t` holds the features of
        the prefix that ends *before* token `t`: it never sees the token whose log-probability it multiplies.
    """
    before = torch.cat([prompt_value[:, None], values[:, :-1]], dim=1)
    known = torch.cat([torch.ones_like(before[..., :1]), before], dim=2)
    position = torch.arange(values.size(1), device=values.device, dtype=values.dtype) / max_length
    return torch.cat([known, known * position[:, None]], dim=2) * completion_mask[..., None]


class RidgeStatistics(NamedTuple):
    """Sufficient statistics of a least-squares fit."""

    gram: Tensor  # (F, F) float64, sum of outer products of the features
    moment: Tensor  # (F,) float64, sum of features times target

    @classmethod
    def empty(cls, features: int) -> "RidgeStatistics":
        """Statistics of no sample at all, whose fit is 0."""
        return cls(torch.zeros(features, features, dtype=torch.float64), torch.zeros(features, dtype=torch.float64))


def batch_ridge_statistics(features: Tensor, targets: Tensor) -> RidgeStatistics:
    """
    Statistics of one batch; those of several processes add up.

    Args:
        features (`torch.Tensor` of shape `(M, F)`, float):
            Features of `M` tokens.
        targets (`torch.Tensor` of shape `(M,)`, float):
            What the features should explain.

    Returns:
        [`RidgeStatistics`]
    """
    features, targets = features.double(), targets.double()
    return RidgeStatistics(features.T @ features, features.T @ targets)


def decay_and_add(old: RidgeStatistics, new: RidgeStatistics, decay: float) -> RidgeStatistics:
    """
    Statistics with a new batch added and the older ones weighted down, as the policy moves away from them.

    Args:
        old ([`RidgeStatistics`]):
            Statistics so far.
        new ([`RidgeStatistics`]):
            Statistics of the batch.
        decay (`float`):
            Weight that a batch keeps when the next one comes, in [0, 1].

    Returns:
        [`RidgeStatistics`]
    """
    return RidgeStatistics(decay * old.gram + new.gram, decay * old.moment + new.moment)


def ridge_coefficients(statistics: RidgeStatistics, penalty: float) -> Tensor:
    r"""
    Least-squares coefficients, shrunk in proportion to each feature's own scale.

    $$ \theta = (X^T X + \lambda \operatorname{diag}(X^T X))^{+} X^T g $$

    So the unit of a reward model does not change the fit. The pseudo-inverse gives 0 to a feature that never varied
    from 0, and to all of them before the first batch.

    Args:
        statistics ([`RidgeStatistics`]):
            Statistics of earlier batches.
        penalty (`float`):
            The factor $\lambda$, non-negative.

    Returns:
        `torch.Tensor` of shape `(F,)`, float64.
    """
    scale = statistics.gram.diagonal().sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    # In units in which every feature has length 1, so that the pseudo-inverse does not take a small unit for a zero.
    gram = statistics.gram / scale / scale[:, None]
    inverse: Tensor = torch.linalg.pinv(gram + penalty * torch.diag(gram.diagonal()), hermitian=True)
    return inverse @ (statistics.moment / scale) / scale


def whiten(advantages: Tensor, mean: Tensor, std: Tensor, completion_mask: Tensor) -> Tensor:
    """
    Advantages less their mean, over their standard deviation, inside the mask.

    Args:
        advantages (`torch.Tensor` of shape `(N, T)`, float):
            Advantages.
        mean (`torch.Tensor` of shape `()`, float):
            Their mean over every kept token of every process.
        std (`torch.Tensor` of shape `()`, float):
            Their standard deviation, likewise.
        completion_mask (`torch.Tensor` of shape `(N, T)`, bool or integer):
            Tokens that count.

    Returns:
        `torch.Tensor` of shape `(N, T)`.
    """
    return (advantages - mean) / (std + 1e-4) * completion_mask
