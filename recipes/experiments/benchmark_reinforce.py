"""Speed and memory of a REINFORCE step beside TRL's, on the same policy, reward model, samples and batch, and where
the time of a step goes.

    python recipes/experiments/benchmark_reinforce.py --dataset_name … --output_dir runs/benchmark --beta 0.05

Each arm has a process of its own and they take turns, a round being a few steps. The learning rate is 0, so that all
of them sample the same responses throughout, which is checked. TRL scores by its own path, with the stock model.
"""

import json
import statistics
from dataclasses import asdict
from pathlib import Path

from transformers import AutoTokenizer
from trl import RLOOConfig, RLOOTrainer, TrlParser

from toolkit import ReinforceConfig, ReinforceTrainer, RewardFunction
from toolkit.experiments.benchmarks.common import Arm, benchmark_model, benchmark_pairs, describe_machine, speed_ratios
from toolkit.experiments.benchmarks.policy import (
    PARTS,
    PolicyBenchmarkArguments,
    fitting_prompts,
    policy_rounds,
)
from toolkit.experiments.benchmarks.reward import response_scale_model
from toolkit.experiments.benchmarks.rounds import measure
from toolkit.pages.tables import print_table

ARMS = {
    "TRL": Arm(RLOOTrainer, RLOOConfig, {}),
    "ours": Arm(ReinforceTrainer, ReinforceConfig, {}, RewardFunction),
    "ours, prefix baseline": Arm(ReinforceTrainer, ReinforceConfig, {"prefix_baseline": True}, RewardFunction),
}


def main(args: PolicyBenchmarkArguments) -> None:
    pairs = benchmark_pairs(args)
    model = benchmark_model(args, pairs)
    reward = response_scale_model(Path(args.output_dir) / f"reward-{Path(model).name}", model)
    count = (args.rounds + 1) * args.steps * args.batch_size // args.num_generations
    room = args.max_length - args.max_completion_length
    prompts = fitting_prompts(pairs, AutoTokenizer.from_pretrained(model), room, min(count, args.train_size))
    machine = describe_machine(args.device, args.dtype, args.threads)
    work = {name: (policy_rounds, (arm, args, model, reward, prompts)) for name, arm in ARMS.items()}
    rounds = measure(work, args.rounds, args.threads)

    reference, rows, figures = rounds["TRL"], [], {}
    for name, own in rounds.items():
        ratio = speed_ratios(own, reference)
        speed = sum(r.items for r in own) / sum(r.seconds for r in own)
        same = sum(r.values == other.values for r, other in zip(own, reference, strict=True))
        run, peak = sum(r.padded_tokens for r in own), max(r.peak_bytes for r in own)
        spread, alike = f"{ratio.low:.2f} to {ratio.high:.2f}", f"{same} of {args.rounds}"
        rows.append((name, f"{speed:.1f}", f"{ratio.median:.2f}", spread, f"{run:,}", f"{peak / 1e6:.0f}", alike))
        parts = {part: statistics.median(r.parts[k] for r in own) for k, part in enumerate(PARTS)}
        figures[name] = {"per_second": speed, "ratio": ratio._asdict(), "parts": parts, "same_rounds": same}
        figures[name] |= {"tokens_run": run, "peak_bytes": peak, "rounds": [r._asdict() for r in own]}
    title = f"REINFORCE, {args.device}, {args.dtype}, threads {args.threads}, {machine['name']}, beta {args.beta}: "
    title += f"{args.rounds} rounds of {args.steps} steps of {args.batch_size} responses"
    columns = ("tokens/s", "ratio", "least to most", "tokens run", "peak MB", "rounds with TRL's responses")
    print_table(title, ("", *columns), rows)
    table = [(part, *(f"{figures[name]['parts'][part]:.3f}" for name in ARMS)) for part in PARTS]
    table.append(("step", *(f"{sum(figures[name]['parts'].values()):.3f}" for name in ARMS)))
    print_table("Seconds of a step, median of the rounds", ("", *ARMS), table)
    results = {"arguments": asdict(args), "machine": machine, "arms": figures}
    (Path(args.output_dir) / f"reinforce-{args.beta}.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(*TrlParser((PolicyBenchmarkArguments,)).parse_args_and_config())
