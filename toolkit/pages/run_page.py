"""A page about one training run, read from the folder that the run left."""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..reward.scales import SCALES
from ..training.run_record import EXAMPLES_NAME, RUN_NAME
from .held_out import headline, held_out_section
from .judge_verdicts import judge_verdicts
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
    Verdicts,
    curve_picture,
    duration,
    number,
    shown,
    write_page,
)
from .policy_verdicts import policy_verdicts, untrained_rewards
from .reward_verdicts import overfitting, reward_verdicts
from .run_files import RunRecord, options_in, read_run
from .tables import comparison_rows
from .verdicts import ANSWERS, TRAINING, Verdict

# What is said of a training by each trainer; another one's own name is said.
_TITLES = {
    "MultiScaleRewardTrainer": "Reward model",
    "RewardTrainer": "Reward model",
    "ReinforceTrainer": "REINFORCE",
    "SFTTrainer": "Supervised fine-tuning",
    "ThoughtTrainer": "Judge that thinks",
}
# Figures of the table, in order; `*` is any name.
_FIGURES = (
    "loss pair_loss pair_weight reward accuracy accuracy/* thoughts/* answers/* rewards/accuracies rewards/margins "
    "loss/* margin gate/* rewards/*/mean kl "
    "entropy mean_token_accuracy baseline advantage_std prefix/explained clip_ratio completions/mean_length "
    "completions/clipped_ratio length_correlation grad_norm"
)
POLICY_CURVES = {
    "kl": ("Divergence from the reference", "nats a token"),
    "entropy": ("Entropy of the policy", "nats a token"),
    "completions/mean_length": ("Response length", "tokens"),
    "grad_norm": ("Gradient norm", ""),
    "prefix/explained": ("Explained by the prefix baseline", "share"),
}
JUDGE_CURVES = {
    "pair_loss": ("Loss of the pairs; 0.693 is chance", "nats"),
    "accuracy": ("Pairs ranked right, of those that are trained on", "share"),
    "thoughts/effective": ("Effective thoughts about a response", "thoughts"),
    "answers/good": ("Responses that it calls good", "share"),
    "completions/mean_length": ("Length of a thought", "tokens"),
    "entropy": ("Entropy of the judge", "nats a token"),
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
# Options that say where a run writes, what it logs, saves and evaluates, and how fast: not what is learnt
_ASIDE = (
    *("*output_dir", "run_name", "log_*", "logging_*", "report_to", "disable_tqdm", "project", "trackio_*", "hub_*"),
    *("push_to_hub", "save_*", "*resume_from_checkpoint", "restore_callback_states_from_checkpoint", "states_dir"),
    *("num_completions_to_print", "eval_on_start", "eval_delay", "eval_steps", "eval_strategy", "do_*", "debug"),
    *("eval_accumulation_steps", "per_device_eval_batch_size", "dataset_num_proc", "dataloader_*", "ddp_*", "fsdp*"),
    *("accelerator_config", "deepspeed", "use_cpu", "local_rank", "skip_memory_metrics", "torch_empty_cache_steps"),
    *(
        "activation_*",
        "gradient_checkpointing*",
        "pad_to_multiple_of",
        "vllm_server_*",
        "vllm_group_port",
        "vllm_mode",
    ),
    *("vllm_gpu_memory_utilization", "vllm_enable_sleep_mode", "reward_batch_size", "use_cache", "enable_jit_*"),
)


def write_run_report(folder: str | Path) -> Path:
    """
    Write a page about a run, `report/index.html` in its folder, with its pictures beside it.

    Args:
        folder (`str` or `Path`):
            Output folder of a training by our trainers or TRL's, or the folder of the demonstration.

    Returns:
        `Path`: The page.

    Raises:
        `ValueError`: If there is no such folder, no run in it, nothing was logged, or a file is damaged.
    """
    return write_page(_build_page(read_run(Path(folder))), Path(folder, "report"))


def is_judge(record: RunRecord) -> bool:
    """Whether a run was trained to think about responses, which is logged as a policy's training is."""
    return any("thoughts/effective" in row for row in record.log)


def is_policy(record: RunRecord) -> bool:
    """Whether a run was trained by rewards of its own responses."""
    return any("reward" in row for row in record.log) and not is_judge(record)


def ranks_pairs(record: RunRecord) -> bool:
    """Whether a run learnt to rank pairs: a reward model's, and DPO."""
    keys = {key for row in record.log for key in row} | record.evaluation.keys()
    own = {"accuracy", "eval_accuracy", "rewards/accuracies", "eval_rewards/accuracies"}
    return bool(keys & own) and not is_judge(record)


def run_name(record: RunRecord) -> str:
    """The last two parts of a run's folder."""
    return "/".join(record.folder.resolve().parts[-2:])


def footer() -> str:
    """What stands below every page about runs."""
    return f"Written by prefscale {version('prefscale')} from the files of the run."


def verdicts_of(record: RunRecord) -> list[Verdict]:
    """All verdicts on a run, of both models in the demonstration, faults first."""
    of_judge = judge_verdicts(record) if is_judge(record) else []
    of_pairs = reward_verdicts(record) if ranks_pairs(record) else []
    of_policy = policy_verdicts(record) if is_policy(record) else []
    if of_pairs and of_policy:
        of_pairs = [verdict._replace(text=f"Reward model: {verdict.text}") for verdict in of_pairs]
        of_policy = [verdict._replace(text=f"Policy: {verdict.text}") for verdict in of_policy]
    found = [*of_judge, *of_pairs, *of_policy] or [verdict for verdict in [overfitting(record)] if verdict]
    return sorted(found, key=lambda verdict: ("bad", "open", "good").index(verdict.outcome))


def _build_page(record: RunRecord) -> Page:
    verdicts = verdicts_of(record)
    sections = [held_out_section(record)] if ranks_pairs(record) and record.evaluation else []
    if record.comparison:
        header = ("judge's score", "mean", "95% interval")
        sections.append(Section("The judge before and after", [Table(header, comparison_rows(record.comparison))]))
    sections += [_training(record), *_answers(record), *_examples(record), _cost(record), *_settings(record)]
    opening: list[Block] = [Paragraph(remark) for remark in record.remarks]
    opening += [Verdicts(verdicts)] if verdicts else [Paragraph("The log has too little to say what came of the run.")]
    return Page(
        title=f"{page_title(record)}: {run_name(record)}",
        lead=f"{_what_happened(record)} {count_verdicts(verdicts)}",
        sections=[Section("What follows", opening), *sections],
        footer=footer(),
    )


def page_title(record: RunRecord) -> str:
    """What was trained: by the name of the trainer, or else by what it logged."""
    if record.comparison:
        return "Demonstration"
    if record.trainer:
        return _TITLES.get(record.trainer, record.trainer.removesuffix("Trainer"))
    if is_policy(record):
        return "Policy"
    if ranks_pairs(record):
        return "DPO" if any("rewards/accuracies" in row for row in record.log) else "Reward model"
    return "Training run"


def _what_happened(record: RunRecord) -> str:
    """The first sentence: what a judge, the held-out pairs or else the log says."""
    last = f"{max(row.get('step', 0) for row in record.log):,} steps"
    if record.comparison:
        judged = record.comparison
        return (
            f"The judge gives the policy {judged.before.value:.2f} before REINFORCE and {judged.after.value:.2f} "
            f"after {last} of it, on {judged.win_rate.pairs:,} prompts."
        )
    if is_judge(record):
        rows, some = record.training, max(1, len(record.training) // 10)
        ends = [number(_mean(part, "pair_loss")) for part in (rows[:some], rows[-some:])]
        return f"In {last} the loss of the pairs went from {ends[0]} to {ends[1]}; 0.693 is chance."
    if is_policy(record):
        rows, some = record.training, max(1, len(record.training) // 10)
        ends = [number(_mean(part, "reward")) for part in (rows[:some], rows[-some:])]
        return f"In {last} the mean reward in training went from {ends[0]} to {ends[1]}."
    if text := headline(record):
        return text
    losses = [row["loss"] for row in record.training]
    return (
        f"In {last} the training loss went from {number(losses[0])} to {number(losses[-1])}."
        if losses
        else (f"The run took {last} and logged no loss.")
    )


def count_verdicts(verdicts: Sequence[Verdict]) -> str:
    """The second sentence: how many verdicts there are, and what is wrong first."""
    bad, doubtful = ([v for v in verdicts if v.outcome == outcome] for outcome in ("bad", "open"))
    if not verdicts:
        return "Nothing else can be said of it."
    found = [f"{len(bad)} problem{'s' * (len(bad) > 1)}"] if bad else []
    found += [f"{len(doubtful)} open question{'s' * (len(doubtful) > 1)}"] if doubtful else []
    checks = f"{len(verdicts)} check{'s' * (len(verdicts) > 1)}"
    return f"Of {checks} {' and '.join(found)} came up." if found else f"{checks} found nothing wrong."


def _training(record: RunRecord) -> Section:
    rows = record.training
    if not rows:
        return Section(TRAINING, [Paragraph("No figure of training was logged. Set a smaller logging_steps.")])
    blocks: list[Block] = []
    broken = [row["step"] for row in rows if not math.isfinite(row["loss"])]
    if broken:
        text = f"The loss was no finite number in {len(broken)} of {len(rows)} logs, first at step {broken[0]:,}."
        blocks.append(Paragraph(text))
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if is_judge(record):
        pictures = _curves(record, rows, JUDGE_CURVES)
    else:
        pictures = _policy_pictures(record, rows, keys) if is_policy(record) else _pair_pictures(record, rows, keys)
    some = max(1, len(rows) // 10)
    parts = {"first log": rows[:1], "last log": rows[-1:]}
    parts |= {f"mean of the last {some}": rows[-some:]} if some > 1 else {}
    main = [
        (key, *(number(_mean(part, key)) for part in parts.values()))
        for key in dict.fromkeys(_like(keys, *_FIGURES.split()))
    ]
    everything = {key: number(rows[-1].get(key)) for key in sorted(keys)}
    summary = f"All {len(everything)} figures of the last log"
    return Section(TRAINING, [*blocks, *pictures, Table(("figure", *parts), main), Settings(summary, everything)])


def _policy_pictures(record: RunRecord, rows: list[dict[str, Any]], keys: list[str]) -> list[Picture]:
    """Each reward by step, the judge's with what it says of held-out prompts, and what else tells how it went."""
    names, pictures = _like(keys, "rewards/*/mean"), list[Picture]()
    if len(names) - len(untrained_rewards(record)) != 1:  # or the sum is the one that it is trained on
        curve = curve_picture(rows, "Reward, weighted sum", {"": "reward"}, "mean", "reward", kept=record.kept)
        pictures.append(curve)
    for i, name in enumerate(names, 1):
        source, curves, held_out = name.split("/")[1], {"": name}, None
        if record.comparison and source == record.judge:
            curves = {"training prompts": name}
            held_out = {0: record.comparison.before, rows[-1]["step"]: record.comparison.after}
        title = f"Reward by {source}"
        pictures.append(curve_picture(rows, title, curves, "mean", f"reward-{i}", held_out, record.kept))
    return pictures + _curves(record, rows, POLICY_CURVES)


def _curves(record: RunRecord, rows: list[dict[str, Any]], curves: Mapping[str, tuple[str, str]]) -> list[Picture]:
    """A picture of each figure that was logged."""
    return [
        curve_picture(rows, title, {"": key}, unit, key.replace("/", "-"), kept=record.kept)
        for key, (title, unit) in curves.items()
        if any(row.get(key) for row in rows)
    ]


def _pair_pictures(record: RunRecord, rows: list[dict[str, Any]], keys: list[str]) -> list[Picture]:
    """Loss, accuracy and weight of the scales by step, as far as they were logged."""
    scales = [f"/{scale}" for scale in SCALES]
    accuracy = _like(keys, *(f"accuracy{scale}" for scale in scales), "accuracy", "accuracy/longer_wins")
    labels = {key.partition("/")[2].replace("_", " ") or "mix": key for key in accuracy}
    labels |= {"pairs": "rewards/accuracies"} if "rewards/accuracies" in keys else {}
    gate = {key.partition("/")[2]: key for key in _like(keys, *(f"gate{scale}" for scale in scales))}
    evaluations = [] if ranks_pairs(record) else record.evaluations  # which have no section of their own
    losses = {"training": "loss", "held-out": "eval_loss"} if evaluations else {"": "loss"}
    pictures = [curve_picture([*rows, *evaluations], "Training loss", losses, "nats", "loss", kept=record.kept)]
    if labels:
        title = "Training accuracy"
        pictures.append(curve_picture(rows, title, labels, "share of pairs", "accuracy", kept=record.kept))
    if any(row[key] != rows[-1][key] for key in gate.values() for row in rows if key in row and key in rows[-1]):
        title = "Weight of each scale in the mix"
        pictures.append(curve_picture(rows, title, gate, "share", "gate", kept=record.kept))
    return pictures


def _answers(record: RunRecord, most: int = 4) -> list[Section]:
    """The same prompts before and after, of a policy."""
    if not is_policy(record):
        return []
    if not record.before_after:
        text = (
            "The run kept no answers of before and after. recipes/train_reinforce.py samples them where a process "
            "holds all weights, so not under ZeRO-3 or FSDP."
        )
        return [Section(ANSWERS, [Paragraph(text)])]
    cards = record.before_after[:most]
    only_before = any(len(card["responses"]) == 1 for card in cards)
    told = (
        "The run has not ended, so that there is no answer of after."
        if only_before
        else (f"One answer each, sampled with the same seed: {len(cards)} of {len(record.before_after)} prompts.")
    )
    return [Section(ANSWERS, [Paragraph(told), Examples(list(map(_example, cards)))])]


def _examples(record: RunRecord) -> list[Section]:
    if record.examples:
        return [Section("Examples", [Examples(list(map(_example, record.examples)))])]
    if record.comparison or not (is_judge(record) or is_policy(record) or ranks_pairs(record)):
        return []
    if is_judge(record):
        return [Section("Examples", [Paragraph("The run kept no thoughts. recipes/train_judge.py does.")])]
    recipe = "train_reinforce.py" if is_policy(record) else "train_reward.py"
    text = f"The run kept no examples. recipes/{recipe} leaves them in {EXAMPLES_NAME}, without an option."
    return [Section("Examples", [Paragraph(text)])]


def _example(card: Mapping[str, Any]) -> Example:
    return Example(card["title"], card["prompt"], list(map(_response, card["responses"])))


def _response(saved: Mapping[str, Any]) -> Response:
    return Response(saved["label"], saved["text"], {name: number(n) for name, n in saved["numbers"].items()})


def _cost(record: RunRecord) -> Section:
    latest = record.results | {key: value for row in record.log for key, value in row.items()}  # of each the last
    starts = len(record.run.get("started", []))
    seconds = "time of training" + (", since it was last resumed" if starts > 1 else "")
    rows = [
        ("steps", number(latest["step"])),
        ("step of the checkpoint that was kept", number(record.kept)),
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


def matters(option: str) -> bool:
    """Whether an option can change what is learnt, rather than where it is written, how it is logged or how fast."""
    return not any(fnmatchcase(option, pattern) for pattern in _ASIDE)


def _settings(record: RunRecord) -> list[Section]:
    run = record.run
    if not run:
        text = (
            f"The run left no {RUN_NAME}, so its command, options, seeds and versions are not known. A run that a "
            "recipe starts, or that calls save_run before training, shows them here."
        )
        saver = record.model.get("transformers_version")
        saved = [Paragraph(f"The model was saved by transformers {saver}.")] if saver else []
        return [Section("Settings, versions and seeds", [Paragraph(text), *saved])]
    changed, default = options_in(run, "changed"), options_in(run, "default")
    learnt, aside = ({k: v for k, v in changed.items() if matters(k) is kind} for kind in (True, False))
    first, *resumed = run["started"]
    start = {"command": run["command"], "started": first} | ({"resumed": ", ".join(resumed)} if resumed else {})
    options = [
        Settings("How it was started", start, unfolded=True),
        Settings(f"{len(learnt)} options that differ from their defaults and matter to what is learnt", learnt, True),
        Settings(f"{len(aside)} others that differ: paths, logging, saving, evaluation, speed", aside),
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
