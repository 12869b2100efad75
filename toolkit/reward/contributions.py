r"""What every token, every segment and the response as a whole add to the score.

With token scores $q_t$, segment scores $s_e$ read at the segment ends $E$, the response score $r_T$ and the gate
$\alpha$, the score of a response is

$$ R = \frac{\alpha_{tok}}{T} \sum_t q_t + \frac{\alpha_{seg}}{|E|} \sum_{e \in E} s_e + \alpha_{resp} r_T $$

so a token contributes $\alpha_{tok} q_t / T$, a segment $\alpha_{seg} s_e / |E|$ and the response
$\alpha_{resp} r_T$: exact parts of a linear read-out, not an approximation.

Shapes: `B` rows, `T` tokens of a row.
"""

from typing import NamedTuple

from torch import Tensor


class Contributions(NamedTuple):
    """Parts of the score, in nats. A row's token, segment and response parts sum to its score."""

    token: Tensor  # (B, T) float
    segment: Tensor  # (B, T) float, at each segment's last token; 0 elsewhere
    response: Tensor  # (B,) float


def score_contributions(
    token_scores: Tensor,
    segment_scores: Tensor,
    response_score: Tensor,
    gate: Tensor,
    response: Tensor,
    segment_ends: Tensor,
) -> Contributions:
    """
    Split scores into what each token, each segment and the response contribute.

    Args:
        token_scores (`torch.Tensor` of shape `(B, T)`, float):
            Score of each token, in nats.
        segment_scores (`torch.Tensor` of shape `(B, T)`, float):
            Score of each segment at its last token, in nats.
        response_score (`torch.Tensor` of shape `(B,)`, float):
            Score of the response read at its last token, in nats.
        gate (`torch.Tensor` of shape `(B, 3)`, float):
            Weight of each scale in the order of `toolkit.reward.scales.SCALES`; 0 for a scale that it has not.
        response (`torch.Tensor` of shape `(B, T)`, bool):
            Tokens of the response, at least one in a row.
        segment_ends (`torch.Tensor` of shape `(B, T)`, bool):
            Last token of each segment, at least one in a row.

    Returns:
        [`Contributions`]

    Raises:
        `ValueError`: If the four `(B, T)` tensors differ in shape, or `gate` is not `(B, 3)`, which would otherwise
            broadcast.
    """
    shapes = {tuple(t.shape) for t in (token_scores, segment_scores, response, segment_ends)}
    if len(shapes) > 1:
        raise ValueError(f"Scores and masks of tokens and segments must have one shape, got {sorted(shapes)}.")
    if gate.shape != (len(token_scores), 3) or response_score.shape != gate.shape[:1]:
        raise ValueError(
            f"`gate` must have one row of 3 and `response_score` one value for each of {len(token_scores)} rows, got "
            f"{tuple(gate.shape)} and {tuple(response_score.shape)}."
        )
    return Contributions(
        token=gate[:, :1] * token_scores * response / response.sum(1, keepdim=True),
        segment=gate[:, 1:2] * segment_scores * segment_ends / segment_ends.sum(1, keepdim=True),
        response=gate[:, 2] * response_score,
    )
