"""The page of the grid on a frozen decoder."""

from collections.abc import Sequence
from typing import Any

from ...pages.page import Block, Page, Paragraph, Section
from ...pages.page import Table as Cells
from .decoder import BEST, MIX, PLANS, TRL, DecoderStudy
from .decoder_stages import choices
from .decoder_tables import (
    accuracy_table,
    complete,
    corrected,
    fewer_pairs_table,
    gates,
    numbers_table,
    on_test_pairs,
    scale_table,
    searched,
    transfer_table,
)
from .figures import differences, lines
from .grid import Study
from .tables import Table, estimates, interval_text

MEANS = ("headline", "first look")


def decoder_page(study: Study) -> tuple[Page, dict[str, Any]]:
    """The page as far as the grid has come, and its tables."""
    settings: DecoderStudy = study.settings
    names = complete(study)
    against = accuracy_table(study, MIX)
    tables: dict[str, Any] = {
        "accuracy": against,
        "seen": accuracy_table(study, MIX, on_test_pairs(study, seen=True)),
        "scales": scale_table(study),
        "numbers": numbers_table(study),
        "fewer pairs": fewer_pairs_table(study),
        "transfer": transfer_table(study),
        "p": corrected(against, BEST, names),
        "gates": {m: gates(study, m) for m in settings.models if PLANS[m].context == "gate"},
        "search": {m: searched(study, m) for m in settings.models},
    }
    lead = (
        "Heads on a decoder that is not trained further, on pairs of "
        f"{len(names)} tasks, none of whose prompts is in both halves: share of test pairs ranked right, %. Of every "
        "model layer, token, rate and decay were chosen on development folds, over all tasks at once. Brackets are "
        f"95% intervals over {len(settings.seeds)} seeds and over clusters of pairs; differences are paired."
    )
    sections = [
        Section("What the structure is worth", _worth(against, tables["p"])),
        Section("Accuracy by task", [_by_task(against, names)]),
        Section("Scales", [_two(tables["scales"], "scale", "The mix above its own scale")]),
        Section("Fewer pairs", _numbers(tables["numbers"], tables["fewer pairs"])),
        Section("Transfer", _both(tables["transfer"], "Trained on one task and tested on another, %.")),
        Section("Gates", _gates(tables["gates"])),
        Section("Choices", [*_choices(study), _search(tables["search"])]),
        Section("Test pairs with a text that is trained on", [_two(tables["seen"], "model", "multi-scale above it")]),
    ]
    return Page("Preference models on a frozen decoder", lead, sections), tables


def _worth(table: Table, p: dict[str, float]) -> list[Block]:
    """The means of every model, and the default's difference from the best simple contrast on each task."""
    text = (
        f"“{TRL}”: the last token of the template at the last layer. “{BEST}”: the layer and the token that serve it "
        "best. In a mean kinds of tasks weigh the same. The first look is on tasks that an earlier look had compared "
        "such models on."
    )
    picture = differences(table, BEST, f"{MIX} less {BEST}, points", "differences")
    row = (f"{MIX} above {BEST}", *(f"{value:.2g}" for value in p.values()))
    return [
        Paragraph(text),
        _two(table, "model", "multi-scale above it"),
        picture,
        Cells(("p, Holm-corrected over tasks", *p), [row] if p else []),
    ]


def _two(table: Table, first: str, above: str) -> Cells:
    """The two means, and the default's difference from each row."""
    columns = [c for c in MEANS if any(c in row for row in table.values())]
    rows = []
    for model, row in table.items():
        cells = [model]
        for column in columns:
            found = row.get(column)
            cells.append(interval_text(found.value, 100) if found else "to come")
            cells.append(interval_text(found.difference, 100, sign=True) if found and found.difference else "–")
        rows.append(tuple(cells))
    header = [text for column in columns for text in (column, f"{above}, {column}")]
    return Cells((first, *header), rows)


def _by_task(table: Table, names: Sequence[str]) -> Cells:
    rows = [
        (name, *(interval_text(row[name].value, 100) if name in row else "–" for row in table.values()))
        for name in names
    ]
    return Cells(("task", *table), rows)


def _both(table: Table, caption: str) -> list[Block]:
    """A table, and how much the default lies above its rows."""
    blocks = list[Block]()
    for difference, text in ((False, caption), (True, "Multi-scale above it, in points.")):
        columns, rows = estimates(table, difference)
        blocks.append(Cells(("model", *columns), rows, text))
    return blocks


def _numbers(table: Table, fewer: Table) -> list[Block]:
    caption = "By number of training pairs, mean of the tasks that have 500, and for 1,000 of those that have so many."
    # A line is of the same tasks throughout
    same = {model: {c: found for c, found in row.items() if c != "1,000"} for model, row in table.items()}
    title = "Accuracy on the tasks that have 500 training pairs"
    picture = lines(same, title, "test pairs ranked right, %", "numbers", 100)
    columns, rows = estimates(fewer, True)
    beside = f"How much it lies above {BEST} with the pairs of the column, in points."
    return [picture, *_both(table, caption), Cells(("model", *columns), rows, beside)]


def _gates(found: dict[str, dict[str, list[float]]]) -> list[Block]:
    header = ("task", *PLANS[MIX].scales, "share of gates beyond 0.9")
    return [
        Cells(header, [(task, *(f"{each:.2f}" for each in row)) for task, row in rows.items()], model)
        for model, rows in found.items()
        if rows
    ]


def _choices(study: Study) -> list[Block]:
    rows = [
        (model, str(chosen.layer), chosen.reading, f"{chosen.rate:g}", f"{chosen.decay:g}")
        for model in study.settings.models
        if (chosen := choices(study, model)[None])
    ]
    caption = "By the mean over all training halves. Each test half has its own choice, from training halves alone."
    return [Cells(("model", "layer", "token of the response", "rate", "decay"), rows, caption)]


def _search(found: dict[str, dict[str, float]]) -> Cells:
    rows = [(model, place, f"{100 * right:.2f}") for model, by in found.items() for place, right in by.items()]
    return Cells(("model", "layer and token", "development accuracy, %, at its best rate and decay"), rows)
