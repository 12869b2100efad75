"""Tables and pictures of the experiments: how the cost of a step grows, and how fast policies learn."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor

from ...pages.tables import print_table
from .scaling import SHARED, UNSHARED

# Of Okabe and Ito's colours, as in the other pictures, with a marker each for those who see none. Points that fall on
# each other are drawn aside, to the left or to the right by a part of the panel.
_STYLES = {UNSHARED: ("#E69F00", "s", -0.007), SHARED: ("#0072B2", "o", 0.007)}
_SWEEPS = {
    "response_length": "tokens of a response",
    "prompt_share": "prompt's share of a row, %",
    "size": "decoder, hidden size x layers",
}


def print_scaling(sweeps: Mapping[str, list[dict[str, Any]]]) -> None:
    """
    Print a table of each sweep, by the name of what varies: its points are
    [`~toolkit.experiments.benchmarks.scaling.summarize_point`] with the fields of
    [`~toolkit.experiments.benchmarks.scaling.Point`].
    """
    columns = ("layout", "tokens", "s a step", "least to most", "floor s", "x floor", "peak MB")
    gains = ("faster", "least to most", "by FLOPs", "memory")
    for sweep, points in sweeps.items():
        rows = []
        for point in points:
            for name, cost in point["layouts"].items():
                seconds, gain = cost["seconds"], point["time_gain"]
                measured = (
                    f"{cost['tokens']:,}",
                    f"{seconds['median']:.3f}",
                    f"{seconds['low']:.3f} to {seconds['high']:.3f}",
                    f"{cost['floor_seconds']:.3f}",
                    f"{cost['floor_ratio']:.2f}",
                    f"{cost['peak_bytes']['median'] / 1e6:.0f}",
                )
                gained = (
                    f"{gain['median']:.2f}",
                    f"{gain['low']:.2f} to {gain['high']:.2f}",
                    f"{point['flops_gain']:.2f}",
                    f"{point['memory_gain']:.2f}",
                )
                label = _label(sweep, point) if name == UNSHARED else ""
                rows.append((label, name, *measured, *(gained if name == SHARED else [""] * len(gained))))
        print_table(f"By {_SWEEPS[sweep]}", ("", *columns, *gains), rows)


def plot_scaling(path: Path, sweeps: Mapping[str, list[dict[str, Any]]], title: str) -> None:
    """Picture of time (above, with its floor) and memory (below) against what varies, a column a sweep."""
    figure = Figure(figsize=(13, 7.2), layout="constrained")
    grid = figure.subplots(2, len(sweeps), sharex="col", sharey="row", squeeze=False)
    for (above, below), (sweep, points) in zip(grid.T, sweeps.items(), strict=True):
        x = [_place(sweep, point) for point in points]
        if sweep != "prompt_share":
            below.set_xscale("log")  # the panel above shares it
        for name, style in _STYLES.items():
            costs = [point["layouts"][name] for point in points]
            _draw(above, x, [cost["seconds"] for cost in costs], 1, style, f"{name}, measured")
            floor = [cost["floor_seconds"] for cost in costs]
            above.plot(x, floor, color=style[0], linestyle="--", linewidth=1.2, label=f"{name}, floor")
            if not any(math.isnan(cost["peak_bytes"]["median"]) for cost in costs):  # not every system tells
                _draw(below, x, [cost["peak_bytes"] for cost in costs], 1e-6, style, name)
        below.set_xticks(x, [_label(sweep, point) for point in points])
        below.xaxis.set_minor_locator(NullLocator())
        below.tick_params(axis="x", labelrotation=45 if sweep == "size" else 0)
        below.set_xlabel(_SWEEPS[sweep])
        for axes in (above, below):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.grid(axis="y", which="major", color="#DDDDDD", linewidth=0.8)
            axes.set_axisbelow(True)
            axes.tick_params(labelleft=True)
    grid[0][0].set_ylabel("seconds a step")
    grid[1][0].set_ylabel("peak memory above resting, MB")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def _draw(
    axes: Axes, x: list[float], spreads: list[dict[str, float]], unit: float, style: tuple[str, str, float], label: str
) -> None:
    """Medians as points, with a bar from the least to the greatest."""
    colour, marker, aside = style
    if axes.get_xscale() == "log":
        x = [place * (max(x) / min(x)) ** aside for place in x]
    else:
        x = [place + (max(x) - min(x)) * aside for place in x]
    middle = [unit * s["median"] for s in spreads]
    ends = [[unit * (s["median"] - s["low"]) for s in spreads], [unit * (s["high"] - s["median"]) for s in spreads]]
    axes.errorbar(x, middle, ends, fmt=marker, color=colour, capsize=3, markersize=5, label=label)


def _place(sweep: str, point: Mapping[str, Any]) -> float:
    return float(point["linear_weights"] if sweep == "size" else point[sweep])


def _label(sweep: str, point: Mapping[str, Any]) -> str:
    return f"{100 * point[sweep]:.0f}" if sweep == "prompt_share" else f"{point[sweep]}"


def plot_learning_curves(
    path: Path, curves: Mapping[str, tuple[Tensor, Tensor]], panels: Mapping[str, list[str]], level: float
) -> None:
    """
    Picture of several methods' learning curves, mean and range over seeds, against generated tokens.

    A method has the tokens generated up to each step, and a measurement there, both of shape `(S, T)` for `S` seeds; a
    step is drawn at the mean of its seeds' tokens. A panel has at most three methods; those without a curve are left
    out. `level` is where the dotted line is drawn.
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
