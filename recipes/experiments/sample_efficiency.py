"""Generated tokens until a policy is as good as `trl.RLOOTrainer` makes it, for each of our baselines, in the sandbox.

    accelerate launch recipes/experiments/sample_efficiency.py

Policy and reward model are those of `make demo`. Every method has 64 responses a step (two a prompt for TRL and
leave-one-out, else one) and its best learning rate of a grid on seed 0, by the gold reward of the last ten steps. The
level is TRL's gold reward in its last five steps. What counts is all generated tokens, up to the first step at which
the mean gold reward of five steps is there. Finished runs are kept in `output_dir`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

import torch
from trl import RLOOTrainer, TrlParser

from toolkit import ReinforceConfig, ReinforceTrainer, RewardFunction, sandbox
from toolkit.experiments.benchmarks.report import plot_learning_curves
from toolkit.pages.tables import print_table
from toolkit.policy.config import BASELINES
from toolkit.stats.curves import tokens_to_level, trailing_mean
from toolkit.stats.metrics import correlation
from toolkit.training.run_record import write_json

METHODS = ["trl", *(name + prefix for prefix in ("+prefix", "") for name in BASELINES)]
GOLD, MODEL, TOKENS = "rewards/gold_judge/mean", "rewards/RewardFunction/mean", "generated_tokens"


@dataclass
class EfficiencyArguments:
    start: str = field(default="runs/demo/start", metadata={"help": "Policy that every run starts from."})
    reward: str = field(default="runs/demo/reward", metadata={"help": "Multi-scale reward model."})
    output_dir: str = field(default="runs/sample_efficiency", metadata={"help": "Folder of the results."})
    methods: list[str] = field(default_factory=lambda: METHODS, metadata={"help": "'trl', the level, and others."})
    learning_rates: list[float] = field(default_factory=lambda: [1e-4, 2e-4, 4e-4], metadata={"help": "The grid."})
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5], metadata={"help": "Seeds that count."})
    steps: int = field(default=60, metadata={"help": "Optimizer steps of a run."})


class Measured:
    """Logs for TRL's trainer and ours alike: all tokens generated so far, and how a step's two rewards agree."""

    generated_tokens = 0

    def _generate_single_turn(self, *args, **kwargs):
        completion_ids = super()._generate_single_turn(*args, **kwargs)
        self.generated_tokens += sum(len(ids) for ids in completion_ids)
        return completion_ids

    def log(self, logs, start_time=None):
        rewards = [torch.tensor(list(values)) for values in self._logs["rewards"].values()]
        super().log(logs | {TOKENS: self.generated_tokens, "reward_correlation": correlation(*rewards)}, start_time)


def train(args: EfficiencyArguments, method: str, rate: float, seed: int) -> list[dict[str, float]]:
    """What one run logs at each step; from its file where there is one."""
    if not (file := Path(args.output_dir, f"{method}-{rate:g}-seed{seed}.json")).exists():
        print(f"{method}, learning rate {rate:g}, seed {seed}", flush=True)
        baseline, _, prefix = method.replace("trl", "leave_one_out").partition("+")  # TRL's trainer reads neither
        generations = 2 if baseline == "leave_one_out" else 1
        config = ReinforceConfig(
            args.output_dir, max_steps=args.steps, per_device_train_batch_size=64, num_generations=generations,
            baseline=baseline, prefix_baseline=bool(prefix), normalize_rewards=True, reward_weights=[1, 0], beta=0.05,
            max_completion_length=48, learning_rate=rate, lr_scheduler_type="cosine", warmup_steps=5, seed=seed,
            weight_decay=0.01, logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, bf16=False,
            activation_checkpointing=False,
        )  # fmt: skip
        prompts = sandbox.sample_prompts(args.steps * 64 // generations, seed)  # no row comes twice
        rewards = [RewardFunction(args.reward, batch_size=64), sandbox.gold_judge]
        measured = type("Measured", (Measured, RLOOTrainer if method == "trl" else ReinforceTrainer), {})
        trainer = measured(args.start, rewards, config, train_dataset=prompts)
        trainer.train()
        write_json(file, [row for row in trainer.state.log_history if "reward" in row])
    return json.loads(file.read_text())


def main(args: EfficiencyArguments) -> None:
    curves, needed, rows = {}, {}, []
    for method in args.methods:
        trials = {rate: train(args, method, rate, seed=0) for rate in args.learning_rates}
        rate = max(trials, key=lambda rate: mean(row[GOLD] for row in trials[rate][-10:]))
        logs = [train(args, method, rate, seed) for seed in args.seeds]
        tokens, gold, model = (torch.tensor([[row[k] for row in log] for log in logs]) for k in (TOKENS, GOLD, MODEL))
        curves[method] = (tokens, trailing_mean(gold, 5))
        ends = [trailing_mean(values, 5)[:, -1].tolist() for values in (gold, model)]
        level = curves["trl"][1][:, -1].mean().item()
        spent = needed[method] = tokens_to_level(*curves[method], level).tolist()
        tokens_cell = f"{median(spent):,.0f} ({min(spent):,.0f} to {max(spent):,.0f})"
        end_cells = [f"{mean(end):.2f} ({min(end):.2f} to {max(end):.2f})" for end in ends]
        rows.append((method, f"{rate:g}", tokens_cell, f"{median(spent) / median(needed['trl']):.2f}", *end_cells))
    title = f"Tokens to a gold reward of {level:.2f}, median (range) of the seeds, inf where it is not reached"
    print_table(title, ("method", "learning rate", "tokens", "of TRL's", "gold at the end", "model's reward"), rows)
    panels = {name: ["trl", name, f"{name}+prefix"] for name in BASELINES}
    plot_learning_curves(Path(args.output_dir, "curves.png"), curves, panels, level)


if __name__ == "__main__":
    main(*TrlParser(EfficiencyArguments).parse_args_and_config())
