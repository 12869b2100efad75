"""Runs of a recipe that are stopped, killed or started twice: as processes, and those after them in this one."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys

import psutil
import pytest

from tests.helpers import ROOT, run_python
from tests.launch.backends import prepare
from toolkit.training.manifests import last_complete_checkpoint

RECIPE = ROOT / "recipes" / "train_reward.py"
ALONE = ("--cpu", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    prepare(folder)
    return folder


@pytest.fixture
def words(work, tmp_path):
    found = ["--model_name_or_path", work / "base", "--output_dir", tmp_path / "run"]
    found += ["--dataset_name", "sandbox", "--train_size", 64, "--eval_size", 8, "--per_device_train_batch_size", 4]
    found += ["--max_steps", 100_000, "--save_strategy", "steps", "--save_steps", 2, "--save_total_limit", 2]
    found += ["--use_cpu", "--bf16", "no", "--activation_checkpointing", "no", "--report_to", "none"]
    return [str(word) for word in [*found, "--logging_steps", 1, "--resume_from_checkpoint", "true"]]


@pytest.fixture
def run_here(monkeypatch):
    """Runs the recipe in this process, as a script."""

    def run(words):
        monkeypatch.setattr(sys, "argv", [str(RECIPE), *words])
        runpy.run_path(str(RECIPE), run_name="__main__")

    return run


@pytest.fixture
def start():
    """Starts a process and waits until it has logged a few steps; whatever is left of it ends with the test."""
    started = []

    def run(*command):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            [sys.executable, "-u", *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        started.extend([psutil.Process(process.pid), process])
        for line in process.stdout:
            if line.startswith("step 5/"):
                break
        started.extend(psutil.Process(process.pid).children(recursive=True))
        return process

    yield run
    for process in started:
        if isinstance(process, subprocess.Popen):
            process.stdout.close()
            process.wait()
        elif process.is_running():
            process.kill()


def test_a_second_run_is_refused_and_the_first_leaves_a_checkpoint_and_its_status(
    words, start, run_here, tmp_path, caplog
):
    first = start(RECIPE, *words)
    first.send_signal(signal.SIGSTOP)  # so that it does not train on meanwhile
    second = run_python(RECIPE, *words)
    assert second.returncode == 2
    assert re.search(rf"run' is taken by process {first.pid}, a run at work", second.stderr.splitlines()[-1])
    assert "Traceback" not in second.stderr
    first.send_signal(signal.SIGCONT)
    first.send_signal(signal.SIGTERM)
    first.stdout.read()
    assert first.wait() == 143
    last = last_complete_checkpoint(tmp_path / "run")
    assert not (tmp_path / "run" / "run.lock").exists()
    # the same command goes on, of a run that ends one step later
    step = int(last.rpartition("-")[2])
    words[words.index("--max_steps") + 1] = str(step + 1)
    run_here(words)
    assert f"Going on from '{last}' with other options: max_steps 100000 → {step + 1}." in caplog.text
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == step + 1


def test_an_orphan_of_a_dead_launcher_keeps_others_out(words, start, run_here, capsys):
    launcher = start("-m", "accelerate.commands.launch", *ALONE, RECIPE, *words)
    (worker,) = psutil.Process(launcher.pid).children()
    launcher.kill()
    launcher.wait()
    worker.suspend()  # so that it does not train on meanwhile
    with pytest.raises(SystemExit) as ended:
        run_here(words)
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"taken by process {worker.pid}, which goes on though its launcher (process {launcher.pid}) is gone" in said
    worker.kill()
    launcher.stdout.read()  # to its end, which is the worker's
    # what was killed has left its lock, and nothing that has it
    words[words.index("--max_steps") + 1] = "1"
    run_here(words)
    assert "taken by" not in capsys.readouterr().err
