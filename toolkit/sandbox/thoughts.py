"""Thoughts about responses of the sandbox, which a parser writes and chance spoils: for a judge's cold start."""

import math
import random
import re
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from .rows import sample_pairs
from .world import TASKS, Text, gold_reward, message_text, parse_prompt

# In the sandbox's own words
JUDGE_OPTIONS: dict[str, Any] = {"judge_template": "{prompt}\n{response}", "answers": ["sure", "no"]}
JUDGE_OPTIONS["question"] = "is it good? {yes} / {no}"
FINDINGS = ("polite", "topic", "exact")  # of the gold reward's token, segment and response part


def write_thought(prompt: Text, response: Text, noise: float, rng: random.Random) -> str:
    """
    A thought about a response to a sandbox prompt: in tenths of their range the parts of its gold reward, the one that
    the prompt counts most first. Each is replaced by chance with the probability `noise`.

    Such as `exact 3 polite 8 topic 5.`
    """
    gold, said = gold_reward(prompt, response), list[str]()
    for _, name, part in sorted(zip(gold.weights, FINDINGS, gold[1:4], strict=True), reverse=True):
        level = rng.randrange(10) if rng.random() < noise else min(9, math.floor(5 * (part + 1)))
        said.append(f"{name} {level}")
    return " ".join(said) + "."


def draw_answer(prompt: Text, thought: str, rng: random.Random) -> str:
    r"""The answer that follows from a thought: the good one with probability $\sigma(2u)$, `u` its total in nats."""
    levels, weights = dict(re.findall(r"(\w+) (\d)", thought)), parse_prompt(prompt).weights
    total = sum(weight * ((int(levels[name]) + 0.5) / 5 - 1) for name, weight in zip(FINDINGS, weights, strict=True))
    return str(JUDGE_OPTIONS["answers"][rng.random() > 1 / (1 + math.exp(-2 * total))])


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
