"""The committed division is what the files give."""

import json

import pytest

from tests.helpers import ROOT
from toolkit.experiments.study.task_pairs import TaskPairs, record
from toolkit.experiments.study.tasks import TASKS

# The command that writes the file makes all of them; those of the largest files take seconds each
SMALL = [
    task
    for task in TASKS
    if not any(file.startswith(("hh_", "humaneval", "summeval", "ukp", "rose")) for file in task.files)
]
SHARED = ROOT.parent / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder ../shared/data is absent")
@pytest.mark.parametrize("task", SMALL, ids=lambda task: task.name)
def test_the_committed_division_is_that_of_the_files(task):
    committed = json.loads((ROOT / "docs" / "results" / "decoder" / "tasks.json").read_text())["tasks"][task.name]
    assert {**record(TaskPairs(str(SHARED), task)), "tokens": committed["tokens"]} == committed
