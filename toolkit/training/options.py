"""Options of dataclasses: `--help` says what the docstring says, and numbers have their range."""

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from inspect import cleandoc
from numbers import Real
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


def check_number(
    name: str,
    value: float | None,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    whole: bool = False,
) -> None:
    """
    Refuse what is no finite number, or out of its range.

    Args:
        name (`str`):
            Name of the option.
        value (`float` or `None`):
            Its value; `None` stands for an option that is not set.
        least (`float`, *optional*):
            Least value.
        most (`float`, *optional*):
            Greatest value.
        above (`float`, *optional*):
            Number that the value must exceed.
        whole (`bool`, *optional*, defaults to `False`):
            Whether it counts something.

    Raises:
        `ValueError`: Naming the option, what was found and what may stand there.
    """
    if value is None:
        return
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if is_number and least <= value <= most and value > above and not (whole and value % 1):
        return
    kind = "a whole number" if whole else "a finite number"
    if above > -math.inf:
        wanted = f"be {kind} above {above:g}"
    elif most < math.inf:
        wanted = f"lie between {least:g} and {most:g}"
    else:
        wanted = f"be {kind}" + (f" of at least {least:g}" if least > -math.inf else "")
    raise ValueError(f"`{name}` is {value!r}. It must {wanted}.")


def check_numbers(options: Any, ranges: Mapping[tuple[str, ...], Mapping[str, Any]]) -> None:
    """
    Refuse numbers of options that are out of their ranges.

    Args:
        options (`dataclass`):
            Options; of one that is a list, each number counts.
        ranges (`Mapping[tuple[str, ...], Mapping[str, Any]]`):
            Bounds, as [`check_number`] takes them, of the options of some names.

    Raises:
        `ValueError`: Naming the first.
    """
    for names, bounds in ranges.items():
        for name in names:
            value = getattr(options, name)
            for one in value if isinstance(value, list) else [value]:
                if one is None and isinstance(value, list):
                    raise ValueError(f"`{name}` is {value}. It must hold numbers alone.")
                check_number(name, one, **bounds)


def check_counts(options: Any, *names: str) -> None:
    """
    Refuse counts below 1.

    Args:
        options (`dataclass`):
            Options.
        names (`str`):
            Names of those that count something; `None` stands for one that is not set.

    Raises:
        `ValueError`: Naming the first.
    """
    for name in names:
        check_number(name, getattr(options, name), 1, whole=True)


def check_training_numbers(args: Any) -> None:
    """
    Refuse numbers that Transformers takes as they come, and with which a training fails late or does nothing.

    Args:
        args ([`~transformers.TrainingArguments`]):
            Configuration of a trainer, before Transformers has filled it in.

    Raises:
        `ValueError`: Naming the first.
    """
    check_numbers(args, _RANGES)
    if args.max_steps != -1:  # by which epochs count
        check_counts(args, "max_steps")
    for what in ("logging", "eval", "save"):
        if getattr(args, f"{what}_strategy") == "steps":
            check_number(f"{what}_steps", getattr(args, f"{what}_steps"), above=0)


COUNT = {"least": 1, "whole": True}
SHARE = {"least": 0, "most": 1}
_RANGES: dict[tuple[str, ...], dict[str, Any]] = {
    ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"): COUNT,
    ("eval_accumulation_steps", "ddp_timeout"): COUNT,
    ("num_train_epochs",): {"above": 0},
    ("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps"): {"least": 0},
    ("neftune_noise_alpha", "eval_delay", "save_total_limit", "dataloader_num_workers"): {"least": 0},
    ("adam_beta1", "adam_beta2"): SHARE,
    ("seed", "data_seed"): {"least": 0, "most": 2**32 - 1},  # as NumPy takes them
}
