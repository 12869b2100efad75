"""Speed and memory of our reward trainer beside TRL's, on the same model, pairs, seed, batch and threads.

    python recipes/experiments/benchmark_reward.py --dataset_name … --output_dir runs/benchmark

Each arm has a process of its own that trains without a break but while another has its turn; a round is a pass over
the same pairs. Before, losses are compared step by step. Pairs longer than `max_length`, which TRL would drop and we
would shorten, are left out for all.
"""

import json
from dataclasses import asdict
from pathlib import Path

from transformers import AutoTokenizer
from trl import RewardConfig, RewardTrainer, TrlParser

from toolkit import MultiScaleRewardConfig, MultiScaleRewardTrainer
from toolkit.experiments.benchmarks.common import (
    Arm,
    benchmark_model,
    benchmark_pairs,
    describe_machine,
    largest_difference,
    print_arms,
    summarize_arms,
)
from toolkit.experiments.benchmarks.reward import (
    TrainingBenchmarkArguments,
    fitting_pairs,
    train_losses,
    train_rounds,
)
from toolkit.experiments.benchmarks.rounds import measure
from toolkit.pages.tables import print_table
from toolkit.planning.plan import build_model, decoder_shape, load_config

TRL, OURS = (RewardTrainer, RewardConfig), (MultiScaleRewardTrainer, MultiScaleRewardConfig)
UNSHARED, GROUPED = {"shared_prompts": False}, {"train_sampling_strategy": "group_by_length"}
# The pairs of each step are the random ones of TRL's, cut into four batches of like length.
REBALANCED = {"train_sampling_strategy": "batch_rebalance", "gradient_accumulation_steps": 4}
ARMS = {
    "TRL": Arm(*TRL, {}),
    "TRL, group_by_length": Arm(*TRL, GROUPED),
    "ours": Arm(*OURS, REBALANCED),
    "ours, group_by_length": Arm(*OURS, GROUPED),
    "ours, unshared": Arm(*OURS, UNSHARED),
}
CHECKS = {
    "ours and ours, unshared": (Arm(*OURS, REBALANCED), Arm(*OURS, UNSHARED)),
    "TRL and ours, response scale": (
        Arm(*TRL, {}),
        Arm(*OURS, {"scales": ["response"], "context": "none"} | REBALANCED),
    ),
}
TOLERANCE = 1e-4  # of a loss, in float32


def main(args: TrainingBenchmarkArguments) -> None:
    if unknown := set(args.arms or ARMS) - set(ARMS):
        raise ValueError(f"`arms` names {sorted(unknown)}. Use some of {list(ARMS)}.")
    folder = Path(args.output_dir)
    pairs = benchmark_pairs(args)
    model, data = benchmark_model(args, pairs), str(folder / "pairs")
    fitting_pairs(pairs, AutoTokenizer.from_pretrained(model), args.max_length, args.train_size).save_to_disk(data)

    arms = [arm for check in CHECKS.values() for arm in check]
    (runs,) = measure({"checks": (train_losses, (arms, args, model, data))}, len(arms), args.threads).values()
    checks = {}
    for i, name in enumerate(CHECKS):
        one, other = runs[2 * i].values, runs[2 * i + 1].values
        checks[name] = {"difference": largest_difference(one, other), "losses": [one, other]}
    rows = [(name, str(args.check_steps), f"{check['difference']:.1e}") for name, check in checks.items()]
    print_table("Losses of the two, step by step", ("", "steps", "largest difference"), rows)

    machine = describe_machine(args.device, args.dtype, args.threads)
    work = {name: (train_rounds, (ARMS[name], args, model, data)) for name in args.arms or ARMS}
    rounds = measure(work, args.rounds, args.threads)
    decoder = decoder_shape(build_model(load_config(model), reward=False))
    figures = summarize_arms(rounds, decoder, machine["matmul_flops_per_second"], backward=True)
    title = f"Reward training, {args.device}, {args.dtype}, threads {args.threads}, {machine['name']}"
    print_arms(f"{title}: {args.rounds} rounds of {args.train_size} pairs", "pairs", figures)
    results = {"arguments": asdict(args), "machine": machine, "decoder": decoder._asdict(), "arms": figures}
    (folder / "training.json").write_text(json.dumps(results | {"checks": checks}, indent=1))

    apart = [name for name, check in checks.items() if not check["difference"] <= TOLERANCE]
    if apart and args.dtype == "float32":
        raise SystemExit(f"The losses of {apart} differ by more than {TOLERANCE}.")


if __name__ == "__main__":
    main(*TrlParser((TrainingBenchmarkArguments,)).parse_args_and_config())
