"""A study: a grid of trainings, called cells, whose results are kept one by one, so that it can be stopped at any
time, gone on with, and run side by side."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from ...training.run_record import library_versions, read_json, write_json

SETTINGS_FILE = "settings.json"


class Cell(NamedTuple):
    """One training of a study."""

    name: str  # of its file
    work: Callable[..., dict[str, Any]]  # a function of a module, called with the study's folder, settings, arguments
    arguments: dict[str, Any]
    needs: tuple[str, ...] = ()  # cells whose models it starts from


class Study:
    """
    Results of a study in a folder: `settings.json`, `cells/<name>.json` and what cells leave for later ones in
    `models/`. Results that are kept without their models can be gone on with: what is needed is made again.

    Args:
        folder (`Path`):
            Where they are kept.
        settings (dataclass):
            What all cells have in common.

    Raises:
        `ValueError`: If the folder holds a study with other settings.
    """

    def __init__(self, folder: Path, settings: Any) -> None:
        self.folder, self.settings = folder, settings
        wanted = json.loads(json.dumps({"kind": type(settings).__name__, **asdict(settings)}))
        file = folder / SETTINGS_FILE
        if file.exists():
            found = read_json(file, dict, f"Restore it, or remove '{folder}' to begin the study anew.")
            other = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
            if other:
                changes = "; ".join(f"{key}: {found.get(key)} there, {wanted.get(key)} now" for key in other)
                raise ValueError(
                    f"'{folder}' holds a study with other settings ({changes}). Its cells do not compare with new "
                    "ones: set them back, or give another `output_dir`."
                )
        else:
            (folder / "cells").mkdir(parents=True, exist_ok=True)
            write_json(file, wanted)

    def record(self, name: str) -> dict[str, Any] | None:
        """
        All that is kept of a cell: `cell` (its arguments), `seconds`, `threads`, `versions` and `result`.

        Args:
            name (`str`):
                Name of the cell.

        Returns:
            `dict[str, Any]`: `None` where it has not ended.

        Raises:
            `ValueError`: If its file is damaged.
        """
        file = self.folder / "cells" / f"{name}.json"
        if not file.exists():
            return None
        found = read_json(file, dict, "Remove it, and the study runs that cell again; the others are kept.")
        if not isinstance(found.get("result"), dict):
            raise ValueError(f"'{file}' has no `result`. Remove it, and the study runs that cell again.")
        return found

    def result(self, name: str) -> dict[str, Any] | None:
        """What a cell came to, `None` where it has not ended; errors as in [`Study.record`]."""
        found = self.record(name)
        return None if found is None else found["result"]

    def has_model(self, name: str) -> bool:
        """Whether what a cell leaves for later ones is there and whole."""
        return self._made(name).exists()

    def keep(self, cell: Cell) -> None:
        """Run a cell and keep what it comes to; a result that is there already stays."""
        begin = time.perf_counter()
        self._made(cell.name).unlink(missing_ok=True)
        result = cell.work(self.folder, self.settings, **cell.arguments)
        record = {"cell": cell.arguments, "seconds": time.perf_counter() - begin, "threads": torch.get_num_threads()}
        if self.record(cell.name) is None:
            file = self.folder / "cells" / f"{cell.name}.json"
            write_json(file, {**record, "versions": library_versions(), "result": result}, None)
        self._made(cell.name).parent.mkdir(exist_ok=True)
        self._made(cell.name).touch()

    def _made(self, name: str) -> Path:
        return self.folder / "models" / f"{name}.made"

    def results(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """The results of those of the cells that have ended; errors as in [`Study.record`]."""
        return [result for name in names if (result := self.result(name)) is not None]


def run_stages(study: Study, stages: Iterator[list[Cell]], workers: int) -> None:
    """
    Run a study's cells that have not ended, stage by stage.

    Args:
        study ([`Study`]):
            Where results are kept. What cells print goes to `logs/` in its folder.
        stages (iterator of lists of [`Cell`]):
            Stages, made one after the other, so that one may read the results of those before it.
        workers (`int`):
            Processes that run cells of a stage side by side. Each has the threads that `OMP_NUM_THREADS` says, or
            else its share of the machine's cores.

    Raises:
        `RuntimeError`: If a cell fails, naming it, after those that were under way have ended; or if a process is
            killed, as it is when memory runs out.
    """
    logs = study.folder / "logs"
    logs.mkdir(exist_ok=True)
    # Processes with a thread for every core would slow each other down several times over
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // workers))
    known: dict[str, Cell] = {}
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker, (logs, threads)) as pool:
        for cells in stages:
            known |= {cell.name: cell for cell in cells}
            batches = [[cell for cell in cells if study.result(cell.name) is None]]
            while lacking := {name for cell in batches[0] for name in cell.needs if not study.has_model(name)}:
                later = [[cell for cell in batch if cell.name not in lacking] for batch in batches]
                batches = [[known[name] for name in sorted(lacking)], *later]
            for batch in batches:
                _run_batch(pool, study, batch, workers)


def _run_batch(pool: ProcessPoolExecutor, study: Study, cells: list[Cell], workers: int) -> None:
    waiting, running = cells[::-1], dict[Future[None], str]()
    with tqdm(total=len(cells), desc="Cells", disable=not cells) as bar:
        while waiting or running:
            # No more than there are processes: what the pool has taken would begin after an error, too
            while waiting and len(running) < workers:
                cell = waiting.pop()
                running[pool.submit(study.keep, cell)] = cell.name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                _check(future.exception(), running.pop(future), study.folder / "logs")
                bar.update()


def _check(error: BaseException | None, name: str, logs: Path) -> None:
    if error is None:
        return
    what = f"Cell '{name}' failed: {type(error).__name__}: {error}"
    if isinstance(error, BrokenProcessPool):
        what = "A process that ran a cell was killed, as happens when memory runs out: then use fewer `workers`."
    raise RuntimeError(
        f"{what} What it printed is in '{logs}'. The cells that ended are kept, and the same command goes on with "
        "the others."
    ) from error


def _begin_worker(logs: Path, threads: int) -> None:
    # A process that caught Ctrl-C would take the next cell
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(threads)
    # What this process prints, its libraries' lines included, goes to a file of its own
    log = os.open(logs / f"worker-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
