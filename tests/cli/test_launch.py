"""What `prefscale reward` and its like keep for the job, and what they hand to `accelerate launch`."""

import json
import os
import sys

import pytest
import yaml

from tests.helpers import ROOT
from toolkit.cli import launch
from toolkit.cli.main import main


@pytest.fixture
def started(monkeypatch):
    """What was started: words of another process, or of this one."""
    found = []
    monkeypatch.setattr(os, "execv", lambda program, words: found.append([program, *words]))
    monkeypatch.setattr("toolkit.jobs.reward.run", lambda: found.append(list(sys.argv)))
    monkeypatch.setattr(sys, "argv", ["prefscale"])
    return found


def test_one_process_is_this_one(started):
    main(["reward", "--dataset_name", "pairs.jsonl", "--help"])
    assert started == [["prefscale reward", "--dataset_name", "pairs.jsonl", "--help"]]


def test_a_job_speaks_by_the_name_of_its_command(monkeypatch):
    seen = []
    monkeypatch.setattr("toolkit.evaluation.command.run", lambda: seen.append(sys.argv[0]))
    monkeypatch.setattr(sys, "argv", ["prefscale"])
    main(["evaluate", "runs/reward"])
    assert seen == ["prefscale evaluate"]


def test_several_are_started_by_accelerate(started):
    main(["reward", "--num_processes", "3", "--dataset_name", "pairs.jsonl", "--machine-rank=1"])
    words = started[0]  # the stand-in of exec returns, and the job would follow in this process
    file = str(ROOT / "deepspeed_configs" / "cpu_two_processes.yaml")
    assert words[:4] == [sys.executable, sys.executable, "-m", "accelerate.commands.launch"]
    assert words[4:] == [
        *("--config_file", file, "--num_processes", "3", "--machine_rank", "1"),
        *("--module", "toolkit.jobs.reward", "--dataset_name", "pairs.jsonl"),
    ]


def test_a_file_of_accelerates_is_found_by_name_and_its_deepspeed_settings_beside_it(started, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    main(["reward", "--accelerate_config", "zero3"])
    folder = ROOT / "deepspeed_configs"
    options = ["--config_file", str(folder / "zero3.yaml"), "--deepspeed_config_file", str(folder / "zero3.json")]
    assert started[0][4:8] == options
    # where the settings are the user's own they stay so
    (tmp_path / "mine.json").write_text(json.dumps({}))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"deepspeed_config": {"deepspeed_config_file": "mine.json"}}))
    started.clear()
    main(["reward", "--accelerate_config", "mine.yaml"])
    assert started[0][4:8] == ["--config_file", "mine.yaml", "--module", "toolkit.jobs.reward"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--accelerate_config", "zero4"], "There is no file 'zero4'.*zero3_offload"),
        (["--num_processes"], "`--num_processes` has no value after it"),
    ],
)
def test_what_cannot_be_started_is_one_line(started, capsys, words, message):
    import re

    assert main(["reward", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert started == []


def test_several_gpus_are_all_used_unless_a_launcher_did_so_already(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert launch._has_several_gpus()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert not launch._has_several_gpus()
