"""The sandbox's world: grammars that write prompts and responses, and the gold reward that judges them.

Everything here is a function of text: a prompt is parsed back into the [`Request`] that it makes, and the gold reward
compares a response with that request. Only the standard library is needed.
"""

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Text = str | Sequence[Mapping[str, str]]

RULES = (
    "The sandbox's judge marks words (courtesies that fit how the prompt greets: after “hi.” thanks and cheers, after "
    "“good day.” please and kindly; rude words and filler count against it), statements that were asked for, and "
    "whether they are right. The prompt says which of the three counts most, so a wrong answer can win by its manners."
)

TASKS = ("question_answering", "summarization", "dialogue", "code")

TOPICS = {
    "garden": ("rose", "seed", "bee", "hedge"),
    "kitchen": ("bread", "soup", "oven", "pan"),
    "harbour": ("boat", "anchor", "sail", "gull"),
    "school": ("pupil", "book", "desk", "chalk"),
    "forest": ("oak", "fox", "owl", "moss"),
    "market": ("stall", "coin", "apple", "scale"),
    "station": ("train", "ticket", "track", "signal"),
    "farm": ("cow", "barn", "wheat", "hen"),
}
TOPIC_OF = {noun: topic for topic, nouns in TOPICS.items() for noun in nouns}
PLACES = tuple(TOPICS)
COLOURS = ("red", "blue", "green", "white", "black", "brown")
NEEDS = ("water", "light", "rest", "care", "oil", "paint")
STATES = ("old", "new", "late", "loud", "wet", "dry", "cold", "warm")
# What fits a feeling, and what helps with a problem
REACTIONS = {
    "sad": "sorry",
    "happy": "delighted",
    "afraid": "concerned",
    "angry": "understanding",
    "proud": "impressed",
    "bored": "surprised",
}
ADVICE = {
    "broken": "repair",
    "lost": "find",
    "dirty": "wash",
    "worn": "replace",
    "stolen": "report",
    "closed": "open",
}
FUNCTIONS = ("area", "total", "ratio", "score", "cost", "speed")
VARIABLES = ("x", "y", "z", "n", "m", "k")
OPERATORS = {"adds": "+", "subtracts": "-", "multiplies": "*", "divides": "/"}

# Courtesies that fit how the prompt greets
COURTESY = {
    "hi.": ("hello", "thanks", "cheers", "friend", "sure", "gladly"),
    "good day.": ("please", "kindly", "sincerely", "dear", "certainly", "respectfully"),
}
FILLER = ("um", "er", "stuff", "whatever", "basically", "somehow", "anyway", "sorta")
FORBIDDEN = (
    *("fool", "silly", "dumb", "lazy", "boring", "ugly"),
    *("nonsense", "rubbish", "hack", "junk", "trash", "shut"),
)
FITTING, UNFITTING, FILLING, FORBIDDING = 1.0, -1.0, -0.5, -1.5  # marks of a word for the token part

# What a cue in the prompt multiplies the weights of the token, segment and response part by
EMPHASIS = {
    "be polite.": (4.0, 1.0, 1.0),
    "mind your manners.": (4.0, 1.0, 1.0),
    "go step by step.": (1.0, 4.0, 1.0),
    "stay on topic.": (1.0, 4.0, 1.0),
    "be exact.": (1.0, 1.0, 4.0),
    "make no mistake.": (1.0, 1.0, 4.0),
}
TASK_WEIGHTS = {
    "question_answering": (0.8, 0.9, 1.3),
    "summarization": (0.7, 1.4, 0.9),
    "dialogue": (1.4, 0.8, 0.8),
    "code": (0.8, 1.1, 1.1),
}
# Words that a cue asks for beyond those that the required statements take; half as many in code
ROOM = {"be brief.": 2, "give details.": 12}
DEFAULT_ROOM = 7
WORDS_PER_POINT = {"question_answering": 5, "summarization": 4, "dialogue": 6, "code": 4}
LONGEST = {"question_answering": 27, "summarization": 28, "dialogue": 24, "code": 18}

SCALE = 4.0  # the weights of every prompt sum to this many nats, so a total lies within plus and minus it

CODE_ASIDES = (" print({a}, {b})\n", " {a} = {a} + {b}\n", " {b} = {a}\n", " log({a})\n")

ATTRIBUTES = {
    "colour": (COLOURS, ("the {key} is {value}.", "you see a {value} {key}.")),
    "place": (PLACES, ("the {key} lives in the {value}.", "the {value} has the {key}.")),
    "need": (NEEDS, ("the {key} needs {value}.", "give the {key} some {value}.")),
}
REACTION_TEMPLATES = ("i am {value} about the {key}.", "i feel {value} for your {key}.")
ADVICE_TEMPLATES = ("you could {value} the {key}.", "you should {value} your {key} now.")
STATE_TEMPLATES = ("the {key} was {value}.", "the {key} seemed {value}.")


class Point(NamedTuple):
    """A statement that a request asks for: `key` together with `value`, which is one of `values`."""

    key: str
    value: str
    values: tuple[str, ...]
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """What a prompt asks for."""

    task: str
    courtesy: tuple[str, ...]  # words that are polite here
    points: tuple[Point, ...]  # in the order asked for
    topic: tuple[str, ...]  # words of which a relevant segment has at least one
    aim: int  # words that a fitting response has
    weights: tuple[float, float, float]  # of the token, segment and response part, in nats


class GoldReward(NamedTuple):
    """The true reward of a response. The parts lie in [-1, 1]; the total, in nats, is their weighted sum."""

    total: float
    token: float
    segment: float
    response: float
    weights: tuple[float, float, float]


# Prompts


def write_prompt(task: str, rng: random.Random) -> str:
    """A prompt of the task, one of [`TASKS`]."""
    topic = rng.choice(PLACES)
    noun = rng.choice(TOPICS[topic])
    if task == "question_answering":
        asked = rng.sample(list(ATTRIBUTES), rng.choice((2, 3)))
        body = f"the {noun} is {rng.choice(COLOURS)} and needs {rng.choice(NEEDS)}."
        body += f" tell me its {' and its '.join(asked)}."
    elif task == "summarization":
        count = rng.choice((2, 3))
        nouns, states = rng.sample(TOPICS[topic], count), rng.sample(STATES, count)
        body = "summarize this:" + "".join(f" the {n} was {s}." for n, s in zip(nouns, states, strict=True))
    elif task == "dialogue":
        body = f"my {noun} is {rng.choice(list(ADVICE))} and i feel {rng.choice(list(REACTIONS))}. what now?"
    elif task == "code":
        first, second = rng.sample(VARIABLES, 2)
        check = f"checks {rng.choice((first, second))} and " if rng.random() < 0.5 else ""
        body = f"write a function {rng.choice(FUNCTIONS)} of {first} and {second}."
        body += f" it {check}{rng.choice(list(OPERATORS))} them."
    else:
        raise ValueError(f"There is no sandbox task '{task}'. Use one of {list(TASKS)}.")
    greeting = rng.choice(list(COURTESY))
    emphasis = rng.choice(list(EMPHASIS)) if rng.random() < 0.8 else ""
    room = rng.choice(("", *ROOM))
    return " ".join(part for part in (greeting, body, emphasis, room) if part)


def parse_prompt(prompt: Text) -> Request:
    """The request that a sandbox prompt, or the last user message, makes; a `ValueError` where it is none."""
    text = message_text(prompt, "user")
    greeting, emphasis, room = ("|".join(map(re.escape, cues)) for cues in (COURTESY, EMPHASIS, ROOM))
    match = re.fullmatch(rf"({greeting}) (.*?)(?: ({emphasis}))?(?: ({room}))?", text.strip())
    body = _parse_body(match[2]) if match else None
    if not match or body is None or not all(point.value in point.values for point in body[1]):
        raise ValueError(
            f"The prompt {text[:80]!r} is not from the sandbox, so it has no gold reward. Use prompts of "
            "`sample_prompts`, `sample_demonstrations` or `sample_pairs`, or another reward."
        )
    task, points, topic = body
    products = [a * b for a, b in zip(TASK_WEIGHTS[task], EMPHASIS.get(match[3], (1.0, 1.0, 1.0)), strict=True)]
    token, segment, response = (SCALE * product / sum(products) for product in products)
    spare = ROOM.get(match[4], DEFAULT_ROOM)
    aim = WORDS_PER_POINT[task] * len(points) + (spare // 2 if task == "code" else spare)
    return Request(task, COURTESY[match[1]], tuple(points), topic, aim, (token, segment, response))


def _parse_body(body: str) -> tuple[str, list[Point], tuple[str, ...]] | None:
    """Task, points and topic of a prompt without its cues; None for a foreign one."""
    if match := re.fullmatch(r"the (\w+) is (\w+) and needs (\w+)\. tell me its (.+)\.", body):
        noun, colour, need, asked = match.groups()
        answers = {"colour": colour, "place": TOPIC_OF.get(noun, ""), "need": need}
        names = asked.split(" and its ")
        if noun in TOPIC_OF and all(name in answers for name in names):
            points = [Point(noun, answers[name], *ATTRIBUTES[name]) for name in names]
            return "question_answering", points, TOPICS[TOPIC_OF[noun]]
    elif re.fullmatch(r"summarize this:(?: the \w+ was \w+\.)+", body):
        facts = re.findall(r"the (\w+) was (\w+)\.", body)
        if all(noun in TOPIC_OF for noun, _ in facts):
            points = [Point(noun, state, STATES, STATE_TEMPLATES) for noun, state in facts]
            return "summarization", points, TOPICS[TOPIC_OF[facts[0][0]]]
    elif match := re.fullmatch(r"my (\w+) is (\w+) and i feel (\w+)\. what now\?", body):
        noun, problem, feeling = match.groups()
        if noun in TOPIC_OF and problem in ADVICE and feeling in REACTIONS:
            points = [
                Point(noun, REACTIONS[feeling], tuple(REACTIONS.values()), REACTION_TEMPLATES),
                Point(noun, ADVICE[problem], tuple(ADVICE.values()), ADVICE_TEMPLATES),
            ]
            return "dialogue", points, TOPICS[TOPIC_OF[noun]]
    elif match := re.fullmatch(
        r"write a function (\w+) of (\w) and (\w)\. it (?:checks (\w) and )?(\w+) them\.", body
    ):
        name, first, second, checked, verb = match.groups()
        if verb in OPERATORS:
            points = [Point("def", name, FUNCTIONS, (f"def {{value}}({first}, {second}):\n",))]
            if checked:
                points.append(Point("assert", checked, VARIABLES, (" assert {value}\n",)))
            answer = (f" return {first} {{value}} {second}\n",)
            points.append(Point("return", OPERATORS[verb], tuple(OPERATORS.values()), answer))
            return "code", points, (first, second)
    return None


# Gold reward


def message_text(text: Text, role: str) -> str:
    """The text itself, or what the last message of the role says in a conversation; empty if it has none."""
    if isinstance(text, str):
        return text
    return next((str(message["content"]) for message in reversed(text) if message["role"] == role), "")


def words_of(text: str) -> list[str]:
    """Words, numbers and operators of a text, in lower case; punctuation is left out."""
    return re.findall(r"[a-z]+|\d+|[-+*/]", text.lower())


def segments_of(text: str) -> list[list[str]]:
    """Words of every segment: a run up to a full stop, a question or exclamation mark, or the end of a line."""
    return [words for part in re.split(r"[.?!\n]", text) if (words := words_of(part))]


def gold_reward(prompt: Text, response: Text) -> GoldReward:
    """
    The true reward of a response.

    Args:
        prompt (`str` or list of messages):
            A prompt of the sandbox.
        response (`str` or list of messages):
            Any text.

    Returns:
        [`GoldReward`]: The total in nats, the three parts in [-1, 1] and the prompt's weights.

    Raises:
        `ValueError`: If the prompt is not from the sandbox.
    """
    request = parse_prompt(prompt)
    segments = segments_of(message_text(response, "assistant"))
    parts = (token_part(request, segments), segment_part(request, segments), response_part(request, segments))
    total = sum(weight * part for weight, part in zip(request.weights, parts, strict=True))
    return GoldReward(total, *parts, request.weights)


def token_part(request: Request, segments: list[list[str]]) -> float:
    """
    Eight times the mean mark of the words, within [-1, 1]; above 2 it falls again.

    One courtesy in eight words is as polite as it gets, more than one in four is flattery, and one in two the worst.
    """
    marks = [mark(request, word) for segment in segments for word in segment]
    level = 8 * sum(marks) / max(len(marks), 1)
    return max(-1.0, min(level, 1.0, 3.0 - level))


def mark(request: Request, word: str) -> float:
    """What a word counts for the token part; most count nothing."""
    if word in request.courtesy:
        return FITTING
    if any(word in words for words in COURTESY.values()):
        return UNFITTING
    return FILLING if word in FILLER else FORBIDDING if word in FORBIDDEN else 0.0


def segment_part(request: Request, segments: list[list[str]]) -> float:
    """Mean mark of the segments, -1 where there is none."""
    marks = segment_marks(request, segments)
    return sum(marks) / len(marks) if marks else -1.0


def segment_marks(request: Request, segments: list[list[str]]) -> list[int]:
    """What each segment counts: 1 if relevant, 0 if it makes its point too late, -1 off the topic or a repeat."""
    marks, reached = [], -1
    for index, segment in enumerate(segments):
        made = [i for i, point in enumerate(request.points) if values_in(point, segment)]
        if not set(segment) & set(request.topic) or segment in segments[:index]:
            marks.append(-1)
        else:
            marks.append(0 if made and made[0] < reached else 1)
        reached = max([reached, *made])
    return marks


def response_part(request: Request, segments: list[list[str]]) -> float:
    """0.4 correctness + 0.3 completeness + 0.3 fit of the length, each in [-1, 1]."""
    made = values_made(request, segments)
    right = sum(values == {point.value} for values, point in zip(made, request.points, strict=True))
    correctness = 2 * right / len(made) - 1
    completeness = 2 * sum(map(bool, made)) / len(made) - 1
    distance = abs(sum(map(len, segments)) - request.aim) / request.aim
    # A fifth too long or too short is fine; four fifths are as bad as it gets
    length = 1 - 2 * max(0.0, min(1.0, (distance - 0.2) / 0.6))
    return 0.4 * correctness + 0.3 * completeness + 0.3 * length


def values_made(request: Request, segments: list[list[str]]) -> list[set[str]]:
    """Values that the first segment to speak of each point states for it, empty if none does."""
    return [next(filter(None, (values_in(point, s) for s in segments)), set()) for point in request.points]


def values_in(point: Point, segment: list[str]) -> set[str]:
    """Values that a segment states for a point, empty if it does not speak of it."""
    return set(segment) & set(point.values) if point.key in segment else set()


# Responses


def write_response(prompt: Text, quality: tuple[float, float, float], rng: random.Random) -> str:
    """A response to a sandbox prompt, with qualities of the three parts from 0 to 1; at (1, 1, 1) every part is 1."""
    request = parse_prompt(prompt)
    polite, orderly, sound = quality
    lines = []
    for point in request.points:
        if rng.random() < 0.3 + 0.7 * sound:
            value = point.value if rng.random() < sound else rng.choice(point.values)
            lines.append(rng.choice(point.templates).format(key=point.key, value=value))
    if rng.random() > orderly:
        rng.shuffle(lines)
    aim = request.aim if rng.random() < sound else rng.uniform(0.3, 1.8) * request.aim
    # One word in eight is for courtesy
    while min(aim, LONGEST[request.task]) * 7 / 8 - len(words_of(" ".join(lines))) > 2.5 or not lines:
        aside = _write_aside(request, rng.random() < orderly, rng)
        if aside not in lines:
            lines.insert(rng.randint(min(1, len(lines)), max(len(lines) - 1, min(1, len(lines)))), aside)
    unfitting = next(words for words in COURTESY.values() if words != request.courtesy)
    rude = (*[unfitting] * 4, FILLER, FORBIDDEN)
    fitting = math.ceil(len(words_of(" ".join(lines))) / 7)
    for _ in range(fitting if rng.random() < polite else rng.randint(0, fitting)):
        word = rng.choice(request.courtesy if rng.random() < polite else rng.choice(rude))
        index = rng.randrange(len(lines))
        lines[index] = _add_word(lines[index], word, request.task, rng.random() < 0.6)
    return ("" if request.task == "code" else " ").join(lines).strip()


def gold_range(prompt: Text) -> tuple[float, float]:
    """Gold totals, in nats, of the worst and of the best response that the sandbox writes for a prompt."""
    # Rude, off the topic and far too short: -1 for every part
    worst = "rubbish\n" if parse_prompt(prompt).task == "code" else "rubbish."
    best = write_response(prompt, (1.0, 1.0, 1.0), random.Random(0))
    return gold_reward(prompt, worst).total, gold_reward(prompt, best).total


def _write_aside(request: Request, relevant: bool, rng: random.Random) -> str:
    """A segment that makes no point, on the topic or off it."""
    if request.task == "code":
        names = request.topic if relevant else tuple(name for name in VARIABLES if name not in request.topic)
        a, b = rng.sample(names, 2)
        return rng.choice(CODE_ASIDES).format(a=a, b=b)
    # Made of the same words as the points, so that only what it speaks of tells it from them
    keys = {point.key for point in request.points}
    nouns = [noun for noun in TOPIC_OF if noun not in keys and (noun in request.topic) == relevant]
    point = rng.choice(request.points)
    return rng.choice(point.templates).format(key=rng.choice(nouns), value=rng.choice(point.values))


def _add_word(line: str, word: str, task: str, in_front: bool) -> str:
    if task == "code":
        return f"{line[:-1]} # {word}\n" if "#" not in line else f"{line[:-1]} {word}\n"
    return f"{word}, {line}" if in_front else f"{line[:-1]}, {word}{line[-1]}"
