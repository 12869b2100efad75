"""Speed and memory of `RewardFunction` beside what TRL's trainers do with a reward model, on the same responses.

    python recipes/experiments/benchmark_scoring.py --dataset_name … --output_dir runs/benchmark

Each arm has a process of its own and they take turns, a round being all responses. TRL's own method scores them, in
generation batches of `call_size`; the scores are compared.
"""

import json
from dataclasses import asdict
from pathlib import Path

from transformers import AutoTokenizer
from trl import TrlParser

from toolkit.experiments.benchmarks.common import (
    benchmark_model,
    benchmark_pairs,
    describe_machine,
    largest_difference,
    print_arms,
    summarize_arms,
)
from toolkit.experiments.benchmarks.reward import (
    ScoringBenchmarkArguments,
    response_scale_model,
    score_with_ours,
    score_with_trl,
    scoring_rows,
)
from toolkit.experiments.benchmarks.rounds import measure
from toolkit.planning.plan import build_model, decoder_shape, load_config

TOLERANCE = 1e-5  # of a score, in float32


def main(args: ScoringBenchmarkArguments) -> None:
    folder = Path(args.output_dir)
    pairs = benchmark_pairs(args)
    model = benchmark_model(args, pairs)
    reward = response_scale_model(folder / f"reward-{Path(model).name}", model)
    rows = scoring_rows(pairs, AutoTokenizer.from_pretrained(model), args.max_length, args.prompts, args.seed)

    machine = describe_machine(args.device, args.dtype, args.threads)
    shared = (args, reward, rows)
    work = {
        f"TRL, {args.call_size} a call": (score_with_trl, (*shared, args.call_size)),
        f"ours, {args.call_size} a call": (score_with_ours, (*shared, args.call_size)),
        "ours, all in a call": (score_with_ours, (*shared, len(rows))),
    }
    rounds = measure(work, args.rounds, args.threads)
    decoder = decoder_shape(build_model(load_config(model), reward=False))
    figures = summarize_arms(rounds, decoder, machine["matmul_flops_per_second"], backward=False)
    title = f"Scoring, {args.device}, {args.dtype}, threads {args.threads}, {machine['name']}"
    print_arms(f"{title}: {args.rounds} rounds of {len(rows)} responses", "responses", figures)
    trl, *ours = (arm[0].values for arm in rounds.values())
    difference = max(largest_difference(scores, trl) for scores in ours)
    print(f"Largest difference of a score from TRL's: {difference:.1e}")
    results = {"arguments": asdict(args), "machine": machine, "decoder": decoder._asdict(), "arms": figures}
    (folder / "scoring.json").write_text(json.dumps(results | {"difference": difference}, indent=1))
    if args.dtype == "float32" and not difference <= TOLERANCE:
        raise SystemExit(f"The scores differ by {difference:.1e}, which is more than {TOLERANCE}.")


if __name__ == "__main__":
    main(*TrlParser((ScoringBenchmarkArguments,)).parse_args_and_config())
