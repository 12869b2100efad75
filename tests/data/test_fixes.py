import datetime
import json
import os

import pytest

from toolkit.data.fixes import PairFiles


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_usable_pairs_and_others_go_to_two_files(tmp_path):
    out = tmp_path / "out.jsonl"
    with PairFiles(str(out)) as files:
        files.add({"prompt": "p", "chosen": "é\n", "rejected": "b", "at": datetime.date(2026, 1, 2)})
        files.reject("a.jsonl", 7, "because", {"chosen": ""})
    assert rows_of(out) == [{"prompt": "p", "chosen": "é\n", "rejected": "b", "at": "2026-01-02"}]
    assert rows_of(files.rejected) == [{"file": "a.jsonl", "line": 7, "why": "because", "row": {"chosen": ""}}]
    assert names_in(tmp_path) == ["out.jsonl", "out.rejected.jsonl"]
    assert list(files.written.values()) == [1, 1]


def test_no_file_is_made_for_nothing(tmp_path):
    with PairFiles(str(tmp_path / "out.jsonl")) as files:
        files.add({"prompt": "p"})
    assert names_in(tmp_path) == ["out.jsonl"]


def test_an_error_leaves_nothing(tmp_path):
    def write():
        with PairFiles(str(tmp_path / "out.jsonl")) as files:
            files.add({"prompt": "p"})
            assert names_in(tmp_path) == [f"out.jsonl.{os.getpid()}.part", f"out.rejected.jsonl.{os.getpid()}.part"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("present", ["out.jsonl", "out.rejected.jsonl"])
def test_nothing_is_overwritten(tmp_path, present):
    (tmp_path / present).write_text("mine")
    with pytest.raises(ValueError, match=f"would overwrite .*{present}"):
        PairFiles(str(tmp_path / "out.jsonl"))
    assert (tmp_path / present).read_text() == "mine"


def test_a_file_that_came_meanwhile_stays(tmp_path):
    out = tmp_path / "out.jsonl"

    def write():
        with PairFiles(str(out)) as files:
            files.add({"prompt": "p"})
            out.write_text("mine")

    with pytest.raises(ValueError, match="would overwrite"):
        write()
    assert out.read_text() == "mine"
    assert names_in(tmp_path) == ["out.jsonl"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("out.csv", "ends in '.jsonl'"), ("out", "ends in '.jsonl'"), ("absent/out.jsonl", "no folder '.*absent'")],
)
def test_a_name_that_cannot_be_is_refused(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        PairFiles(str(tmp_path / name))
