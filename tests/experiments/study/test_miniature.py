"""
The study's grids, run in miniature with the real trainers, and their pages. Cells run in this process, after the way
to another one and back; `tests/launch/test_grid.py` has the processes.
"""

import json
import pickle
from concurrent.futures import Executor, Future
from functools import partial
from html.parser import HTMLParser

import pytest

from tests.helpers import ROOT
from toolkit.cli.main import main
from toolkit.experiments.study import grid, sandbox
from toolkit.experiments.study.grid import Study, run_stages
from toolkit.experiments.study.page import open_study, write_study_report
from toolkit.experiments.study.real import RealStudy, real_stages
from toolkit.experiments.study.sandbox import SandboxStudy, policy_rate, reward_name, reward_rate, sandbox_stages

SETTINGS = SandboxStudy(
    seeds=[1],
    search_seeds=[0],
    models=["simple contrast", "multi-scale"],
    table_size=16,
    curve_models=["multi-scale"],
    curve_sizes=[16],
    reward_rates=[1e-4, 1e-2],
    policy_rates=[1e-3],
    pairs_seen=32,
    pairs_per_step=16,
    test_pairs=24,
    search_pairs=16,
    sft_steps=1,
    policy_steps=5,
    responses_per_step=8,
    max_new_tokens=12,
    test_prompts=8,
    curve_prompts=4,
    gradient_steps=4,
    ablations=["token"],
    baselines=["none+prefix"],
)


class Texts(HTMLParser):
    """What a page shows, its pictures, and where it points."""

    def __init__(self, html):
        super().__init__()
        self.texts, self.alts, self.targets = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.alts += [found["alt"]] if tag == "img" else []
        self.targets += [value for key, value in attributes if key in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(data)


class Here(Executor):
    """Does at once, in this process, what it is given, from a copy as another process would get it."""

    def submit(self, function, *arguments):
        function, arguments = pickle.loads(pickle.dumps((function, arguments)))
        done = Future()
        done.set_result(function(*arguments))
        return done


@pytest.fixture(scope="module", autouse=True)
def _in_this_process():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "ProcessPoolExecutor", lambda *_: Here())
        patch.setattr(sandbox, "sandbox_decoder", partial(sandbox.sandbox_decoder, hidden_size=32, layers=2, heads=2))
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    study = Study(tmp_path_factory.mktemp("study"), SETTINGS)
    run_stages(study, sandbox_stages(study), workers=1)
    return study


def test_every_cell_of_the_sandbox_ends_and_models_differ(study):
    cells = [cell.name for stage in sandbox_stages(study) for cell in stage]
    assert len(cells) == len(set(cells))
    assert sorted(file.stem for file in (study.folder / "cells").iterdir()) == sorted(cells)
    found = [study.result(reward_name(model, 16, 1)) for model in (*SETTINGS.models, "token")]
    assert len({tuple(cell["gaps"]) for cell in found}) == 3
    assert {cell["steps"] for cell in found} == {2}  # 32 pairs seen, 16 a step


def test_rates_are_those_of_the_search(study):
    accuracy = {
        rate: study.result(reward_name("simple contrast", 16, 0, rate))["metrics"]["test_accuracy"]
        for rate in SETTINGS.reward_rates
    }
    assert accuracy[reward_rate(study, "simple contrast")] == max(accuracy.values())
    assert reward_rate(study, "token") == reward_rate(study, "multi-scale")
    assert policy_rate(study, "multi-scale") == 1e-3


def test_the_page_has_every_table_and_figure_and_points_nowhere(study):
    page = write_study_report(study.folder)
    found = Texts(page.read_text())
    text = " ".join(found.texts)
    assert all(model in text for model in SETTINGS.models)
    assert "to come" not in text
    assert len(found.alts) == 4  # curves, tasks, sizes, instability
    assert all(target.startswith(("#", "data:")) for target in found.targets)
    tables = json.loads((page.parent / "tables.json").read_text())
    row = tables["table 1"]["multi-scale"]
    assert set(row) == {"accuracy", "reward score", "preference alignment", "convergence steps"}
    gaps = study.result(reward_name("multi-scale", 16, 1))["gaps"]
    right = sum((gap > 0) + (gap == 0) / 2 for gap in gaps) / len(gaps)
    assert row["accuracy"][0][0] == pytest.approx(right)
    assert f"{100 * right:.1f} (" in text


def test_a_study_that_has_begun_has_a_page_too(study, tmp_path):
    begun = Study(tmp_path, SETTINGS)
    for name in ("start-1", reward_name("multi-scale", 16, 1)):
        (tmp_path / "cells" / f"{name}.json").write_text((study.folder / "cells" / f"{name}.json").read_text())
    text = " ".join(Texts(write_study_report(begun.folder).read_text()).texts)
    assert "No policy has all its seeds yet." in text


def test_wrong_folders_are_one_clear_error_each(study, tmp_path, capsys):
    Study(tmp_path, SETTINGS)
    assert main(["report", str(tmp_path)]) == 2
    assert "is empty: no cell has ended" in capsys.readouterr().err
    (tmp_path / "cells" / "start-1.json").write_text('{"result": ')
    assert main(["report", str(tmp_path)]) == 2
    assert "start-1.json' is damaged" in capsys.readouterr().err
    (tmp_path / "settings.json").write_text('{"kind": "SandboxStudy", "seeds": [1]}')
    assert main(["report", str(tmp_path)]) == 2
    assert "no settings of a study of this version" in capsys.readouterr().err
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings\.json' is damaged"):
        open_study(tmp_path)


SHARED = ROOT.parent / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder ../shared/data is absent")
def test_the_grid_on_real_pairs_and_its_page(tmp_path):
    settings = RealStudy.quick(str(SHARED))
    settings.seeds, settings.tasks, settings.models = [1], ["code"], ["simple contrast", "multi-scale"]
    settings.most_pairs, settings.decoder_steps = 16, 2
    study = Study(tmp_path, settings)
    stages = real_stages(study)
    run_stages(study, iter([next(stages)]), workers=1)
    text = " ".join(Texts(write_study_report(tmp_path).read_text()).texts)
    assert "No model has all its seeds yet." in text
    run_stages(study, stages, workers=1)
    text = " ".join(Texts(write_study_report(tmp_path).read_text()).texts)
    assert "longer wins" in text
    assert "to come" not in text
