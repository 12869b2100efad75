"""Several ways to do the same work, side by side: each in a process of its own, taking turns, round by round."""

import ctypes
import gc
import logging
import math
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
import transformers
from torch import Tensor, nn
from tqdm.auto import tqdm

CLEAR_REFS = Path("/proc/self/clear_refs")


class Round(NamedTuple):
    """What one round of an arm took. Tokens are those that the model was run on: a shared one counts once."""

    seconds: float
    items: int  # pairs or responses
    real_tokens: int
    padded_tokens: int  # the real ones and the padding
    squares: int  # twice the (query, key) pairs of real tokens, the sum of squared row lengths where nothing is shared
    resting_bytes: float  # held before the round: on the CPU by the process, on a GPU by tensors; NaN if not known
    peak_bytes: float  # most that was held above that
    values: tuple[float, ...] = ()  # losses or scores, where they are compared
    parts: tuple[float, ...] = ()  # seconds of each part of a step, where they are measured


def turn_order(names: list[str], rounds: int) -> list[list[str]]:
    """
    Order of the names in each round: forwards and backwards in turn, so that a machine that slows down steadily
    favours no one.
    """
    return [names[:: -1 if i % 2 else 1] for i in range(rounds)]


def visible_squares(branch_ids: Tensor) -> Tensor:
    r"""
    Twice the (query, key) pairs that causal attention visits, the diagonal counted half.

    $$ n^2 + \sum_b (2 n c_b + c_b^2) $$

    for `n` tokens that all branches share and `c` of each branch, which sees the shared ones and itself.

    Args:
        branch_ids (`torch.Tensor` of shape `(B, T)`, int64):
            0 on shared tokens, 1, 2, … on those of each branch, -1 on padding. A plain row has 0 alone.

    Returns:
        `torch.Tensor` of shape `(B,)`, int64
    """
    shared = (branch_ids == 0).sum(1)
    total = shared**2
    for branch in range(1, int(branch_ids.max()) + 1):
        own = (branch_ids == branch).sum(1)
        total = total + 2 * shared * own + own**2
    return total


# What a process measures of itself


def now(device: str) -> float:
    """Seconds on a clock that goes on, once a GPU's work is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Meter:
    """
    Time, tokens and memory of the rounds that a model is used in.

    On the CPU memory is the process's resident set. What the allocator keeps for later use is returned to the system
    before a round (`malloc_trim`), and what it keeps within a round counts, since the machine must have it.
    """

    def __init__(self, model: nn.Module, device: str) -> None:
        self.device = device
        self._branches: list[Tensor] = []
        self._resting, self._start = math.nan, math.nan
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs["attention_mask"]
        branches = kwargs.get("branch_ids")
        self._branches.append(mask - 1 if branches is None else branches)

    def start(self) -> None:
        """Begin a round."""
        self._branches.clear()
        gc.collect()
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._resting = float(torch.cuda.memory_allocated())
        else:
            if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc has it
                trim(0)
            if CLEAR_REFS.exists():
                CLEAR_REFS.write_text("5")  # sets the peak back to what is held now
            self._resting = _resident("VmRSS")
        self._start = now(self.device)

    def stop(self, items: int, values: Iterable[float] = ()) -> Round:
        """End a round in which so many pairs or responses were done, with losses or scores to compare."""
        seconds = now(self.device) - self._start
        peak = float(torch.cuda.max_memory_allocated()) if self.device == "cuda" else _resident("VmHWM")
        real = sum(int((branches >= 0).sum()) for branches in self._branches)
        padded = sum(branches.numel() for branches in self._branches)
        squares = sum(int(visible_squares(branches).sum()) for branches in self._branches)
        above = peak - self._resting
        if self.device == "cuda":
            torch.cuda.empty_cache()  # the other arms are on the same GPU
        return Round(seconds, items, real, padded, squares, self._resting, above, tuple(values))


def _resident(name: str) -> float:
    """A line of /proc/self/status in bytes; NaN where the system has none."""
    if not CLEAR_REFS.exists():
        return math.nan
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) * 1024


# Processes that take turns


class Turns:
    """An arm's end of the pipe to the process that lets the arms go one at a time."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def wait(self) -> None:
        """Say that the arm is ready, and wait until it is its turn."""
        self._pipe.send("ready")
        self._pipe.recv()

    def report(self, measured: Round) -> None:
        """End the turn."""
        self._pipe.send(measured)


class _Failure(NamedTuple):
    text: str


Work = Callable[..., None]


def measure(work: dict[str, tuple[Work, tuple[Any, ...]]], rounds: int, threads: int) -> dict[str, list[Round]]:
    """
    Run several arms, each in a process of its own that lives for all rounds, never two at a time.

    Args:
        work (`dict[str, tuple[Callable, tuple]]`):
            By name of the arm, a function of a module and its arguments after the first, which is [`Turns`]. It makes
            what it needs, warms up, and then for each round waits, works and reports.
        rounds (`int`):
            Number of rounds; each lets every arm go once.
        threads (`int`):
            Threads of each process.

    Returns:
        `dict[str, list[Round]]`: Rounds of each arm.

    Raises:
        `RuntimeError`: If an arm fails; with its traceback.
    """
    context = multiprocessing.get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = str(threads)  # the processes inherit it
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with several GPUs Transformers would share out each batch
    processes, pipes = {}, {}
    results: dict[str, list[Round]] = {name: [] for name in work}
    bar = tqdm(total=(1 + rounds) * len(work), desc="Warming up", unit="turn")  # an arm's first is to get ready
    try:
        for name, (function, arguments) in work.items():
            pipes[name], end = context.Pipe()
            processes[name] = context.Process(target=_arm, args=(end, threads, function, arguments), daemon=True)
            processes[name].start()
            end.close()
            pipes[name].poll(None)  # until it is ready, so that no arm warms up while another does
            bar.update()
        for order in turn_order(list(work), rounds):
            for name in order:
                _receive(name, pipes[name])
                bar.set_description(name)
                pipes[name].send("go")
                results[name].append(_receive(name, pipes[name]))
                bar.update()
        for process in processes.values():
            process.join()
        return results
    finally:
        bar.close()
        for process in processes.values():
            process.terminate()


def _arm(pipe: Connection, threads: int, function: Work, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    try:
        function(Turns(pipe), *arguments)
    except Exception:  # it is raised again on the other side
        pipe.send(_Failure(traceback.format_exc()))


def _receive(name: str, pipe: Connection) -> Any:
    try:
        message = pipe.recv()
    except EOFError:
        message = _Failure("Its process died; what it wrote is above, unless the system killed it for its memory.")
    if isinstance(message, _Failure):
        raise RuntimeError(f"Arm '{name}' failed. {message.text}")
    return message
