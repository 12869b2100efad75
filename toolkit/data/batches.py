"""Batches of pairs and lists: their collator, prompts shared or not, and samplers that put like lengths together."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import BatchRebalanceSampler, LengthGroupedSampler
from trl.trainer.reward_trainer import DataCollatorForPreference

from .packing import first_rows_first, pack_rows
from .tastes import TASTE_COLUMNS

SIDES = ("chosen", "rejected")  # rows of a pair, a group of two, in their order
# No input of the model
BESIDE_THE_ROWS = (
    "margin",
    "weight",
    "group_sizes",
    "response_tokens",
    "pair_tokens",
    "ranks",
    "pairs",
    *TASTE_COLUMNS[1:],
)

# Lengths that differ by less count as alike, so that chance has a say in who shares a batch.
LENGTH_STEP = 32


class StateTable(NamedTuple):
    """What a head reads of `N` rows, and the columns of a data set that say which of them a pair or a list has."""

    states: Tensor  # (N, 4, H) float32
    columns: tuple[str, str]  # of the sides of a pair, in the order of `SIDES`
    layers: dict[int, Tensor]  # the same after other layers of the decoder, by their number
    list_column: str = ""  # of the responses of a list


@dataclass
class MultiScaleCollator(DataCollatorForPreference):
    """
    TRL's collator for pairs, with where each response starts and the weight of each pair; and the same for lists.

    A batch of `P` pairs has `2 P` rows, all chosen first: `input_ids` and `attention_mask` `(2 P, T)` int64,
    `response_start` and `response_tokens` `(2 P,)` int64, `group_sizes` `(P,)` int64, how many rows belong together,
    which is 2 for a pair, `pair_tokens` `(P,)` int64, how many tokens pass through the decoder for a pair, and
    `margin` and `weight` `(P,)` float32 where the data have them. A batch of `G` lists has the first response of every
    list, then the second of every list that has one, and so on, and `ranks` `(G, K)` int64, -1 beyond a list's last.
    Where the data have them, `annotator` int64 of every row, and `annotator_share` `(P,)` and `attribute_gaps`
    `(P, m)` float32 as in [`~toolkit.data.tastes.add_tastes`].
    So has one of pairs by their prompts, with `pairs` `(P, 2)` int64 in place of `ranks`: the rows of each pair.

    Args:
        shared_prompts (`bool`, *optional*, defaults to `False`):
            Whether the responses of a pair or list are packed into one row: `input_ids` and `attention_mask` are
            `(P, T)`, and `position_ids`, `branch_ids` and `token_index` are those of
            [`~toolkit.data.packing.PackedRows`].
        table ([`StateTable`], *optional*):
            States that were computed before. Pairs with its columns have `states` `(2 P, 4, H)` float32 in place of
            tokens and what belongs to them.
        longest (`int`, *optional*, defaults to 2):
            Responses of the longest list, `K`, so that all batches have ranks of one shape; a longer one makes more.
    """

    shared_prompts: bool = False
    table: StateTable | None = None
    longest: int = len(SIDES)

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        groups, starts = zip(*map(group_of, examples), strict=True)
        sizes = [len(group) for group in groups]
        order = first_rows_first(sizes)
        rows, start = ([each for group in parts for each in group] for parts in (groups, starts))
        shared = [example["shared_tokens"] for example in examples] if self.shared_prompts else [0] * len(examples)
        response_start = torch.tensor(start)[order]
        if self.table is not None and (places := self._places(examples)):
            batch = {"states": self.table.states[[places[i] for i in order]]}
        else:
            batch = self._tokens(list(groups), shared, order) | {"response_start": response_start}
        batch["response_tokens"] = torch.tensor([len(row) for row in rows])[order] - response_start
        batch["group_sizes"] = torch.tensor(sizes)
        batch["pair_tokens"] = torch.tensor([sum(map(len, group)) for group in groups])
        batch["pair_tokens"] -= torch.tensor(shared) * (batch["group_sizes"] - 1)
        return batch | self._labels(examples, sizes, order)

    def _tokens(self, groups: list[list[list[int]]], shared: list[int], order: list[int]) -> dict[str, Tensor]:
        """Packed rows of the groups, or a row of each response."""
        options = (self.pad_token_id, self.pad_to_multiple_of)
        if self.shared_prompts:
            packed = pack_rows(groups, shared, *options)
            return packed._replace(token_index=packed.token_index[order])._asdict()
        rows = [row for group in groups for row in group]
        plain = pack_rows([[rows[i]] for i in order], [0] * len(rows), *options)  # nothing is shared
        return {"input_ids": plain.input_ids, "attention_mask": plain.attention_mask}

    def _labels(self, examples: list[dict[str, Any]], sizes: list[int], order: list[int]) -> dict[str, Tensor]:
        """What is known of the responses of a batch: weights, margins, ranks, pairs."""
        found, by_prompt = dict[str, Tensor](), "response_pairs" in examples[0]
        for column in ("margin", "weight"):
            if column in examples[0]:
                values = [example[column] for example in examples]
                values = [value for own in values for value in own] if by_prompt else values
                found[column] = torch.tensor(values, dtype=torch.float)
        if by_prompt:
            before = zip(accumulate([0, *sizes[:-1]]), examples, strict=True)
            rows = [
                [first + place for place in pair] for first, example in before for pair in example["response_pairs"]
            ]
            found["pairs"] = torch.tensor(order).argsort()[torch.tensor(rows)]
        index, *floats = TASTE_COLUMNS
        if index in examples[0]:
            own = [example[index] for example, size in zip(examples, sizes, strict=True) for _ in range(size)]
            found["annotator"] = torch.tensor(own)[order]
        for column in (each for each in floats if each in examples[0]):
            found[column] = torch.tensor([example[column] for example in examples], dtype=torch.float)
        if "response_ranks" in examples[0]:
            width = max(self.longest, *sizes)
            ranks = [example["response_ranks"] for example in examples]
            found["ranks"] = torch.tensor([own + [-1] * (width - len(own)) for own in ranks])
        return found

    def _places(self, examples: list[dict[str, Any]]) -> list[int]:
        """Rows of the table, group by group; none where the examples have no such columns."""
        assert self.table is not None
        if self.table.list_column in examples[0]:
            return [place for example in examples for place in example[self.table.list_column]]
        if self.table.columns[0] not in examples[0]:
            return []
        return [example[column] for example in examples for column in self.table.columns]


def group_of(example: dict[str, Any]) -> tuple[list[list[int]], list[int]]:
    """Token ids of the responses of a tokenized pair or list, each with its prompt, and where each of them starts."""
    if "response_ids" in example:
        return example["response_ids"], example["response_starts"]
    return [example[f"{side}_ids"] for side in SIDES], [example[f"{side}_start"] for side in SIDES]


def has_lists(dataset: Any) -> bool:
    """Whether a tokenized data set is one of ranked lists."""
    return "response_ranks" in dataset.column_names


def longest_list(dataset: Any) -> int:
    """Responses of the longest list of a tokenized data set, or of a pair."""
    return max(map(len, dataset["response_ranks"])) if has_lists(dataset) else len(SIDES)


class EpochLengthGroupedSampler(LengthGroupedSampler):
    """
    Transformers' sampler for rows of like length, with its batches in random order, which seed and epoch decide.

    Transformers' own goes from the longest batch to the shortest, fifty at a time, so that for as many steps in a row
    a model sees long rows, and then short ones. And it draws from the global generator, on which the order of a
    resumed run, and of each process, would hang.

    Args:
        batch_size (`int`):
            Rows of a batch.
        lengths (`list[int]`):
            Length of every row.
        seed (`int`):
            Seed.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Accelerate calls it at the beginning of every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        rows = list(super().__iter__())  # type: ignore[no-untyped-call]
        batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        # The longest stays the first, so that too little memory shows at once, and one that is not full the last.
        whole = len(rows) // self.batch_size
        order = [0, *(1 + torch.randperm(max(0, whole - 1), generator=self.generator)).tolist()][:whole]
        return iter([i for batch in [*order, *range(whole, len(batches))] for i in batches[batch]])


class EpochBatchRebalanceSampler(BatchRebalanceSampler):
    """Transformers' sampler that cuts each step's pairs into batches of like length; it learns of every epoch."""

    @property
    def sampler(self) -> "EpochBatchRebalanceSampler":
        """Where Accelerate looks for `set_epoch` behind a sampler that it has wrapped."""
        return self


class TokenBudgetSampler(EpochBatchRebalanceSampler):
    """
    Batches of as many rows of like length as fit into a number of tokens, in random order, for one of the processes.

    The processes' batches of a step have equally many rows. Every epoch has equally many batches. The longest come
    first, so that too little memory shows at once. Where the last rows cannot be divided among the processes, the last
    one is repeated. It is a `BatchRebalanceSampler` because [`~transformers.Trainer`] takes those for samplers
    of whole batches that know their process.

    Args:
        lengths (`list[int]`):
            Tokens of every row.
        max_tokens (`int`):
            Most tokens of a batch, padding included.
        seed (`int`):
            Seed.
        processes (`int`):
            Number of processes.
        rank (`int`):
            Index of this one.

    Raises:
        `ValueError`: If a row alone has more tokens.
    """

    def __init__(self, lengths: list[int], max_tokens: int, seed: int, processes: int, rank: int) -> None:
        if max(lengths) > max_tokens:
            row = lengths.index(max(lengths))
            raise ValueError(
                f"Row {row + 1} alone has {max(lengths)} tokens, more than `max_tokens_per_batch={max_tokens}`. Raise "
                "it, or lower `max_length`."
            )
        self.steps = torch.tensor([-(-length // LENGTH_STEP) for length in lengths])
        self.seed, self.processes, self.rank, self.epoch = seed, processes, rank, 0
        self.sizes: list[int] = []  # rows of a batch of one process, the longest rows first
        longest, done = max(lengths), 0
        widths = [min(step * LENGTH_STEP, longest) for step in self.steps.sort(descending=True).values.tolist()]
        while done < len(lengths):
            remaining = -(-(len(lengths) - done) // processes)
            self.sizes.append(min(max_tokens // widths[done], remaining))
            done += self.sizes[-1] * processes

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.steps), generator=generator)
        order = order[self.steps[order].argsort(descending=True, stable=True)]
        order = torch.cat([order, order[-1:].expand(sum(self.sizes) * self.processes - len(order))])
        batches = order.split([size * self.processes for size in self.sizes])
        for batch in [0, *(1 + torch.randperm(len(batches) - 1, generator=generator)).tolist()]:
            yield batches[batch][self.rank :: self.processes].tolist()


def longest_first(lengths: list[int]) -> list[int]:
    """
    Indices of rows by falling length; rows of one length in their own order.

    Args:
        lengths (`list[int]`):
            Length of every row.

    Returns:
        `list[int]`
    """
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


def train_sampler(dataset: Dataset, args: Any, shared_prompts: bool) -> Sampler[Any] | None:
    """
    Sampler of a reward training, where another than Transformers' own is asked for.

    Args:
        dataset (`datasets.Dataset`):
            Tokenized pairs.
        args ([`MultiScaleRewardConfig`]):
            Configuration: `max_tokens_per_batch`, `train_sampling_strategy`, sizes of batches, seeds, processes.
        shared_prompts (`bool`):
            Whether the responses of a pair or list are one row.

    Returns:
        `torch.utils.data.Sampler`: Of rows, or of whole batches of this process; `None` for Transformers' own.
    """
    seed = args.seed if args.data_seed is None else args.data_seed
    lengths = dataset[args.length_column_name][:]
    rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if args.max_tokens_per_batch:
        multiple = args.pad_to_multiple_of or 1
        most = 1
        if not shared_prompts:
            lists = "response_ids" in dataset.column_names
            groups = (
                dataset["response_ids"] if lists else zip(*(dataset[f"{side}_ids"] for side in SIDES), strict=True)
            )
            sizes = [[len(row) for row in group] for group in groups]
            lengths, most = [max(own) for own in sizes], max(map(len, sizes))  # every list counts as the longest
        padded = [-(-length // multiple) * multiple * most for length in lengths]
        return TokenBudgetSampler(padded, args.max_tokens_per_batch, seed, args.world_size, args.process_index)
    if args.train_sampling_strategy == "group_by_length":
        return EpochLengthGroupedSampler(rows, lengths, seed)
    if args.train_sampling_strategy == "batch_rebalance":
        return EpochBatchRebalanceSampler(
            lengths,
            effective_batch_size=rows,
            dp_size=args.world_size,
            grad_accum=args.gradient_accumulation_steps,
            seed=seed,
            rank=args.process_index,
            drop_last=args.dataloader_drop_last,
        )
    return None
