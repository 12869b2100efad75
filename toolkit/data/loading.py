"""Preference data from the hub, folders and files."""

import glob
import json
import os
from collections import deque
from contextlib import closing

import datasets
from datasets import Dataset
from datasets.exceptions import DatasetsError
from transformers.utils.logging import get_logger

from .files import ENDINGS, FETCH, builder, is_saved, stream_rows, text_lines
from .formats import FLOAT, keep_normalized, normalize_pairs, normalize_prompts
from .forms import NUMBER_COLUMNS, TEXT_COLUMNS
from .lists import RANKED_COLUMNS
from .prompts import REJECTED_PROMPT
from .row_errors import RowError, describe

logger = get_logger(__name__)


def load_table(name_or_path: str, split: str | None = None, config: str | None = None) -> Dataset:
    """
    Load a table of any columns from the hub, a folder, a file or files.

    Args:
        name_or_path (`str`):
            A data set of the hub; a folder that `save_to_disk` wrote or that holds data files; a file
            (`.jsonl`, `.ndjson`, `.json`, `.csv` or `.tsv`, also with `.gz` after it, `.parquet` or `.arrow`); or a
            pattern of such files (`"data/*_train.jsonl.gz"`). All cells of CSV files are text. Several
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
    return _concatenate(named_tables(name_or_path, split, config))


def named_tables(name_or_path: str, split: str | None = None, config: str | None = None) -> list[tuple[str, Dataset]]:
    """The tables of [`load_table`] before they are put together, each with the name that errors give it."""
    found = locate(name_or_path, split, config)
    return [(name_or_path, found)] if isinstance(found, Dataset) else [(file, _load_file(file)) for file in found]


def load_pairs(
    name_or_path: str, split: str | None = None, config: str | None = None, *, whole_lists: bool = False
) -> Dataset:
    """[`load_table`], then [`normalize_pairs`] of each file, with their arguments, results and errors."""
    tables = named_tables(name_or_path, split, config)
    pairs = [(name, normalize_pairs(table, name, whole_lists)) for name, table in tables]
    return keep_normalized(_concatenate(pairs), pairs[0][1])


def load_prompts(name_or_path: str, split: str | None = None, config: str | None = None) -> Dataset:
    """[`load_table`], then [`normalize_prompts`] of each file, with their arguments, results and errors."""
    tables = named_tables(name_or_path, split, config)
    return _concatenate([(name, normalize_prompts(table, name)) for name, table in tables])


def locate(name_or_path: str, split: str | None = None, config: str | None = None) -> Dataset | list[str]:
    """
    Find what is behind a name: the table of the hub or of a saved data set, or the files that hold the rows.

    Arguments are those of [`load_table`], and so are its errors, but for those of reading the files.
    """
    found = _splits(name_or_path, split, config)
    split = next(iter(found)) if split is None and len(found) == 1 else split
    if split not in found:
        names = list(found)
        asked = "no `split` is given" if split is None else f"the split is {split!r}"
        raise ValueError(f"'{name_or_path}' has the splits {names}, but {asked}. Choose one of them.")
    return found[split]


def split_names(name_or_path: str, config: str | None = None) -> list[str]:
    """Names of the splits that are behind a name. Arguments and errors are those of [`locate`]."""
    return list(_splits(name_or_path, None, config))


def _splits(name_or_path: str, split: str | None, config: str | None) -> dict[str, Dataset | list[str]]:
    """Tables or files by split: all of a file or folder, of the hub the one that is asked for."""
    path = os.path.expanduser(name_or_path)
    files, tables = dict[str, list[str]](), dict[str, Dataset]()
    try:
        if os.path.isfile(path):
            files = {"train": [path]}
        elif is_saved(path):
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
        damaged = "one of its JSON files is damaged: " if isinstance(error, json.JSONDecodeError) else ""
        reason = damaged + " ".join(str(error.__cause__ or error).split()).rstrip(".")
        raise ValueError(f"Cannot load {asked}: {reason}. Correct the name, or fetch the data anew.") from error
    if not tables and not any(files.values()):
        raise ValueError(f"There is no file or folder '{name_or_path}' in '{os.getcwd()}'. Correct the path.")
    return {**(tables or files)}


def _load_file(path: str) -> Dataset:
    kind = builder(path)
    if kind is None:
        raise ValueError(f"File '{path}' is none of {ENDINGS}. Convert it, or correct the path.")
    with closing(stream_rows(path)) as rows:
        is_empty = next(rows, None) is None
        if kind == "json":  # Arrow's reader takes for it what is none, and dies of some of it, such as a row of null
            deque(rows, maxlen=0)
    if is_empty:
        raise ValueError(f"File '{path}' is empty. Write at least one row.")
    # Other readers of CSV take text for numbers and dates, and words such as "None" for nothing
    return _table_of_rows(path) if kind == "csv" else _table_by_builder(path, kind)


def _table_of_rows(path: str) -> Dataset:
    rows = [row for _, row in stream_rows(path)]
    columns = dict.fromkeys(column for row in rows for column in row)
    return Dataset.from_dict({column: [row.get(column) for row in rows] for column in columns})


def _table_by_builder(path: str, kind: str) -> Dataset:
    """The table that `datasets` reads from a file."""
    try:
        options = {}
        if kind == "json":
            # One chunk, as later ones are cast to the types of the first: messages would become text
            options["chunksize"] = 1 + sum(len(line.encode()) + 1 for line in text_lines(path))
        # Escaped, as the loader takes a path for a pattern
        table = datasets.load_dataset(kind, data_files=glob.escape(os.path.abspath(path)), split="train", **options)
    except (DatasetsError, StopIteration, ValueError, OSError, EOFError) as error:
        if kind == "json":
            _refuse_odd_row(path)
        raise ValueError(f"File '{path}' is not readable {kind}: {error.__cause__ or error}. {FETCH}") from error
    if kind == "json" and "timestamp[" in str(table.features):  # text that looks like a date
        return _table_of_rows(path)
    return table


def _refuse_odd_row(path: str) -> None:
    """Raise on the first value of a JSON file that is of another kind than those before it."""
    seen = dict[str, str]()
    for number, row in stream_rows(path):
        for column, value in row.items():
            kind = describe(value).split(":")[0]
            if value is not None and seen.setdefault(column, kind) != kind:
                raise RowError(column, describe(value), f"Rows before have {seen[column]}.").at(path, number)


def _concatenate(tables: list[tuple[str, Dataset]]) -> Dataset:
    first_name, first = tables[0]
    of_lists = RANKED_COLUMNS if {"prompt", *RANKED_COLUMNS} <= set(first.column_names) else ()
    for name, table in tables[1:]:
        for column in (*TEXT_COLUMNS, REJECTED_PROMPT, *NUMBER_COLUMNS, *of_lists):
            found = [first.features.get(column), table.features.get(column)]
            if found[0] != found[1] and (column not in NUMBER_COLUMNS or None in found):
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
