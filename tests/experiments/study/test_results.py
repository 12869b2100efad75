"""The committed results of the study: their tables follow from their cells, and the READMEs say what they say."""

import json
import math
import tarfile
from typing import Any

import pytest

from tests.helpers import ROOT
from toolkit.experiments.study.page import write_study_report

RESULTS = ROOT / "docs" / "results"


def numbers(table: Any, place: str = "") -> dict[str, float]:
    """All numbers of nested dictionaries and lists, by where they are."""
    if isinstance(table, (dict, list)):
        items = table.items() if isinstance(table, dict) else enumerate(table)
        return {k: v for key, part in items for k, v in numbers(part, f"{place}/{key}").items()}
    return {place: math.inf if table is None else float(table)}


@pytest.mark.parametrize("study", ["sandbox", "sandbox_gate", "real", "decoder"])
def test_the_committed_tables_follow_from_the_committed_cells(study, tmp_path):
    with tarfile.open(RESULTS / study / "cells.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    again = json.loads((write_study_report(tmp_path).parent / "tables.json").read_text())
    committed = numbers(json.loads((RESULTS / study / "tables.json").read_text()))
    assert len(committed) > 100
    assert numbers(again) == pytest.approx(committed)


def shown(interval: list[float], factor: int = 100, sign: str = "") -> str:
    form = f"{{:{sign}.{0 if factor == 1 else 1}f}}"
    value, low, high = ("never" if number is None else form.format(factor * number) for number in interval)
    return f"{value} ({low} to {high})"


TABLE_1 = {"accuracy": 100, "reward score": 100, "preference alignment": 100, "convergence steps": 1}
# Rows of the older study that are shown beside the newer one's multi-scale model
OF_BOTH = {"unbiased", "simple contrast", "weighted", "context-aware", "token", "segment", "mix refitted"}
REAL = dict.fromkeys(("dialogue", "question answering", "summarization", "code", "mean"), 100)


@pytest.mark.parametrize(
    ("page", "study", "name", "factors"),
    [
        ("docs/results/README.md", "sandbox", "table 1", TABLE_1),
        ("docs/results/README.md", "real", "accuracy", REAL),
    ],
)
def test_the_pages_show_the_tables(page, study, name, factors):
    table = json.loads((RESULTS / study / "tables.json").read_text())[name]
    rows = [[model, *(shown(table[model][c][0], factor) for c, factor in factors.items())] for model in table]
    differences = [shown(table["multi-scale"][c][1], factor, "+") for c, factor in factors.items()]
    rows.append(["its difference from simple contrast", *differences])
    text = (RESULTS.parent.parent / page).read_text().replace("**", "").replace("−", "-")
    for row in rows:
        assert f"| {' | '.join(row)} |" in text


def test_the_pages_show_the_decoders_table():
    table = json.loads((RESULTS / "decoder" / "tables.json").read_text())["accuracy"]
    for model, row in table.items():
        cells = [
            [shown(row[c][0]), shown(row[c][1], sign="+") if row[c][1] else "–"] for c in ("headline", "first look")
        ]
        text = (RESULTS / "README.md").read_text().replace("**", "").replace("−", "-")
        assert f"| {model} | {' | '.join([*cells[0], *cells[1]])} |" in text
    first_screen = (RESULTS.parent.parent / "README.md").read_text().replace("**", "").replace("−", "-")
    names = {
        "multi-scale": "multi-scale, the default",
        "best simple contrast": "plain Bradley-Terry, read as well as it can be",
        "as TRL trains it": "plain Bradley-Terry as TRL reads it",
        "three heads averaged": "three plain heads averaged",
        "longer wins": "the longer response wins",
    }
    for model, name in names.items():
        value, above = table[model]["headline"]
        assert f"| {name} | {shown(value)} | {shown(above, sign='+') if above else '–'} |" in first_screen


@pytest.mark.parametrize(("study", "missing"), [("sandbox", set()), ("sandbox_gate", OF_BOTH)])
def test_the_results_show_the_ablations(study, missing):
    table = json.loads((RESULTS / study / "tables.json").read_text())["ablations"]
    text = (RESULTS / "README.md").read_text().replace("−", "-")
    for model, row in table.items():
        value, difference = row["accuracy"]
        name = "multi-scale with the gate" if study == "sandbox_gate" and model == "multi-scale" else model
        if model not in missing:
            assert f"| {name} | {shown(value)} | {shown(difference, sign='+') if difference else '–'} |" in text
