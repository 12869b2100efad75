"""The figures of a study, drawn from its tables and curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ...pages.page import Block, Paragraph, Picture
from ...stats.intervals import Interval
from .tables import LONGER, REFERENCE, WINDOW, Table

# Colours of Okabe and Ito (2008), and a marker; a model has the same in every figure.
_STYLES = {
    "unbiased": ("#999999", "o"),
    "simple contrast": ("#E69F00", "s"),
    "weighted": ("#009E73", "D"),
    "context-aware": ("#CC79A7", "^"),
    "multi-scale": ("#0072B2", "v"),
    LONGER: ("#000000", "x"),
    "as TRL trains it": ("#E69F00", "s"),
    "best simple contrast": ("#D55E00", "P"),
}
_OTHER = ("#555555", ".")


def columns_of(table: Table) -> list[str]:
    """Names of all columns of a table, in which a cell may still lack."""
    return list(dict.fromkeys(column for row in table.values() for column in row))


def headings(columns: list[str]) -> list[str]:
    """Columns as a reader wants them."""
    return [column.replace("_", " ") for column in columns]


def points(table: Table, title: str, unit: str, name: str) -> Block:
    """Shares in percent with their intervals, models beside each other at every column; `name` is the file's."""
    if not any(table.values()):
        return _nothing_yet("model")
    figure, axes = _axes(3.8)
    columns, models = columns_of(table), [model for model, row in table.items() if row]
    for i, model in enumerate(models):
        shown = [(x, table[model][c].value) for x, c in enumerate(columns) if c in table[model]]
        places = [x + (i - (len(models) - 1) / 2) * 0.8 / len(models) for x, _ in shown]
        colour, marker = _STYLES.get(model, _OTHER)
        _error_bars(axes, places, [e for _, e in shown], 100, fmt=marker, color=colour, label=model)
    axes.set_xticks(range(len(columns)), headings(columns))
    axes.set(title=title, ylabel=unit)
    axes.legend(ncols=3, fontsize=8)
    return _picture(figure, name, f"{title}, {unit}.")


def lines(table: Table, title: str, unit: str, name: str, factor: float = 1) -> Block:
    """Estimates, times `factor`, against the number of pairs, which is the columns' name; `name` is the file's."""
    if not any(table.values()):
        return _nothing_yet("model")
    figure, axes = _axes(3.6)
    for i, (model, row) in enumerate(table.items()):
        places = [pairs * 1.02 ** (i - 1) for pairs in map(_number, row)]  # so that no bar hides another
        estimates = [estimate.value for estimate in row.values()]
        _error_bars(axes, places, estimates, factor, marker="o", color=_STYLES.get(model, _OTHER)[0], label=model)
    axes.set_xscale("log")
    columns = columns_of(table)
    axes.set_xticks([_number(column) for column in columns], columns)
    axes.set_xticks([], minor=True)
    axes.set(title=title, xlabel="preference pairs", ylabel=unit)
    axes.legend(fontsize=8)
    return _picture(figure, name, f"{title} by number of pairs.")


def differences(table: Table, model: str, unit: str, name: str) -> Block:
    """A row's differences in points, at every column; `name` is the file's."""
    shown = {column: e.difference for column, e in table.get(model, {}).items() if e.difference is not None}
    if not shown:
        return _nothing_yet("model")
    figure, axes = _axes(0.25 * len(shown) + 1.2)
    axes.axvline(0, color="black", linewidth=0.8)
    estimates, places = list(shown.values()), [-i for i in range(len(shown))]
    values = [100 * e.value for e in estimates]
    errors = [[100 * (e.value - e.low) for e in estimates], [100 * (e.high - e.value) for e in estimates]]
    axes.errorbar(values, places, xerr=errors, fmt="o", color=_STYLES["multi-scale"][0], capsize=3)
    axes.set_yticks(places, headings(list(shown)))
    axes.set(xlabel=unit)
    return _picture(figure, name, f"{unit}, by task.")


def curve_picture(curves: Mapping[str, Tensor]) -> Block:
    """The gold reward of each model by update, mean and range over the seeds, from curves `(S, T)`."""
    if not curves:
        return _nothing_yet("policy")
    figure, axes = _axes(3.8)
    for model, curve in curves.items():
        steps, (colour, _) = range(1, curve.size(1) + 1), _STYLES[model]
        axes.plot(steps, curve.mean(0), color=colour, label=model)
        axes.fill_between(steps, curve.amin(0), curve.amax(0), color=colour, alpha=0.12, linewidth=0)
    if REFERENCE in curves:
        level = curves[REFERENCE][:, -WINDOW:].mean().item()
        axes.axhline(level, color="black", linewidth=0.8, linestyle=":")
    axes.set(title="Gold reward of greedy responses to held-out prompts", xlabel="update", ylabel="gold reward")
    axes.legend(ncols=3, fontsize=8)
    caption = f"Mean and range over the seeds. Dotted: the level that {REFERENCE} reaches at its end."
    return _picture(figure, "curves", "Gold reward by update of the five preference models.", caption)


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, height), layout="constrained")
    return figure, figure.subplots()


def _error_bars(
    axes: Axes, places: Sequence[float], estimates: Sequence[Interval], factor: float, **style: Any
) -> None:
    values = [factor * e.value for e in estimates]
    errors = [[factor * (e.value - e.low) for e in estimates], [factor * (e.high - e.value) for e in estimates]]
    axes.errorbar(places, values, errors, capsize=3, **style)


def _picture(figure: Figure, name: str, alt: str, caption: str = "Bars are 95% intervals.") -> Picture:
    return Picture(figure, name, alt, caption, wide=True)


def _nothing_yet(what: str) -> Paragraph:
    return Paragraph(f"No {what} has all its seeds yet.")


def _number(column: str) -> int:
    return int(column.replace(",", ""))
