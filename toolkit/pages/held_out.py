"""The section of a page on held-out pairs: accuracies by scale, task and subset, and pictures of the scores."""

from collections.abc import Mapping
from typing import Any

import torch

from ..reward.scales import SCALES
from ..stats.calibration import calibration_error, calibration_error_by_chance, reliability
from ..stats.intervals import Interval, PairAccuracy
from ..stats.metrics import pair_accuracy
from .page import Block, Paragraph, Picture, Section, Table, curve_picture, interval_picture, number
from .pair_pictures import length_picture, reliability_picture, score_histogram
from .run_files import HeldOut, RunRecord
from .tables import accuracies_of, interval_cells
from .verdicts import HELD_OUT

_ACCURACY_COLUMNS = {"loss": "loss, nats", "margin": "margin, nats", "gate": "weight in the mix"}
# What a reader is told in place of a key.
_FIGURES = {
    "eval_loss": "loss, all terms, nats",
    "eval_margin": "margin of the mix, nats",
    "eval_length_correlation": "correlation with length",
    "eval_min_reward": "lowest score",
    "eval_mean_reward": "mean score",
    "eval_max_reward": "highest score",
}


def held_out_section(record: RunRecord) -> Section:
    """Section on what an evaluation of pairs says."""
    figures = record.evaluation
    if "eval_accuracy_low" not in figures:  # of another trainer
        cells = [(key.removeprefix("eval_"), number(value)) for key, value in figures.items() if "eval_" in key]
        return Section(HELD_OUT, [*_curves(record), Table(("figure", "value"), cells)])
    accuracies = accuracies_of(figures, [scale for scale in SCALES if f"eval_accuracy/{scale}" in figures])
    header = ("score", "accuracy, %", "95% interval", "ties", *_ACCURACY_COLUMNS.values())
    rows = []
    for name, a in accuracies.items():
        others = (number(figures.get(f"eval_{key}/{name}")) for key in _ACCURACY_COLUMNS)
        rows.append((name, *interval_cells(a, 1, 100), str(a.ties), *others))
    cells = [(name, number(figures[key])) for key, name in _FIGURES.items() if key in figures]
    blocks: list[Block] = [Table(header, rows, "Pairs ranked right, by scale")]
    blocks += _by_group(record.held_out) if record.held_out else []
    blocks += [_accuracy_picture(accuracies), *_curves(record)]
    blocks += _score_pictures(record.held_out) if record.held_out else []
    return Section(HELD_OUT, [*blocks, Table(("figure", "value"), cells), *_calibration(record.held_out)])


def _by_group(held_out: HeldOut) -> list[Block]:
    """Accuracy of each task and subset, the largest groups first."""
    chosen, rejected = held_out.scores["chosen"], held_out.scores["rejected"]
    tables: list[Block] = []
    for column, names in held_out.groups.items():
        of_each = {name: torch.tensor([other == name for other in names]) for name in dict.fromkeys(names)}
        rows = []
        for name, some in sorted(of_each.items(), key=lambda item: -int(item[1].sum())):
            accuracy = pair_accuracy(chosen[some], rejected[some], clusters=held_out.prompts[some])
            longer = pair_accuracy(held_out.scores["chosen_length"][some], held_out.scores["rejected_length"][some])
            rows.append((name, *interval_cells(accuracy, 1, 100), f"{100 * longer.value:.1f}", f"{accuracy.pairs:,}"))
        if len(rows) > 1:
            header = (column, "accuracy, %", "95% interval", "longer wins, %", "pairs")
            tables.append(Table(header, rows, f"Pairs ranked right by the mix, by {column}"))
    return tables


def _accuracy_picture(accuracies: Mapping[str, PairAccuracy]) -> Picture:
    percent = {name: Interval(100 * a.value, 100 * a.low, 100 * a.high) for name, a in accuracies.items()}
    rule = ("longer wins", percent.pop("longer wins"))
    title, unit = "Held-out accuracy by scale", "pairs ranked right, %"
    return interval_picture(percent, title, unit, "held-out", 50.0, rule)


def _curves(record: RunRecord) -> list[Picture]:
    """Held-out accuracy and loss by step, where they were measured more than once."""
    rows = record.evaluations
    if len(rows) < 2:
        return []
    scales = {scale: f"eval_accuracy/{scale}" for scale in SCALES}
    names = {**scales, "mix": "eval_accuracy", "longer wins": "eval_accuracy/longer_wins"}
    names["pairs"] = "eval_rewards/accuracies"  # DPO's
    keys = {name: key for name, key in names.items() if any(key in row for row in rows)}
    pictures = []
    if keys:
        title = "Held-out accuracy by step"
        pictures.append(curve_picture(rows, title, keys, "share of pairs", "held-out-by-step", kept=record.kept))
    loss = curve_picture(rows, "Held-out loss", {"": "eval_loss"}, "nats", "held-out-loss", kept=record.kept)
    return [*pictures, loss]


def _score_pictures(held_out: HeldOut) -> list[Picture]:
    chosen, rejected, chosen_length, rejected_length = (
        held_out.scores[name].tolist() for name in ("chosen", "rejected", "chosen_length", "rejected_length")
    )
    return [
        score_histogram(chosen, rejected),
        reliability_picture({"mix": reliability(held_out.scores["chosen"] - held_out.scores["rejected"])}),
        length_picture(chosen_length, chosen, rejected_length, rejected, unit="tokens"),
    ]


def _calibration(held_out: HeldOut | None) -> list[Block]:
    if held_out is None:
        text = "The run left no held_out.json, so there are no groups, no histogram and no reliability of its scores."
        return [Paragraph(text)]
    gap = held_out.scores["chosen"] - held_out.scores["rejected"]
    error, chance = calibration_error(gap), calibration_error_by_chance(gap)
    text = (
        f"The expected calibration error is {100 * error:.1f} points; of right probabilities it would be at most "
        f"{100 * chance:.1f} in 19 of 20 cases."
    )
    return [Paragraph(text)]


def headline(record: RunRecord) -> str:
    """What the last evaluation says, in a sentence; empty where it ranks no pairs."""
    figures: Mapping[str, Any] = record.evaluation
    value = figures.get("eval_accuracy", figures.get("eval_rewards/accuracies"))
    if value is None:
        return ""
    if "eval_accuracy_low" not in figures:
        return f"It ranks {100 * value:.1f}% of held-out pairs right."
    mix, longer = (accuracies_of(figures, [])[name] for name in ("mix", "longer wins"))
    return (
        f"On {mix.pairs:,} held-out pairs it ranks {100 * mix.value:.1f}% right ({100 * mix.low:.1f} to "
        f"{100 * mix.high:.1f}), and preferring the longer response gets {100 * longer.value:.1f}%."
    )
