"""What is installed from a wheel, far from the sources, is whole."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.helpers import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package as a wheel installs it, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    for name in ("toolkit", "recipes", "deepspeed_configs"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", sources, "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("prefscale-*.whl")
    subprocess.run([*pip, "install", wheel, "--no-deps", "--target", folder / "site"], check=True, capture_output=True)
    return folder / "site"


def run(installed, *command):
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=installed.parent, env=environment, capture_output=True, text=True
    )


USE = """
import sys, toolkit
print(toolkit.__file__, *[name for name in toolkit.__all__ if not hasattr(toolkit, name)])
sys.argv[1:] = ["report", sys.argv[1]]
from toolkit.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def used(installed):
    """What a process prints that asks for every public name and writes the page of the folder `run`."""
    log = '{"log_history": [{"step": 1, "loss": 0.5, "accuracy": 0.5}]}'
    (installed.parent / "run").mkdir()
    (installed.parent / "run" / "trainer_state.json").write_text(log)
    done = run(installed, "-c", USE, installed.parent / "run")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_public_name_is_there(installed, used):
    assert used[0] == str(installed / "toolkit" / "__init__.py")


@pytest.mark.parametrize("command", ["init", "check", "sandbox", "explain", "export", "plan", "report"])
def test_every_command_answers(installed, command):
    done = run(installed, installed / "bin" / "prefscale", command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: prefscale {command}" in done.stdout


def test_a_page_can_be_written_and_types_are_declared(installed, used):
    assert (installed.parent / used[1]).is_file()
    for package in ("pages", "training"):
        templates = {path.name for path in (ROOT / "toolkit" / package / "templates").iterdir()}
        assert {path.name for path in (installed / "toolkit" / package / "templates").iterdir()} == templates
    assert (installed / "toolkit" / "py.typed").is_file()


@pytest.mark.parametrize("folder", ["recipes/configs", "deepspeed_configs"])
def test_yaml_files_come_with_it(installed, folder):
    there, here = ({path.name for path in (root / folder).glob("*.[yj]*")} for root in (installed / "toolkit", ROOT))
    assert there == here


def test_a_yaml_file_to_begin_with_is_written_and_read_by_its_name(installed):
    done = run(installed, installed / "bin" / "prefscale", "init", "reward")
    assert done.returncode == 0, done.stderr
    assert (installed.parent / "reward.yaml").read_text() == (ROOT / "recipes/configs/reward.yaml").read_text()
    options = ["--config", "sandbox_reward", "--accelerate_config", "zero3", "--learning_rat", "1"]
    done = run(installed, installed / "bin" / "prefscale", "reward", *options)
    assert "There is no option `--learning_rat`. Did you mean `--learning_rate`?" in done.stderr
