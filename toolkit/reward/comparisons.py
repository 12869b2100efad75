"""Losses of ranked lists: which responses a ranking compares, and what their scores cost. In nats, never reduced.

Shapes: `G` lists, `K` responses of the longest, `S` scales. Ranks are dense: 0 is the best, equal ranks are a tie, and
beyond a list's last response they are negative. With a list of two every loss here is that of a pair.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..stats.rankings import ListScores
from .losses import centering_penalty, pairwise_logistic_loss, pointwise_logistic_loss

PairLoss = Callable[[Tensor, Tensor], Tensor]


def comparison_weights(ranks: Tensor, reach: int | None = None) -> Tensor:
    """
    Which two responses of a list its ranking compares; a tie is half a pair each way.

    Args:
        ranks (`torch.Tensor` of shape `(G, K)`, int64):
            Ranks.
        reach (`int`, *optional*):
            Most steps between the ranks of two that are compared: 1 compares neighbours alone. All by default.

    Returns:
        `torch.Tensor` of shape `(G, K, K)`, float32: At `[g, i, j]` 1 where `i` is preferred to `j`, ½ where the two
        are tied, 0 elsewhere.
    """
    present = ranks >= 0
    steps = ranks[:, None, :] - ranks[:, :, None]
    preferred = steps > 0 if reach is None else (steps > 0) & (steps <= reach)
    tied = (steps == 0) & ~torch.eye(ranks.size(1), dtype=torch.bool, device=ranks.device)
    return (preferred + tied / 2) * (present[:, :, None] & present[:, None, :])


def reach_at(progress: float, most: int) -> int:
    """
    A reach that grows in equal steps, after the skip-wise training of RankList
    (https://huggingface.co/papers/2508.09826).

    Args:
        progress (`float`):
            Share of the time over which it grows that has passed.
        most (`int`):
            Reach from the end of that time on.

    Returns:
        `int`: From 1 to `most`.
    """
    return min(most, 1 + int(progress * most))


def compared_loss(scores: Tensor, weights: Tensor, loss: PairLoss) -> Tensor:
    r"""
    Weighted sum of a pair's loss over the comparisons of each list, $\sum_{i, j} w_{ij}\, \ell(u_i, u_j)$.

    Args:
        scores (`torch.Tensor` of shape `(*, G, K)`, float):
            Scores; what they are beyond a list's last response does not matter, as long as it is finite.
        weights (`torch.Tensor` of shape `(G, K, K)`, float):
            From [`comparison_weights`].
        loss (`Callable`):
            Loss of preferred and other scores of one shape, such as
            [`~toolkit.reward.losses.pairwise_logistic_loss`].

    Returns:
        `torch.Tensor` of shape `(*, G)`.
    """
    better, worse = torch.broadcast_tensors(scores[..., :, None], scores[..., None, :])
    return (weights * loss(better, worse)).sum((-2, -1))


def log_sum_exp_loss(scores: Tensor, weights: Tensor) -> Tensor:
    r"""
    One logistic loss for all comparisons of a list, in which the worst mistake says most.

    $$ \log \Big( 1 + \sum_{i, j} w_{ij}\, e^{u_j - u_i} \Big) $$

    It is at most the sum of the pairs' losses (the product of all $1 + e^{u_j - u_i}$ has these terms and more), after
    the joint likelihood of RankList (https://huggingface.co/papers/2508.09826).

    Args:
        scores (`torch.Tensor` of shape `(*, G, K)`, float):
            Scores.
        weights (`torch.Tensor` of shape `(G, K, K)`, float):
            From [`comparison_weights`].

    Returns:
        `torch.Tensor` of shape `(*, G)`.
    """
    terms = (scores[..., None, :] - scores[..., :, None] + weights.log()).flatten(-2)
    return torch.logsumexp(torch.cat([torch.zeros_like(terms[..., :1]), terms], dim=-1), dim=-1)


def plackett_luce_loss(scores: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    r"""
    Negative log-likelihood of a ranking whose places are given away one by one, the best first.

    $$ \sum_i \Big[ \log \sum_{j:\, \rho_j \ge \rho_i} e^{u_j} - u_i \Big] $$

    Plackett (1975), "The analysis of permutations", Applied Statistics 24; ListMLE has the same loss. Each of several
    that are tied is chosen among all of them and those ranked lower (Breslow's form of the Cox likelihood).

    Args:
        scores (`torch.Tensor` of shape `(*, G, K)`, float):
            Scores.
        ranks (`torch.Tensor` of shape `(G, K)`, int64):
            Ranks.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The loss `(*, G)`, and of each list `(G,)`, int64, the number of choices
        that had an alternative.
    """
    present, alone = ranks >= 0, torch.eye(ranks.size(1), dtype=torch.bool, device=ranks.device)
    at_hand = (ranks[:, None, :] >= ranks[:, :, None]) & present[:, :, None] & present[:, None, :]
    gaps = scores[..., None, :] - scores[..., :, None]
    loss = torch.logsumexp(gaps.masked_fill(~(at_hand | alone), -torch.inf), dim=-1).sum(-1)
    return loss, (at_hand.sum(-1) > 1).sum(-1)


def list_loss(
    scores: Tensor,
    ranks: Tensor,
    loss_type: str = "pairwise",
    *,
    reach: int | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """
    Loss of each list, of the size of a pair's: the mean over its comparisons, or over Plackett-Luce's choices.

    Args:
        scores (`torch.Tensor` of shape `(*, G, K)`, float):
            Scores.
        ranks (`torch.Tensor` of shape `(G, K)`, int64):
            Ranks, of at least two responses a list.
        loss_type (`str`, *optional*, defaults to `"pairwise"`):
            `"pairwise"`, `"pointwise"`, `"plackett_luce"` or `"log_sum_exp"`, which stays one term.
        reach (`int`, *optional*):
            As in [`comparison_weights`]; not for Plackett-Luce.
        label_smoothing (`float`, *optional*, defaults to `0.0`):
            Probability that a comparison is wrong; for the first two.

    Returns:
        `torch.Tensor` of shape `(*, G)`.
    """
    if loss_type == "plackett_luce":
        loss, choices = plackett_luce_loss(scores, ranks)
        return loss / choices
    weights = comparison_weights(ranks, reach)
    if loss_type == "log_sum_exp":
        return log_sum_exp_loss(scores, weights)
    of_pair = pairwise_logistic_loss if loss_type == "pairwise" else pointwise_logistic_loss
    return compared_loss(scores, _shares(weights), partial(of_pair, label_smoothing=label_smoothing))


def _shares(weights: Tensor) -> Tensor:
    """Weights that add up to 1 in each list: 1 / C(k, 2) in Eq. (1) of https://huggingface.co/papers/2203.02155."""
    return weights / weights.sum((1, 2), keepdim=True)


def score_lists(
    scores: Tensor,
    scale_scores: Tensor,
    gate: Tensor,
    lengths: Tensor,
    ranks: Tensor,
    *,
    loss_type: str = "pairwise",
    reach: int | None = None,
    weight: Tensor | None = None,
    scale_weight: float = 0.0,
    label_smoothing: float = 0.0,
    centering: float | None = None,
) -> ListScores:
    """
    Losses and scores of a batch of lists, as [`~toolkit.reward.losses.score_pairs`] has them of pairs.

    Args:
        scores, scale_scores, gate, lengths (`torch.Tensor` of shape `(G, K)` or `(G, K, S)`):
            Mixed scores, scores of each scale, weights of the scales, and response tokens.
        ranks (`torch.Tensor` of shape `(G, K)`, int64):
            Ranks.
        loss_type, reach, label_smoothing:
            As in [`list_loss`].
        weight (`torch.Tensor` of shape `(G,)`, *optional*):
            Weight of each list.
        scale_weight, centering (`float`, *optional*):
            As in [`~toolkit.reward.losses.score_pairs`]; the pull towards mean zero is the mean over the comparisons.

    Returns:
        [`~toolkit.stats.rankings.ListScores`]: `loss` has all terms and carries the gradient.
    """
    of_list = partial(list_loss, ranks=ranks, loss_type=loss_type, reach=reach, label_smoothing=label_smoothing)
    total, scale_losses = of_list(scores), torch.stack([of_list(each) for each in scale_scores.unbind(2)], dim=1)
    if scale_losses.size(1) > 1:
        total = total + scale_weight * scale_losses.sum(1)
    total = total if weight is None else weight * total
    if centering is not None:
        total = total + centering * compared_loss(scores, _shares(comparison_weights(ranks)), centering_penalty)
    return ListScores(scores, scale_scores, gate[:, 0], lengths, ranks, total, scale_losses)
