"""What a run leaves behind beside its model: how it was started, held-out scores, and examples."""

import hashlib
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainerCallback

from ..data.lists import RANKED_COLUMNS, pairs_of
from ..data.prompts import REJECTED_PROMPT
from ..stats.metrics import PairScores
from ..stats.rankings import ListScores, pairs_of_lists

RUN_NAME = "run.json"
EXAMPLES_NAME = "examples.json"
HELD_OUT_NAME = "held_out.json"
BEFORE_AFTER_NAME = "before_after.json"
_GROUPS = ("task", "subset")  # columns by which held-out pairs are looked at apart
PACKAGES = ("prefscale", "torch", "transformers", "trl", "peft", "accelerate", "datasets")
# Options by these names are left out of what is written, and so is what looks like a secret inside other text.
_SECRET_NAME = re.compile(r"(token|api_key|password|secret)$")
_NAMED = r"(?:token|api[_-]?key|password|secret)"
_SECRET_TEXT = re.compile(
    "|".join(
        (
            rf"""({_NAMED}["']?\s*[:=]\s*["'])[^"']*""",
            rf"""({_NAMED}\s*[:=]\s*)[^\s"',;&}}]+""",
            r"(\bbearer\s+)\S+",
            r"(://)[^\s/@]+(?=@)",  # who asks, in an address
            # Of the hub, GitHub, GitLab, Slack, OpenAI and others, Google, Amazon; signed tokens (JWT)
            r"\b(?:hf_|api_org_|gh[pousr]_|github_pat_|glpat-|xox[abprs]-|sk-|AIza)[\w-]{16,}",
            r"\bAKIA[0-9A-Z]{16}",
            r"\beyJ[\w-]+\.[\w-]+\.[\w-]*",
        )
    ),
    re.IGNORECASE,
)


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a run's numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def save_run(trainer: Any, *arguments: Any) -> None:
    """
    Write down how a run was started, in `run.json` of its output folder: options, versions, seeds, the command.

    Call it before training. Secrets are left out: options whose name ends in `token`, and what looks like a
    secret in other text.

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
        "command": shlex.join(_without_secrets(sys.argv, *arguments)),
        "started": [*earlier, datetime.now(UTC).isoformat(timespec="seconds")],  # more than one where it was resumed
        "processes": args.world_size,
        "device": torch.cuda.get_device_name(args.device) if cuda else args.device.type,
        "seed": args.seed,
        "data_seed": args.data_seed,
        "versions": library_versions(),
        "options": {type(options).__name__: options_of(options) for options in arguments},
    }
    write_json(file, run)


def options_of(options: Any) -> dict[str, dict[str, Any]]:
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
    # Each alternative has one group at most: what stays of it
    return _SECRET_TEXT.sub(lambda found: (found[found.lastindex] if found.lastindex else "") + "…", str(value))


def _without_secrets(words: list[str], *arguments: Any) -> list[str]:
    names = {field.name for options in arguments for field in fields(options)}
    shown, hide = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        option = name.replace("-", "_").removeprefix("__")
        # Other parsers take the beginning of a name for it
        meant = [option] if option in names else [option, *(full for full in names if full.startswith(option))]
        secret = name.startswith("--") and any(map(_SECRET_NAME.search, meant))
        shown.append("…" if hide else f"{name}=…" if secret and equals else _plain(word))
        hide = secret and not equals
    return shown


def save_pair_examples(trainer: Any, predictions: Iterable[Any], each: int = 3) -> None:
    """
    Write held-out pairs, those of lists included, into a run's folder: a few into `examples.json`, those ranked most
    clearly right and wrong, and scores, lengths and losses of all into `held_out.json`, which holds a list for each
    column.

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
    rows, scales = trainer.eval_dataset, trainer.reward_model.settings.scales
    if "chosen" in rows.column_names:
        pairs = PairScores(*predictions)
    else:
        rows, pairs = _pairs_of_lists(rows, ListScores(*map(torch.as_tensor, predictions)))
    gaps = pairs.chosen - pairs.rejected
    order = np.argsort(gaps, kind="stable")
    right, wrong = order[gaps[order] > 0][::-1][:each], order[gaps[order] < 0][:each]
    examples = []
    for title, places in (("ranked right", right), ("ranked wrong", wrong)):
        for i in map(int, places):
            row = rows[i]
            sides = (("chosen", pairs.chosen, pairs.scale_chosen), ("rejected", pairs.rejected, pairs.scale_rejected))
            responses = [
                {
                    "label": side,
                    "text": as_text(row[side]) + (_its_prompt(row) if side == "rejected" else ""),
                    "numbers": {"mix": float(mix[i]), **dict(zip(scales, map(float, by_scale[i]), strict=True))},
                }
                for side, mix, by_scale in sides
            ]
            examples.append(
                {
                    "title": f"Pair {i + 1}, {title} by {abs(gaps[i]):.2f} nats",
                    "prompt": as_text(row["prompt"]),
                    "responses": responses,
                }
            )
    write_json(Path(trainer.args.output_dir, EXAMPLES_NAME), examples)
    write_json(Path(trainer.args.output_dir, HELD_OUT_NAME), _held_out_columns(rows, pairs, scales), None)


def _its_prompt(row: Any) -> str:
    """What is said of a rejected response that answers another prompt."""
    other = row.get(REJECTED_PROMPT, row["prompt"])
    return "" if other == row["prompt"] else f"\n\n(It answers: {as_text(other)})"


def _pairs_of_lists(dataset: Any, lists: ListScores) -> tuple[Any, PairScores]:
    """Every two responses of different rank, and their scores, which lists have with the best response first."""
    known = [column for column in ("prompt", *RANKED_COLUMNS, *_GROUPS) if column in dataset.column_names]
    rows = []
    for row in dataset.select_columns(known):
        order = sorted(range(len(row["ranks"])), key=row["ranks"].__getitem__)
        rows += pairs_of(row | {name: [row[name][place] for place in order] for name in RANKED_COLUMNS})
    found: list[Any] = [column.numpy() for column in pairs_of_lists(lists)]
    return Dataset.from_list(rows), PairScores(*found)


def _held_out_columns(dataset: Any, pairs: PairScores, scales: list[str]) -> dict[str, list[Any]]:
    columns = {"chosen": pairs.chosen, "rejected": pairs.rejected}
    for i, scale in enumerate(scales):
        columns |= {f"chosen/{scale}": pairs.scale_chosen[:, i], f"rejected/{scale}": pairs.scale_rejected[:, i]}
    columns |= {name: getattr(pairs, name) for name in ("chosen_length", "rejected_length", "loss")}
    others = [REJECTED_PROMPT] if REJECTED_PROMPT in dataset.column_names else []
    texts = dataset.select_columns(["prompt", "chosen", "rejected", *others])
    groups = {name: list(map(str, dataset[name])) for name in _GROUPS if name in dataset.column_names}
    # As short as they can be written and still be read back to the last bit
    numbers = {name: [float(str(value)) for value in np.asarray(column)] for name, column in columns.items()}
    prompts, rows = [_key(row["prompt"]) for row in texts], [_key(list(row.values())) for row in texts]
    return {"row": rows, "prompt": prompts, **groups, **numbers}


def _key(content: Any) -> str:
    """What a pair or a prompt is known by in any run: a hash of its texts."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


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
        self._trainer, self._prompts = trainer, prompts
        self._first: list[dict[str, Any]] = []

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
        write_json(Path(args.output_dir, EXAMPLES_NAME), [*self._first, *last])

    def _examples(self, step: int) -> list[dict[str, Any]]:
        texts = self._trainer._logs  # what TRL prints and sends to trackers, of the last batch it generated
        columns = {**texts["rewards"], "advantage of the first token": texts["advantages"]}
        found: dict[str, dict[str, Any]] = {}
        for i, (prompt, completion) in enumerate(zip(texts["prompt"], texts["completion"], strict=True)):
            prompt = as_text(prompt)
            if prompt not in found and len(found) == self._prompts:
                break
            example = found.setdefault(
                prompt, {"step": step, "title": f"Step {step}", "prompt": prompt, "responses": []}
            )
            numbers = {name: column[i] for name, column in columns.items()}
            label = f"response {len(example['responses']) + 1}"
            example["responses"].append({"label": label, "text": as_text(completion), "numbers": numbers})
        return list(found.values())


def as_text(value: Any) -> str:
    """Text of a prompt or response in either form; of messages one alone as its content, more with who speaks."""
    if isinstance(value, str):
        return value
    if len(value) == 1:
        return str(value[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in value)


def read_json(file: Path, kind: type, remedy: str) -> Any:
    """
    Read a JSON file.

    Args:
        file (`Path`):
            File to read.
        kind (`type`):
            `dict` or `list`, what the file must hold.
        remedy (`str`):
            What to do where it is damaged.

    Returns:
        `dict` or `list`

    Raises:
        `ValueError`: If it is no JSON or holds another kind of value; the message ends with `remedy`.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise ValueError(f"'{file}' is damaged, no JSON: {where}. {remedy}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"'{file}' is damaged, no text: byte {error.start} is not UTF-8. {remedy}") from None
    if not isinstance(content, kind):
        found = f"holds a {type(content).__name__} instead of a {kind.__name__}"
        raise ValueError(f"'{file}' is damaged: it {found}. {remedy}")
    return content


def write_json(file: Path, content: Any, indent: int | None = 1) -> None:
    """
    Write JSON so that whoever looks finds the old file, the new one or none, never a part of one.

    Args:
        file (`Path`):
            File to write; its folder is made where it is absent.
        content (JSON value):
            What to write.
        indent (`int`, *optional*, defaults to `1`):
            Spaces of a level; `None` for one line.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """
    Write a text so that whoever looks finds the old file, the new one or none. A link in its place is replaced.

    Args:
        file (`Path`):
            File to write.
        text (`str`):
            What to write, in UTF-8.
    """
    content = text.encode()  # before a file is begun
    part = file.with_name(f"{file.name}.{os.getpid()}.part")  # no name that anybody else would give
    part.unlink(missing_ok=True)  # or a link by that name would be followed
    part.write_bytes(content)
    part.replace(file)
