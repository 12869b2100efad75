"""What the recipes share: their arguments, and where their data and models come from."""

import glob
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset
from trl import ModelConfig, ScriptArguments

from .data.formats import keep_normalized
from .data.held_out import count_shared, hold_out
from .data.loading import load_pairs, load_prompts, split_names
from .sandbox.rows import HELD_OUT_SEED, sample_pairs, sample_prompts
from .training.command_line import check_path
from .training.manifests import last_complete_checkpoint
from .training.options import check_counts, check_number, help_from_docstring

logger = get_logger(__name__)

SANDBOX = "sandbox"
EVAL_SIZE = 2000  # held-out rows unless another number is asked for


@help_from_docstring
@dataclass
class DataArguments(ScriptArguments):
    """
    Where the data come from: what [`trl.ScriptArguments`] has, with local files and the sandbox.

    `dataset_name` is a hub name, a folder, a file (JSON, CSV, Parquet or Arrow), a pattern of files such as
    `data/*.jsonl.gz`, or `sandbox`.

    Args:
        eval_dataset_name (`str`, *optional*):
            Held-out data, named like `dataset_name`. Where it is not given, `dataset_test_split` of `dataset_name`,
            fresh rows of the sandbox, or, where `dataset_name` is one split, a part of its prompts.
        train_size (`int`, *optional*):
            Most rows to train on; so many are drawn from the sandbox (10,000 by default).
        eval_size (`int`, *optional*):
            Most rows to evaluate on; so many are drawn from the sandbox. By default 2,000, and of a single split at
            most a tenth. With 0 a reward training holds nothing out.
    """

    eval_dataset_name: str | None = None
    train_size: int | None = None
    eval_size: int | None = None

    def __post_init__(self) -> None:
        check_counts(self, "train_size")
        check_number("eval_size", self.eval_size, 0, whole=True)
        if self.dataset_streaming:
            raise ValueError(
                "`dataset_streaming` is on, and every row is checked before training begins: leave it out. Files are "
                "mapped into memory and not loaded into it."
            )


@help_from_docstring
@dataclass
class RunArguments(DataArguments):
    """
    [`DataArguments`] of a recipe that trains into an output folder.

    Args:
        overwrite_output_dir (`bool`, *optional*, defaults to `False`):
            Whether a run that is in `output_dir` is deleted: its checkpoints, weights and records. Without it, and
            without `resume_from_checkpoint`, a folder with a run in it is refused.
    """

    overwrite_output_dir: bool = False


def training_pairs(args: DataArguments, seed: int, whole_lists: bool = False) -> Dataset:
    """
    Pairs to train on.

    Args:
        args ([`DataArguments`]):
            Where they come from.
        seed (`int`):
            Seed of the sandbox's pairs, and of the choice where there are more rows than asked for.
        whole_lists (`bool`, *optional*, defaults to `False`):
            Whether a ranked list stays one row; else every two of its responses that are not tied are a pair.

    Returns:
        `Dataset`

    Raises:
        `ValueError`: If the data cannot be found or a row is wrong; the message names file, row and column.
    """
    return _training_rows(args, seed, sample_pairs, partial(load_pairs, whole_lists=whole_lists))


def held_out_pairs(args: DataArguments, seed: int, whole_lists: bool = False) -> Dataset:
    """
    Held-out pairs of a source that has some. Arguments and errors as in [`training_pairs`].
    """
    return _held_out_rows(args, seed, sample_pairs, partial(load_pairs, whole_lists=whole_lists))


def divided_pairs(args: DataArguments, seed: int, whole_lists: bool = False) -> tuple[Dataset, Dataset | None]:
    """
    Pairs to train on, and held-out ones: those of a source that has some, or else a part of its prompts.

    Arguments and errors as in [`training_pairs`].

    Returns:
        `tuple[Dataset, Dataset]`: No prompt is in both where one split was divided. Where `eval_size` is 0, all
        pairs and `None`.
    """
    if args.eval_size == 0:
        return training_pairs(args, seed, whole_lists), None
    functions = (partial(each, whole_lists=whole_lists) for each in (training_pairs, held_out_pairs, load_pairs))
    return _divided_rows(args, seed, *functions)


def training_prompts(args: DataArguments, seed: int) -> Dataset:
    """
    Prompts to train on; from pairs, too. Arguments and errors as in [`training_pairs`].
    """
    return _training_rows(args, seed, sample_prompts, load_prompts)


def held_out_prompts(args: DataArguments, seed: int) -> Dataset:
    """
    Held-out prompts; from pairs, too. Arguments and errors as in [`held_out_pairs`].
    """
    return _held_out_rows(args, seed, sample_prompts, load_prompts)


def divided_prompts(args: DataArguments, seed: int) -> tuple[Dataset, Dataset]:
    """
    Prompts to train on, and held-out ones; from pairs, too. Arguments, result and errors as in [`divided_pairs`].
    """
    return _divided_rows(args, seed, training_prompts, held_out_prompts, load_prompts)


def _divided_rows(
    args: DataArguments,
    seed: int,
    to_train: Callable[..., Dataset],
    to_hold_out: Callable[..., Dataset],
    load: Callable[..., Dataset],
) -> tuple[Dataset, Dataset]:
    name = _name(args)
    apart = name == SANDBOX or args.eval_dataset_name or args.eval_size == 0
    if apart or len(split_names(name, args.dataset_config)) > 1:
        train, test = to_train(args, seed), to_hold_out(args, seed)
        if name != SANDBOX and (shared := count_shared(train, test)):
            logger.warning(
                f"{shared:,} of the {len(test):,} held-out rows have a prompt that is trained on, too: what they "
                "tell is not what new prompts would."
            )
        return train, test
    rows = load(name, None, args.dataset_config)
    train, test = hold_out(rows, args.eval_size or min(EVAL_SIZE, -(-len(rows) // 10)), seed)
    logger.warning(
        f"Held out {len(test):,} of the {len(rows):,} rows of '{name}', by prompt, and trains on the others. "
        "`eval_size` changes how many, `eval_dataset_name` takes them from elsewhere."
    )
    train = _at_most(keep_normalized(train, rows), args.train_size, seed)
    return _named(train, name), keep_normalized(test, rows)


def _training_rows(
    args: DataArguments, seed: int, draw: Callable[..., Dataset], load: Callable[..., Dataset]
) -> Dataset:
    name = _name(args)
    if name == SANDBOX:
        return _named(draw(args.train_size or 10_000, seed=seed), name)
    split = None if names_files(name) else args.dataset_train_split
    return _named(_at_most(load(name, split, args.dataset_config), args.train_size, seed), name)


def _named(rows: Dataset, name: str) -> Dataset:
    rows.info.dataset_name = name  # which the model's card tells
    return rows


def _held_out_rows(
    args: DataArguments, seed: int, draw: Callable[..., Dataset], load: Callable[..., Dataset]
) -> Dataset:
    if args.eval_size == 0:
        raise ValueError("`eval_size` is 0, and held-out rows are needed here. Leave it out, or give their number.")
    if _name(args) == SANDBOX:
        return draw(args.eval_size or EVAL_SIZE, seed=HELD_OUT_SEED)
    if args.eval_dataset_name is None and names_files(_name(args)):
        raise ValueError(f"'{args.dataset_name}' is one split. Set `eval_dataset_name` to a file of held-out rows.")
    name = args.eval_dataset_name or _name(args)
    split = None if names_files(name) else args.dataset_test_split
    return _at_most(load(name, split, args.dataset_config), args.eval_size or EVAL_SIZE, seed)


def _name(args: DataArguments) -> str:
    if args.dataset_name is None:
        raise ValueError("`dataset_name` is not set. Give a hub name, a folder, a file, or 'sandbox'.")
    return args.dataset_name


def names_files(name: str) -> bool:
    """Whether the name of data is that of a file, or a pattern of files, which are one split."""
    return glob.has_magic(name) or os.path.isfile(name)


def _at_most(dataset: Dataset, size: int | None, seed: int) -> Dataset:
    if size is None or len(dataset) <= size:
        return dataset
    return keep_normalized(dataset.shuffle(seed=seed).select(range(size)), dataset)


def named_model(model_args: ModelConfig) -> str:
    """Name of the model that is to be trained; a `ValueError` where there is none."""
    if not model_args.model_name_or_path:
        raise ValueError("`model_name_or_path` is not set. Give a folder or a hub name.")
    return model_args.model_name_or_path


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

    Raises:
        `ValueError`: If the model is a local folder that is not there, or a number of LoRA is out of its range.
    """
    check_path(model_args.model_name_or_path or "", "model")
    if model_args.use_peft:
        check_counts(model_args, "lora_r")
        check_number("lora_alpha", model_args.lora_alpha, above=0)
        check_number("lora_dropout", model_args.lora_dropout, 0, 1)
        only = model_args.lora_target_modules
        if isinstance(only, str) and only.isidentifier():  # TRL makes a pattern of one name, which no layer matches
            model_args.lora_target_modules = [only]
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
    except Exception as error:  # a module of the user's may fail in any way
        kind = "" if isinstance(error, ImportError | AttributeError | ValueError) else f"{type(error).__name__}, "
        raise ValueError(f"Cannot import '{path}': {kind}{error}. Give `module.name` of a function.") from error
    if not callable(found):
        raise ValueError(f"'{path}' is a {type(found).__name__}, not a function.")
    function: Callable[..., Any] = found
    return function


def make_once(folder: Path, make: Callable[..., None], *args: Any) -> str:
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
