"""What files of weights, settings and tokenizers are known by, without reading more of them than must be."""

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# In the order in which Transformers looks for them
WHOLE_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
VOCABULARY_NAME = "tokenizer.json"
CONTENT = f"{VOCABULARY_NAME}, what it says"  # the name of its other hash
TOKENIZER_FILES = (
    VOCABULARY_NAME,
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "tekken.json",
)
SETTINGS_NAME = "tokenizer_config.json"
SPECIAL = f"{SETTINGS_NAME}, special tokens"
# Written by every padded or cut batch, and no part of what a tokenizer does otherwise
OF_THE_LAST_CALL = ("truncation", "padding")
SAMPLES = 64
SAMPLE_BYTES = 4096
MOST_HEADER_BYTES = 100_000_000  # as the reader of the format has it


@dataclass(frozen=True)
class FileMark:
    """
    What a file of weights is known by.

    Args:
        size (`int`):
            Its bytes.
        fingerprint (`str`):
            SHA-256 of its header, its head's weights and 64 samples of the rest: another training has another one,
            however large the file, but single bits can change in between.
        sha256 (`str`):
            SHA-256 of the whole file.
    """

    size: int
    fingerprint: str
    sha256: str


def read_json(path: str | Path) -> dict[str, Any]:
    """
    Read a file of settings.

    Args:
        path (`str` or `Path`):
            A JSON file with one object.

    Returns:
        `dict[str, Any]`

    Raises:
        `ValueError`: If it cannot be read, in one line that names the file.
    """
    try:
        found = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"'{path}' cannot be read ({str(error).splitlines()[0]}). Restore the file as it was saved."
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"'{path}' holds a {type(found).__name__} and no settings. Restore the file as it was saved.")
    return found


def weight_files(find: Callable[[str], str | None], names: tuple[str, ...] = WHOLE_WEIGHTS) -> dict[str, Path]:
    """
    The files that a loader would read weights from.

    Args:
        find (`Callable`):
            Path of a file by its name, `None` where there is none.
        names (`tuple[str, ...]`, *optional*):
            Names that it may have, the first that is there counts.

    Returns:
        `dict[str, Path]`: By name, the index of weights in several files among them. None where there are no weights.

    Raises:
        `ValueError`: If an index names a file that is missing.
    """
    first = next(((name, Path(path)) for name in names if (path := find(name)) is not None), None)
    if first is None:
        return {}
    files = dict([first])
    if first[0].endswith(".index.json"):
        for name in sorted(set(read_json(first[1]).get("weight_map", {}).values())):
            path = find(name)
            if path is None:
                raise ValueError(
                    f"'{first[1]}' names {name}, which is missing. Copy the folder again, with all files."
                )
            files[name] = Path(path)
    return files


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """
    Names and shapes of the tensors in a safetensors file, out of its header.

    Args:
        path (`Path`):
            The file.

    Returns:
        `dict[str, list[int]]`

    Raises:
        `ValueError`: If the file is cut short or damaged.
    """
    header, _ = _read_header(path)
    return {name: list(entry["shape"]) for name, entry in header.items()}


def fingerprint(path: Path) -> str:
    """
    Hash of a file's size, header, head and samples, which takes as long for a large file as for a small one.

    Args:
        path (`Path`):
            A file of weights.

    Returns:
        `str`: SHA-256 in hexadecimal.

    Raises:
        `ValueError`: If it is a safetensors file that is cut short or damaged.
    """
    size, begin, spans = path.stat().st_size, 0, []
    if path.suffix == ".safetensors":
        header, begin = _read_header(path)
        offsets = {name: entry["data_offsets"] for name, entry in header.items() if "score." in name}
        spans = [(begin + offsets[name][0], begin + offsets[name][1]) for name in sorted(offsets)]
    step = max((size - begin) // SAMPLES, 1)
    spans += [(0, begin), *((place, place + SAMPLE_BYTES) for place in range(begin, size, step))]
    spans.append((max(size - SAMPLE_BYTES, 0), size))
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for first, last in spans:
            file.seek(first)
            digest.update(file.read(last - first))
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """
    Hash of every byte of a file.

    Args:
        path (`Path`):
            The file.

    Returns:
        `str`: SHA-256 in hexadecimal.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mark_of(path: Path) -> FileMark:
    """
    What a file of weights is known by. One that has not changed since, as the base of an adapter that is saved again
    and again, is read once.

    Args:
        path (`Path`):
            The file.

    Returns:
        [`FileMark`]
    """
    found = path.stat()
    return _mark_of(path.resolve(), found.st_size, found.st_mtime_ns)


def tokenizer_marks(find: Callable[[str], str | None]) -> dict[str, str]:
    """
    What a tokenizer is known by: a hash of each of its files, one of what `tokenizer.json` says without what the last
    call left in it, and one of the special tokens in `tokenizer_config.json`, whose rest is each version's own.

    Args:
        find (`Callable`):
            Path of a file by its name, `None` where there is none.

    Returns:
        `dict[str, str]`: SHA-256 by name; none where there is no tokenizer.

    Raises:
        `ValueError`: If a file cannot be read.
    """
    marks = {name: sha256_of(Path(path)) for name in TOKENIZER_FILES if (path := find(name)) is not None}
    if (path := find(VOCABULARY_NAME)) is not None:
        marks[CONTENT] = _content_hash(Path(path))
    if (path := find(SETTINGS_NAME)) is not None:
        marks[SPECIAL] = _special_hash(Path(path))
    return marks


def changed_tokenizer_file(saved: dict[str, str], find: Callable[[str], str | None]) -> str | None:
    """
    A file of a tokenizer that is not as it was saved.

    Args:
        saved (`dict[str, str]`):
            From [`tokenizer_marks`].
        find (`Callable`):
            Path of a file by its name, `None` where there is none.

    Returns:
        `str`: Its name, and whether it is gone, new or another; `None` where all is as it was.

    Raises:
        `ValueError`: If a file cannot be read.
    """
    for name in TOKENIZER_FILES:
        path = find(name)
        if (path is None) != (name not in saved):
            return f"{name} is missing" if path is None else f"{name} was not there"
        if path is None or sha256_of(Path(path)) == saved[name]:
            continue
        if name != VOCABULARY_NAME or _content_hash(Path(path)) != saved[CONTENT]:
            return f"{name} is another"
    if SPECIAL in saved:  # of what earlier versions saved it is not known
        path = find(SETTINGS_NAME)
        if path is None:
            return f"{SETTINGS_NAME} is missing"
        if _special_hash(Path(path)) != saved[SPECIAL]:
            return f"{SETTINGS_NAME} has other special tokens"
    return None


def _content_hash(path: Path) -> str:
    content = {key: value for key, value in read_json(path).items() if key not in OF_THE_LAST_CALL}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _special_hash(path: Path) -> str:
    found = {}
    for key, value in read_json(path).items():
        if key.endswith("_token") and value not in (None, False):  # also whether one is added
            found[key] = value.get("content") if isinstance(value, dict) else value
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


@cache
def _mark_of(path: Path, size: int, changed: int) -> FileMark:
    return FileMark(size, fingerprint(path), sha256_of(path))


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Entries of a safetensors file's tensors by name, and where their bytes begin."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        raw = file.read(length) if 0 < length <= min(size - 8, MOST_HEADER_BYTES) else b""
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        needed = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"'{path}' is damaged or cut short: it has {size:,} bytes and no header that can be read. Copy it again."
        ) from None
    if size != needed:
        raise ValueError(
            f"'{path}' is {'cut short' if size < needed else 'damaged'}: it has {size:,} bytes, and its header speaks "
            f"of {needed:,}. Copy it again."
        )
    return header, 8 + length
