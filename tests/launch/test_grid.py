"""A study's cells in processes: what they print is kept, a killed one is named, Ctrl-C ends it all."""

import os
import signal

import pytest

from tests.experiments.study.test_grid import Cell, Settings, Study, multiply, refuse, run_stages, two_stages
from tests.helpers import ROOT, run_python


def die(folder, settings, value):
    os.kill(os.getpid(), signal.SIGKILL)
    return {"never": value}


def test_a_later_stage_reads_the_results_of_earlier_ones_and_nothing_runs_twice(tmp_path):
    study = Study(tmp_path, Settings())
    assert study.result("sum") is None
    run_stages(study, two_stages(study), workers=2)
    assert study.results(["first-1", "first-2", "sum", "other"]) == [{"product": 3}, {"product": 6}, {"product": 27}]
    again = Study(tmp_path, Settings())
    run_stages(again, two_stages(again), workers=1)
    assert (tmp_path / "runs-1").read_text() == "x"
    assert "multiplying 9" in "".join(file.read_text() for file in (tmp_path / "logs").iterdir())


def test_what_fails_and_what_is_killed_is_named_and_the_others_are_kept(tmp_path):
    study = Study(tmp_path, Settings())
    cells = [Cell("a", multiply, {"value": 1}), Cell("b", refuse, {"value": 2}), Cell("c", multiply, {"value": 3})]
    with pytest.raises(RuntimeError, match="Cell 'b' failed: ValueError: 2 does not go in"):
        run_stages(study, iter([cells]), workers=1)
    assert study.results(["a", "b", "c"]) == [{"product": 3}]
    with pytest.raises(RuntimeError, match="was killed, as happens when memory runs out"):
        run_stages(study, iter([[Cell("d", multiply, {"value": 4}), Cell("e", die, {"value": 5})]]), workers=1)
    assert study.results(["d", "e"]) == [{"product": 12}]


def test_after_an_interruption_no_cell_begins(tmp_path):
    script = ROOT / "tests" / "launch" / "scripts" / "interrupt.py"
    ended = run_python(script, tmp_path / "study", start_new_session=True)  # whose processes get what Ctrl-C sends
    assert ended.returncode != 0
    assert "KeyboardInterrupt" in ended.stderr
    assert list((tmp_path / "study" / "cells").iterdir()) == []
