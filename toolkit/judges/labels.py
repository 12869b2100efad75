"""Preference pairs from a judge of single responses or of pairs: the labelling half of the closed loop."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from datasets import Dataset

from ..data.messages import Messages, text_of

ANNOTATORS = 5  # odd, so that a vote is never tied

Judge = Callable[..., Sequence[float]]


class Verdict(NamedTuple):
    """What a judge says of a pair in one order."""

    p_first: float  # probability that the first response is better
    text: str = ""  # its reasons, where it gives any


class PairJudge(Protocol):
    """A judge that sees both responses of a pair. It is asked in both orders, since a place may be liked."""

    def compare(self, prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> Sequence[Verdict]:
        """A verdict on each pair in this order."""


class LabelledPairs(NamedTuple):
    """Pairs that a judge labelled, and how many it could not label."""

    pairs: Dataset  # columns prompt, chosen, rejected, strength; of a judge of pairs also position_bias, contested
    skipped: int  # rows left out, as their two answers were equal or one was empty


def vote(gap: float, rng: random.Random) -> int:
    """
    Votes for the first of two responses less votes for the second.

    Each of five annotators prefers the first with the Bradley-Terry probability, the logistic of the gap.

    Args:
        gap (`float`):
            Score of the first less that of the second, in nats.
        rng (`random.Random`):
            Source of chance.

    Returns:
        `int`: An odd number between -5 and 5.
    """
    probability = 0.5 * (1 + math.tanh(gap / 2))
    return sum(1 if rng.random() < probability else -1 for _ in range(ANNOTATORS))


def judge_scores(judge: Judge, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
    """
    What a judge says of answers.

    Args:
        judge (`Callable`):
            Reward function with TRL's signature.
        prompts (list of `str` or of lists of messages):
            Prompts.
        completions (list of the same form):
            An answer to each.

    Returns:
        `list[float]`: A finite number of each.

    Raises:
        `ValueError`: Naming the first answer of which it says something else.
    """
    name, found = getattr(judge, "__name__", type(judge).__name__), judge(prompts=prompts, completions=completions)
    remedy = "A judge returns a finite number for each answer."
    try:
        scores = [float("nan") if score is None else float(score) for score in found]
    except (TypeError, ValueError):
        raise ValueError(f"The judge '{name}' returned {str(found)[:80]!r}. {remedy}") from None
    if len(scores) != len(prompts):
        raise ValueError(f"The judge '{name}' returned {len(scores)} scores for {len(prompts)} answers. {remedy}")
    wrong = next((place for place, score in enumerate(scores) if not math.isfinite(score)), None)
    if wrong is not None:
        raise ValueError(f"The judge '{name}' returned {scores[wrong]} for answer {wrong + 1}. {remedy}")
    return scores


def pair_probabilities(judge: PairJudge, prompts: Any, first: Any, second: Any) -> tuple[list[float], list[float]]:
    """
    What a judge of pairs says in both orders: of each pair, the probability `(p_12 + 1 - p_21) / 2` that the first
    answer is better, and the bias of the places, `p_12 + p_21 - 1`. A `ValueError` names what is no probability.
    """
    orders = (first, second), (second, first)
    said = [[verdict.p_first for verdict in judge.compare(prompts, one, other)] for one, other in orders]
    for place, p in enumerate(said[0] + said[1]):
        if not 0 <= p <= 1:
            raise ValueError(f"The judge of pairs said {p} of pair {place % len(prompts) + 1}. Return a probability.")
    both = list(zip(*said, strict=True))
    return [(p + 1 - q) / 2 for p, q in both], [p + q - 1 for p, q in both]


def label_pairs(
    prompts: Sequence[str | Messages],
    first: Sequence[str | Messages],
    second: Sequence[str | Messages],
    judge: Judge | PairJudge,
    seed: int,
) -> LabelledPairs:
    """
    Label pairs of answers by the votes of simulated annotators who see what a judge says.

    Args:
        prompts (list of `str` or of lists of messages):
            Prompts.
        first (list of the same form):
            An answer to each prompt.
        second (list of the same form):
            Another answer to each prompt.
        judge (`Callable` or [`PairJudge`]):
            Reward function with TRL's signature, whose scores are read as Bradley-Terry rewards in nats; or a judge of
            pairs, which is asked in both orders.
        seed (`int`):
            Seed of the votes. Those of a row depend on the seed, its place and its scores alone.

    Returns:
        [`LabelledPairs`]: The pairs, with the share by which the vote was won (0.2, 0.6 or 1) as `strength`, and the
        number of rows left out because their two answers were equal or one was empty; of a judge of pairs also the
        bias of the places, and whether it is more than what speaks for either answer (`contested`).

    Raises:
        `ValueError`: If the three lists differ in length, the judge returns no finite number for an answer, or no row
            gives a pair.
    """
    if not len(prompts) == len(first) == len(second):
        raise ValueError(
            f"`prompts`, `first` and `second` must have one entry a row, got {len(prompts)}, {len(first)} and "
            f"{len(second)}. Give two answers to each prompt."
        )
    rows: list[dict[str, Any]] = []
    probabilities, biases = list[float](), list[float]()
    if hasattr(judge, "compare"):
        probabilities, biases = pair_probabilities(judge, prompts, first, second)
        gaps = [math.log(p / (1 - p)) if 0 < p < 1 else (p - 0.5) * math.inf for p in probabilities]
    else:
        scores = [judge_scores(judge, prompts, answers) for answers in (first, second)]
        gaps = [score - rival for score, rival in zip(*scores, strict=True)]
    for index, (prompt, one, other, gap) in enumerate(zip(prompts, first, second, gaps, strict=True)):
        texts = [text_of(answer) for answer in (one, other)]
        if texts[0].strip() == texts[1].strip() or not all(text.strip() for text in texts):
            continue
        votes = vote(gap, random.Random(f"votes {seed} {index}"))
        chosen, rejected = (one, other) if votes > 0 else (other, one)
        strength = abs(votes) / ANNOTATORS
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "strength": strength})
        if biases:  # the places decide where their bias is more than what speaks for either answer
            contested = abs(biases[index]) > abs(2 * probabilities[index] - 1)
            rows[-1] |= {"position_bias": biases[index], "contested": contested}
    if not rows:
        raise ValueError(f"None of {len(prompts)} prompts got two different answers that are not empty.")
    return LabelledPairs(Dataset.from_list(rows), len(prompts) - len(rows))
