"""A checkpoint is proven by its files' hashes, and nothing goes that is not older than a proven one."""

import hashlib
import json
from pathlib import Path

import pytest

from toolkit.training import manifests
from toolkit.training.manifests import (
    MANIFEST_NAME,
    begin_manifest,
    delete_older,
    last_complete_checkpoint,
    what_is_missing,
    write_manifest,
)


def checkpoint(run: Path, step: int, whole: bool = True) -> Path:
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights of step %d" % step)
    if whole:
        write_manifest(folder)
    return folder


def names(run: Path) -> set[str]:
    return {path.name for path in run.iterdir()}


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "a bit": (lambda folder: flip_a_bit(folder / "model.safetensors"), "has changed since it was saved"),
    "cut": (lambda folder: (folder / "model.safetensors").write_bytes(b"weights"), "has 7 bytes instead of 17"),
    "gone": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is gone"),
    "manifest gone": (lambda folder: (folder / MANIFEST_NAME).unlink(), "has no manifest.json"),
    "manifest cut": (lambda folder: (folder / MANIFEST_NAME).write_text('{"files": {'), "manifest.json is damaged"),
    "manifest empty": (lambda folder: (folder / MANIFEST_NAME).write_bytes(b""), "manifest.json is damaged"),
    "no text": (lambda folder: (folder / MANIFEST_NAME).write_bytes(b"\xff\x00"), "manifest.json is damaged"),
    "a list": (lambda folder: (folder / MANIFEST_NAME).write_text("[]"), "manifest.json is damaged"),
    "no files": (lambda folder: (folder / MANIFEST_NAME).write_text("{}"), "manifest.json is damaged"),
    "odd": (lambda folder: (folder / MANIFEST_NAME).write_text('{"files": {"a": "b"}}'), "manifest.json is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, caplog, damage):
    for step in (4, 8):
        checkpoint(tmp_path, step)
    harm, said = DAMAGE[damage]
    harm(tmp_path / "checkpoint-8")
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "checkpoint-8' is not complete and is passed over" in warning
    assert said in warning


def test_a_manifest_lists_the_hash_of_every_file(tmp_path):
    folder = checkpoint(tmp_path, 4)
    listed = json.loads((folder / MANIFEST_NAME).read_text())["files"]
    expected = hashlib.sha256(b"weights of step 4").hexdigest()
    assert listed == {"model.safetensors": {"bytes": 17, "sha256": expected}}


def test_manifests_of_older_versions_have_sizes_alone(tmp_path):
    folder = checkpoint(tmp_path, 4, whole=False)
    (folder / MANIFEST_NAME).write_text('{"files": {"model.safetensors": 17}}')
    assert what_is_missing(folder) is None
    (folder / MANIFEST_NAME).write_text('{"files": {"model.safetensors": 18}}')
    assert what_is_missing(folder) == "its file model.safetensors has 17 bytes instead of 18"


def test_a_checkpoint_that_another_process_finds_damaged_is_passed_over(tmp_path, monkeypatch):
    for step in (4, 8):
        checkpoint(tmp_path, step)
    told = iter([[{4, 8}, {4, 8}], [None, "its file is gone"], [None, None]])
    monkeypatch.setattr(manifests, "gather_object", lambda mine: next(told))
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


# ---- what goes


def test_only_what_is_older_than_the_proven_one_goes(tmp_path):
    for step in (2, 4, 6, 8, 12):
        checkpoint(tmp_path, step)
    delete_older(tmp_path, proven=8, limit=2, best=None)
    assert names(tmp_path) == {"checkpoint-6", "checkpoint-8", "checkpoint-12"}  # the last is of another life


def test_the_best_one_stays_and_is_counted(tmp_path):
    for step in (2, 4, 6, 8):
        checkpoint(tmp_path, step)
    delete_older(tmp_path, proven=8, limit=2, best=str(tmp_path / "checkpoint-2"))
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-8"}
    delete_older(tmp_path, proven=8, limit=1, best=str(tmp_path / "checkpoint-2"))
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-8"}


@pytest.mark.parametrize("limit", [None, 0])
def test_without_a_limit_all_stay(tmp_path, limit):
    for step in (2, 4):
        checkpoint(tmp_path, step)
    delete_older(tmp_path, proven=4, limit=limit, best=None)
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-4"}


def test_what_a_save_left_half_written_goes_and_what_lost_its_manifest_is_moved_aside(tmp_path, caplog):
    begin_manifest(tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / "half").touch()
    begin_manifest(tmp_path / "checkpoint-4")  # the run that goes on saves the same step
    assert names(tmp_path) == {"checkpoint-4"}
    assert not (tmp_path / "checkpoint-4" / "half").exists()
    for times in (1, 2):
        (tmp_path / "checkpoint-4" / "manifest.json.part").unlink()
        (tmp_path / "checkpoint-4" / "weights").write_text(f"lost {times}")
        begin_manifest(tmp_path / "checkpoint-4")
    assert names(tmp_path) == {"checkpoint-4", "unproven-checkpoint-4", "unproven-checkpoint-4-2"}
    assert (tmp_path / "unproven-checkpoint-4" / "weights").read_text() == "lost 1"
    assert "it has no manifest.json, which is written last. Moved to" in caplog.text
