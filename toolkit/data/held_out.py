"""Rows that are held out of training, with all others of their prompts."""

import json
import random
from collections import Counter

from datasets import Dataset

from .prompts import REJECTED_PROMPT


def hold_out(rows: Dataset, size: int, seed: int) -> tuple[Dataset, Dataset]:
    """
    Divide rows into two parts that share no prompt.

    Args:
        rows (`datasets.Dataset`):
            Pairs or prompts, with a column `prompt`.
        size (`int`):
            Rows to hold out: prompts are drawn until there are as many, or more by what the last one brings.
        seed (`int`):
            Seed of the draw.

    Returns:
        `tuple[Dataset, Dataset]`: The rows to train on and those that are held out, each in their order.

    Raises:
        `ValueError`: If nothing would be left to train on, or the two sides of a pair may answer different prompts.
    """
    if REJECTED_PROMPT in rows.column_names:
        raise ValueError(
            f"Rows with a column '{REJECTED_PROMPT}' join prompts with each other, so that they are not divided by "
            "prompt. Set `eval_dataset_name` to held-out rows."
        )
    of_row = [json.dumps(prompt) for prompt in rows["prompt"]]
    count = Counter(of_row)
    prompts = list(count)
    random.Random(f"held out {seed}").shuffle(prompts)
    chosen, found = set[str](), 0
    while found < size and prompts:
        prompt = prompts.pop()
        chosen.add(prompt)
        found += count[prompt]
    if len(count) == 1:
        raise ValueError(
            f"All {len(rows):,} rows are of one prompt, by which they cannot be divided. Set `eval_dataset_name` to "
            "held-out rows, or `eval_size` to 0."
        )
    if not prompts:
        raise ValueError(
            f"{len(rows):,} rows of {len(count):,} different prompts cannot be divided into {size:,} to hold out and "
            "others to train on. Set a smaller `eval_size`, or `eval_dataset_name` to held-out rows."
        )
    parts = ([i for i, name in enumerate(of_row) if (name in chosen) is held] for held in (False, True))
    train, test = (rows.select(part) for part in parts)
    return train, test


def count_shared(train: Dataset, test: Dataset) -> int:
    """
    How many held-out rows have a prompt that is trained on.

    Args:
        train (`datasets.Dataset`):
            Pairs or prompts to train on, with a column `prompt`.
        test (`datasets.Dataset`):
            Held-out ones.

    Returns:
        `int`
    """
    known = {json.dumps(prompt) for prompt in train["prompt"]}
    return sum(json.dumps(prompt) in known for prompt in test["prompt"])
