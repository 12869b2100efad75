"""The first hour on a GPU, in its tiny version on the CPU, cell by cell in this process."""

import json
from functools import partial
from pathlib import Path

import pytest

from tests.experiments.study.test_decoder import HALVES, write
from tests.helpers import load_recipe
from toolkit.experiments.gpu_hour import GpuHour, stages
from toolkit.experiments.study.decoder import BEST, MIX, TRL
from toolkit.experiments.study.grid import Study, cell_name
from toolkit.experiments.study.lora import LoraStudy


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_every_stage_runs_in_its_tiny_version_and_is_kept(tmp_path, capsys, monkeypatch):
    recipe, settings = load_recipe("experiments/gpu_hour"), GpuHour(device="cpu", quick=True)
    study = Study(tmp_path, settings)
    cells = [cell for _, cells in stages(study) for cell in cells]
    for cell in cells:
        study.keep(cell)
    monkeypatch.setattr("toolkit.experiments.gpu_hour.get_context", None)  # nothing is run again
    recipe.main(recipe.GpuHourArguments(device="cpu", quick=True, output_dir=str(tmp_path)))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results.keys() == {cell.name for cell in cells}
    assert results["numbers"]["worst"] == 0.0
    assert any("scaled_dot_product" in name for name in results["kernels-sdpa"]["unshared"])
    assert abs(results["memory-tiny-full"]["off_by"]) < 0.15
    theirs, ours = results["reward-tiny-TRL"], results["reward-tiny-ours"]
    assert min(theirs["items_per_second"], ours["items_per_second"], ours["tokens_per_second"]) > 0
    printed = capsys.readouterr().out
    assert printed.count("times TRL") == 6
    assert f"{ours['items_per_second'] / theirs['items_per_second']:.2f}" in printed


@pytest.mark.training
def test_the_first_cells_of_the_lora_grid_are_kept_where_there_are_data(tmp_path, monkeypatch):
    monkeypatch.setattr("toolkit.experiments.study.lora.TASKS", [HALVES])
    monkeypatch.setattr("toolkit.experiments.gpu_hour.LoraStudy", partial(LoraStudy, tasks=["halves"]))
    write(tmp_path, "halves", 310, 1)
    study = Study(tmp_path / "study", GpuHour(lora_data=str(tmp_path), device="cpu", quick=True))
    *_, cells = [cells for _, cells in stages(study)]
    assert [cell.name for cell in cells] == [cell_name("lora", "halves", model) for model in (TRL, BEST, MIX)]
    study.keep(cells[-1])
    found = study.result(cells[-1].name)
    assert found["test_pairs"] == 8
    assert found["ranked_right"] in [i / 16 for i in range(17)]


def test_what_has_not_ended_in_its_time_is_named_and_not_kept(tmp_path):
    recipe = load_recipe("experiments/gpu_hour")
    args = recipe.GpuHourArguments(device="cpu", quick=True, output_dir=str(tmp_path), minutes=0)
    with pytest.raises(SystemExit, match=r"Not done, or failed: \['machine', 'numbers', .* the same command goes on"):
        recipe.main(args)
    assert not list(Path(tmp_path, "cells").iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "torch finds no GPU"),
        ({"device": "cpu"}, "add `--quick true`"),
        ({"device": "cpu", "quick": True, "models": ["nowhere"]}, "'nowhere' has no config.json"),
    ],
)
def test_what_it_lacks_is_one_line(options, said, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    recipe = load_recipe("experiments/gpu_hour")
    with pytest.raises(SystemExit, match=said) as stopped:
        recipe.main(recipe.GpuHourArguments(output_dir=str(tmp_path), **options))
    assert "\n" not in str(stopped.value)
