"""Tables in the terminal, and cells that the pages share with them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ..stats.intervals import Interval, PairAccuracy

if TYPE_CHECKING:  # a table of accuracies needs none of what policies need
    from ..judges.duels import PolicyComparison


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


def interval_cells(estimate: Interval | PairAccuracy, digits: int = 3, factor: float = 1) -> tuple[str, str]:
    """Two cells: an estimate and its interval, both times `factor`."""
    value, low, high = (f"{factor * x:.{digits}f}" for x in estimate[:3])
    return value, f"{low} to {high}"


def comparison_rows(comparison: "PolicyComparison") -> list[tuple[str, str, str]]:
    """Rows of what a judge says of two policies: a name, a mean and its interval."""
    wins = comparison.win_rate
    parts: dict[str, Interval | PairAccuracy] = {
        name: getattr(comparison, name) for name in ("before", "after", "gain")
    }
    parts[f"win rate ({wins.ties} ties)"] = wins
    return [(name, *interval_cells(part)) for name, part in parts.items()]


def print_accuracy(accuracies: Mapping[str, PairAccuracy], title: str = "Held-out accuracy") -> None:
    """Print accuracies by name with their 95% intervals, in percent."""
    rows = [(name, *interval_cells(a, 1, 100), str(a.ties), str(a.pairs)) for name, a in accuracies.items()]
    print_table(title, ("score", "accuracy %", "95% interval", "ties", "pairs"), rows)


def print_comparison(comparison: "PolicyComparison", title: str) -> None:
    """Print what a judge says of two policies, with 95% intervals."""
    print_table(title, ("", "mean", "95% interval"), comparison_rows(comparison))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; all columns but the first are set to the right."""
    table = Table()
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False, emoji=False)  # names of files may look like either
    if not console.is_terminal:
        console.width = 200  # a file has no width to fit into, and cells would be cut to that of a terminal
    console.print(title, style="bold", soft_wrap=True, highlight=False, markup=False)
    console.print(table)
