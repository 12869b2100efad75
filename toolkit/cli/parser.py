"""A command line that says in one line what is wrong with it."""

import argparse
import sys
from difflib import get_close_matches
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` that takes whole names of options only, and whose errors are one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """In place of the usage, which is many lines; exit status 2, as in `argparse`."""
        end = (
            "" if message.endswith("?") else f"{'' if message.endswith('.') else '.'} `{self.prog} --help` tells more."
        )
        print(f"{self.prog}: {message}{end}", file=sys.stderr)
        raise SystemExit(2)

    def refuse(self, word: str) -> NoReturn:
        """End with an error about a word that belongs to no option of this command."""
        if not word.startswith("-"):
            self.error(f"`{word}` belongs to no option. Name the option before it, or leave it out.")
        name = word.partition("=")[0]
        known = sorted(option for action in self._actions for option in action.option_strings)
        near = [option for option in known if option.startswith(name)] or get_close_matches(name, known, 1)
        self.error(f"There is no option `{name}`." + (f" Did you mean `{near[0]}`?" if near else ""))
