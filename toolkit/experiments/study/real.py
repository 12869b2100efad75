"""The half of the study on real preference pairs, where only the accuracy of reward models can be measured."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import set_seed

from ...data.loading import load_pairs
from ...data.messages import Messages, texts_of
from ...reward.config import PREFERENCE_MODELS
from ...sandbox.models import new_decoder, train_tokenizer
from .grid import Cell, Study, cell_name
from .models import best_rate, reward_config, train_decoder, train_reward_model, trainer_options

# Files of each task. Those that end with "_test" are for testing; the others are divided by prompt.
REAL_TASKS = {
    "dialogue": ["hh_helpful_single_train_gt", "hh_helpful_single_train_w2s", "hh_helpful_single_test"],
    "question answering": ["truthfulqa_human_truth", "evouna_nq"],
    "summarization": ["summeval_attr", "rose_protocols", "squality_by_worker"],
    "code": ["conala_mean_grade", "tara_mbpp_code"],
}
# Tasks whose files have no strengths: there "weighted" is "simple contrast" again, and is not trained twice.
WITHOUT_STRENGTH = ("dialogue", "question answering")
TEST_SHARE, SEARCH_SHARE = 0.25, 0.1
# In characters. Articles come first to last, so that the beginning of a prompt says most.
PROMPT_LENGTH, MOST_RESPONSE = 1_500, 2_000


@dataclass
class RealStudy:
    """
    Settings of the study on real pairs; `data` is the folder of the files in [`REAL_TASKS`].

    Learning rates are chosen for each preference model and task by accuracy on the pairs of a tenth of the training
    prompts, which then are not trained on, with `search_seed`, which does not count.
    """

    data: str
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    search_seed: int = 0
    tasks: list[str] = field(default_factory=lambda: list(REAL_TASKS))
    models: list[str] = field(default_factory=lambda: list(PREFERENCE_MODELS))
    rates: list[float] = field(default_factory=lambda: [5e-4, 1e-3])
    epochs: int = 1
    pairs_per_step: int = 16
    max_length: int = 1152
    most_pairs: int | None = None
    decoder: str | None = None
    decoder_steps: int = 600
    hidden_size: int = 128
    layers: int = 4
    vocab_size: int = 4096
    encoder: str | None = None
    encoder_rates: list[float] = field(default_factory=lambda: [1e-3, 3e-3, 1e-2])
    encoder_epochs: int = 5

    @classmethod
    def quick(cls, data: str) -> "RealStudy":
        """The same grid in little: it shows that everything runs, not how the methods compare."""
        small: dict[str, Any] = {
            "most_pairs": 96,
            "decoder_steps": 20,
            "hidden_size": 64,
            "layers": 2,
            "vocab_size": 1024,
        }
        return cls(data, seeds=[1, 2], rates=[1e-3], **small)


class TaskPairs:
    """
    Pairs of a task, divided into `train` and `test` by prompt: no prompt of a test pair is in a training pair.

    Where no file is for testing, the pairs of a quarter of the prompts are. Prompts are cut to their first
    [`PROMPT_LENGTH`] characters; pairs with a response of over [`MOST_RESPONSE`], `left_out` in number, are left out.
    `units` has of each test pair the number of its prompt.
    """

    def __init__(self, folder: str, task: str) -> None:
        loaded = {file: load_pairs(f"{folder}/{file}.jsonl.gz") for file in REAL_TASKS[task]}
        parts = {file: _one_form(part) for file, part in loaded.items()}
        self.left_out = sum(map(len, loaded.values())) - sum(map(len, parts.values()))
        tests = [part for file, part in parts.items() if file.endswith("_test")]
        pairs = concatenate_datasets([part for file, part in parts.items() if not file.endswith("_test")])
        if tests:
            self.test = concatenate_datasets(tests)
            known = set(map(prompt_text, self.test["prompt"]))
            self.train = pairs.select(i for i, p in enumerate(pairs["prompt"]) if prompt_text(p) not in known)
        else:
            self.train, self.test = divide(pairs, TEST_SHARE, "test")
        numbers: dict[str, int] = {}
        self.units = [numbers.setdefault(prompt_text(p), len(numbers)) for p in self.test["prompt"]]


def prompt_text(prompt: Messages) -> str:
    """What all messages of a prompt say."""
    return "\n".join(texts_of(prompt))


def divide(pairs: Dataset, share: float, purpose: str) -> tuple[Dataset, Dataset]:
    """Divide pairs by their prompts, of which about `share` go to the second part, the same way every time."""
    second, rows = in_second_part(pairs["prompt"], share, purpose), range(len(pairs))
    return pairs.select(i for i in rows if not second[i]), pairs.select(i for i in rows if second[i])


def in_second_part(prompts: Sequence[Messages], share: float, purpose: str) -> list[bool]:
    """Of each prompt, whether [`divide`] puts it into the second part; each `purpose` has a division of its own."""
    digests = (hashlib.sha256(f"{purpose}\n{prompt_text(p)}".encode()).digest() for p in prompts)
    return [int.from_bytes(digest[:8], "big") < share * 2**64 for digest in digests]


def at_most(pairs: Dataset, most: int | None) -> Dataset:
    """The first pairs, or all where no number is given."""
    return pairs if most is None else pairs.select(range(min(len(pairs), most)))


def _one_form(pairs: Dataset) -> Dataset:
    """Messages of limited length, and a strength whose mean is 1 in every file, as each has a unit of its own."""
    mean = sum(pairs["strength"]) / len(pairs) if "strength" in pairs.column_names else 1.0

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        sides = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        texts = {
            side: [{"role": role, "content": row[side]}] if isinstance(row[side], str) else row[side]
            for side, role in sides.items()
        }
        texts["prompt"][-1]["content"] = texts["prompt"][-1]["content"][:PROMPT_LENGTH]
        return {**texts, "strength": row.get("strength", 1.0) / mean}

    def is_short(row: dict[str, Any]) -> bool:
        return all(len(row[side][0]["content"]) <= MOST_RESPONSE for side in ("chosen", "rejected"))

    return pairs.map(convert, remove_columns=pairs.column_names).filter(is_short)


def decoder_cell(folder: Path, settings: RealStudy) -> dict[str, Any]:
    """A small decoder from scratch, trained on the texts of the training pairs of all tasks, and the division."""
    tasks = {task: TaskPairs(settings.data, task) for task in settings.tasks}
    if settings.decoder is None:
        texts = [
            {"prompt": row["prompt"], "completion": row[side]}
            for pairs in tasks.values()
            for row in pairs.train
            for side in ("chosen", "rejected")
        ]
        _begin_decoder(folder, settings, texts)
    return {
        task: {
            "train_pairs": len(pairs.train),
            "test_pairs": len(pairs.test),
            "left_out": pairs.left_out,
            "units": pairs.units,
        }
        for task, pairs in tasks.items()
    }


def _begin_decoder(folder: Path, settings: RealStudy, texts: list[dict[str, Messages]]) -> None:
    contents = (text for row in texts for messages in row.values() for text in texts_of(messages))
    tokenizer = train_tokenizer(contents, settings.vocab_size)
    set_seed(settings.search_seed)
    train_decoder(
        new_decoder(tokenizer, settings.hidden_size, settings.layers, settings.max_length),
        tokenizer,
        Dataset.from_list(texts),
        max_steps=settings.decoder_steps,
        per_device_train_batch_size=16,
        learning_rate=2e-3,
        max_length=256,  # what lies beyond in a text costs much and teaches a small decoder little
        completion_only_loss=False,
        **trainer_options(folder, "decoder", settings.search_seed),
    )


def real_reward_cell(
    folder: Path, settings: RealStudy, model: str, task: str, seed: int, rate: float, search: bool = False
) -> dict[str, Any]:
    """A reward model of one task, and its gaps on the search's pairs or on the test pairs."""
    pairs = TaskPairs(settings.data, task)
    parts = divide(pairs.train, SEARCH_SHARE, "search") if search else (pairs.train, pairs.test)
    train, test = (at_most(part, settings.most_pairs) for part in parts)
    config = reward_config(
        model,
        pairs_per_step=settings.pairs_per_step,
        batches=4,
        num_train_epochs=settings.epochs,
        per_device_eval_batch_size=32,
        learning_rate=rate,
        max_length=settings.max_length,
        warmup_steps=20,
        **trainer_options(folder, real_name(model, task, seed, rate), seed),
    )
    _, result = train_reward_model(settings.decoder or str(folder / "models" / "decoder"), config, train, test)
    return result


def trained_as(model: str, task: str) -> str:
    """The model that is trained for a model on a task."""
    return "simple contrast" if model == "weighted" and task in WITHOUT_STRENGTH else model


def real_name(model: str, task: str, seed: int, rate: float | None = None) -> str:
    """Cell of a reward model; with a rate, one of the search."""
    return cell_name("real", task, trained_as(model, task), seed, rate=rate)


def real_rate(study: Study, model: str, task: str) -> float:
    """The learning rate by which a model ranks most of the search's pairs right."""
    names = {rate: real_name(model, task, study.settings.search_seed, rate) for rate in study.settings.rates}
    return best_rate({rate: study.results([name]) for rate, name in names.items()})


def real_stages(study: Study) -> Iterator[list[Cell]]:
    """Stages on real pairs, each of which may read the results of those before it: decoder, search, models."""
    settings: RealStudy = study.settings
    grid = [(model, task) for task in settings.tasks for model in settings.models]
    yield [Cell("decoder", decoder_cell, {})]
    yield distinct(
        _cell(model, task, settings.search_seed, rate, search=True) for model, task in grid for rate in settings.rates
    )
    rates = {(model, task): real_rate(study, model, task) for model, task in grid}
    yield distinct(_cell(model, task, seed, rates[model, task]) for seed in settings.seeds for model, task in grid)


def distinct(cells: Iterable[Cell]) -> list[Cell]:
    """Each training once: cells of the same name are the same training."""
    return list({cell.name: cell for cell in cells}.values())


def _cell(model: str, task: str, seed: int, rate: float, search: bool = False) -> Cell:
    arguments = {"model": model, "task": task, "seed": seed, "rate": rate, "search": search}
    return Cell(real_name(model, task, seed, rate if search else None), real_reward_cell, arguments, ("decoder",))
