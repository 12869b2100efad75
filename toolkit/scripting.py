"""What the recipes share: their arguments, where their data and models come from, and what a run leaves behind."""

import glob
import importlib
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field, fields
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset
from transformers import TrainerCallback
from trl import ModelConfig, ScriptArguments

from .checkpoints import last_complete_checkpoint
from .data import load_pairs, load_prompts
from .metrics import PairScores
from .sandbox import sample_pairs, sample_prompts

logger = get_logger(__name__)

RUN_NAME = "run.json"
EXAMPLES_NAME = "examples.json"
PACKAGES = ("prefscale", "torch", "transformers", "trl", "peft", "accelerate", "datasets")
# Options by these names are left out of what is written, and so are access tokens inside other text.
_SECRET_NAME = re.compile(r"(token|api_key|password|secret)$")
_SECRET_TEXT = re.compile(r"""(["']\w*(?:token|api_key|password|secret)["']\s*:\s*["'])[^"']*|hf_\w{20,}""")

SANDBOX = "sandbox"
# Held-out rows of the sandbox are drawn with this seed, training rows with the run's own.
SANDBOX_TEST_SEED = 1_000_003


@dataclass
class DataArguments(ScriptArguments):
    """
    Where the data come from: what [`trl.ScriptArguments`] has, with local files and the sandbox.

    `dataset_name` is a hub name, a folder, a file (`.jsonl`, `.jsonl.gz`, `.parquet`), a pattern of files such as
    `data/*.jsonl.gz`, or `sandbox`.

    Args:
        eval_dataset_name (`str`, *optional*):
            Held-out data, named like `dataset_name`. Where it is not given, `dataset_test_split` of `dataset_name`, or
            fresh rows of the sandbox.
        train_size (`int`, *optional*):
            Most rows to train on; so many are drawn from the sandbox (10,000 by default).
        eval_size (`int`, *optional*, defaults to `2000`):
            Most rows to evaluate on; so many are drawn from the sandbox.
    """

    eval_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Held-out data, named like `dataset_name`. Where it is not given, `dataset_test_split` of "
            "`dataset_name`, or fresh rows of the sandbox."
        },
    )
    train_size: int | None = field(
        default=None,
        metadata={"help": "Most rows to train on; so many are drawn from the sandbox (10,000 by default)."},
    )
    eval_size: int = field(
        default=2000, metadata={"help": "Most rows to evaluate on; so many are drawn from the sandbox."}
    )


def pair_splits(args: DataArguments, seed: int) -> tuple[Dataset, Dataset]:
    """
    Pairs to train on and held-out pairs.

    Args:
        args ([`DataArguments`]):
            Where they come from.
        seed (`int`):
            Seed of the sandbox's training pairs, and of the choice where there are more rows than asked for.

    Returns:
        `tuple[Dataset, Dataset]`

    Raises:
        `ValueError`: If the data cannot be found or a row is wrong; the message names file, row and column.
    """
    return _splits(args, seed, sample_pairs, load_pairs)


def prompt_splits(args: DataArguments, seed: int) -> tuple[Dataset, Dataset]:
    """
    Prompts to train on and held-out prompts; from pairs, too. Arguments and errors as in [`pair_splits`].
    """
    return _splits(args, seed, sample_prompts, load_prompts)


def _splits(
    args: DataArguments, seed: int, draw: Callable[..., Dataset], load: Callable[..., Dataset]
) -> tuple[Dataset, Dataset]:
    if args.dataset_name is None:
        raise ValueError("`dataset_name` is not set. Give a hub name, a folder, a file, or 'sandbox'.")
    if args.dataset_name == SANDBOX:
        return draw(args.train_size or 10_000, seed=seed), draw(args.eval_size, seed=SANDBOX_TEST_SEED)
    if args.eval_dataset_name is None and _names_files(args.dataset_name):
        raise ValueError(f"'{args.dataset_name}' is one split. Set `eval_dataset_name` to a file of held-out rows.")
    test_name = args.eval_dataset_name or args.dataset_name
    train_split = None if _names_files(args.dataset_name) else args.dataset_train_split
    test_split = None if _names_files(test_name) else args.dataset_test_split
    train = load(args.dataset_name, train_split, args.dataset_config)
    test = load(test_name, test_split, args.dataset_config)
    return _at_most(train, args.train_size, seed), _at_most(test, args.eval_size, seed)


def _names_files(name: str) -> bool:
    return glob.has_magic(name) or os.path.isfile(name)


def _at_most(dataset: Dataset, size: int | None, seed: int) -> Dataset:
    return dataset if size is None or len(dataset) <= size else dataset.shuffle(seed=seed).select(range(size))


def with_model_arguments(training_args: Any, model_args: ModelConfig) -> Any:
    """
    Put the model's options of TRL's [`trl.ModelConfig`] where its trainers look for them, as TRL's own scripts do.

    Args:
        training_args ([`~transformers.TrainingArguments`]):
            Configuration of a TRL trainer.
        model_args ([`trl.ModelConfig`]):
            Model options.

    Returns:
        `training_args`, with `model_init_kwargs` set.
    """
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    return training_args


def checkpoint_to_resume(training_args: Any) -> str | None:
    """
    The checkpoint that `resume_from_checkpoint` means: `true` is the last complete one of `output_dir`, or none where
    there is none yet, so that one command line starts a run and goes on with it after every interruption.

    Args:
        training_args ([`~transformers.TrainingArguments`]):
            Configuration of a trainer.

    Returns:
        `str` or `None`: For the `resume_from_checkpoint` of [`~transformers.Trainer.train`].
    """
    wanted, folder = str(training_args.resume_from_checkpoint), training_args.output_dir
    if wanted.lower() != "true":
        return None if wanted.lower() in ("false", "none") else wanted
    last = last_complete_checkpoint(folder)
    logger.warning(f"Going on from '{last}'." if last else f"No checkpoint in '{folder}' to go on from: a new run.")
    return last


def import_callable(path: str) -> Callable[..., Any]:
    """
    The object at a dotted path, such as `toolkit.sandbox.gold_judge` or `my_rewards.politeness`.

    Args:
        path (`str`):
            Module, dot, name. Modules in the current folder are found.

    Returns:
        `Callable`

    Raises:
        `ValueError`: If there is no such module or name, or it cannot be called.
    """
    module_name, _, name = path.rpartition(".")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"Cannot import '{path}': {error}. Give `module.name` of a function.") from error
    if not callable(found):
        raise ValueError(f"'{path}' is a {type(found).__name__}, not a function.")
    return found


def once(folder: Path, make: Callable[..., None], *args: Any) -> str:
    """
    Make a folder, unless an earlier run has finished it. It gets its name only when it is complete, so what a killed
    run left behind is never taken for a result.

    Args:
        folder (`Path`):
            The folder.
        make (`Callable`):
            Called on every process with the folder to write into, which may hold what a killed run left, and `args`.
        args:
            Further arguments of `make`.

    Returns:
        `str`: `folder`.
    """
    state = PartialState()
    if not folder.exists():
        part = folder.with_name(folder.name + ".part")
        part.mkdir(parents=True, exist_ok=True)
        make(part, *args)
        state.wait_for_everyone()
        if state.is_main_process:
            part.rename(folder)
        state.wait_for_everyone()
    return str(folder)


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a run's numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def save_run(trainer: Any, *arguments: Any) -> None:
    """
    Write down how a run was started, in `run.json` of its output folder: options, versions, seeds, the command.

    Call it before training. Secrets are left out: options whose name ends in `token`, and access tokens elsewhere.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer. Only its main process writes.
        arguments:
            Dataclasses of options that the run was started with.
    """
    if not trainer.is_world_process_zero():
        return
    args, file = trainer.args, Path(trainer.args.output_dir, RUN_NAME)
    resumed = str(args.resume_from_checkpoint).lower() not in ("false", "none")
    earlier = json.loads(file.read_text())["started"] if resumed and file.is_file() else []
    cuda = args.device.type == "cuda"
    run = {
        "trainer": type(trainer).__name__,
        "command": shlex.join(_without_secrets(sys.argv)),
        "started": [*earlier, datetime.now(UTC).isoformat(timespec="seconds")],  # more than one where it was resumed
        "processes": args.world_size,
        "device": torch.cuda.get_device_name(args.device) if cuda else args.device.type,
        "seed": args.seed,
        "data_seed": args.data_seed,
        "versions": library_versions(),
        "options": {type(options).__name__: _options(options) for options in arguments},
    }
    _write_whole(file, run)


def _options(options: Any) -> dict[str, dict[str, Any]]:
    """Options that differ from their defaults, and the others."""
    found: dict[str, dict[str, Any]] = {"changed": {}, "default": {}}
    for option in fields(options):
        if not option.init or _SECRET_NAME.search(option.name):
            continue
        default = option.default if option.default_factory is MISSING else option.default_factory()
        value = getattr(options, option.name)
        found["default" if value == default else "changed"][option.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    """What JSON can hold, without secrets."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if not _SECRET_NAME.search(str(key))}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, bool | int | float):
        return value
    return _SECRET_TEXT.sub(r"\1…", str(value))


def _without_secrets(words: list[str]) -> list[str]:
    shown, hide = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        secret = name.startswith("--") and bool(_SECRET_NAME.search(name.replace("-", "_")))
        shown.append("…" if hide else f"{name}=…" if secret and equals else _plain(word))
        hide = secret and not equals
    return shown


def save_pair_examples(trainer: Any, predictions: Iterable[Any], each: int = 3) -> None:
    """
    Write a few held-out pairs into `examples.json` of a run's folder: those ranked most clearly right and wrong.

    Args:
        trainer ([`MultiScaleRewardTrainer`]):
            The trainer, with the `eval_dataset` that was predicted. Only its main process writes.
        predictions (`tuple` of `numpy.ndarray`):
            What [`~transformers.Trainer.predict`] returned as `predictions`.
        each (`int`, *optional*, defaults to `3`):
            Most pairs of either sort.
    """
    if not trainer.is_world_process_zero():
        return
    pairs, scales = PairScores(*predictions), trainer.reward_model.settings.scales
    gaps = pairs.chosen - pairs.rejected
    order = np.argsort(gaps, kind="stable")
    right, wrong = order[gaps[order] > 0][::-1][:each], order[gaps[order] < 0][:each]
    examples = []
    for title, places in (("ranked right", right), ("ranked wrong", wrong)):
        for i in map(int, places):
            row = trainer.eval_dataset[i]
            sides = (("chosen", pairs.chosen, pairs.scale_chosen), ("rejected", pairs.rejected, pairs.scale_rejected))
            responses = [
                {
                    "label": side,
                    "text": _as_text(row[side]),
                    "numbers": {"mix": float(mix[i]), **dict(zip(scales, map(float, by_scale[i]), strict=True))},
                }
                for side, mix, by_scale in sides
            ]
            examples.append(
                {
                    "title": f"Pair {i + 1}, {title} by {abs(gaps[i]):.2f} nats",
                    "prompt": _as_text(row["prompt"]),
                    "responses": responses,
                }
            )
    _write_whole(Path(trainer.args.output_dir, EXAMPLES_NAME), examples)


class CompletionExamples(TrainerCallback):
    """
    Keeps a few prompts with their responses, of the first step that was logged and the last, in `examples.json`.

    Args:
        trainer ([`ReinforceTrainer`]):
            The trainer that it is added to.
        prompts (`int`, *optional*, defaults to `3`):
            Prompts of a step.
    """

    def __init__(self, trainer: Any, prompts: int = 3) -> None:
        self._trainer, self._prompts, self._first = trainer, prompts, []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        file = Path(args.output_dir, EXAMPLES_NAME)
        earlier = json.loads(file.read_text()) if state.global_step and file.is_file() else []
        self._first = [example for example in earlier if example["step"] == earlier[0]["step"] <= state.global_step]

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or "reward" not in (logs or {}):
            return
        examples = self._examples(state.global_step)
        if not self._first:
            self._first = examples
        last = examples if examples[0]["step"] != self._first[0]["step"] else []
        _write_whole(Path(args.output_dir, EXAMPLES_NAME), [*self._first, *last])

    def _examples(self, step: int) -> list[dict[str, Any]]:
        texts = self._trainer._logs  # what TRL prints and sends to trackers, of the last batch it generated
        columns = {**texts["rewards"], "advantage of the first token": texts["advantages"]}
        found: dict[str, dict[str, Any]] = {}
        for i, (prompt, completion) in enumerate(zip(texts["prompt"], texts["completion"], strict=True)):
            prompt = _as_text(prompt)
            if prompt not in found and len(found) == self._prompts:
                break
            example = found.setdefault(
                prompt, {"step": step, "title": f"Step {step}", "prompt": prompt, "responses": []}
            )
            numbers = {name: column[i] for name, column in columns.items()}
            label = f"response {len(example['responses']) + 1}"
            example["responses"].append({"label": label, "text": _as_text(completion), "numbers": numbers})
        return list(found.values())


def _as_text(value: Any) -> str:
    """A text, or messages: one alone as its content, more with who speaks."""
    if isinstance(value, str):
        return value
    if len(value) == 1:
        return str(value[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in value)


def _write_whole(file: Path, content: Any) -> None:
    """Write JSON so that the file is never seen half written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.rename(file)
