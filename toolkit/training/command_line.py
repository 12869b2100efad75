"""How recipes read their command lines, and what a user sees of a mistake: one line."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from transformers import TrainingArguments, integrations
from trl import TrlParser

from .shipped import CONFIGS, shipped_file

Defaults = Callable[[set[str]], Mapping[str, Any]]

MOST_CHOICES = 20  # of an option are listed where another was given
# What Transformers calls the packages of trackers that have another name
_TRACKERS = {"azure_ml": "azureml", "comet_ml": "comet", "flyte": "flytekit"}
_CHOICE = re.compile(r"invalid choice: '(.*?)' \(choose from (.*)\)")
# What a value of a YAML file may be, by what reads the option; text is read as on the command line
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "string_to_bool": ((bool,), "true or false"),
}


class RecipeParser(TrlParser):
    """
    [`trl.TrlParser`] that takes whole names of options only, and says in one line what is wrong.

    Args:
        classes (`type` or an iterable of them):
            Dataclasses of options.
        defaults (`Callable`, *optional*):
            Called with the names of the options that are given; returns values of others, in place of their own
            defaults.
    """

    def __init__(self, classes: Any, defaults: Defaults | None = None) -> None:
        super().__init__(classes, allow_abbrev=False)
        self._unless_given = defaults
        # argparse takes -1e-5 for the name of an option
        self._negative_number_matcher = re.compile(r"-(\d+\.?|\d*\.\d+)(e[+-]?\d+)?$|-(inf|nan)$", re.IGNORECASE)

    def parse_args_and_config(self, args: Iterable[str] | None = None, *more: Any, **options: Any) -> Any:
        """As in TRL; errors are `ValueError`, `OSError` of a file that is not there, or `yaml.YAMLError`."""
        words = list(sys.argv[1:] if args is None else args)
        words = [part for word in words for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
        if words[-1:] == ["--config"]:
            raise ValueError("`--config` has no file after it. Name a YAML file.")
        words = [
            shipped_file(word, CONFIGS) if words[i - 1 : i] == ["--config"] else word for i, word in enumerate(words)
        ]
        known = {"--config", *(name for action in self._actions for name in action.option_strings)}
        self._check_names([word.partition("=")[0] for word in words if word.startswith("--")], known, "")
        if self._unless_given is not None:
            self.set_defaults(**self._unless_given(_given(words)))
        try:
            return super().parse_args_and_config(words, *more, **options)
        except json.JSONDecodeError as error:
            name = next((words[i - 1] for i, word in enumerate(words) if word == error.doc), "an option")
            found = f"`{name}` is {error.doc!r}, which is no JSON ({error.msg})"
            raise ValueError(f'{found}. Write an object, such as {{"a": 1}}.') from None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in `argparse`, of words that all belong to an option."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            raise ValueError(f"`{rest[0]}` belongs to no option. Name the option before it, or leave it out.")
        return found, rest

    def set_defaults_with_config(self, **values: Any) -> list[str]:
        """As in TRL, of values that fit their options."""
        actions = {action.dest: action for action in self._actions}
        self._check_names(values, actions.keys(), " in the YAML file")
        for name, value in values.items():
            kinds, wanted = _KINDS.get(getattr(actions[name].type, "__name__", ""), ((), ""))
            for one in value if isinstance(value, list) and actions[name].nargs == "+" else [value]:
                fits = isinstance(one, kinds) and (bool in kinds or not isinstance(one, bool))
                if kinds and one is not None and not isinstance(one, str) and not fits:
                    raise ValueError(f"`{name}` in the YAML file is {value!r}. Give {wanted}.")
        return super().set_defaults_with_config(**values)

    @staticmethod
    def _check_names(names: Iterable[str], known: Iterable[str], where: str) -> None:
        known = sorted(known)
        for name in names:
            if name not in known:
                begun = [option for option in known if option.startswith(name) and name != "--"]
                near = begun or get_close_matches(name, known, 1)
                hint = f" Did you mean `{near[0]}`?" if near else " `--help` lists all of them."
                raise ValueError(f"There is no option `{name}`{where}.{hint}")

    def error(self, message: str) -> Any:
        """In place of hundreds of lines of usage."""
        choice = _CHOICE.search(message)
        names = [name.strip("' ") for name in choice[2].split(",")] if choice else []
        if choice and len(names) > MOST_CHOICES:  # such as of optimizers
            near = [name for name in names if name.startswith(choice[1])] or get_close_matches(choice[1], names, 1)
            message = message[: choice.start()] + f"invalid choice: '{choice[1]}'. "
            message += f"Did you mean '{near[0]}'?" if near else "`--help` lists all"
        end = "" if message.endswith("?") else "."
        raise ValueError(message[0].upper() + message[1:].rstrip(".") + end)


def _given(words: list[str]) -> set[str]:
    """Names of the options of a command line and of its YAML file."""
    names = {word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")}
    if "--config" in words:
        with open(words[words.index("--config") + 1]) as file:
            found = yaml.safe_load(file)
        names |= set(found) if isinstance(found, dict) else set()
    return names


def run_recipe(
    main: Callable[..., None],
    *classes: type,
    defaults: Defaults | None = None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """
    Run a recipe with the options of its command line. A user's mistake is one line, and exit status 2.

    With `--debug` and no value after it, it is the traceback. Faults of other kinds always are.

    Args:
        main (`Callable`):
            Called with one instance of each class.
        classes (`type`):
            Dataclasses of options.
        defaults (`Callable`, *optional*):
            As in [`RecipeParser`].
        environment (`Mapping[str, str]`, *optional*):
            Where launchers say which process of several this is.

    Raises:
        `SystemExit`: With status 2, or 130 where the user interrupted it.
    """
    words = sys.argv[1:]
    # Transformers has an option of this name, which takes a value
    switches = [
        i for i, word in enumerate(words) if word == "--debug" and words[i + 1 : i + 2] in ([], *_options(words))
    ]
    words = [word for i, word in enumerate(words) if i not in switches]
    try:
        options = RecipeParser(classes, defaults).parse_args_and_config(words)
        for each in options:
            if isinstance(each, TrainingArguments):
                check_trackers(each.report_to or [])
        main(*options)
    except KeyboardInterrupt:
        print(f"{_program(environment)}: interrupted.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ImportError, yaml.YAMLError) as error:
        if switches:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"{_program(environment)}: {text} (`--debug` shows where.)", file=sys.stderr)
        sys.exit(2)


def _options(words: list[str]) -> list[list[str]]:
    return [[word] for word in words if word.startswith("--")]


def _program(environment: Mapping[str, str]) -> str:
    """Name of the recipe, and which of several processes speaks unless it is the first."""
    process = environment.get("RANK", "0")
    return Path(sys.argv[0]).name + (f" (process {process})" if process != "0" else "")


def check_trackers(names: str | Iterable[str]) -> None:
    """Refuse to report to what is not installed, by Transformers' names of trackers, before anything is loaded."""
    for name in [names] if isinstance(names, str) else names:
        available = getattr(integrations, f"is_{_TRACKERS.get(name, name)}_available", None)
        if available is not None and not available():
            raise ValueError(
                f"`report_to` has '{name}', whose package is not installed. Install it, or set `report_to` to none."
            )


def as_name(model: Any) -> Any:
    """A path of a model as its text, which is what the libraries take; anything else as it is."""
    return os.fspath(model) if isinstance(model, os.PathLike) else model


def check_path(name: str, what: str) -> None:
    """
    Refuse a name that can only be of a local folder, where there is none, before the hub is asked for it.

    Args:
        name (`str`):
            Hub name or path.
        what (`str`):
            What it was to be, for the message.

    Raises:
        `ValueError`: Naming the path and what makes it.
    """
    path = Path(name).expanduser()
    if path.is_file():
        raise ValueError(f"'{name}' ({what}) is a file. Give the folder in which it lies, or a hub name.")
    local = name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/")
    if (local or (len(path.parts) > 1 and Path(path.parts[0]).is_dir())) and not path.exists():
        remedy = "`make demo` makes it." if path.parts[:2] == ("runs", "demo") else "Correct the path."
        raise ValueError(f"There is no folder '{name}' ({what}) in '{os.getcwd()}'. {remedy}")
