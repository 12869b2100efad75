"""
The store of a study: what ends is kept, what is wrong is named. Cells run in threads here, so that no process has to
start; `tests/launch/test_grid.py` has those that are about processes.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from toolkit.experiments.study import grid
from toolkit.experiments.study.grid import Cell, Study, run_stages


@pytest.fixture(autouse=True)
def _in_threads(monkeypatch):
    monkeypatch.setattr(grid, "ProcessPoolExecutor", lambda workers, *_: ThreadPoolExecutor(workers))


@dataclass
class Settings:
    factor: int = 3
    seeds: list[int] = field(default_factory=lambda: [1, 2])


def multiply(folder: Path, settings: Settings, value: int) -> dict[str, int]:
    runs = folder / f"runs-{value}"
    runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
    print(f"multiplying {value}")
    return {"product": settings.factor * value}


def refuse(folder: Path, settings: Settings, value: int) -> dict[str, int]:
    if not (folder / "mended").exists():
        raise ValueError(f"{value} does not go in.")
    return {"product": 0}


def two_stages(study: Study):
    yield [Cell(f"first-{seed}", multiply, {"value": seed}) for seed in study.settings.seeds]
    total = sum(study.result(f"first-{seed}")["product"] for seed in study.settings.seeds)
    yield [Cell("sum", multiply, {"value": total})]


def test_a_cell_that_fails_is_named_and_the_others_are_kept(tmp_path):
    study = Study(tmp_path, Settings())
    cells = [Cell("a", multiply, {"value": 1}), Cell("b", refuse, {"value": 2})]
    cells += [Cell(name, multiply, {"value": 3}) for name in ("c", "d", "e")]
    with pytest.raises(RuntimeError, match="Cell 'b' failed: ValueError: 2 does not go in"):
        run_stages(study, iter([cells]), workers=1)
    assert study.result("a") == {"product": 3}
    assert study.results(["b", "c", "d", "e"]) == []  # what had not begun did not begin
    (tmp_path / "mended").touch()
    run_stages(study, iter([cells]), workers=1)
    assert study.result("b") == {"product": 0}
    assert (tmp_path / "runs-1").read_text() == "x"


def test_a_study_with_other_settings_is_refused(tmp_path):
    Study(tmp_path, Settings())
    with pytest.raises(ValueError, match=r"other settings \(factor: 3 there, 4 now\)"):
        Study(tmp_path, Settings(factor=4))


@pytest.mark.parametrize("text", ['{"result": {"a"', '["result"]', '{"cell": {}}', ""])
def test_a_damaged_cell_is_named(tmp_path, text):
    study = Study(tmp_path, Settings())
    (tmp_path / "cells" / "first-2.json").write_text(text)
    with pytest.raises(ValueError, match=r"first-2\.json.*runs that cell again"):
        study.result("first-2")


def test_a_cell_whose_file_is_removed_runs_again_and_the_others_do_not(tmp_path):
    study = Study(tmp_path, Settings())
    run_stages(study, two_stages(study), workers=1)
    file = tmp_path / "cells" / "first-2.json"
    found = json.loads(file.read_text())["result"]
    file.unlink()
    run_stages(study, two_stages(study), workers=1)
    assert json.loads(file.read_text())["result"] == found
    assert (tmp_path / "runs-1").read_text() == "x"
    assert (tmp_path / "runs-2").read_text() == "xx"


def test_damaged_settings_are_named(tmp_path):
    Study(tmp_path, Settings())
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings\.json' is damaged"):
        Study(tmp_path, Settings())


def leave(folder: Path, settings: Settings, text: str) -> dict[str, int]:
    model = folder / "models" / text
    model.parent.mkdir(exist_ok=True)
    model.write_text(text)
    return {"times": 1}


def read(folder: Path, settings: Settings, text: str, to: str | None = None) -> dict[str, str]:
    found = (folder / "models" / text).read_text()
    if to is not None:
        (folder / "models" / to).write_text(found)
    return {"found": found}


def join(folder: Path, settings: Settings, texts: list[str]) -> dict[str, str]:
    return {"found": " ".join((folder / "models" / text).read_text() for text in texts)}


def chain_of_models(study: Study):
    yield [Cell("base", leave, {"text": "base"}), Cell("other", leave, {"text": "other"})]
    yield [Cell("copy", read, {"text": "base", "to": "copy"}, ("base",))]
    yield [Cell(f"end-{seed}", read, {"text": "copy"}, ("copy",)) for seed in study.settings.seeds]


def test_results_without_their_models_are_gone_on_with(tmp_path):
    study = Study(tmp_path, Settings())
    run_stages(study, chain_of_models(study), workers=1)
    kept = {file.name: file.read_text() for file in (tmp_path / "cells").iterdir()}
    (tmp_path / "cells" / "end-2.json").unlink()
    for file in (tmp_path / "models").iterdir():
        file.unlink()
    run_stages(study, chain_of_models(study), workers=2)
    assert study.result("end-2") == {"found": "base"}
    # What was needed is there again, what was not is not, and no result has changed
    assert {name: study.has_model(name) for name in ("base", "copy", "other")} == {
        "base": True,
        "copy": True,
        "other": False,
    }
    kept.pop("end-2.json")
    assert {name: (tmp_path / "cells" / name).read_text() for name in kept} == kept


def test_a_model_that_was_cut_short_is_made_again(tmp_path):
    study = Study(tmp_path, Settings())
    run_stages(study, chain_of_models(study), workers=1)
    (tmp_path / "cells" / "end-1.json").unlink()
    (tmp_path / "models" / "copy").write_text("half")
    (tmp_path / "models" / "copy.made").unlink()
    run_stages(study, chain_of_models(study), workers=1)
    assert study.result("end-1") == {"found": "base"}


def counted(folder: Path, settings: Settings, text: str) -> dict[str, int]:
    with (folder / "made").open("a") as made:
        made.write(f"{text}\n")
    return leave(folder, settings, text)


def test_a_model_that_is_needed_twice_is_made_once(tmp_path):
    stages = [
        [Cell("base", counted, {"text": "base"})],
        [Cell("copy", read, {"text": "base", "to": "copy"}, ("base",))],
        [Cell("end", join, {"texts": ["base", "copy"]}, ("base", "copy"))],
    ]
    study = Study(tmp_path, Settings())
    run_stages(study, iter(stages[:2]), workers=1)
    for file in (tmp_path / "models").iterdir():
        file.unlink()
    run_stages(study, iter(stages), workers=2)
    assert study.result("end") == {"found": "base base"}
    assert (tmp_path / "made").read_text().split() == ["base"] * 2  # in either run
