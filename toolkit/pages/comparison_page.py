"""A page that puts training runs side by side."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..reward.config import PREFERENCE_MODELS
from ..stats.curves import level_at_end
from ..stats.intervals import Interval
from .page import (
    Block,
    Page,
    Paragraph,
    Picture,
    Section,
    Settings,
    Table,
    Verdicts,
    curve_picture,
    interval_picture,
    number,
    shown,
    write_page,
)
from .policy_verdicts import PARTS, series, untrained_rewards
from .reward_verdicts import difference_of, held_out_accuracy, paired_interval, right
from .run_files import RunRecord, read_run
from .run_page import JUDGE_CURVES, POLICY_CURVES, footer, is_judge, is_policy, matters, ranks_pairs, verdicts_of
from .tables import interval_cells
from .verdicts import Verdict, less, percent, points, rounded

_PLAIN = PREFERENCE_MODELS["simple contrast"]
_RESULTS = "Side by side"
Runs = Mapping[str, RunRecord]


def write_comparison(folders: Sequence[str | Path]) -> Path:
    """
    Write a page that compares runs, in a folder of the first one that is named after the others.

    Args:
        folders (`Sequence[str | Path]`):
            Output folders of two runs or more, all of models that rank pairs or all of policies.

    Returns:
        `Path`: The page, `comparison-with-…/index.html`.

    Raises:
        `ValueError`: If a folder is given twice, the runs are of different kinds, or one cannot be read.
    """
    places = [Path(folder).resolve() for folder in folders]
    if len(set(places)) < len(places):
        raise ValueError(f"A run is given twice: {', '.join(map(str, folders))}. Give each run once.")
    names = [place.name for place in places]
    if len(set(names)) < len(names):
        names = ["/".join(place.parts[-2:]) for place in places]
    runs = dict(zip(names, map(read_run, places), strict=True))
    if len(runs) < len(places):
        raise ValueError(f"Two runs are called alike: {', '.join(names)}. Rename a folder.")
    kinds = {name: _kind(run) for name, run in runs.items()}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"'{name}' {kind}" for name, kind in kinds.items())
        raise ValueError(f"The runs are of different kinds: {told}. Compare runs of one kind.")
    others = "-".join(name.replace("/", "-") for name in names[1:])
    return write_page(_build_page(runs), Path(places[0], f"comparison-with-{others}"))


def _kind(run: RunRecord) -> str:
    if is_judge(run):
        return "is a judge's"
    return "is a policy's" if is_policy(run) else "ranks pairs" if ranks_pairs(run) else "does neither rank nor sample"


def _build_page(runs: Runs) -> Page:
    of_pairs = all(map(ranks_pairs, runs.values()))
    figures = _accuracies(runs) if of_pairs else _rewards(runs)
    verdicts = [verdict for what, found in figures.items() for verdict in _verdicts(runs, what, found, of_pairs)]
    lead = "The runs have no figure in common that can be compared."
    if figures:
        what, found = next(iter(figures.items()))
        best = max(found, key=lambda name: found[name].value)
        lead = f"Of {len(runs)} runs {best} has the most {what}: {_told(found[best], of_pairs)}."
        beyond = sum(verdict.outcome != "open" for verdict in verdicts)
        lead += f" {beyond} of {len(verdicts)} differences {'is' if beyond == 1 else 'are'} beyond chance."
    own = [(v.outcome, f"{name}: {v.text}", "") for name, run in runs.items() for v in verdicts_of(run)]
    faults = [row for row in own if row[0] != "good"]
    return Page(
        title=f"Comparison: {', '.join(runs)}",
        lead=lead,
        sections=[
            Section("What follows", [Verdicts(verdicts)] if verdicts else [Paragraph("There is no verdict.")]),
            Section(_RESULTS, _results(runs, figures, of_pairs)),
            Section("Curves", _curves(runs)),
            Section(
                "What each run's own report finds",
                [Verdicts(faults) if faults else Paragraph("No problem and no open question.")],
            ),
            _settings(runs),
        ],
        footer=footer(),
    )


def _accuracies(runs: Runs) -> dict[str, dict[str, Interval]]:
    found = {name: held_out_accuracy(run) for name, run in runs.items()}
    known = {name: Interval(a.value, a.low, a.high) for name, a in found.items() if a}
    return {"held-out pairs ranked right": known} if len(known) > 1 else {}


def _rewards(runs: Runs) -> dict[str, dict[str, Interval]]:
    """Mean of each reward in the last fifth of a run, of the rewards that all runs log and none is trained on."""
    untrained = [untrained_rewards(run) for run in runs.values()]
    common = [name for name in untrained[0] if all(name in other for other in untrained[1:])]
    if min(len(series(run, "reward")) for run in runs.values()) < 2 * PARTS:
        return {}
    keys = {name: f"rewards/{name}/mean" for name in common}
    return {
        f"reward by {name}": {run: level_at_end(series(record, key), PARTS) for run, record in runs.items()}
        for name, key in keys.items()
    }


def is_plain(run: RunRecord) -> bool:
    """Whether a run is the plain Bradley-Terry model: one score a response, and the pairwise loss, not weighted."""
    if run.trainer == "RewardTrainer":
        return True
    return run.trainer == "MultiScaleRewardTrainer" and all(run.options.get(k) == v for k, v in _PLAIN.items())


def _difference(first: RunRecord, second: RunRecord, confidence: float) -> tuple[Interval, str]:
    """How far the second's accuracy is above the first's, and on what."""
    if first.held_out and second.held_out:
        places = {row: i for i, row in enumerate(first.held_out.rows)}
        shared = {places[row]: i for i, row in enumerate(second.held_out.rows) if row in places}
        if len(shared) > 1:
            here, there = (torch.tensor(list(index)) for index in (shared.keys(), shared.values()))
            before, after = (
                right(*(run.held_out.scores[side][index] for side in ("chosen", "rejected")))
                for run, index in ((first, here), (second, there))
                if run.held_out
            )
            found = paired_interval(after - before, first.held_out.prompts[here], confidence)
            return found, f"on {len(shared):,} pairs that both have scored"
    ours, theirs = held_out_accuracy(first), held_out_accuracy(second)
    assert ours is not None  # or they would not be compared
    assert theirs is not None
    return difference_of(theirs, ours, confidence), "on held-out pairs that are not known to be the same"


def _gap(first: Interval, second: Interval) -> Interval:
    """How far an estimate is above another one that is independent of it."""
    difference, half = second.value - first.value, math.hypot(first.high - first.value, second.high - second.value)
    return Interval(difference, difference - half, difference + half)


def _verdicts(runs: Runs, what: str, found: Mapping[str, Interval], of_pairs: bool) -> list[Verdict]:
    """Each run against the plain Bradley-Terry model among them, or else the first, at 95% for all comparisons."""
    plain = [name for name in found if is_plain(runs[name])]
    base = plain[0] if plain else next(iter(found))
    called = f"plain Bradley-Terry ({base})" if plain else base
    confidence = 1 - 0.05 / (len(found) - 1)
    verdicts = []
    for name in [name for name in found if name != base]:
        if of_pairs:
            gap, where = _difference(runs[base], runs[name], confidence)
        else:
            gap, where = _gap(found[base], found[name]), "in the last fifth of the run"
        size = points if of_pairs else rounded
        if gap.low > 0:
            text = f"{name} is better than {called} in {what}: by {size(gap)}, {where}."
            verdicts.append(Verdict("good", text, _RESULTS))
        elif gap.high < 0:
            told = f"{name} is worse than {called}" if plain else f"{base} is better than {name}"
            text = f"{told} in {what}: by {size(less(gap))}, {where}."
            verdicts.append(Verdict("bad" if plain else "good", text, _RESULTS))
        else:
            text = f"{name} is not shown to differ from {called} in {what}: {size(gap)}, {where}."
            verdicts.append(Verdict("open", text, _RESULTS))
    return verdicts


def _told(figure: Interval, of_pairs: bool) -> str:
    return percent(figure) if of_pairs else rounded(figure)


def _results(runs: Runs, figures: Mapping[str, Mapping[str, Interval]], of_pairs: bool) -> list[Block]:
    factor = 100.0 if of_pairs else 1.0
    blocks: list[Block] = []
    for i, (what, found) in enumerate(figures.items(), 1):
        unit = f"{what}, %" if of_pairs else what
        cells = [(name, *interval_cells(figure, 1 if of_pairs else 3, factor)) for name, figure in found.items()]
        blocks.append(Table(("run", unit, "95% interval"), cells))
        scaled = {name: Interval(*(factor * x for x in figure)) for name, figure in found.items()}
        blocks.append(interval_picture(scaled, what.capitalize(), unit, f"figures-{i}", 50.0 if of_pairs else None))
    keys = ["eval_loss", "eval_margin", "eval_length_correlation", "eval_accuracy/longer_wins"]
    last = {name: run.evaluation if of_pairs else (run.training or [{}])[-1] for name, run in runs.items()}
    if not of_pairs:
        keys = ["reward", *(JUDGE_CURVES if any(map(is_judge, runs.values())) else POLICY_CURVES), "num_tokens"]
    rows = [(key, *(number(row.get(key)) for row in last.values())) for key in keys]
    rows = [row for row in rows if set(row[1:]) != {"–"}]
    steps = ("steps", *(number(max(row.get("step", 0) for row in run.log)) for run in runs.values()))
    return [*blocks, Table(("last figure", *runs), [*rows, steps])]


def _curves(runs: Runs) -> list[Picture]:
    """Each figure of the logs that two runs or more have, a curve a run."""
    titles = {
        "loss": ("Training loss", "nats"),
        "eval_accuracy": ("Held-out accuracy", "share of pairs"),
        "eval_loss": ("Held-out loss", "nats"),
        "accuracy": ("Training accuracy", "share of pairs"),
    }
    if any(map(is_policy, runs.values())):
        rewards = dict.fromkeys(f"rewards/{name}/mean" for run in runs.values() for name in untrained_rewards(run))
        titles = {"reward": ("Reward that it is trained on", "mean")}
        titles |= {key: (f"Reward by {key.split('/')[1]}", "mean") for key in rewards} | POLICY_CURVES
    if any(map(is_judge, runs.values())):
        titles = JUDGE_CURVES
    pictures = []
    for i, (key, (title, unit)) in enumerate(titles.items(), 1):
        rows = {name: run.evaluations if key.startswith("eval") else run.training for name, run in runs.items()}
        merged = [{"step": row["step"], name: row[key]} for name, own in rows.items() for row in own if row.get(key)]
        if len({name for row in merged for name in row}) > 2:
            pictures.append(curve_picture(merged, title, {name: name for name in runs}, unit, f"curve-{i}"))
    return pictures


def _settings(runs: Runs) -> Section:
    options = {name: run.options for name, run in runs.items()}
    silent = [name for name, own in options.items() if not own]
    if silent:
        return Section("Settings", [Paragraph(f"No run.json with options is in {', '.join(silent)}.")])
    keys = dict.fromkeys(key for own in options.values() for key in own)
    rows = [(key, *(shown(own[key]) if key in own else "–" for own in options.values())) for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    learnt = [row for row in rows if matters(row[0])]
    aside = {row[0]: list(row[1:]) for row in rows if not matters(row[0])}
    table = Table(("option", *runs), learnt, "Options that differ and matter to what is learnt")
    told: Block = table if learnt else Paragraph("No option differs that matters to what is learnt.")
    folded = Settings(f"{len(aside)} others that differ: paths, logging, saving, evaluation, speed", aside)
    return Section("Settings", [told, folded])
