"""The half of the study on real preference pairs, where only the accuracy of reward models can be measured."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from ...data.loading import load_pairs
from ...data.messages import Messages
from ...reward.config import PREFERENCE_MODELS, MultiScaleRewardConfig
from ...sandbox.models import new_decoder, train_tokenizer
from .grid import Cell, Study
from .models import STUDY_MODELS, attention, best_rate, train_reward_model, trainer_options

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
        small = {"most_pairs": 96, "decoder_steps": 20, "hidden_size": 64, "layers": 2, "vocab_size": 1024}
        return cls(data, seeds=[1, 2], rates=[1e-3], **small)


class TaskPairs:
    """
    Pairs of one task, divided by prompt: no prompt of a test pair is in a training pair.

    Prompts are cut to their first [`PROMPT_LENGTH`] characters; pairs with a response of over [`MOST_RESPONSE`] are
    left out.

    Args:
        folder (`str`):
            Folder of the files.
        files (sequence of `str`):
            Names of the files, without `.jsonl.gz`.

    Attributes:
        train (`datasets.Dataset`): Pairs to train on.
        test (`datasets.Dataset`): Pairs to test on: those of a quarter of the prompts where no file is for that.
        units (`list[int]`): Of each test pair the number of its prompt.
        left_out (`int`): Pairs left out.
    """

    def __init__(self, folder: str, files: Sequence[str]) -> None:
        loaded = {file: load_pairs(f"{folder}/{file}.jsonl.gz") for file in files}
        parts = {file: _one_form(part) for file, part in loaded.items()}
        self.left_out = sum(len(loaded[file]) - len(parts[file]) for file in files)
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
    return "\n".join(message["content"] for message in prompt)


def divide(pairs: Dataset, share: float, purpose: str) -> tuple[Dataset, Dataset]:
    """
    Divide pairs by their prompts, the same way every time.

    Args:
        pairs (`datasets.Dataset`):
            Pairs.
        share (`float`):
            Share of the prompts that goes to the second part.
        purpose (`str`):
            A word that makes one division independent of another.

    Returns:
        `tuple[datasets.Dataset, datasets.Dataset]`
    """
    second, rows = in_second_part(pairs["prompt"], share, purpose), range(len(pairs))
    return pairs.select(i for i in rows if not second[i]), pairs.select(i for i in rows if second[i])


def in_second_part(prompts: Sequence[Messages], share: float, purpose: str) -> list[bool]:
    """Of each prompt, whether [`divide`] puts it into the second part."""
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
    tasks = {task: TaskPairs(settings.data, REAL_TASKS[task]) for task in settings.tasks}
    texts = [
        {"prompt": row["prompt"], "completion": row[side]}
        for task in tasks.values()
        for row in task.train
        for side in ("chosen", "rejected")
    ]
    if settings.decoder is None:
        contents = (message["content"] for row in texts for part in row.values() for message in part)
        tokenizer = train_tokenizer(contents, settings.vocab_size)
        set_seed(settings.search_seed)
        config = SFTConfig(
            max_steps=settings.decoder_steps,
            per_device_train_batch_size=16,
            learning_rate=2e-3,
            max_length=256,  # what lies beyond in a text costs much and teaches a small decoder little
            completion_only_loss=False,
            warmup_steps=20,
            **trainer_options(folder, "decoder", settings.search_seed),
        )
        trainer = SFTTrainer(
            new_decoder(tokenizer, settings.hidden_size, settings.layers, settings.max_length),
            config,
            train_dataset=Dataset.from_list(texts),
            processing_class=tokenizer,
        )
        trainer.train()
        trainer.save_model()
    return {
        task: {
            "train_pairs": len(pairs.train),
            "test_pairs": len(pairs.test),
            "left_out": pairs.left_out,
            "units": pairs.units,
        }
        for task, pairs in tasks.items()
    }


def real_reward_cell(
    folder: Path, settings: RealStudy, model: str, task: str, seed: int, rate: float, search: bool = False
) -> dict[str, Any]:
    """A reward model of one task, and its gaps on the search's pairs or on the test pairs."""
    pairs = TaskPairs(settings.data, REAL_TASKS[task])
    train, test = divide(pairs.train, SEARCH_SHARE, "search") if search else (pairs.train, pairs.test)
    train, test = at_most(train, settings.most_pairs), at_most(test, settings.most_pairs)
    config = MultiScaleRewardConfig(
        num_train_epochs=settings.epochs,
        # Four batches of like length a step, whose losses are those of one, with less padding
        per_device_train_batch_size=settings.pairs_per_step // 4,
        gradient_accumulation_steps=4,
        train_sampling_strategy="batch_rebalance",
        per_device_eval_batch_size=32,
        learning_rate=rate,
        max_length=settings.max_length,
        logging_steps=20,
        model_init_kwargs={"attn_implementation": attention()},
        **STUDY_MODELS[model],
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
    return f"real-{task}-{trained_as(model, task)}-{seed}".replace(" ", "_") + (f"-rate-{rate:g}" if rate else "")


def real_rate(study: Study, model: str, task: str) -> float:
    """The learning rate by which a model ranks most of the search's pairs right."""
    names = {rate: real_name(model, task, study.settings.search_seed, rate) for rate in study.settings.rates}
    return best_rate({rate: study.results([name]) for rate, name in names.items()})


def real_stages(study: Study) -> Iterator[list[Cell]]:
    """
    Stages of the study on real pairs: the decoder, the search of learning rates and the five preference models.

    Args:
        study ([`Study`]):
            Study with the settings of a [`RealStudy`].

    Returns:
        iterator of lists of [`Cell`]: Each may read the results of those before it.
    """
    settings = study.settings
    grid = [(model, task) for task in settings.tasks for model in settings.models]
    yield [Cell("decoder", decoder_cell, {})]
    yield once(
        _cell(model, task, settings.search_seed, rate, search=True) for model, task in grid for rate in settings.rates
    )
    rates = {(model, task): real_rate(study, model, task) for model, task in grid}
    yield once(_cell(model, task, seed, rates[model, task]) for seed in settings.seeds for model, task in grid)


def once(cells: Iterable[Cell]) -> list[Cell]:
    """Cells of the same name are the same training."""
    return list({cell.name: cell for cell in cells}.values())


def _cell(model: str, task: str, seed: int, rate: float, search: bool = False) -> Cell:
    arguments = {"model": model, "task": task, "seed": seed, "rate": rate, "search": search}
    return Cell(real_name(model, task, seed, rate if search else None), real_reward_cell, arguments, ("decoder",))
