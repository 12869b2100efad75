"""Pairs of the tasks, read from their files, cut, divided, and counted."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from ...data.loading import load_pairs, load_table
from ...data.messages import Messages, text_of
from .division import OUTER_FOLDS, Division, Pair, Part, divide, draw, fingerprint, normal, said, seen_in
from .tasks import GROUPED, Task


class TaskPairs:
    """
    Pairs of a task, divided, whose files are `FILE.jsonl.gz` in a folder.

    `pairs` has the columns `prompt`, `chosen` and `rejected` (messages), `strength` (mean 1 in every file, and 1 where
    a file has none) and `cluster`; `parts` counts in its rows. `counts` has the number of rows in the files and of
    what was left out of them, and why.
    """

    def __init__(self, folder: str, task: Task) -> None:
        self.task = task
        self.division, self.counts = _divided(folder, task)
        self.parts: list[Part] = self.division.parts
        self.pairs = Dataset.from_list(
            [
                {
                    "prompt": pair.prompt,
                    "chosen": [{"role": "assistant", "content": pair.chosen}],
                    "rejected": [{"role": "assistant", "content": pair.rejected}],
                    "strength": pair.strength,
                    "cluster": cluster,
                }
                for pair, cluster in zip(self.division.pairs, self.division.clusters, strict=True)
            ]
        )

    def smaller(self, part: Part, draw_number: int, number: int) -> list[int]:
        """At most `number` training pairs of a part, which are among those of every larger number."""
        return draw(self.division.pairs, self.division.clusters, part.train, f"draw {draw_number}")[:number]

    @property
    def training(self) -> list[int]:
        """Pairs of all training halves."""
        return sorted({i for part in self.parts for i in part.train})

    @property
    def testing(self) -> list[int]:
        """Pairs of all test halves."""
        return sorted({i for part in self.parts for i in part.test})


def transferred(train: Sequence[TaskPairs], test: TaskPairs) -> tuple[list[list[int]], list[int], list[bool]]:
    """
    Pairs of a transfer to one task.

    Args:
        train (`Sequence[TaskPairs]`):
            Tasks that heads are trained on.
        test (`TaskPairs`):
            Task that they are scored on.

    Returns:
        `tuple[list[list[int]], list[int], list[bool]]`: Of each training task its training pairs that share nothing
            with a test pair by which clusters are made; the test pairs; and of each whether a text of it occurs in
            training.
    """
    tested = [test.division.pairs[i] for i in test.testing]
    keys = {key for pair in tested for key in pair.keys}
    kept = [[i for i in task.training if keys.isdisjoint(task.division.pairs[i].keys)] for task in train]
    known = [task.division.pairs[i] for task, numbers in zip(train, kept, strict=True) for i in numbers]
    return kept, test.testing, seen_in(known, tested)


def record(task: TaskPairs) -> dict[str, Any]:
    """What is committed of a task's division."""
    return {
        "kind": task.task.kind,
        "first_look": task.task.first_look,
        "files": [file for file in (*task.task.files, task.task.test_file) if file],
        "cluster": task.task.unit,
        "divided": "by file" if task.task.test_file else f"{OUTER_FOLDS} folds" if len(task.parts) > 1 else "halves",
        "clusters": len(set(task.division.clusters)),
        "pairs": len(task.pairs),
        "with_strengths": len(set(task.pairs["strength"])) > 1,
        "left_out": task.counts,
        "parts": [{"train": len(p.train), "test": len(p.test), "seen": sum(p.seen)} for p in task.parts],
        "fingerprint": fingerprint(task.division),
    }


def tokens(task: TaskPairs, tokenizer: Any) -> dict[str, int]:
    """
    Tokens of a task's rows, in the tokenizer's chat template.

    Args:
        task (`TaskPairs`):
            The task.
        tokenizer (`transformers.PreTrainedTokenizerBase`):
            Tokenizer with a chat template.

    Returns:
        `dict[str, int]`: `"pairs"`, where each pair has its prompt once and its two responses; `"distinct"`, where
            each prompt and each of its responses counts once, however many pairs have it; `"longest"`, a prompt with
            one of its responses.
    """
    length: dict[str, int] = {}
    pairs, longest = 0, 0
    distinct = dict[tuple[str, ...], int]()
    for pair in task.division.pairs:
        prompt = tokenizer.apply_chat_template(pair.prompt, tokenize=False, add_generation_prompt=True)
        for text in (prompt, pair.chosen, pair.rejected):
            if text not in length:
                length[text] = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        end = 2  # the end of turn, and the template's line break
        sides: dict[tuple[str, ...], int] = {
            (prompt, text): length[text] + end for text in (pair.chosen, pair.rejected)
        }
        distinct |= {(prompt,): length[prompt], **sides}
        pairs += length[prompt] + sum(sides.values())
        longest = max(longest, length[prompt] + max(sides.values()))
    return {"pairs": pairs, "distinct": sum(distinct.values()), "longest": longest}


def _divided(folder: str, task: Task) -> tuple[Division, dict[str, int]]:
    pairs = list[Pair]()
    counts = dict.fromkeys(["rows", "no preference", "response too long", "prompts cut"], 0)
    for file in (*task.files, task.test_file):
        if file is not None:
            path = f"{folder}/{file}.jsonl.gz"
            found = load_pairs(path)
            counts["rows"] += (rows := len(load_table(path)))
            counts["no preference"] += rows - len(found)
            if task.repeats in GROUPED and "group" not in found.column_names:
                what = f"has no column 'group', by which '{task.name}' is divided; it has {found.column_names}"
                raise ValueError(f"File '{path}' {what}. Add the column, or put another file in its place.")
            pairs += _pairs(task, found, in_test_file=file == task.test_file, counts=counts)
    division = divide(pairs, task.most)
    return division, {**counts, **division.left_out}


def _pairs(task: Task, found: Dataset, in_test_file: bool, counts: dict[str, int]) -> list[Pair]:
    """Pairs of a file, cut to the task's lengths; a prompt's keys are what repeats and its text, whole and cut."""
    mean = sum(found["strength"]) / len(found) if "strength" in found.column_names else 1.0
    pairs = []
    for row in found:
        whole = row["prompt"]
        row["prompt"] = [{"role": "user", "content": whole}] if isinstance(whole, str) else whole
        prompt = cut(row["prompt"], task.prompt_length, task.keep_beginning)
        chosen, rejected = text_of(row["chosen"]), text_of(row["rejected"])
        if max(len(chosen), len(rejected)) > task.response_length:
            counts["response too long"] += 1
            continue
        counts["prompts cut"] += said(prompt) != said(row["prompt"])
        keys = {normal(text) for text in (*task.repeats(row), said(row["prompt"]), said(prompt))}
        strength = row.get("strength", 1.0) / mean
        pairs.append(Pair(prompt, chosen, rejected, strength, tuple(sorted(keys)), in_test_file))
    return pairs


def cut(prompt: Messages, length: int, keep_beginning: bool) -> Messages:
    """
    A prompt of limited length that begins with a user's turn.

    Args:
        prompt (`list[dict[str, str]]`):
            Messages, the last of which is the user's.
        length (`int`):
            Most characters of all messages together.
        keep_beginning (`bool`):
            Whether the last message loses its end. Otherwise the first messages go, and what is still too long loses
            its beginning.

    Returns:
        `list[dict[str, str]]`
    """
    if keep_beginning:
        return [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"][:length]}]
    while len(prompt) > 1 and (prompt[0]["role"] != "user" or sum(len(m["content"]) for m in prompt) > length):
        prompt = prompt[1:]
    return [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"][-length:]}]
