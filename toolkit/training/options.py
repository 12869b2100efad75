"""One text an option: `--help` says what the docstring says."""

import re
from dataclasses import fields
from inspect import cleandoc
from types import MappingProxyType
from typing import Any, TypeVar

C = TypeVar("C", bound=Any)
_ENTRY = re.compile(r" {4}(\w+) \(`")


def help_from_docstring(config_class: C) -> C:
    """
    Give every option of a dataclass its text under `Args:` in the docstring, as what `--help` shows.

    Args:
        config_class (`type`):
            A dataclass whose docstring describes each field that the class itself declares.

    Returns:
        `type`: `config_class`.

    Raises:
        `TypeError`: If one of its own fields has no text, or a text no field.
    """
    texts: dict[str, list[str]] = {}
    name = ""
    for line in cleandoc(config_class.__doc__ or "").partition("Args:\n")[2].splitlines():
        if entry := _ENTRY.match(line):
            name = entry[1]
            texts[name] = []
        elif line.strip():
            texts[name].append(line.strip())
    own = {field.name: field for field in fields(config_class) if field.name in config_class.__annotations__}
    if own.keys() != texts.keys():
        raise TypeError(
            f"{config_class.__name__}: only documented or only declared: {sorted(own.keys() ^ texts.keys())}."
        )
    for name, field in own.items():
        text = " ".join(texts[name]).replace("%", "%%")  # argparse formats it
        field.metadata = MappingProxyType({**field.metadata, "help": text})
    return config_class
