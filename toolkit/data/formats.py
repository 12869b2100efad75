"""Preference pairs and prompts in TRL's formats, brought to one, with every row checked.

After [`normalize_pairs`] a table has the columns `prompt`, `chosen` and `rejected`, all plain text or all lists of
`{role, content}` messages, and `margin` and `strength` as floats where the data has them.
"""

import re
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers.utils.logging import get_logger

from .messages import Messages, text_of
from .row_errors import RowError, describe

logger = get_logger(__name__)

RowFunction = Callable[[dict[str, Any], dict[str, str]], dict[str, Any]]

TEXT_COLUMNS = ("prompt", "chosen", "rejected")
NUMBER_COLUMNS = ("margin", "strength")
TEXT, MESSAGES, TRANSCRIPT = "plain text", "messages", "a Human/Assistant transcript"
ROLES = {"Human": "user", "Assistant": "assistant"}
# Those of HH-RLHF begin with a blank line, which may be missing where an answer follows; lines may end in either way
_BEGINS = re.compile(r"\r?\n\r?\nHuman:|\s*Human:.*?\r?\n\r?\nAssistant:", re.DOTALL)
FLOAT = Value("float64")
GREATEST = 1e6  # of a margin, in nats, or a strength: beyond it losses and means of weights overflow
INDEX = "index of the row"  # a column while rows are dropped
MESSAGES_FEATURE = List({"role": Value("string"), "content": Value("string")})
NO_PREFERENCE = "Write what was preferred, remove the row, or set `drop_unusable_pairs` to leave such rows out."
# Tables whose every row is in the one form. Whatever changes a table makes another one, which is not among them.
_NORMALIZED: WeakSet[Dataset] = WeakSet()
FORMS = "`chosen` and `rejected`, as text or lists of {role, content} messages, with such a `prompt` or after it"


def normalize_pairs(dataset: Dataset, name: str, drop_unusable: bool = False) -> Dataset:
    r"""
    Bring preference pairs to one form and check every row, once: what it returned it gives back as it is.

    A pair has a `prompt`, or its prompt is what `chosen` and `rejected` have in common at the beginning. Values are
    text, lists of messages, or transcripts that start with `"\n\nHuman:"` (HH-RLHF), which become messages. Responses
    in plain text to a conversational prompt become the assistant's message. Of a message, role and content stay.

    Args:
        dataset (`datasets.Dataset`):
            The pairs, all in one form.
        name (`str`):
            Data set or file, as errors shall name it.
        drop_unusable (`bool`, *optional*, defaults to `False`):
            Whether rows that state no preference, because their responses are the same or one is empty, are left out,
            which a warning counts, instead of refused.

    Returns:
        `datasets.Dataset`: `prompt`, `chosen`, `rejected`, then `margin` and `strength` as floats where they were
        found, then the other columns unchanged. A prompt may be empty.

    Raises:
        `ValueError`: If a column is missing, a value is of the wrong kind, a message has tool calls, rows differ in
            form, a response is empty or not the assistant's, both are the same, no row is left, a margin or strength
            is not finite, a strength is negative, or all are 0.
    """
    if dataset in _NORMALIZED:
        return dataset
    absent = [column for column in ("chosen", "rejected") if column not in dataset.column_names]
    if absent:
        raise ValueError(f"Data set '{name}' has no column {absent}; it has {dataset.column_names}. It needs {FORMS}.")
    result = _map_pairs(dataset, name, _normalize_pair, _form(dataset, name, drop_unusable), drop_unusable)
    if len(result) == 0:
        raise ValueError(f"Data set '{name}': no row states a preference. Give it at least one that does.")
    if left_out := len(dataset) - len(result):
        what = f"left out {left_out} of {len(dataset)} pairs, whose responses are the same or one of them empty"
        logger.warning(f"Data set '{name}': {what}.")
    if "strength" not in result.column_names or any(result["strength"][:]):
        _NORMALIZED.add(result)
        return result
    raise ValueError(f"Data set '{name}', column 'strength': found 0 in every row. Write others, or remove it.")


def keep_normalized(dataset: Dataset, source: Dataset) -> Dataset:
    """
    Say of rows taken from a table that they are in the one form if the table's are, so that none is checked twice.

    Args:
        dataset (`datasets.Dataset`):
            Rows of `source`, chosen or reordered, alone or with others like them.
        source (`datasets.Dataset`):
            Where they come from.

    Returns:
        `datasets.Dataset`: `dataset`.
    """
    if source in _NORMALIZED:
        _NORMALIZED.add(dataset)
    return dataset


def _map_pairs(
    dataset: Dataset, name: str, function: RowFunction, form: dict[str, str], drop_unusable: bool = False
) -> Dataset:
    feature = Value("string") if set(form.values()) == {TEXT} else MESSAGES_FEATURE
    numbers = [column for column in NUMBER_COLUMNS if column in dataset.column_names]
    features: dict[str, Any] = dict.fromkeys(TEXT_COLUMNS, feature) | dict.fromkeys(numbers, FLOAT)
    return _map_rows(dataset, name, function, form, features, drop_unusable)


def normalize_prompts(dataset: Dataset, name: str) -> Dataset:
    r"""
    Bring prompts to one form and check every row.

    Args:
        dataset (`datasets.Dataset`):
            Prompts, as text, lists of messages or transcripts that start with `"\n\nHuman:"`; or preference pairs,
            whose prompts are taken.
        name (`str`):
            Data set or file, as errors shall name it.

    Returns:
        `datasets.Dataset`: `prompt`, then the other columns, without `chosen`, `rejected`, `margin` and `strength`.

    Raises:
        `ValueError`: If there is neither a `prompt` nor a pair, a value is of the wrong kind, rows differ in form, a
            prompt is empty or ends with the assistant's message, or the prompt of a pair cannot be told.
    """
    columns = dataset.column_names
    dataset = dataset.remove_columns([column for column in NUMBER_COLUMNS if column in columns])
    if {"chosen", "rejected"} <= set(columns):
        dataset = _map_pairs(dataset, name, _prompt_of_pair, _form(dataset, name, skip_unusable=True))
    elif "prompt" not in columns:
        raise ValueError(f"Data set '{name}' has no column 'prompt'; it has {columns}. Rename it, or give {FORMS}.")
    dataset = dataset.remove_columns([column for column in ("chosen", "rejected") if column in dataset.column_names])
    form = _form(dataset, name)
    features = {"prompt": Value("string") if form["prompt"] == TEXT else MESSAGES_FEATURE}
    return _map_rows(dataset, name, _normalize_prompt, form, features)


def _map_rows(
    dataset: Dataset,
    name: str,
    function: RowFunction,
    form: dict[str, str],
    features: dict[str, Any],
    drop_unusable: bool = False,
) -> Dataset:
    """Replace the columns of `features`, which come first in the result, by what `function` makes of each row."""
    inputs = [column for column in dataset.column_names if column in features]
    others = dataset.select_columns([column for column in dataset.column_names if column not in features])

    def convert(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows = {}
        for index, *values in zip(indices, *(batch[column] for column in inputs), strict=True):
            try:
                rows[index] = _in_form(function, dict(zip(inputs, values, strict=True)), form)
            except RowError as error:
                if not (drop_unusable and error.no_preference):
                    raise error.at(name, index) from None
        return {column: [row[column] for row in rows.values()] for column in features} | {INDEX: list(rows)}

    options = {"batched": True, "with_indices": True, "features": Features(features | {INDEX: Value("int64")})}
    # Checked anew each time: the cache does not notice when the functions that `convert` calls have changed
    options |= {"load_from_cache_file": False, "desc": f"Checking {name}"}
    result = dataset.select_columns(inputs).map(convert, remove_columns=inputs, **options)
    if not others.column_names:
        return result.remove_columns(INDEX)
    if len(result) < len(dataset):
        others = others.select(result[INDEX])
    return concatenate_datasets([result.remove_columns(INDEX), others], axis=1)


def _in_form(function: RowFunction, row: dict[str, Any], form: dict[str, str]) -> dict[str, Any]:
    """What the function makes of a row of the given form; an empty response is of any."""
    for column, kind in form.items():
        found = _kind(row[column], column)
        if found != kind and not (column != "prompt" and _is_empty(row[column])):
            raise RowError(column, found, f"Rows before have {kind}: bring all rows to one form.")
    return function(row, form)


def _form(dataset: Dataset, name: str, skip_unusable: bool = False) -> dict[str, str]:
    """Kind of each text column in the first row, or in the first without an empty response; all rows must share it."""
    if len(dataset) == 0:
        raise ValueError(f"Data set '{name}' is empty. Give it at least one row.")
    for index, row in enumerate(dataset):
        try:
            form = {column: _kind(row[column], column) for column in TEXT_COLUMNS if column in row}
            empty = [column for column in ("chosen", "rejected") if column in form and _is_empty(row[column])]
            if empty and skip_unusable:
                continue
            if empty:
                raise RowError(empty[0], "an empty response", NO_PREFERENCE)
            if form.get("chosen") != form.get("rejected"):
                raise RowError("rejected", form["rejected"], f"'chosen' has {form['chosen']}: write both alike.")
            return form
        except RowError as error:
            raise error.at(name, index) from None
    raise ValueError(f"Data set '{name}': no row states a preference. Give it at least one that does.")


def _kind(value: Any, column: str) -> str:
    if isinstance(value, list):
        return MESSAGES
    if not isinstance(value, str):
        raise RowError(column, describe(value), "Write text or a list of {role, content} messages.")
    return TRANSCRIPT if _BEGINS.match(value) else TEXT


def _conversation(value: Any, column: str, kind: str) -> Messages:
    if kind == TEXT:
        return [{"role": "assistant", "content": value}]
    if kind == MESSAGES:
        for number, message in enumerate(value, start=1):
            fields = message if isinstance(message, dict) else {}
            if not (isinstance(fields.get("role"), str) and isinstance(fields.get("content"), str)):
                raise RowError(column, f"message {number} as {message}", "Write role and content as text in each.")
            if fields.get("tool_calls"):
                raise RowError(column, f"tool calls in message {number}", "Write them into its content, as text.")
            if others := sorted(key for key in fields.keys() - {"role", "content"} if fields[key]):
                logger.warning_once(f"Of messages, role and content are read; what they have beside is not: {others}.")
        return [{"role": message["role"], "content": message["content"]} for message in value]
    lines = value.replace("\r\n", "\n").lstrip()
    _, *turns = re.split(r"\n\n(Human|Assistant):", f"\n\n{lines}")
    messages = [
        {"role": ROLES[who], "content": said.strip()} for who, said in zip(turns[::2], turns[1::2], strict=True)
    ]
    if column == "prompt" and messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()  # the place where the response begins
    return messages


def _is_empty(value: Any) -> bool:
    return not (value.strip() if isinstance(value, str) else value)


def _is_blank(value: str | Messages) -> bool:
    """Whether a text, or the last of several messages, says nothing."""
    return not (text_of(value) if value else "").strip()


def _normalize_pair(row: dict[str, Any], form: dict[str, str]) -> dict[str, Any]:
    pair = _divide(row, form)
    for column in ("chosen", "rejected"):
        response = pair[column]
        if response and not isinstance(response, str) and response[-1]["role"] != "assistant":
            raise RowError(column, f"a last message from '{response[-1]['role']}'", "End it with the assistant's.")
        if _is_blank(response):
            raise RowError(column, "an empty response", NO_PREFERENCE, no_preference=True)
    if pair["chosen"] == pair["rejected"]:
        raise RowError("rejected", "the same response as in 'chosen'", NO_PREFERENCE, no_preference=True)
    return pair | {column: _number(row[column], column) for column in NUMBER_COLUMNS if column in row}


def _prompt_of_pair(row: dict[str, Any], form: dict[str, str]) -> dict[str, Any]:
    """A pair for its prompt's sake, whatever the responses are, as long as they tell where the prompt ends."""
    remedy = "Remove the row: its prompt cannot be told."
    for column in ("chosen", "rejected") if "prompt" not in form else ():
        if _is_empty(row[column]):
            raise RowError(column, "an empty response", remedy)
    if "prompt" not in form and form["chosen"] == TEXT and row["chosen"] == row["rejected"]:
        raise RowError("rejected", "the same text as in 'chosen'", remedy)
    return _divide(row, form)


def _divide(row: dict[str, Any], form: dict[str, str]) -> dict[str, Any]:
    """Prompt and responses of a pair."""
    plain = set(form.values()) == {TEXT}
    pair: dict[str, Any] = row if plain else {each: _conversation(row[each], each, form[each]) for each in form}
    prompt, chosen, rejected = pair.get("prompt", ""), pair["chosen"], pair["rejected"]
    if form.get("prompt", TEXT) != TEXT:
        chosen, rejected = (_continuation(pair["prompt"], pair[column], column) for column in ("chosen", "rejected"))
    elif "prompt" not in form or not plain:
        prompt = chosen[:0]
        if chosen and chosen[:1] == rejected[:1]:  # else TRL's function may take a space from the end of `chosen`
            from trl.data_utils import extract_prompt  # with which come Transformers' models, in seconds

            divided: dict[str, Any] = extract_prompt({"chosen": chosen, "rejected": rejected})
            prompt, chosen, rejected = divided.values()
            if not isinstance(prompt, str):
                chosen, rejected = _after(prompt, chosen, "chosen"), _after(prompt, rejected, "rejected")
        if "prompt" in form and row["prompt"].strip() not in ["", *(message["content"].strip() for message in prompt)]:
            raise RowError("prompt", "plain text that is not in both conversations", "Write it as messages.")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _continuation(prompt: Messages, response: Messages, column: str) -> Messages:
    """The response without the prompt, which whole conversations repeat."""
    rest = response[len(prompt) :] if response[: len(prompt)] == prompt else response
    return _after(prompt, rest, column)


def _after(prompt: Messages, response: Messages, column: str) -> Messages:
    """The response, unless it goes on with the speaker of the prompt's last message."""
    if prompt and response and response[0]["role"] == prompt[-1]["role"]:
        found = f"a response that begins with a message from '{response[0]['role']}', as the prompt ends"
        raise RowError(column, found, "Begin it with the assistant's, or with all messages of the prompt.")
    return response


def _number(value: Any, column: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= GREATEST:
        raise RowError(column, describe(value), f"Write a number up to {GREATEST:g}, or remove the column.")
    if column == "strength" and value < 0:
        raise RowError(column, describe(value), "Write its size, and swap the responses where the sign says so.")
    return float(value)


def _normalize_prompt(row: dict[str, Any], form: dict[str, str]) -> dict[str, Any]:
    plain = form["prompt"] == TEXT
    prompt = row["prompt"] if plain else _conversation(row["prompt"], "prompt", form["prompt"])
    if _is_blank(prompt):
        raise RowError("prompt", "an empty prompt", "Write the prompt, or remove the row.")
    if not plain and prompt[-1]["role"] == "assistant":
        raise RowError("prompt", "a last message from 'assistant'", "End it with the user's.")
    return {"prompt": prompt}
