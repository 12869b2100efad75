"""Performs cases, and tells a clear outcome from the others."""

import contextlib
import fnmatch
import hashlib
import io
import logging
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.corpus.bench import Bench
from tests.corpus.cases import ANYTHING, Accepted, Case, Disagreement, Refusal, Refused

CLEAR, ACCEPTED, UNCLEAR, SILENT, LOST = KINDS = ("clear", "accepted", "unclear", "silent", "lost")
MOST_CHARACTERS = 700  # of a line that a person still reads
# What the package raises for users, and what its commands and recipes turn into a line
USERS = (ValueError, TypeError, OSError, ImportError)


class Outcome(NamedTuple):
    """What came of a case: one of `KINDS`, and the words by which it can be looked into."""

    kind: str
    told: str


class _Done(NamedTuple):
    """What was seen of an act that has ended."""

    value: Any
    messages: list[str]  # of what refused it
    status: int | None
    fault: str  # a traceback, of what is no message for users
    told: str  # printed, logged and warned of


def perform(case: Case, bench: Bench) -> Outcome:
    """
    Do what a case says, and judge what came of it.

    Args:
        case ([`Case`]):
            The case.
        bench ([`Bench`]):
            With a folder of its own.

    Returns:
        [`Outcome`]
    """
    case.given(bench)
    before = _contents(bench.folder)
    done = _act(case, bench)
    gone = sorted(name for name, _ in before - _contents(bench.folder) if name not in case.destroys)
    if gone:
        return Outcome(LOST, f"{gone} are not what they were. {done.told}")
    return _judge(case.expected, done)


def _judge(expected: Refused | Accepted, done: _Done) -> Outcome:
    if done.fault:
        return Outcome(UNCLEAR, done.fault)
    if isinstance(expected, Refused):
        if not done.messages:
            return Outcome(SILENT, f"It came to {done.value!r}. {done.told}")
        pattern = f"{expected.found}…{expected.remedy}"
        wrong = [line for line in done.messages if not (_is_line(line) and matches(line, pattern))]
        if not wrong and done.status in (None, expected.status):
            return Outcome(CLEAR, done.messages[0])
        return Outcome(UNCLEAR, f"status {done.status}, not “{pattern}”:\n" + "\n".join(wrong or done.messages))
    if done.messages:
        return Outcome(UNCLEAR, "refused: " + "\n".join(done.messages))
    if expected.value is not ANYTHING and done.value != expected.value:
        return Outcome(SILENT, f"It came to {done.value!r}, not {expected.value!r}. {done.told}")
    if not matches(done.told, expected.said):
        return Outcome(SILENT, f"Nothing says “{expected.said}”: {done.told}")
    return Outcome(ACCEPTED, done.told)


def matches(text: str, pattern: str) -> bool:
    """Whether a pattern, in which `…` stands for anything, is found in a text."""
    pieces = ["".join(f"[{c}]" if c in "[*?" else c for c in piece) for piece in pattern.split("…")]
    return fnmatch.fnmatchcase(text, f"*{'*'.join(pieces)}*")


def _is_line(message: str) -> bool:
    return len(message.splitlines()) == 1 and len(message) <= MOST_CHARACTERS


def _act(case: Case, bench: Bench) -> _Done:
    value, messages, status, fault = None, [], None, ""
    with _heard() as told:
        try:
            value = case.act(bench)
        except Refusal as refusal:
            messages, status = refusal.messages, refusal.status
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
            messages = [told.getvalue().strip()]
        except USERS as error:
            # Of a traceback a reader sees the last line alone
            messages = [str(error)]
            if _is_foreign(error):
                fault = traceback.format_exc(limit=-6)
        except Disagreement as error:
            fault = str(error)
        except Exception:
            fault = traceback.format_exc(limit=-6)
    return _Done(value, messages, status, fault, told.getvalue())


def _is_foreign(error: BaseException) -> bool:
    """Whether it is a slip of the program, such as an argument of the wrong type, rather than a message."""
    return isinstance(error, TypeError) and not str(error).rstrip().endswith(".")


@contextlib.contextmanager
def _heard() -> Iterator[io.StringIO]:
    """Takes all that is printed, logged and warned of."""
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    loggers = [logging.getLogger(name) for name in ("", "transformers", "datasets")]
    for logger in loggers:
        logger.addHandler(handler)
    once = getattr(logging.Logger, "warning_once", None)
    if once is not None:
        once.cache_clear()  # every case hears all
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
                yield told
        told.writelines(f"{warning.message}\n" for warning in caught)
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def _contents(folder: Path) -> set[tuple[str, str]]:
    """Name and digest of every file of a folder; one that is moved with its folder keeps both."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files}
