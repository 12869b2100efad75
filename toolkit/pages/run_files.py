"""What a run left in its folder, for pages about it: only what has the right form, as others may have edited it."""

from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import ModelCard
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..judges.duels import PolicyComparison
from ..stats.intervals import Interval, PairAccuracy
from ..training.manifests import MANIFEST_NAME, what_is_missing
from ..training.run_record import BEFORE_AFTER_NAME, EXAMPLES_NAME, HELD_OUT_NAME, RUN_NAME, read_json

STATE_NAME = "trainer_state.json"
REMEDY = "Remove it, or restore it."
# What each trainer calls itself in the card that TRL writes with every checkpoint, where there is no run.json
_TRAINER_OF_TAG = {
    "grpo": "GRPOTrainer",
    "rloo": "RLOOTrainer",
    "reward-trainer": "RewardTrainer",
    "sft": "SFTTrainer",
    "dpo": "DPOTrainer",
}


class HeldOut(NamedTuple):
    """Held-out pairs as a reward model scored them. `P` pairs."""

    rows: list[str]  # of each pair what it is known by, so that two runs can be compared pair by pair
    prompts: Tensor  # (P,) int64, number of each pair's prompt
    scores: dict[str, Tensor]  # (P,) float64: `chosen`, `chosen/<scale>`, `chosen_length`, the same rejected, `loss`
    groups: dict[str, list[str]]  # `task` and the like of each pair, where the data have them


class RunRecord(NamedTuple):
    """What a run left. Anything but the log may be empty."""

    folder: Path
    log: list[dict[str, Any]]  # one dictionary a log, with `step`
    results: dict[str, Any]  # final figures that the trainer saved apart from the log
    evaluation: dict[str, Any]  # last held-out figures, with `eval_`
    held_out: HeldOut | None  # of a reward model
    kept: int | None  # step of the best checkpoint, by the trainer's own measure
    comparison: PolicyComparison | None  # of the policies before and after, which the demonstration leaves
    judge: str  # that made it, as the log names its reward; "" where that is not known
    run: dict[str, Any]  # run.json
    model: dict[str, Any]  # config.json
    examples: list[dict[str, Any]]
    before_after: list[dict[str, Any]]  # the same prompts, answered before and after
    trainer: str  # name of its class; "" where nothing says it
    remarks: list[str]  # what a reader must know about where the figures come from

    @property
    def training(self) -> list[dict[str, Any]]:
        """Logs of training."""
        return [row for row in self.log if "loss" in row and "step" in row]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """Logs of held-out figures, each at the step of the weights that it is of."""
        ended = next((i for i, row in enumerate(self.log) if "train_runtime" in row), len(self.log))
        rows = [(i, row) for i, row in enumerate(self.log) if "eval_loss" in row and "step" in row]
        # What is evaluated after the end is the checkpoint that was kept, which the log puts at the last step
        kept = self.kept if self.options.get("load_best_model_at_end") else None
        return [row if kept is None or i < ended else {**row, "step": kept} for i, row in rows]

    @property
    def options(self) -> dict[str, Any]:
        """All options that run.json holds, defaults included."""
        return options_in(self.run, "default") | options_in(self.run, "changed")


def options_in(run: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Options of a run.json that differ from their defaults (`"changed"`), or do not (`"default"`)."""
    return {key: value for options in run.get("options", {}).values() for key, value in options[kind].items()}


def read_run(folder: Path) -> RunRecord:
    """
    Read what a run left.

    Args:
        folder (`Path`):
            Its output folder, or the folder of the demonstration.

    Returns:
        [`RunRecord`]

    Raises:
        `ValueError`: If there is no such folder, no run in it, nothing was logged, or a file is damaged.
    """
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is no folder. Give the `output_dir` of a run.")
    run, demo = content(folder / RUN_NAME), content(folder / "metrics.json")
    # Others use such names, too; what has other keys is not ours.
    run = run if {"started", "command", "options", "versions"} <= run.keys() else {}
    if run:
        check_run(run, folder / RUN_NAME)
    if {"reward_model", "policy", "log"} <= demo.keys():
        return _read_demonstration(folder, demo, run)
    remarks: list[str] = []
    state, source = _newest_state(folder, run)
    results = content(folder / "all_results.json") | content(folder / "eval_results.json")
    if source != folder:
        results = {}  # left by an earlier end
        why = "The run had not ended" if run else f"The run left no {STATE_NAME} of its end"
        remarks.append(
            f"{why}: this page shows it up to step {state.get('global_step')}, from its newest complete checkpoint, "
            f"{source.name}."
        )
    log = log_of(state, source / STATE_NAME)
    if not any("step" in row for row in log):
        raise ValueError(
            f"The run in '{folder}' is empty: its log has no step. Let it train for `logging_steps` steps or more."
        )
    evaluations = [row for row in [results, *log] if "eval_loss" in row or "eval_accuracy" in row]
    return RunRecord(
        folder=folder,
        log=log,
        results=results,
        evaluation=evaluations[-1] if evaluations else {},
        held_out=_read_held_out(folder / HELD_OUT_NAME) if source == folder else None,
        kept=state["best_global_step"] if isinstance(state.get("best_global_step"), int) else None,
        comparison=None,
        judge="",
        run=run,
        model=_read_model(source),
        examples=[card for card in content(folder / EXAMPLES_NAME, []) if is_example(card)],
        before_after=[card for card in content(folder / BEFORE_AFTER_NAME, []) if is_example(card)],
        trainer=str(run.get("trainer", "")) or _trainer_of_card(folder / "README.md"),
        remarks=remarks,
    )


def _read_demonstration(folder: Path, demo: Mapping[str, Any], run: dict[str, Any]) -> RunRecord:
    """What recipes/demo.py left; its examples are the prompts before and after."""
    policy = demo["policy"]
    before, after, gain = (Interval(*policy[name]) for name in ("before", "after", "gain"))
    comparison = PolicyComparison(before, after, gain, PairAccuracy(*policy["win_rate"]), policy["examples"])
    cards = []
    for i, row in enumerate(comparison.examples, 1):
        scores = {side: {"score": row[f"score_{side}"]} for side in ("before", "after")}
        responses = [{"label": side, "text": row[side], "numbers": score} for side, score in scores.items()]
        cards.append({"title": f"Prompt {i}", "prompt": row["prompt"], "responses": responses})
    return RunRecord(
        folder=folder,
        log=demo["log"],
        results={},
        evaluation=demo["reward_model"],
        held_out=None,
        kept=None,
        comparison=comparison,
        judge=policy.get("judge", ""),
        run=run,
        model=_read_model(folder / "policy"),
        examples=[],
        before_after=cards,
        trainer="ReinforceTrainer",
        remarks=[policy["about"]] if "about" in policy else [],
    )


def _read_model(folder: Path) -> dict[str, Any]:
    model: dict[str, Any] = content(folder / "config.json") | content(folder / "adapter_config.json")
    return model


def _read_held_out(file: Path) -> HeldOut | None:
    columns = content(file)
    if not columns:
        return None
    if not {"row", "prompt", "chosen", "rejected", "chosen_length", "rejected_length"} <= columns.keys():
        raise ValueError(f"'{file}' is damaged: its columns are {sorted(columns)}. {REMEDY}")
    lengths = {name: len(column) if isinstance(column, list) else None for name, column in columns.items()}
    if len(set(lengths.values())) > 1 or not columns["row"]:
        raise ValueError(f"'{file}' is damaged: its columns have {lengths} rows. {REMEDY}")
    groups = {name: column for name, column in columns.items() if isinstance(column[0], str)}
    numbers = {name: column for name, column in columns.items() if name not in groups}
    wrong = [name for name, column in numbers.items() if not all(isinstance(value, Real) for value in column)]
    wrong += [name for name, column in groups.items() if not all(isinstance(value, str) for value in column)]
    if wrong:
        raise ValueError(f"'{file}' is damaged: its column '{wrong[0]}' mixes kinds of values. {REMEDY}")
    scores = {name: torch.tensor(column, dtype=torch.float64) for name, column in numbers.items()}
    numbers_of = {prompt: number for number, prompt in enumerate(dict.fromkeys(groups["prompt"]))}
    prompts = torch.tensor([numbers_of[prompt] for prompt in groups.pop("prompt")])
    return HeldOut(groups.pop("row"), prompts, scores, groups)


def _newest_state(folder: Path, run: Mapping[str, Any]) -> tuple[dict[str, Any], Path]:
    """The trainer's state of most steps, at the end of the run or in a complete checkpoint, and where it is."""
    checkpoints = {
        int(path.name.rpartition("-")[2]): path
        for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.name.rpartition("-")[2].isdecimal() and (path / STATE_NAME).is_file()
    }
    for path in checkpoints.values():
        content(path / MANIFEST_NAME)  # a damaged one is named
    # Other trainers write no manifest, and theirs are taken as they are
    ours = bool(run) or any((path / MANIFEST_NAME).is_file() for path in checkpoints.values())
    complete = {
        step: path for step, path in checkpoints.items() if not ours or what_is_missing(path, hashes=False) is None
    }
    ended = (folder / STATE_NAME).is_file()
    state = content(folder / STATE_NAME)
    if complete and max(complete) > state.get("global_step", -1):
        source = complete[max(complete)]
        return content(source / STATE_NAME), source
    if ended:
        return state, folder
    if run:
        raise ValueError(
            f"The run in '{folder}' was started at {run['started'][-1]} and has neither a {STATE_NAME} nor a complete "
            "checkpoint. Wait for its first one, or go on with `--resume_from_checkpoint true`."
        )
    found = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    below = sorted({str(path.parent) for path in folder.glob(f"*/{STATE_NAME}")})
    named = ", ".join(found[:12]) + (f" and {len(found) - 12} more" if len(found) > 12 else "") or "nothing"
    way = f"Give one of the runs below it: {', '.join(below)}." if below else "Give the `output_dir` of a run."
    raise ValueError(f"'{folder}' holds no run: neither a {STATE_NAME} nor a complete checkpoint, but {named}. {way}")


def _trainer_of_card(file: Path) -> str:
    """The trainer that TRL names in its model card."""
    tags = (ModelCard.load(file).data.tags or []) if file.is_file() else []
    return next((_TRAINER_OF_TAG[tag] for tag in tags if tag in _TRAINER_OF_TAG), "")


def content(file: Path, absent: Any = None) -> Any:
    """Content of a JSON file, or `absent`, an empty dictionary where it is not given; both are of one type."""
    absent = {} if absent is None else absent
    return read_json(file, type(absent), REMEDY) if file.is_file() else absent


def log_of(state: dict[str, Any], file: Path) -> list[dict[str, Any]]:
    """
    Log of a trainer's state.

    Args:
        state (`dict[str, Any]`):
            Content of its file.
        file (`Path`):
            The file, for messages.

    Returns:
        `list[dict[str, Any]]`: A dictionary of numbers for each log.

    Raises:
        `ValueError`: Naming the first that is something else.
    """
    log = state.get("log_history", [])
    if not isinstance(log, list):
        raise ValueError(f"'{file}' is damaged: its `log_history` is {str(log)[:40]!r} and no list. {REMEDY}")
    for number, row in enumerate(log, start=1):
        wrong = [row] if not isinstance(row, dict) else [v for v in row.values() if not isinstance(v, Real | None)]
        if wrong:
            found = f"entry {number} of its `log_history` holds {str(wrong[0])[:40]!r} and no number"
            raise ValueError(f"'{file}' is damaged: {found}. {REMEDY}")
    return log


def check_run(run: dict[str, Any], file: Path) -> None:
    """
    Refuse the record of a run whose parts are of other kinds.

    Args:
        run (`dict[str, Any]`):
            Content of its file.
        file (`Path`):
            The file, for the message.

    Raises:
        `ValueError`: Naming the first part.
    """
    for name, kind in {"started": list, "options": dict, "versions": dict}.items():
        if not isinstance(run[name], kind) or (kind is list and not run[name]):
            raise ValueError(f"'{file}' is damaged: its `{name}` is {str(run[name])[:40]!r}. {REMEDY}")
    for name, options in run["options"].items():
        if not isinstance(options, dict) or not {"changed", "default"} <= options.keys():
            raise ValueError(f"'{file}' is damaged: its options of `{name}` are {str(options)[:40]!r}. {REMEDY}")


def is_example(card: Any) -> bool:
    """Whether a card of `examples.json` has the parts that a page shows; others use such a name, too."""
    if not isinstance(card, dict) or not {"title", "prompt", "responses"} <= card.keys():
        return False
    return all(isinstance(each, dict) and {"label", "text", "numbers"} <= each.keys() for each in card["responses"])
