"""Manifests of checkpoints: which files make a checkpoint whole, and which checkpoint may be deleted."""

import hashlib
import json
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .run_record import read_json

logger = get_logger(__name__)

MANIFEST_NAME = "manifest.json"
# It stands in a checkpoint from the first to the last moment of its save, and is then renamed.
PART_NAME = MANIFEST_NAME + ".part"
UNPROVEN_PREFIX = "unproven-"


def begin_manifest(folder: str | Path) -> None:
    """
    Make a checkpoint's folder and declare it half written, so that it can be told from one whose manifest was lost.

    What is there is deleted where it is whole, as the same step is saved anew, or was left half written by a run that
    died. Anything else is moved aside under another name, with a warning.

    Args:
        folder (`str` or `Path`):
            A checkpoint that is about to be written.
    """
    folder = Path(folder)
    if folder.exists():
        half = (folder / PART_NAME).is_file() and not (folder / MANIFEST_NAME).is_file()
        reason = None if half else what_is_missing(folder, hashes=False)
        if reason is None:
            (folder / MANIFEST_NAME).unlink(missing_ok=True)  # first, or a mixture could pass for a whole one
            shutil.rmtree(folder)
        else:
            logger.warning(
                f"Checkpoint '{folder}' cannot be proven whole: {reason}. Moved to '{_move_aside(folder)}'."
            )
    folder.mkdir(parents=True)
    (folder / PART_NAME).touch()


def _move_aside(folder: Path) -> Path:
    number, target = 1, folder.with_name(UNPROVEN_PREFIX + folder.name)
    while target.exists():
        number += 1
        target = folder.with_name(f"{UNPROVEN_PREFIX}{folder.name}-{number}")
    return folder.rename(target)


def write_manifest(folder: str | Path) -> None:
    """
    Declare a checkpoint complete: list its files with sizes and SHA-256, in a file that appears in one piece.

    Args:
        folder (`str` or `Path`):
            A checkpoint to which nothing will be added.
    """
    folder = Path(folder)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    found = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != PART_NAME)
    digests = _digests(found)
    files = {
        str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": digest}
        for file, digest in zip(found, digests, strict=True)
    }
    part = folder / PART_NAME
    part.write_text(json.dumps({"files": files}, indent=1) + "\n")
    part.rename(folder / MANIFEST_NAME)


def what_is_missing(folder: str | Path, hashes: bool = True) -> str | None:
    """
    Why a checkpoint cannot be resumed from.

    Args:
        folder (`str` or `Path`):
            A checkpoint.
        hashes (`bool`, *optional*, defaults to `True`):
            Whether every file is read and its hash compared. Manifests of older versions have sizes alone.

    Returns:
        `str`, or `None` where it is complete.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return "there is no such folder"
    if not (folder / MANIFEST_NAME).is_file():
        return f"it has no {MANIFEST_NAME}, which is written last"
    try:
        listed = read_json(folder / MANIFEST_NAME, dict, "").get("files")
    except ValueError:
        listed = None
    if not isinstance(listed, dict) or not all(map(_is_entry, listed.values())):
        return f"its {MANIFEST_NAME} is damaged"
    entries = {name: entry if isinstance(entry, dict) else {"bytes": entry} for name, entry in listed.items()}
    for name, entry in entries.items():
        file = folder / name
        if not file.is_file():
            return f"its file {name} is gone"
        if file.stat().st_size != entry["bytes"]:
            return f"its file {name} has {file.stat().st_size} bytes instead of {entry['bytes']}"
    hashed = [name for name, entry in entries.items() if hashes and "sha256" in entry]
    for name, digest in zip(hashed, _digests(folder / name for name in hashed), strict=True):
        if digest != entries[name]["sha256"]:
            return f"its file {name} has changed since it was saved (another SHA-256)"
    return None


def _is_entry(entry: object) -> bool:
    if isinstance(entry, dict):
        return isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
    return isinstance(entry, int)


def _digests(files: Iterable[Path]) -> list[str]:
    """SHA-256 of files; hashing leaves the interpreter's lock, so that several are read at once."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(_digest_of, files))


def _digest_of(file: Path) -> str:
    stat = file.stat()
    return _digest(str(file.resolve()), stat.st_size, stat.st_mtime_ns)


# A checkpoint is looked at when it is found and again when it is loaded; its file's time tells whether it has changed.
@lru_cache(maxsize=4096)
def _digest(file: str, size: int, time: int) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def checkpoints_of(output_dir: str | Path) -> dict[int, Path]:
    """
    The checkpoints of a run, whole or not.

    Args:
        output_dir (`str` or `Path`):
            Output folder of a run; it need not exist.

    Returns:
        `dict[int, Path]`: Their folders by step, in order.
    """
    found = {
        int(folder.name.rpartition("-")[2]): folder
        for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if folder.is_dir() and folder.name.rpartition("-")[2].isdecimal()
    }
    return dict(sorted(found.items()))


def delete_older(output_dir: str | Path, proven: int, limit: int | None, best: str | None) -> None:
    """
    Delete the oldest checkpoints beyond a number, of those that are older than one just proven whole.

    Args:
        output_dir (`str` or `Path`):
            Output folder of a run.
        proven (`int`):
            Step of a checkpoint whose manifest has just been written. Later ones, of another life of the run, stay.
        limit (`int` or `None`):
            How many are kept, with that of `proven`; all of them where it is `None` or 0.
        best (`str` or `None`):
            A checkpoint that is never deleted, and is counted.
    """
    if not limit or limit < 0:
        return
    older = [folder for step, folder in checkpoints_of(output_dir).items() if step < proven]
    kept = {Path(best).resolve()} & {folder.resolve() for folder in older} if best else set()
    free = [folder for folder in older if folder.resolve() not in kept]
    for folder in free[: max(0, len(free) - max(0, limit - 1 - len(kept)))]:
        shutil.rmtree(folder, ignore_errors=True)


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """
    The checkpoint of the most steps that is whole, byte by byte; those after it are named in a warning.

    Args:
        output_dir (`str` or `Path`):
            Output folder of a run; it need not exist.

    Returns:
        `str`: Its folder, or `None` where there is no complete one on every process's disk.
    """
    found = checkpoints_of(output_dir)
    missing = {step: what_is_missing(folder, hashes=False) for step, folder in found.items()}
    # Machines without a shared disk have a checkpoint each, and may have died at different points of a save.
    everywhere = set.intersection(*gather_object([{step for step, reason in missing.items() if reason is None}]))
    whole = None
    for step in sorted(everywhere, reverse=True):
        # Of the processes of a machine, one reads what is on its disk.
        reason = what_is_missing(found[step]) if PartialState().is_local_main_process else None
        if not any(gather_object([reason])):
            whole = step
            break
        missing[step] = reason
    for step, folder in found.items():
        if whole is None or step > whole:
            reason = missing[step] or "another process's disk does not have all of it"
            logger.warning(f"Checkpoint '{folder}' is not complete and is passed over: {reason}.")
    return None if whole is None else str(found[whole])


def why_not_whole(folder: str | Path) -> str | None:
    """[`what_is_missing`] as every process agrees on it; on each machine one of them reads the files."""
    reason = what_is_missing(folder, hashes=PartialState().is_local_main_process)
    return next((found for found in gather_object([reason]) if found), None)
