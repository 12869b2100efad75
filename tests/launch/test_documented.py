"""The README as it stands, on models and data of a small size: its commands one after the other, and its script."""

import json
import re
import sys

import pytest

from tests.documented import documented
from tests.helpers import ROOT
from toolkit.cli.main import main

# TRL calls what Transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning")

# What makes them small; a command that lacks an option of the second half gets it.
IN_PLACE = {"Qwen/Qwen3-0.6B": "tiny", "runs/smollm2": "tiny"}
SMALL = {
    "reward": ["--max_steps", "4", "--per_device_train_batch_size", "4", "--eval_size", "6"],
    "reinforce": ["--max_steps", "2", "--max_completion_length", "8"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_folder, plain_pairs):
    folder = tmp_path_factory.mktemp("readme")
    (folder / "tiny").symlink_to(tiny_folder())
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain_pairs))
    return folder


def test_from_pairs_to_a_tuned_policy(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## From pairs to a tuned policy") : text.index("| command | what it does |")]
    commands = [found.words[1:] for found in documented() if found.page == "README.md" and found.text in section]
    assert [words[0] for words in commands[:2]] == ["check", "reward"]
    assert commands[-1][0] == "report"
    for words in commands:
        monkeypatch.setattr(sys, "argv", ["prefscale"])
        assert not main([*(IN_PLACE.get(word, word) for word in words), *SMALL.get(words[0], [])])
    said = capsys.readouterr().out
    assert "The reward model is in 'runs/reward'" in said
    assert (folder / "pair.html").exists()
    assert (folder / "runs" / "policy" / "report" / "index.html").exists()
    rows = json.loads((folder / "runs" / "reward" / "eval_results.json").read_text())
    assert rows["eval_pairs"] == 6


def test_the_script(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    for large, small in {**IN_PLACE, "num_hidden_layers=20": "num_hidden_layers=1"}.items():
        script = script.replace(large, small)
    exec(compile(script, "README.md", "exec"), {})
    first, second = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert first != second
