"""Pairs with scores that are given, and no model."""

import torch
from datasets import Dataset

from toolkit.evaluation.pairs import PairReader, Scored
from toolkit.evaluation.scorers import STOCK


def pairs_of(*tables):
    """Tables of rows as what is evaluated; each table is a file of its own."""
    reader = PairReader()
    for number, rows in enumerate(tables):
        reader.add(f"{number}.jsonl", Dataset.from_list(rows))
    return reader.result()


def scored_by(values, pairs, name="model", kind=STOCK):
    """Scores of responses by their texts."""
    return Scored(name, kind, torch.tensor([values[text] for text in pairs.responses], dtype=torch.float64), {})
