"""Options of dataclasses: `--help` says what the docstring says, and numbers have their range."""

import math
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


def check_number(name: str, value: float | None, least: float = -math.inf, most: float = math.inf) -> None:
    """
    Refuse a number that is not finite or out of its range.

    Args:
        name (`str`):
            Name of the option.
        value (`float` or `None`):
            Its value; `None` stands for an option that is not set.
        least (`float`, *optional*):
            Least value.
        most (`float`, *optional*):
            Greatest value.

    Raises:
        `ValueError`: Naming the option, what was found and what may stand there.
    """
    if value is None or (math.isfinite(value) and least <= value <= most):
        return
    bounds = {
        (False, False): "It must be a finite number",
        (True, False): f"It must be a finite number of at least {least:g}",
        (True, True): f"It must lie between {least:g} and {most:g}",
    }
    raise ValueError(f"`{name}` is {value}. {bounds[least > -math.inf, most < math.inf]}.")
