"""Public names are imported when they are first asked for: what editors read and what runs say the same."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import toolkit
from toolkit import sandbox

PACKAGES = [toolkit, sandbox]


def declared(package) -> dict[str, str]:
    """Module of each name in the block that type checkers read."""
    (block,) = [node for node in ast.parse(Path(package.__file__).read_text()).body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    return {alias.name: f"{package.__name__}.{node.module}" for node in block.body for alias in node.names}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_what_type_checkers_take_it_for(package):
    names = declared(package)
    assert sorted(names) == sorted(package.__all__)
    for name, module in names.items():
        assert getattr(package, name) is getattr(import_module(module), name)


@pytest.mark.parametrize("package", PACKAGES)
def test_names_are_listed_before_they_are_asked_for(package, monkeypatch):
    monkeypatch.delitem(vars(package), package.__all__[0], raising=False)
    assert set(package.__all__) < set(dir(package))


@pytest.mark.parametrize("package", PACKAGES)
def test_other_names_are_not_there(package):
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'RewardModel'"):
        package.RewardModel  # noqa: B018
