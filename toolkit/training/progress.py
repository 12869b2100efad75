"""What a training shows in the terminal: a bar of its steps, and one line a log."""

import math
from collections.abc import Mapping
from time import monotonic
from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback

# What a line shows of what was logged, where it is there: the key, its name, how it is written.
_FIGURES = (
    ("loss", "loss", ".4f"),
    ("accuracy", "accuracy", ".1%"),
    ("reward", "reward", ".3f"),
    ("kl", "KL", ".4f"),
)


class StepBar(ProgressCallback):
    """Transformers' bar of the steps, without the dictionaries of what was logged."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Leave it to [`LogLines`]."""


class LogLines(PrinterCallback):
    """
    Prints a readable line of each log, such as `step 20/60  loss 0.6021  accuracy 66.4%  5,120 tokens/s  00:41 left`.

    Trackers and `trainer_state.json` get all that was logged; `trainer.remove_callback(LogLines)` silences the lines.
    Tokens a second are those of all processes since the log before, evaluations not counted.
    """

    def __init__(self) -> None:
        self._begin, self._first_step = 0.0, 0
        self._last_log, self._tokens = 0.0, math.nan  # when, and how many had been trained on by then

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin = self._last_log = monotonic()
        self._first_step = state.global_step
        # How many a resumed run had trained on is not known before its first log, which shows no speed for that
        self._tokens = 0.0 if state.global_step == 0 else math.nan

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        step = f"step {state.global_step}/{state.max_steps}" if state.max_steps else ""  # none without a training
        evaluated = [key for key in logs if key.endswith("_runtime")]
        if "train_runtime" in logs:
            _print(f"{state.global_step - self._first_step} steps in {_interval(logs['train_runtime'])}")
        elif evaluated:
            prefix, seconds = evaluated[0].removesuffix("runtime"), logs[evaluated[0]]
            self._last_log += seconds
            _print(step, prefix.rstrip("_"), *_figures(logs, prefix), f"in {_interval(seconds)}")
        elif figures := _figures(logs):
            _print(step, *figures, *self._pace(state, logs))

    def _pace(self, state: Any, logs: Mapping[str, Any]) -> list[str]:
        """Tokens a second since the log before, and the time that is left at the pace of the steps so far."""
        now, parts = monotonic(), []
        if "num_tokens" in logs:
            if self._tokens < logs["num_tokens"] and self._last_log < now:
                parts.append(f"{(logs['num_tokens'] - self._tokens) / (now - self._last_log):,.0f} tokens/s")
            self._last_log, self._tokens = now, logs["num_tokens"]
        done = state.global_step - self._first_step
        if done > 0:
            parts.append(f"{_interval((now - self._begin) / done * (state.max_steps - state.global_step))} left")
        return parts


def show_progress(trainer: Any) -> None:
    """
    Give a trainer a bar of steps and readable lines in place of Transformers' dictionaries, as `disable_tqdm` asks.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer. A notebook's table stays, and so do callbacks of the user's own classes.
    """
    callbacks = trainer.callback_handler.callbacks
    for place, callback in enumerate(callbacks):
        if type(callback) is PrinterCallback:
            callbacks[place] = LogLines()
        elif type(callback) is ProgressCallback:
            callbacks[place : place + 1] = [StepBar(), LogLines()]


def _figures(logs: Mapping[str, Any], prefix: str = "") -> list[str]:
    values = [(name, logs.get(prefix + key), form) for key, name, form in _FIGURES]
    return [f"{name} {value:{form}}" for name, value, form in values if value is not None]


def _interval(seconds: float) -> str:
    return str(tqdm.format_interval(seconds))


def _print(*parts: str) -> None:
    tqdm.write("  ".join(filter(None, parts)))  # above a bar, where there is one
