"""`prefscale sandbox`: preference pairs of the sandbox in a file."""

import argparse
import os
from pathlib import Path


def add_sandbox(command: argparse.ArgumentParser) -> None:
    """Add what the command takes, and what it does."""
    command.add_argument("file", help="file to write (.jsonl), which must not be there yet")
    command.add_argument("--size", type=int, default=1000, help="number of pairs (1000)")
    command.add_argument("--seed", type=int, default=0, help="seed (0)")
    command.set_defaults(run=_sandbox)


def _sandbox(args: argparse.Namespace) -> None:
    from ..data.files import PACKED, check_json_name
    from ..training.options import check_number

    check_number("--size", args.size, 1, whole=True)
    from ..sandbox.rows import sample_pairs  # with which torch comes

    file = Path(args.file)
    check_json_name(args.file, (".jsonl", ".ndjson", ".json", ".jsonl" + PACKED))
    if os.path.lexists(file):
        raise ValueError(f"'{file}' exists. Give another name, or remove it.")
    # Of the same ending, from which the packing follows
    part = file.with_name(f"part-{os.getpid()}-{file.name}")
    try:
        sample_pairs(args.size, seed=args.seed).to_json(part)
        part.rename(file)
    except OSError as error:
        raise ValueError(f"Cannot write '{file}' ({error.strerror}). Give another name.") from None
