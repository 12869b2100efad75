"""How cost grows: time and memory of a reward-training step against response length, prompt share and model size.

    python recipes/experiments/benchmark_scaling.py --output_dir runs/scaling

Each sweep varies one thing from a base point. At every point a step with shared prompts and one with a row for each
side, which is what TRL's trainer runs, take turns in this process, on random tokens of exact lengths: collate,
forward, loss, backward, no optimizer. The floor is the count of floating-point operations at the rate of the
machine's matrix products. For a GPU raise the sizes: `--device cuda --dtype bfloat16 --sizes 1024x12 …`.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from trl import TrlParser

from toolkit.experiments.benchmarks.common import describe_machine, largest_difference, matmul_rate
from toolkit.experiments.benchmarks.report import plot_scaling, print_scaling
from toolkit.experiments.benchmarks.scaling import (
    SHARED,
    UNSHARED,
    ScalingArguments,
    measure_point,
    summarize_point,
    sweeps_of,
)

TOLERANCE = 1e-4  # of a loss, in float32


def main(args: ScalingArguments) -> None:
    torch.set_num_threads(args.threads)
    machine = describe_machine(args.device, args.dtype, args.threads)
    sweeps = sweeps_of(args)
    measured, rates = {}, [machine["matmul_flops_per_second"]]
    different = dict.fromkeys(point for points in sweeps.values() for point in points)  # the base point once
    for i, point in enumerate(different, 1):
        print(f"measuring {i} of {len(different)}:", *point, flush=True)
        measured[point] = measure_point(point, args)
        rates.append(matmul_rate(args.device, args.dtype, args.threads))
    # The best of the whole run, since other processes may have slowed any one of them.
    machine["matmul_flops_per_second"] = rate = max(rates)

    results, differences = {}, []
    for sweep, points in sweeps.items():
        results[sweep] = []
        for point in points:
            decoder, rounds = measured[point]
            weights = decoder.layers * decoder.linear_weights
            sizes = point._asdict() | {"prompt_length": point.prompt_length, "linear_weights": weights}
            results[sweep].append(sizes | summarize_point(rounds, decoder, rate))
            differences.append(largest_difference(rounds[UNSHARED][0].values, rounds[SHARED][0].values))

    print_scaling(results)
    title = f"A step of {args.pairs} pairs, {args.device}, {args.dtype}, threads {args.threads}, {machine['name']}"
    print(f"{title}: {rate / 1e9:.1f} GFLOP/s in matrix products, losses within {max(differences):.1e}")
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    record = {"arguments": asdict(args), "machine": machine, "difference": max(differences), "sweeps": results}
    (folder / "scaling.json").write_text(json.dumps(record, indent=1))
    plot_scaling(folder / "scaling.png", results, title)
    if args.dtype == "float32" and not max(differences) <= TOLERANCE:
        raise SystemExit(f"The losses of the two layouts differ by {max(differences):.1e}, more than {TOLERANCE}.")


if __name__ == "__main__":
    main(*TrlParser((ScalingArguments,)).parse_args_and_config())
