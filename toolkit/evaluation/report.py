"""Figures of an evaluation as tables in the terminal, as JSON, and as a page."""

import math
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from ..pages.page import Block, Page, Paragraph, Picture, Section, Settings, Table, interval_picture, number
from ..pages.pair_pictures import length_picture, reliability_picture, score_histogram
from ..pages.tables import interval_cells, print_table
from ..stats.intervals import Interval, PairAccuracy
from .figures import BestOf, Figures
from .pairs import Scored, ScoredPairs
from .scorers import RULE
from .verdict import points, ranking, verdict

_DIGITS = 12  # of a figure in JSON: what is beyond them hangs on the order of a sum
_MOST_ROWS = 20  # of a table in the terminal
_MOST_CURVES = 4


def print_figures(figures: Figures) -> None:
    """Print the verdict, and the tables that it follows from."""
    print(verdict(figures), end="\n\n")
    for table in (table for tables in all_tables(figures).values() for table in tables):
        print_table(table.caption, table.header, table.rows[:_MOST_ROWS])
        if len(table.rows) > _MOST_ROWS:
            print(f"{len(table.rows) - _MOST_ROWS} more rows are in `--output_file` and on `--page`.")


def plain(value: Any) -> Any:
    """Figures as JSON holds them: named tuples as objects, numbers with 12 digits, what is not finite as null."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(item) for name, item in value._asdict().items()}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def all_tables(figures: Figures) -> dict[str, list[Table]]:
    """All tables of an evaluation, by the heading that they stand under."""
    models = figures.models
    accuracy = [(name, *_accuracy(model.accuracy)) for name, model in models.items()]
    scales = [
        (f"{name}: {scale}", *_accuracy(found))
        for name, model in models.items()
        for scale, found in model.scales.items()
    ]
    header = ("score", "accuracy, %", "95% interval", "ties", "pairs")
    found = {"Accuracy": [Table(header, accuracy, "Pairs ranked right")]}
    if scales:
        found["Accuracy"].append(Table(header, scales, "Scales of the multi-scale models"))
    found["Differences"] = [_differences(figures)]
    found["Calibration"] = [_calibration(figures)]
    found["Length"] = [_length(figures)]
    groups = list(dict.fromkeys(group for model in models.values() for group in model.groups))
    if groups:
        found["Parts of the data"] = [_by_group(figures, group) for group in groups]
    if any(model.attributes for model in models.values()):
        parts = {name: model.attributes for name, model in models.items()}
        found["Attributes"] = [_by_part(parts, "attribute", "Pairs of which the side with more of it is higher")]
    if any(model.best_of for model in models.values()):
        found["Best of several"] = _best_of(figures)
    if any(model.lists for model in models.values()):
        found["Ranked lists"] = [_lists(figures)]
    return found


def build_page(figures: Figures, scored: list[Scored], pairs: ScoredPairs, settings: Mapping[str, Any]) -> Page:
    """
    The page of an evaluation.

    Args:
        figures ([`~toolkit.evaluation.figures.Figures`]):
            Its figures.
        scored (`list[Scored]`):
            The scores that they were made of.
        pairs ([`~toolkit.evaluation.pairs.ScoredPairs`]):
            The pairs.
        settings (`Mapping[str, Any]`):
            Options that it was started with.

    Returns:
        [`~toolkit.pages.page.Page`]
    """
    pictures = {
        "Accuracy": [_accuracy_picture(figures)],
        "Calibration": [_reliability(figures)],
        "Length": _length_pictures(scored, pairs),
    }
    sections = []
    for heading, tables in all_tables(figures).items():
        blocks: list[Block] = [*tables[:1], *pictures.get(heading, []), *tables[1:]]
        sections.append(Section(heading, [Paragraph(_EXPLAINED[heading]), *blocks]))
    sections.append(Section("Scores of both sides", _histograms(scored, pairs)))
    sections.append(Section("Settings", [Settings("How it was started", settings, unfolded=True)]))
    names = [name for name, model in figures.models.items() if model.kind != RULE]
    return Page(
        title=f"Evaluation: {', '.join(names)}",
        lead=verdict(figures),
        sections=sections,
        footer=f"Written by prefscale {version('prefscale')}. docs/evaluation.md says how each figure is made.",
    )


_EXPLAINED = {
    "Accuracy": "A pair is ranked right where the chosen response scores higher; a tie counts as half. Pairs of one "
    "prompt are not independent, and the intervals count them accordingly.",
    "Differences": "By how many percentage points the first score ranks more pairs right than the second, on the same "
    "pairs, by a bootstrap over prompts. The last column holds for all differences together (Holm).",
    "Calibration": "The gap of two scores, taken for log-odds, gives a probability that the chosen response wins. The "
    "error is its mean distance from what was found; scores that are calibrated exceed the next column once in "
    "twenty times. The temperature divides the gaps; what is after it comes from temperatures of other prompts.",
    "Length": "What is ranked right where length cannot tell: among pairs of like length, and after the part of each "
    "gap that goes with the logarithm of the ratio of lengths is taken out.",
    "Parts of the data": "Accuracy on parts, with intervals. Among many parts some lie high and some low by chance.",
    "Attributes": "Of the pairs whose sides differ in an attribute, the share in which the one with more of it is the "
    "higher one: by the output that was taught this attribute where the model has one, else by the score.",
    "Ranked lists": "Kendall's rank correlation of scores and ranking (1 is the same order), and how often the "
    "response with the highest score is one of the best rank, with intervals of a bootstrap over prompts.",
    "Best of several": "How often the response with the highest score is a right one, of three or more to one prompt.",
}


def _accuracy(found: PairAccuracy) -> tuple[str, ...]:
    return (*interval_cells(found, 1, 100), str(found.ties), f"{found.pairs:,}")


def _differences(figures: Figures) -> Table:
    rows = [
        (f"{each.first} − {each.second}", *points(each), f"{each.p:.2g}", f"{each.p_of_family:.2g}")
        for each in figures.differences
    ]
    header = ("scores", "difference, points", "95% interval", "p", "p of all")
    return Table(header, rows, "Differences in accuracy on the same pairs")


def _calibration(figures: Figures) -> Table:
    header = ("score", "log-loss", "error, %", "by chance, %", "temperature", "log-loss after", "error after, %")
    rows = []
    for name, model in figures.models.items():
        found = model.calibration
        rows.append(
            (
                name,
                number(found.log_loss),
                _percent(found.error),
                _percent(found.error_by_chance),
                number(found.temperature),
                number(found.scaled_log_loss),
                _percent(found.scaled_error),
            )
        )
    return Table(header, rows, "Calibration of the gaps; a constant score has the log-loss 0.6931")


def _length(figures: Figures) -> Table:
    header = ("score", "like length, %", "95% interval", "pairs", "regressed out, %", "95% interval", "correlation")
    rows = []
    for name, model in figures.models.items():
        found = model.length
        like, out = interval_cells(found.like_length, 1, 100), interval_cells(found.regressed_out, 1, 100)
        rows.append((name, *like, f"{found.like_length.pairs:,}", *out, number(found.correlation)))
    return Table(header, rows, "Accuracy beside length; correlation of score and length")


def _by_group(figures: Figures, group: str) -> Table:
    return _by_part(
        {name: model.groups[group] for name, model in figures.models.items()}, group, f"Accuracy by {group}"
    )


def _by_part(parts: dict[str, dict[str, PairAccuracy]], column: str, caption: str) -> Table:
    """Accuracy of every model on each part, `parts` by model and label."""
    rows = []
    for label, found in next(iter(parts.values())).items():
        each = [part[label] for part in parts.values()]
        cells = [f"{100 * part.value:.1f} ({' to '.join(_bounds(part))})" for part in each]
        rows.append((label, f"{found.pairs:,}", *cells))
    return Table((column, "pairs", *parts), rows, f"{caption}, %, with 95% intervals")


def _bounds(found: PairAccuracy) -> Iterable[str]:
    return (f"{100 * bound:.1f}" for bound in (found.low, found.high))


def _best_of(figures: Figures) -> list[Table]:
    header = ("score", "right, %", "95% interval", "at random, %", "sets")
    found = {name: model.best_of for name, model in figures.models.items() if model.best_of}
    tables = [Table(header, [_best(name, best) for name, best in found.items()], "Best of several")]
    by_subset = [
        _best(f"{name}: {subset}", best)
        for name, model in figures.models.items()
        for subset, best in model.best_of_subsets.items()
    ]
    if by_subset:
        tables.append(Table(header, by_subset, "Best of several, by subset"))
    if figures.undecided_prompts:
        left = (
            f"{figures.undecided_prompts:,} other prompts have three responses or more and none that beat all others"
        )
        tables[0] = tables[0]._replace(caption=f"Best of several ({left})")
    return tables


def _best(name: str, best: BestOf) -> tuple[str, ...]:
    value, interval = interval_cells(Interval(best.value, best.low, best.high), 1, 100)
    return name, value, interval, _percent(best.chance), f"{best.sets:,}"


def _lists(figures: Figures) -> Table:
    header = ("score", "Kendall's τ", "95% interval", "best found, %", "95% interval", "lists")
    rows = [
        (name, *interval_cells(found.kendall_tau, 3), *interval_cells(found.top_1, 1, 100), f"{found.lists:,}")
        for name, model in figures.models.items()
        if (found := model.lists)
    ]
    return Table(header, rows, "Ranked lists")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _accuracy_picture(figures: Figures) -> Picture:
    percent = {name: Interval(*(100 * x for x in model.accuracy[:3])) for name, model in figures.models.items()}
    rules = [name for name, model in figures.models.items() if model.kind == RULE]
    rule = (rules[0], percent.pop(rules[0])) if rules else None
    return interval_picture(percent, "Pairs ranked right", "%", "accuracy", 50.0, rule)


def _reliability(figures: Figures) -> Picture:
    names = ranking(figures)
    shown = [
        name for name in figures.models if name in names[:_MOST_CURVES]
    ]  # in the order, so the colours, of others
    bins = {name: list(figures.models[name].calibration.reliability) for name in shown}
    picture = reliability_picture(bins)
    some = f" Of {len(names)} scores the {_MOST_CURVES} that rank most pairs right." if len(names) > len(bins) else ""
    return picture._replace(caption=picture.caption + some)


def _length_pictures(scored: list[Scored], pairs: ScoredPairs) -> list[Picture]:
    pictures = []
    for i, each in enumerate(each for each in scored if each.kind != RULE and each.gaps is None):
        sides = [(pairs.lengths[side].tolist(), each.scores[side].tolist()) for side in (pairs.chosen, pairs.rejected)]
        pictures.append(length_picture(*sides[0], *sides[1], title=each.name, name=f"length-{i + 1}"))
    return pictures


def _histograms(scored: list[Scored], pairs: ScoredPairs) -> list[Picture]:
    models = [each for each in scored if each.kind != RULE and each.gaps is None]
    return [
        score_histogram(
            each.scores[pairs.chosen].tolist(), each.scores[pairs.rejected].tolist(), each.name, f"scores-{i + 1}"
        )
        for i, each in enumerate(models)
    ]
