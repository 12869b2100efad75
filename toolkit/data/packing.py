"""Rows that begin alike, run as one: `[shared | branch | branch | …]`, each branch blind to the others.

The shared tokens pass through the decoder once. Positions count on from them in every branch and a mask keeps the
branches apart, so each branch's hidden states, and the gradients through them, are those of the whole row by itself.
"""

import inspect
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask

from .kernels import in_one_row, sharing_pays
from .probes import PROMPT, TOLERANCE, gap, hidden_states, on_small_copy, probe_rows
from .rotary import longest_fixed_row

IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")


class PackedRows(NamedTuple):
    """`R` rows in `B` packed ones of `T` tokens; the longest of the `R` has `W`. All int64, padded on the right."""

    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T), 1 on real tokens
    position_ids: Tensor  # (B, T)
    branch_ids: Tensor  # (B, T), 0 on shared tokens, 1, 2, … on those of each branch, -1 on padding
    token_index: Tensor  # (R, W), where in the B * T tokens each token of a row is; -1 on padding


def shared_prefix_length(rows: list[list[int]]) -> int:
    """
    Number of tokens with which all rows begin.

    Args:
        rows (`list[list[int]]`):
            Token ids.

    Returns:
        `int`
    """
    first, last = min(rows), max(rows)  # what these two share, all between them share
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def pack_rows(
    groups: list[list[list[int]]], shared: list[int], pad_token_id: int, pad_to_multiple_of: int | None = None
) -> PackedRows:
    """
    One packed row of every group.

    Args:
        groups (`list[list[list[int]]]`):
            Token ids of the rows of each group.
        shared (`list[int]`):
            Number of tokens that the rows of each group share at their beginning.
        pad_token_id (`int`):
            Id on padding.
        pad_to_multiple_of (`int`, *optional*):
            Multiple that the packed length is padded to.

    Returns:
        [`PackedRows`]: The rows in the order of the groups.
    """
    lengths = [n + sum(len(row) - n for row in group) for group, n in zip(groups, shared, strict=True)]
    multiple = pad_to_multiple_of or 1
    length = -(-max(lengths) // multiple) * multiple
    rows = [row for group in groups for row in group]
    input_ids = torch.full((len(groups), length), pad_token_id)
    position_ids, branch_ids = torch.zeros_like(input_ids), torch.full_like(input_ids, -1)
    token_index = torch.full((len(rows), max(map(len, rows))), -1)
    r = 0
    for b, (group, n) in enumerate(zip(groups, shared, strict=True)):
        input_ids[b, :n] = torch.tensor(group[0][:n], dtype=torch.long)
        position_ids[b, :n] = torch.arange(n)
        branch_ids[b, :n] = 0
        start = n
        for branch, row in enumerate(group, start=1):
            end = start + len(row) - n
            input_ids[b, start:end] = torch.tensor(row[n:], dtype=torch.long)
            position_ids[b, start:end] = torch.arange(n, len(row))
            branch_ids[b, start:end] = branch
            token_index[r, :n] = b * length + torch.arange(n)
            token_index[r, n : len(row)] = b * length + torch.arange(start, end)
            start, r = end, r + 1
    return PackedRows(input_ids, (branch_ids >= 0).long(), position_ids, branch_ids, token_index)


def first_rows_first(group_sizes: list[int]) -> list[int]:
    """
    Order of rows that stand group by group, for a batch as [`~toolkit.data.positions.group_rows`] reads it.

    Args:
        group_sizes (`list[int]`):
            Number of rows in each group.

    Returns:
        `list[int]`: Indices of the first row of every group, then of the second of every group that has one, ...
    """
    places = [place for size in group_sizes for place in range(size)]
    return sorted(range(len(places)), key=places.__getitem__)


def group_by_prefix(rows: list[list[int]], shared: list[int], max_rows: int) -> list[list[int]]:
    """
    Put together the rows that begin with the same prompt.

    Args:
        rows (`list[list[int]]`):
            Token ids.
        shared (`list[int]`):
            Length of each row's prompt.
        max_rows (`int`):
            Most rows of a group.

    Returns:
        `list[list[int]]`: Indices of the rows of each group. Attention's work grows with the square of a packed row,
        so none is longer than twice its longest row.
    """
    groups: list[list[int]] = []
    latest: dict[tuple[int, ...], list[int]] = {}
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        prompt = tuple(rows[i][: shared[i]])
        group = latest.get(prompt, [])
        packed = shared[i] + sum(len(rows[j]) - shared[j] for j in [*group, i])
        if not group or len(group) == max_rows or packed > 2 * len(rows[i]):
            group = latest[prompt] = []
            groups.append(group)
        group.append(i)
    return groups


def groups_to_share(
    model: PreTrainedModel, rows: list[list[int]], shared: list[int], max_rows: int
) -> list[list[int]]:
    """
    Put together the rows that begin with the same prompt, where the decoder allows it and it saves time.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The decoder, or a model around it.
        rows (`list[list[int]]`):
            Token ids.
        shared (`list[int]`):
            Length of each row's prompt.
        max_rows (`int`):
            Most rows of a group.

    Returns:
        `list[list[int]]`: Indices of the rows of each group; else of each row alone.
    """
    if why_not_shared(model) is None:
        groups = group_by_prefix(rows, shared, max_rows)
        lengths, prompts = packed_lengths(groups, rows, shared), [shared[group[0]] for group in groups]
        if sharing_pays(model, lengths, prompts, list(map(len, groups)), model.device.type):
            return groups
    return [[i] for i in range(len(rows))]


def fill_batches(
    lengths: list[int], sizes: list[int], max_size: int, max_tokens: int | None = None
) -> list[list[int]]:
    """
    Put groups of like length into batches.

    Args:
        lengths (`list[int]`):
            Tokens of each group's packed row.
        sizes (`list[int]`):
            Number of rows in each group.
        max_size (`int`):
            Most rows of a batch.
        max_tokens (`int`, *optional*):
            Most tokens of a batch, padding included; a group that has more goes alone.

    Returns:
        `list[list[int]]`: Indices of the groups of each batch.
    """
    batches: list[list[int]] = []
    for k in sorted(range(len(lengths)), key=lambda k: lengths[k]):
        batch = batches[-1] if batches else []
        too_many = sum(sizes[j] for j in [*batch, k]) > max_size
        if not batch or too_many or (max_tokens is not None and (len(batch) + 1) * lengths[k] > max_tokens):
            batch = []
            batches.append(batch)
        batch.append(k)
    return batches


def packed_lengths(groups: list[list[int]], rows: list[list[int]], shared: list[int]) -> list[int]:
    """
    Tokens of each group's packed row.

    Args:
        groups (`list[list[int]]`):
            Indices of the rows of each group.
        rows (`list[list[int]]`):
            Token ids.
        shared (`list[int]`):
            Length of each row's prompt, which is the same within a group.

    Returns:
        `list[int]`
    """
    return [shared[group[0]] + sum(len(rows[i]) - shared[i] for i in group) for group in groups]


def grouped_inputs(groups: list[list[list[int]]], starts: list[list[int]], pad_token_id: int) -> dict[str, Tensor]:
    """
    Inputs of a reward model for groups of rows that share their prompts.

    Args:
        groups (`list[list[list[int]]]`):
            Token ids of the rows of each group.
        starts (`list[list[int]]`):
            Where the response of each of them starts; within a group all start alike.
        pad_token_id (`int`):
            Id on padding.

    Returns:
        `dict[str, torch.Tensor]`: Packed rows where a group has several, plain ones otherwise, and `response_start`;
        rows in the order of the groups.
    """
    if any(len(group) > 1 for group in groups):
        inputs = pack_rows(groups, [start[0] for start in starts], pad_token_id)._asdict()
    else:
        packed = pack_rows(groups, [0] * len(groups), pad_token_id)  # nothing is shared: plain rows
        inputs = {"input_ids": packed.input_ids, "attention_mask": packed.attention_mask}
    inputs["response_start"] = torch.tensor([start for group in starts for start in group])
    return inputs


def branch_mask(model: PreTrainedModel, branch_ids: Tensor) -> Any:
    """
    Causal attention that lets a branch see the shared tokens of its row and itself.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The decoder, without wrappers. Its attention implementation decides on the mask's form, and its hidden
            states, or autocast around the call, on the mask's type.
        branch_ids (`torch.Tensor` of shape `(B, T)`, int64):
            From [`PackedRows`].

    Returns:
        `torch.Tensor` of shape `(B, 1, T, T)`: 0 where a token (third axis) sees another (fourth), minus infinity
        elsewhere; or FlexAttention's block mask of the `B * T` tokens as one row, in which rows do not see each other.
    """
    config, device = model.config.get_text_config(), branch_ids.device
    dtype: torch.dtype = model.get_input_embeddings().weight.dtype  # type: ignore[assignment]
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    if config._attn_implementation == "flex_attention":
        row = torch.arange(len(branch_ids), device=device)[:, None].expand_as(branch_ids)
        branch, row = (in_one_row(ids, -1)[0] for ids in (branch_ids, row))

        def visible(b: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (row[key] == row[query]) & ((branch[key] == 0) | (branch[key] == branch[query]))

        embeds = torch.empty(1, len(branch), 0, dtype=dtype, device=device)
        return create_causal_mask(config, embeds, None, None, and_mask_function=visible)
    # Additive, which eager attention needs and SDPA takes without turning it into this form in every layer.
    index = torch.arange(branch_ids.size(1), device=device)
    key, query = branch_ids[:, None, :], branch_ids[:, :, None]
    seen = ((key == 0) | (key == query)) & (index <= index[:, None])
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)[:, None]


@on_small_copy
def _reads_otherwise(model: Any) -> str:
    """What a small copy of a decoder shows against packed rows, and against plain ones without a mask; or nothing."""
    rows = probe_rows()
    alone = [hidden_states(model, torch.tensor([row]))[0] for row in rows]
    # Other tokens before the last one, within a window of it
    other = [*rows[1][:-7], *rows[0][-6:], rows[1][-1]]
    if gap(hidden_states(model, torch.tensor([other]))[0, -1], alone[1][-1]) <= 10 * TOLERANCE:
        return "a small copy of it does not show what its attention sees"
    padding = rows[0][0]  # as good an id as any other, where padding has no effect
    packed = pack_rows([rows], [PROMPT], padding)
    mask = branch_mask(model, packed.branch_ids)
    together = hidden_states(model, packed.input_ids, attention_mask=mask, position_ids=packed.position_ids)
    plain = pack_rows([[row] for row in rows], [0] * len(rows), padding)
    unmasked = hidden_states(model, plain.input_ids)
    for what, hidden, token_index in (
        ("of a packed row", together, packed.token_index),
        ("of a row padded on the right", unmasked, plain.token_index),
    ):
        read = [hidden.flatten(0, 1)[index[index >= 0]] for index in token_index]
        worst = max(gap(found, expected) for found, expected in zip(read, alone, strict=True))
        if worst > TOLERANCE:
            return f"in a small copy of it the hidden states {what} are others ({worst:.1g} of their spread away)"
    return ""


def why_masked(model: PreTrainedModel) -> str | None:
    """
    What about a decoder keeps rows that are padded on the right from doing without a mask.

    Causal attention sees no padding that comes after a row, and positions that count from the row's beginning are
    those that a decoder takes where it is given none. Without a mask the fast kernels can be had. This is tried on a
    small copy of the decoder, whose windows are shorter than the rows, together with rows that share their prompts.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Backbone, or a model around it.

    Returns:
        `str`, or `None` where the copy reads such rows as each by itself.
    """
    implementation = model.config.get_text_config()._attn_implementation  # which can be set anew
    if model not in _found or _found[model][0] != implementation:
        _found[model] = implementation, _why_masked(model)
    return _found[model][1]


_found: WeakKeyDictionary[PreTrainedModel, tuple[str, str | None]] = WeakKeyDictionary()


def _why_masked(model: PreTrainedModel) -> str | None:
    config = model.config.get_text_config()
    if getattr(model, "_is_stateful", False):
        return "it has recurrent layers, whose state would pass from branch to branch"
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return "its attention goes by places in the row instead of `position_ids`"
    if (longest := longest_fixed_row(config)) is not None:
        return f"the frequencies of its rotary positions depend on the length of rows beyond {longest} tokens"
    reason = _reads_otherwise(model.base_model)
    return f"{reason}{kinds_of_attention(config)}" if reason else None


def padded_right(attention_mask: Tensor) -> bool:
    """
    Whether nothing but padding follows padding.

    Args:
        attention_mask (`torch.Tensor` of shape `(B, T)`, bool or integer):
            `True` or 1 on real tokens.

    Returns:
        `bool`: To read it a GPU is waited for, as Transformers does to see whether a mask has padding at all.
    """
    return bool((attention_mask[:, 1:] <= attention_mask[:, :-1]).all())


def why_not_shared(model: PreTrainedModel) -> str | None:
    """
    What about a decoder keeps it from running several branches in one row.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Backbone, or a model around it.

    Returns:
        `str`, or `None` where a small copy of it reads them as rows by themselves.
    """
    implementation = model.config.get_text_config()._attn_implementation
    if implementation not in IMPLEMENTATIONS:
        return f"its attention implementation '{implementation}' takes no mask of (query, key) pairs"
    return why_masked(model)


def kinds_of_attention(config: Any) -> str:
    """
    What a configuration says of it that is likely the reason.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of a decoder.

    Returns:
        `str`: The end of a sentence, or nothing.
    """
    others = sorted({*(getattr(config, "layer_types", None) or [])} - {"full_attention"})
    if others:
        return f", and it has layers of the kinds {others}"
    if getattr(config, "sliding_window", None) is not None:
        return f", and its attention slides over a window of {config.sliding_window} tokens"
    return ""
