"""The first hour on a GPU: numbers equal to the CPU's, attention kernels, memory beside `prefscale plan`, and speed
beside TRL's trainers as they come and with FlashAttention.

    python recipes/experiments/gpu_hour.py --models /models/Qwen3-0.6B /models/Qwen3-8B --dataset_name pairs.jsonl

It needs no network: torch for CUDA and this package, FlashAttention (`flash-attn`) if that is to be measured, folders
of decoders with their weights and tokenizers, smallest first (without them, Qwen3's shapes with random weights), and a
file of pairs of about 1,000 tokens. With `--lora_data` the first cells of the LoRA grid are trained on the smallest.
It ends within 25 minutes; what has ended is kept, and the same command goes on.
`--device cpu --quick true` runs a tiny version of everything.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from trl import TrlParser

from toolkit.experiments.gpu_hour import GpuHour, run_stages, stages
from toolkit.experiments.study.grid import Study
from toolkit.pages.tables import print_table
from toolkit.training.run_record import write_json


@dataclass
class GpuHourArguments(GpuHour):
    """What is measured, where it is kept, and how long it may take."""

    models: list[str] = field(default_factory=list, metadata={"help": "Folders of decoders, smallest first."})
    dataset_name: str = field(default="sandbox", metadata={"help": "Pairs, named as in the other recipes."})
    lora_data: str = field(default="", metadata={"help": "Folder of the LoRA grid's data, docs/lora_grid.md."})
    device: str = field(default="cuda", metadata={"help": "'cuda', or 'cpu' with `quick`."})
    quick: bool = field(default=False, metadata={"help": "Whether to run a tiny version of everything."})
    output_dir: str = field(default="runs/gpu_hour", metadata={"help": "Folder of the results."})
    minutes: float = field(default=25.0, metadata={"help": "Minutes after which it ends."})


def check(args: GpuHourArguments) -> None:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU. Run it on one, or with `--device cpu --quick true`.")
    if args.device != "cuda" and not args.quick:
        raise SystemExit("Without a GPU only the tiny version runs: add `--quick true`.")
    for folder in args.models:
        if not (Path(folder) / "config.json").is_file():
            raise SystemExit(
                f"'{folder}' has no config.json. Give folders of decoders, weights and tokenizer included."
            )


def main(args: GpuHourArguments) -> None:
    check(args)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with several GPUs Transformers would share out each batch
    study = Study(
        Path(args.output_dir), GpuHour(args.models, args.dataset_name, args.lora_data, args.device, args.quick)
    )
    print(
        f"Attention: {', '.join(study.settings.kernels)}. FlashAttention is measured where `flash-attn` is installed."
    )
    missing = run_stages(study, args.minutes)
    results = {cell.name: study.result(cell.name) for _, cells in stages(study) for cell in cells}
    found = {name: result for name, result in results.items() if result is not None}
    print_table(f"The first hour on {args.device}", ("", "", "found"), rows(found))
    write_json(study.folder / "results.json", results)
    if missing:
        raise SystemExit(
            f"Not done, or failed: {missing}. Reasons are in the logs in '{study.folder}'; the same command goes on."
        )


def rows(results: dict[str, dict]) -> Iterator[tuple[str, str, str]]:
    """Of every cell its figures, and those of an arm beside TRL's."""
    for cell, result in results.items():
        for name, value in result.items():
            for part in value if isinstance(value, list) else [value]:
                number = isinstance(part, int | float)
                text = f"{part / 1e9:.2f} billion" if number and part > 1e8 else f"{part:.4g}" if number else str(part)
                yield cell, name, text
        if theirs := results.get(result.get("beside", "")):
            yield cell, "times TRL", f"{result['items_per_second'] / theirs['items_per_second']:.2f}"


if __name__ == "__main__":
    main(*TrlParser(GpuHourArguments).parse_args_and_config())
