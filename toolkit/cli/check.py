"""`prefscale check`: what training makes of every row of preference pairs, and what is worth knowing beside it."""

import argparse
import os
import sys
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data.checks import PairCounts
    from ..data.fixes import PairFiles
    from ..data.survey import Source, Survey

LINE_BY_LINE = (".jsonl", ".ndjson", ".csv", ".tsv")
BLOCK = 2**20  # bytes


def add_check(command: argparse.ArgumentParser) -> None:
    """Add what the command takes, and what it does."""
    command.description = (
        "Says how files of preference pairs are read, what training makes of every row, and what is worth a look "
        "before it. Several files are one set. Exit status: 0 where training would run on it, 1 where it would "
        "refuse it, 2 where the command itself is wrong."
    )
    command.add_argument(
        "data", nargs="+", metavar="FILE", help="file, pattern of files, folder or hub name, as the recipes take it"
    )
    command.add_argument("--split", help="split of a hub data set or folder")
    command.add_argument(
        "--against", nargs="+", default=[], metavar="FILE", help="other files, whose prompts should not be among these"
    )
    command.add_argument(
        "--tokenizer", metavar="NAME", help="folder or hub name; also finds rows that become equal or too long"
    )
    command.add_argument(
        "--max-length", "--max_length", type=int, metavar="N", help="with --tokenizer: most tokens of a row (1024)"
    )
    command.add_argument(
        "--near", action="store_true", help="also count pairs that differ in case, punctuation and white space alone"
    )
    command.add_argument(
        "--fix", metavar="OUT.jsonl", help="write usable pairs to it, the rest with reasons to OUT.rejected.jsonl"
    )
    command.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    from ..data.checks import PairCounts
    from ..data.fixes import PairFiles
    from ..data.survey import Survey
    from .check_text import print_survey

    if args.max_length is not None and args.tokenizer is None:
        raise ValueError("`--max-length` counts tokens. Give `--tokenizer`, too.")
    files = PairFiles(args.fix) if args.fix else None
    counts, others = PairCounts(args.near), _others(args)
    tokens = None
    if args.tokenizer is not None:
        from ..data.token_checks import TokenChecks

        tokens = TokenChecks(args.tokenizer, counts, args.max_length)
    survey = Survey(counts, tokens, files)
    error = _read(args, survey, files)
    if error and not survey.rows:
        print(f"prefscale check: {error}", file=sys.stderr)
        return 1
    if tokens and (refusal := tokens.refusal()):
        survey.refusals.append(refusal)
    counts.finish(others)
    print_survey(survey, tokens)
    return 1 if survey.refusals else 0


def _read(args: argparse.Namespace, survey: "Survey", files: "PairFiles | None") -> ValueError | None:
    """Go through all rows; what cannot be read on is returned, and refused by training, too."""
    from ..data.survey import find_sources

    try:
        with files or nullcontext():
            for name in args.data:
                for source in find_sources(name, args.split):
                    survey.add(_with_bar(source))
    except ValueError as error:
        survey.refusals.insert(0, str(error))
        survey.files = None  # nothing was written
        return error
    return None


def _others(args: argparse.Namespace) -> "PairCounts | None":
    """Prompts of the files with which these are compared."""
    from ..data.checks import PairCounts
    from ..data.survey import add_prompts, find_sources

    if not args.against:
        return None
    others = PairCounts()
    for name in args.against:
        for source in find_sources(name):
            add_prompts(_with_bar(source), others)
    return others


def _with_bar(source: "Source") -> "Source":
    """The source, with a bar of its rows where a person sees it."""
    from tqdm import tqdm

    if not sys.stderr.isatty():
        return source
    total = source.total
    if source.name.endswith(LINE_BY_LINE) and os.path.isfile(source.name):
        with open(source.name, "rb") as file:  # lines are counted far sooner than rows are checked
            total = sum(block.count(b"\n") for block in iter(partial(file.read, BLOCK), b""))
    return source._replace(
        rows=tqdm(source.rows, f"Checking {source.name}", total, unit=" rows", unit_scale=True, leave=False)
    )
