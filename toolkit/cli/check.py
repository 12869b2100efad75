"""`prefscale check`: every row of a set of preference pairs is checked, and the set described."""

import argparse


def add_check(command: argparse.ArgumentParser) -> None:
    """Add what the command takes, and what it does."""
    command.add_argument("data", help="hub name, folder, file (.jsonl, .jsonl.gz, .parquet) or pattern of files")
    command.add_argument("--split", help="split of a hub data set or folder")
    command.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> None:
    import torch

    from ..data.loading import load_pairs
    from ..data.messages import texts_of
    from ..pages.tables import print_accuracy, print_table
    from ..stats.metrics import pair_accuracy

    pairs = load_pairs(args.data, args.split)
    texts = {
        column: ["\n".join(texts_of(cell)) for cell in pairs[column]] for column in ("prompt", "chosen", "rejected")
    }
    lengths = {column: torch.tensor([len(text) for text in cells]).float() for column, cells in texts.items()}
    form = "plain text" if isinstance(pairs[0]["prompt"], str) else "messages"
    rows: list[tuple[str, ...]] = [
        (name, f"{cells.mean():.0f}", f"{cells.median():.0f}", f"{cells.max():.0f}") for name, cells in lengths.items()
    ]
    print_table(
        f"{args.data}: {len(pairs)} pairs, {form}, all rows in order", ("characters", "mean", "median", "most"), rows
    )
    distinct = len(set(texts["prompt"]))
    repeated = len(pairs) - len(set(zip(*texts.values(), strict=True)))
    print(f"{distinct} distinct prompts, {repeated} repeated pairs; columns {pairs.column_names}")
    print_accuracy({"longer wins": pair_accuracy(lengths["chosen"], lengths["rejected"])}, "What a model must beat")
