"""The figures of a study, drawn from its tables and curves."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from torch import Tensor

from ...pages.page import Block, Paragraph, Picture
from .tables import LONGER, REFERENCE, WINDOW, Table

# Colours of Okabe and Ito (2008), and a marker; a model has the same in every figure.
_STYLES = {
    "unbiased": ("#999999", "o"),
    "simple contrast": ("#E69F00", "s"),
    "weighted": ("#009E73", "D"),
    "context-aware": ("#CC79A7", "^"),
    "multi-scale": ("#0072B2", "v"),
    LONGER: ("#000000", "x"),
}
_OTHER = ("#555555", ".")


def columns_of(table: Table) -> list[str]:
    """Names of all columns of a table, in which a cell may still lack."""
    return list(dict.fromkeys(column for row in table.values() for column in row))


def headings(columns: list[str]) -> list[str]:
    """Columns as a reader wants them."""
    return [column.replace("_", " ") for column in columns]


def points(table: Table, title: str, unit: str, name: str) -> Block:
    """
    Estimates with intervals, models beside each other at every column.

    Args:
        table (`Table`):
            Shares by model and column.
        title (`str`):
            Title.
        unit (`str`):
            What the shares are, in percent.
        name (`str`):
            Name of the picture's file.

    Returns:
        [`~toolkit.pages.page.Picture`], or a paragraph where no model has a cell.
    """
    if not any(table.values()):
        return Paragraph("No model has all its seeds yet.")
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes, columns = figure.subplots(), columns_of(table)
    models = [model for model, row in table.items() if row]
    for i, model in enumerate(models):
        found = [(x, table[model][c].value) for x, c in enumerate(columns) if c in table[model]]
        places = [x + (i - (len(models) - 1) / 2) * 0.8 / len(models) for x, _ in found]
        values = [100 * e.value for _, e in found]
        errors = [[100 * (e.value - e.low) for _, e in found], [100 * (e.high - e.value) for _, e in found]]
        colour, marker = _STYLES.get(model, _OTHER)
        axes.errorbar(places, values, errors, fmt=marker, capsize=3, color=colour, label=model)
    axes.set_xticks(range(len(columns)), headings(columns))
    axes.set(title=title, ylabel=unit)
    axes.legend(ncols=3, fontsize=8)
    return Picture(figure, name, f"{title}, {unit}.", "Bars are 95% intervals.", wide=True)


def lines(table: Table, title: str, unit: str, name: str, factor: float = 1) -> Block:
    """
    Estimates against the number of pairs.

    Args:
        table (`Table`):
            Figures by model and number of pairs, which are the columns' names.
        title (`str`):
            Title.
        unit (`str`):
            Unit of the figures, times `factor`.
        name (`str`):
            Name of the picture's file.
        factor (`float`, *optional*, defaults to `1`):
            What the figures are multiplied by.

    Returns:
        [`~toolkit.pages.page.Picture`], or a paragraph where no model has a cell.
    """
    if not any(table.values()):
        return Paragraph("No model has all its seeds yet.")
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for i, (model, row) in enumerate(table.items()):
        sizes = [int(column.replace(",", "")) * 1.02 ** (i - 1) for column in row]  # so that no bar hides another
        found = [estimate.value for estimate in row.values()]
        values = [factor * e.value for e in found]
        errors = [[factor * (e.value - e.low) for e in found], [factor * (e.high - e.value) for e in found]]
        axes.errorbar(sizes, values, errors, marker="o", capsize=3, color=_STYLES[model][0], label=model)
    axes.set_xscale("log")
    sizes = [int(column.replace(",", "")) for column in columns_of(table)]
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set(title=title, xlabel="preference pairs", ylabel=unit)
    axes.legend(fontsize=8)
    return Picture(figure, name, f"{title} by number of pairs.", "Bars are 95% intervals.", wide=True)


def curve_picture(curves: Mapping[str, Tensor]) -> Block:
    """
    The gold reward by update, mean and range over the seeds.

    Args:
        curves (mapping of `str` to `torch.Tensor` of shape `(S, T)`, float):
            Of each model, gold reward after each update by seed.

    Returns:
        [`~toolkit.pages.page.Picture`], or a paragraph where there is no curve.
    """
    if not curves:
        return Paragraph("No policy has all its seeds yet.")
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes = figure.subplots()
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
    return Picture(figure, "curves", "Gold reward by update of the five preference models.", caption, wide=True)
