"""Where a row has its prompt: in `prompt`, or in the columns by which other people call it."""

import re
from typing import Any, NamedTuple

from .answers import Row
from .messages import MARK, MESSAGES, TEXT, Messages, conversation, kind_of, unpack
from .row_errors import RowError, describe

# Beside `prompt` and `instruction`, each alone
NAMES = (
    "question",
    "query",
    "input",
    "context",
    "post",
    "history",
    "conversations",
    "conversation",
    "messages",
    "dialogue",
    "dialog",
    "trajectory",
)
INSIDE = ("full_text", "messages")  # what was asked, in an object that says more
SYSTEMS = ("system", "system_prompt")
REJECTED_PROMPT = "rejected_prompt"  # where the two sides of a pair answer different prompts
# Of columns that may be prompts whatever they hold, and of those that describe the pair unless they hold long texts
HINTS = re.compile(r"prompt|instruct|quest|quer|input|context|post|history|article|document|problem|text|title|body")
LABELS = re.compile(
    r"(^|_)(ids?|hash|url|date|time|source|models?|split|subset|category|domain|lang|language|annotator|"
    r"worker|task|type|label|license|name|group|tags?|rating|score)$"
)
WORDS, MANY_WORDS = 1.5, 4  # on average, from which a column may be a prompt; the second of columns that describe


class Prompts(NamedTuple):
    """Columns of the prompt: what is asked and may follow it, turns before it, system message and its context."""

    column: str | None
    more: str | None = None
    history: str | None = None
    system: str | None = None
    context: str | None = None
    is_marked: bool = False  # turns are marked in the text of some prompts

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(column for column in self[:5] if column)

    @property
    def name(self) -> str:
        named = " and ".join(f"`{column}`" for column in self.columns)
        return (
            f"prompt in {named}" if self.column else " and ".join(["prompt at the beginning of both", *self.columns])
        )

    def read(self, row: Row, notes: list[str]) -> str | Messages | Any:
        """What is asked: as it was found, or messages where there is more to it than one text."""
        column = str(self.column)
        value = unpack(row.get(column), column)
        if isinstance(value, dict):
            value = next((value[key] for key in INSIDE if value.get(key)), value)
        if self.more and row.get(self.more):
            if not (isinstance(value, str) and isinstance(row[self.more], str)):
                raise RowError(self.more, describe(row[self.more]), "Write it as text.")
            value = f"{value}\n{row[self.more]}"
        if not (self.history or self.system or self.context or self.is_marked):
            return value
        kind = kind_of(value, column)
        asked = [{"role": "user", "content": value}] if kind == TEXT else conversation(value, "prompt", kind, notes)
        return self.with_system(row, [*self._earlier(row, notes), *asked])

    def with_system(self, row: Row, prompt: Messages) -> Messages:
        """The prompt after the row's system message, if there is one that the prompt lacks, and the row's context."""
        own = prompt[:1] if prompt and prompt[0]["role"] == "system" else []
        said = [own[0]["content"] if own else _text(row, self.system), _text(row, self.context)]
        system = "\n\n".join(text for text in said if text.strip())
        return [{"role": "system", "content": system}, *prompt[len(own) :]] if system else prompt

    def _earlier(self, row: Row, notes: list[str]) -> Messages:
        """Turns before the last question: messages, or lists of a question and its answer."""
        turns = (unpack(row.get(self.history), self.history) if self.history else None) or []
        if not isinstance(turns, list):
            raise RowError(str(self.history), describe(turns), "Write a list of turns.")
        if turns and isinstance(turns[0], (list, tuple)):
            both = [turn if isinstance(turn, (list, tuple)) and len(turn) == 2 else [None] for turn in turns]
            if not all(isinstance(said, str) for turn in both for said in turn):
                raise RowError(str(self.history), describe(turns), "Write a list of questions with their answers.")
            turns = [
                {"role": role, "content": said}
                for turn in turns
                for role, said in zip(("user", "assistant"), turn, strict=True)
            ]
        return conversation(turns, str(self.history), MESSAGES, notes)


def _text(row: Row, column: str | None) -> str:
    value = (row.get(column) if column else None) or ""
    if not isinstance(value, str):
        raise RowError(str(column), describe(value), "Write it as text, or remove the column.")
    return value


def find_prompts(rows: list[Row], columns: list[str], name: str, is_whole: bool = False) -> Prompts:
    """
    Find out where rows have their prompt.

    Args:
        rows (`list[dict]`):
            First rows.
        columns (`list[str]`):
            Columns of the data set.
        name (`str`):
            Data set or file, as errors shall name it.
        is_whole (`bool`, *optional*, defaults to `False`):
            Whether the responses are whole conversations, which hold their prompt.

    Returns:
        `Prompts`: Its `column` is `None` where the prompt is what responses have in common at their beginning.

    Raises:
        `ValueError`: If several columns may be the prompt.
    """
    lists = [each for each in columns if any(isinstance(row.get(each), list) for row in rows)]
    column: str | None = next((each for each in ("prompt", "instruction") if each in columns), None)
    if column != "prompt" and not is_whole:
        own = {"instruction": ("input",)}.get(str(column), ())
        named = [each for each in ("instruction", *NAMES) if each in columns and each not in own]
        if len(named) > 1 and "history" in lists:
            named.remove("history")
        if len(named) > 1:
            remedy = "Put all that was asked into a column 'prompt'"
            raise ValueError(f"Data set '{name}': each of the columns {named} may be the prompt. {remedy}.")
        column = named[0] if named else None
    if is_whole and column != "prompt":
        column = None
    more = "input" if column == "instruction" and "input" in columns else None
    # Messages hold their earlier turns
    history = "history" if column not in (None, "history", *lists) and "history" in lists else None
    # Beside `prompt` such a column may hold names of the systems that responded
    words = 2 if column == "prompt" else 1
    system = next((each for each in SYSTEMS if any(_has_words(row.get(each), words) for row in rows)), None)
    context = "context" if column != "context" and any(row.get("context") for row in rows) else None
    is_marked = any(isinstance(row.get(column), str) and MARK in row[column] for row in rows if column)
    return Prompts(column, more, history, system, context, is_marked)


def _has_words(value: Any, count: int) -> bool:
    return isinstance(value, str) and len(value.split()) >= count


def looks_like_prompts(rows: list[Row], columns: list[str]) -> list[str]:
    """Columns whose texts or messages may be prompts, by their name or their length."""
    return [column for column in columns if _looks_like_prompts([row.get(column) for row in rows], column)]


def _looks_like_prompts(values: list[Any], column: str) -> bool:
    values = [unpacked for value in values if (unpacked := _text_or_messages(value))]
    if not values or (len(values) > 1 and all(value == values[0] for value in values)):
        return False
    if not isinstance(values[0], str):
        return True
    words = sum(len(value.split()) if isinstance(value, str) else MANY_WORDS for value in values) / len(values)
    describes = LABELS.search(column.lower())
    return words >= (MANY_WORDS if describes else WORDS) or bool(HINTS.search(column.lower()) and not describes)


def _text_or_messages(value: Any) -> Any:
    value = unpack(value, "") if not (isinstance(value, str) and value.startswith("[{'")) else value
    is_messages = (
        isinstance(value, list) and value and isinstance(value[0], dict) and {"role", "from"} & value[0].keys()
    )
    return value if isinstance(value, str) or is_messages else None
