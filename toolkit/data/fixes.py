"""What of a set of preference pairs can be used, and what cannot and why, written to two files."""

import json
import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

ENDING = ".jsonl"


class PairFiles:
    """
    Writes usable pairs to a file and the others beside it, under other names until both are whole.

    Used in a `with` statement: at its end the files get their names, and where it ends in an error nothing stays. The
    file of what cannot be used, `OUT.rejected.jsonl` for `OUT.jsonl`, is left out where it would be empty.

    Args:
        path (`str`):
            File for the usable pairs, `.jsonl`.

    Raises:
        `ValueError`: If it has another ending, its folder does not exist, or one of the two files does.
    """

    def __init__(self, path: str) -> None:
        self.usable = Path(path)
        if self.usable.suffix != ENDING:
            raise ValueError(f"`--fix {path}` would write JSON lines. Choose a name that ends in '{ENDING}'.")
        self.rejected = self.usable.with_suffix(f".rejected{ENDING}")
        if not self.usable.parent.is_dir():
            raise ValueError(f"`--fix {path}`: there is no folder '{self.usable.parent}'. Make it first.")
        self._refuse_present()
        self.written = dict.fromkeys((self.usable, self.rejected), 0)  # rows of each file
        self._files: dict[Path, IO[str]] = {}
        self._open = ExitStack()

    def __enter__(self) -> "PairFiles":
        for path in self.written:
            self._files[path] = self._open.enter_context(open(_part(path), "w", encoding="utf-8"))
        return self

    def add(self, pair: dict[str, Any]) -> None:
        """Write a usable pair."""
        self._write(self.usable, pair)

    def reject(self, name: str, row: int, why: str, found: dict[str, Any]) -> None:
        """Write what cannot be used: its file, its number there, why, and the row as it was found."""
        self._write(self.rejected, {"file": name, "line": row, "why": why, "row": found})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._open.close()
        try:
            if kind is None:
                self._refuse_present()
                for path, rows in self.written.items():
                    if rows:
                        _part(path).rename(path)
        finally:
            for path in self.written:
                _part(path).unlink(missing_ok=True)

    def _write(self, path: Path, row: dict[str, Any]) -> None:
        # Dates and the like, which a Parquet file may hold, as text
        self._files[path].write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        self.written[path] += 1

    def _refuse_present(self) -> None:
        if present := [str(path) for path in (self.usable, self.rejected) if path.exists()]:
            raise ValueError(f"`--fix {self.usable}` would overwrite {present}. Choose another name, or remove them.")


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.part")  # no name that anybody else would give
