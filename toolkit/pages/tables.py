"""Tables in the terminal and pictures of a run."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ..judges.duels import PolicyComparison
from ..stats.curves import trailing_mean
from ..stats.metrics import PairAccuracy
from .page import COLOUR_OF


def accuracies_of(metrics: Mapping[str, float], scales: list[str], prefix: str = "eval_") -> dict[str, PairAccuracy]:
    """
    Accuracies out of the metrics that the reward trainer's evaluation returns.

    Args:
        metrics (`Mapping[str, float]`):
            Metrics of an evaluation.
        scales (`list[str]`):
            Scales of the reward model.
        prefix (`str`, *optional*, defaults to `"eval_"`):
            What the names of the metrics begin with.

    Returns:
        `dict[str, PairAccuracy]`: Of each scale, of the mix, and of preferring the longer response.
    """
    names = {"": "mix", "/longer_wins": "longer wins"}
    suffixes = [*(f"/{scale}" for scale in scales), *names]
    return {
        names.get(suffix, suffix[1:]): PairAccuracy(
            metrics[f"{prefix}accuracy{suffix}"],
            metrics[f"{prefix}accuracy_low{suffix}"],
            metrics[f"{prefix}accuracy_high{suffix}"],
            int(metrics[f"{prefix}ties{suffix}"]),
            int(metrics[f"{prefix}pairs"]),
        )
        for suffix in suffixes
    }


def print_accuracy(accuracies: Mapping[str, PairAccuracy], title: str = "Held-out accuracy") -> None:
    """
    Print accuracies with their 95% intervals, in percent.

    Args:
        accuracies (`Mapping[str, PairAccuracy]`):
            Accuracies by name.
        title (`str`, *optional*, defaults to `"Held-out accuracy"`):
            Title of the table.
    """
    rows = [
        (name, f"{100 * a.value:.1f}", f"{100 * a.low:.1f} to {100 * a.high:.1f}", str(a.ties), str(a.pairs))
        for name, a in accuracies.items()
    ]
    print_table(title, ("score", "accuracy %", "95% interval", "ties", "pairs"), rows)


def print_table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """
    Print a table.

    Args:
        title (`str`):
            Title.
        columns (`tuple[str, ...]`):
            Names of the columns; all but the first are set to the right.
        rows (`list[tuple[str, ...]]`):
            Cells.
    """
    table = Table()
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a file has no width to fit into, and cells would be cut to that of a terminal
    console.print(title, style="bold", soft_wrap=True, highlight=False, markup=False)
    console.print(table)


def print_comparison(comparison: PolicyComparison, title: str) -> None:
    """
    Print what a judge says of two policies, with 95% intervals.

    Args:
        comparison ([`PolicyComparison`]):
            The comparison.
        title (`str`):
            Title of the table.
    """
    named = {"before": comparison.before, "after": comparison.after, "gain": comparison.gain}
    rows = [(name, f"{i.value:.3f}", f"{i.low:.3f} to {i.high:.3f}") for name, i in named.items()]
    wins = comparison.win_rate
    rows.append((f"win rate ({wins.ties} ties)", f"{wins.value:.3f}", f"{wins.low:.3f} to {wins.high:.3f}"))
    print_table(title, ("", "mean", "95% interval"), rows)


def plot_loop(
    path: Path, accuracies: Mapping[str, PairAccuracy], log: list[dict[str, Any]], comparison: PolicyComparison
) -> None:
    """
    Picture of the whole loop: what the reward model learned, what the policy made of it, and how its text changed.

    Args:
        path (`Path`):
            PNG file to write.
        accuracies (`Mapping[str, PairAccuracy]`):
            Held-out accuracies of the reward model by scale.
        log (`list[dict[str, Any]]`):
            What REINFORCE logged at each step, with `rewards/gold_judge/mean` and `rewards/RewardFunction/mean`.
        comparison ([`PolicyComparison`]):
            Gold reward of the policy before and after, on held-out prompts.
    """
    steps = [row["step"] for row in log]
    gold = [row["rewards/gold_judge/mean"] for row in log]
    model_reward = [row["rewards/RewardFunction/mean"] for row in log]
    figure = Figure(figsize=(13, 10.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.25])
    left, right = top.subplots(1, 2)

    names = list(accuracies)
    values = [100 * accuracies[name].value for name in names]
    errors = [
        [100 * (accuracies[name].value - accuracies[name].low) for name in names],
        [100 * (accuracies[name].high - accuracies[name].value) for name in names],
    ]
    left.bar(names, values, yerr=errors, capsize=4, color=[COLOUR_OF.get(name, "#555555") for name in names])
    for i, value in enumerate(values):
        left.text(i, 41, f"{value:.1f}", ha="center", color="white", fontweight="bold")
    left.axhline(50, color="black", linewidth=0.8, linestyle=":")
    left.set(ylim=(40, 100), ylabel="held-out pairs ranked right, %", title="Reward model: accuracy by scale")

    right.plot(steps, gold, color="#0072B2", alpha=0.35, linewidth=1)
    smooth_gold, smooth_reward = trailing_mean(torch.tensor([gold, model_reward]), 5)
    (smooth,) = right.plot(steps, smooth_gold, color="#0072B2", label="gold, training prompts")
    ends = (comparison.before, comparison.after)
    error = [[e.value - e.low for e in ends], [e.high - e.value for e in ends]]
    held_out = right.errorbar(
        [0, steps[-1]],
        [e.value for e in ends],
        error,
        fmt="o",
        capsize=4,
        color="#D55E00",
        label="gold, held-out prompts",
    )
    right.set(xlabel="step", ylabel="gold reward", title="Policy: gold reward by step")
    twin = right.twinx()
    (model_line,) = twin.plot(steps, smooth_reward, color="#999999", linestyle="--", label="reward by the model")
    twin.set_ylabel("reward by the model", color="#777777")
    lines = [smooth, held_out, model_line]
    right.legend(lines, [str(line.get_label()) for line in lines], loc="lower right")

    table_axes = bottom.subplots(1, 1)
    table_axes.axis("off")
    table_axes.set_title("The same prompts before and after", loc="left")
    cells = [
        [
            _wrap(row["prompt"]),
            f"{_wrap(row['before'])}\n[gold {row['score_before']:.2f}]",
            f"{_wrap(row['after'])}\n[gold {row['score_after']:.2f}]",
        ]
        for row in comparison.examples
    ]
    table = table_axes.table(cells, colLabels=["prompt", "before", "after"], loc="upper left", cellLoc="left")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    heights = [1] + [max(cell.count("\n") + 1 for cell in row) for row in cells]
    for (row, _), cell in table.get_celld().items():
        cell.set_height(0.98 * (heights[row] + 0.6) / (sum(heights) + 0.6 * len(heights)))
        cell.PAD = 0.02
    figure.savefig(path, dpi=110)


def _wrap(text: str, width: int = 62) -> str:
    return "\n".join(line for part in text.splitlines() or [""] for line in textwrap.wrap(part, width) or [""])


def plot_learning_curves(
    path: Path, curves: Mapping[str, tuple[Tensor, Tensor]], panels: Mapping[str, list[str]], level: float
) -> None:
    """
    Picture of several methods' learning curves, mean and range over seeds, against generated tokens.

    Args:
        path (`Path`):
            PNG file to write.
        curves (`Mapping[str, tuple[torch.Tensor, torch.Tensor]]`):
            Of each method the tokens generated up to each step, and a measurement there, both of shape `(S, T)` for
            `S` seeds. A step is drawn at the mean of its seeds' tokens.
        panels (`Mapping[str, list[str]]`):
            Title of each panel and the methods in it, at most three; those without a curve are left out.
        level (`float`):
            Where the dotted line is drawn.
    """
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(13, 0.5 + 3.8 * rows), layout="constrained")
    grid = figure.subplots(rows, 3, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, (title, methods) in zip(grid.flat, panels.items(), strict=False):
        axes.axhline(level, color="black", linewidth=0.8, linestyle=":")
        for method, colour, style in zip(methods, ("#555555", "#E69F00", "#0072B2"), ("--", "-", "-"), strict=False):
            if method not in curves:
                continue
            tokens, values = curves[method]
            steps = tokens.double().mean(0) / 1000
            axes.plot(steps, values.mean(0), color=colour, linestyle=style, label=method)
            axes.fill_between(steps, values.amin(0), values.amax(0), color=colour, alpha=0.18, linewidth=0)
        axes.set(title=title, xlabel="generated tokens, thousands")
        axes.tick_params(labelbottom=True)
        axes.legend(loc="lower right")
    figure.supylabel("gold reward, mean of 5 steps")
    figure.savefig(path, dpi=110)
