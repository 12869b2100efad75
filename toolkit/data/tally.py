"""What was found in the rows of a set of preference pairs, counted, and whether the set as a whole can be used."""

from collections.abc import Callable, Iterable

EQUAL = "responses that are the same once they are tokens"


class Tally:
    """
    How many rows have which peculiarity, and the first of each.

    Args:
        name (`str`):
            Data set or file, as messages shall name it.
        number (`Callable[[int], int]`, *optional*):
            Number that the reader sees of a row, of what is counted of it; by default that is its number.
    """

    def __init__(self, name: str, number: Callable[[int], int] = int) -> None:
        self.name = name
        self.number = number
        self.rows: dict[str, list[int]] = {}

    def add(self, what: str, index: int) -> None:
        """Count a row, by its index or number."""
        self.rows.setdefault(what, [0, index])[0] += 1

    def total(self) -> int:
        """How many rows were counted."""
        return sum(count for count, _ in self.rows.values())

    def __str__(self) -> str:
        return "; ".join(
            f"{count} with {what} (row {self.number(index)}{' is the first' if count > 1 else ''})"
            for what, (count, index) in self.rows.items()
        )


def check_left_out(left_out: Tally, rows: int, form_name: str) -> None:
    """
    Refuse a set of which too much was left out.

    Args:
        left_out ([`Tally`]):
            The rows that were left out.
        rows (`int`):
            Number of all rows.
        form_name (`str`):
            What the set was read as.

    Raises:
        `ValueError`: If it is more than half.
    """
    if left_out.total() > rows / 2:
        what = f"{left_out.total()} of {rows} rows cannot be used: {left_out}"
        how = f"It was read as {form_name}. Check that this is its form, or remove these rows"
        raise ValueError(f"Data set '{left_out.name}': {what}. More than half is too much. {how}.")


def check_pairs(name: str, pairs: int, strengths: Iterable[float] | None) -> None:
    """
    Refuse a set that prefers nothing.

    Args:
        name (`str`):
            Data set or file, as errors shall name it.
        pairs (`int`):
            Number of pairs that can be used.
        strengths (`Iterable[float]` or `None`):
            Their strengths; `None` where the set has none.

    Raises:
        `ValueError`: If there is no pair, or every strength is 0.
    """
    if pairs == 0:
        raise ValueError(f"Data set '{name}': no row states a preference. Give it at least one that does.")
    if strengths is not None and not any(strengths):
        raise ValueError(f"Data set '{name}', column 'strength': found 0 in every row. Write others, or remove it.")


def check_equal(name: str, equal: int, pairs: int, what: str = "pairs") -> None:
    """
    Refuse a set whose responses a tokenizer or its template makes equal.

    Args:
        name (`str`):
            Data set or file, as errors shall name it.
        equal (`int`):
            Number of pairs whose sides are the same tokens.
        pairs (`int`):
            Number of all pairs.
        what (`str`, *optional*, defaults to `"pairs"`):
            What they are.

    Raises:
        `ValueError`: If it is more than half.
    """
    if equal > pairs / 2:
        found = f"{equal} of {pairs} {what} have {EQUAL}. More than half is too much"
        raise ValueError(f"Data set '{name}': {found}. Look what the chat template leaves of a response.")
