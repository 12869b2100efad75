"""A user's mistake at a recipe is one line, and everything else a traceback."""

import sys
from dataclasses import dataclass, field

import pytest
from transformers import integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from toolkit.training.command_line import RecipeParser, check_path, check_trackers, run_recipe


@dataclass
class Options:
    steps: int = 5
    learning_rate: float = 0.5
    shuffle: bool = False
    scales: list[int] = field(default_factory=lambda: [1])
    where: str | None = None
    debug: str = ""


def parse(*words: str) -> Options:
    return RecipeParser((Options,)).parse_args_and_config(list(words))[0]


@pytest.fixture
def recipe(monkeypatch, capsys):
    """Runs a recipe with words; returns what it was given, its exit status and its lines of errors."""

    def run(*words, main=lambda options: None, **environment):
        given = []
        monkeypatch.setattr(sys, "argv", ["recipes/train.py", *words])
        status = 0
        try:
            run_recipe(lambda options: (given.append(options), main(options)), Options, environment=environment)
        except SystemExit as end:
            status = end.code
        return given, status, capsys.readouterr().err.splitlines()

    return run


def fail_with(error):
    def main(options):
        raise error

    return main


def test_what_is_right_is_taken(tmp_path):
    (tmp_path / "run.yaml").write_text("steps: 3\nlearning_rate: 1e-3\nshuffle: yes\nscales: [4, 5]\nwhere: null\n")
    expected = Options(3, 0.001, True, [4, 5])
    assert parse("--config", str(tmp_path / "run.yaml")) == expected
    assert parse(f"--config={tmp_path / 'run.yaml'}") == expected
    assert parse("--config", str(tmp_path / "run.yaml"), "--learning-rate", "2", "--shuffle=no") == Options(
        3, 2.0, False, [4, 5]
    )


@pytest.mark.parametrize(
    "error", [ValueError("line 1\n  line 2"), OSError("line 1\n  line 2"), ImportError("line 1 line 2")]
)
def test_a_mistake_found_later_is_one_line_and_a_traceback_with_debug(recipe, error):
    _, status, lines = recipe(main=fail_with(error))
    assert status == 2
    assert lines == ["train.py: line 1 line 2 (`--debug` shows where.)"]
    with pytest.raises(type(error)):
        recipe("--debug", "--steps", "3", main=fail_with(error))


def test_a_fault_is_always_a_traceback(recipe):
    with pytest.raises(RuntimeError):
        recipe(main=fail_with(RuntimeError("fault")))


def test_debug_with_a_value_is_the_option_of_transformers(recipe):
    assert recipe("--debug", "underflow_overflow")[0] == [Options(debug="underflow_overflow")]
    assert recipe("--debug", "--steps", "3")[0] == [Options(steps=3)]
    assert recipe("--steps", "3", "--debug")[0] == [Options(steps=3)]


def test_an_interrupt_has_its_own_status(recipe):
    assert recipe(main=fail_with(KeyboardInterrupt()))[1:] == (130, ["train.py: interrupted."])


def test_the_status_of_a_signal_is_kept(recipe):
    assert recipe(main=fail_with(SystemExit(143)))[1:] == (143, [])


def test_one_of_several_processes_says_which_it_is(recipe):
    assert recipe(main=fail_with(ValueError("x")), RANK="3")[2][0].startswith("train.py (process 3): x")
    assert recipe(main=fail_with(ValueError("x")), RANK="0")[2][0].startswith("train.py: x")


@pytest.mark.parametrize("name", ["./model", "/nothing/here", "~/nothing-here", "a/b/c", "models/new", "model/"])
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(ValueError, match=rf"There is no folder '{name}' \(policy\) in '{tmp_path}'. Correct the path"):
        check_path(name, "policy")


def test_hub_names_and_folders_pass(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "old").mkdir(parents=True)
    for name in ("gpt2", "Qwen/Qwen3-0.6B", "models/old", "./models/old", "models", ""):
        check_path(name, "policy")


def test_what_the_demo_makes_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="`make demo` makes it"):
        check_path("runs/demo/start", "policy")


@pytest.mark.parametrize("name", INTEGRATION_TO_CALLBACK)
def test_trackers_that_are_not_installed_are_named(name, monkeypatch):
    check_trackers(["none"])
    for check in dir(integrations):
        if check.startswith("is_") and check.endswith("_available"):
            monkeypatch.setattr(integrations, check, lambda: False)
    with pytest.raises(ValueError, match=f"`report_to` has '{name}', whose package is not installed. Install it, or"):
        check_trackers([name])
