r"""What every token, every segment and the response as a whole add to the score.

With token scores $q_t$, segment scores $s_e$ read at the segment ends $E$, the response score $r_T$ and the gate
$\alpha$, the score of a response is

$$ R = \alpha_{tok} \sum_t w_t q_t + \alpha_{seg} \sum_{e \in E} v_e s_e + \alpha_{resp} r_T
\qquad \sum_t w_t = \sum_{e \in E} v_e = 1 $$

so a token contributes $\alpha_{tok} w_t q_t$, a segment $\alpha_{seg} v_e s_e$ and the response
$\alpha_{resp} r_T$: exact parts of a linear read-out, not an approximation. Plain means pool with $w_t = 1 / T$ and
$v_e = 1 / |E|$, which [`uniform_weights`] gives.

Shapes: `B` rows, `T` tokens of a row.
"""

from typing import NamedTuple

from torch import Tensor


class Contributions(NamedTuple):
    """Parts of the score, in nats. A row's token, segment and response parts sum to its score."""

    token: Tensor  # (B, T) float
    segment: Tensor  # (B, T) float, at each segment's last token; 0 elsewhere
    response: Tensor  # (B,) float


def uniform_weights(keep: Tensor) -> Tensor:
    """
    Pooling weights of a plain mean.

    Args:
        keep (`torch.Tensor` of shape `(B, T)`, bool):
            Tokens, or segment ends, that are pooled.

    Returns:
        `torch.Tensor` of shape `(B, T)`, float32: A row sums to 1, or to 0 where nothing is kept.
    """
    return keep.float() / keep.sum(1, keepdim=True).clamp(min=1)


def score_contributions(
    token_scores: Tensor,
    segment_scores: Tensor,
    response_score: Tensor,
    gate: Tensor,
    token_weights: Tensor,
    segment_weights: Tensor,
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
            Weight of each scale in the order of [`~toolkit.scales.SCALES`]; 0 for a scale that the model has not.
        token_weights (`torch.Tensor` of shape `(B, T)`, float):
            Pooling weight of each token; a row sums to 1 over its response and is 0 outside it.
        segment_weights (`torch.Tensor` of shape `(B, T)`, float):
            Pooling weight of each segment at its last token; a row sums to 1 over them and is 0 elsewhere.

    Returns:
        [`Contributions`]

    Raises:
        `ValueError`: If the four `(B, T)` tensors differ in shape, or `gate` is not `(B, 3)`, which would otherwise
            broadcast.
    """
    shapes = {tuple(t.shape) for t in (token_scores, segment_scores, token_weights, segment_weights)}
    if len(shapes) > 1:
        raise ValueError(f"Scores and weights of tokens and segments must have one shape, got {sorted(shapes)}.")
    if gate.shape != (len(token_scores), 3) or response_score.shape != gate.shape[:1]:
        raise ValueError(
            f"`gate` must have one row of 3 and `response_score` one value for each of {len(token_scores)} rows, got "
            f"{tuple(gate.shape)} and {tuple(response_score.shape)}."
        )
    return Contributions(
        token=gate[:, :1] * token_weights * token_scores,
        segment=gate[:, 1:2] * segment_weights * segment_scores,
        response=gate[:, 2] * response_score,
    )
