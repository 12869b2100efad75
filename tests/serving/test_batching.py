"""How requests that wait are put together."""

import threading

import pytest

from toolkit.serving.batching import Batcher


@pytest.mark.parametrize(
    ("most", "a_pass", "batches"),
    [
        (100, 1, [1, 6, 4]),  # of ten that wait and one just answered; then all four, who are less than half of ten
        (100, 8, [1, 8, 2]),  # a pass is filled
        (4, 1, [1, 4, 4, 2]),
        (0, 1, [1] * 11),
    ],
)
def test_half_of_the_clients_are_scored_together_and_a_pass_at_least(most, a_pass, batches):
    entered, gate, sizes = threading.Event(), threading.Event(), []

    def score(rows):
        sizes.append(len(rows))
        entered.set()
        gate.wait()
        return list(rows)

    batcher = Batcher(score, most, a_pass)
    first = batcher.submit([0])
    entered.wait()
    others = [batcher.submit([i]) for i in range(1, 11)]
    gate.set()
    assert [future.result() for future in (first, *others)] == [[i] for i in range(11)]
    assert sizes == batches
