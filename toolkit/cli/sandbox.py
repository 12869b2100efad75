"""`prefscale sandbox`: preference pairs of the sandbox in a file."""

import argparse


def add_sandbox(command: argparse.ArgumentParser) -> None:
    """Add what the command takes, and what it does."""
    command.add_argument("file", help="file to write (.jsonl)")
    command.add_argument("--size", type=int, default=1000, help="number of pairs (1000)")
    command.add_argument("--seed", type=int, default=0, help="seed (0)")
    command.set_defaults(run=_sandbox)


def _sandbox(args: argparse.Namespace) -> None:
    from ..sandbox.rows import sample_pairs

    sample_pairs(args.size, seed=args.seed).to_json(args.file)
