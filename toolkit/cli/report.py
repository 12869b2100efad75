"""`prefscale report`: a page about the training run or the study in a folder."""

import argparse
from pathlib import Path


def add_report(command: argparse.ArgumentParser) -> None:
    """Add what the command takes, and what it does."""
    command.add_argument("folder", help="output folder of a reward training, REINFORCE, the demonstration or a study")
    command.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> None:
    from ..experiments.study.grid import SETTINGS_FILE
    from ..experiments.study.page import write_study_report
    from ..pages.run_page import write_run_report

    folder = Path(args.folder)
    print(write_study_report(folder) if (folder / SETTINGS_FILE).is_file() else write_run_report(folder))
