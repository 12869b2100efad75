"""Messages of a conversation, however it was written down: lists, other people's field names, transcripts, JSON."""

import json
import re
from typing import Any

from .row_errors import RowError, describe

Messages = list[dict[str, str]]

TEXT, MESSAGES, TRANSCRIPT = "plain text", "messages", "a Human/Assistant transcript"
ROLES = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
SPEAKERS = ("user", "assistant", "system")  # whose adjacent turns are one; results of tools stay apart
# Transcripts of HH-RLHF begin with a blank line, which may be missing where an answer follows; lines may end in either
# way. HelpSteer marks the turns after the first one
BEGINS = re.compile(r"\r?\n\r?\nHuman:|\s*Human:.*?\nAssistant:", re.DOTALL)
SPEAKS = re.compile(r"\s*Human:")
MARK = "<extra_id_1>"
_MARKED = re.compile(r"\s*<extra_id_1>(User|Assistant)\s*")
# Shown as nothing: soft hyphens, joiners, marks of direction, byte order marks
INVISIBLE = re.compile("[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
JOINED = "adjacent turns of one speaker, which were joined with a blank line between them"
OTHER_FIELDS = "messages with fields beside role and content, which are not read"


def text_of(value: str | Messages) -> str:
    """
    Text of a prompt or a response.

    Args:
        value (`str` or `list[dict[str, str]]`):
            Plain text, or messages.

    Returns:
        `str`: Plain text as it is; of messages the content of the last one.
    """
    return value if isinstance(value, str) else str(value[-1]["content"])


def check_alike(prompt: Any, response: Any) -> None:
    """
    Refuse a prompt and a response that are not both plain text or both messages.

    Args:
        prompt (`str` or `list[dict[str, str]]`):
            Prompt.
        response (`str` or `list[dict[str, str]]`):
            Response.

    Raises:
        `ValueError`: Naming what each is, if they are not alike.
    """
    kinds = []
    for value in (prompt, response):
        whole = isinstance(value, list | tuple) and value and all(isinstance(each, dict) for each in value)
        kinds.append(TEXT if isinstance(value, str) else MESSAGES if whole else describe(value))
    if kinds not in ([TEXT, TEXT], [MESSAGES, MESSAGES]):
        remedy = "Give both as plain text, or both as lists of {role, content} messages."
        raise ValueError(f"A prompt is {kinds[0]} and its response is {kinds[1]}. {remedy}")


def texts_of(value: str | Messages) -> list[str]:
    """
    Texts of all messages of a prompt or a response.

    Args:
        value (`str` or `list[dict[str, str]]`):
            Plain text, which counts as one message, or messages.

    Returns:
        `list[str]`
    """
    return [value] if isinstance(value, str) else [str(message["content"]) for message in value]


def visible(value: str | Messages) -> str | Messages:
    """
    What a reader sees: without characters that show nothing, and white space of any length as one space.

    Args:
        value (`str` or `list[dict[str, str]]`):
            Plain text, or messages.

    Returns:
        `str` or `list[dict[str, str]]`: As it was given; `""` for text that shows nothing.
    """
    if isinstance(value, str):
        return " ".join((value if value.isascii() else INVISIBLE.sub("", value)).split())
    return [{"role": message["role"], "content": str(visible(message["content"]))} for message in value]


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: text that shows nothing, or no message."""
    return _shows_nothing(value) if isinstance(value, str) else not value


def is_blank(value: str | Messages) -> bool:
    """Whether a text, or the last of several messages, shows nothing."""
    return not value or _shows_nothing(text_of(value))


def _shows_nothing(text: str) -> bool:
    return not text or text.isspace() or not (text.isascii() or visible(text))


def unpack(value: Any, column: str) -> Any:
    """
    A value with messages as a list: one message alone, a dictionary of lists, or JSON in a text become one.

    Args:
        value (`Any`):
            What stands in a row.
        column (`str`):
            Where it stands.

    Raises:
        `RowError`: If it is a list in the way of Python's `repr`.
    """
    if isinstance(value, str) and value.lstrip()[:2] == "[{":
        if re.match(r"\s*\[\{'(role|content|from|value)'", value):
            raise RowError(column, "messages as Python prints them", "Write them as JSON.")
        try:
            found = json.loads(value)
        except json.JSONDecodeError:
            return value
        return found if _has_fields(found[0]) else value
    if isinstance(value, dict) and _has_fields(value):
        if all(isinstance(each, list) for each in value.values()):
            return [dict(zip(value, each, strict=True)) for each in zip(*value.values(), strict=True)]
        return [value]
    return value


def _has_fields(value: Any) -> bool:
    return isinstance(value, dict) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())


def kind_of(value: Any, column: str, expected: str | None = None) -> str:
    """
    Kind of an unpacked value: plain text, messages or a transcript.

    Args:
        value (`Any`):
            What [`unpack`] returned.
        column (`str`):
            Where it stands.
        expected (`str`, *optional*):
            Kind of the rows before: where they are transcripts, one turn alone is one, too.

    Raises:
        `RowError`: If it is of no kind.
    """
    if isinstance(value, list):
        return MESSAGES
    if not isinstance(value, str):
        raise RowError(column, describe(value), "Write text or a list of {role, content} messages.")
    is_marked = MARK in value and _MARKED.search(value)
    alone = expected == TRANSCRIPT and SPEAKS.match(value)
    return TRANSCRIPT if BEGINS.match(value) or is_marked or alone else TEXT


def conversation(value: Any, column: str, kind: str, notes: list[str]) -> Messages:
    """
    Messages of a value; plain text is the assistant's.

    Args:
        value (`Any`):
            What [`unpack`] returned.
        column (`str`):
            Where it stands. A transcript in `"prompt"` may end with the place where the response begins.
        kind (`str`):
            What [`kind_of`] found.
        notes (`list[str]`):
            Takes what was changed on the way.

    Returns:
        `list[dict[str, str]]`: Messages with `role` and `content`, no two neighbours by one speaker.

    Raises:
        `RowError`: If a message has no role or content, or calls a tool.
    """
    if kind == TEXT:
        return [{"role": "assistant", "content": value}]
    if kind == MESSAGES:
        messages = [_message(message, number, column, notes) for number, message in enumerate(value, start=1)]
    else:
        messages = _turns(value.replace("\r\n", "\n"))
        if column == "prompt" and messages[-1] == {"role": "assistant", "content": ""}:
            messages.pop()  # the place where the response begins
    return _joined(messages, notes)


def _message(message: Any, number: int, column: str, notes: list[str]) -> dict[str, str]:
    fields = message if isinstance(message, dict) else {}
    if len(fields) == 2 and fields.get("role") in SPEAKERS and isinstance(fields.get("content"), str):
        return fields  # as nearly all are
    names = ("from", "value") if fields.get("role") is None and "from" in fields else ("role", "content")
    role, content = (fields.get(name) for name in names)
    if not (isinstance(role, str) and isinstance(content, str)):
        raise RowError(column, f"message {number} as {message}", "Write role and content as text in each.")
    if fields.get("tool_calls") or role == "function_call":
        raise RowError(column, f"tool calls in message {number}", "Write them into its content, as text.")
    if any(fields[key] for key in fields.keys() - set(names)):
        notes.append(OTHER_FIELDS)
    known = role.strip().lower()
    known = ROLES.get(known, known)
    return {"role": known if known in SPEAKERS else role, "content": content}


def _turns(text: str) -> Messages:
    if MARK in text and not BEGINS.match(text):
        first, *turns = _MARKED.split(text)
        turns = ["User", first, *turns]
    else:
        lines = text.lstrip()
        # Where blank lines part the turns, a name at the beginning of another line is something said
        part = "\n\n" if text.startswith("\n\n") or "\n\nAssistant:" in lines else "\n"
        _, *turns = re.split(rf"{part}(Human|Assistant):", part + lines)
    said = zip(turns[::2], turns[1::2], strict=True)
    return [{"role": "assistant" if who == "Assistant" else "user", "content": words.strip()} for who, words in said]


def _joined(messages: Messages, notes: list[str]) -> Messages:
    """
    Adjacent turns of one speaker as one turn: many templates refuse a conversation whose speakers do not alternate.
    """
    turns: Messages = []
    for message in messages:
        if turns and message["role"] == turns[-1]["role"] and message["role"] in SPEAKERS:
            said = [each["content"] for each in (turns[-1], message) if each["content"].strip()]
            turns[-1] = message | {"content": "\n\n".join(said)}
            if JOINED not in notes:
                notes.append(JOINED)
        else:
            turns.append(message)
    return turns
