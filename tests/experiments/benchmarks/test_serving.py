"""What a server is compared with."""

from toolkit.experiments.benchmarks.serving import ServingBenchmarkArguments, as_asked


def test_rows_stand_in_the_order_in_which_clients_ask():
    args = ServingBenchmarkArguments("model", "pairs", clients=3, rows=2)
    assert as_asked(list(range(12)), args) == [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]
