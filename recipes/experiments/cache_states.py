"""Compute once what linear heads read of a frozen decoder, for the tasks of its grid.

    python recipes/experiments/cache_states.py --data data --decoder runs/smollm2 --output runs/states

What is there already is kept, so that a stop costs a file's work at most. Several processes may share the work by
tasks: `--tasks LAMP ROSE`. docs/decoder_grid.md explains the tasks.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from toolkit.experiments.study.decoder_states import cache_states
from toolkit.experiments.study.task_pairs import TaskPairs
from toolkit.experiments.study.tasks import TASKS


def main(args: argparse.Namespace) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModel.from_pretrained(args.decoder, dtype=torch.float32, attn_implementation="sdpa").to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.decoder)
    by_name = {task.name: task for task in TASKS}
    for name in args.tasks or by_name:
        pairs = TaskPairs(args.data, by_name[name])
        cache_states(Path(args.output, name.replace(" ", "_")), pairs, model, tokenizer, args.layers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the tasks' files")
    parser.add_argument("--decoder", required=True, help="folder or hub name of a decoder with a chat template")
    parser.add_argument("--output", required=True, help="folder for the states")
    parser.add_argument("--layers", nargs="+", type=int, default=[10, 15, 20, 25, 30], help="numbers of layers")
    parser.add_argument("--tasks", nargs="+", help="names of tasks; all where none is given")
    main(parser.parse_args())
