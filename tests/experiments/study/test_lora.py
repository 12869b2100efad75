"""The LoRA grid: its test pairs are the frozen grid's, no text is on both sides, it runs and is gone on with."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.experiments.study.test_decoder import HALVES, write
from toolkit import MultiScaleRewardTrainer
from toolkit.data.tokens import end_ids
from toolkit.experiments.study.decoder import BEST, MIX, TRL
from toolkit.experiments.study.division import identity
from toolkit.experiments.study.grid import Study
from toolkit.experiments.study.lora import (
    LoraStudy,
    divided,
    enough,
    lora_cell,
    lora_name,
    lora_rate,
    lora_stages,
    lora_table,
)
from toolkit.experiments.study.models import ranked_right
from toolkit.experiments.study.page import write_study_report
from toolkit.experiments.study.tables import Estimate
from toolkit.experiments.study.task_pairs import TaskPairs
from toolkit.stats.intervals import Interval


@pytest.fixture
def settings(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.setattr("toolkit.experiments.study.lora.TASKS", [HALVES])
    monkeypatch.setattr("toolkit.experiments.study.tasks.TASKS", [HALVES])
    write(tmp_path, "halves", 310, 1)
    small = {"numbers": [16, 48], "rates": [1e-3], "seeds": [1], "rank": 2, "test_pairs": 12}
    small |= {"pairs_per_step": 4, "pairs_seen": 88}
    return replace(LoraStudy(str(tmp_path), tiny_folder("qwen3")), tasks=["halves"], development_pairs=8, **small)


def test_pairs_are_divided_as_in_the_frozen_grid(settings):
    pairs, train, test = divided(settings, "halves", 48, 1, search=False)
    few, smaller, same = divided(settings, "halves", 16, 1, search=False)
    texts = [{identity(few.division.pairs[i]) for i in numbers} for numbers in (smaller, train)]
    assert texts[0] < texts[1]
    assert (len(train), len(test), same) == (48, 12, test)
    clusters = [{pairs.division.clusters[i] for i in numbers} for numbers in (train, test)]
    assert clusters[0].isdisjoint(clusters[1])
    frozen = TaskPairs(settings.data, HALVES)
    frozen_test = {identity(frozen.division.pairs[i]) for i in frozen.testing}
    assert {identity(pairs.division.pairs[i]) for i in test} <= frozen_test
    _, others, same = divided(settings, "halves", 16, 2, search=False)
    assert set(others) != set(smaller)  # each seed has training pairs of its own
    assert same == test
    _, fitted, held = divided(settings, "halves", 16, 0, search=True)
    assert set(fitted).isdisjoint(held)
    assert {*fitted, *held}.isdisjoint(test)


def test_what_would_tell_a_point_from_none():
    above = Interval(0.01, -0.01, 0.03)  # two points on each side
    row = {"500 pairs, mean": Estimate(above, above), "500 pairs, halves": Estimate(above, above)}
    found = enough({TRL: row, MIX: {"500 pairs, mean": Estimate(above, None)}})
    assert found.rows == [(f"{TRL}, 500 pairs, mean", "2.0", "4.0", "16.0")]


@pytest.mark.training
def test_the_grid_runs_and_a_training_that_was_stopped_goes_on(settings, tmp_path, monkeypatch):
    study, read = Study(tmp_path / "study", settings), {}

    class Reading(MultiScaleRewardTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            read[Path(self.args.output_dir).name] = self.train_dataset[0]["chosen_ids"][-1]

    monkeypatch.setattr("toolkit.experiments.study.models.MultiScaleRewardTrainer", Reading)
    for cells in lora_stages(study):
        for cell in cells:
            study.keep(cell)
    ends = end_ids(AutoTokenizer.from_pretrained(settings.decoder))
    assert [read[lora_name("halves", model, 16, 1)] in ends for model in (TRL, BEST, MIX)] == [False, True, False]
    page = write_study_report(study.folder).read_text()
    assert "processor hours" in page
    assert lora_rate(study, MIX) == 1e-3
    table = lora_table(study)
    gaps = study.result(lora_name("halves", MIX, 48, 1))["gaps"]
    assert table[MIX]["48 pairs, halves"].value.value == pytest.approx(ranked_right(gaps).mean().item())
    # As a process that was killed leaves it: the checkpoint is there and the cell is not
    again = lora_cell(study.folder, settings, "halves", MIX, 48, 1, 1e-3)
    torch.testing.assert_close(torch.tensor(again["gaps"]), torch.tensor(gaps))
