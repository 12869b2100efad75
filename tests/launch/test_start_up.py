"""What a fresh process imports and prints: no more than it needs."""

import json
import re
from importlib.metadata import version

import pytest

from tests.helpers import run_python

USAGES = [f"usage: prefscale {command} " for command in ("check", "plan")]
SLOW = ("torch", "transformers", "trl", "datasets", "peft", "accelerate", "deepspeed", "bitsandbytes", "matplotlib")


def run_and_list(code: str) -> tuple[list[str], list[str]]:
    """Run code in a fresh process: the lines that it prints, and which of the slow packages it imports."""
    then = f"import json, sys; print(json.dumps([name for name in {SLOW} if name in sys.modules]))"
    done = run_python("-c", f"{code}\n{then}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    *printed, imported = done.stdout.splitlines()
    return printed, json.loads(imported)


def test_help_imports_nothing_slow():
    code = """
from toolkit.cli.main import main
for words in (["--help"], ["--version"], ["check", "--help"], ["plan", "--help"]):
    try: main(words)
    except SystemExit as end: assert end.code == 0
"""
    printed, imported = run_and_list(code)
    said = "\n".join(printed)
    assert all(text in said for text in ("usage: prefscale ", version("prefscale"), *USAGES))
    assert imported == []


COMMANDS = [
    *("init", "reward", "annotators", "evaluate", "reinforce", "joint", "check", "sandbox", "explain", "export"),
    *("plan", "report", "serve", "verify"),
]


def test_every_command_has_a_line_in_the_help(monkeypatch, capsys):
    from toolkit.cli.main import main

    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [found[1] for line in lines if (found := re.match(r" {4}(\w+) +\w", line))] == COMMANDS


def test_mathematics_imports_torch_at_most():
    printed, imported = run_and_list("import toolkit.reward.losses, toolkit.stats.metrics, toolkit.sandbox.world")
    assert printed == []
    assert set(imported) <= {"torch"}


def test_check_of_a_file_imports_nothing_slow(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "p", "chosen": "good", "rejected": "bad"}) + "\n")
    code = f"from toolkit.cli.main import main; main(['check', {str(path)!r}])"
    printed, imported = run_and_list(code)
    assert "1 row, 1 usable pair, 1 different prompt" in printed
    assert imported == []


def test_libraries_that_are_not_used_say_nothing():
    # Accelerate imports DeepSpeed to look whether a model is DeepSpeed's; it must have something to say elsewhere
    code = """
import logging
import toolkit
from accelerate.utils import extract_model_from_parallel
from torch import nn
extract_model_from_parallel(nn.Linear(1, 1))
logging.getLogger("bitsandbytes.cextension").warning("No prebuilt binary for CUDA 14.0, loading CUDA 13.0 instead.")
"""
    printed, imported = run_and_list(code)
    assert printed == []
    assert "deepspeed" in imported
