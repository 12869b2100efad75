"""Where a case is performed: a folder of its own, the product's entrances, and what all cases share."""

import contextlib
import inspect
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from tests.corpus.cases import Disagreement, Refusal
from tests.corpus.shop import Shop
from tests.helpers import job_of, load_recipe

VERDICT = "Training would refuse these data: "
# Options without which no recipe runs on a machine without a GPU
ON_A_CPU = ["--use_cpu", "--bf16", "no", "--activation_checkpointing", "no", "--report_to", "none"]


class Bench:
    """
    What a case has at hand.

    Args:
        folder (`Path`):
            The case's own folder, empty.
        shop ([`~tests.corpus.shop.Shop`]):
            Tokenizers, models and trainers that are made once for all cases.
    """

    def __init__(self, folder: Path, shop: Shop) -> None:
        self.folder, self.shop = folder, shop

    def path(self, name: str = "") -> str:
        """A place in the case's folder."""
        return str(self.folder / name)

    def write(self, name: str, content: str | bytes | list[Any]) -> str:
        """Write a file: text, bytes, or a list of rows as JSON lines."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return str(path)

    def command(self, *words: str) -> str:
        """
        What `prefscale` prints. A [`Refusal`] where it ends with another status than 0: of `check` and `verify`, which
        find things wrong rather than fail, with the line that says so.
        """
        from toolkit.cli.main import main

        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main(list(words))
        except SystemExit as end:
            raise Refusal([err.getvalue().strip()], int(end.code or 0)) from None
        print(out.getvalue(), err.getvalue())
        if not status:
            return out.getvalue()
        lines = [line.strip() for line in out.getvalue().splitlines()]
        found = [line for line in lines if VERDICT in line or line.startswith("WRONG")]
        raise Refusal(found[:1] if found else [err.getvalue().strip()], status)

    def recipe(self, name: str, *words: str, main: Callable[..., Any] | None = None) -> Any:
        """
        What a recipe makes of its command line: its options where its `main` is not given, since most mistakes are
        found before a model is loaded.
        """
        from toolkit.training.command_line import run_recipe

        given: list[Any] = []
        job = job_of(name)

        def take(*options: Any) -> None:
            given.extend(options)
            if main is not None:
                main(*options)

        err = io.StringIO()
        try:
            with mock.patch.object(sys, "argv", [f"recipes/{name}.py", *words]), contextlib.redirect_stderr(err):
                if job is not None:
                    with mock.patch.object(job, "main", take):
                        job.run()
                else:
                    parameters = inspect.signature(load_recipe(name).main).parameters.values()
                    run_recipe(take, *(parameter.annotation for parameter in parameters), environment={})
        except SystemExit as end:
            lines = [line for line in err.getvalue().splitlines() if line.startswith(f"{name}.py: ")]
            raise Refusal([lines[-1] if lines else err.getvalue()], int(end.code or 0)) from None
        return given

    def check(self, name: str, *words: str, load: bool = True, of_hub: bool = False) -> int:
        """
        How many pairs training would take of a file, by `prefscale check` and by what training does. A [`Refusal`]
        with what both say where they refuse it, a [`Disagreement`] where one of them does not.
        """
        from toolkit.data.loading import load_pairs

        messages: list[str] = []
        status, name = None, name if of_hub else self.path(name)
        try:
            self.command("check", name, *words)
        except Refusal as refusal:
            messages, status = refusal.messages, refusal.status
        if not load:
            if messages:
                raise Refusal(messages, status)
            return 0
        try:
            pairs = len(load_pairs(name))
        except ValueError as error:
            if not messages:
                raise Disagreement(f"Training refuses what `check` does not: {error}") from None
            raise Refusal([*messages, str(error)], status) from None
        if messages:
            raise Disagreement(f"`check` refuses what training does not: {messages}")
        return pairs


@contextlib.contextmanager
def in_folder(folder: Path | str) -> Iterator[None]:
    """Within it relative paths begin in the folder."""
    with contextlib.chdir(folder):
        yield
