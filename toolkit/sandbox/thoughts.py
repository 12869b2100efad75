"""Thoughts about responses of the sandbox, which a parser writes and chance spoils: for a judge's cold start."""

import random
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from .rows import sample_pairs
from .world import TASKS, Request, Text, mark, message_text, parse_prompt, segments_of, values_in

# In the sandbox's own words: {prompt} and {response} are all that a judge is told, and its answers are these
JUDGE_OPTIONS: dict[str, Any] = {
    "judge_template": "{prompt}\n{response}",
    "question": "is it good? {yes} / {no}",
    "answers": ["sure", "no"],
}
RIGHT, WRONG, MISSING = "sure", "mistake", "no"


def write_thought(prompt: Text, response: Text, noise: float, rng: random.Random) -> str:
    """
    A thought about a response: its words that count for and against its manners, whether each statement that was asked
    for is right, wrong or missing, how many of its segments are on the topic, and its words beside those that fit.

    Args:
        prompt (`str` or list of messages):
            A prompt of the sandbox.
        response (`str` or list of messages):
            Any text.
        noise (`float`):
            Probability that what it finds, each by itself, is replaced by chance.
        rng (`random.Random`):
            Source of chance.

    Returns:
        `str`: Such as `polite 2 ugly 0. red sure. rest mistake. topic 3 / 4. words 18 / 19.`
    """
    request = parse_prompt(prompt)
    segments = segments_of(message_text(response, "assistant"))
    marks = [mark(request, word) for segment in segments for word in segment]
    on_topic = sum(bool(set(segment) & set(request.topic)) for segment in segments)

    def count(found: int) -> int:
        return rng.randrange(2 * found + 3) if rng.random() < noise else found

    parts = [f"polite {count(sum(m > 0 for m in marks))} ugly {count(sum(m < 0 for m in marks))}"]
    for point in request.points:
        found = _judge_point(request, segments, point)
        parts.append(f"{point.value} {rng.choice((RIGHT, WRONG, MISSING)) if rng.random() < noise else found}")
    parts.append(f"topic {count(on_topic)} / {len(segments)}")
    parts.append(f"write {count(len(marks))} / {request.aim}")
    return ". ".join(parts) + "."


def _judge_point(request: Request, segments: list[list[str]], point: Any) -> str:
    stated = next((values for segment in segments if (values := values_in(point, segment))), None)
    return MISSING if stated is None else RIGHT if stated == {point.value} else WRONG


def sample_thoughts(size: int, seed: int, noise: float = 0.3, tasks: Sequence[str] = TASKS) -> Dataset:
    """
    Draw conversations with a judge for supervised fine-tuning: what it is asked, a thought, the question, an answer.

    The answer is the label of a pair, right or wrong as annotators vote: the chosen response is called good.

    Args:
        size, seed, tasks:
            As in [`~toolkit.sandbox.rows.sample_pairs`], of other pairs.
        noise (`float`, *optional*, defaults to `0.3`):
            As in [`write_thought`].

    Returns:
        `datasets.Dataset`: Column `messages`, of four turns.
    """
    rows, options = [], JUDGE_OPTIONS
    question = options["question"].format(yes=options["answers"][0], no=options["answers"][1])
    for index, pair in enumerate(sample_pairs(size, seed, tasks)):
        rng = random.Random(f"thoughts {seed} {index}")
        side = rng.choice(("chosen", "rejected"))
        texts = {"prompt": message_text(pair["prompt"], "user"), "response": message_text(pair[side], "assistant")}
        turns = (
            options["judge_template"].format(**texts),
            write_thought(pair["prompt"], pair[side], noise, rng),
            question,
            options["answers"][side == "rejected"],
        )
        roles = ("user", "assistant", "user", "assistant")
        rows.append({"messages": [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]})
    return Dataset.from_list(rows)
