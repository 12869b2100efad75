"""Figures of ranked lists: how near the order of scores comes to the ranking, and whether the best is found."""

from typing import NamedTuple

import torch
from torch import Tensor

from .metrics import PairScores, correlation, mean_interval, summarize_pairs


class ListScores(NamedTuple):
    """What the reward trainer keeps of every list. `G` lists, `K` responses of the longest, `S` scales."""

    scores: Tensor  # (G, K) float32, mixed score; of no meaning beyond a list's last response, as all of these
    scale_scores: Tensor  # (G, K, S) float32
    gate: Tensor  # (G, S) float32, which the prompt decides
    lengths: Tensor  # (G, K) int64, response tokens
    ranks: Tensor  # (G, K) int64, 0 the best, equal ranks a tie; negative beyond a list's last response
    loss: Tensor  # (G,) float32, in nats, all terms and the weight included
    scale_losses: Tensor  # (G, S) float32, in nats, not weighted


Scores = PairScores | ListScores


def pairs_of_lists(lists: ListScores) -> PairScores:
    """
    Every two responses of a list with different ranks, as a pair with the losses of its list.

    Args:
        lists ([`ListScores`]):
            Scores of all lists.

    Returns:
        [`~toolkit.stats.metrics.PairScores`]: List by list.
    """
    ranks = lists.ranks
    preferred = (ranks[:, :, None] < ranks[:, None, :]) & (ranks >= 0)[:, :, None]
    place, better, worse = preferred.nonzero(as_tuple=True)
    return PairScores(
        chosen=lists.scores[place, better],
        rejected=lists.scores[place, worse],
        scale_chosen=lists.scale_scores[place, better],
        scale_rejected=lists.scale_scores[place, worse],
        gate=lists.gate[place],
        chosen_length=lists.lengths[place, better],
        rejected_length=lists.lengths[place, worse],
        loss=lists.loss[place],
        scale_losses=lists.scale_losses[place],
    )


def kendall_tau(scores: Tensor, ranks: Tensor) -> Tensor:
    r"""
    Kendall's rank correlation $\tau_b$ of each list's scores with its ranking.

    Args:
        scores (`torch.Tensor` of shape `(G, K)`, float):
            Scores.
        ranks (`torch.Tensor` of shape `(G, K)`, int64):
            Ranks, as in [`ListScores`].

    Returns:
        `torch.Tensor` of shape `(G,)`, float64: 1 where the order is the same, -1 where it is the opposite one; 0
        where all scores of a list are equal.
    """
    both = (ranks[:, :, None] >= 0) & (ranks[:, None, :] >= 0)
    order = torch.sign(ranks[:, None, :] - ranks[:, :, None]).double() * both
    found = torch.sign(scores[:, :, None] - scores[:, None, :]).double() * both
    untied = order.abs().sum((1, 2)) * found.abs().sum((1, 2))
    return (order * found).sum((1, 2)) / untied.sqrt().clamp(min=1)


def best_found(scores: Tensor, ranks: Tensor) -> Tensor:
    """
    Whether the response with the highest score is one of the best rank, of each list.

    Args:
        scores (`torch.Tensor` of shape `(G, K)`, float):
            Scores.
        ranks (`torch.Tensor` of shape `(G, K)`, int64):
            Ranks, as in [`ListScores`].

    Returns:
        `torch.Tensor` of shape `(G,)`, float64: 1, 0, or, where several have the highest score, the share of them.
    """
    known = scores.masked_fill(ranks < 0, -torch.inf)
    highest = known == known.amax(1, keepdim=True)
    return (highest & (ranks == 0)).sum(1).double() / highest.sum(1)


def summarize_lists(lists: ListScores, scales: list[str]) -> dict[str, float]:
    """
    Figures of a set of lists, exact over them however they were batched.

    Args:
        lists ([`ListScores`]):
            Scores of all lists.
        scales (`list[str]` of length `S`):
            Names of the scales.

    Returns:
        `dict[str, float]`: `lists`; `kendall_tau` and `top_1`, means over the lists, with `_low` and `_high`, their
        normal 95% intervals; and what [`~toolkit.stats.metrics.summarize_pairs`] says of every two responses of
        different rank, with losses over lists, and rewards and `length_correlation` over responses.
    """
    present = lists.ranks >= 0
    scores, lengths = lists.scores[present], lists.lengths[present]
    summary = summarize_pairs(pairs_of_lists(lists), scales) | {
        "lists": float(len(lists.ranks)),
        "loss": lists.loss.double().mean().item(),
        "min_reward": scores.min().item(),
        "mean_reward": scores.mean().item(),
        "max_reward": scores.max().item(),
        "length_correlation": correlation(scores, lengths),
    }
    for i, scale in enumerate(scales):
        summary[f"loss/{scale}"] = lists.scale_losses[:, i].mean().item()
        summary[f"gate/{scale}"] = lists.gate[:, i].mean().item()
    for name, of_lists in {"kendall_tau": kendall_tau, "top_1": best_found}.items():
        found = mean_interval(of_lists(lists.scores, lists.ranks))
        summary |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return summary


def summarize(scores: Scores, scales: list[str]) -> dict[str, float]:
    """Figures of a set of pairs or of lists: [`~toolkit.stats.metrics.summarize_pairs`] or [`summarize_lists`]."""
    return summarize_lists(scores, scales) if isinstance(scores, ListScores) else summarize_pairs(scores, scales)
