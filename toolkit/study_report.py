"""The page of a study: its tables, figures, examples and settings, read from its folder."""

import json
import math
from collections.abc import Sequence
from dataclasses import fields
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from .metrics import Interval
from .page import Block, Example, Examples, Page, Paragraph, Picture, Response, Section, Settings, write_page
from .page import Table as Cells
from .reward_config import PREFERENCE_MODELS
from .run_record import read_json, write_json
from .sandbox import sample_prompts
from .scripting import SANDBOX_TEST_SEED
from .study import SETTINGS_FILE, Study
from .study_encoder import encoder_name
from .study_real import RealStudy, real_name
from .study_sandbox import SandboxStudy, last_tenth, policy_name, reward_name, start_name, table_baseline
from .study_tables import (
    REFERENCE,
    WINDOW,
    Table,
    ablation_table,
    baseline_table,
    curves,
    finite,
    gradient_table,
    instability_table,
    main_table,
    real_table,
    size_table,
    task_table,
)

# Okabe and Ito (2008); a model has the same colour in every figure.
_COLOURS = {
    "unbiased": "#999999",
    "simple contrast": "#E69F00",
    "weighted": "#009E73",
    "context-aware": "#CC79A7",
    "multi-scale": "#0072B2",
}


FORMS = {"convergence steps": "{:.0f}", "instability": "{:.3f}"}  # of columns that are no shares


def open_study(folder: Path) -> Study:
    """
    The study in a folder.

    Args:
        folder (`Path`):
            Folder of a study.

    Returns:
        [`~toolkit.study.Study`]

    Raises:
        `ValueError`: If its settings are damaged or of another version.
    """
    file = folder / SETTINGS_FILE
    saved = read_json(file, dict, "Restore it.")
    kinds = {kind.__name__: kind for kind in (SandboxStudy, RealStudy)}
    kind = kinds.get(saved.pop("kind", None))
    if kind is None or set(saved) != {field.name for field in fields(kind)}:
        raise ValueError(f"'{file}' holds no settings of a study of this version. Run `recipes/study.py` anew.")
    return Study(folder, kind(**saved))


def write_study_report(folder: Path) -> Path:
    """
    Write the page of a study as far as it has come, its pictures and `tables.json`, into `report/` in its folder.

    Args:
        folder (`Path`):
            Folder of a study.

    Returns:
        `Path`: The page.

    Raises:
        `ValueError`: If no cell has ended, or a file is damaged.
    """
    study = open_study(folder)
    ended = sorted((folder / "cells").glob("*.json"))
    if not ended:
        raise ValueError(f"The study in '{folder}' is empty: no cell has ended. Run `recipes/study.py` first.")
    build = _sandbox_page if isinstance(study.settings, SandboxStudy) else _real_page
    title, lead, sections, tables = build(study)
    sections.append(_settings_section(study, ended))
    page = write_page(Page(title, lead, sections), folder / "report")
    write_json(page.parent / "tables.json", finite(tables))
    return page


def _sandbox_page(study: Study) -> tuple[str, str, list[Section], dict[str, Any]]:
    settings = study.settings
    table, tasks, sizes, unstable = main_table(study), task_table(study), size_table(study), instability_table(study)
    ablations, baselines, noise = ablation_table(study), baseline_table(study), gradient_table(study)
    lead = (
        "Five preference models, each the reward of a policy tuned by REINFORCE in the sandbox, where the true "
        f"reward is known. {len(settings.seeds)} seeds; {settings.table_size:,} pairs unless another number is given. "
        f"Brackets are 95% intervals: bootstrap over seeds and held-out rows. Differences are paired."
    )
    sections = [
        Section(
            "Table 1: the five preference models",
            [
                *_both(table, f"Above {REFERENCE}, on the same seeds and rows."),
                *_curve_pictures(study),
            ],
        ),
        Section(
            "Figure 2: accuracy by task",
            [
                _points(tasks, "Accuracy by task", "held-out pairs ranked right, %", "tasks"),
                *_both(tasks, f"Above {REFERENCE}."),
            ],
        ),
        Section(
            "Accuracy by number of pairs",
            [
                Paragraph(f"A training sees {settings.pairs_seen:,} pairs, or all once where there are more of them."),
                _lines(sizes, "Accuracy", "held-out pairs ranked right, %", "sizes", 100),
                *_both(sizes, "Above the weighted model."),
            ],
        ),
        Section(
            "Figure 3: instability by number of pairs",
            [
                Paragraph(
                    "Standard deviation of the gold reward after successive updates around its trend, in the second "
                    "half of training: greedy responses to the same held-out prompts, so that sampling adds nothing."
                ),
                _lines(unstable, "Instability", "gold reward", "instability"),
                *_both(unstable, "Above the weighted model.", form=FORMS["instability"]),
                Cells(
                    ("model", "noise to signal of a gradient, median (range over seeds)"),
                    [(model, _interval(i, "{:.3g}")) for model, i in noise.items()],
                    "At the policy that training starts from.",
                ),
            ],
        ),
        Section("Ablations", [*_both(ablations, "Above the whole multi-scale model."), _scale_table(study)]),
        Section("Baselines", _both(baselines, "Above the table's baseline.", "baseline")),
        Section("Examples", [_examples(study)]),
        Section("Learning rates", [_search_table(study)]),
    ]
    tables = {"table 1": table, "figure 2": tasks, "sizes": sizes, "figure 3": unstable, "gradient": noise}
    tables |= {"ablations": ablations, "baselines": baselines}
    return "Preference models in the sandbox", lead, sections, tables


def _real_page(study: Study) -> tuple[str, str, list[Section], dict[str, Any]]:
    settings, table = study.settings, real_table(study)
    encoded = real_table(study, encoder_name) if settings.encoder else {}
    lead = (
        "Five preference models, and variants of multi-scale, on real pairs: share of held-out pairs ranked right. "
        f"{len(settings.seeds)} seeds; brackets are 95% intervals, bootstrap over seeds and held-out prompts. "
        "Differences are paired. No prompt of a held-out pair was trained on."
    )
    division = study.result("decoder") or {}
    sizes = [
        (
            task,
            *(f"{found[key]:,}" for key in ("train_pairs", "test_pairs", "left_out")),
            f"{len(set(found['units'])):,}",
        )
        for task, found in division.items()
    ]
    sections = [
        Section(
            "Accuracy by task",
            [
                _points(table, "Accuracy on real pairs", "held-out pairs ranked right, %", "real"),
                *_both(table, f"Above {REFERENCE}."),
            ],
        ),
        *_encoder_sections(encoded),
        Section("Data", [Cells(("task", "training pairs", "held-out pairs", "too long", "held-out prompts"), sizes)]),
        Section("Learning rates", [_real_search_table(study)]),
    ]
    return "Preference models on real pairs", lead, sections, {"accuracy": table, "accuracy on the encoder": encoded}


def _encoder_sections(table: Table) -> list[Section]:
    if not any(table.values()):
        return []
    text = "The same models as linear heads on a pretrained encoder that is not trained further."
    figure = _points(table, "Accuracy of heads on a frozen encoder", "held-out pairs ranked right, %", "encoder")
    return [Section("A pretrained encoder", [Paragraph(text), figure, *_both(table, f"Above {REFERENCE}.")])]


# Tables


def _interval(i: Interval, form: str, factor: float = 1.0, sign: bool = False) -> str:
    def shown(value: float) -> str:
        if not math.isfinite(value):
            return "never" if value > 0 else "–"
        text = form.format(factor * value)
        return f"+{text}" if sign and value > 0 else text

    if i.low == -math.inf and i.high == math.inf:
        return shown(i.value)  # one seed says nothing of its error
    return f"{shown(i.value)} ({shown(i.low)} to {shown(i.high)})"


def _columns(table: Table) -> list[str]:
    return list(dict.fromkeys(column for row in table.values() for column in row))


def _both(table: Table, caption: str, first: str = "model", form: str | None = None) -> list[Block]:
    """A table's estimates, and their differences."""
    return [_cells(table, first, form), _differences(table, caption, form)]


def _cells(table: Table, first: str, form: str | None) -> Cells:
    columns = _columns(table)
    rows = [
        (name, *(_shown(row[c].value, form or FORMS.get(c)) if c in row else "to come" for c in columns))
        for name, row in table.items()
        if row
    ]
    return Cells((first, *_headings(columns)), rows)


def _differences(table: Table, caption: str, form: str | None) -> Cells:
    columns = [c for c in _columns(table) if any(c in row and row[c].difference for row in table.values())]
    rows = [
        (
            name,
            *(
                _shown(row[c].difference, form or FORMS.get(c), True) if c in row and row[c].difference else "–"
                for c in columns
            ),
        )
        for name, row in table.items()
        if any(estimate.difference for estimate in row.values())
    ]
    return Cells(("difference", *_headings(columns)), rows, caption)


def _headings(columns: list[str]) -> list[str]:
    return [column.replace("_", " ") for column in columns]


def _shown(i: Interval, form: str | None, sign: bool = False) -> str:
    """Shares in percent, what has a form of its own as it is."""
    return _interval(i, form or "{:.1f}", 1 if form else 100, sign)


def _scale_table(study: Study) -> Cells:
    """Accuracy of each scale inside the multi-scale model."""
    settings, scales = study.settings, PREFERENCE_MODELS["multi-scale"]["scales"]
    cells = study.results([reward_name("multi-scale", settings.table_size, seed) for seed in settings.seeds])
    names = [*(f"accuracy/{scale}" for scale in scales), "accuracy"]
    rows = []
    for name in names if cells else []:
        values = [100 * cell["metrics"][f"test_{name}"] for cell in cells]
        label = name.partition("/")[2] or "mix"
        rows.append((label, f"{sum(values) / len(values):.1f} ({min(values):.1f} to {max(values):.1f})"))
    return Cells(("scale of the multi-scale model", "accuracy, mean (range over seeds)"), rows)


def _search_table(study: Study) -> Cells:
    settings, rows = study.settings, []
    size, seeds, baseline = settings.table_size, settings.search_seeds, table_baseline(settings)
    for model in settings.models:
        for rate in settings.reward_rates:
            found = study.results([reward_name(model, size, seed, rate) for seed in seeds])
            if found:
                accuracy = ", ".join(f"{100 * cell['metrics']['test_accuracy']:.1f}%" for cell in found)
                rows.append((model, f"{rate:g}", f"{accuracy} ranked right"))
        for rate in settings.policy_rates:
            found = study.result(policy_name(model, size, seeds[0], baseline, rate))
            if found:
                rows.append((f"{model}, policy", f"{rate:g}", f"{last_tenth(found['curve']):.2f} gold reward"))
    return Cells(("model", "learning rate", "on the search's seeds"), rows, "The best of each model was taken.")


def _real_search_table(study: Study) -> Cells:
    settings, rows = study.settings, []
    for task in settings.tasks:
        for model in (model for model in settings.models if model in PREFERENCE_MODELS):
            found = [(r, study.result(real_name(model, task, settings.search_seed, r))) for r in settings.rates]
            cells = [f"{100 * f['metrics']['test_accuracy']:.1f}" if f else "to come" for _, f in found]
            rows.append((f"{task}, {model}", *cells))
    header = ("accuracy on the search's pairs, %", *(f"{rate:g}" for rate in settings.rates))
    return Cells(header, rows, "The best of each row was taken; variants of multi-scale take its.")


# Figures


def _points(table: Table, title: str, unit: str, name: str) -> Block:
    """Estimates with intervals, models beside each other at every column."""
    if not any(table.values()):
        return Paragraph("No model has all its seeds yet.")
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes, columns = figure.subplots(), _columns(table)
    models = [model for model, row in table.items() if row]
    for i, (model, marker) in enumerate(zip(models, cycle("osD^vP*"), strict=False)):
        found = [(x, table[model][c].value) for x, c in enumerate(columns) if c in table[model]]
        places = [x + (i - (len(models) - 1) / 2) * 0.8 / max(len(models), 1) for x, _ in found]
        values = [100 * e.value for _, e in found]
        errors = [[100 * (e.value - e.low) for _, e in found], [100 * (e.high - e.value) for _, e in found]]
        colour = _COLOURS.get(model, "#555555")
        axes.errorbar(places, values, errors, fmt=marker, capsize=3, color=colour, label=model)
    axes.set_xticks(range(len(columns)), _headings(columns))
    axes.set(title=title, ylabel=unit)
    axes.legend(ncols=3, fontsize=8)
    return Picture(figure, name, f"{title}, {unit}.", "Bars are 95% intervals.", wide=True)


def _lines(table: Table, title: str, unit: str, name: str, factor: float = 1) -> Block:
    """Estimates, times a factor, against the number of pairs, which are the columns' names."""
    if not any(table.values()):
        return Paragraph("No model has all its seeds yet.")
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for i, (model, row) in enumerate(table.items()):
        sizes = [int(column.replace(",", "")) * 1.02 ** (i - 1) for column in row]  # so that no bar hides another
        found = [estimate.value for estimate in row.values()]
        errors = [[factor * (e.value - e.low) for e in found], [factor * (e.high - e.value) for e in found]]
        axes.errorbar(
            sizes, [factor * e.value for e in found], errors, marker="o", capsize=3, color=_COLOURS[model], label=model
        )
    axes.set_xscale("log")
    sizes = [int(column.replace(",", "")) for column in _columns(table)]
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set(title=title, xlabel="preference pairs", ylabel=unit)
    axes.legend(fontsize=8)
    return Picture(figure, name, f"{title} by number of pairs.", "Bars are 95% intervals.", wide=True)


def _curve_pictures(study: Study) -> list[Block]:
    settings = study.settings
    size, baseline = settings.table_size, table_baseline(settings)
    found = {m: curves(study, lambda seed, m=m: policy_name(m, size, seed, baseline)) for m in settings.models}
    found = {model: curve for model, curve in found.items() if curve is not None}
    if not found:
        return [Paragraph("No policy has all its seeds yet.")]
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for model, curve in found.items():
        steps = torch.arange(1, curve.size(1) + 1)
        axes.plot(steps, curve.mean(0), color=_COLOURS[model], label=model)
        axes.fill_between(steps, curve.amin(0), curve.amax(0), color=_COLOURS[model], alpha=0.12, linewidth=0)
    if REFERENCE in found:
        level = found[REFERENCE][:, -WINDOW:].mean().item()
        axes.axhline(level, color="black", linewidth=0.8, linestyle=":")
    axes.set(title="Gold reward of greedy responses to held-out prompts", xlabel="update", ylabel="gold reward")
    axes.legend(ncols=3, fontsize=8)
    caption = f"Mean and range over the seeds. Dotted: the level that {REFERENCE} reaches at its end."
    return [Picture(figure, "curves", "Gold reward by update of the five preference models.", caption, wide=True)]


def _examples(study: Study) -> Examples:
    settings, seed = study.settings, study.settings.seeds[0]
    prompts = sample_prompts(min(20, settings.test_prompts), SANDBOX_TEST_SEED)
    names = {"start": start_name(seed)} | {
        model: policy_name(model, settings.table_size, seed, table_baseline(settings))
        for model in (REFERENCE, "multi-scale")
    }
    found = {label: result for label, name in names.items() if (result := study.result(name)) is not None}
    rows = {task: i for i, task in reversed(list(enumerate(prompts["task"])))}  # the first prompt of every task
    cards = [
        Example(
            task.replace("_", " "),
            prompts["prompt"][i][-1]["content"],
            [
                Response(label, cell["responses"][i], {"gold reward": f"{cell['gold'][i]:.2f}"})
                for label, cell in found.items()
            ],
        )
        for task, i in rows.items()
    ]
    return Examples(cards if found else [])


def _settings_section(study: Study, ended: Sequence[Path]) -> Section:
    records = [study.record(file.stem) for file in ended]
    versions = {json.dumps(record["versions"], sort_keys=True) for record in records}
    hours = sum(record["seconds"] for record in records) / 3600
    threads = ", ".join(map(str, sorted({record["threads"] for record in records})))
    spent = f"{len(ended)} cells have ended; together they took {hours:.1f} hours. Threads of each: {threads}."
    found = [Settings("Versions", json.loads(text)) for text in sorted(versions)]
    return Section("Settings and versions", [Paragraph(spent), Settings("Settings", vars(study.settings)), *found])
