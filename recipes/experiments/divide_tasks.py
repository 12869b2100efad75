"""Divide the tasks of the grid on a pretrained decoder, and write down what came out.

    python recipes/experiments/divide_tasks.py --data data --tokenizer DECODER --output docs/results/decoder/tasks.json

The same rows are divided the same way every time. docs/decoder_grid.md explains the division. With a tokenizer, the
tokens of every task are counted, too.
"""

import argparse
from pathlib import Path

from transformers import AutoTokenizer

from toolkit.experiments.study.division import DIVISION_SEED
from toolkit.experiments.study.task_pairs import TaskPairs, record, tokens
from toolkit.experiments.study.tasks import TASKS
from toolkit.training.run_record import write_json

PER_HOUR = 560 * 3600  # tokens of a forward pass with 135 million parameters, on one core


def main(args: argparse.Namespace) -> None:
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer) if args.tokenizer else None
    tasks = {}
    for task in TASKS:
        pairs = TaskPairs(args.data, task)
        counted = {} if tokenizer is None else {"tokens": tokens(pairs, tokenizer)}
        tasks[task.name] = {**record(pairs), **counted}
        print(f"{task.name}: {tasks[task.name]}")
    if tokenizer is not None:
        for way in ("pairs", "distinct"):
            total = sum(task["tokens"][way] for task in tasks.values())
            print(f"Tokens, {way}: {total:,}, or {total / PER_HOUR:.1f} hours of one core.")
    write_json(Path(args.output), {"seed": DIVISION_SEED, "tasks": tasks})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the tasks' files")
    parser.add_argument("--output", required=True, help="a JSON file for the division, written anew")
    parser.add_argument("--tokenizer", help="folder or hub name of a decoder, for numbers of tokens")
    main(parser.parse_args())
