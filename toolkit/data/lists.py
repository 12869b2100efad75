"""Ranked lists: several responses to a prompt in one row, and where the row says how they rank."""

from collections.abc import Iterable
from functools import partial
from itertools import permutations
from typing import Any, NamedTuple

from .answers import ITEMS, MOST_RESPONSES, NO_PREFERENCE, Answers, Row, number
from .row_errors import RowError, describe

RANKED_COLUMNS = ("responses", "ranks")
# Columns with a value of each response, the first of them that a set has
ORDERS = {
    "ranks": "`ranks`, the lowest the best",
    "scores": "`scores`, the highest the best",
    "attributes": "the mean of each one's `attributes`, the highest the best",
}


class Ranking(NamedTuple):
    """Responses of a row in their own order, with dense ranks: 0 is the best, equal ranks are a tie."""

    column: str
    responses: list[Any]
    ranks: list[int]

    @property
    def chosen(self) -> Any:
        """One of the best."""
        return self.responses[self.ranks.index(0)]

    @property
    def rejected(self) -> Any:
        """One of the worst."""
        return self.responses[self.ranks.index(max(self.ranks))]

    def sides(self) -> Row:
        """The responses by where they stand."""
        return {f"{self.column}[{place}]": response for place, response in enumerate(self.responses, start=1)}


def find_lists(rows: list[Row], columns: list[str]) -> Answers | None:
    """
    Find out how rows rank their responses.

    Args:
        rows (`list[dict]`):
            First rows.
        columns (`list[str]`):
            Columns of the data set.

    Returns:
        `Answers` or `None`: Whose `read` gives a [`Ranking`]; `None` where there are no lists of responses, or nothing
        says how they rank.
    """
    column, order = column_of_lists(rows, columns), next((each for each in ORDERS if each in columns), None)
    if column is None or order is None:
        return None
    read = partial(_read, column=column, order=order)
    return Answers(f"lists of `{column}`, by {ORDERS[order]}", (column, order), False, read, lists=True)


def column_of_lists(rows: list[Row], columns: list[str]) -> str | None:
    """A column in which rows have a list of responses."""
    return next(
        (each for each in ITEMS if each in columns and any(isinstance(row.get(each), list) for row in rows)), None
    )


def _read(row: Row, column: str, order: str) -> Iterable[Any]:
    responses, values = row.get(column), row.get(order)
    if not isinstance(responses, list) or len(responses) > MOST_RESPONSES:
        found = f"{len(responses)} responses" if isinstance(responses, list) else describe(responses)
        raise RowError(column, found, f"Write a list of up to {MOST_RESPONSES} responses.")
    if isinstance(values, dict):  # an object of lists
        values = [dict(zip(values, each, strict=False)) for each in zip(*values.values(), strict=False)]
    if not isinstance(values, list) or len(values) != len(responses):
        found = f"{len(values)} values" if isinstance(values, list) else describe(values)
        raise RowError(order, found, f"Write one for each of the {len(responses)} responses.")
    numbers = _means(values) if order == "attributes" else [number(value, order) for value in values]
    sign = 1 if order == "ranks" else -1
    place = {value: rank for rank, value in enumerate(sorted({sign * value for value in numbers}))}
    if len(place) < 2:
        raise RowError(order, "no two responses of different rank", NO_PREFERENCE, no_preference=True)
    return [Ranking(column, responses, [place[sign * value] for value in numbers])]


def _means(values: list[Any]) -> list[float]:
    means = []
    for value in values:
        if not isinstance(value, dict) or not value or value.keys() != values[0].keys():
            raise RowError("attributes", describe(value), "Write the same names with numbers for each response.")
        means.append(sum(number(each, f"attributes.{name}") for name, each in value.items()) / len(value))
    return means


def pairs_of(row: Row) -> list[Row]:
    """
    Every two responses of a ranked list that are not tied, as pairs.

    Args:
        row (`dict`):
            A pair, or a list, in the form of [`~toolkit.data.formats.normalize_pairs`].

    Returns:
        `list[dict]`: Pairs with the row's other columns; the pair itself where it is one.
    """
    if "chosen" in row:
        return [row]
    others = {column: value for column, value in row.items() if column not in ("prompt", *RANKED_COLUMNS)}
    ranked = list(zip(row["responses"], row["ranks"], strict=True))
    return [
        {"prompt": row["prompt"], "chosen": better, "rejected": worse, **others}
        for (better, rank), (worse, other) in permutations(ranked, 2)
        if rank < other
    ]
