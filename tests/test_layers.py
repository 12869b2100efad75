"""The shape of the code: imports point down, files stay small, and the public names are these."""

import ast
import sys
from pathlib import Path

import pytest

import toolkit

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "toolkit").glob("[!_]*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))

LAYERS = [
    {"layout", "learning_curves", "metrics", "memory", "row_errors"},
    {"scales", "contributions", "preference_losses", "advantages", "policy_loss", "resampling", "sandbox_world"},
    {"packing"},
    {"batching", "tokenization", "normalization", "head", "small_decoder", "checkpoints"},
    {"adapter_files", "data"},
    {"modeling", "policy_passes"},
    {"reward_config", "reinforce_config", "reward_function", "sampling", "labeling", "plan"},
    {"adapters", "alignment"},
    {"reward_trainer", "reinforce_trainer", "comparison", "page"},
    {"sandbox", "report", "run_record", "study_models"},
    {"joint", "scripting", "explain", "study_callbacks"},
    {"turns", "run_report", "study"},
    {"study_sandbox", "study_real"},
    {"study_encoder", "study_tables"},
    {"study_figures"},
    {"study_report"},
    {"benchmarking"},
    {"benchmark_arms", "benchmark_policy"},
    {"benchmark_scaling"},
    {"benchmark_report"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

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


def imports(path: Path) -> list[tuple[int, str]]:
    """Every import of a file, wherever it stands: its number of leading dots and the module that it names."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
        elif isinstance(node, ast.Import):
            found.extend((0, alias.name) for alias in node.names)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_point_down(path):
    rank = RANK[path.stem]  # a new file must be given its place
    for level, module in imports(path):
        if level:
            assert RANK[module] < rank, f"{path.stem} may not import {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_modules_of_the_package_are_imported_in_one_form(path):
    # `from .module import name`, so that the test above sees them all
    for level, module in imports(path):
        assert level in (0, 1), f"{path.stem} imports from above the package"
        assert level == 0 or module, f"{path.stem} imports from the package as a whole"
        assert level == 1 or module.split(".")[0] != "toolkit", f"{path.stem} names the package it is in"


@pytest.mark.parametrize("name", sorted(LAYERS[0] | LAYERS[1]))
def test_mathematics_needs_only_torch_and_the_standard_library(name):
    roots = {module.split(".")[0] for level, module in imports(ROOT / "toolkit" / f"{name}.py") if not level}
    assert roots - sys.stdlib_module_names <= {"torch"}


@pytest.mark.parametrize("path", [*MODULES, *RECIPES], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= (100 if path in RECIPES else 400)


def test_the_public_names_are_these():
    assert toolkit.__all__ == PUBLIC_NAMES
    assert all(hasattr(toolkit, name) for name in PUBLIC_NAMES)
