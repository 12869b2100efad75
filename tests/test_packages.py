"""The shape of the code: packages import downwards, files stay small, and the public names are these."""

import ast
import sys
from pathlib import Path

import pytest

import toolkit
from tests.helpers import ROOT

MODULES = sorted((ROOT / "toolkit").rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").rglob("*.py"))

# Each may import itself and those before it.
ORDER = [
    "stats",
    "data",
    "training",
    "reward",
    "policy",
    "judges",
    "sandbox",
    "arguments",
    "pages",
    "planning",
    "experiments",
    "cli",
]
ONLY_TORCH = [
    "data/positions",
    "planning/memory",
    "policy/losses",
    "policy/returns",
    "reward/contributions",
    "reward/losses",
    "reward/scales",
    "sandbox/world",
    "stats/curves",
    "stats/metrics",
    "stats/resampling",
]

PUBLIC_NAMES = [
    "PREFERENCE_MODELS",
    "AutoModelForMultiScaleReward",
    "MultiScaleRewardConfig",
    "MultiScaleRewardOutput",
    "MultiScaleRewardTrainer",
    "MultiScaleSettings",
    "ReinforceConfig",
    "ReinforceTrainer",
    "ResponseScore",
    "RewardFunction",
    "SharedBaseRewardFunction",
]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix().removesuffix(".py")


def module_of(path: Path) -> tuple[str, ...]:
    """The module of a file below the package, such as `("reward", "head")`; that of a package ends in `"__init__"`."""
    return path.relative_to(ROOT / "toolkit").with_suffix("").parts


def imports(path: Path) -> list[tuple[int, str]]:
    """Every import of a file, wherever it stands: its number of leading dots and the module that it names."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
        elif isinstance(node, ast.Import):
            found.extend((0, alias.name) for alias in node.names)
    return found


def internal_imports(path: Path) -> list[tuple[str, ...]]:
    """Modules of the package that a file imports, each by its path below the package."""
    module = module_of(path)
    return [(*module[: len(module) - level], *named.split(".")) for level, named in imports(path) if level]


@pytest.mark.parametrize("path", [p for p in MODULES if len(module_of(p)) > 1 or p.stem != "__init__"], ids=name_of)
def test_imports_point_down(path):
    package = module_of(path)[0]
    for named in internal_imports(path):
        assert ORDER.index(named[0]) <= ORDER.index(package), f"{name_of(path)} may not import {'.'.join(named)}"


def test_no_two_modules_import_each_other():
    edges = {module_of(path): set(internal_imports(path)) for path in MODULES}
    done: set[tuple[str, ...]] = set()

    def walk(module: tuple[str, ...], above: tuple[tuple[str, ...], ...]) -> None:
        assert module not in above, " imports ".join(".".join(part) for part in (*above, module))
        if module not in done:
            for named in edges.get(module, ()):
                walk(named, (*above, module))
            done.add(module)

    for module in edges:
        walk(module, ())


def test_only_the_command_line_imports_experiments():
    users = {
        module_of(path)[0] for path in MODULES if any(named[0] == "experiments" for named in internal_imports(path))
    }
    assert users <= {"cli", "experiments"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_of_the_package_are_imported_in_one_form(path):
    # `from .module import name`, so that the tests above see them all
    for level, module in imports(path):
        assert level == 0 or module, f"{name_of(path)} imports from a package as a whole"
        assert level > 0 or module.split(".")[0] != "toolkit", f"{name_of(path)} names the package it is in"


@pytest.mark.parametrize("name", ONLY_TORCH)
def test_mathematics_needs_only_torch_and_the_standard_library(name):
    roots = {module.split(".")[0] for level, module in imports(ROOT / "toolkit" / f"{name}.py") if not level}
    assert roots - sys.stdlib_module_names <= {"torch"}


@pytest.mark.parametrize("path", [*MODULES, *RECIPES], ids=name_of)
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= (100 if path in RECIPES else 400)


def test_the_public_names_are_these():
    assert toolkit.__all__ == PUBLIC_NAMES
    assert all(hasattr(toolkit, name) for name in PUBLIC_NAMES)
