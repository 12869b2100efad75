"""`prefscale reward`, `reinforce` and their like: jobs, in this process or in several that accelerate starts."""

import argparse
import os
import sys
from importlib import import_module

# Of `accelerate launch`; everything else that it takes goes into a file for `--accelerate_config`.
LAUNCH_OPTIONS = ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port")
EPILOG = (
    "`--help` after a command lists its options. A YAML file may hold those of a training (`--config FILE`, or the "
    "name of one that comes with prefscale). `--accelerate_config` takes a file of accelerate's, or the name of one "
    f"that comes with prefscale, such as zero3; with it or {', '.join('--' + name for name in LAUNCH_OPTIONS)} the "
    "training is started by `accelerate launch`."
)


def add_job(command: argparse.ArgumentParser, module: str) -> None:
    """
    Add a job, all of whose words but the launcher's are read by the job itself.

    Args:
        command (`argparse.ArgumentParser`):
            The parser of the subcommand, made without `--help`.
        module (`str`):
            The job's module in the package; it has a function `run`.
    """
    name = f"{__package__.partition('.')[0]}.{module}"
    command.set_defaults(run=lambda args: _start(command.prog, name, args.words))


def _start(program: str, module: str, words: list[str]) -> None:
    words, launch = _divide(words)
    if launch or _has_several_gpus():
        options = _launch_options(launch)
        os.execv(
            sys.executable, [sys.executable, "-m", "accelerate.commands.launch", *options, "--module", module, *words]
        )
    sys.argv = [program, *words]
    import_module(module).run()


def _divide(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """The job's own words, and what is for the launcher, by name."""
    rest, launch, place = list[str](), dict[str, str](), 0
    while place < len(words):
        name, equals, value = words[place].partition("=")
        if name.removeprefix("--").replace("-", "_") not in (*LAUNCH_OPTIONS, "accelerate_config"):
            rest.append(words[place])
        elif equals or place + 1 < len(words):
            launch[name.removeprefix("--").replace("-", "_")] = value if equals else words[place := place + 1]
        else:
            raise ValueError(f"`{name}` has no value after it. Give one.")
        place += 1
    return rest, launch


def _has_several_gpus() -> bool:
    """Whether one process would leave GPUs unused, and is not itself one of several that a launcher started."""
    if "WORLD_SIZE" in os.environ or "LOCAL_RANK" in os.environ:
        return False
    import torch

    return torch.cuda.device_count() > 1


def _launch_options(launch: dict[str, str]) -> list[str]:
    """Words for `accelerate launch`, with the file that says how processes are started."""
    import torch

    from ..training.shipped import LAUNCHES, shipped_file, shipped_folder

    name = launch.pop("accelerate_config", "multi_gpu" if torch.cuda.is_available() else "cpu_two_processes")
    file = shipped_file(name, LAUNCHES)
    if not os.path.isfile(file):
        known = ", ".join(sorted(path.stem for path in shipped_folder(LAUNCHES).glob("*.yaml")))
        raise ValueError(f"There is no file '{name}' for `--accelerate_config`. Give a path, or one of: {known}.")
    options = ["--config_file", file, *_deepspeed_options(file)]
    if torch.cuda.is_available():
        launch.setdefault("num_processes", str(torch.cuda.device_count()))
    return [*options, *(word for name, value in launch.items() for word in (f"--{name}", value))]


def _deepspeed_options(file: str) -> list[str]:
    """Where the DeepSpeed settings are that a file of accelerate's names, wherever the command is called."""
    import yaml  # type: ignore[import-untyped]

    from ..training.shipped import LAUNCHES, shipped_folder

    with open(file) as stream:
        found = yaml.safe_load(stream)
    name = ((found if isinstance(found, dict) else {}).get("deepspeed_config") or {}).get("deepspeed_config_file", "")
    beside = shipped_folder(LAUNCHES) / os.path.basename(name)
    return ["--deepspeed_config_file", str(beside)] if name and not os.path.exists(name) and beside.is_file() else []
