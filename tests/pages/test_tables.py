import pytest

from toolkit.judges.duels import PolicyComparison
from toolkit.pages.tables import accuracies_of, print_accuracy, print_comparison
from toolkit.stats.intervals import Interval, PairAccuracy

METRICS = {
    f"eval_{key}{suffix}": value
    for suffix, base in (("", 0.7), ("/token", 0.6), ("/longer_wins", 0.5))
    for key, value in (("accuracy", base), ("accuracy_low", base - 0.1), ("accuracy_high", base + 0.1), ("ties", 2.0))
} | {"eval_pairs": 80.0}


def test_accuracies_are_found_under_their_names():
    accuracies = accuracies_of(METRICS, ["token"])
    assert list(accuracies) == ["token", "mix", "longer wins"]
    assert accuracies["token"] == PairAccuracy(0.6, 0.5, 0.7, 2, 80)
    assert accuracies["mix"] == pytest.approx((0.7, 0.6, 0.8, 2, 80))


def test_tables_hold_the_figures(capsys):
    print_accuracy(accuracies_of(METRICS, ["token"]))
    wins = PairAccuracy(0.75, 0.7, 0.8, 3, 40)
    comparison = PolicyComparison(Interval(0, -1, 1), Interval(2, 1, 3), Interval(2, 1.5, 2.5), wins, [])
    print_comparison(comparison, "Gold reward")
    printed = capsys.readouterr().out
    for text in ("token", "60.0", "50.0 to 70.0", "80", "Gold reward", "2.000", "1.500 to 2.500", "win rate (3 ties)"):
        assert text in printed
