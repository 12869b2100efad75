"""The shape of the code: packages import downwards, files stay small, and the public names are these."""

import ast
import sys
from functools import cache
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
    "serving",
    "policy",
    "judges",
    "generative",
    "sandbox",
    "arguments",
    "pages",
    "evaluation",
    "planning",
    "jobs",
    "experiments",
    "cli",
]
ONLY_TORCH = [
    "data/positions",
    "generative/weights",
    "planning/memory",
    "policy/losses",
    "policy/returns",
    "reward/comparisons",
    "reward/contributions",
    "reward/losses",
    "reward/scales",
    "sandbox/world",
    "stats/best_of",
    "stats/calibration",
    "stats/curves",
    "stats/intervals",
    "stats/length_control",
    "stats/metrics",
    "stats/rankings",
    "stats/resampling",
]

PUBLIC_NAMES = [
    "PREFERENCE_MODELS",
    "AutoModelForMultiScaleReward",
    "GroupRewardFunction",
    "MultiScaleRewardConfig",
    "MultiScaleRewardOutput",
    "MultiScaleRewardTrainer",
    "MultiScaleSettings",
    "ReinforceConfig",
    "ReinforceTrainer",
    "RemoteRewardFunction",
    "ResponseScore",
    "RewardFunction",
    "SharedBaseRewardFunction",
    "ThoughtConfig",
    "ThoughtReward",
    "ThoughtTrainer",
    "compare_policies",
    "evaluate_pairs",
    "explain",
    "label_pairs",
    "load_pairs",
    "load_prompts",
    "sample_responses",
]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix().removesuffix(".py")


def module_of(path: Path) -> tuple[str, ...]:
    """The module of a file below the package, such as `("reward", "head")`; that of a package ends in `"__init__"`."""
    return path.relative_to(ROOT / "toolkit").with_suffix("").parts


@cache
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


def modules_in(package: str) -> list[Path]:
    return [path for path in MODULES if module_of(path)[0] == package]


def test_every_module_is_in_a_package_of_the_order():
    assert {module_of(path)[0] for path in MODULES} == {*ORDER, "__init__"}


@pytest.mark.parametrize("package", ORDER)
def test_imports_point_down(package):
    allowed = ORDER[: ORDER.index(package) + 1]
    upwards = [
        f"{name_of(path)} may not import {'.'.join(named)}"
        for path in modules_in(package)
        for named in internal_imports(path)
        if named[0] not in allowed
    ]
    assert upwards == []


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


def test_modules_of_the_package_are_imported_in_one_form():
    # `from .module import name`, so that the tests above see them all
    wholes, absolute = [], []
    for path in MODULES:
        wholes += [name_of(path) for level, module in imports(path) if level and not module]
        absolute += [
            name_of(path) for level, module in imports(path) if not level and module.split(".")[0] == "toolkit"
        ]
    assert wholes == [], "import from a package as a whole"
    assert absolute == [], "name the package they are in"


def test_mathematics_needs_only_torch_and_the_standard_library():
    allowed = sys.stdlib_module_names | {"torch"}
    others = {
        name: sorted(roots - allowed)
        for name in ONLY_TORCH
        if (roots := {m.split(".")[0] for level, m in imports(ROOT / "toolkit" / f"{name}.py") if not level}) - allowed
    }
    assert others == {}


@pytest.mark.parametrize("package", [*ORDER, "recipes"])
def test_files_stay_small(package):
    paths, most = (RECIPES, 100) if package == "recipes" else (modules_in(package), 400)
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in paths}
    assert lengths
    assert {name: length for name, length in lengths.items() if length > most} == {}


def test_the_public_names_are_these():
    assert toolkit.__all__ == PUBLIC_NAMES
    assert all(hasattr(toolkit, name) for name in PUBLIC_NAMES)


def test_the_architecture_page_names_every_module_that_users_import():
    layout = (ROOT / "docs" / "architecture.md").read_text()
    # The command has a file for each of its own commands, and experiments are named by folder
    modules = [path for path in (ROOT / "toolkit").rglob("*.py") if not {"experiments", "cli"} & set(path.parts)]
    assert [str(path) for path in modules if path.stem != "__init__" and f" {path.name} " not in layout] == []
