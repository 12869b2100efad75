"""Preference pairs, ranked lists and prompts of any form that is known, brought to one, with every row checked.

After [`normalize_pairs`] a table has the columns `prompt`, `chosen` and `rejected`, all plain text or all lists of
`{role, content}` messages, and `margin` and `strength` as floats where the data has them. Ranked lists that are left
whole have `responses`, each as a side of a pair would be, and `ranks` in place of `chosen` and `rejected`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakSet

from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers.utils.logging import get_logger

from .files import row_number
from .forms import FIRST_ROWS, TEXT_COLUMNS, Form, find_form, find_prompt_form
from .lists import RANKED_COLUMNS
from .prompts import REJECTED_PROMPT
from .row_errors import RowError
from .tally import Tally, check_left_out, check_pairs

logger = get_logger(__name__)

FLOAT = Value("float64")
INDEX = "index of the row"  # a column while rows are brought to the one form
MESSAGES_FEATURE = List({"role": Value("string"), "content": Value("string")})
# Tables whose every row is in the one form. Whatever changes a table makes another one, which is not among them.
_NORMALIZED: WeakSet[Dataset] = WeakSet()


def normalize_pairs(dataset: Dataset, name: str, whole_lists: bool = False) -> Dataset:
    r"""
    Bring preference pairs to one form and check every row, once: what it returned it gives back as it is.

    The form is found from columns and first rows; [`~toolkit.data.forms.find_form`] tells which it is. Rows that state
    no preference, because a response is empty, does not end with the assistant or is the same as the other one, are
    left out; one warning counts them by reason and names the first of each. Everything else that is wrong is an error.

    Args:
        dataset (`datasets.Dataset`):
            The pairs, all in one form.
        name (`str`):
            Data set or file, as errors shall name it.
        whole_lists (`bool`, *optional*, defaults to `False`):
            Whether a ranked list stays one row; else every two of its responses that are not tied are a pair.

    Returns:
        `datasets.Dataset`: `prompt`, `chosen` and `rejected`, then `margin` and `strength` as floats where they were
            found, then the other columns unchanged. A prompt may be empty. Where the two sides may answer different
            prompts, `rejected_prompt` as well. Of whole lists `responses` and their
            `ranks`, from 0 for the best and equal where they are tied, in place of `chosen` and `rejected`.

    Raises:
        `ValueError`: If the form is not known, a value is of the wrong kind, a message has tool calls, rows differ in
            form, more than half of the rows state no preference, a margin or strength is not finite, a strength is
            negative, or all are 0.
    """
    if dataset in _NORMALIZED and (whole_lists or "chosen" in dataset.column_names):
        return dataset
    form = find_form(_first(dataset), dataset.column_names, name)
    feature = Value("string") if form.is_text else MESSAGES_FEATURE
    features = dict.fromkeys(TEXT_COLUMNS, feature)
    if whole_lists and form.is_lists:
        features = {"prompt": feature, **dict(zip(RANKED_COLUMNS, (List(feature), List(Value("int64"))), strict=True))}
    features |= {REJECTED_PROMPT: feature} if form.is_of_two_prompts else {}
    features |= dict.fromkeys(form.numbers, FLOAT)
    result = _map_rows(dataset, name, form, form.rows if whole_lists else form.pairs, features)
    check_pairs(name, len(result), result["strength"][:] if "strength" in result.column_names else None)
    _NORMALIZED.add(result)
    return result


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


def pairs_of_one_prompt(dataset: Dataset, name: str, who: str, whole_lists: bool = False) -> Dataset:
    """[`normalize_pairs`] for one who reads one prompt of a pair; sides that may answer different ones are refused."""
    if REJECTED_PROMPT in dataset.column_names:
        found = f"has a column '{REJECTED_PROMPT}', and {who} one prompt for both sides"
        raise ValueError(f"Data set '{name}' {found}. Leave those rows and the column out.")
    return normalize_pairs(dataset, name, whole_lists)


def normalize_prompts(dataset: Dataset, name: str) -> Dataset:
    r"""
    Bring prompts to one form and check every row.

    Args:
        dataset (`datasets.Dataset`):
            Prompts, as text, lists of messages or transcripts; or preference pairs, whose prompts are taken.
        name (`str`):
            Data set or file, as errors shall name it.

    Returns:
        `datasets.Dataset`: `prompt`, then the columns that are no part of prompt, responses or preference.

    Raises:
        `ValueError`: If there is neither a prompt nor a pair, a value is of the wrong kind, rows differ in form, or a
            prompt is empty or ends with the assistant's message. Pairs that do not tell where their prompt ends are
            left out, which a warning counts.
    """
    form = find_prompt_form(_first(dataset), dataset.column_names, name)
    features = {"prompt": Value("string") if form.is_text else MESSAGES_FEATURE}
    return _map_rows(dataset, name, form, lambda row: [form.prompt(row)], features)


def _first(dataset: Dataset) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = dataset.select(range(min(FIRST_ROWS, len(dataset)))).to_list()
    return rows


def _map_rows(
    dataset: Dataset,
    name: str,
    form: Form,
    function: Callable[[dict[str, Any]], list[dict[str, Any]]],
    features: dict[str, Any],
) -> Dataset:
    """Replace the columns that the form reads by `features`, which the function makes of each row, in front."""
    others = dataset.select_columns([column for column in dataset.column_names if column not in form.columns])
    inputs = [column for column in dataset.column_names if column in form.columns]
    left_out, changed = (Tally(name, partial(row_number, name)) for _ in range(2))

    def convert(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {column: [] for column in (*features, INDEX)}
        for index, *values in zip(indices, *(batch[column] for column in inputs), strict=True):
            try:
                rows = function(dict(zip(inputs, values, strict=True)))
            except RowError as error:
                if not error.no_preference:
                    raise error.at(name, row_number(name, index)) from None
                left_out.add(error.found, index)
                continue
            for note in form.notes:
                changed.add(note, index)
            for row in rows:
                for column in features:
                    found[column].append(row[column])
                found[INDEX].append(index)
        return found

    options = {"batched": True, "with_indices": True, "features": Features(features | {INDEX: Value("int64")})}
    # Checked anew each time: the cache does not notice when the functions that `convert` calls have changed
    options |= {"load_from_cache_file": False, "desc": f"Checking {name}"}
    result = dataset.select_columns(inputs).map(convert, remove_columns=inputs, **options)
    _report(left_out, changed, len(dataset), form)
    indices = result[INDEX][:]
    result = result.remove_columns(INDEX)
    if not others.column_names:
        return result
    if indices != list(range(len(others))):
        others = others.select(indices)
    return concatenate_datasets([result, others], axis=1)


def _report(left_out: Tally, changed: Tally, rows: int, form: Form) -> None:
    """Say what was left out and changed; refuse the set where too much was."""
    check_left_out(left_out, rows, form.name)
    if left_out.rows:
        what = f"left out {left_out.total()} of {rows} rows: {left_out}"
        logger.warning(f"Data set '{left_out.name}': {what}.")
    if form.alone:
        logger.warning(f"Data set '{left_out.name}': {form.alone} prompts have one response only, and make no pair.")
    if changed.rows:
        logger.warning(f"Data set '{changed.name}', of {rows} rows: {changed}.")
