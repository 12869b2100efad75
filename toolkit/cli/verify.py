"""`prefscale verify`: whether a saved reward model is what was saved."""

import argparse

WORDS = {True: "good", False: "WRONG", None: "–"}


def add_verify(command: argparse.ArgumentParser) -> None:
    """Add what the command takes, and what it does."""
    command.add_argument("folder", help="folder of a multi-scale reward model or adapter")
    command.set_defaults(run=_verify)


def _verify(args: argparse.Namespace) -> int:
    from transformers import logging

    from ..reward.verification import verify

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what loading has to say is among the findings
    logging.disable_progress_bar()
    try:
        findings = verify(args.folder)
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        print(f"{WORDS[finding.good]:5}  {finding.what:{width}}  {finding.found}")
    wrong = sum(finding.good is False for finding in findings)
    print(f"{args.folder}: {f'{wrong} of {len(findings)} checks found it wrong' if wrong else 'as it was saved'}")
    return int(wrong > 0)
