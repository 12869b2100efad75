"""The commands of the pages: each has options that exist, and is run by a test or needs what tests lack."""

import argparse
import inspect
import os
import runpy
import sys
from pathlib import Path

import pytest

from tests.documented import TESTED, documented
from tests.helpers import ROOT, job_of, load_recipe
from toolkit.cli.launch import _divide
from toolkit.cli.main import JOBS, read_words
from toolkit.evaluation.command import with_models
from toolkit.training.command_line import RecipeParser

COMMANDS = list(documented())
EVERYTHING = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.page}:{command.text}")


@EVERYTHING
def test_it_is_known_how_each_is_tested(command):
    assert command.how is not None


def test_tests_that_are_named_exist():
    named = [word.strip(",;") for text in TESTED.values() for word in text.split() if word.startswith("tests/")]
    assert [name for name in named if not (ROOT / name).exists()] == []


def classes_of(script):
    """The dataclasses that a recipe or a job reads its options into."""
    job = job_of(Path(script).stem)
    if job is not None:
        return getattr(job, "CLASSES", None) or (job.JointArguments,)
    parameters = inspect.signature(load_recipe(script.removeprefix("recipes/").removesuffix(".py")).main).parameters
    return tuple(parameter.annotation for parameter in parameters.values())


def read(script, words):
    """Parse the words of a job or recipe, as where there is no GPU."""
    classes = classes_of(script)
    if script == "recipes/evaluate_reward.py":
        words = with_models(words)
    trains = len(classes) > 1
    RecipeParser(classes).parse_args_and_config(
        [*words, *(["--use_cpu", "true", "--bf16", "false"] if trains else [])]
    )


@EVERYTHING
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
def test_its_options_exist(command, monkeypatch, tmp_path):
    first, *words = command.words
    monkeypatch.chdir(tmp_path)
    for name in ("reward", "reinforce"):  # of `prefscale init`
        (tmp_path / f"{name}.yaml").write_text((ROOT / "recipes" / "configs" / f"{name}.yaml").read_text())
    os.symlink(ROOT / "recipes", tmp_path / "recipes")
    if first.startswith("recipes/") and "argparse.ArgumentParser(" in (ROOT / first).read_text():
        parsed = []
        parse = argparse.ArgumentParser.parse_args
        monkeypatch.setattr(
            argparse.ArgumentParser, "parse_args", lambda self: parsed.append(parse(self)) or sys.exit()
        )
        monkeypatch.setattr(sys, "argv", [first, *words])
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / first), run_name="__main__")
        assert parsed
    elif first.startswith("recipes/"):
        read(first, words)
    elif first == "prefscale" and words[0] in JOBS:
        scripts = {"reward": "train_reward", "reinforce": "train_reinforce", "joint": "train_jointly"}
        scripts |= {"evaluate": "evaluate_reward", "annotators": "annotators"}
        read(f"recipes/{scripts[words[0]]}.py", _divide(words[1:])[0])
    elif first == "prefscale":
        assert read_words(words).command == words[0]
    elif first == "make":
        assert f"\n{words[0]}:" in (ROOT / "Makefile").read_text()
    elif first.startswith("tests."):
        assert (ROOT / first.replace(".", "/")).with_suffix(".py").exists() or (
            ROOT / first.replace(".", "/")
        ).is_dir()
    else:
        assert first in ("pip", "pytest", "vllm")
