"""What is wrong with a row of a data set, and where the row stands in its file."""

import gzip
import json
import os
from collections.abc import Iterator
from itertools import islice
from typing import IO, Any

BUILDERS = {".jsonl": "json", ".json": "json", ".jsonl.gz": "json", ".parquet": "parquet"}


class RowError(Exception):
    """
    What is wrong with one value of a row, before it is known where the row stands.

    Args:
        column (`str`):
            Column of the value.
        found (`str`):
            What was found.
        remedy (`str`):
            What to do.
        no_preference (`bool`, *optional*, defaults to `False`):
            Whether all that is wrong is that the row states no preference.
    """

    def __init__(self, column: str, found: str, remedy: str, no_preference: bool = False) -> None:
        super().__init__(column, found, remedy)
        self.column, self.found, self.remedy, self.no_preference = column, found, remedy, no_preference

    def at(self, name: str, index: int) -> ValueError:
        """The error of a row by its index in a file or data set; blank lines of a JSON file count, but are no rows."""
        is_json = builder(name) == "json" and os.path.isfile(name)
        numbers = (number for number, _ in json_rows(name)) if is_json else iter(())
        return self.at_row(name, next(islice(numbers, index, None), index + 1))

    def at_row(self, name: str, number: int) -> ValueError:
        """The error of a row, by the number that a user sees."""
        return ValueError(
            f"Data set '{name}', row {number}, column '{self.column}': found {self.found}. {self.remedy}"
        )


def builder(path: str) -> str | None:
    """What of `datasets` reads a file, by its ending; `None` for other endings."""
    return next((found for suffix, found in BUILDERS.items() if path.endswith(suffix)), None)


def open_text(path: str) -> IO[Any]:
    """A file or a packed file, as text."""
    return (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8", errors="replace")


def json_rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSON file and their numbers: the line, blank ones counted, or the place in a list."""
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            is_list = line.lstrip().startswith("[")
            try:
                rows = json.loads(line + file.read()) if is_list else [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError as error:
                found = f"row {number + error.lineno - 1}, character {error.colno}: not valid JSON ({error.msg})"
                raise ValueError(f"Data set '{path}', {found}. Write one object a line, or one list.") from None
            for place, row in enumerate(rows, start=1 if is_list else number):
                if not isinstance(row, dict):
                    raise ValueError(f"Data set '{path}', row {place}: found {describe(row)}. Write an object.")
                yield place, row


def describe(value: Any) -> str:
    """A value in an error message: its kind and how it begins."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return f"a number: {value}"
    kind = "text" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"
    return f"{kind}: {str(value)[:40]!r}"
