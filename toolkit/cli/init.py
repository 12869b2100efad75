"""`prefscale init`: a YAML file to begin with."""

import argparse
import os
import shutil


def add_init(command: argparse.ArgumentParser) -> None:
    """Add what the command takes, and what it does."""
    command.add_argument("name", help="`reward`, `reinforce`, or a file of recipes/configs such as hh_reward")
    command.add_argument("file", nargs="?", help="file to write (NAME.yaml), which must not be there yet")
    command.set_defaults(run=_init)


def _init(args: argparse.Namespace) -> None:
    from ..training.shipped import CONFIGS, shipped_file, shipped_folder

    source = shipped_file(args.name, CONFIGS)
    if not os.path.isfile(source) or os.path.dirname(source) != str(shipped_folder(CONFIGS)):
        known = ", ".join(sorted(path.stem for path in shipped_folder(CONFIGS).glob("*.yaml")))
        raise ValueError(f"There is no '{args.name}' to begin with. Give one of: {known}.")
    file = args.file or os.path.basename(source)
    if os.path.lexists(file):
        raise ValueError(f"'{file}' exists. Give another name after '{args.name}', or remove it.")
    shutil.copyfile(source, file)
    job = "reinforce" if "reinforce" in os.path.basename(source) else "reward"
    print(f"Wrote '{file}'. Fill in its model and data, then: prefscale {job} --config {file}")
