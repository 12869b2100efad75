"""What models are compared on: responses to score, and the pairs and sets that they make."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from transformers.utils.logging import get_logger

from ..data.answers import is_several
from ..data.files import row_number
from ..data.formats import keep_normalized, normalize_pairs
from ..data.lists import pairs_of
from ..data.messages import Messages, text_of
from ..data.prompts import REJECTED_PROMPT
from ..data.row_errors import RowError, describe
from ..data.tastes import ANNOTATOR, ATTRIBUTES, attribute_gaps
from ..data.templates import TEMPLATE_COLUMNS

logger = get_logger(__name__)

GROUPS = ("file", "task", "subset", ANNOTATOR)  # by which accuracy is broken down, where the data have them
TIES = "ties"  # RewardBench 2's subset with many right answers, in any case of its letters


class ResponseSet(NamedTuple):
    """Several responses to one prompt, of which the first ones are right."""

    responses: list[int]  # places among the responses that are scored
    correct: int
    subset: str | None
    id: str | None


class RankedList(NamedTuple):
    """Several responses to one prompt, with dense ranks: 0 is the best, equal ranks are a tie."""

    responses: list[int]  # places among the responses that are scored
    ranks: list[int]
    prompt: int  # its number
    id: Any


class ScoredPairs(NamedTuple):
    """`R` distinct responses to score, and the `P` pairs that they make."""

    prompts: list[str | Messages]  # (R,)
    responses: list[str | Messages]  # (R,)
    columns: dict[str, list[Any]]  # (R,) each, what the chat template is given beside them
    lengths: Tensor  # (R,) int64, in characters
    chosen: Tensor  # (P,) int64, places among the responses
    rejected: Tensor  # (P,) int64
    prompt_numbers: Tensor  # (P,) int64, from 0 on, of the chosen side; pairs of one prompt have one number
    groups: dict[str, list[str | None]]  # (P,) each, by the names in `GROUPS`; None where a row does not say it
    attributes: dict[str, Tensor]  # (P,) float64 each, by how much the chosen side has more of it; NaN where not known
    ids: list[Any]  # (P,) the column `id`, else the number of the pair in its file
    sets: list[ResponseSet]
    lists: list[RankedList]  # whose every two responses that are not tied are among the pairs
    undecided: int  # prompts with three responses or more of which no best one is known


class Scored(NamedTuple):
    """One score of `R` responses that is compared with others, or what a reader says of `P` pairs of them."""

    name: str
    kind: str
    scores: Tensor  # (R,) float64
    scales: dict[str, Tensor]  # (R,) float64 each; of a multi-scale model
    attributes: Mapping[str, Tensor] = MappingProxyType({})  # (R,) float64 each; outputs that were taught these
    gaps: Tensor | None = None  # (P,) float64, in nats; where they are no differences of scores

    def gaps_of(self, pairs: ScoredPairs) -> Tensor:
        """By how much the chosen response of each pair is preferred, `(P,)` float64."""
        return self.scores[pairs.chosen] - self.scores[pairs.rejected] if self.gaps is None else self.gaps


class PairReader:
    """
    Puts pairs and sets of responses together, each distinct response once.

    Args:
        size (`int`, *optional*):
            Most rows of a table; the others are left out at random, which a warning says.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size
        self._responses: dict[str, int] = {}
        self._prompts: dict[str, int] = {}
        self._rows: list[tuple[Any, Any, dict[str, Any]]] = []
        self._pairs: list[tuple[int, int, int]] = []
        self._told: list[tuple[dict[str, str | None], Any]] = []
        self._attributes: list[dict[str, float]] = []
        self._no_numbers: Counter[str] = Counter()
        self._sets: list[ResponseSet] = []
        self._lists: list[RankedList] = []
        self._undecided = 0

    def add(self, name: str, table: Dataset) -> None:
        """
        Take the pairs of a table, or its sets of responses: rows whose `chosen` and `rejected` are lists of texts, as
        RewardBench 2 has them.

        Args:
            name (`str`):
                File or data set, as errors shall name it.
            table (`datasets.Dataset`):
                Its rows, as they were found.

        Raises:
            `ValueError`: Naming the row at fault.
        """
        first = table[0] if len(table) else {}
        if all(is_several(first.get(side)) for side in ("chosen", "rejected")):
            for index, row in self._some(name, table):
                try:
                    self._add_set(name, row)
                except RowError as error:
                    raise error.at(name, row_number(name, index)) from None
            return
        begins, rows = len(self._pairs), normalize_pairs(table, name, whole_lists=True)
        for index, row in self._some(name, rows):
            id = row.get("id", index + 1)
            for pair in pairs_of(row):
                self._add_pair(name, pair, pair["chosen"], pair["rejected"], id)
            if "ranks" in row:
                places = [self._place(row["prompt"], response, row) for response in row["responses"]]
                self._lists.append(RankedList(places, row["ranks"], self._number(row["prompt"]), id))
        self._add_decided([pair for pair in self._pairs[begins:] if self._of_one_prompt(pair)])

    def result(self) -> ScoredPairs:
        """
        All that was added.

        Returns:
            [`ScoredPairs`]
        """
        chosen, rejected, prompts = torch.tensor(self._pairs, dtype=torch.long).view(-1, 3).unbind(1)
        if self._no_numbers:
            found = ", ".join(f"`{name}` of {pairs:,}" for name, pairs in self._no_numbers.items())
            logger.warning(
                f"Of {len(self._pairs):,} pairs these are no finite numbers, by which nothing is evaluated: {found}. "
                "Write an object of numbers for each of the two responses."
            )
        told = {name: [groups[name] for groups, _ in self._told] for name in GROUPS}
        return ScoredPairs(
            prompts=[prompt for prompt, _, _ in self._rows],
            responses=[response for _, response, _ in self._rows],
            columns={
                name: [columns.get(name) for _, _, columns in self._rows]
                for name in TEMPLATE_COLUMNS
                if any(columns.get(name) is not None for _, _, columns in self._rows)
            },
            lengths=torch.tensor([len(text_of(response)) for _, response, _ in self._rows]),
            chosen=chosen,
            rejected=rejected,
            prompt_numbers=prompts,
            groups={name: labels for name, labels in told.items() if any(label is not None for label in labels)},
            attributes={
                name: torch.tensor([gaps.get(name, math.nan) for gaps in self._attributes], dtype=torch.float64)
                for name in sorted(set(chain.from_iterable(self._attributes)))
            },
            ids=[id for _, id in self._told],
            sets=self._sets,
            lists=self._lists,
            undecided=self._undecided,
        )

    def _some(self, name: str, table: Dataset) -> Iterable[tuple[int, dict[str, Any]]]:
        indices: Sequence[int] = range(len(table))
        if self.size is not None and len(table) > self.size:
            indices = sorted(
                torch.randperm(len(table), generator=torch.Generator().manual_seed(0))[: self.size].tolist()
            )
            logger.warning(f"{self.size:,} of the {len(table):,} rows of '{name}' are evaluated, drawn at random.")
        return zip(indices, keep_normalized(table.select(indices), table), strict=True)

    def _place(self, prompt: Any, response: Any, row: Mapping[str, Any]) -> int:
        columns = {name: row[name] for name in TEMPLATE_COLUMNS if row.get(name) is not None}
        place = self._responses.setdefault(json.dumps([prompt, response, columns]), len(self._rows))
        if place == len(self._rows):
            self._rows.append((prompt, response, columns))
        return place

    def _add_pair(self, name: str, row: Mapping[str, Any], chosen: Any, rejected: Any, id: Any) -> None:
        other = row.get(REJECTED_PROMPT, row["prompt"])
        places = self._place(row["prompt"], chosen, row), self._place(other, rejected, row)
        self._pairs.append((*places, self._number(row["prompt"])))
        told = {group: None if row.get(group) is None else str(row[group]) for group in GROUPS}
        self._told.append((told | {"file": Path(name).name}, id))
        gaps, odd = attribute_gaps(row.get(ATTRIBUTES))
        self._attributes.append(gaps)
        self._no_numbers.update(odd.keys())

    def _number(self, prompt: Any) -> int:
        return self._prompts.setdefault(json.dumps(prompt), len(self._prompts))

    def _of_one_prompt(self, pair: tuple[int, int, int]) -> bool:
        return bool(self._rows[pair[0]][0] == self._rows[pair[1]][0])

    def _add_set(self, name: str, row: dict[str, Any]) -> None:
        _check_set(row)
        is_text = isinstance(row["prompt"], str)
        right, wrong = (
            [text if is_text else [{"role": "assistant", "content": text}] for text in row[side]]
            for side in ("chosen", "rejected")
        )
        places = [self._place(row["prompt"], response, row) for response in right + wrong]
        label = None if row.get("subset") is None else str(row["subset"])
        self._sets.append(ResponseSet(places, len(right), label, None if row.get("id") is None else str(row["id"])))
        for better, worse in product(right, wrong):
            if better != worse:
                self._add_pair(name, row, better, worse, row.get("id"))

    def _add_decided(self, pairs: list[tuple[int, int, int]]) -> None:
        """Sets of three responses or more to one prompt, where some lost no pair and each of them beat all others."""
        of_prompt: dict[int, list[tuple[int, int]]] = {}
        for chosen, rejected, number in pairs:
            of_prompt.setdefault(number, []).append((chosen, rejected))
        for judged in of_prompt.values():
            lost = dict.fromkeys(rejected for _, rejected in judged)
            best = list(dict.fromkeys(chosen for chosen, _ in judged if chosen not in lost))
            if len(best) + len(lost) < 3:
                continue
            if best and set(product(best, lost)) <= set(judged):
                self._sets.append(ResponseSet([*best, *lost], len(best), None, None))
            else:
                self._undecided += 1


def _check_set(row: Mapping[str, Any]) -> None:
    prompt = row.get("prompt")
    if not isinstance(prompt, str | list) or not prompt:
        raise RowError("prompt", describe(prompt), "Write text or messages.")
    for side in ("chosen", "rejected"):
        if not is_several(row.get(side)) or not all(text.strip() for text in row[side]):
            raise RowError(
                side, describe(row.get(side)), "Write a list of texts, none of them empty, as in other rows."
            )
    counts = {"num_correct": len(row["chosen"]), "total_completions": len(row["chosen"]) + len(row["rejected"])}
    for column, count in counts.items():
        if row.get(column) not in (None, count):
            raise RowError(column, describe(row[column]), f"The row has {count}: correct one of the two.")
    if str(row.get("subset", "")).lower() == TIES:
        kind, _, number = str(row.get("id", "")).partition(":")
        if kind not in ("ref", "tied") or not number.isdecimal():
            raise RowError(
                "id", describe(row.get("id")), "In the subset of ties write 'ref:' or 'tied:' and a number."
            )
