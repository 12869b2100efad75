"""What readers are worth, planted and on labels of real people and attributes; docs/tastes.md has the figures.

python recipes/experiments/measure_readers.py --data data --states runs/states --output_dir runs/readers

The states are of `cache_states.py --tasks UKP LAMP CoNaLa SQuALITY USR SummEval`. What is measured is not measured again.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import Qwen3Config, set_seed

from toolkit import MultiScaleSettings, load_pairs
from toolkit.data.messages import text_of
from toolkit.experiments.study.decoder_states import load_states, rows_of
from toolkit.experiments.study.division import said
from toolkit.experiments.study.task_pairs import TaskPairs, cut
from toolkit.experiments.study.tasks import TASKS
from toolkit.reward.losses import pairwise_logistic_loss
from toolkit.reward.model import reward_model_class
from toolkit.reward.readers import Taste, fit_taste, taste_gap
from toolkit.reward.reading import read_pairs, taste_losses

SIZE, LAYER, SEEDS, NOBODY = 64, 1, 4, torch.empty(0)  # principal components of the states after the second cached layer
WAYS = {"linear": {}, "mixture": {"outputs": 3, "reader": "mixture", "reader_weights": "prompt"}}
WAYS |= {"skew": {"outputs": 4, "reader": "skew"}, "gaussian": {"outputs": 2, "reader": "gaussian"}}
PERSONAL = {"linear": {"outputs": 4}, "mixture": {"outputs": 2, "reader": "mixture"}}


def read(model, x, rows, label):
    """Output and scores of the sides of pairs `(P, 2)` of rows of features, read by those who labelled them."""
    who = label.get("annotator", torch.full((len(rows),), -1))
    output = model(states=x[rows.T.flatten(), None].expand(-1, 4, -1), annotator=who.repeat(2))
    return output, read_pairs(output, torch.arange(2 * len(rows)).view(2, -1).T, model.settings.reader)[0]


def train(x, rows, label, options, seed, epochs=8):
    set_seed(seed)
    config = Qwen3Config(8, x.size(1), 8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=8)
    config.multi_scale = asdict(MultiScaleSettings(["response"], **options))
    model = reward_model_class(Qwen3Config)(config)
    if options.get("reader_weights") == "annotator":
        label = label | {"annotator_share": 1 / label["annotator"].bincount()[label["annotator"]]}
    optimizer = torch.optim.AdamW(model.score.parameters(), lr=3e-3, weight_decay=0.3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, epochs * -(-len(rows) // 32))
    for _ in range(epochs):
        for batch in torch.randperm(len(rows)).split(32):
            labels = {name: values[batch] for name, values in label.items()}
            output, scores = read(model, x, rows[batch], labels)
            loss = pairwise_logistic_loss(*scores.unbind(1)) + taste_losses(output, labels, 0.0)
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            schedule.step()
    return model


def figures(gaps):
    """Percent of pairs that are ranked right, and log-loss."""
    won = ((gaps > 0).double() + (gaps == 0).double() / 2).mean().item()
    return [round(100 * won, 2), round(torch.nn.functional.softplus(-gaps).mean().item(), 4)]


@torch.no_grad()
def right(model, x, rows, label):
    return figures(read(model, x, rows, label)[1].diff()[:, 0].neg())


def planted_styles(args, seed, circular):
    """Pairs of three styles, of which each beats the next one, or of texts that a score ranks; 1,000 are held out."""
    set_seed(seed)
    styles, rows = torch.randint(3, (12_000,)), torch.arange(12_000).view(-1, 2)
    x = torch.nn.functional.one_hot(styles, 3).float() @ torch.randn(3, 16) + 0.3 * torch.randn(12_000, 16)
    wins = (x[rows[:, 0]] - x[rows[:, 1]]) @ torch.randn(16) > torch.randn(len(rows)) * 1.7
    if circular:
        rows = rows[styles[rows[:, 0]] != styles[rows[:, 1]]]
        wins = (styles[rows[:, 0]] - styles[rows[:, 1]]) % 3 == 1
    rows = torch.where(wins[:, None], rows, rows.flip(1))[:4000]
    return {name: right(train(x, rows[1000:], {}, own, seed), x, rows[:1000], {}) for name, own in WAYS.items()}
