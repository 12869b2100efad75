r"""Scores of every prefix of a response at three scales, and their mix.

For a response of tokens $1 \dots T$ with token scores $q_u$, segment scores $s_u$ and response scores $r_u$ read at
every token, the value of the prefix that ends at $t$ is

$$ \Phi_t = \alpha_{tok} \frac{1}{t} \sum_{u \le t} q_u
          + \alpha_{seg} \frac{1}{|E_t|} \sum_{e \in E_t} s_e + \alpha_{resp} r_t $$

with $E_t$ the segment ends up to $t$, and $t$ itself while a segment is open there, as it would be the last one if
the response stopped at $t$. So $\Phi_t$ is the score that the response cut after $t$ would get, and $\Phi_T$ is the
score.

Shapes: `B` rows, `T` tokens of a row, `S` scales.
"""

import torch
from torch import Tensor

from ..data.positions import running_sum

SCALES = ("token", "segment", "response")


def prefix_mean(values: Tensor, keep: Tensor) -> Tensor:
    """
    Mean, at every token, of the values kept up to and including it.

    Args:
        values (`torch.Tensor` of shape `(B, T)`, float):
            One value a token.
        keep (`torch.Tensor` of shape `(B, T)`, bool):
            Tokens that count.

    Returns:
        `torch.Tensor` of shape `(B, T)`: 0 before the first kept token.
    """
    return running_sum(values * keep) / keep.cumsum(1).clamp(min=1)


def segment_prefix_mean(values: Tensor, boundary: Tensor, ends: Tensor, response: Tensor) -> Tensor:
    """
    Mean, at every response token, of the values at the segment ends so far, an open segment read where it stands.

    Args:
        values (`torch.Tensor` of shape `(B, T)`, float):
            Segment score read at every token.
        boundary (`torch.Tensor` of shape `(B, T)`, bool):
            Boundary tokens: no segment is open on them.
        ends (`torch.Tensor` of shape `(B, T)`, bool):
            Segment ends, from [`~toolkit.data.positions.segment_ends`].
        response (`torch.Tensor` of shape `(B, T)`, bool):
            Tokens of the response.

    Returns:
        `torch.Tensor` of shape `(B, T)`: 0 outside the response.
    """
    is_open = response & ~boundary
    total = running_sum(values * ends) + values * is_open
    count = ends.cumsum(1) + is_open
    return total / count.clamp(min=1) * response


def scale_prefix_values(
    token: Tensor, segment: Tensor, response_scores: Tensor, boundary: Tensor, ends: Tensor, response: Tensor
) -> Tensor:
    """
    Value of every prefix at each scale, in the order of `SCALES`.

    Args:
        token (`torch.Tensor` of shape `(B, T)`, float):
            Token scores.
        segment (`torch.Tensor` of shape `(B, T)`, float):
            Segment score read at every token.
        response_scores (`torch.Tensor` of shape `(B, T)`, float):
            Response score read at every token.
        boundary (`torch.Tensor` of shape `(B, T)`, bool):
            Boundary tokens.
        ends (`torch.Tensor` of shape `(B, T)`, bool):
            Segment ends.
        response (`torch.Tensor` of shape `(B, T)`, bool):
            Tokens of the response.

    Returns:
        `torch.Tensor` of shape `(B, T, 3)`: 0 outside the response.
    """
    by_scale = (
        prefix_mean(token, response) * response,
        segment_prefix_mean(segment, boundary, ends, response),
        response_scores * response,
    )
    return torch.stack(by_scale, dim=2)


def mix(values: Tensor, gate: Tensor) -> Tensor:
    """
    Weighted sum over the scales.

    Args:
        values (`torch.Tensor` of shape `(B, S)` or `(B, T, S)`, float):
            Values of each scale.
        gate (`torch.Tensor` of shape `(B, S)`, float):
            Weight of each scale; a row sums to 1.

    Returns:
        `torch.Tensor` of shape `(B,)` or `(B, T)`.
    """
    return (values * (gate if values.dim() == 2 else gate[:, None])).sum(-1)


def scale_gradient(values: Tensor, factor: float) -> Tensor:
    """
    The same values, with a factor on the gradient that passes back through them.

    Args:
        values (`torch.Tensor`, float):
            Any tensor.
        factor (`float`):
            Factor on its gradient: 1 leaves it as it is, 0 stops it.

    Returns:
        `torch.Tensor` of the shape of `values`: Equal to it to the last bit.
    """
    if factor == 1 or not values.requires_grad:
        return values
    seen = values.view_as(values)  # not a copy, of which hidden states would need several
    seen.register_hook(lambda gradient: factor * gradient)
    return seen
