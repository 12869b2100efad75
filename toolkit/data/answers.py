"""Where a row says which of its responses was preferred, and how clearly, in the forms that people publish.

Forms are known by their columns and what stands in them, not by the names of data sets.
"""

import math
import re
from collections.abc import Callable, Iterable
from functools import partial
from itertools import combinations, product
from typing import Any, NamedTuple, TypeGuard

from .row_errors import RowError, describe

Row = dict[str, Any]

CHOSEN = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("response_j", "response_k"),
    ("preferred_output", "non_preferred_output"),
)
# What judges gave each side: `score_chosen`, `chosen_score`, `chosen-rating`, `chosen_avg_rating` and the like
_SCORE = re.compile(r"(?:score|rating)_chosen|chosen[_-](?:score|rating|avg_rating)")
_FIRST = re.compile(r"((?:response|answer|output|completion|summary|human_ref|conversation)_?)([01aA])")
_ENDS = {"0": "1", "1": "2", "a": "b", "A": "B"}
# Values of a column that says which of two responses is better: 1 is the first one, -1 the second, 0 neither
LABELS: dict[str, dict[Any, int]] = {
    "better_response_id": {0.0: 1, 1.0: -1},
    "preference": {1.0: 1, 2.0: -1},
    "winner": {"model_a": 1, "model_b": -1, "tie": 0, "tie (bothbad)": 0},
    "labels": {1.0: 1, 0.0: -1},
}
LABELS_OF = "human_ref_A"  # the response beside which `labels` is known (SHP): elsewhere it may mean anything
AS_IN = {
    "better_response_id": " as in PKU-SafeRLHF",
    "winner": " as in Chatbot Arena",
    "labels": " as in SHP",
    "preference_strength": " as in HelpSteer 2",
    "overall_preference": " as in HelpSteer 3",
}
SIGNED = ("preference_strength", "overall_preference")  # negative where the first response is better
RATIO = "score_ratio"  # of the votes for the preferred response to those for the other one
ITEMS = ("completions", "answers", "responses")
ITEM_TEXTS, ITEM_SCORES = ("response", "answer", "text", "content"), ("overall_score", "score", "rating", "rank")
ONE = ("response", "helpfulness")
MOST_RESPONSES = 100  # to one prompt, in rows of one response each
NO_PREFERENCE = "Write what was preferred, or remove the row."


class Answer(NamedTuple):
    """Two responses of a row, the preferred one first, and how clear the preference was where the row says it."""

    chosen: Any
    rejected: Any
    strength: float | None = None

    def sides(self) -> Row:
        """The responses by their column."""
        return {"chosen": self.chosen, "rejected": self.rejected}


class Answers(NamedTuple):
    """How to read the responses: what the user is told, the columns that are read, and what reads a row."""

    name: str
    columns: tuple[str, ...]
    has_strength: bool
    read: Callable[[Row], Iterable[Any]]  # an [`Answer`], or with `lists` a [`~toolkit.data.lists.Ranking`]
    lists: bool = False


def number(value: Any, column: str) -> float:
    """A finite number, which may be written as text, as in CSV files; else a [`RowError`]."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise RowError(column, describe(value), "Write a number, or remove the column.")
    return found


def find_answers(rows: list[Row], columns: list[str]) -> Answers | None:
    """
    Find out how rows give their responses.

    Args:
        rows (`list[dict]`):
            First rows.
        columns (`list[str]`):
            Columns of the data set.

    Returns:
        `Answers` or `None`: `None` where no known form has these columns.
    """
    for chosen, rejected in CHOSEN:
        if {chosen, rejected} <= set(columns):
            scores = _scores(rows, columns)
            told = f", strength from `{scores[0]}` - `{scores[1]}`" if scores else ""
            read: Callable[[Row], Iterable[Answer]] = partial(_chosen, chosen=chosen, rejected=rejected, scores=scores)
            return Answers(
                f"`{chosen}` and `{rejected}`{told}", (chosen, rejected, *(scores or ())), bool(scores), read
            )
    if (two := find_two(columns)) and (found := _two(columns, *two)):
        return found
    for column in ITEMS:
        if keys := _item_keys(rows, column):
            told = f"every two of `{column}`, strength from the difference in `{keys[1]}`, as in UltraFeedback"
            return Answers(told, (column,), True, partial(_items, column=column, text=keys[0], score=keys[1]))
    if {"prompt", *ONE} <= set(columns):
        told = "every two neighbours of one prompt, strength from the difference in `helpfulness`, as in HelpSteer"
        return Answers(told, ONE, True, OneARow())
    return None


def find_two(columns: list[str]) -> tuple[str, str] | None:
    """Columns of two responses that are called by numbers or letters."""
    for first in columns:
        parts = _FIRST.fullmatch(first)
        if parts and (second := parts[1] + _ENDS[parts[2]]) in columns:
            return first, second
    return None


def _chosen(row: Row, chosen: str, rejected: str, scores: tuple[str, str] | None) -> Iterable[Answer]:
    gap = None
    if scores:
        gap = number(row.get(scores[0]), scores[0]) - number(row.get(scores[1]), scores[1])
        _check_gap(gap, scores[0])
    better, worse = (value if is_several(value) else [value] for value in (row.get(chosen), row.get(rejected)))
    return [Answer(*pair, gap) for pair in product(better, worse)]


def is_several(value: Any) -> TypeGuard[list[str]]:
    """Whether a cell is several responses: a list of texts, as in RewardBench 2."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _check_gap(gap: float, column: str) -> None:
    if gap == 0:
        raise RowError(column, "the same score for both responses", NO_PREFERENCE, no_preference=True)
    if gap < 0:
        found = "scores that contradict which response was preferred"
        raise RowError(column, found, NO_PREFERENCE, no_preference=True)


def _scores(rows: list[Row], columns: list[str]) -> tuple[str, str] | None:
    """Columns with the scores of both sides, unless they are empty in all rows or `strength` says it."""
    for column in columns if "strength" not in columns else ():
        other = column.replace("chosen", "rejected")
        is_given = any(row.get(each) not in (None, "") for row in rows for each in (column, other))
        if _SCORE.fullmatch(column) and other in columns and is_given:
            return column, other
    return None


def _two(columns: list[str], first: str, second: str) -> Answers | None:
    """Two responses beside columns that say which one is better."""
    named = [f"score_{first[-1]}", f"score_{second[-1]}"]
    scores = named if set(named) <= set(columns) else []
    labels = [each for each in (*LABELS, *SIGNED) if each in columns and (each != "labels" or first == LABELS_OF)]
    label = labels[0] if labels else None
    if label is None and not scores:
        return None
    ratio = RATIO if RATIO in columns and label else None
    told = f"`{first}` and `{second}`" + (f", by `{label}`{AS_IN.get(label, '')}" if label else "")
    if label in SIGNED:
        told += ", strength from its size"
    elif ratio or scores:
        told += f", strength from ln `{ratio}`" if ratio else f", strength from `{scores[0]}` - `{scores[1]}`"
    read = partial(_read_two, first=first, second=second, label=label, scores=scores, ratio=ratio)
    columns_read = (first, second, *scores, *(each for each in (label, ratio) if each))
    return Answers(told, columns_read, bool(ratio or scores or label in SIGNED), read)


def _read_two(
    row: Row, first: str, second: str, label: str | None, scores: list[str], ratio: str | None
) -> Iterable[Answer]:
    gap = number(row.get(scores[0]), scores[0]) - number(row.get(scores[1]), scores[1]) if scores else None
    side = _side(row.get(label), label) if label else gap or 0.0
    if side == 0:
        raise RowError(label or scores[0], "no response that is better", NO_PREFERENCE, no_preference=True)
    strength = abs(side) if label in SIGNED else None
    if gap is not None:
        _check_gap(math.copysign(1, side) * gap, scores[0])
        strength = strength or abs(gap)
    if ratio and label not in SIGNED:
        strength = _logarithm(row.get(ratio), ratio)
    sides = (row.get(first), row.get(second))
    return [Answer(*(sides if side > 0 else sides[::-1]), strength)]


def _side(value: Any, label: str) -> float:
    """Positive where the first of two responses is better, negative where the second is, 0 where neither is."""
    if label in SIGNED:
        return -number(value, label)
    key = value if label == "winner" else number(value, label)
    if not isinstance(key, (str, float)) or key not in LABELS[label]:
        known = [int(each) if isinstance(each, float) else each for each in LABELS[label]]
        raise RowError(label, describe(value), f"Write one of {known}.")
    return float(LABELS[label][key])


def _logarithm(value: Any, column: str) -> float:
    ratio = number(value, column)
    if ratio < 1:
        raise RowError(column, describe(value), "Write the ratio of the preferred response's score to the other's.")
    return math.log(ratio)


def _item_keys(rows: list[Row], column: str) -> tuple[str, str] | None:
    """Names of text and score in a list of rated responses."""
    items = next((found for row in rows if (found := _list_of_items(row.get(column)))), None)
    if items is None:
        return None
    text, score = (next((name for name in names if name in items[0]), None) for names in (ITEM_TEXTS, ITEM_SCORES))
    return (text, score) if text and score else None


def _list_of_items(value: Any) -> list[Row] | None:
    """A list of objects, which older tables hold as an object of lists."""
    if isinstance(value, dict) and value and all(isinstance(each, list) for each in value.values()):
        return [dict(zip(value, each, strict=False)) for each in zip(*value.values(), strict=False)]
    return value if isinstance(value, list) and all(isinstance(item, dict) for item in value) else None


def _items(row: Row, column: str, text: str, score: str) -> Iterable[Answer]:
    """Every two of a row's responses with different scores; a rank is better the lower it is."""
    items = _list_of_items(row.get(column))
    if items is None:
        raise RowError(column, describe(row.get(column)), "Write a list of rated responses.")
    rated = [(item.get(text), number(item.get(score), f"{column}.{score}")) for item in items]
    sign = -1 if score == "rank" else 1
    pairs = [_by_score(one, other, sign) for one, other in combinations(rated, 2) if one[1] != other[1]]
    if not pairs:
        raise RowError(column, "no two responses with different scores", NO_PREFERENCE, no_preference=True)
    return pairs


def _by_score(one: tuple[Any, float], other: tuple[Any, float], sign: int = 1) -> Answer:
    better, worse = (one, other) if sign * one[1] > sign * other[1] else (other, one)
    return Answer(better[0], worse[0], abs(one[1] - other[1]))


class OneARow:
    """Pairs of neighbouring rows with one prompt, each with one response and its helpfulness (HelpSteer)."""

    def __init__(self) -> None:
        self.prompt: Any = None
        self.earlier: list[tuple[Any, float]] = []
        self._alone = 0

    @property
    def alone(self) -> int:
        """How many prompts had one response only, which makes no pair."""
        return self._alone + (len(self.earlier) == 1)

    def __call__(self, row: Row) -> Iterable[Answer]:
        response, score = row.get("response"), number(row.get("helpfulness"), "helpfulness")
        if row.get("prompt") != self.prompt or not self.earlier:
            self._alone += len(self.earlier) == 1
            self.prompt, self.earlier = row.get("prompt"), []
        if len(self.earlier) >= MOST_RESPONSES:
            found = f"more than {MOST_RESPONSES} neighbouring rows with one prompt"
            raise RowError("prompt", found, "Every two of them would make a pair: leave fewer.")
        before, self.earlier = self.earlier, [*self.earlier, (response, score)]
        pairs = [_by_score(other, (response, score)) for other in before if other[1] != score]
        if before and not pairs:
            found = "the same helpfulness as in the rows before with this prompt"
            raise RowError("helpfulness", found, NO_PREFERENCE, no_preference=True)
        return pairs
