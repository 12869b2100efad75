"""Reward training and scoring as benchmarks: what ours and TRL's run on, and the work of an arm of each."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset, load_from_disk
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import RewardTrainer, RLOOConfig, RLOOTrainer

from ...arguments import make_once
from ...data.markers import response_marker_ids
from ...data.messages import Messages, text_of
from ...data.tokens import encode_response, segment_boundary_ids
from ...reward.head import MultiScaleSettings
from ...reward.loading import AutoModelForMultiScaleReward
from ...reward.scorer import RewardFunction
from ...sandbox.models import new_decoder
from .common import Arm, BenchmarkArguments, trainer_options
from .rounds import Meter, Turns


@dataclass
class TrainingBenchmarkArguments(BenchmarkArguments):
    """Arguments of the benchmark of training, beside those of every benchmark."""

    batch_size: int = field(default=8, metadata={"help": "Pairs of a step."})
    warmup_steps: int = field(default=3, metadata={"help": "Steps before the first round."})
    activation_checkpointing: bool = field(
        default=False, metadata={"help": "Whether activations are computed again in the backward pass."}
    )
    check_steps: int = field(default=50, metadata={"help": "Steps over which losses are compared."})
    arms: list[str] | None = field(
        default=None,
        metadata={"help": "Arms to measure, all where it is not given. Ratios are to the first."},
    )


@dataclass
class ScoringBenchmarkArguments(BenchmarkArguments):
    """Arguments of the benchmark of scoring, beside those of every benchmark."""

    prompts: int = field(default=128, metadata={"help": "Prompts, each with four responses."})
    call_size: int = field(
        default=64, metadata={"help": "Responses of a generation batch, which a trainer has scored in one call."}
    )


# Data


def fitting_pairs(pairs: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, size: int) -> Dataset:
    """
    The first `size` pairs of which both sides have at most `max_length` tokens, prompt included.

    Returns:
        `datasets.Dataset`: With the column `length`, the tokens of the longer side, to which TRL pads both.

    Raises:
        `ValueError`: If fewer fit.
    """
    kept, lengths = [], []
    for i, row in enumerate(pairs):
        sides = [encode_response(tokenizer, row["prompt"], row[side]).input_ids for side in ("chosen", "rejected")]
        if (length := max(map(len, sides))) <= max_length:
            kept.append(i)
            lengths.append(length)
        if len(kept) == size:
            return pairs.select(kept).add_column("length", lengths)
    raise ValueError(
        f"{len(kept)} of {len(pairs)} pairs fit into `max_length={max_length}`, and `train_size` is {size}. Raise "
        "`max_length` or lower `train_size`."
    )


class ScoringRow(NamedTuple):
    """A finished response to score."""

    prompt: Messages
    completion: Messages
    completion_ids: list[int]  # with the EOS


def scoring_rows(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, prompts: int, seed: int, per_prompt: int = 4
) -> list[ScoringRow]:
    """
    Responses of mixed lengths, several to a prompt: those of other pairs, cut somewhere and ended there.

    The seed is of the choice of responses and of their lengths; a prompt with a response has at most `max_length`
    tokens.

    Returns:
        `list[ScoringRow]`: Those to one prompt stand together. Plain prompts have become the user's messages.

    Raises:
        `ValueError`: If there are fewer prompts of at most half of `max_length`.
    """
    rng, rows, seen = random.Random(seed), list[ScoringRow](), set[str]()
    texts = [text_of(row[side]).strip() for row in pairs for side in ("chosen", "rejected")]
    for row in pairs:
        prompt = row["prompt"]
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        empty = encode_response(tokenizer, prompt, [{"role": "assistant", "content": ""}]).input_ids
        if str(prompt) in seen or not prompt or len(empty) > max_length // 2:
            continue
        seen.add(str(prompt))
        end = len(rows) + per_prompt
        while len(rows) < end:
            cut = tokenizer(rng.choice(texts), add_special_tokens=False)["input_ids"][
                : rng.randint(2, max_length // 2)
            ]
            text = str(tokenizer.decode(cut, skip_special_tokens=True)).strip()
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            completion = [{"role": "assistant", "content": text}]
            fits = len(encode_response(tokenizer, prompt, completion).input_ids) <= max_length
            # A cut through a character leaves what decodes to another text.
            if ids and fits and tokenizer.decode(ids, skip_special_tokens=True) == text:
                rows.append(ScoringRow(prompt, completion, [*ids, tokenizer.eos_token_id]))
        if len(seen) == prompts:
            return rows
    raise ValueError(
        f"{len(seen)} different prompts are at most half of `max_length={max_length}`, and {prompts} are asked for. "
        "Raise `max_length`, or ask for fewer."
    )


def response_scale_model(folder: Path, model: str) -> str:
    """Folder of a reward model with the response scale alone, which stock classes read to the same scores."""
    return make_once(folder, _save_reward_model, model)


def _save_reward_model(folder: Path, name: str) -> None:
    torch.manual_seed(0)  # of the new head
    tokenizer = AutoTokenizer.from_pretrained(name)
    model: Any = AutoModelForMultiScaleReward.from_pretrained(
        name, MultiScaleSettings(scales=["response"], context="none")
    )
    model.set_layout(response_marker_ids(tokenizer), segment_boundary_ids(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# Training


class RoundsCallback(TrainerCallback):
    """Makes every epoch over so many pairs a round, but the first, which ends after a few steps and warms up."""

    def __init__(self, turns: Turns, meter: Meter, pairs: int, warmup_steps: int) -> None:
        self.turns, self.meter, self.pairs, self.warmup_steps = turns, meter, pairs, warmup_steps
        self.epoch = -1

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.epoch += 1
        if self.epoch:
            self.turns.wait()
            self.meter.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_epoch_stop = not self.epoch and state.global_step >= self.warmup_steps

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.epoch:
            self.turns.report(self.meter.stop(self.pairs))


def train_rounds(turns: Turns, arm: Arm, args: TrainingBenchmarkArguments, model: str, data: str) -> None:
    """Work of a training arm: rounds over all pairs of [`fitting_pairs`] in a folder, each in an order of its own."""
    trainer = _trainer(arm, args, model, data, num_train_epochs=args.rounds + 1)
    meter = Meter(trainer.model, args.device)
    trainer.add_callback(RoundsCallback(turns, meter, len(trainer.train_dataset), args.warmup_steps))
    trainer.train()


def train_losses(turns: Turns, arms: list[Arm], args: TrainingBenchmarkArguments, model: str, data: str) -> None:
    """Work that reports the losses of the first steps of each of several arms."""
    for arm in arms:
        trainer = _trainer(arm, args, model, data, max_steps=args.check_steps, logging_steps=1)
        meter = Meter(trainer.model, args.device)
        turns.wait()
        meter.start()
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        turns.report(meter.stop(args.check_steps * args.batch_size, losses))


def _trainer(arm: Arm, args: TrainingBenchmarkArguments, model: str, data: str, **options: Any) -> Any:
    """The arm's [`~trl.RewardTrainer`], whose model and data TRL types as unions."""
    config = arm.config(
        **trainer_options(args),
        per_device_train_batch_size=args.batch_size // arm.options.get("gradient_accumulation_steps", 1),
        max_length=args.max_length,
        activation_checkpointing=args.activation_checkpointing,
        **arm.options,
        **options,
    )
    pairs = load_from_disk(data)
    if arm.trainer is RewardTrainer and config.train_sampling_strategy == "group_by_length":
        # Transformers looks for `length` after it has removed what the model does not take.
        config.remove_unused_columns = False
        trainer: Any = RewardTrainer(model, config, train_dataset=pairs)
        trainer.train_dataset = trainer.train_dataset.select_columns(["chosen_ids", "rejected_ids", "length"])
    else:
        trainer = arm.trainer(model, config, train_dataset=pairs.remove_columns("length"))
    trainer.remove_callback(PrinterCallback)
    if len(trainer.train_dataset) != len(pairs):
        raise RuntimeError(f"{arm.trainer.__name__} trains on {len(trainer.train_dataset)} of {len(pairs)} pairs.")
    return trainer


# Scoring


def score_with_ours(
    turns: Turns, args: BenchmarkArguments, model: str, rows: list[ScoringRow], call_size: int
) -> None:
    """Work of an arm that scores rows with [`~toolkit.RewardFunction`], `call_size` of them a call."""
    init_kwargs = {"dtype": args.dtype}
    function = RewardFunction(model, device=args.device, max_length=args.max_length, model_init_kwargs=init_kwargs)
    _score_rounds(turns, Meter(function.model, args.device), function, rows, call_size, args.rounds)


def score_with_trl(turns: Turns, args: BenchmarkArguments, model: str, rows: list[ScoringRow], call_size: int) -> None:
    """
    Work of an arm that scores as TRL's trainers do with a model in `reward_funcs`, by their own method. A call is the
    generation batch of one process.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    stock = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=getattr(torch, args.dtype))
    config = RLOOConfig(
        **trainer_options(args) | {"bf16": False},  # the weights have the type
        per_device_train_batch_size=call_size,
        num_generations=4,
        beta=0.0,
        activation_checkpointing=False,
    )
    trainer = RLOOTrainer(
        new_decoder(tokenizer, hidden_size=32, layers=1, max_length=args.max_length),  # it has nothing to do
        stock,
        config,
        train_dataset=Dataset.from_list([{"prompt": rows[0].prompt}]),
        processing_class=tokenizer,
        reward_processing_classes=tokenizer,
    )

    def score(prompts: list[Messages], completions: list[Messages], ids: list[list[int]]) -> list[float]:
        inputs = [{"prompt": prompt} for prompt in prompts]
        return list(trainer._calculate_rewards(inputs, prompts, completions, ids)[:, 0].tolist())

    _score_rounds(turns, Meter(stock, args.device), score, rows, call_size, args.rounds)


def _score_rounds(
    turns: Turns, meter: Meter, score: Callable[..., list[Any]], rows: list[ScoringRow], call_size: int, rounds: int
) -> None:
    calls = [list(zip(*rows[i : i + call_size], strict=True)) for i in range(0, len(rows), call_size)]
    score(*map(list, calls[0]))
    for _ in range(rounds):
        turns.wait()
        meter.start()
        scores = [reward for call in calls for reward in score(*map(list, call))]
        turns.report(meter.stop(len(rows), scores))
