"""Checkpoints that are whole or not there, and a training that goes on from one as if it had never stopped."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import get_logger
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .fingerprints import check_same_run, fingerprint, save_fingerprint, training_options
from .manifests import begin_manifest, delete_older, last_complete_checkpoint, why_not_whole, write_manifest

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object  # it stands before any trainer, and has no base of its own

logger = get_logger(__name__)


class ExactResume(_Trainer):
    """
    Stands before a trainer: what [`~transformers.Trainer`] and TRL leave out of checkpoints is saved and restored.

    A subclass adds its own state by `_resume_state` and `_restore_resume_state`. What is logged after resuming is what
    would have been logged, also where the checkpoint falls between two logs.
    """

    # As any trainer of TRL has them
    args: Any
    model: Any
    _metrics: Any
    _fingerprint: dict[str, Any] | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in Transformers; `True` takes the last checkpoint that is complete, and a half-written one is refused."""
        checkpoint = resume_from_checkpoint or None
        if checkpoint is True:
            checkpoint = last_complete_checkpoint(self.args.output_dir)
            if checkpoint is None:
                raise ValueError(
                    f"No complete checkpoint found in '{self.args.output_dir}'. Start without "
                    "`resume_from_checkpoint`; on machines without a shared disk, save with `save_on_each_node=True`."
                )
        if checkpoint is not None and (reason := why_not_whole(checkpoint)):
            raise ValueError(
                f"Checkpoint '{checkpoint}' is not complete: {reason}. Resume with `resume_from_checkpoint=True`, "
                "which takes the last complete one."
            )
        if checkpoint is not None and not any(Path(checkpoint).glob("resume_state_*.pt")):
            raise ValueError(
                f"Checkpoint '{checkpoint}' holds weights alone: it was saved with `save_only_model=True`. Load it as "
                "a model to begin a new run."
            )
        if self._fingerprint is None:  # of the first call, before which nothing was trained
            self._fingerprint = fingerprint(self.train_dataset, self._models_of_run())
        if checkpoint is not None:
            check_same_run(checkpoint, self._run_fingerprint())
        return super().train(checkpoint, *args, **kwargs)

    def _models_of_run(self) -> dict[str, tuple[Any, bool]]:
        """Each model that the run's numbers depend on, and whether it is the one that is trained."""
        return {"model": (self.model, True)}

    def _run_fingerprint(self) -> dict[str, Any]:
        return {**(self._fingerprint or {}), "options": training_options(self.args)}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run_folder = self._get_output_dir(trial=trial)
        folder = Path(run_folder, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save:
            begin_manifest(folder)
        self.accelerator.wait_for_everyone()
        # Older checkpoints go only when this one is complete, so that there is always one to resume from.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            save_fingerprint(folder, self._run_fingerprint())
            write_manifest(folder)
            delete_older(run_folder, self.state.global_step, limit, self.state.best_model_checkpoint)
        # A launcher kills all processes when one leaves, and this may be the last save
        self.accelerator.wait_for_everyone()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # A finished run that is resumed has no step left; Transformers looks for the end only after a step.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # PEFT loads adapters as float32, also those that TRL trains in bfloat16 beside a 4-bit model.
        dtypes = {name: parameter.dtype for name, parameter in self.model.named_parameters()}
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        for name, parameter in self.model.named_parameters():
            if parameter.dtype != dtypes[name]:
                parameter.data = parameter.data.to(dtypes[name])

    # Transformers saves the random states last of all that every process saves, and loads them when the first batch of
    # the rest has been drawn: the one place where a process's own state can be saved, and put back for good.

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        state = {
            "processes": self.args.world_size,
            "loss": self._tr_loss,
            "last_logged_step": self._globalstep_last_logged,
            "metrics": dict(self._metrics["train"]),
            **self._resume_state(),
        }
        torch.save(state, self._state_file(output_dir, self.args.process_index))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        own = self._state_file(checkpoint, self.args.process_index)
        # Of a run with fewer processes, any one has what they shared; a machine's own disk has only its own.
        file = own if own.is_file() else next(iter(sorted(Path(checkpoint).glob("resume_state_*.pt"))))
        state = torch.load(file, map_location=self.args.device.type, weights_only=True)
        same_processes = state["processes"] == self.args.world_size
        if same_processes:
            self._tr_loss = state["loss"]
            self._globalstep_last_logged = state["last_logged_step"]
            self._metrics["train"].update(state["metrics"])
        else:
            logger.warning(
                f"Checkpoint '{checkpoint}' was saved by {state['processes']} processes and this run has "
                f"{self.args.world_size}: it goes on from the same weights, but not with the same random numbers."
            )
        self._restore_resume_state(state, same_processes)

    @staticmethod
    def _state_file(folder: str, process: int) -> Path:
        return Path(folder, f"resume_state_{process}.pt")

    def _resume_state(self) -> dict[str, Any]:
        """This process's own state: tensors, numbers, strings, and lists and dictionaries of them."""
        raise NotImplementedError

    def _restore_resume_state(self, state: dict[str, Any], same_processes: bool) -> None:
        """Put it back; without `same_processes` it is that of some process of a run with more or fewer."""
        raise NotImplementedError
