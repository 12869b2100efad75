"""One run in one folder: who has it is told by process, host and time, and a run's files are not written over."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from toolkit.training import run_folder
from toolkit.training.run_folder import LOCK_NAME, claim_folder, delete_earlier_run


@pytest.fixture
def other_process():
    """A process that lives until the test is over."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield psutil.Process(process.pid)
        process.kill()


def lock(folder: Path, *processes: dict) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / LOCK_NAME
    file.write_text(json.dumps({"processes": processes}))
    return file


def entry(process: psutil.Process, launcher: dict | None = None, **more) -> dict:
    own = {"host": socket.gethostname(), "pid": process.pid, "started": process.create_time()}
    return {**own, "launcher": launcher, "command": "train.py", **more}


def dead() -> dict:
    """A process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    started = psutil.Process(process.pid).create_time()
    process.wait()
    return {"pid": process.pid, "started": started}


def test_a_lock_names_every_process_of_the_run_and_goes_with_it(tmp_path):
    code = "import sys; from toolkit.training.run_folder import claim_folder, LOCK_NAME; claim_folder(sys.argv[1]); "
    code += "print(open(sys.argv[1] + '/' + LOCK_NAME).read())"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, check=True
    )
    (process,) = json.loads(done.stdout)["processes"]
    assert process["host"] == socket.gethostname()
    assert process["launcher"]["pid"] == os.getpid()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_of_a_run_at_work_is_refused(tmp_path, other_process):
    file = lock(tmp_path / "run", entry(other_process, entry(psutil.Process())))
    before = file.read_text()
    with pytest.raises(ValueError, match=f"run' is taken by process {other_process.pid}, a run at work"):
        claim_folder(str(tmp_path / "run"))
    assert file.read_text() == before


def test_an_orphan_of_a_dead_launcher_is_named(tmp_path, other_process):
    launcher = dead()
    gone = {"host": socket.gethostname(), **dead(), "launcher": launcher, "command": "train.py"}
    lock(tmp_path / "run", gone, entry(other_process, launcher))
    with pytest.raises(
        ValueError, match=rf"launcher \(process {launcher['pid']}\) is gone.*`kill {other_process.pid}`"
    ):
        claim_folder(str(tmp_path / "run"), resume_from_checkpoint=True)


def test_a_lock_of_a_dead_run_is_taken_over(tmp_path):
    file = lock(tmp_path / "run", {"host": socket.gethostname(), **dead(), "launcher": None, "command": "train.py"})
    claim_folder(str(tmp_path / "run"))
    assert [one["pid"] for one in json.loads(file.read_text())["processes"]] == [os.getpid()]
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_NAME]
    claim_folder(str(tmp_path / "run"))  # this very process may claim it again


def test_another_process_may_have_got_the_number_since(tmp_path, other_process):
    file = lock(tmp_path / "run", entry(other_process, started=other_process.create_time() - 1000))
    claim_folder(str(tmp_path / "run"))
    assert f'"pid": {os.getpid()},' in file.read_text()


def test_a_run_on_another_host_cannot_be_asked(tmp_path, other_process):
    lock(tmp_path / "run", entry(other_process, host="node-7"))
    with pytest.raises(
        ValueError, match=r"taken by a run on node-7, which cannot be asked .* or delete '.*run\.lock'"
    ):
        claim_folder(str(tmp_path / "run"))


def test_one_process_of_several_refuses_for_all(tmp_path, monkeypatch):
    answers = iter([[{"pid": 1}, {"pid": 2}], [None, "'runs/x' is taken"]])
    monkeypatch.setattr(run_folder, "gather_object", lambda mine: next(answers))
    with pytest.raises(ValueError, match="'runs/x' is taken"):
        claim_folder(str(tmp_path / "run"))


# ---- what a run has left


@pytest.fixture
def used(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoint-4").mkdir(parents=True)
    for name in ("run.json", "model.safetensors", "eval_results.json", "notes.txt"):
        (folder / name).write_text("{}")
    return folder


def test_a_run_is_not_written_over(used):
    with pytest.raises(ValueError, match=r"run' holds a run \(checkpoint-4, model.safetensors, run.json, …\)"):
        claim_folder(str(used))
    assert (used / "checkpoint-4").is_dir()


@pytest.mark.parametrize("resume", [True, "true", "checkpoint-4"])
def test_a_run_that_goes_on_has_its_folder(used, resume):
    claim_folder(str(used), str(used / resume) if resume == "checkpoint-4" else resume)
    assert (used / "checkpoint-4").is_dir()


@pytest.mark.parametrize("resume", [None, False, "false", "elsewhere/checkpoint-4"])
def test_one_that_goes_on_from_elsewhere_has_not(used, resume):
    with pytest.raises(ValueError, match="holds a run"):
        claim_folder(str(used), resume)


def test_overwriting_is_asked_for_and_takes_the_run_alone(used, caplog):
    with pytest.raises(ValueError, match="Leave out one of them"):
        claim_folder(str(used), True, overwrite=True)
    claim_folder(str(used), overwrite=True)
    assert (used / "checkpoint-4").is_dir()  # the new run may still be refused
    delete_earlier_run(str(used), overwrite=True)
    assert {path.name for path in used.iterdir()} == {LOCK_NAME, "notes.txt"}
    assert "Deleted the run in" in caplog.text


def test_a_trained_model_without_a_checkpoint_is_not_gone_on_from(used):
    (used / "checkpoint-4").rmdir()
    with pytest.raises(ValueError, match=r"holds a trained model .* and no checkpoint to go on from"):
        claim_folder(str(used), "true")


def test_a_run_that_died_before_its_first_checkpoint_begins_again(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    claim_folder(str(tmp_path), "true")
