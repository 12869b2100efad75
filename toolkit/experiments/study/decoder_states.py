"""What linear heads read of a frozen decoder, of every response of the grid's tasks, computed once and kept.

A layer is read as the decoder cut off behind it would be: through the decoder's final norm. Of a response six vectors
are kept for every layer: the state of the prompt's last token, the means over the response's tokens and over its
segment ends, and the states of its last token, of the end of turn, and of the last token before that. Where a chat
template writes nothing behind the end of turn, the last token is the end of turn.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from ...data.messages import Messages
from ...data.packing import branch_mask, fill_batches, pack_rows, shared_prefix_length
from ...data.positions import last_kept, response_mask, segment_ends
from ...data.tokens import EncodedResponse, encode_response, end_ids, segment_boundary_ids, turn_parts
from ...reward.layers import hidden_states
from .division import said
from .task_pairs import TaskPairs

PROMPT, TOKEN, SEGMENT, LAST, END, CONTENT = range(6)  # places of the vectors
# Tokens of a packed row, of a batch, which fits into a core's cache, and of a file. Attention in a packed row is paid
# for by the square of its length.
MOST_PACKED, BATCH_TOKENS, SHARD_TOKENS = 360, 512, 50_000


class Rows(NamedTuple):
    """Distinct responses of a task to their prompts, and which of them are the sides of each pair."""

    prompts: list[Messages]  # of each row
    responses: list[Messages]
    pairs: Tensor  # (P, 2) int64: rows of chosen and rejected


class States(NamedTuple):
    """Vectors of `N` rows at `L` layers, and the number of their response tokens."""

    vectors: Tensor  # (N, L, 6, H) float16
    tokens: Tensor  # (N,) int64
    pairs: Tensor  # (P, 2) int64


def rows_of(task: TaskPairs) -> Rows:
    """The distinct rows of a task's pairs, in the order in which the pairs have them."""
    place: dict[tuple[str, str], int] = {}
    prompts, responses, pairs = list[Messages](), list[Messages](), list[list[int]]()
    for row in task.pairs:
        sides = []
        for side in ("chosen", "rejected"):
            key = said(row["prompt"]), row[side][0]["content"]
            if key not in place:
                place[key] = len(prompts)
                prompts.append(row["prompt"])
                responses.append(row[side])
            sides.append(place[key])
        pairs.append(sides)
    return Rows(prompts, responses, torch.tensor(pairs))


class _Pass(NamedTuple):
    """Tokens of a forward pass, and where those of its `R` rows are among them."""

    hidden: Sequence[Tensor]  # of each layer that is read (N, H), behind the final norm
    input_ids: Tensor  # (N,)
    token_index: Tensor  # (R, W), -1 on padding


class Reader(NamedTuple):
    """A decoder that has read what all rows begin with."""

    backbone: Any
    layers: Sequence[int]  # numbers of those that are read, from 1
    pad: int  # id on padding
    length: int  # tokens of the common beginning
    keys: Any  # its keys and values; none where it has no token

    def past(self, rows: int) -> Any:
        """A copy of the keys for some rows."""
        keys = deepcopy(self.keys)
        if keys is not None:
            keys.batch_repeat_interleave(rows)
        return keys


@torch.no_grad()
def begin(backbone: Any, rows: Sequence[EncodedResponse], layers: Sequence[int], pad: int) -> Reader:
    """A reader of rows, which begin alike with a template's system message; each keeps a token of its prompt."""
    shared = shared_prefix_length([row.input_ids for row in rows])
    shared = min(shared, *(row.response_start - 1 for row in rows))
    ids = torch.tensor([rows[0].input_ids[:shared]])
    keys = backbone(ids, use_cache=True).past_key_values if shared else None
    return Reader(backbone, layers, pad, shared, keys)


def read_states(
    reader: Reader, groups: Sequence[Sequence[EncodedResponse]], ends: set[int], boundaries: Tensor
) -> Tensor:
    """
    The six vectors of `R` rows at `L` layers.

    Args:
        reader ([`Reader`]):
            Decoder without a head, begun on all rows.
        groups (`Sequence[Sequence[EncodedResponse]]`):
            Rows, those of a group with the same prompt.
        ends (`set[int]`):
            Ids that end a turn.
        boundaries (`torch.Tensor`, int64):
            Ids that end a segment.

    Returns:
        `torch.Tensor` of shape `(R, L, 6, H)`, float32, in the order of the groups.
    """
    own = [[_behind(row, reader.length) for row in group] for group in groups]
    with torch.no_grad():
        found = (_cached if len(groups) == 1 else _packed)(reader, own)
    index = found.token_index.clamp(min=0)
    ids = found.input_ids[index]
    start = torch.tensor([row.response_start for group in own for row in group])
    response = response_mask(start, found.token_index >= 0)
    boundary = torch.isin(ids, boundaries) & response
    last, rows = last_kept(response), torch.arange(len(start))
    segment = segment_ends(boundary, response)
    segment[rows, last] |= ~boundary[rows, last]  # one that is open at the end
    is_end = torch.isin(ids, torch.tensor(sorted(ends))) & response
    end = torch.where(is_end.any(1), last_kept(is_end), last)
    content = (end - 1).maximum(start)
    single = [index[rows, place] for place in (start - 1, last, end, content)]
    read = []
    for states in found.hidden:
        prompt, at_last, at_end, at_content = (states[place].float() for place in single)
        means = [_mean(states, index, keep) for keep in (response, segment)]
        read.append(torch.stack([prompt, *means, at_last, at_end, at_content], 1))
    return torch.stack(read, 1)


def _layers(backbone: Any, output: Any, layers: Sequence[int]) -> list[Tensor]:
    """States `(N, H)` behind the final norm."""
    return [states.flatten(0, 1) for states in hidden_states(backbone, output, layers)]


def _behind(row: EncodedResponse, shared: int) -> EncodedResponse:
    """A row without its first tokens."""
    return row._replace(input_ids=row.input_ids[shared:], response_start=row.response_start - shared)


def _packed(reader: Reader, groups: Sequence[Sequence[EncodedResponse]]) -> _Pass:
    """Short rows: each group one packed row."""
    ids = [[row.input_ids for row in group] for group in groups]
    packed = pack_rows(ids, [group[0].response_start for group in groups], reader.pad)
    # All tokens see the common beginning
    mask = F.pad(branch_mask(reader.backbone, packed.branch_ids), (reader.length, 0))
    output = reader.backbone(
        packed.input_ids,
        attention_mask=mask,
        position_ids=packed.position_ids + reader.length,
        past_key_values=reader.past(len(groups)),
        output_hidden_states=True,
    )
    states = _layers(reader.backbone, output, reader.layers)
    return _Pass(states, packed.input_ids.flatten(), packed.token_index)


def _cached(reader: Reader, groups: Sequence[Sequence[EncodedResponse]]) -> _Pass:
    """Long rows of one group: its prompt, and then its responses, a few at a time, which read the prompt's keys."""
    (group,), backbone, layers = groups, reader.backbone, reader.layers
    start = group[0].response_start
    ids = torch.tensor([group[0].input_ids[:start]])
    prompt = backbone(ids, past_key_values=reader.past(1), output_hidden_states=True, use_cache=True)
    hidden, all_ids = [_layers(backbone, prompt, layers)], [ids.flatten()]
    index = torch.full((len(group), max(len(row.input_ids) for row in group)), -1)
    index[:, :start] = torch.arange(start)
    first, place = 0, start
    while first < len(group):
        part = [row.input_ids[start:] for row in group[first:]]
        # Rows come by length, so that the last of a batch is its widest
        fits = [k for k, row in enumerate(part, start=1) if k * len(row) <= BATCH_TOKENS]
        part = part[: max(fits, default=1)]
        width = max(map(len, part))
        responses = torch.full((len(part), width), reader.pad)
        for i, row in enumerate(part):
            responses[i, : len(row)] = torch.tensor(row)
            index[first + i, start : start + len(row)] = place + i * width + torch.arange(len(row))
        first, place = first + len(part), place + responses.numel()
        keys = deepcopy(prompt.past_key_values)
        keys.batch_repeat_interleave(len(part))
        positions = reader.length + start + torch.arange(width)[None]
        output = backbone(responses, past_key_values=keys, position_ids=positions, output_hidden_states=True)
        hidden.append(_layers(backbone, output, layers))
        all_ids.append(responses.flatten())
    return _Pass([torch.cat(parts) for parts in zip(*hidden, strict=True)], torch.cat(all_ids), index)


def _mean(states: Tensor, index: Tensor, keep: Tensor) -> Tensor:
    """Means of states `(B * T, H)` over the tokens of each row that are kept, as a product with their weights."""
    weights = torch.zeros(len(index), len(states))
    weights.scatter_add_(1, index, keep.float() / keep.sum(1, keepdim=True))
    return weights @ states.float()


def batches_of(encoded: Sequence[EncodedResponse], same: Sequence[str]) -> list[list[list[int]]]:
    """
    Batches of groups of rows; rows of a group have the same prompt, as the texts `same` say, and tokens in it.

    Short groups share a batch, long ones are one of their own.
    """
    by_prompt = dict[tuple[Any, ...], list[int]]()
    for i in sorted(range(len(encoded)), key=lambda i: (same[i], len(encoded[i].input_ids))):
        by_prompt.setdefault((same[i], *encoded[i].input_ids[: encoded[i].response_start]), []).append(i)
    groups = list(by_prompt.values())
    lengths = [
        encoded[g[0]].response_start + sum(len(encoded[j].input_ids) - encoded[j].response_start for j in g)
        for g in groups
    ]
    short = [k for k, length in enumerate(lengths) if length <= MOST_PACKED]
    filled = fill_batches([lengths[k] for k in short], [1] * len(short), 10**9, BATCH_TOKENS)
    alone = sorted((k for k, length in enumerate(lengths) if length > MOST_PACKED), key=lambda k: lengths[k])
    return [[groups[short[k]] for k in batch] for batch in filled] + [[groups[k]] for k in alone]


def cache_states(folder: Path, task: TaskPairs, model: Any, tokenizer: Any, layers: Sequence[int]) -> None:
    """
    Compute the states of a task's rows that `folder` has not yet, in files of some batches each.

    Args:
        folder (`Path`):
            Folder of the task. What is there is kept: after a stop the work goes on with the next file.
        task ([`~toolkit.experiments.study.task_pairs.TaskPairs`]):
            The task.
        model ([`~transformers.PreTrainedModel`]):
            Decoder without a head, whose `dtype` is that of the computation.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, with a chat template.
        layers (`Sequence[int]`):
            Numbers of layers.
    """
    rows = rows_of(task)
    texts = [said(prompt) for prompt in rows.prompts]
    turns = {text: turn_parts(tokenizer, prompt) for text, prompt in zip(texts, rows.prompts, strict=True)}
    encoded = [
        encode_response(tokenizer, prompt, response, turn=turns[text])
        for text, prompt, response in zip(texts, rows.prompts, rows.responses, strict=True)
    ]
    ends, boundaries = end_ids(tokenizer), torch.tensor(segment_boundary_ids(tokenizer))
    reader = begin(model, encoded, layers, tokenizer.pad_token_id)
    batches, shards = batches_of(encoded, texts), list[list[list[list[int]]]]()
    size = 0
    for batch in batches:
        if not shards or size > SHARD_TOKENS:
            shards.append([])
            size = 0
        shards[-1].append(batch)
        size += sum(len(encoded[i].input_ids) for group in batch for i in group)
    folder.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(tqdm(shards, desc=task.task.name)):
        file = folder / f"{number:04}-of-{len(shards):04}.safetensors"
        if file.exists():
            continue
        parts, order = list[Tensor](), list[int]()
        for batch in shard:
            rows_of_batch = [[encoded[i] for i in group] for group in batch]
            parts.append(read_states(reader, rows_of_batch, ends, boundaries).half())
            order += [i for group in batch for i in group]
        count = torch.tensor([len(encoded[i].input_ids) - encoded[i].response_start for i in order])
        kept = {"rows": torch.tensor(order), "tokens": count, "vectors": torch.cat(parts)}
        save_file(kept, f"{file}.part")
        os.replace(f"{file}.part", file)


def load_states(folder: Path, task: TaskPairs, layers: int) -> States:
    """The states of a task at a number of layers. Raises `ValueError` where some are missing or of other layers."""
    pairs = rows_of(task).pairs
    count = int(pairs.max()) + 1
    vectors, tokens, found = None, torch.zeros(count, dtype=torch.long), 0
    for part in _parts(folder):
        if vectors is None:
            vectors = torch.empty(count, *part["vectors"].shape[1:], dtype=torch.float16)
        vectors[part["rows"]], tokens[part["rows"]] = part["vectors"], part["tokens"]
        found += len(part["rows"])
    if vectors is None or found != count:
        raise ValueError(f"'{folder}' has states of {found} of {count} rows. Compute the others first.")
    if vectors.size(1) != layers:
        raise ValueError(f"'{folder}' has states of {vectors.size(1)} layers in place of {layers}. Remove it.")
    return States(vectors, tokens, pairs)


def _parts(folder: Path) -> Iterator[dict[str, Tensor]]:
    files: Iterable[Path] = sorted(folder.glob("*.safetensors"))
    for file in files:
        yield load_file(file)
