"""Whether the best of several responses is found: the response that scores highest in a set of more than two."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class ScoredSet(NamedTuple):
    """Scores of the responses to one prompt, those that are right first."""

    scores: Sequence[float]
    correct: int  # how many of them are right


def best_of(scored: ScoredSet) -> float:
    """
    Share of the responses with the highest score that are right: 1 or 0, or between them where several score the same.

    With one right response it is the rule of RewardBench 2 (https://arxiv.org/abs/2506.01937): 1 over the number of
    responses that share the highest score, if the right one does.

    Args:
        scored ([`ScoredSet`]):
            A set with a response.

    Returns:
        `float`
    """
    best = max(scored.scores)
    found = [place < scored.correct for place, score in enumerate(scored.scores) if score == best]
    return sum(found) / len(found)


def ties_score(references: Mapping[int, ScoredSet], tied: Mapping[int, ScoredSet]) -> float:
    r"""
    Score of RewardBench 2's subset "Ties", where some prompts have many right answers and others like them have one.

    With the margin $m$, the least score of a right response less the greatest of a wrong one, and the spread $s$, the
    greatest score of a right response less the least, averaged over prompts:

    $$ 0.3 [m_{tied} > 0] + 0.3 [m_{ref} > 0] + 0.2 [m_{tied} > s] + 0.2 [\min(m_{ref}, m_{tied}) > s]
       + 0.01 \tanh(\min(m_{ref}, m_{tied}) / s - 1) $$

    The last three are over the prompts that have both kinds, with several right responses in the second, and the very
    last over those with $s > 0$. It is `process_single_model` of the package `rewardbench` 0.1.4, for
    https://arxiv.org/abs/2506.01937.

    Args:
        references (`Mapping[int, ScoredSet]`):
            By number of the prompt, the set with one right response.
        tied (`Mapping[int, ScoredSet]`):
            By the same number, that with several.

    Returns:
        `float`: At most 1.01.

    Raises:
        `ValueError`: If there is no number that both have with several right responses in the second, on which four
        tenths of the score stand.
    """
    compared = [
        (_margin(references[number]), _margin(tied[number]), _spread(tied[number]))
        for number in references.keys() & tied.keys()
        if tied[number].correct > 1
    ]
    if not compared:
        raise ValueError("No prompt of the subset has both a reference and a tied set. Give whole files.")
    ratios = [min(one, many) / spread for one, many, spread in compared if spread > 0]
    return (
        0.3 * _mean([_margin(scored) > 0 for scored in tied.values()])
        + 0.3 * _mean([_margin(scored) > 0 for scored in references.values()])
        + 0.2 * _mean([many > spread for _, many, spread in compared])
        + 0.2 * _mean([min(one, many) > spread for one, many, spread in compared])
        + 0.01 * (_mean([math.tanh(ratio - 1) for ratio in ratios]) if ratios else 0)
    )


def _margin(scored: ScoredSet) -> float:
    return min(scored.scores[: scored.correct]) - max(scored.scores[scored.correct :])


def _spread(scored: ScoredSet) -> float:
    right = scored.scores[: scored.correct]
    return max(right) - min(right)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
