import pytest

from tests.helpers import ROOT
from toolkit.cli.main import main


def test_a_file_to_begin_with_is_written_and_none_written_over(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "reinforce"]) == 0
    assert (tmp_path / "reinforce.yaml").read_text() == (ROOT / "recipes/configs/reinforce.yaml").read_text()
    assert capsys.readouterr().out.strip().endswith("prefscale reinforce --config reinforce.yaml")
    (tmp_path / "reinforce.yaml").write_text("mine")
    assert main(["init", "reinforce"]) == 2
    assert "'reinforce.yaml' exists" in capsys.readouterr().err
    assert (tmp_path / "reinforce.yaml").read_text() == "mine"
    assert main(["init", "hh_reward", "mine.yaml"]) == 0
    assert "model_name_or_path: runs/hh/decoder" in (tmp_path / "mine.yaml").read_text()


@pytest.mark.parametrize("name", ["nothing", "reinforce.yaml"])
def test_what_does_not_come_with_it_is_refused_with_what_does(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reinforce.yaml").write_text("mine")  # by this path, and so no name of one that comes with it
    assert main(["init", name]) == 2
    assert "Give one of: frozen_reward, hh_decoder" in capsys.readouterr().err
