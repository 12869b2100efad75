"""
`accelerate launch` whose processes are forked from this one, after all that they import: `forked.py LAUNCHES.json`.

The file has a list of launches that follow each other, each with `config` (a file for `accelerate launch`), `script`
and `arguments`. All of Accelerate's and torch's own launching is done, up to the start of the processes.
"""

import gc
import json
import os
import sys
from pathlib import Path
from unittest import mock

import deepspeed.ops
import torch.distributed.run as torchrun
from accelerate.commands.launch import launch_command, launch_command_parser

import tests.launch.scripts.train
import tests.launch.scripts.train_both  # noqa: F401

run = torchrun.run


def run_forked(args) -> None:
    args.run_path, args.start_method = True, "fork"
    run(args)


if __name__ == "__main__":
    # Compiled for half a minute wherever it is not yet, and then called by inference alone
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    gc.freeze()
    for launch in json.loads(Path(sys.argv[1]).read_text()):
        words = ["--config_file", launch["config"], launch["script"], *launch["arguments"]]
        print(*words, flush=True)
        environment = dict(os.environ)
        with mock.patch.object(torchrun, "run", run_forked):
            try:
                launch_command(launch_command_parser().parse_args(words))
            except Exception as error:  # that of one of its processes, which is judged by what it has written
                print(f"{type(error).__name__}: {error}", flush=True)
        os.environ.clear()
        os.environ.update(environment)
