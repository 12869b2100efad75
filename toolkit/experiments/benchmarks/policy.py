"""Steps of REINFORCE as a benchmark: our trainer and TRL's on the same samples, and where their time goes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import RLOOConfig, RLOOTrainer

from .common import BenchmarkArguments
from .rounds import Meter, Turns, now

PARTS = ("generation", "log-probabilities without gradient", "rewards", "forward", "backward", "rest")


@dataclass
class PolicyBenchmarkArguments(BenchmarkArguments):
    """
    Arguments of the benchmark of REINFORCE, beside those of every benchmark.

    Args:
        batch_size (`int`, *optional*, defaults to `32`):
            Responses of a step.
        num_generations (`int`, *optional*, defaults to `4`):
            Responses to a prompt.
        max_completion_length (`int`, *optional*, defaults to `64`):
            Most tokens of a response.
        beta (`float`, *optional*, defaults to `0.0`):
            Weight of the divergence from the reference; 0 needs no reference. TRL's default is 0.05.
        steps (`int`, *optional*, defaults to `4`):
            Steps of a round.
    """

    batch_size: int = field(default=32, metadata={"help": "Responses of a step."})
    num_generations: int = field(default=4, metadata={"help": "Responses to a prompt."})
    max_completion_length: int = field(default=64, metadata={"help": "Most tokens of a response."})
    beta: float = field(
        default=0.0,
        metadata={"help": "Weight of the divergence from the reference; 0 needs no reference. TRL's default is 0.05."},
    )
    steps: int = field(default=4, metadata={"help": "Steps of a round."})


class PolicyArm(NamedTuple):
    """A way to tune a policy: trainer, configuration, what makes its reward function of a folder, and options."""

    trainer: type[RLOOTrainer]
    config: type[RLOOConfig]
    reward: Callable[[str], Any]
    options: dict[str, Any]


class Stopwatch:
    """
    Seconds that a trainer spends in each of `PARTS`, and what it samples and runs the policy on.

    Args:
        trainer ([`~trl.RLOOTrainer`]):
            The trainer, whose methods are timed on this instance.
        device (`str`):
            'cpu' or 'cuda'.
    """

    def __init__(self, trainer: RLOOTrainer, device: str) -> None:
        self.device = device
        trainer._generate_single_turn = self._timed("generation", trainer._generate_single_turn, self._count_sampled)
        frozen = self._timed("log-probabilities without gradient", trainer._get_per_token_logps_and_entropies)
        plain = trainer._get_per_token_logps_and_entropies
        trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (
            plain if torch.is_grad_enabled() else frozen
        )(*args, **kwargs)
        trainer._calculate_rewards = self._timed("rewards", trainer._calculate_rewards)
        trainer._compute_loss = self._timed("forward", trainer._compute_loss)
        trainer.accelerator.backward = self._timed("backward", trainer.accelerator.backward)
        trainer.accelerator.unwrap_model(trainer.model).base_model.register_forward_pre_hook(
            self._count_run, with_kwargs=True
        )
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
    """
    Makes every few steps a round; the first few warm up.

    Args:
        turns ([`~toolkit.experiments.benchmarks.rounds.Turns`]):
            Gives the word.
        meter ([`~toolkit.experiments.benchmarks.rounds.Meter`]):
            Measures time and memory.
        watch ([`Stopwatch`]):
            Measures the parts.
        steps (`int`):
            Steps of a round.
    """

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
    turns: Turns, arm: PolicyArm, args: PolicyBenchmarkArguments, model: str, reward: str, prompts: Dataset
) -> None:
    """
    Work of an arm that tunes a policy at a learning rate of 0, so that all arms go on sampling the same responses.

    Args:
        turns ([`~toolkit.experiments.benchmarks.rounds.Turns`]):
            Gives the word.
        arm ([`PolicyArm`]):
            The trainer.
        args ([`PolicyBenchmarkArguments`]):
            What all arms share.
        model (`str`):
            Hub name or folder of the policy.
        reward (`str`):
            Folder of the reward model.
        prompts (`datasets.Dataset`):
            Prompts.
    """
    config = arm.config(
        output_dir=args.output_dir,
        seed=args.seed,
        learning_rate=0.0,
        per_device_train_batch_size=args.batch_size,
        num_generations=args.num_generations,
        max_completion_length=args.max_completion_length,
        beta=args.beta,
        max_steps=(args.rounds + 1) * args.steps,
        activation_checkpointing=False,
        use_cpu=args.device == "cpu",
        bf16=args.dtype == "bfloat16",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **arm.options,
    )
    trainer = arm.trainer(model, arm.reward(reward), config, train_dataset=prompts)
    trainer.remove_callback(PrinterCallback)
    meter, watch = Meter(nn.Module(), args.device), Stopwatch(trainer, args.device)
    trainer.add_callback(StepsCallback(turns, meter, watch, args.steps))
    trainer.train()


def fitting_prompts(pairs: Dataset, tokenizer: Any, max_tokens: int, size: int) -> Dataset:
    """
    The first different prompts that fit.

    Args:
        pairs (`datasets.Dataset`):
            Pairs in the order in which they are to be taken.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the policy.
        max_tokens (`int`):
            Most tokens of a prompt.
        size (`int`):
            Number of prompts.

    Returns:
        `datasets.Dataset`: Column `prompt`.

    Raises:
        `ValueError`: If fewer fit.
    """
    kept: dict[str, Any] = {}
    for prompt in pairs["prompt"]:
        plain = isinstance(prompt, str)
        ids = (
            tokenizer(prompt)
            if plain
            else tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
        )
        if len(ids["input_ids"]) <= max_tokens:
            kept.setdefault(str(prompt), prompt)
        if len(kept) == size:
            return Dataset.from_dict({"prompt": list(kept.values())})
    raise ValueError(f"{len(kept)} of {len(pairs)} prompts have at most {max_tokens} tokens, and {size} are needed.")
