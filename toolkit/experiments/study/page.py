"""The page of a study: its tables, figures, examples and settings, read from its folder."""

import json
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from ...pages.page import Block, Example, Examples, Page, Paragraph, Response, Section, Settings, write_page
from ...pages.page import Table as Cells
from ...sandbox.rows import HELD_OUT_SEED, sample_prompts
from ...stats.intervals import Interval
from ...training.run_record import read_json, write_json
from .decoder import DecoderStudy
from .decoder_page import decoder_page
from .encoder import encoder_name, features_name
from .figures import columns_of, curve_picture, headings, lines, points
from .grid import SETTINGS_FILE, Study
from .lora import LoraStudy, lora_page
from .models import MULTI_SCALE
from .real import WITHOUT_STRENGTH, RealStudy, real_name
from .sandbox import SandboxStudy, last_tenth, policy_name, reward_name, start_name, table_baseline
from .tables import (
    LONGER,
    REFERENCE,
    CellName,
    Table,
    ablation_table,
    baseline_table,
    by_seed,
    curves,
    finite,
    gradient_table,
    instability_table,
    interval_text,
    main_table,
    real_table,
    size_table,
    task_table,
)
from .text_policy import TextPolicyStudy
from .text_policy_page import text_policy_page

_FEW_SEEDS = (
    "Where seeds differ more than rows, intervals from few seeds are too narrow: they then cover the truth in some "
    "84% of cases with five seeds and 75% with three."
)
FORMS = {"convergence steps": "{:.0f}", "instability": "{:.3f}"}  # of columns that are no shares


def open_study(folder: Path) -> Study:
    """The study in a folder; a `ValueError` if its settings are damaged or of another version."""
    file = folder / SETTINGS_FILE
    saved = read_json(file, dict, "Restore it.")
    kinds = {kind.__name__: kind for kind in (SandboxStudy, RealStudy, DecoderStudy, LoraStudy, TextPolicyStudy)}
    kind = kinds.get(saved.pop("kind", None))
    if kind is None or set(saved) != {field.name for field in fields(kind)}:
        raise ValueError(
            f"'{file}' holds no settings of a study of this version. Run `recipes/experiments/study.py` anew."
        )
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
        raise ValueError(
            f"The study in '{folder}' is empty: no cell has ended. Run `recipes/experiments/study.py` first."
        )
    make = {
        SandboxStudy: _sandbox_page,
        RealStudy: _real_page,
        DecoderStudy: decoder_page,
        LoraStudy: lora_page,
        TextPolicyStudy: text_policy_page,
    }
    page, tables = make[type(study.settings)](study)
    sections = [*page.sections, _settings_section(study, ended)]
    file = write_page(page._replace(sections=sections), folder / "report")
    write_json(file.parent / "tables.json", finite(tables))
    return file


def _sandbox_page(study: Study) -> tuple[Page, dict[str, Any]]:
    tables: dict[str, Any] = {
        "table 1": main_table(study),
        "figure 2": task_table(study),
        "sizes": size_table(study),
        "figure 3": instability_table(study),
        "gradient": gradient_table(study),
        "ablations": ablation_table(study),
        "baselines": baseline_table(study),
    }
    settings: SandboxStudy = study.settings
    size, baseline = settings.table_size, table_baseline(settings)
    by_update = {m: curves(study, partial(policy_name, m, size, baseline=baseline)) for m in settings.models}
    curve = curve_picture({model: gold for model, gold in by_update.items() if gold is not None})
    lead = (
        "Five preference models, each the reward of a policy tuned by REINFORCE in the sandbox, where the true "
        f"reward is known. {len(settings.seeds)} seeds; {size:,} pairs unless another number is given. "
        f"Brackets are 95% intervals: bootstrap over seeds and held-out rows. Differences are paired. {_FEW_SEEDS}"
    )
    seen = f"A training sees {settings.pairs_seen:,} pairs, or all once where there are more of them."
    right = "held-out pairs ranked right, %"
    blocks: dict[str, list[Block]] = {
        "Table 1: the five preference models": [
            *_both(tables["table 1"], f"Above {REFERENCE}, on the same seeds and rows."),
            curve,
        ],
        "Figure 2: accuracy by task": [
            points(tables["figure 2"], "Accuracy by task", right, "tasks"),
            *_both(tables["figure 2"], f"Above {REFERENCE}."),
        ],
        "Accuracy by number of pairs": [
            Paragraph(seen),
            lines(tables["sizes"], "Accuracy", right, "sizes", 100),
            *_both(tables["sizes"], "Above the weighted model."),
        ],
        "Figure 3: instability by number of pairs": _instability(tables["figure 3"], tables["gradient"]),
        "Ablations": [
            *_both(tables["ablations"], "Above the whole multi-scale model."),
            *_scale_table(study),
        ],
        "Baselines": _both(tables["baselines"], "Above the table's baseline.", "baseline"),
        "Examples": [_examples(study)],
        "Learning rates": [_search_table(study)],
    }
    sections = [Section(heading, parts) for heading, parts in blocks.items()]
    return Page("Preference models in the sandbox", lead, sections), tables


def _instability(table: Table, noise: dict[str, Interval]) -> list[Block]:
    text = (
        "Standard deviation of the gold reward after successive updates around its trend, in the second half of "
        "training: greedy responses to the same held-out prompts, so that sampling adds nothing."
    )
    return [
        Paragraph(text),
        lines(table, "Instability", "gold reward", "instability"),
        *_both(table, "Above the weighted model.", form=FORMS["instability"]),
        Cells(
            ("model", "noise to signal of a gradient, median (range over seeds)"),
            [(model, interval_text(i, form="{:.3g}")) for model, i in noise.items()],
            "At the policy that training starts from.",
        ),
    ]


def _real_page(study: Study) -> tuple[Page, dict[str, Any]]:
    settings, table = study.settings, real_table(study)
    encoded = real_table(study, encoder_name) if settings.encoder else {}
    lead = (
        "Five preference models on real pairs: share of held-out pairs ranked right. "
        f"{len(settings.seeds)} seeds; brackets are 95% intervals, bootstrap over seeds and held-out prompts. "
        f"Differences are paired. {_FEW_SEEDS}"
    )
    notes = [
        "In the mean every task weighs the same. Longer wins: the response of more tokens is preferred. Where a "
        f"task's files have no strengths ({', '.join(WITHOUT_STRENGTH)}), weighted is simple contrast, the same "
        "training.",
        "No prompt of a held-out pair was in the pairs that a reward model or the small decoder was trained on. The "
        "passages of SQuALITY's stories are in several prompts, though: its held-out questions are about stories that "
        "other questions of the training pairs are about.",
    ]
    sizes = [
        (
            task,
            *(f"{part[key]:,}" for key in ("train_pairs", "test_pairs", "left_out")),
            f"{len(set(part['units'])):,}",
        )
        for task, part in (study.result("decoder") or {}).items()
    ]
    sections = [
        Section(
            "Accuracy by task",
            [
                points(table, "Accuracy on real pairs", "held-out pairs ranked right, %", "real"),
                *_both(table, f"Above {REFERENCE}."),
                *map(Paragraph, notes),
                *_real_scale_table(study),
            ],
        ),
        *_encoder_sections(study, encoded),
        Section("Data", [Cells(("task", "training pairs", "held-out pairs", "too long", "held-out prompts"), sizes)]),
        Section("Learning rates", [_real_search_table(study)]),
    ]
    tables = {"accuracy": table, "accuracy on the encoder": encoded}
    return Page("Preference models on real pairs", lead, sections), tables


def _encoder_sections(study: Study, table: Table) -> list[Section]:
    if not any(row for model, row in table.items() if model != LONGER):
        return []
    settings: RealStudy = study.settings
    text = (
        "The same models as linear heads on a pretrained encoder that is not trained further. What it has read in "
        "its own pretraining may include the held-out prompts."
    )
    search, cuts = [], []
    for task in settings.tasks:
        for model in settings.models:
            if head := study.result(encoder_name(model, task, settings.seeds[0])):
                search.append((f"{task}, {model}", *(f"{100 * right:.1f}" for right in head["search"].values())))
        if features := study.result(features_name(task)):
            cuts.append((task, f"{features['responses']:,}", f"{features['cut']:,}"))
    rates = (f"{rate:g}" for rate in settings.encoder_rates)
    blocks = [
        Paragraph(text),
        points(table, "Accuracy of heads on a frozen encoder", "held-out pairs ranked right, %", "encoder"),
        *_both(table, f"Above {REFERENCE}."),
        Cells(("accuracy on the search's pairs, %", *rates), search, "The best of each row was taken."),
        Cells(("task", "responses", "cut with their prompts to the encoder's length"), cuts),
    ]
    return [Section("A pretrained encoder", blocks)]


# Tables


def _both(table: Table, caption: str, first: str = "model", form: str | None = None) -> list[Block]:
    """A table's estimates, and their differences: shares in percent, what has a form of its own as it is."""

    def shown(interval: Interval, column: str, sign: bool = False) -> str:
        own = form or FORMS.get(column)
        return interval_text(interval, 1 if own else 100, own or "{:.1f}", sign)

    columns = columns_of(table)
    values = [
        (name, *(shown(row[c].value, c) if c in row else "to come" for c in columns))
        for name, row in table.items()
        if row
    ]
    differences = {name: {c: e.difference for c, e in row.items() if e.difference} for name, row in table.items()}
    compared = [c for c in columns if any(c in row for row in differences.values())]
    rows = [
        (name, *(shown(row[c], c, sign=True) if c in row else "–" for c in compared))
        for name, row in differences.items()
        if row
    ]
    return [
        Cells((first, *headings(columns)), values),
        Cells(("difference", *headings(compared)), rows, caption),
    ]


def _scale_table(study: Study) -> list[Block]:
    """Accuracy of each scale inside the multi-scale model."""
    shown = _by_scale(study, partial(reward_name, "multi-scale", study.settings.table_size))
    header = ("scale of the multi-scale model", "accuracy, mean (range over seeds)")
    return [Cells(header, list(shown.items()))] if shown else []


def _real_scale_table(study: Study) -> list[Block]:
    """Accuracy of each scale inside the multi-scale model, by task."""
    shown = {task: _by_scale(study, partial(real_name, "multi-scale", task)) for task in study.settings.tasks}
    rows = [(task, *row.values()) for task, row in shown.items() if row]
    header = ("scale of the multi-scale model", *MULTI_SCALE["scales"], "mix")
    return [Cells(header, rows, "Accuracy, %, mean (range over seeds).")] if rows else []


def _by_scale(study: Study, name: CellName) -> dict[str, str]:
    """Accuracy of the scales and the mix of multi-scale models in percent, where all seeds have ended."""

    def percent(key: str, cell: dict[str, Any]) -> float:
        return 100 * float(cell["metrics"][key])

    keys = {scale: f"test_accuracy/{scale}" for scale in MULTI_SCALE["scales"]} | {"mix": "test_accuracy"}
    shown = {}
    for scale, key in keys.items():
        accuracy = by_seed(study, name, partial(percent, key))
        if accuracy is not None:
            values = accuracy.tolist()
            shown[scale] = f"{sum(values) / len(values):.1f} ({min(values):.1f} to {max(values):.1f})"
    return shown


def _search_table(study: Study) -> Cells:
    settings, rows = study.settings, []
    size, seeds, baseline = settings.table_size, settings.search_seeds, table_baseline(settings)
    for model in settings.models:
        for rate in settings.reward_rates:
            if cells := study.results(reward_name(model, size, seed, rate) for seed in seeds):
                accuracy = ", ".join(f"{100 * cell['metrics']['test_accuracy']:.1f}%" for cell in cells)
                rows.append((model, f"{rate:g}", f"{accuracy} ranked right"))
        for rate in settings.policy_rates:
            if cell := study.result(policy_name(model, size, seeds[0], baseline, rate)):
                rows.append((f"{model}, policy", f"{rate:g}", f"{last_tenth(cell['curve']):.2f} gold reward"))
    return Cells(("model", "learning rate", "on the search's seeds"), rows, "The best of each model was taken.")


def _real_search_table(study: Study) -> Cells:
    settings, rows = study.settings, []
    for task in settings.tasks:
        for model in settings.models:
            cells = [study.result(real_name(model, task, settings.search_seed, rate)) for rate in settings.rates]
            accuracy = [f"{100 * cell['metrics']['test_accuracy']:.1f}" if cell else "to come" for cell in cells]
            pairs = next((f"{len(cell['gaps']):,}" for cell in cells if cell), "to come")
            rows.append((f"{task}, {model}", pairs, *accuracy))
    header = ("accuracy on the search's pairs, %", "pairs", *(f"{rate:g}" for rate in settings.rates))
    return Cells(header, rows, "The best of each row was taken. From few pairs that is a rough choice.")


def _examples(study: Study) -> Examples:
    """The first prompt of every task, with the responses of the first seed's start and two of its policies."""
    settings, seed = study.settings, study.settings.seeds[0]
    prompts = sample_prompts(min(20, settings.test_prompts), HELD_OUT_SEED)
    names = {"start": start_name(seed)} | {
        model: policy_name(model, settings.table_size, seed, table_baseline(settings))
        for model in (REFERENCE, "multi-scale")
    }
    cells = {label: cell for label, name in names.items() if (cell := study.result(name)) is not None}
    rows = {task: i for i, task in reversed(list(enumerate(prompts["task"])))}

    def responses(i: int) -> list[Response]:
        return [
            Response(label, cell["responses"][i], {"gold reward": f"{cell['gold'][i]:.2f}"})
            for label, cell in cells.items()
        ]

    cards = [
        Example(task.replace("_", " "), prompts["prompt"][i][-1]["content"], responses(i)) for task, i in rows.items()
    ]
    return Examples(cards if cells else [])


def _settings_section(study: Study, ended: Sequence[Path]) -> Section:
    records = [record for file in ended if (record := study.record(file.stem)) is not None]
    hours = sum(record["seconds"] for record in records) / 3600
    threads = ", ".join(map(str, sorted({record["threads"] for record in records})))
    spent = f"{len(ended)} cells have ended; together they took {hours:.1f} hours. Threads of each: {threads}."
    versions = {json.dumps(record["versions"], sort_keys=True) for record in records}
    blocks = [Settings("Versions", json.loads(text)) for text in sorted(versions)]
    return Section("Settings and versions", [Paragraph(spent), Settings("Settings", vars(study.settings)), *blocks])
