"""The whole loop without a download (`make demo`): a tiny decoder learns to answer in the sandbox, a multi-scale
reward model learns from pairs, REINFORCE tunes the decoder on it, and the gold reward tells what came of it."""

from dataclasses import dataclass, field
from pathlib import Path

from trl import SFTConfig, SFTTrainer

from toolkit import (
    MultiScaleRewardConfig,
    MultiScaleRewardTrainer,
    ReinforceConfig,
    ReinforceTrainer,
    RewardFunction,
    sandbox,
)
from toolkit.judges.duels import compare_policies
from toolkit.pages.run_page import write_run_report
from toolkit.pages.tables import accuracies_of, print_accuracy, print_comparison
from toolkit.training.command_line import run_recipe
from toolkit.training.options import check_counts
from toolkit.training.progress import show_progress
from toolkit.training.run_folder import claim_folder, delete_earlier_run
from toolkit.training.run_record import write_json

COMMON = {
    "use_cpu": True, "bf16": False, "activation_checkpointing": False, "report_to": "none", "save_strategy": "no",
    "lr_scheduler_type": "cosine", "weight_decay": 0.01}  # fmt: skip


@dataclass
class DemoArguments:
    """Sizes of the demonstration; the defaults fit two cores and a few minutes."""

    output_dir: str = field(default="runs/demo", metadata={"help": "Folder of the run."})
    pairs: int = field(default=6000, metadata={"help": "Preference pairs for the reward model."})
    test_size: int = field(default=1000, metadata={"help": "Held-out pairs, and held-out prompts."})
    sft_steps: int = field(default=450, metadata={"help": "Steps of supervised fine-tuning."})
    reinforce_steps: int = field(default=50, metadata={"help": "Steps of REINFORCE."})
    seed: int = field(default=0, metadata={"help": "Seed."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Whether a run in `output_dir` is deleted."})


def train_start(args: DemoArguments, out: Path, tokenizer: object) -> object:
    config = SFTConfig(
        str(out / "start"), max_steps=args.sft_steps, per_device_train_batch_size=32, learning_rate=3e-3,
        warmup_steps=20, logging_steps=50, seed=args.seed, **COMMON,
    )  # fmt: skip
    rows = sandbox.sample_demonstrations(32 * args.sft_steps, args.seed)
    sft = SFTTrainer(sandbox.sandbox_decoder(), config, train_dataset=rows, processing_class=tokenizer)
    show_progress(sft)
    sft.train()
    sft.save_model()
    return sft.model


def main(args: DemoArguments) -> None:
    check_counts(args, "pairs", "test_size", "sft_steps", "reinforce_steps")
    out, tokenizer = Path(args.output_dir), sandbox.sandbox_tokenizer()
    claim_folder(args.output_dir, overwrite=args.overwrite_output_dir)
    delete_earlier_run(args.output_dir, args.overwrite_output_dir)
    print("1. Supervised fine-tuning of a tiny decoder")
    start = train_start(args, out, tokenizer)
    print("2. The multi-scale reward model")
    config = MultiScaleRewardConfig(
        str(out / "reward"), num_train_epochs=2, per_device_train_batch_size=32, per_device_eval_batch_size=64,
        learning_rate=1e-3, warmup_steps=20, logging_steps=25, seed=args.seed, **COMMON,
    )  # fmt: skip
    train = sandbox.sample_pairs(args.pairs, args.seed)
    test = sandbox.sample_pairs(args.test_size, sandbox.HELD_OUT_SEED)
    reward = MultiScaleRewardTrainer(str(out / "start"), config, train_dataset=train, eval_dataset=test)
    reward.train()
    reward.save_model()
    reward_metrics = reward.evaluate()
    print("3. REINFORCE on the reward model; the gold reward is logged, not trained on")
    config = ReinforceConfig(
        str(out / "policy"), max_steps=args.reinforce_steps, per_device_train_batch_size=64, num_generations=2,
        baseline="leave_one_out", prefix_baseline=True, normalize_rewards=True, beta=0.05, max_completion_length=48,
        learning_rate=2e-4, warmup_steps=5, logging_steps=1, reward_weights=[1, 0], seed=args.seed, **COMMON,
    )  # fmt: skip
    rewards = [RewardFunction(str(out / "reward"), batch_size=64), sandbox.gold_judge]
    prompts = sandbox.sample_prompts(32 * args.reinforce_steps, args.seed)
    reinforce = ReinforceTrainer(str(out / "start"), rewards, config, train_dataset=prompts)
    reinforce.train()
    reinforce.save_model()
    print(f"4. Held-out prompts, before and after. {sandbox.RULES}")
    held_out = list(sandbox.sample_prompts(args.test_size, sandbox.HELD_OUT_SEED)["prompt"])
    comparison = compare_policies(
        start, reinforce.model, tokenizer, held_out, sandbox.gold_judge, max_new_tokens=48, seed=args.seed
    )
    policy = comparison._asdict() | {"judge": sandbox.gold_judge.__name__, "about": sandbox.RULES}
    log = [row for row in reinforce.state.log_history if "reward" in row]
    write_json(out / "metrics.json", {"reward_model": reward_metrics, "policy": policy, "log": log})
    print_accuracy(accuracies_of(reward_metrics, reward.args.scales))
    print_comparison(comparison, f"Gold reward of the policy on {args.test_size} held-out prompts")
    print(f"Models and metrics.json are in {out}/, and {write_run_report(out)} shows what came of them.")


if __name__ == "__main__":
    run_recipe(main, DemoArguments)
