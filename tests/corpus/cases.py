"""What a case of the corpus is: something that a user does, and what must come of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

ANYTHING = object()


class Refused(NamedTuple):
    """
    It must end with one line.

    Args:
        found (`str`):
            Piece of the line that says what was found, and where. `…` stands for anything.
        remedy (`str`):
            Piece of the line, after `found`, that says what to do.
        status (`int`, *optional*, defaults to `2`):
            Exit status, where it is a command that is refused.
    """

    found: str
    remedy: str
    status: int = 2


class Accepted(NamedTuple):
    """
    It must work.

    Args:
        said (`str`, *optional*):
            What must be told on the way, in what is printed or logged. `…` stands for anything.
        value (`Any`, *optional*):
            What must come out of it.
    """

    said: str = ""
    value: Any = ANYTHING


class Case(NamedTuple):
    """
    Something odd, wrong or damaged, and what must come of it.

    Args:
        name (`str`):
            What is odd about it.
        act (`Callable[[Bench], Any]`):
            What the user does.
        expected ([`Refused`] or [`Accepted`]):
            What must come of it.
        given (`Callable[[Bench], Any]`, *optional*):
            Makes what the user has before, in the case's own folder. None of it may be changed by what is done.
        destroys (`tuple[str, ...]`, *optional*):
            Names of files that the user asks to be replaced or deleted.
        unclear (`str`, *optional*):
            Why the outcome is not clear yet, where it is known not to be.
    """

    name: str
    act: Callable[[Any], Any]
    expected: Refused | Accepted
    given: Callable[[Any], Any] = lambda bench: None
    destroys: tuple[str, ...] = ()
    unclear: str = ""


class Refusal(Exception):  # noqa: N818  # it is what was expected
    """
    What several ways to one thing say of it: each must be clear.

    Args:
        messages (`list[str]`):
            Their lines.
        status (`int`, *optional*):
            Exit status, of a command.
    """

    def __init__(self, messages: list[str], status: int | None = None) -> None:
        super().__init__(messages, status)
        self.messages, self.status = messages, status


class Disagreement(Exception):  # noqa: N818
    """Two ways to one thing of which only one refuses it."""
