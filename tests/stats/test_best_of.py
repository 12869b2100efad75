import math

import pytest

from toolkit.stats.best_of import ScoredSet, best_of, ties_score


@pytest.mark.parametrize(
    ("scores", "correct", "share"),
    [
        ([3.0, 1.0, 2.0, 0.0], 1, 1),
        ([1.0, 3.0, 2.0, 0.0], 1, 0),
        ([3.0, 3.0, 2.0, 3.0], 1, 1 / 3),  # three share the highest score, and one of them is right
        ([0.0, 3.0, 3.0, 2.0], 2, 1 / 2),
        ([0.0, 3.0, 2.0, 2.0], 2, 1),
        ([1.0, 1.0, 1.0, 1.0], 1, 1 / 4),
    ],
)
def test_best_of_four_by_hand(scores, correct, share):
    assert best_of(ScoredSet(scores, correct)) == pytest.approx(share)


def test_a_prompt_with_many_right_answers_by_hand():
    # right 5 and 4, wrong 1: margin 3, spread 1; the reference's margin is 2: every part is won, and tanh(2/1 - 1)
    whole = ties_score({0: ScoredSet([3.0, 1.0], 1)}, {0: ScoredSet([5.0, 4.0, 1.0], 2)})
    assert whole == pytest.approx(0.3 + 0.3 + 0.2 + 0.2 + 0.01 * math.tanh(1))
    # the reference's margin is 0.5, below the spread
    half = ties_score({0: ScoredSet([1.5, 1.0], 1)}, {0: ScoredSet([5.0, 4.0, 1.0], 2)})
    assert half == pytest.approx(0.3 + 0.3 + 0.2 + 0.01 * math.tanh(-0.5))
    # both are wrong
    none = ties_score({0: ScoredSet([1.0, 2.0], 1)}, {0: ScoredSet([5.0, 4.0, 6.0], 2)})
    assert none == pytest.approx(0.01 * math.tanh(-3))


def test_equal_scores_of_all_right_answers_have_no_ratio():
    assert ties_score({0: ScoredSet([3.0, 1.0], 1)}, {0: ScoredSet([2.0, 2.0, 1.0], 2)}) == pytest.approx(1.0)


def test_sets_without_their_counterpart_count_where_they_can_and_alone_not_at_all():
    references = {0: ScoredSet([3.0, 1.0], 1), 1: ScoredSet([0.0, 1.0], 1)}
    tied = {0: ScoredSet([5.0, 5.0, 1.0], 2)}
    assert ties_score(references, tied) == pytest.approx(0.3 + 0.15 + 0.2 + 0.2)
    with pytest.raises(ValueError, match="both a reference and a tied set"):
        ties_score({1: references[1]}, tied)
