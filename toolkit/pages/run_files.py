"""What a page about a run reads of files that others may have written or edited: only what has the right form."""

from numbers import Real
from pathlib import Path
from typing import Any

REMEDY = "Remove it, or restore it."


def log_of(state: dict[str, Any], file: Path) -> list[dict[str, Any]]:
    """
    Log of a trainer's state.

    Args:
        state (`dict[str, Any]`):
            Content of its file.
        file (`Path`):
            The file, for messages.

    Returns:
        `list[dict[str, Any]]`: A dictionary of numbers for each log.

    Raises:
        `ValueError`: Naming the first that is something else.
    """
    log = state.get("log_history", [])
    if not isinstance(log, list):
        raise ValueError(f"'{file}' is damaged: its `log_history` is {str(log)[:40]!r} and no list. {REMEDY}")
    for number, row in enumerate(log, start=1):
        wrong = [row] if not isinstance(row, dict) else [v for v in row.values() if not isinstance(v, Real | None)]
        if wrong:
            found = f"entry {number} of its `log_history` holds {str(wrong[0])[:40]!r} and no number"
            raise ValueError(f"'{file}' is damaged: {found}. {REMEDY}")
    return log


def check_run(run: dict[str, Any], file: Path) -> None:
    """
    Refuse the record of a run whose parts are of other kinds.

    Args:
        run (`dict[str, Any]`):
            Content of its file.
        file (`Path`):
            The file, for the message.

    Raises:
        `ValueError`: Naming the first part.
    """
    for name, kind in {"started": list, "options": dict, "versions": dict}.items():
        if not isinstance(run[name], kind) or (kind is list and not run[name]):
            raise ValueError(f"'{file}' is damaged: its `{name}` is {str(run[name])[:40]!r}. {REMEDY}")


def is_example(card: Any) -> bool:
    """Whether a card of `examples.json` has the parts that a page shows; others use such a name, too."""
    if not isinstance(card, dict) or not {"title", "prompt", "responses"} <= card.keys():
        return False
    return all(isinstance(each, dict) and {"label", "text", "numbers"} <= each.keys() for each in card["responses"])
