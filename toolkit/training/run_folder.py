"""One run in one folder: a lock while it lasts, and no run written over another unless that is asked for."""

import atexit
import json
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import gather_object

from .manifests import checkpoints_of
from .run_record import BEFORE_AFTER_NAME, EXAMPLES_NAME, HELD_OUT_NAME, RUN_NAME

logger = get_logger(__name__)

LOCK_NAME = "run.lock"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")
_RECORDS = (
    RUN_NAME,
    EXAMPLES_NAME,
    HELD_OUT_NAME,
    BEFORE_AFTER_NAME,
    "trainer_state.json",
    "*_results.json",
    "metrics.json",
)


def claim_folder(output_dir: str, resume_from_checkpoint: Any = None, overwrite: bool = False) -> None:
    """
    Take an output folder for this run, on every process of it, until the process ends.

    Args:
        output_dir (`str`):
            Output folder; made where it is absent.
        resume_from_checkpoint (`str` or `bool`, *optional*):
            The trainer's option: a run that goes on from a checkpoint of the folder may have it.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether a run that is in the folder may be there, since [`delete_earlier_run`] will delete it.

    Raises:
        `ValueError`: If another run is at work in the folder, or one has left its files there.
    """
    processes = gather_object([_this_process()])
    refusal = None
    if PartialState().is_main_process:
        folder = Path(output_dir)
        refusal = (
            _why_no_folder(folder)
            or _lock(folder, processes)
            or _why_not_here(folder, resume_from_checkpoint, overwrite)
        )
    for found in gather_object([refusal]):
        if found:
            raise ValueError(found)


def delete_earlier_run(output_dir: str, overwrite: bool) -> None:
    """
    Delete the run that was in a claimed folder, on every process, when the new one is about to begin: one that is
    refused before, for its data or its options, leaves the old one as it was.

    Args:
        output_dir (`str`):
            Output folder.
        overwrite (`bool`):
            Whether that is asked for. Its checkpoints, weights and records are deleted, and nothing else.
    """
    state, folder = PartialState(), Path(output_dir)
    if overwrite and state.is_main_process:
        found = [path for paths in _left_by_a_run(folder) for path in paths]
        for path in found:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if found:
            logger.warning(f"Deleted the run in '{folder}': {', '.join(path.name for path in found)}.")
    state.wait_for_everyone()


def _why_no_folder(folder: Path) -> str | None:
    """Make a folder; the reason where that cannot be."""
    if folder.is_file():
        return f"'{folder}' is a file. Give another `output_dir`."
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"The folder '{folder}' cannot be made ({error.strerror}). Give another `output_dir`."
    return None


def _this_process() -> dict[str, Any]:
    own, launcher = psutil.Process(), psutil.Process(os.getppid()) if os.getppid() > 0 else None
    return {
        "host": socket.gethostname(),
        "pid": own.pid,
        "started": own.create_time(),
        "launcher": launcher and {"pid": launcher.pid, "started": launcher.create_time()},
        "command": sys.argv[0],
    }


def _lives(process: dict[str, Any]) -> bool:
    """Whether a process of this host is at work; another one may have got its number since."""
    try:
        found = psutil.Process(process["pid"])
        # A machine's clock may be set while it runs, and these times with it
        return bool(abs(found.create_time() - process["started"]) < 5 and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _lock(folder: Path, processes: list[dict[str, Any]]) -> str | None:
    """Write the lock; the reason where another run has it."""
    file = folder / LOCK_NAME
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        if reason := _held(file):
            return reason
        # Renamed and looked at again: the lock may have become another's since
        stale = file.with_name(f"{LOCK_NAME}.{os.getpid()}")
        file.rename(stale)
        if reason := _held(stale):
            stale.rename(file)
            return reason.replace(stale.name, file.name)
        stale.unlink()
        return _lock(folder, processes)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(json.dumps({"processes": processes}) + "\n")
    atexit.register(_release, file, os.getpid())
    return None


def _held(file: Path) -> str | None:
    """Who has the lock, for a message; `None` where nobody has, or this very process."""
    try:
        processes = json.loads(file.read_text())["processes"]
        mine = any(
            one["pid"] == os.getpid() and _lives(one) for one in processes if one["host"] == socket.gethostname()
        )
    except (ValueError, KeyError, TypeError):
        return f"'{file}' is no lock that can be read. Delete it if no run is at work in that folder."
    if mine:
        return None
    strangers = sorted({one["host"] for one in processes} - {socket.gethostname()})
    if strangers:
        return (
            f"'{file.parent}' is taken by a run on {', '.join(strangers)}, which cannot be asked from "
            f"{socket.gethostname()}. Wait for it, or delete '{file}' if it is dead."
        )
    living = [one for one in processes if _lives(one)]
    if not living:
        return None
    pids = " ".join(str(one["pid"]) for one in living)
    orphans = [one for one in living if one["launcher"] and not _lives(one["launcher"])]
    if orphans:
        return (
            f"'{file.parent}' is taken by process {pids}, which goes on though its launcher (process "
            f"{orphans[0]['launcher']['pid']}) is gone. Wait for it, or stop it with `kill {pids}`, which saves a "
            "checkpoint."
        )
    return f"'{file.parent}' is taken by process {pids}, a run at work. Wait for it, or give another `output_dir`."


def _release(file: Path, pid: int) -> None:
    if os.getpid() == pid and file.is_file() and f'"pid": {pid},' in file.read_text():
        file.unlink()


def _left_by_a_run(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Checkpoints, weights and records."""
    weights = [file for pattern in _WEIGHTS for file in sorted(folder.glob(pattern))]
    records = [file for pattern in _RECORDS for file in sorted(folder.glob(pattern))]
    return list(checkpoints_of(folder).values()), weights, records


def _why_not_here(folder: Path, resume_from_checkpoint: Any, overwrite: bool) -> str | None:
    """The reason where the files of an earlier run may not be written over."""
    wanted = str(resume_from_checkpoint)
    resumes = wanted.lower() == "true" or Path(wanted).resolve().parent == folder.resolve()
    checkpoints, weights, records = _left_by_a_run(folder)
    found = [*checkpoints, *weights, *records]
    if overwrite and resumes:
        return "`overwrite_output_dir` deletes what `resume_from_checkpoint` goes on from. Leave out one of them."
    if resumes and weights and not checkpoints:
        return (
            f"'{folder}' holds a trained model ('{weights[0].name}') and no checkpoint to go on from. Give another "
            "`output_dir`, or `--overwrite_output_dir true`, which deletes it."
        )
    if found and not resumes and not overwrite:
        names = ", ".join(path.name for path in found[:3]) + (", …" if len(found) > 3 else "")
        return (
            f"'{folder}' holds a run ({names}). Go on with it by `--resume_from_checkpoint true`, give another "
            "`output_dir`, or `--overwrite_output_dir true`, which deletes it."
        )
    return None
