"""A page about one training run, read from the folder that the run left."""

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..judges.duels import PolicyComparison
from ..reward.scales import SCALES
from ..stats.intervals import Interval, PairAccuracy
from ..training.manifests import MANIFEST_NAME, what_is_missing
from ..training.run_record import EXAMPLES_NAME, RUN_NAME, read_json
from .page import (
    Block,
    Example,
    Examples,
    Page,
    Paragraph,
    Picture,
    Response,
    Section,
    Settings,
    Table,
    curve_picture,
    duration,
    interval_picture,
    number,
    shown,
    write_page,
)
from .run_files import REMEDY, check_run, is_example, log_of
from .tables import accuracies_of, comparison_rows, interval_cells

STATE_NAME = "trainer_state.json"
# Figures of the table, in order; `*` is any name.
_REWARD_FIGURES = "loss accuracy accuracy/* loss/* margin gate/* length_correlation grad_norm"
_POLICY_FIGURES = (
    "reward rewards/*/mean kl entropy baseline advantage_std prefix/explained clip_ratio completions/mean_length "
    "completions/clipped_ratio grad_norm"
)
_POLICY_CURVES = {
    "kl": ("Divergence from the reference", "nats a token"),
    "entropy": ("Entropy of the policy", "nats a token"),
    "completions/mean_length": ("Response length", "tokens"),
    "grad_norm": ("Gradient norm", ""),
    "prefix/explained": ("Explained by the prefix baseline", "share"),
}
# What a reader is told in place of a key.
_ACCURACY_COLUMNS = {"loss": "loss, nats", "margin": "margin, nats", "gate": "weight in the mix"}
_HELD_OUT_FIGURES = {
    "eval_loss": "loss, all terms, nats",
    "eval_margin": "margin of the mix, nats",
    "eval_length_correlation": "correlation with length",
    "eval_min_reward": "lowest score",
    "eval_mean_reward": "mean score",
    "eval_max_reward": "highest score",
}
_MODEL_FIGURES = {
    "model_type": "architecture",
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "vocab_size": "vocabulary",
    "dtype": "type of the weights",
    "base_model_name_or_path": "base of the adapter",
    "r": "rank of the adapter",
}


class _Record(NamedTuple):
    """What a run left. Anything but the log may be empty."""

    folder: Path
    log: list[dict[str, Any]]  # one dictionary a log, with `step`
    results: dict[str, Any]  # final figures that the trainer saved apart from the log
    evaluation: dict[str, Any]  # held-out figures of a reward model, with `eval_`
    comparison: PolicyComparison | None  # of the policies before and after, which the demonstration leaves
    judge: str  # that made it, as the log names its reward; "" where that is not known
    run: dict[str, Any]  # run.json
    model: dict[str, Any]  # config.json
    examples: list[dict[str, Any]]
    remarks: list[str]  # what a reader must know about where the figures come from


def write_run_report(folder: str | Path) -> Path:
    """
    Write a page about a run, `report/index.html` in its folder, with its pictures beside it.

    Args:
        folder (`str` or `Path`):
            Output folder of a reward training or of REINFORCE, or the folder of the demonstration.

    Returns:
        `Path`: The page.

    Raises:
        `ValueError`: If there is no such folder, no run in it, nothing was logged, or a file is damaged.
    """
    return write_page(_build_page(_read_run(Path(folder))), Path(folder, "report"))


def _read_run(folder: Path) -> _Record:
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is no folder. Give the `output_dir` of a run.")
    run, demo = _read_json(folder / RUN_NAME), _read_json(folder / "metrics.json")
    # Others use such names, too; what has other keys is not ours.
    run = run if {"started", "command", "options", "versions"} <= run.keys() else {}
    if run:
        check_run(run, folder / RUN_NAME)
    if {"reward_model", "policy", "log"} <= demo.keys():
        return _read_demonstration(folder, demo, run)
    remarks: list[str] = []
    state, source = _newest_state(folder, run)
    results = _read_json(folder / "all_results.json") | _read_json(folder / "eval_results.json")
    if source != folder:
        results = {}  # left by an earlier end
        why = "The run had not ended" if run else f"The run left no {STATE_NAME} of its end"
        remarks.append(
            f"{why}: this page shows it up to step {state.get('global_step')}, from its newest complete checkpoint, "
            f"{source.name}."
        )
    log = log_of(state, source / STATE_NAME)
    evaluations = [row for row in [results, *log] if "eval_accuracy" in row]
    evaluation = evaluations[-1] if evaluations else {}
    examples = [card for card in _read_json(folder / EXAMPLES_NAME, []) if is_example(card)]
    return _Record(folder, log, results, evaluation, None, "", run, _read_model(source), examples, remarks)


def _read_demonstration(folder: Path, demo: Mapping[str, Any], run: dict[str, Any]) -> _Record:
    """What recipes/demo.py left; its examples are the prompts before and after."""
    policy = demo["policy"]
    before, after, gain = (Interval(*policy[name]) for name in ("before", "after", "gain"))
    comparison = PolicyComparison(before, after, gain, PairAccuracy(*policy["win_rate"]), policy["examples"])
    examples = []
    for i, row in enumerate(comparison.examples, 1):
        scores = {side: {"score": row[f"score_{side}"]} for side in ("before", "after")}
        responses = [{"label": side, "text": row[side], "numbers": score} for side, score in scores.items()]
        examples.append({"title": f"Prompt {i}", "prompt": row["prompt"], "responses": responses})
    model, evaluation, judge = _read_model(folder / "policy"), demo["reward_model"], policy.get("judge", "")
    about = [policy["about"]] if "about" in policy else []
    return _Record(folder, demo["log"], {}, evaluation, comparison, judge, run, model, examples, about)


def _read_model(folder: Path) -> dict[str, Any]:
    model: dict[str, Any] = _read_json(folder / "config.json") | _read_json(folder / "adapter_config.json")
    return model


def _newest_state(folder: Path, run: Mapping[str, Any]) -> tuple[dict[str, Any], Path]:
    """The trainer's state of most steps, at the end of the run or in a complete checkpoint, and where it is."""
    checkpoints = {
        int(path.name.rpartition("-")[2]): path
        for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.name.rpartition("-")[2].isdecimal() and (path / STATE_NAME).is_file()
    }
    for path in checkpoints.values():
        _read_json(path / MANIFEST_NAME)  # a damaged one is named
    # Other trainers write no manifest, and theirs are taken as they are
    ours = bool(run) or any((path / MANIFEST_NAME).is_file() for path in checkpoints.values())
    complete = {
        step: path for step, path in checkpoints.items() if not ours or what_is_missing(path, hashes=False) is None
    }
    ended = (folder / STATE_NAME).is_file()
    state = _read_json(folder / STATE_NAME)
    if complete and max(complete) > state.get("global_step", -1):
        source = complete[max(complete)]
        return _read_json(source / STATE_NAME), source
    if ended:
        return state, folder
    if run:
        raise ValueError(
            f"The run in '{folder}' was started at {run['started'][-1]} and has neither a {STATE_NAME} nor a complete "
            "checkpoint. Wait for its first one, or go on with `--resume_from_checkpoint true`."
        )
    content = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    below = sorted({str(path.parent) for path in folder.glob(f"*/{STATE_NAME}")})
    named = ", ".join(content[:12]) + (f" and {len(content) - 12} more" if len(content) > 12 else "") or "nothing"
    way = f"Give one of the runs below it: {', '.join(below)}." if below else "Give the `output_dir` of a run."
    raise ValueError(f"'{folder}' holds no run: neither a {STATE_NAME} nor a complete checkpoint, but {named}. {way}")


def _read_json(file: Path, absent: Any = None) -> Any:
    """Content of a file, or `absent`, an empty dictionary where it is not given; both are of one type."""
    absent = {} if absent is None else absent
    return read_json(file, type(absent), REMEDY) if file.is_file() else absent


def _build_page(record: _Record) -> Page:
    if not any("step" in row for row in record.log):
        raise ValueError(
            f"The run in '{record.folder}' is empty: its log has no step. Let it train for `logging_steps` steps or "
            "more."
        )
    rows = [row for row in record.log if "loss" in row and "step" in row]
    policy = any("reward" in row for row in record.log)
    reward = any("accuracy" in row or "eval_accuracy" in row for row in record.log) or bool(record.evaluation)
    if not policy and not reward:
        keys = sorted({key for row in record.log for key in row})
        raise ValueError(
            f"The run in '{record.folder}' is neither a reward model's training nor REINFORCE: it logged {keys}, but "
            "no `accuracy` and no `reward`."
        )
    parts = [_held_out(record.evaluation, record.log)] if record.evaluation else []
    parts += [_compared(record.comparison)] if record.comparison else []
    opening = [*record.remarks, *(text for text, _ in parts)]
    if policy and rows:
        some = max(1, len(rows) // 10)
        first, last = (number(_mean(part, "reward")) for part in (rows[:some], rows[-some:]))
        logs = f"{some} logs" if some > 1 else "log"
        opening.append(f"The mean reward in training went from {first} in the first {logs} to {last} in the last.")
    opening.append(f"Training was logged up to step {max(row.get('step', 0) for row in record.log):,}.")
    kind = "Demonstration" if record.comparison else "REINFORCE" if policy else "Reward model"
    training, examples = _training(record, rows, policy), _examples(record.examples, policy)
    return Page(
        title=f"{kind}: {'/'.join(record.folder.resolve().parts[-2:])}",
        lead=" ".join(opening),
        sections=[*(section for _, section in parts), training, examples, _cost(record), *_settings(record)],
        footer=f"Written by prefscale {version('prefscale')} from the files of the run.",
    )


def _held_out(figures: Mapping[str, Any], log: list[dict[str, Any]]) -> tuple[str, Section]:
    """What a reward model's evaluation says: a sentence, and a section."""
    if "eval_accuracy_low" not in figures:  # of another trainer
        cells = [(key.removeprefix("eval_"), number(value)) for key, value in figures.items() if "eval_" in key]
        text = f"It ranks {100 * figures['eval_accuracy']:.1f}% of held-out pairs right."
        return text, Section("Held-out pairs", [Table(("figure", "value"), cells)])
    accuracies = accuracies_of(figures, [scale for scale in SCALES if f"eval_accuracy/{scale}" in figures])
    mix, longer = accuracies["mix"], accuracies["longer wins"]
    text = (
        f"On {mix.pairs:,} held-out pairs the mix ranks {100 * mix.value:.1f}% right ({100 * mix.low:.1f} to "
        f"{100 * mix.high:.1f}); preferring the longer response gets {100 * longer.value:.1f}%."
    )
    if mix.low <= longer.value:
        text += " That is not above the longer-wins rule by more than chance explains."
    header = ("score", "accuracy, %", "95% interval", "ties", *_ACCURACY_COLUMNS.values())
    rows = []
    for name, a in accuracies.items():
        others = (number(figures.get(f"eval_{key}/{name}")) for key in _ACCURACY_COLUMNS)
        rows.append((name, *interval_cells(a, 1, 100), str(a.ties), *others))
    by_scale = Table(header, rows, "Pairs ranked right, by scale")
    cells = [(name, number(figures[key])) for key, name in _HELD_OUT_FIGURES.items() if key in figures]
    blocks: list[Block] = [by_scale, *_accuracy_pictures(accuracies, log), Table(("figure", "value"), cells)]
    return text, Section("Held-out pairs", blocks)


def _accuracy_pictures(accuracies: Mapping[str, PairAccuracy], log: list[dict[str, Any]]) -> list[Picture]:
    """Held-out accuracy of each scale, and by step where it was measured more than once."""
    percent = {name: Interval(100 * a.value, 100 * a.low, 100 * a.high) for name, a in accuracies.items()}
    rule = ("longer wins", percent.pop("longer wins"))
    title, unit = "Held-out accuracy by scale", "pairs ranked right, %"
    pictures = [interval_picture(percent, title, unit, "held-out", 50.0, rule)]
    evaluations = [row for row in log if "eval_accuracy_low" in row]
    if len(evaluations) > 1:
        keys = {name: f"eval_accuracy/{name}" for name in accuracies} | {"mix": "eval_accuracy"}
        keys["longer wins"] = "eval_accuracy/longer_wins"
        title, unit = "Held-out accuracy by step", "share of pairs"
        pictures.append(curve_picture(evaluations, title, keys, unit, "held-out-by-step"))
    return pictures


def _compared(comparison: PolicyComparison) -> tuple[str, Section]:
    """What a judge says of the policy before and after: a sentence, and a section."""
    text = (
        f"The judge gives the policy {comparison.before.value:.2f} before REINFORCE and {comparison.after.value:.2f} "
        f"after it, on {comparison.win_rate.pairs:,} prompts."
    )
    header = ("judge's score", "mean", "95% interval")
    return text, Section("Before and after", [Table(header, comparison_rows(comparison))])


def _training(record: _Record, rows: list[dict[str, Any]], policy: bool) -> Section:
    if not rows:
        return Section("Training", [Paragraph("No figure of training was logged. Set a smaller logging_steps.")])
    blocks: list[Block] = []
    broken = [row["step"] for row in rows if not math.isfinite(row["loss"])]
    if broken:
        text = f"The loss was no finite number in {len(broken)} of {len(rows)} logs, first at step {broken[0]:,}."
        blocks.append(Paragraph(text))
    keys = list(dict.fromkeys(key for row in rows for key in row))
    pictures = _policy_pictures(record, rows, keys) if policy else _reward_pictures(rows, keys)
    some = max(1, len(rows) // 10)
    parts = {"first log": rows[:1], "last log": rows[-1:]}
    parts |= {f"mean of the last {some}": rows[-some:]} if some > 1 else {}
    main = [
        (key, *(number(_mean(part, key)) for part in parts.values()))
        for key in _like(keys, *(_POLICY_FIGURES if policy else _REWARD_FIGURES).split())
    ]
    everything = {key: number(rows[-1].get(key)) for key in sorted(keys)}
    summary = f"All {len(everything)} figures of the last log"
    return Section("Training", [*blocks, *pictures, Table(("figure", *parts), main), Settings(summary, everything)])


def _policy_pictures(record: _Record, rows: list[dict[str, Any]], keys: list[str]) -> list[Picture]:
    """Each reward by step, the judge's with what it says of held-out prompts, and what else tells how it went."""
    names, pictures = _like(keys, "rewards/*/mean"), list[Picture]()
    if len(names) != 1:
        pictures.append(curve_picture(rows, "Reward, weighted sum", {"": "reward"}, "mean", "reward"))
    for i, name in enumerate(names, 1):
        source, curves, held_out = name.split("/")[1], {"": name}, None
        if record.comparison and source == record.judge:
            curves = {"training prompts": name}
            held_out = {0: record.comparison.before, rows[-1]["step"]: record.comparison.after}
        pictures.append(curve_picture(rows, f"Reward by {source}", curves, "mean", f"reward-{i}", held_out))
    for key, (title, unit) in _POLICY_CURVES.items():
        if any(row.get(key) for row in rows):
            pictures.append(curve_picture(rows, title, {"": key}, unit, key.replace("/", "-")))
    return pictures


def _reward_pictures(rows: list[dict[str, Any]], keys: list[str]) -> list[Picture]:
    """Loss, accuracy and weight of the scales by step, as far as they were logged."""
    scales = [f"/{scale}" for scale in SCALES]
    accuracy = _like(keys, *(f"accuracy{scale}" for scale in scales), "accuracy", "accuracy/longer_wins")
    labels = {key.partition("/")[2].replace("_", " ") or "mix": key for key in accuracy}
    gate = {key.partition("/")[2]: key for key in _like(keys, *(f"gate{scale}" for scale in scales))}
    pictures = [curve_picture(rows, "Training loss", {"": "loss"}, "nats", "loss")]
    if labels:
        pictures.append(curve_picture(rows, "Training accuracy", labels, "share of pairs", "accuracy"))
    if any(row[key] != rows[-1][key] for key in gate.values() for row in rows if key in row and key in rows[-1]):
        pictures.append(curve_picture(rows, "Weight of each scale in the mix", gate, "share", "gate"))
    return pictures


def _examples(cards: list[dict[str, Any]], policy: bool) -> Section:
    if cards:
        examples = [Example(card["title"], card["prompt"], list(map(_response, card["responses"]))) for card in cards]
        return Section("Examples", [Examples(examples)])
    recipe = "train_reinforce.py" if policy else "train_reward.py"
    text = f"The run kept no examples. recipes/{recipe} leaves them in {EXAMPLES_NAME}, without an option."
    return Section("Examples", [Paragraph(text)])


def _response(saved: Mapping[str, Any]) -> Response:
    return Response(saved["label"], saved["text"], {name: number(n) for name, n in saved["numbers"].items()})


def _cost(record: _Record) -> Section:
    latest = record.results | {key: value for row in record.log for key, value in row.items()}  # of each the last
    starts = len(record.run.get("started", []))
    seconds = "time of training" + (", since it was last resumed" if starts > 1 else "")
    rows = [
        ("steps", number(latest["step"])),
        ("epochs", number(latest.get("epoch"))),
        ("tokens", number(latest.get("num_tokens"))),
        (seconds, duration(latest.get("train_runtime"))),
        ("time of a step", duration(_mean(record.log, "step_time"))),
        ("time of the evaluation", duration(record.evaluation.get("eval_runtime"))),
        ("processes", number(record.run.get("processes", latest.get("num_processes")))),
        ("device", record.run.get("device", "–")),
    ]
    model = {name: record.model.get(key) for key, name in _MODEL_FIGURES.items()}
    rows += [(name, shown(value)) for name, value in model.items() if value is not None]
    settings = record.model.get("multi_scale", {})
    rows += [("scales", ", ".join(settings["scales"])), ("context", settings["context"])] if settings else []
    return Section("Model and cost", [Table(("", ""), [row for row in rows if row[1] != "–"])])


def _settings(record: _Record) -> list[Section]:
    run = record.run
    if not run:
        text = (
            f"The run left no {RUN_NAME}, so its command, options, seeds and versions are not known. A run that a "
            "recipe starts, or that calls save_run before training, shows them here."
        )
        saver = record.model.get("transformers_version")
        saved = [Paragraph(f"The model was saved by transformers {saver}.")] if saver else []
        return [Section("Settings, versions and seeds", [Paragraph(text), *saved])]
    changed, default = (
        {key: value for options in run["options"].values() for key, value in options[kind].items()}
        for kind in ("changed", "default")
    )
    first, *resumed = run["started"]
    start = {"command": run["command"], "started": first} | ({"resumed": ", ".join(resumed)} if resumed else {})
    options = [
        Settings("How it was started", start, unfolded=True),
        Settings(f"{len(changed)} options that differ from their defaults", changed, unfolded=True),
        Settings(f"{len(default)} options at their defaults", default),
    ]
    versions = [*run["versions"].items(), *((name, shown(run[name])) for name in ("seed", "data_seed"))]
    return [Section("Settings", options), Section("Versions and seeds", [Table(("", ""), versions)])]


def _like(keys: list[str], *patterns: str) -> list[str]:
    """Keys that match, pattern by pattern."""
    return [key for pattern in patterns for key in keys if fnmatchcase(key, pattern)]


def _mean(rows: list[dict[str, Any]], key: str) -> float | None:
    numbers = [row[key] for row in rows if isinstance(row.get(key), int | float)]
    return sum(numbers) / len(numbers) if numbers else None
