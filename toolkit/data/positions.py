"""Where the prompt, the response, its segments and its end are.

Shapes: `B` rows, `T` tokens of a row, padding included, `M` ids of a marker. A mask is `True` where a token counts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def last_kept(keep: Tensor) -> Tensor:
    """
    Index of each row's right-most kept token, whatever side the padding is on.

    Args:
        keep (`torch.Tensor` of shape `(B, T)`, bool or integer):
            Tokens that count.

    Returns:
        `torch.Tensor` of shape `(B,)`, int64: The index; `T - 1` for a row that keeps nothing.
    """
    return keep.size(1) - 1 - keep.int().flip(1).argmax(1)


def running_sum(values: Tensor) -> Tensor:
    """
    Sum, at every token, of the values up to and including it.

    Args:
        values (`torch.Tensor` of shape `(B, T)`, float):
            One value a token.

    Returns:
        `torch.Tensor` of shape `(B, T)`.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return values.cumsum(1)
    # GPUs have no `cumsum` that passes for deterministic: the sums of 1, 2, 4, ... values up to each token instead
    width = 1
    while width < values.size(1):
        values = values + F.pad(values[:, :-width], (width, 0))
        width *= 2
    return values


def positions_from(attention_mask: Tensor) -> Tensor:
    """
    Positions that count from each row's first real token, so that padding on the left moves nothing.

    Args:
        attention_mask (`torch.Tensor` of shape `(B, T)`, bool or integer):
            `True` or 1 on real tokens.

    Returns:
        `torch.Tensor` of shape `(B, T)`, int64: 0 on the first real token and on padding before it.
    """
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


def response_mask(response_start: Tensor, attention_mask: Tensor) -> Tensor:
    """
    Tokens of the response: from its first token to the row's last real token.

    Args:
        response_start (`torch.Tensor` of shape `(B,)`, int64):
            Index of the first response token in its row, padding included.
        attention_mask (`torch.Tensor` of shape `(B, T)`, bool or integer):
            `True` or 1 on real tokens.

    Returns:
        `torch.Tensor` of shape `(B, T)`, bool.
    """
    index = torch.arange(attention_mask.size(1), device=attention_mask.device)
    return attention_mask.bool() & (index >= response_start[:, None])


def find_response_start(input_ids: Tensor, attention_mask: Tensor, marker_ids: list[int]) -> Tensor:
    """
    First token after the last occurrence of the marker that a chat template writes before an assistant's turn.

    Args:
        input_ids (`torch.Tensor` of shape `(B, T)`, int64):
            Token ids.
        attention_mask (`torch.Tensor` of shape `(B, T)`, bool or integer):
            `True` or 1 on real tokens.
        marker_ids (`list[int]` of length `M`):
            Ids of the marker.

    Returns:
        `torch.Tensor` of shape `(B,)`, int64.

    Raises:
        `ValueError`: If a row does not contain the marker, or nothing follows it.
    """
    marker = torch.tensor(marker_ids, device=input_ids.device)
    windows = (
        input_ids.unfold(1, len(marker_ids), 1) if input_ids.size(1) >= len(marker_ids) else input_ids[:, :0, None]
    )
    found = (windows == marker).all(2)
    missing = (~found.any(1)).nonzero().flatten().tolist()
    if missing:
        raise ValueError(
            f"Rows {missing} of the batch do not contain the response marker {marker_ids} that was saved with the "
            "model, so the response cannot be found. Format the text with the chat template that the reward model "
            "was trained with, or pass `response_start`."
        )
    start = last_kept(found) + len(marker_ids)
    empty = (start > last_kept(attention_mask)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"Rows {empty} of the batch have no token after the response marker: nothing to score.")
    return start


def group_rows(group_sizes: Tensor, width: int) -> Tensor:
    """
    Rows of each group of responses, in a batch that has the first of every group, then the second of every group, ...

    That order is TRL's for pairs, groups of two: all chosen, then all rejected.

    Args:
        group_sizes (`torch.Tensor` of shape `(G,)`, int64):
            Number of rows in each group.
        width (`int`):
            The largest of them, `K`.

    Returns:
        `torch.Tensor` of shape `(G, K)`, int64: Index of each row of a group in the batch; -1 beyond its last.
    """
    present = torch.arange(width, device=group_sizes.device)[:, None] < group_sizes
    index = (present.flatten().cumsum(0) - 1).view_as(present)
    return index.masked_fill(~present, -1).T


def segment_ends(boundary: Tensor, response: Tensor) -> Tensor:
    """
    Tokens that complete a segment: the first boundary token of every run of them.

    A sentence that ends in ". <newline> <end of turn>" is one segment, not three; the later tokens of the run belong
    to no segment. Whether a token ends a segment depends on it and the token before, never on what follows.

    Args:
        boundary (`torch.Tensor` of shape `(B, T)`, bool):
            Tokens whose text ends a sentence, a line or a turn.
        response (`torch.Tensor` of shape `(B, T)`, bool):
            Tokens of the response; boundaries outside it do not count.

    Returns:
        `torch.Tensor` of shape `(B, T)`, bool.
    """
    boundary = boundary & response
    after_boundary = torch.zeros_like(boundary)
    after_boundary[:, 1:] = boundary[:, :-1]
    return boundary & ~after_boundary
