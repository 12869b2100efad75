"""Preference data: load it, check every row, and bring TRL's formats to one.

After [`normalize_pairs`] a table has the columns `prompt`, `chosen` and `rejected`, all plain text or all lists of
`{role, content}` messages, and `margin` and `strength` as floats where the data has them.
"""

import glob
import math
import os
import re
from collections.abc import Callable
from typing import Any

import datasets
from datasets import Dataset, Features, List, Value
from datasets.exceptions import DatasetsError
from transformers.utils.logging import get_logger
from trl.data_utils import extract_prompt

from .row_errors import BUILDERS, NoPreferenceError, RowError, builder, describe, json_rows, open_text

logger = get_logger(__name__)

Messages = list[dict[str, str]]
RowFunction = Callable[[dict[str, Any], dict[str, str]], dict[str, Any]]

TEXT_COLUMNS = ("prompt", "chosen", "rejected")
NUMBER_COLUMNS = ("margin", "strength")
TEXT, MESSAGES, TRANSCRIPT = "plain text", "messages", "a Human/Assistant transcript"
ROLES = {"Human": "user", "Assistant": "assistant"}
FLOAT = Value("float64")
MESSAGES_FEATURE = List({"role": Value("string"), "content": Value("string")})
REMOVE = "Write what was preferred, remove the row, or set `drop_unusable_pairs` to leave such rows out."
FORMS = "`chosen` and `rejected`, as text or lists of {role, content} messages, with such a `prompt` or after it"


def load_table(name_or_path: str, split: str | None = None, config: str | None = None) -> Dataset:
    """
    Load a table of any columns from the hub, a folder, a file or files.

    Args:
        name_or_path (`str`):
            A data set of the hub; a folder that `save_to_disk` wrote or that holds data files; a `.jsonl`,
            `.jsonl.gz`, `.json` or `.parquet` file; or a pattern of such files (`"data/*_train.jsonl.gz"`). Several
            files are concatenated in the order of their names. Columns other than `prompt`, `chosen`, `rejected`,
            `margin` and `strength` stay if every file has them with one type.
        split (`str`, *optional*):
            Split of a hub data set or folder; needed where there are several. A file is one split, named `"train"`.
        config (`str`, *optional*):
            Configuration of a hub data set or folder.

    Returns:
        `datasets.Dataset`: The rows as they were found.

    Raises:
        `ValueError`: If there is no such path, split or configuration, a file is empty, of another kind or not to be
            read, or files differ in the five columns named above.
    """
    return _concatenate(_sources(name_or_path, split, config))


def load_pairs(
    name_or_path: str, split: str | None = None, config: str | None = None, drop_unusable: bool = False
) -> Dataset:
    """[`load_table`], then [`normalize_pairs`] of each file, with their arguments, results and errors."""
    tables = _sources(name_or_path, split, config)
    return _concatenate([(name, normalize_pairs(table, name, drop_unusable)) for name, table in tables])


def load_prompts(name_or_path: str, split: str | None = None, config: str | None = None) -> Dataset:
    """[`load_table`], then [`normalize_prompts`] of each file, with their arguments, results and errors."""
    tables = _sources(name_or_path, split, config)
    return _concatenate([(name, normalize_prompts(table, name)) for name, table in tables])


def _sources(name_or_path: str, split: str | None, config: str | None) -> list[tuple[str, Dataset]]:
    """Tables behind a name, each with the name that errors give it."""
    path = os.path.expanduser(name_or_path)
    files, tables = dict[str, list[str]](), dict[str, Dataset]()
    try:
        if os.path.isfile(path):
            files = {"train": [path]}
        elif any(os.path.isfile(os.path.join(path, file)) for file in ("dataset_dict.json", "state.json")):
            saved = datasets.load_from_disk(path)
            tables = dict(saved) if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
        elif os.path.isdir(path):
            found = datasets.load_dataset_builder(path, config).config.data_files
            files = {str(name): [str(file) for file in found[name]] for name in found}
        elif glob.has_magic(path):
            files = {"train": sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))}
        elif not (builder(path) or path.startswith((".", os.sep)) or path.count("/") > 1):  # else no hub name
            loaded = datasets.load_dataset(path, config, split=split)
            tables = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {str(split): loaded}
    except (DatasetsError, ValueError, OSError) as error:
        asked = f"'{name_or_path}' (split {split!r}, configuration {config!r}) as file, folder or hub data set"
        raise ValueError(f"Cannot load {asked}: {error.__cause__ or error}") from error
    if not tables and not any(files.values()):
        raise ValueError(f"There is no file or folder '{name_or_path}' in '{os.getcwd()}'. Correct the path.")
    splits = list(tables or files)
    split = splits[0] if split is None and len(splits) == 1 else split
    if split not in splits:
        raise ValueError(f"'{name_or_path}' has the splits {splits}, but the split is {split!r}. Choose one of them.")
    return [(name_or_path, tables[split])] if tables else [(file, _load_file(file)) for file in files[split]]


def _load_file(path: str) -> Dataset:
    kind = builder(path)
    if kind is None:
        raise ValueError(f"File '{path}' is none of {list(BUILDERS)}. Convert it, or correct the path.")
    try:
        options = {}
        if kind == "json":
            with open_text(path) as file:
                # One chunk, as later ones are cast to the types of the first: messages would become text
                options["chunksize"] = 1 + sum(len(line.encode()) + 1 for line in file)
        # Escaped, as the loader takes a path for a pattern
        table = datasets.load_dataset(kind, data_files=glob.escape(os.path.abspath(path)), split="train", **options)
        rows = len(table)
    except (DatasetsError, StopIteration, ValueError, OSError, EOFError) as error:
        rows = _find_odd_row(path) if kind == "json" else 1
        if rows:
            raise ValueError(f"File '{path}' is not readable {kind}: {error.__cause__ or error}.") from error
    if rows == 0:
        raise ValueError(f"File '{path}' is empty. Write at least one row.")
    return table


def _find_odd_row(path: str) -> int:
    """Raise on the first value of a JSON file that is of another kind than those before it, else count the rows."""
    count, seen = 0, dict[str, str]()
    try:
        for number, row in json_rows(path):
            count += 1
            for column, value in row.items():
                kind = describe(value).split(":")[0]
                if value is not None and seen.setdefault(column, kind) != kind:
                    raise RowError(column, describe(value), f"Rows before have {seen[column]}.").at_row(path, number)
    except (OSError, EOFError):  # what the loader said of the file holds
        return 1
    return count


def _concatenate(tables: list[tuple[str, Dataset]]) -> Dataset:
    first_name, first = tables[0]
    for name, table in tables[1:]:
        for column in TEXT_COLUMNS + NUMBER_COLUMNS:
            found = [first.features.get(column), table.features.get(column)]
            if found[0] != found[1] and (column in TEXT_COLUMNS or None in found):
                what = f"differ in column '{column}': {found[0]} and {found[1]}"
                raise ValueError(f"Files '{first_name}' and '{name}' {what}. Bring them to one form.")
    parts = [table for _, table in tables]
    for column in [column for column in NUMBER_COLUMNS if column in first.column_names and len(parts) > 1]:
        parts = [part if part.features[column] == FLOAT else part.cast_column(column, FLOAT) for part in parts]
    every = list(dict.fromkeys(column for part in parts for column in part.column_names))
    kept = [c for c in every if all(part.features.get(c) == parts[0].features.get(c) for part in parts)]
    if len(kept) < len(every):
        dropped = sorted(set(every) - set(kept))
        logger.warning(f"Dropped the columns {dropped}: not all files with '{first_name}' have them with one type.")
    return datasets.concatenate_datasets([part.select_columns(kept) for part in parts])


def normalize_pairs(dataset: Dataset, name: str, drop_unusable: bool = False) -> Dataset:
    r"""
    Bring preference pairs to one form and check every row.

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
            form, a response is empty or not the assistant's, both are the same, a margin or strength is not finite, a
            strength is negative, or all are 0.
    """
    result = _map_pairs(dataset, name, _normalize_pair, drop_unusable)
    if len(result) == 0:
        raise ValueError(f"Data set '{name}': no row states a preference. Give it at least one that does.")
    if left_out := len(dataset) - len(result):
        what = f"left out {left_out} of {len(dataset)} pairs, whose responses are the same or one of them empty"
        logger.warning(f"Data set '{name}': {what}.")
    if "strength" not in result.column_names or any(result["strength"][:]):
        return result
    raise ValueError(f"Data set '{name}', column 'strength': found 0 in every row. Write others, or remove it.")


def _map_pairs(dataset: Dataset, name: str, function: RowFunction, drop_unusable: bool = False) -> Dataset:
    absent = [column for column in ("chosen", "rejected") if column not in dataset.column_names]
    if absent:
        raise ValueError(f"Data set '{name}' has no column {absent}; it has {dataset.column_names}. It needs {FORMS}.")
    form = _form(dataset, name, drop_unusable)
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
        dataset = _map_pairs(dataset, name, _prompt_of_pair)
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
    others = {column: feature for column, feature in dataset.features.items() if column not in features}

    def convert(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows = {}
        for place, index in enumerate(indices):
            try:
                rows[place] = _at_row(function, name, index, {column: batch[column][place] for column in inputs}, form)
            except NoPreferenceError:
                if not drop_unusable:
                    raise
        found = {column: [row[column] for row in rows.values()] for column in features}
        return found | {column: [batch[column][place] for place in rows] for column in others}

    columns = {"features": Features(features | others), "remove_columns": dataset.column_names}
    options = {"batched": True, "with_indices": True, **columns}
    # Checked anew each time: the cache does not notice when the functions that `convert` calls have changed
    result = dataset.map(convert, **options, load_from_cache_file=False, desc=f"Checking {name}")
    return result.select_columns([*features, *others])


def _at_row(function: RowFunction, name: str, index: int, row: dict[str, Any], form: dict[str, str]) -> dict[str, Any]:
    """What the function makes of a row of the given form; its errors get the data set's name and the row's number."""
    try:
        for column, kind in form.items():
            if _kind(row[column], column) != kind:
                raise RowError(column, _kind(row[column], column), f"Row 1 has {kind}: bring all rows to one form.")
        return function(row, form)
    except RowError as error:
        raise error.at(name, index) from None


def _form(dataset: Dataset, name: str, drop_unusable: bool = False) -> dict[str, str]:
    """Kind of each text column in the first row that is not dropped, which all rows must share."""

    def kinds(row: dict[str, Any], _: dict[str, str]) -> dict[str, str]:
        form = {column: _kind(row[column], column) for column in TEXT_COLUMNS if column in row}
        if form.get("chosen") != form.get("rejected"):
            raise RowError("rejected", form["rejected"], f"'chosen' has {form['chosen']}: write both alike.")
        return form

    for index, row in enumerate(dataset):
        try:
            return _at_row(kinds, name, index, row, {})
        except NoPreferenceError:
            if not drop_unusable:
                raise
    raise ValueError(f"Data set '{name}' is empty, or no row states a preference. Give it at least one that does.")


def _kind(value: Any, column: str) -> str:
    if isinstance(value, list):
        return MESSAGES
    if not isinstance(value, str):
        raise RowError(column, describe(value), "Write text or a list of {role, content} messages.")
    if column != "prompt" and not value.strip():
        raise RowError(column, "an empty response", REMOVE, NoPreferenceError)
    return TRANSCRIPT if value.startswith("\n\nHuman:") else TEXT


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
    _, *turns = re.split(r"\n\n(Human|Assistant):", value)
    messages = [
        {"role": ROLES[who], "content": said.strip()} for who, said in zip(turns[::2], turns[1::2], strict=True)
    ]
    if column == "prompt" and messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()  # the place where the response begins
    return messages


def _is_blank(value: str | Messages) -> bool:
    """Whether a text, or the last of several messages, says nothing."""
    return not (value if isinstance(value, str) else value[-1]["content"] if value else "").strip()


def _normalize_pair(row: dict[str, Any], form: dict[str, str]) -> dict[str, Any]:
    pair = _divide(row, form)
    for column in ("chosen", "rejected"):
        response = pair[column]
        if response and not isinstance(response, str) and response[-1]["role"] != "assistant":
            raise RowError(column, f"a last message from '{response[-1]['role']}'", "End it with the assistant's.")
        if _is_blank(response):
            raise RowError(column, "an empty response", REMOVE, NoPreferenceError)
    if pair["chosen"] == pair["rejected"]:
        raise RowError("rejected", "the same response as in 'chosen'", REMOVE, NoPreferenceError)
    return pair | {column: _number(row[column], column) for column in NUMBER_COLUMNS if column in row}


def _prompt_of_pair(row: dict[str, Any], form: dict[str, str]) -> dict[str, Any]:
    """A pair for its prompt's sake, whatever the responses are, as long as they tell where the prompt ends."""
    if set(form) == {"chosen", "rejected"} and form["chosen"] == TEXT and row["chosen"] == row["rejected"]:
        raise RowError("rejected", "the same text as in 'chosen'", "Remove the row: its prompt cannot be told.")
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
            prompt, chosen, rejected = extract_prompt({"chosen": chosen, "rejected": rejected}).values()
        if "prompt" in form and row["prompt"].strip() not in ["", *(message["content"].strip() for message in prompt)]:
            raise RowError("prompt", "plain text that is not in both conversations", "Write it as messages.")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _continuation(prompt: Messages, response: Messages, column: str) -> Messages:
    """The response without the prompt, which whole conversations repeat."""
    rest = response[len(prompt) :] if response[: len(prompt)] == prompt else response
    if prompt and rest and rest[0]["role"] != "assistant":
        found = f"a response that begins with a message from '{rest[0]['role']}'"
        raise RowError(column, found, "Begin it with the assistant's, or with all messages of the prompt.")
    return rest


def _number(value: Any, column: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RowError(column, describe(value), "Write a finite number, or remove the column.")
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
