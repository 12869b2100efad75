import math
import random

import pytest

from toolkit.judges.labels import ANNOTATORS, Verdict, label_pairs, vote


def by_length(prompts, completions, **kwargs):
    return [float(len(text if isinstance(text, str) else text[-1]["content"])) for text in completions]


def test_a_clear_gap_wins_every_vote_and_an_even_one_half_of_them():
    rng = random.Random(0)
    assert vote(60.0, rng) == ANNOTATORS
    assert vote(-60.0, rng) == -ANNOTATORS
    # The mean of 2,000 sums of five fair coins has standard deviation sqrt(5 / 2000) = 0.05
    assert abs(sum(vote(0.0, rng) for _ in range(2000)) / 2000) < 0.2


def test_votes_follow_the_bradley_terry_probability():
    # sigmoid(ln 3) = 3/4, so the expected difference of votes is 5 * (3/4 - 1/4) = 2.5
    rng = random.Random(1)
    mean = sum(vote(1.0986122886681098, rng) for _ in range(4000)) / 4000
    assert mean == pytest.approx(2.5, abs=0.15)


def test_the_clearly_better_answer_is_chosen_with_full_strength():
    pairs, skipped = label_pairs(["p", "q"], ["short", "x" * 99], ["y" * 99, "short"], by_length, seed=0)
    assert skipped == 0
    assert pairs.to_list() == [
        {"prompt": "p", "chosen": "y" * 99, "rejected": "short", "strength": 1.0},
        {"prompt": "q", "chosen": "x" * 99, "rejected": "short", "strength": 1.0},
    ]


def test_messages_stay_messages():
    prompt = [{"role": "user", "content": "hi"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("a" * 50, "b")]
    (pair,) = label_pairs([prompt], answers[:1], answers[1:], by_length, seed=0).pairs.to_list()
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (prompt, answers[0], answers[1])


def test_equal_and_empty_answers_are_left_out_and_counted():
    pairs, skipped = label_pairs(["p"] * 3, ["a", " ", "c"], ["a ", "b", "d"], by_length, seed=0)
    assert (len(pairs), skipped) == (1, 2)


def test_a_row_is_labelled_the_same_whatever_stands_around_it():
    first, second = [f"{'a' * (i % 3)}x" for i in range(20)], [f"{'b' * (i % 2)}y" for i in range(20)]
    whole = label_pairs(["p"] * 20, first, second, by_length, seed=3).pairs.to_list()
    part = label_pairs(["p"] * 7, first[:7], second[:7], by_length, seed=3).pairs.to_list()
    assert whole[:7] == part


def test_votes_on_even_answers_are_a_coin_and_depend_on_seed_and_row():
    def even(prompts, completions, **kwargs):
        return [0.0] * len(prompts)

    def winners(size, seed):
        return label_pairs(["p"] * size, ["a"] * size, ["b"] * size, even, seed).pairs["chosen"][:]

    assert winners(400, 0)[:100] == winners(100, 0) != winners(100, 1)
    assert 160 < winners(400, 0).count("a") < 240  # four standard deviations of 400 throws of a coin


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="got 2, 1 and 2"):
        label_pairs(["p", "q"], ["a"], ["b", "c"], by_length, seed=0)


def test_no_pair_at_all_is_an_error():
    with pytest.raises(ValueError, match="None of 1 prompts"):
        label_pairs(["p"], ["a"], ["a"], by_length, seed=0)


class LikesTheFirst:
    """A judge of pairs that says 0.9 for the longer answer and 0.1 for the other, and adds to whatever comes first."""

    def __init__(self, bias: float):
        self.bias, self.asked = bias, []

    def compare(self, prompts, first, second):
        self.asked.append((list(first), list(second)))
        longer = [len(one) > len(other) for one, other in zip(first, second, strict=True)]
        return [Verdict(min(1.0, (0.9 if is_longer else 0.1) + self.bias)) for is_longer in longer]


@pytest.mark.parametrize(("bias", "contested"), [(0.05, 0), (0.45, 30)])
def test_a_judge_of_pairs_is_asked_in_both_orders_and_its_bias_counted(bias, contested):
    prompts, long, short = ["?"] * 30, ["a longer answer"] * 30, ["short"] * 30
    judge = LikesTheFirst(bias)
    labelled = label_pairs(prompts, long, short, judge, seed=0)
    assert judge.asked == [(long, short), (short, long)]
    # p_12 = 0.9 + bias, at most 1, and p_21 = 0.1 + bias
    p_12, p_21 = min(1.0, 0.9 + bias), 0.1 + bias
    assert labelled.pairs["position_bias"][:] == pytest.approx([p_12 + p_21 - 1] * 30)
    assert sum(labelled.pairs["contested"][:]) == contested
    # the votes are those on a gap of the log-odds of the mean of both orders
    p = (p_12 + 1 - p_21) / 2
    gap = math.log(p / (1 - p))
    votes = [vote(gap, random.Random(f"votes 0 {i}")) for i in range(30)]
    assert labelled.pairs["strength"][:] == [abs(v) / 5 for v in votes]
    assert labelled.pairs["chosen"][:] == ["a longer answer" if v > 0 else "short" for v in votes]


def test_a_judge_of_pairs_that_is_certain_is_followed():
    class Certain:
        def compare(self, prompts, first, second):
            return [Verdict(float(len(one) > len(other))) for one, other in zip(first, second, strict=True)]

    labelled = label_pairs(["?", "?"], ["long one", "no"], ["no", "long one"], Certain(), seed=0)
    assert labelled.pairs["chosen"][:] == ["long one", "long one"]
    assert labelled.pairs["strength"][:] == [1.0, 1.0]
    assert labelled.pairs["position_bias"][:] == [0.0, 0.0]


def test_a_verdict_that_is_no_probability_is_refused():
    class Off:
        def compare(self, prompts, first, second):
            return [Verdict(0.5), Verdict(1.4)]

    with pytest.raises(ValueError, match=r"said 1.4 of pair 2. Return a probability"):
        label_pairs(["?", "?"], ["a", "b"], ["c", "d"], Off(), seed=0)
