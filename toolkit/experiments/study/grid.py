"""A study is a grid of trainings, called cells, whose results are kept one by one.

So it can be stopped at any time, gone on with, and run side by side.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
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
    The results of a study in a folder: `settings.json`, `cells/<name>.json`, and in `models/` what later cells need.

    Results that are kept without their models can be gone on with: what is needed is made again. A folder that holds
    a study with other `settings`, a dataclass, is refused with a `ValueError`, and so is a damaged file, by its name.
    """

    def __init__(self, folder: Path, settings: Any) -> None:
        self.folder, self.settings = folder, settings
        wanted = json.loads(json.dumps({"kind": type(settings).__name__, **asdict(settings)}))
        file = folder / SETTINGS_FILE
        if not file.exists():
            (folder / "cells").mkdir(parents=True, exist_ok=True)
            write_json(file, wanted)
            return
        kept = read_json(file, dict, f"Restore it, or remove '{folder}' to begin the study anew.")
        if other := [key for key in {**kept, **wanted} if kept.get(key) != wanted.get(key)]:
            changes = "; ".join(f"{key}: {kept.get(key)} there, {wanted.get(key)} now" for key in other)
            raise ValueError(
                f"'{folder}' holds a study with other settings ({changes}). Its cells do not compare with new "
                "ones: set them back, or give another `output_dir`."
            )

    def record(self, name: str) -> dict[str, Any] | None:
        """All that is kept of a cell: `cell` (its arguments), `seconds`, `threads`, `versions` and `result`."""
        file = self._record_file(name)
        if not file.exists():
            return None
        record: dict[str, Any] = read_json(
            file, dict, "Remove it, and the study runs that cell again; the others are kept."
        )
        if not isinstance(record.get("result"), dict):
            raise ValueError(f"'{file}' has no `result`. Remove it, and the study runs that cell again.")
        return record

    def result(self, name: str) -> dict[str, Any] | None:
        """What a cell came to, `None` where it has not ended."""
        record = self.record(name)
        return None if record is None else record["result"]

    def results(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """The results of those of the cells that have ended."""
        return [result for name in names if (result := self.result(name)) is not None]

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
            write_json(
                self._record_file(cell.name), {**record, "versions": library_versions(), "result": result}, None
            )
        self._made(cell.name).parent.mkdir(exist_ok=True)
        self._made(cell.name).touch()

    def _record_file(self, name: str) -> Path:
        return self.folder / "cells" / f"{name}.json"

    def _made(self, name: str) -> Path:
        return self.folder / "models" / f"{name}.made"


def cell_name(*parts: object, rate: float | None = None) -> str:
    """Name of a cell from what sets it apart; with a learning rate it is one of the search."""
    name = "-".join(map(str, parts)).replace(" + ", "+").replace(" ", "_")
    return name if rate is None else f"{name}-rate-{rate:g}"


def run_stages(study: Study, stages: Iterator[list[Cell]], workers: int) -> None:
    """
    Run a study's cells that have not ended, stage by stage, the cells of a stage side by side in `workers` processes.

    Stages are made one after the other, so that one may read the results of those before it. What cells print goes to
    `logs/`. Each process has the threads that `OMP_NUM_THREADS` says, or else its share of the machine's cores. If a
    cell fails or a process is killed, a `RuntimeError` says so after the cells that were under way have ended.
    """
    logs = study.folder / "logs"
    logs.mkdir(exist_ok=True)
    # Processes with a thread for every core would slow each other down several times over
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // workers))
    known: dict[str, Cell] = {}
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker, (logs, threads)) as pool:
        for cells in stages:
            known |= {cell.name: cell for cell in cells}
            # Cells to run, and before them, backwards, those whose models they need and nobody has kept
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
