"""Preference pairs from a judge that scores single responses: the labelling half of the closed loop."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from datasets import Dataset

from ..data.messages import Messages, text_of

ANNOTATORS = 5  # odd, so that a vote is never tied

Judge = Callable[..., Sequence[float]]


class LabelledPairs(NamedTuple):
    """Pairs that a judge labelled, and how many it could not label."""

    pairs: Dataset  # columns prompt, chosen, rejected, strength
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


def label_pairs(
    prompts: Sequence[str | Messages],
    first: Sequence[str | Messages],
    second: Sequence[str | Messages],
    judge: Judge,
    seed: int,
) -> LabelledPairs:
    """
    Label pairs of answers by the votes of simulated annotators who see a judge's scores.

    Args:
        prompts (list of `str` or of lists of messages):
            Prompts.
        first (list of the same form):
            An answer to each prompt.
        second (list of the same form):
            Another answer to each prompt.
        judge (`Callable`):
            Reward function with TRL's signature. Its scores are read as Bradley-Terry rewards in nats.
        seed (`int`):
            Seed of the votes. Those of a row depend on the seed, its place and its scores alone.

    Returns:
        [`LabelledPairs`]: The pairs, with the share by which the vote was won (0.2, 0.6 or 1) as `strength`, and the
        number of rows left out because their two answers were equal or one was empty.

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
    scores = zip(*(judge_scores(judge, prompts, answers) for answers in (first, second)), strict=True)
    for index, (prompt, one, other, (score, rival)) in enumerate(zip(prompts, first, second, scores, strict=True)):
        texts = [text_of(answer) for answer in (one, other)]
        if texts[0].strip() == texts[1].strip() or not all(text.strip() for text in texts):
            continue
        votes = vote(score - rival, random.Random(f"votes {seed} {index}"))
        chosen, rejected = (one, other) if votes > 0 else (other, one)
        strength = abs(votes) / ANNOTATORS
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "strength": strength})
    if not rows:
        raise ValueError(f"None of {len(prompts)} prompts got two different answers that are not empty.")
    return LabelledPairs(Dataset.from_list(rows), len(prompts) - len(rows))
