"""The measurements of readers, on small planted data: a circle, two tastes, two attributes."""

import pytest
import torch
from transformers import set_seed

from toolkit.experiments import readers


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(readers, "SIZE", 8)
    monkeypatch.setattr(readers, "EPOCHS", 12)
    set_seed(0)


def made_pairs(count):
    """Features of rows, pairs of them, and the cluster of each pair."""
    return torch.randn(2 * count, 8), torch.arange(2 * count).view(-1, 2), torch.arange(count) % 20


def test_only_a_skew_reader_ranks_styles_that_go_in_a_circle(monkeypatch):
    monkeypatch.setattr(readers, "EPOCHS", 3)
    monkeypatch.setattr(readers, "WAYS", {name: readers.WAYS[name] for name in ("linear", "skew")})
    found = readers.styles(0, circular=True)
    assert found["skew"][0] >= 97
    assert found["linear"][0] <= 67
    assert found["linear"][1] >= 0.69  # no ranking of a circle is worth more than a coin


def test_planted_tastes_are_found():
    x, rows, clusters = made_pairs(2500)
    found = readers.people(0, x, rows, clusters, [{"annotator": "a"}] * len(rows), planted=True)
    shared, gold = found["shared"][0], found["gold"][0]
    assert found["linear"][0] > (shared + gold) / 2
    assert found["groups found"][0] >= 95
    assert found["new, 20 pairs"][0] > (found["new, shared"][0] + found["new, gold"][0]) / 2


def test_attributes_are_learnt_with_their_sum():
    x, rows, clusters = made_pairs(2000)
    grades = (x @ torch.randn(8, 2)).double()
    better = grades[rows[:, 0]].sum(1) > grades[rows[:, 1]].sum(1)
    rows = torch.where(better[:, None], rows, rows.flip(1))
    sides = [[dict(zip("ab", grades[place].tolist(), strict=True)) for place in pair] for pair in rows.tolist()]
    table = [{"attributes": {"chosen": good, "rejected": bad}} for good, bad in sides]
    found = readers.attributes(0, x, rows, clusters, table)
    assert min(found[name][0] for name in ("whole alone", "learnt sum", "a", "b")) > 90
