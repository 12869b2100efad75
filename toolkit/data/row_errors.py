"""What is wrong with a row of a data set, and where the row stands."""

import json
from typing import Any


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

    def at(self, name: str, number: int) -> ValueError:
        """The error of a row, by the number that the reader of a file or data set sees."""
        return ValueError(
            f"Data set '{name}', row {number}, column '{self.column}': found {self.found}. {self.remedy}"
        )


def describe(value: Any) -> str:
    """A value in an error message: its kind and how it begins."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return f"a number: {value}"
    kind = "text" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"
    return f"{kind}: {str(value)[:40]!r}"
