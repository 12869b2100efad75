"""Thoughts about responses of the sandbox, which a parser writes and chance spoils: for a judge's cold start."""

import random
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from .rows import sample_pairs
from .world import TASKS, Text, mark, message_text, parse_prompt, segments_of, values_in

# In the sandbox's own words
JUDGE_OPTIONS: dict[str, Any] = {"judge_template": "{prompt}\n{response}", "answers": ["sure", "no"]}
JUDGE_OPTIONS["question"] = "is it good? {yes} / {no}"
RIGHT, WRONG, MISSING = "sure", "mistake", "no"


def write_thought(prompt: Text, response: Text, noise: float, rng: random.Random) -> str:
    """
    A thought about a response to a sandbox prompt: how many words speak for and against its manners, whether each
    statement that was asked for is right, wrong or missing, how many segments are on the topic, how many words of how
    many that fit. Each finding is replaced by chance with the probability `noise`.

    Such as `polite 2 ugly 0. red sure. rest mistake. topic 3 / 4. write 18 / 19.`
    """
    request, segments = parse_prompt(prompt), segments_of(message_text(response, "assistant"))
    marks = [mark(request, word) for segment in segments for word in segment]

    def count(found: int) -> int:
        return rng.randrange(2 * found + 3) if rng.random() < noise else found

    parts = [f"polite {count(sum(m > 0 for m in marks))} ugly {count(sum(m < 0 for m in marks))}"]
    for point in request.points:
        stated = next((values for segment in segments if (values := values_in(point, segment))), None)
        found = MISSING if stated is None else RIGHT if stated == {point.value} else WRONG
        parts.append(f"{point.value} {rng.choice((RIGHT, WRONG, MISSING)) if rng.random() < noise else found}")
    on_topic = sum(bool(set(segment) & set(request.topic)) for segment in segments)
    parts += [f"topic {count(on_topic)} / {len(segments)}", f"write {count(len(marks))} / {request.aim}"]
    return ". ".join(parts) + "."


def sample_thoughts(size: int, seed: int, noise: float = 0.3, tasks: Sequence[str] = TASKS) -> Dataset:
    """
    Draw conversations with a judge for supervised fine-tuning, in the column `messages`: one response of each pair of
    [`~toolkit.sandbox.rows.sample_pairs`], a thought with `noise`, the question, and whether it is the chosen one.
    """
    rows, (yes, no) = [], JUDGE_OPTIONS["answers"]
    for index, pair in enumerate(sample_pairs(size, seed, tasks)):
        rng = random.Random(f"thoughts {seed} {index}")
        side, answer = rng.choice((("chosen", yes), ("rejected", no)))
        texts = {"prompt": message_text(pair["prompt"], "user"), "response": message_text(pair[side], "assistant")}
        asked, question = JUDGE_OPTIONS["judge_template"].format(**texts), JUDGE_OPTIONS["question"]
        said = (asked, write_thought(pair["prompt"], pair[side], noise, rng), question.format(yes=yes, no=no), answer)
        roles = ("user", "assistant", "user", "assistant")
        rows.append({"messages": [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]})
    return Dataset.from_list(rows)
