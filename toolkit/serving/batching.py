"""Requests that wait for the model are scored together."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NamedTuple

from ..data.tokens import EncodedResponse
from ..reward.scores import ResponseScore

Rows = Sequence[EncodedResponse]


class _Waiting(NamedTuple):
    rows: Rows
    result: Future[list[ResponseScore]]


class Batcher:
    """
    One thread that scores, so that the model is never entered twice, and takes several waiting requests together.

    It takes no more than half of the clients that wait or were just answered. Clients ask again when they have their
    answers, and if all of them had theirs at once, the model would wait for all of them; so one half waits while the
    other is scored.

    Args:
        score (`Callable`):
            Scores of rows, as [`~toolkit.reward.scorer.RewardFunction.score_encoded`] gives them.
        most_rows (`int`):
            Most rows that requests are put together to; a request is never divided. With 0 each is scored alone, and
            its scores do not depend on what else waits.
        pass_rows (`int`):
            Rows of a forward pass, which are taken however little waits.
    """

    def __init__(self, score: Callable[[Rows], list[ResponseScore]], most_rows: int, pass_rows: int) -> None:
        self._score, self._most_rows, self._pass_rows = score, most_rows, pass_rows
        self._queue = SimpleQueue[_Waiting]()
        Thread(target=self._work, name="scoring", daemon=True).start()

    def submit(self, rows: Rows) -> Future[list[ResponseScore]]:
        """The scores of a request's rows, when they will be there; an error of the model's is the future's."""
        waiting = _Waiting(rows, Future())
        self._queue.put(waiting)
        return waiting.result

    def waiting(self) -> int:
        """Requests that wait."""
        return self._queue.qsize()

    def _work(self) -> None:
        kept: _Waiting | None = None
        batch: list[_Waiting] = []
        while True:
            answered, batch = len(batch), [kept or self._queue.get()]
            kept = self._fill(batch, answered)
            try:
                scores = self._score([row for waiting in batch for row in waiting.rows])
            except Exception as error:  # of this batch, and not of the server; nor of clients, whose rows were checked
                fault = RuntimeError(f"The model failed: {type(error).__name__}: {error}")
                fault.__cause__ = error
                for waiting in batch:
                    waiting.result.set_exception(fault)
                continue
            for waiting in batch:
                waiting.result.set_result(scores[: len(waiting.rows)])
                scores = scores[len(waiting.rows) :]

    def _fill(self, batch: list[_Waiting], answered: int) -> _Waiting | None:
        """Put what waits into a batch, up to its size; the first that does not fit begins the next one."""
        count, half = len(batch[0].rows), (self._queue.qsize() + 2 + answered) // 2
        while count < self._most_rows and (count < self._pass_rows or len(batch) < half):
            try:
                found = self._queue.get_nowait()
            except Empty:
                return None
            count += len(found.rows)
            if count > self._most_rows:
                return found
            batch.append(found)
        return None
