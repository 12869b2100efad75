"""Rows of a file as they stand in it, one after the other, each with the number that its reader sees."""

import csv
import glob
import gzip
import json
import os
import zlib
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from typing import IO, Any

from .row_errors import RowError, describe

Rows = Generator[tuple[int, dict[str, Any]]]

# What of `datasets` reads a file, by its ending; text files may be packed
BUILDERS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
PACKED = ".gz"
ENDINGS = f"{list(BUILDERS)}, text also with '{PACKED}' after it"
MOST_CHARACTERS = 2**31 - 1  # of a field of a CSV file, whose reader stops at 131,072 by default
ARROW_FILE = b"ARROW1"  # how a file begins that is no stream
GZIP = b"\x1f\x8b"
FETCH = "Fetch it anew, or correct its name."
POINTER = b"version https://git-lfs"
UTF16 = (b"\xff\xfe", b"\xfe\xff")


def builder(path: str) -> str | None:
    """What of `datasets` reads a file, by its ending; `None` for other endings."""
    name = path.removesuffix(PACKED)
    kind = BUILDERS.get(os.path.splitext(name)[1])
    return None if name != path and kind not in ("json", "csv") else kind


def check_json_name(path: str, endings: tuple[str, ...] = (".json",)) -> None:
    """
    Refuse a name whose ending says that a file is of another kind than JSON, which is about to be written.

    Args:
        path (`str`):
            File that will be written.
        endings (`tuple[str, ...]`, *optional*, defaults to `(".json",)`):
            Endings that say what it holds.

    Raises:
        `ValueError`: Naming the endings.
    """
    if not path.endswith(endings):
        raise ValueError(f"'{path}' would hold JSON. Give it a name that ends in {' or '.join(endings)}.")


def is_saved(path: str) -> bool:
    """Whether a folder is one that `save_to_disk` wrote."""
    return any(os.path.isfile(os.path.join(path, file)) for file in ("dataset_dict.json", "state.json"))


def stream_rows(path: str) -> Rows:
    """
    Rows of a file, read one after the other.

    Memory is bounded, but for a JSON file that is one list, which is read whole.

    Args:
        path (`str`):
            A `.jsonl`, `.ndjson`, `.json`, `.csv` or `.tsv` file, also packed (`.gz`), a `.parquet` or `.arrow` file,
            or the folder of one split that `save_to_disk` wrote.

    Yields:
        `tuple[int, dict]`: Number of the row, and the row. Numbers are lines, blank ones counted, in JSON lines and
            CSV (where a record begins), and count from 1 elsewhere. All values of a CSV file are text.

    Raises:
        `ValueError`: If the file is of another kind, not UTF-8, or not what its name says; the message names the row.
    """
    kind = "arrow" if os.path.isdir(path) else builder(path)
    if kind is None:
        raise ValueError(f"File '{path}' is none of {ENDINGS}. Convert it, or correct the path.")
    if kind == "json":
        with closing(text_lines(path)) as lines:
            yield from _json_rows(path, lines)
    elif kind == "csv":
        with closing(text_lines(path)) as lines:
            yield from _csv_rows(path, lines)
    else:
        yield from enumerate(_arrow_rows(path, kind), start=1)


def row_number(name: str, index: int) -> int:
    """Number that the reader of a file or data set sees, of the row at an index."""
    if not (os.path.isfile(name) and builder(name) in ("json", "csv")):
        return index + 1
    return next(islice((number for number, _ in stream_rows(name)), index, None), index + 1)


def text_lines(path: str) -> Generator[str]:
    """Lines of a UTF-8 file, with their ends and without a byte order mark; of others the line at fault is named."""
    with _open(path) as file:
        number = 0
        try:
            for number, line in enumerate(file, start=1):
                if number == 1 and line.startswith(GZIP):
                    raise ValueError(f"File '{path}' is packed. Let its name end in '{PACKED}'.")
                if number == 1:
                    _check_pointer(path, line)
                if number == 1 and line.startswith(UTF16):
                    raise ValueError(f"File '{path}' is UTF-16. Save it as UTF-8.")
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            found = f"line {number}: byte 0x{error.object[error.start]:02x} is not UTF-8"
            raise ValueError(f"File '{path}', {found}. Save the file as UTF-8; it may be Latin-1.") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"File '{path}' is damaged after line {number}: {error}. Fetch it anew.") from error


def _check_pointer(path: str, begins: bytes) -> None:
    if begins.startswith(POINTER):
        raise ValueError(f"File '{path}' is a pointer of Git LFS. Fetch the file itself with `git lfs pull`.")


def _open(path: str) -> IO[bytes]:
    return gzip.open(path) if path.endswith(PACKED) else open(path, "rb")  # type: ignore[return-value]


def _json_rows(path: str, lines: Iterator[str]) -> Rows:
    number = 0
    for line in lines:
        number, first = number + 1, number + 1
        is_list = line.lstrip().startswith("[")
        text = line + "".join(lines) if is_list else line
        while True:
            try:
                rows = _READER.decode(text) if is_list else [_READER.decode(text)] if text.strip() else []
                break
            except json.JSONDecodeError as error:
                # An object may go on in the next line, unless that begins another one
                more = next(lines, None) if error.pos >= len(text.rstrip()) and not is_list else None
                if more is None or (number == first and more.lstrip().startswith("{")):
                    raise _not_json(path, text, first, error) from None
                number, text = number + 1, text + more
            except (_RepeatedKeyError, RecursionError, ValueError) as error:
                where = "" if is_list else f", row {first}"
                raise ValueError(f"Data set '{path}'{where}: found {_unreadable(error)}") from None
        # Few texts have escaped surrogates, which are right only in pairs
        is_escaped = "\\ud" in text or "\\uD" in text
        for place, row in enumerate(rows, start=1 if is_list else first):
            if not isinstance(row, dict):
                raise ValueError(f"Data set '{path}', row {place}: found {describe(row)}. Write an object.")
            if is_escaped:
                _check_characters(row, path, place)
            yield place, row


def _not_json(path: str, text: str, first: int, error: json.JSONDecodeError) -> ValueError:
    """The error of text that begins in a line of a file; of what ends too soon its last character is named."""
    place = min(error.pos, len(text.rstrip()))
    row, character = first + text.count("\n", 0, place), place - text.rfind("\n", 0, place)
    found = f"row {row}, character {character}: not valid JSON ({error.msg})"
    return ValueError(f"Data set '{path}', {found}. Write one object a line, or one list.")


def _unreadable(error: Exception) -> str:
    """What was found, and what to do, of JSON that is valid and cannot be read all the same."""
    if isinstance(error, _RepeatedKeyError):
        return f"the key {error} twice in one object. Remove one."
    if isinstance(error, RecursionError):
        return "brackets nested too deeply to be read. Remove the value, or write it as text."
    return "a number of thousands of digits. Remove it, or write it as text."


class _RepeatedKeyError(Exception):
    """A key that stands twice in one JSON object, of which Python's reader would keep the last without a word."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKeyError(repr(next(key for key in keys if keys.count(key) > 1)))
    return row


_READER = json.JSONDecoder(object_pairs_hook=_object)


def _check_characters(row: dict[str, Any], path: str, number: int) -> None:
    for column, value in row.items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            found = f"half of a surrogate pair, '\\u{ord(error.object[error.start]):04x}'"
            raise RowError(column, found, "Write the whole character.").at(path, number) from None


def _csv_rows(path: str, lines: Iterator[str]) -> Rows:
    csv.field_size_limit(MOST_CHARACTERS)
    tabs = path.removesuffix(PACKED).endswith(".tsv")
    reader = csv.reader(lines, delimiter="\t" if tabs else ",", strict=True)
    header: list[str] = []
    first = 1
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            found = f"the record of line {first}: not valid CSV ({error})"
            raise ValueError(f"File '{path}', {found}. Close its quotes, and double those inside.") from None
        number, first = first, reader.line_num + 1
        if not record:
            continue  # a blank line
        if not header:
            header = _csv_header(record, path)
        elif len(record) != len(header):
            found = f"{len(record)} fields where the first line names {len(header)} columns"
            raise ValueError(f"Data set '{path}', row {number}: found {found}. Quote fields that hold separators.")
        else:
            yield number, dict(zip(header, record, strict=True))


def _csv_header(names: list[str], path: str) -> list[str]:
    if len(names) == 1 and any(mark in names[0] for mark in ";,\t|"):
        raise ValueError(f"File '{path}': its first line names one column, {names[0]!r}. Separate by commas, or tabs.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"File '{path}': its first line names {twice} twice. Rename one.")
    return names


def _arrow_rows(path: str, kind: str) -> Iterator[dict[str, Any]]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        if kind == "parquet":
            with pyarrow.parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=1000):
                    yield from batch.to_pylist()
            return
        for part in sorted(glob.glob(os.path.join(glob.escape(path), "*.arrow"))) if os.path.isdir(path) else [path]:
            with pa.memory_map(part) as source:
                if source.read(len(ARROW_FILE)) == ARROW_FILE:
                    table = pa.ipc.open_file(source)
                    batches = (table.get_batch(number) for number in range(table.num_record_batches))
                else:
                    source.seek(0)
                    batches = iter(pa.ipc.open_stream(source))
                for batch in batches:
                    yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        if os.path.isfile(path):
            with open(path, "rb") as opened:
                _check_pointer(path, opened.read(len(POINTER)))
        raise ValueError(
            f"File '{path}' is not readable {kind}: {' '.join(str(error).split()).rstrip('.')}. {FETCH}"
        ) from error
