"""The LoRA grid: what of the structure's gain on a frozen decoder is left when the decoder is fine-tuned, too.

Its tasks, their division and their test pairs are those of the grid on a frozen decoder; docs/lora_grid.md has the
rest. The learning rate of every model is chosen on development pairs of the first task.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from ...data.batches import SIDES
from ...data.preparation import tokenize_pairs
from ...data.tokens import end_ids
from ...pages.page import Page, Paragraph, Section
from ...pages.page import Table as Cells
from ...reward.losses import pairwise_logistic_loss
from .decoder import BEST, MIX, TRL
from .decoder_tables import Sums, mean_over, sums
from .division import draw
from .grid import Cell, Study, cell_name
from .models import ranked_right, reward_config, train_reward_model, trainer_options
from .tables import LONGER, Estimate, Table, estimates
from .task_pairs import TaskPairs
from .tasks import TASKS

# Of each row the preference model; the best simple contrast reads the token that the frozen grid's folds chose
MODELS = {TRL: "simple contrast", BEST: "simple contrast", MIX: "multi-scale"}
DEVELOPMENT_FOLD = 0


@dataclass
class LoraStudy:
    """Settings of the grid; `data` is the folder of the tasks' files, `decoder` a folder or a hub name."""

    data: str
    decoder: str
    tasks: list[str] = field(default_factory=lambda: ["HH helpful", "CoNaLa", "TruthfulQA"])
    numbers: list[int] = field(default_factory=lambda: [500, 2_500])
    rates: list[float] = field(default_factory=lambda: [5e-5, 1e-4, 2e-4, 4e-4])
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    search_seed: int = 0
    rank: int = 16
    pairs_per_step: int = 16
    pairs_seen: int = 1_000  # at least; and every pair once
    development_pairs: int = 250
    test_pairs: int = 500

    @classmethod
    def quick(cls, data: str, decoder: str) -> "LoraStudy":
        """The same grid in little: it shows that everything runs, not how the methods compare."""
        sizes = {"pairs_seen": 32, "development_pairs": 20, "test_pairs": 20}
        return cls(data, decoder, tasks=["HH helpful"], numbers=[32], rates=[1e-3], seeds=[1, 2], **sizes)


def lora_name(task: str, model: str, number: int, seed: int, rate: float | None = None) -> str:
    """Cell of a reward model; with a rate, one of the search."""
    return cell_name("lora", number, task, model, seed, rate=rate)


def divided(
    settings: LoraStudy, task: str, number: int, seed: int, search: bool
) -> tuple[TaskPairs, list[int], list[int]]:
    """
    A task's pairs; of them those of a training, drawn anew for each seed, and those that are ranked, on which no text
    is trained.
    """
    found = {t.name: t for t in TASKS}[task]
    pairs = TaskPairs(settings.data, replace(found, most=max(settings.numbers)))
    part, own = pairs.parts[0], pairs.division
    if search:
        folds = dict(zip(part.train, part.inner, strict=True))
        held = [i for i in part.train if folds[i] == DEVELOPMENT_FOLD]
        train = [i for i in part.train if folds[i] != DEVELOPMENT_FOLD]
        ranked, most = draw(own.pairs, own.clusters, held, "development pairs"), settings.development_pairs
    else:
        train = part.train
        new = [i for i, seen in zip(part.test, part.seen, strict=True) if not seen]
        ranked, most = draw(own.pairs, own.clusters, new, "test pairs"), settings.test_pairs
    drawn = draw(own.pairs, own.clusters, train, "training pairs" if search else f"training pairs {seed}")
    return pairs, drawn[:number], ranked[:most]


def ending_at_their_turn(rows: Dataset, ends: set[int], length_column: str) -> Dataset:
    """Tokenized pairs without what the chat template writes behind the end of turn."""

    def cut(row: dict[str, Any]) -> dict[str, Any]:
        sides = {f"{side}_ids": list(row[f"{side}_ids"]) for side in SIDES}
        before = sum(map(len, sides.values()))
        for ids in sides.values():
            while ids[-1] not in ends:
                ids.pop()
        return {**sides, length_column: row[length_column] - before + sum(map(len, sides.values()))}

    return rows.map(cut)


def _rows(rows: Dataset, name: str, model: str, tokenizer: Any, column: str) -> Dataset:
    """Pairs as a model's trainer takes them."""
    if model != BEST:
        return rows
    tokenized = tokenize_pairs(
        rows, name, tokenizer, max_length=None, needs_prompt=False, drop_long=False, length_column_name=column
    )
    return ending_at_their_turn(tokenized, end_ids(tokenizer), column)


def lora_cell(
    folder: Path, settings: LoraStudy, task: str, model: str, number: int, seed: int, rate: float, search: bool = False
) -> dict[str, Any]:
    """A fine-tuned reward model, and its gaps on development pairs or on test pairs."""
    pairs, train, ranked = divided(settings, task, number, seed, search)
    name = lora_name(task, model, number, seed, rate if search else None)
    config = reward_config(
        MODELS[model],
        pairs_per_step=settings.pairs_per_step,
        batches=4,
        num_train_epochs=max(1.0, settings.pairs_seen / len(train)),
        per_device_eval_batch_size=16,
        learning_rate=rate,
        max_length=None,
        warmup_steps=0.1,
        **trainer_options(folder, name, seed) | {"save_strategy": "steps", "save_steps": 0.1, "save_total_limit": 1},
    )
    tokenizer = AutoTokenizer.from_pretrained(settings.decoder)
    train_rows, ranked_rows = (
        _rows(pairs.pairs.select(numbers), what, model, tokenizer, config.length_column_name)
        for numbers, what in ((train, "train"), (ranked, "eval"))
    )
    lora = LoraConfig(task_type="SEQ_CLS", r=settings.rank, lora_alpha=2 * settings.rank, target_modules="all-linear")
    _, result = train_reward_model(settings.decoder, config, train_rows, ranked_rows, lora)
    clusters = [pairs.division.clusters[i] for i in ranked]
    places = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    return {**result, "training_pairs": len(train), "units": [places[cluster] for cluster in clusters]}


def lora_rate(study: Study, model: str) -> float:
    """The rate at which a model's development pairs have the smallest mean loss."""
    settings: LoraStudy = study.settings
    losses = {}
    for rate in settings.rates:
        found: Any = study.result(lora_name(settings.tasks[0], model, settings.numbers[0], settings.search_seed, rate))
        gaps = torch.tensor(found["gaps"], dtype=torch.float64)
        losses[rate] = pairwise_logistic_loss(gaps, torch.zeros_like(gaps)).mean().item()
    return min(losses, key=lambda rate: losses[rate])


def lora_stages(study: Study) -> Iterator[list[Cell]]:
    """The search, and then one seed after the other of every number of pairs, the smallest first."""
    settings: LoraStudy = study.settings
    first, fewest = settings.tasks[0], settings.numbers[0]
    yield [
        _cell(first, model, fewest, settings.search_seed, rate, search=True)
        for rate in settings.rates
        for model in MODELS
    ]
    rates = {model: lora_rate(study, model) for model in MODELS}
    for number in settings.numbers:
        for seed in settings.seeds:
            yield [_cell(task, model, number, seed, rates[model]) for task in settings.tasks for model in MODELS]


def _cell(task: str, model: str, number: int, seed: int, rate: float, search: bool = False) -> Cell:
    arguments = {"task": task, "model": model, "number": number, "seed": seed, "rate": rate, "search": search}
    return Cell(lora_name(task, model, number, seed, rate if search else None), lora_cell, arguments)


# What came out


def lora_table(study: Study) -> Table:
    """Accuracy by number of pairs, on the mean and by task, of the seeds for which all have ended."""
    settings: LoraStudy = study.settings
    table: Table = {}
    for number in settings.numbers:
        seeds = complete_seeds(study, number)

        def read(model: str, task: str, number: int = number, seeds: list[int] = seeds) -> Sums | None:
            own = TRL if model == LONGER else model
            found = study.results(lora_name(task, own, number, seed) for seed in seeds)
            gaps = [cell["longer" if model == LONGER else "gaps"] for cell in found]
            return sums(torch.stack([ranked_right(each) for each in gaps]), found[0]["units"], [True] * len(gaps[0]))

        for column, tasks in {"mean": settings.tasks, **{task: [task] for task in settings.tasks}}.items():
            for model in (*MODELS, LONGER) if seeds else ():
                value = mean_over(read, model, tasks)
                less = None if model == MIX else mean_over(read, MIX, tasks, (read, model))
                assert value is not None, "all are there"
                table.setdefault(model, {})[f"{number:,} pairs, {column}"] = Estimate(value, less)
    return table


def complete_seeds(study: Study, number: int) -> list[int]:
    """Seeds of which every task and model has ended."""
    settings: LoraStudy = study.settings
    grid = [(task, model) for task in settings.tasks for model in MODELS]
    return [s for s in settings.seeds if all(study.result(lora_name(t, m, number, s)) for t, m in grid)]


def lora_page(study: Study) -> tuple[Page, dict[str, Any]]:
    """The page as far as the grid has come, and its tables."""
    settings: LoraStudy = study.settings
    table, seeds = lora_table(study), {number: complete_seeds(study, number) for number in settings.numbers}
    done = "; ".join(f"{number:,} pairs: seeds {own or 'to come'}" for number, own in seeds.items())
    lead = (
        "Reward models that were fine-tuned with LoRA: share of test pairs ranked right, %. Whatever is in the table "
        f"has all tasks and models ({done}). Brackets are 95% intervals over seeds, which draw their training pairs "
        f"from the same {max(settings.numbers):,}, and clusters of test pairs; those of one seed are over clusters "
        "alone, and those of few too narrow."
    )
    sections = []
    for difference, title in ((False, "Accuracy"), (True, f"{MIX} above the row, in points")):
        columns, rows = estimates(table, difference)
        sections.append(Section(title, [Cells(("model", *columns), rows)] if rows else [Paragraph("To come.")]))
    if table:
        sections.append(Section("What would tell more", [enough(table)]))
    sections.append(Section("Rates and time", [_searched(study), _time(study)]))
    return Page("Preference models with LoRA", lead, sections), {"accuracy": table}


def enough(table: Table) -> Cells:
    """How many times as many seeds and test pairs would tell a difference of a point, and of half a one, from none."""
    rows = []
    for model, row in table.items():
        for column, estimate in row.items():
            if estimate.difference is not None and column.endswith("mean"):
                half = 50 * (estimate.difference.high - estimate.difference.low)
                rows.append((f"{model}, {column}", f"{half:.1f}", *(f"{(half / told) ** 2:.1f}" for told in (1, 0.5))))
    header = (f"{MIX} above", "half of the interval, points", "for one point", "for half a point")
    return Cells(header, rows, "Times as many seeds and test pairs: an interval's width falls with the root of both.")


def _searched(study: Study) -> Cells:
    settings: LoraStudy = study.settings
    rows = []
    for model in MODELS:
        names = {
            r: lora_name(settings.tasks[0], model, settings.numbers[0], settings.search_seed, r)
            for r in settings.rates
        }
        found = {rate: study.result(name) for rate, name in names.items()}
        rows.append(
            (model, *("–" if c is None else f"{100 * c['metrics']['test_accuracy']:.1f}" for c in found.values()))
        )
    header = ("model", *(f"{rate:g}" for rate in settings.rates))
    return Cells(header, rows, f"Development pairs of {settings.tasks[0]} ranked right by learning rate, %.")


def _time(study: Study) -> Cells:
    rows = []
    for number in study.settings.numbers:
        for model in MODELS:
            names = [lora_name(t, model, number, s) for t in study.settings.tasks for s in study.settings.seeds]
            records = [record for name in names if (record := study.record(name))]
            # Times of one precision alone compare
            for bf16 in (False, True):
                of_it = [record for record in records if record["result"]["bf16"] is bf16]
                hours = [record["seconds"] * record["threads"] / 3600 for record in of_it]
                precision = "bfloat16" if bf16 else "float32"
                own = (f"{model}, {number:,} pairs", precision)
                if hours:
                    rows.append((*own, str(len(hours)), f"{mean(hours):.2f}", f"{sum(hours):.1f}"))
    return Cells(("model", "precision", "cells", "processor hours a cell", "in all"), rows)
