"""Where the prompt of a pair or a list ends and its responses begin."""

from itertools import combinations
from typing import Any

from .answers import NO_PREFERENCE, Row
from .messages import INVISIBLE, TEXT, Messages, conversation, is_blank, visible
from .row_errors import RowError

REPEATED = "a text prompt that both responses repeat at their beginning, where it was taken off"
UNPARTED = "\u2e80"  # from which on scripts have no space between words
TELLING_WORDS, TELLING_CHARACTERS = 3, 12  # a shorter prompt, such as "Hello", may begin two responses by chance


def divide(values: Row, kinds: dict[str, str], notes: list[str]) -> Row:
    """
    Divide a pair, or a list of more responses, into prompt and responses.

    Args:
        values (`dict`):
            Unpacked responses by their names, and `prompt` unless it is what they have in common at their beginning.
        kinds (`dict[str, str]`):
            Kind of `prompt` and of `chosen`, which all responses share.
        notes (`list[str]`):
            Takes what was changed on the way.

    Returns:
        `dict`: `prompt` and the responses, as text where all values are text, else as messages.

    Raises:
        `RowError`: If the prompt does not fit to the responses.
    """
    names = [name for name in values if name != "prompt"]
    sides = [values[name] for name in names]
    if set(kinds.values()) == {TEXT}:
        parts = _without_prompt(values["prompt"], sides, notes) if "prompt" in values else common_beginning(*sides)
        return dict(zip(("prompt", *names), parts, strict=True))
    sides = [conversation(side, name, kinds["chosen"], notes) for name, side in zip(names, sides, strict=True)]
    if kinds.get("prompt", TEXT) != TEXT:
        prompt = conversation(values["prompt"], "prompt", kinds["prompt"], notes)
        sides = [_rest(prompt, side) for side in sides]
    elif values.get("prompt", "").strip() and all(side and side[0]["role"] == "assistant" for side in sides):
        prompt = [{"role": "user", "content": values["prompt"]}]
    else:
        prompt, *sides = common_beginning(*sides)
        said = ["", *(message["content"].strip() for message in prompt)]
        if values.get("prompt", "").strip() not in said:
            raise RowError("prompt", "plain text that is not in both conversations", "Write it as messages.")
    for column, side in zip(names, sides, strict=True):
        if prompt and side and side[0]["role"] == prompt[-1]["role"]:
            found = f"a response that begins with a message from '{side[0]['role']}', as the prompt ends"
            raise RowError(column, found, "Begin it with the assistant's, or with all messages of the prompt.")
    return {"prompt": prompt, **dict(zip(names, sides, strict=True))}


def common_beginning(first: Any, *others: Any) -> tuple[Any, ...]:
    """
    What texts or conversations have in common at their beginning, and the rest of each, as TRL divides two: a space
    before the first difference belongs to the responses, and so does the last turn of what is wholly in common. A word
    is not divided, though.
    """
    end = min(_end_of_beginning(first, other) for other in others)
    return first[:end], *(side[end:] for side in (first, *others))


def _end_of_beginning(chosen: Any, rejected: Any) -> int:
    shorter = min(len(chosen), len(rejected))
    differs = next((place for place in range(shorter) if chosen[place] != rejected[place]), None)
    end = max(shorter - 1, 0) if differs is None else differs
    if isinstance(chosen, str) and any(_in_word(side, end) for side in (chosen, rejected)):
        end = differs = next((place for place in range(end - 1, 0, -1) if not _in_word(chosen, place)), 0)
    if differs and chosen[end - 1] == " ":
        end -= 1
    return end


def _in_word(text: str, place: int) -> bool:
    """Whether letters or digits stand on both sides of a place; of scripts that part words."""
    return place > 0 and all(each.isalnum() and each < UNPARTED for each in text[place - 1 : place + 1].ljust(2))


def _rest(prompt: Messages, response: Messages) -> Messages:
    """The response without the prompt, which whole conversations repeat."""
    return response[len(prompt) :] if response[: len(prompt)] == prompt else response


def _without_prompt(prompt: str, sides: list[str], notes: list[str]) -> tuple[str, ...]:
    """The parts of a row, where all responses may begin with the whole prompt, once or more often."""
    while None not in (rests := [_after_prompt(prompt, side) for side in sides]):
        sides = [*map(str, rests)]
        if REPEATED not in notes:
            notes.append(REPEATED)
    return prompt, *sides


def _after_prompt(prompt: str, response: str) -> str | None:
    """What follows the prompt in a response that repeats it; `None` where it does not, or may do so by chance."""
    asked = prompt.strip()
    if not response or not response.lstrip().startswith(asked) or not asked:
        return None
    is_telling = len(asked.split()) >= TELLING_WORDS or len(asked) >= TELLING_CHARACTERS or asked[-1] in "?:？："
    rest = response.removeprefix(prompt)
    rest = response.lstrip()[len(asked) :] if rest == response else rest
    return rest if is_telling and not (rest[:1].isalnum() and asked[-1].isalnum()) else None


def check_responses(pair: Row) -> None:
    """
    Check that what was divided states a preference.

    Args:
        pair (`dict`):
            What [`divide`] returned.

    Raises:
        `RowError`: With `no_preference`, if a response is empty or does not end with the assistant, or two look the
            same.
    """
    sides = {column: response for column, response in pair.items() if column != "prompt"}
    for column, response in sides.items():
        if response and not isinstance(response, str) and response[-1]["role"] != "assistant":
            found = f"a last message from '{response[-1]['role']}'"
            raise RowError(column, found, "End it with the assistant's, or remove the row.", no_preference=True)
        if is_blank(response):
            raise RowError(column, "an empty response", NO_PREFERENCE, no_preference=True)
    for (first, one), (column, other) in combinations(sides.items(), 2):
        if one == other:
            raise RowError(column, f"the same response as in '{first}'", NO_PREFERENCE, no_preference=True)
        if _looks_the_same(one, other):
            found = f"a response that differs from '{first}' only in white space or in what shows nothing"
            raise RowError(column, found, NO_PREFERENCE, no_preference=True)


def _looks_the_same(one: Any, other: Any) -> bool:
    """Whether a reader sees the same; most responses differ in their first words, so that the rest is not read."""
    if isinstance(one, str) and isinstance(other, str):
        words = [each.split(None, 2)[:2] for each in (one, other)]
        if words[0] != words[1] and not INVISIBLE.search("".join(words[0] + words[1])):
            return False
        return visible(one) == visible(other)
    return len(one) == len(other) and all(
        mine["role"] == yours["role"] and _looks_the_same(mine["content"], yours["content"])
        for mine, yours in zip(one, other, strict=True)
    )


def check_prompt(prompt: str | Messages) -> str | Messages:
    """A prompt that a policy can respond to; else a [`RowError`]."""
    if is_blank(prompt):
        raise RowError("prompt", "an empty prompt", "Write the prompt, or remove the row.")
    if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
        raise RowError("prompt", "a last message from 'assistant'", "End it with the user's.")
    return prompt
