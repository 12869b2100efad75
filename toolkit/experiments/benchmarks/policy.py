"""Steps of REINFORCE as a benchmark: our trainer and TRL's on the same samples, and where their time goes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .common import Arm, BenchmarkArguments, trainer_options
from .rounds import Meter, Turns, now

PARTS = ("generation", "log-probabilities without gradient", "rewards", "forward", "backward", "rest")


@dataclass
class PolicyBenchmarkArguments(BenchmarkArguments):
    """Arguments of the benchmark of REINFORCE, beside those of every benchmark."""

    batch_size: int = field(default=32, metadata={"help": "Responses of a step."})
    num_generations: int = field(default=4, metadata={"help": "Responses to a prompt."})
    max_completion_length: int = field(default=64, metadata={"help": "Most tokens of a response."})
    beta: float = field(
        default=0.0,
        metadata={"help": "Weight of the divergence from the reference; 0 needs no reference. TRL's default is 0.05."},
    )
    steps: int = field(default=4, metadata={"help": "Steps of a round."})
    activation_checkpointing: bool = field(
        default=False, metadata={"help": "Whether activations are computed again in the backward pass."}
    )


class Stopwatch:
    """Seconds that a trainer spends in each of `PARTS`, by methods replaced on it; what it samples and runs on."""

    def __init__(self, trainer: Any, device: str) -> None:  # an RLOOTrainer, on which methods are replaced
        self.device = device
        trainer._generate_single_turn = self._timed("generation", trainer._generate_single_turn, self._count_sampled)
        with_gradient = trainer._get_per_token_logps_and_entropies  # a part of "forward"
        without = self._timed("log-probabilities without gradient", with_gradient)
        trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (
            with_gradient(*args, **kwargs) if torch.is_grad_enabled() else without(*args, **kwargs)
        )
        trainer._calculate_rewards = self._timed("rewards", trainer._calculate_rewards)
        trainer._compute_loss = self._timed("forward", trainer._compute_loss)
        trainer.accelerator.backward = self._timed("backward", trainer.accelerator.backward)
        decoder = trainer.accelerator.unwrap_model(trainer.model).base_model
        decoder.register_forward_pre_hook(self._count_run, with_kwargs=True)
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.sampled, self.run, self.checksum = 0, 0, 0.0

    def _timed(self, part: str, method: Callable[..., Any], seen: Callable[[Any], None] | None = None) -> Any:
        @wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = now(self.device)
            result = method(*args, **kwargs)
            self.seconds[part] += now(self.device) - start
            if seen is not None:
                seen(result)
            return result

        return timed

    def _count_sampled(self, responses: list[list[int]]) -> None:
        self.sampled += sum(map(len, responses))
        self.checksum += sum((k + 1) * token for ids in responses for k, token in enumerate(ids))

    def _count_run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.run += (args[0] if args else kwargs["input_ids"]).numel()


class StepsCallback(TrainerCallback):
    """Makes every few steps a round; the first few warm up."""

    def __init__(self, turns: Turns, meter: Meter, watch: Stopwatch, steps: int) -> None:
        self.turns, self.meter, self.watch, self.steps = turns, meter, watch, steps

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step and state.global_step % self.steps == 0:
            self.turns.wait()
            self.watch.start()
            self.meter.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step > self.steps and state.global_step % self.steps == 0:
            watch = self.watch
            measured = self.meter.stop(watch.sampled, (watch.checksum,))
            watch.seconds["rest"] = measured.seconds - sum(watch.seconds.values())
            parts = tuple(watch.seconds[part] / self.steps for part in PARTS)
            self.turns.report(measured._replace(padded_tokens=watch.run, real_tokens=watch.run, parts=parts))


def policy_rounds(
    turns: Turns, arm: Arm, args: PolicyBenchmarkArguments, model: str, reward: str, prompts: Dataset
) -> None:
    """
    Work of an arm that tunes a policy on a reward model's folder, at a learning rate of 0, so that all arms go on
    sampling the same responses.
    """
    config = arm.config(
        **trainer_options(args),
        learning_rate=0.0,
        per_device_train_batch_size=args.batch_size,
        num_generations=args.num_generations,
        max_completion_length=args.max_completion_length,
        beta=args.beta,
        max_steps=(args.rounds + 1) * args.steps,
        activation_checkpointing=args.activation_checkpointing,
        **arm.options,
    )
    trainer = arm.trainer(model, arm.reward(reward), config, train_dataset=prompts)
    trainer.remove_callback(PrinterCallback)
    meter, watch = Meter(nn.Module(), args.device), Stopwatch(trainer, args.device)
    trainer.add_callback(StepsCallback(turns, meter, watch, args.steps))
    trainer.train()


def fitting_prompts(pairs: Dataset, tokenizer: Any, max_tokens: int, size: int) -> Dataset:
    """
    The first `size` different prompts of at most `max_tokens` tokens, as the column `prompt`.

    Raises:
        `ValueError`: If fewer fit.
    """
    kept: dict[str, Any] = {}
    for prompt in pairs["prompt"]:
        if isinstance(prompt, str):
            encoding = tokenizer(prompt)
        else:
            encoding = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
        if len(encoding["input_ids"]) <= max_tokens:
            kept.setdefault(str(prompt), prompt)
        if len(kept) == size:
            return Dataset.from_dict({"prompt": list(kept.values())})
    raise ValueError(f"{len(kept)} of {len(pairs)} prompts have at most {max_tokens} tokens, and {size} are needed.")
