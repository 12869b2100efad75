"""What a server of a reward model is measured with."""

from dataclasses import dataclass
from typing import Any

from ...training.options import help_from_docstring


@help_from_docstring
@dataclass
class ServingBenchmarkArguments:
    """
    A server's turn and a process's.

    Args:
        reward_model (`str`):
            Folder or hub name of a multi-scale reward model.
        dataset_name (`str`):
            Pairs whose responses are scored.
        clients (`int`, *optional*, defaults to `32`):
            Threads that ask, each again when it has its answer.
        rows (`int`, *optional*, defaults to `4`):
            Responses of a request.
        seconds (`float`, *optional*, defaults to `60`):
            Time of the server's turn; the process alone has half of it before, half after.
    """

    reward_model: str
    dataset_name: str
    clients: int = 32
    rows: int = 4
    seconds: float = 60.0


def as_asked(rows: list[Any], args: ServingBenchmarkArguments) -> list[Any]:
    """The rows in the order in which clients ask that have their answers at the same time."""
    each, every = len(rows) // args.clients, range(args.clients)
    return [row for k in range(0, each, args.rows) for c in every for row in rows[c * each + k :][: args.rows]]
