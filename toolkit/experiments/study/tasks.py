"""The tasks of the grid on a pretrained decoder: their files, what repeats in them, and what of them is read.

docs/decoder_grid.md says why; all of it was written down before the first score.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...data.messages import text_of
from .division import MOST_PAIRS, normal

DRAWS = (1, 2, 3)  # of smaller numbers of training pairs
NUMBERS = (100, 250, 500, 1_000)  # of training pairs, beside all of them

Row = dict[str, Any]  # of a file, its prompt as messages


@dataclass(frozen=True)
class Task:
    """
    A set of pairs on which heads are trained and tested.

    Args:
        name (`str`):
            Its name.
        kind (`str`):
            What it asks for. Kinds weigh the same in a mean over tasks, and so do the tasks of a kind.
        files (`tuple[str, ...]`):
            Its files, without folder and ending.
        repeats (`Callable`):
            What a row shares with others of its cluster: texts, one of which in common is enough.
        unit (`str`):
            What a cluster is, in words.
        test_file (`str`, *optional*):
            A further file, whose pairs are the test half.
        prompt_length (`int`, *optional*, defaults to `600`):
            Most characters of a prompt; longer ones are cut.
        response_length (`int`, *optional*, defaults to `1800`):
            Most characters of a response; a pair with a longer one is left out.
        keep_beginning (`bool`, *optional*, defaults to `False`):
            Whether a prompt that is cut loses its end and not its beginning.
        most (`int`, *optional*, defaults to `1000`):
            Most pairs for training, as [`~toolkit.experiments.study.division.divide`] takes it.
        first_look (`bool`, *optional*, defaults to `False`):
            Whether the first look at such a decoder chose among variants by its scores on this task.
    """

    name: str
    kind: str
    files: tuple[str, ...]
    repeats: Callable[[Row], list[str]]
    unit: str
    test_file: str | None = None
    prompt_length: int = 600
    response_length: int = 1_800
    keep_beginning: bool = False
    most: int = MOST_PAIRS
    first_look: bool = False


def first_turn(row: Row) -> list[str]:
    """The user's first turn."""
    return [next(message["content"] for message in row["prompt"] if message["role"] == "user")]


def turns(row: Row) -> list[str]:
    """Turns of a dialogue that are too long to be said twice by chance: prompts are windows of longer dialogues."""
    return [message["content"] for message in row["prompt"] if len(message["content"]) > 40] or first_turn(row)


def passages(row: Row) -> list[str]:
    """The question, and each paragraph of the passages beside it."""
    return [each for each in text_of(row["prompt"]).split("\n\n") if len(each) > 80 or each.startswith("Question:")]


def article(row: Row) -> list[str]:
    """The beginning of the article, as several files print the rest of one article differently."""
    return [normal(text_of(row["prompt"]).partition("\n\n")[2])[:200]]


def story(row: Row) -> list[str]:
    """The number of the story, about which several questions are asked."""
    return [str(row["group"]).partition("-")[0]]


def request(row: Row) -> list[str]:
    """What is asked for, without the names and numbers in it."""
    return [re.sub(r"`[^`]*`|'[^']*'|\"[^\"]*\"|\d+", "", text_of(row["prompt"]))]


def problem(row: Row) -> list[str]:
    """The number of the problem, which is the same in all languages."""
    return ["problem " + str(row["group"]).rpartition("-")[2]]


def debate(row: Row) -> list[str]:
    """The question that is debated, whichever side an argument takes."""
    return [text_of(row["prompt"]).partition("\n")[0]]


def triplet(row: Row) -> list[str]:
    """The group of texts that were ranked together, and the prompt."""
    return [str(row["group"]), text_of(row["prompt"])]


GROUPED = story, problem, triplet  # read the column `group`

HH = "hh_{}_single_train_gt", "hh_{}_single_train_w2s"
NEWS: Row = {"prompt_length": 1_500, "response_length": 1_000, "keep_beginning": True}
LANGUAGES = "python", "js", "java", "cpp"

TASKS = [
    Task(
        "HH helpful",
        "helpful dialogue",
        tuple(file.format("helpful") for file in HH),
        first_turn,
        "first user turn",
        "hh_helpful_single_test",
        first_look=True,
    ),
    Task(
        "HH harmless",
        "harmless dialogue",
        tuple(file.format("harmless") for file in HH),
        first_turn,
        "first user turn",
        "hh_harmless_single_test",
    ),
    Task("TruthfulQA", "truthfulness", ("truthfulqa_human_truth",), first_turn, "question", first_look=True),
    Task("EVOUNA NQ", "factual answers", ("evouna_nq",), first_turn, "question", first_look=True),
    Task("EVOUNA TQ", "factual answers", ("evouna_tq",), first_turn, "question"),
    Task(
        "fine-grained QA",
        "long answers",
        ("finegrained_qa_feedback_dev",),
        passages,
        "question and passages",
        prompt_length=800,
        response_length=1_000,
        most=500,
    ),
    Task("SummEval", "news summaries", ("summeval_attr",), article, "article", **NEWS),
    Task("ROSE", "news summaries", ("rose_protocols",), article, "article", **NEWS),
    Task("REALSumm", "news summaries", ("realsumm",), article, "article", **NEWS),
    Task(
        "SQuALITY",
        "story summaries",
        ("squality_by_worker",),
        story,
        "story",
        prompt_length=400,
        response_length=3_200,
        keep_beginning=True,
    ),
    Task("CoNaLa", "one-line code", ("conala_mean_grade",), request, "request", first_look=True),
    Task("MBPP", "functions", ("tara_mbpp_code",), request, "request", response_length=1_200, first_look=True),
    Task(
        "HumanEval",
        "functions",
        tuple(f"humaneval_exec_{language}" for language in LANGUAGES),
        problem,
        "problem, across languages",
        prompt_length=800,
        response_length=900,
        most=600,
    ),
    Task("LAMP", "writing", ("lamp_writer_rankings",), triplet, "prompt", response_length=2_200),
    Task("WQRM", "writing", ("wqrm_rankings",), triplet, "prompt", response_length=2_200),
    Task("UKP", "arguments", ("ukp_convarg_majority",), debate, "debate"),
    Task("PandaLM", "instructions", ("pandalm_majority",), first_turn, "instruction"),
    Task(
        "Tulu best-of-n",
        "instructions",
        ("tulu13b_bon_gpt4turbo",),
        first_turn,
        "instruction",
        prompt_length=400,
        response_length=1_600,
    ),
    Task(
        "OASST",
        "Chinese dialogue",
        ("oasst_zh_rank",),
        first_turn,
        "first user turn",
        prompt_length=120,
        response_length=350,
        most=500,
    ),
    Task("USR", "persona dialogue", ("usr_topicalchat",), turns, "dialogue", prompt_length=1_500),
]
KINDS = list(dict.fromkeys(task.kind for task in TASKS))


class Transfer(NamedTuple):
    """Tasks that heads are trained on together, and the tasks that they are scored on."""

    train: list[str]
    test: list[str]


# The same kind from another source
TRANSFERS = [
    Transfer(["TruthfulQA"], ["EVOUNA NQ", "EVOUNA TQ"]),
    Transfer(["CoNaLa"], ["MBPP", "HumanEval"]),
    Transfer(["SummEval"], ["ROSE", "REALSumm"]),
]
# Each kind left out in turn
LEFT_OUT = [
    Transfer([t.name for t in TASKS if t.kind != kind], [t.name for t in TASKS if t.kind == kind]) for kind in KINDS
]


def weights(names: Sequence[str]) -> list[float]:
    """Weights of tasks in a mean over them, with sum 1: kinds weigh the same, and so do the tasks of a kind."""
    kind_of = {task.name: task.kind for task in TASKS}
    size = Counter(kind_of[name] for name in names)
    return [1 / (len(size) * size[kind_of[name]]) for name in names]
