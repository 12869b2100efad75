"""The console command `prefscale`."""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

import torch

from .data import load_pairs
from .metrics import pair_accuracy
from .report import print_accuracy, print_table
from .sandbox import sample_pairs


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command.

    Args:
        arguments (`Sequence[str]`, *optional*):
            Words after the command; those of the process where they are not given.

    Returns:
        `int`: Exit status: 0, or 2 where the user's input was wrong.
    """
    parser = argparse.ArgumentParser(prog="prefscale", description="Preference data at a glance.")
    parser.add_argument("--version", action="version", version=f"prefscale {version('prefscale')}")
    commands = parser.add_subparsers(dest="command", required=True)

    check = commands.add_parser("check", help="check every row of a set of preference pairs, and describe it")
    check.add_argument("data", help="hub name, folder, file (.jsonl, .jsonl.gz, .parquet) or pattern of files")
    check.add_argument("--split", help="split of a hub data set or folder")
    check.set_defaults(run=lambda args: _check(args.data, args.split))

    sandbox = commands.add_parser("sandbox", help="write preference pairs of the sandbox to a file")
    sandbox.add_argument("file", help="file to write (.jsonl)")
    sandbox.add_argument("--size", type=int, default=1000, help="number of pairs (1000)")
    sandbox.add_argument("--seed", type=int, default=0, help="seed (0)")
    sandbox.set_defaults(run=lambda args: sample_pairs(args.size, seed=args.seed).to_json(args.file))

    args = parser.parse_args(arguments)
    try:
        args.run(args)
    except ValueError as error:
        print(f"prefscale {args.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _check(data: str, split: str | None) -> None:
    pairs = load_pairs(data, split)
    texts = {
        column: [cell if isinstance(cell, str) else "\n".join(m["content"] for m in cell) for cell in pairs[column]]
        for column in ("prompt", "chosen", "rejected")
    }
    lengths = {column: torch.tensor([len(text) for text in cells]).float() for column, cells in texts.items()}
    form = "plain text" if isinstance(pairs[0]["prompt"], str) else "messages"
    rows = [
        (name, f"{cells.mean():.0f}", f"{cells.median():.0f}", f"{cells.max():.0f}") for name, cells in lengths.items()
    ]
    print_table(
        f"{data}: {len(pairs)} pairs, {form}, all rows in order", ("characters", "mean", "median", "most"), rows
    )
    distinct = len(set(texts["prompt"]))
    repeated = len(pairs) - len(set(zip(*texts.values(), strict=True)))
    print(f"{distinct} distinct prompts, {repeated} repeated pairs; columns {pairs.column_names}")
    print_accuracy({"longer wins": pair_accuracy(lengths["chosen"], lengths["rejected"])}, "What a model must beat")
