"""Checkpoints that are whole or not there, and a training that goes on from one as if it had never stopped."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object  # it stands before any trainer, and has no base of its own

logger = get_logger(__name__)

MANIFEST_NAME = "manifest.json"


def write_manifest(folder: str | Path) -> None:
    """
    Declare a checkpoint complete: list its files with their sizes, in a file that appears in one piece.

    Args:
        folder (`str` or `Path`):
            A checkpoint to which nothing will be added.
    """
    folder = Path(folder)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    files = {
        str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()
    }
    part = folder / (MANIFEST_NAME + ".part")
    part.write_text(json.dumps({"files": files}, indent=1) + "\n")
    part.rename(folder / MANIFEST_NAME)


def what_is_missing(folder: str | Path) -> str | None:
    """
    Why a checkpoint cannot be resumed from.

    Args:
        folder (`str` or `Path`):
            A checkpoint.

    Returns:
        `str`, or `None` where it is complete.
    """
    folder = Path(folder)
    if not (folder / MANIFEST_NAME).is_file():
        return f"it has no {MANIFEST_NAME}, which is written last"
    for name, size in json.loads((folder / MANIFEST_NAME).read_text())["files"].items():
        file = folder / name
        if not file.is_file():
            return f"its file {name} is gone"
        if file.stat().st_size != size:
            return f"its file {name} has {file.stat().st_size} bytes instead of {size}"
    return None


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """
    The checkpoint of the most steps that was written to its end; those after it are named in a warning.

    Args:
        output_dir (`str` or `Path`):
            Output folder of a run; it need not exist.

    Returns:
        `str`: Its folder, or `None` where there is no complete one on every process's disk.
    """
    found = {
        int(folder.name.rpartition("-")[2]): folder
        for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if folder.is_dir() and folder.name.rpartition("-")[2].isdecimal()
    }
    missing = {step: what_is_missing(folder) for step, folder in found.items()}
    # Machines without a shared disk have a checkpoint each, and may have died at different points of a save.
    everywhere = set.intersection(*gather_object([{step for step, reason in missing.items() if reason is None}]))
    last = max(everywhere, default=-1)
    for step in sorted(found):
        if step > last:
            reason = missing[step] or "another process's disk does not have all of it"
            logger.warning(f"Checkpoint '{found[step]}' is not complete and is passed over: {reason}.")
    return str(found[last]) if everywhere else None


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
        if checkpoint is not None and (reason := what_is_missing(checkpoint)):
            raise ValueError(
                f"Checkpoint '{checkpoint}' is not complete: {reason}. Resume with `resume_from_checkpoint=True`, "
                "which takes the last complete one."
            )
        if checkpoint is not None and not any(Path(checkpoint).glob("resume_state_*.pt")):
            raise ValueError(
                f"Checkpoint '{checkpoint}' holds weights alone: it was saved with `save_only_model=True`. Load it as "
                "a model to begin a new run."
            )
        return super().train(checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run_folder = self._get_output_dir(trial=trial)
        folder = Path(run_folder, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save and folder.exists():
            # Left by a run that died, or by an earlier one: never a mixture of the two, and never by its manifest.
            (folder / MANIFEST_NAME).unlink(missing_ok=True)
            shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        # Older checkpoints go only when this one is complete, so that there is always one to resume from.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_manifest(folder)
            rotate_checkpoints(run_folder, limit, self.state.best_model_checkpoint, use_mtime=True)

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
