"""Thoughts about responses of the sandbox, which a parser writes and chance spoils: for a judge's cold start."""

import math
import random
import re
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from .rows import sample_pairs
from .world import (
    TASKS,
    TOPIC_OF,
    VARIABLES,
    Request,
    Text,
    gold_reward,
    mark,
    message_text,
    parse_prompt,
    segment_marks,
    segments_of,
    values_made,
)

# In the sandbox's own words
JUDGE_OPTIONS: dict[str, Any] = {"judge_template": "{prompt}\n{response}", "answers": ["sure", "no"]}
JUDGE_OPTIONS["question"] = "is it good? {yes} / {no}"
FINDINGS = ("polite", "topic", "exact")  # of the gold reward's token, segment and response part
SIGNS = {1: "+", 0: "/", -1: "-"}


def write_thought(prompt: Text, response: Text, noise: float, rng: random.Random) -> str:
    """
    A thought about a response to a sandbox prompt: what bears on each part of its gold reward, and that part in tenths
    of its range; the part that the prompt counts most comes first.

    Such as `exact red + farm - no - 3 topic rose + hen - 5 polite thanks + please - 4.`: of the points asked for, in
    their order, the value stated and whether it is right; what each segment speaks of, and whether it is relevant or
    (`/`) comes too late; the courtesies and the words that count against the response. Each sign and each level is
    replaced by chance with the probability `noise`.
    """
    gold, request, said = gold_reward(prompt, response), parse_prompt(prompt), list[str]()
    found = _evidence(request, segments_of(message_text(response, "assistant")))
    for _, name, part in sorted(zip(gold.weights, FINDINGS, gold[1:4], strict=True), reverse=True):
        said.append(name)
        for word, sign in found[name]:
            said += [word, rng.choice(list(SIGNS.values())) if rng.random() < noise else SIGNS[sign]]
        level = rng.randrange(10) if rng.random() < noise else min(9, math.floor(5 * (part + 1)))
        said.append(str(level))
    return " ".join(said) + "."


def _evidence(request: Request, segments: list[list[str]]) -> dict[str, list[tuple[str, int]]]:
    """Words of a response that bear on each finding, each with 1 where it counts for the response and -1 against."""
    marks = [(word, mark(request, word)) for segment in segments for word in segment]
    values = [" and ".join(sorted(made)) for made in values_made(request, segments)]
    return {
        "polite": [(word, 1 if counts > 0 else -1) for word, counts in marks if counts],
        "topic": list(zip(map(_subject, segments), segment_marks(request, segments), strict=True)),
        "exact": [
            (value or "no", 1 if value == point.value else -1)
            for value, point in zip(values, request.points, strict=True)
        ],
    }


def _subject(segment: list[str]) -> str:
    """The word that says what a segment is about: its first noun or variable, else its last word."""
    return next((word for word in segment if word in TOPIC_OF or word in VARIABLES), segment[-1])


def draw_answer(prompt: Text, thought: str, rng: random.Random) -> str:
    r"""
    The answer that follows from a thought: the good one with probability $\sigma(u / 2)$, `u` its total in nats.

    It is less sure than labels are, since a judge's own thoughts will be wrong at times: where its answers are surer
    than its thoughts are right, the likelihood of pairs asks first of all for answers that no longer listen to them.
    """
    levels, weights = dict(re.findall(rf"({'|'.join(FINDINGS)})\b\D*(\d)", thought)), parse_prompt(prompt).weights
    total = sum(weight * ((int(levels[name]) + 0.5) / 5 - 1) for name, weight in zip(FINDINGS, weights, strict=True))
    return str(JUDGE_OPTIONS["answers"][rng.random() > 1 / (1 + math.exp(-total / 2))])


def sample_thoughts(size: int, seed: int, noise: float = 0.0, tasks: Sequence[str] = TASKS) -> Dataset:
    """
    Draw conversations with a judge for supervised fine-tuning, in the column `messages`: one response of each pair of
    [`~toolkit.sandbox.rows.sample_pairs`], a thought with `noise`, the question, and what follows from the thought.
    """
    rows, (yes, no) = [], JUDGE_OPTIONS["answers"]
    for index, pair in enumerate(sample_pairs(size, seed, tasks)):
        rng = random.Random(f"thoughts {seed} {index}")
        prompt, response = (
            message_text(pair["prompt"], "user"),
            message_text(pair[rng.choice(("chosen", "rejected"))], "assistant"),
        )
        asked = JUDGE_OPTIONS["judge_template"].format(prompt=prompt, response=response)
        thought = write_thought(prompt, response, noise, rng)
        question = JUDGE_OPTIONS["question"].format(yes=yes, no=no)
        said = zip(
            ("user", "assistant") * 2, (asked, thought, question, draw_answer(prompt, thought, rng)), strict=True
        )
        rows.append({"messages": [{"role": role, "content": content} for role, content in said]})
    return Dataset.from_list(rows)
