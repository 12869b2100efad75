"""`prefscale report`: a page about a training run, several runs side by side, a closed loop, or a study."""

import argparse
from pathlib import Path


def add_report(command: argparse.ArgumentParser) -> None:
    """Add what the command takes, and what it does."""
    command.add_argument(
        "folders",
        nargs="+",
        metavar="folder",
        help="output folder of a training, the demonstration, a closed loop or a study; several are compared",
    )
    command.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> None:
    from ..experiments.study.grid import SETTINGS_FILE
    from ..experiments.study.page import write_study_report
    from ..pages.comparison_page import write_comparison
    from ..pages.joint_page import is_joint, write_joint_report
    from ..pages.run_page import write_run_report

    first = Path(args.folders[0])
    if len(args.folders) > 1:
        print(write_comparison(args.folders))
    elif (first / SETTINGS_FILE).is_file():
        print(write_study_report(first))
    else:
        print(write_joint_report(first) if is_joint(first) else write_run_report(first))
