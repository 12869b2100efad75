"""A run that is told to stop saves a checkpoint and leaves with the exit status of the signal."""

import signal
from typing import Any

import torch
from accelerate.logging import get_logger
from transformers import TrainerCallback

logger = get_logger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SaveOnSignal(TrainerCallback):
    """
    On SIGTERM or SIGINT saves a checkpoint after the step under way, and ends the process with status 143 or 130.

    An evaluation that is due at that step is left out, as who sends the signal does not wait for long. A second SIGINT
    ends the run at once. Transformers' `enable_jit_checkpoint` waits three seconds, lets every process save when its
    own clock says so, in the middle of a step too, knows SIGTERM alone and then goes on as if training had ended.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer that it is added to.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._received = 0  # by this process
        self._agreed = 0  # by all
        self._before: dict[signal.Signals, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._received = self._agreed = 0
        self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}

    def _receive(self, number: int, frame: Any) -> None:
        # Launchers send SIGTERM on to processes that a scheduler has told already, so the second one says nothing.
        if self._received == signal.SIGINT == number:
            raise KeyboardInterrupt
        if not self._received:
            self._received = number
            name = signal.Signals(number).name
            logger.warning(f"{name}: the run ends after this step, with a checkpoint.", main_process_only=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stop(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._trainer.is_in_train:
            self._stop(control)

    def _stop(self, control: Any) -> None:
        # A signal reaches the processes at different steps, and a save needs all of them.
        received = torch.tensor([self._received], device=self._trainer.args.device)
        if self._trainer.args.world_size > 1:
            received = self._trainer.accelerator.gather(received)
        self._agreed = int(received.max())
        if self._agreed:
            control.should_save, control.should_evaluate = True, False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._agreed:
            raise SystemExit(128 + self._agreed)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if self._received:  # since the last step, whose checkpoint there is
            signal.raise_signal(self._received)
