"""Ctrl-C during a study, in a session of its own."""

from tests.helpers import ROOT, run_python


def test_after_an_interruption_no_cell_begins(tmp_path):
    script = ROOT / "tests" / "launch" / "scripts" / "interrupt.py"
    ended = run_python(script, tmp_path / "study", start_new_session=True)
    assert ended.returncode != 0
    assert "KeyboardInterrupt" in ended.stderr
    assert list((tmp_path / "study" / "cells").iterdir()) == []
