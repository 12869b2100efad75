"""What a judge is asked, in two turns: to think, and then for one letter."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from ..data.messages import Messages
from ..data.tokens import next_turn

PROTOCOLS = ("point", "pair")
SETTINGS_NAME = "judge.json"  # beside the weights
# What is asked by protocol: the first turn with its places, and the second with a place for each of the two letters
TURNS = {
    "point": (
        "Here are a conversation and a response to it.\n\n[Conversation]\n{prompt}\n\n[Response]\n{response}\n\n"
        "Think about how good the response is: what speaks for it, and what against it.",
        "Is the response good? Answer {yes} for yes or {no} for no, with this letter alone.",
    ),
    "pair": (
        "Here are a conversation and two responses to it.\n\n[Conversation]\n{prompt}\n\n[First response]\n{first}\n\n"
        "[Second response]\n{second}\n\nThink about which of the two is better, and why.",
        "Which response is better? Answer {first} for the first or {second} for the second, with this letter alone.",
    ),
}
PLACES = {
    "point": (("prompt", "response"), ("yes", "no")),
    "pair": (("prompt", "first", "second"), ("first", "second")),
}


@dataclass(frozen=True)
class JudgeSettings:
    """
    How a judge is asked, which its folder keeps in `judge.json`. What an option means, [`ThoughtConfig`] says.

    Raises:
        `ValueError`: If a turn lacks a place or has one that nothing fills, or there are not two different answers.
    """

    protocol: str
    judge_template: str
    question: str
    answers: list[str]
    two_answers: bool
    swap_answers: bool
    num_thoughts: int
    max_completion_length: int

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"`protocol` is '{self.protocol}'. Use one of {list(PROTOCOLS)}.")
        for name, places in zip(("judge_template", "question"), PLACES[self.protocol], strict=True):
            _check_places(name, getattr(self, name), places)
        if len(self.answers) != 2 or self.answers[0] == self.answers[1] or not all(self.answers):
            raise ValueError(f"`answers` is {self.answers}. Give two that differ, each of one token.")
        if self.swap_answers and self.num_thoughts % 2:
            raise ValueError(
                f"`swap_answers` asks half of the thoughts the other way round, and `num_thoughts` is "
                f"{self.num_thoughts}. Make it even."
            )

    @classmethod
    def load(cls, folder: str) -> "JudgeSettings":
        """Settings in a judge's folder; a `ValueError` where there are none."""
        file = Path(folder, SETTINGS_NAME)
        if not file.is_file():
            raise ValueError(f"There is no '{file}', by which a judge is asked. Give the folder of a trained judge.")
        return cls(**json.loads(file.read_text()))

    def save(self, folder: str) -> None:
        """Write them into a judge's folder."""
        Path(folder, SETTINGS_NAME).write_text(json.dumps(asdict(self), indent=2) + "\n")


class Ending(NamedTuple):
    """What follows a thought: token ids of the second turn, and then of the good answer."""

    turn: list[int]  # from the end of the thought's turn to where the answer begins
    answer: int
    other: int  # the answer that is not the good one


class JudgeTurns:
    """
    A judge's two turns in a model's own tokens.

    Args:
        settings ([`JudgeSettings`]):
            How it is asked.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The judge's tokenizer, with a chat template.
        end_ids (`list[int]`):
            Ids with which the judge ends a thought.
        template_kwargs:
            Further arguments of `apply_chat_template`.

    Raises:
        `ValueError`: If the template does not end a turn with one of these ids, or an answer is not one token.
    """

    def __init__(
        self,
        settings: JudgeSettings,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: list[int],
        **template_kwargs: Any,
    ) -> None:
        self.settings, self._tokenizer, self._end_ids = settings, tokenizer, set(end_ids)
        self._kwargs = template_kwargs
        ways = [(right, swapped) for right in (0, 1) for swapped in (False, True)]
        self._endings = {way: self._ending(*way) for way in ways}
        self.longest = 1 + max(len(ending.turn) for ending in self._endings.values())

    def first_turn(self, prompt: str | Messages, *responses: str | Messages) -> Messages:
        """What the judge is asked to think about: one response, or the two of a pair in this order."""
        places = PLACES[self.settings.protocol][0]
        texts = map(_written, (prompt, *responses))
        text = self.settings.judge_template.format(**dict(zip(places, texts, strict=True)))
        return [{"role": "user", "content": text}]

    def ending(self, side: int, thought: int) -> Ending:
        """What follows a thought: the n-th on the preferred response (side 0) or first of a pair, or on the other."""
        right = side if self.settings.protocol == "pair" else 0
        return self._endings[right, self.settings.swap_answers and thought % 2 == 1]

    def is_finished(self, thought: list[int]) -> bool:
        """Whether a thought came to its own end."""
        return bool(thought) and thought[-1] in self._end_ids

    def complete(self, thought: list[int], ending: Ending) -> list[int]:
        """A thought with what follows it; where it was cut off, its turn is ended."""
        return [*thought, *ending.turn[self.is_finished(thought) :], ending.answer]

    def _ending(self, right: int, swapped: bool) -> Ending:
        letters = self.settings.answers[::-1] if swapped else self.settings.answers
        places = PLACES[self.settings.protocol][1]
        question = self.settings.question.format(**dict(zip(places, letters, strict=True)))
        text = next_turn(self._tokenizer, question, **self._kwargs)
        turn, *answered = (
            list(self._tokenizer(text + answer, add_special_tokens=False)["input_ids"]) for answer in ("", *letters)
        )
        if turn[0] not in self._end_ids:
            raise ValueError(
                f"The chat template ends an assistant's turn with {self._tokenizer.decode(turn[0])!r}, which does not "
                "end what the model generates. Add its id to `eos_token_id` of the model's generation configuration."
            )
        for letter, ids in zip(letters, answered, strict=True):
            if ids[:-1] != turn or ids[-1] == self._tokenizer.unk_token_id:
                raise ValueError(
                    f"`answers`: {letter!r} is not one token of its own where the answer begins. Use others."
                )
        return Ending(turn, answered[right][-1], answered[1 - right][-1])


def _check_places(name: str, text: str, places: tuple[str, ...]) -> None:
    try:
        found = [place for _, place, _, _ in Formatter().parse(text) if place is not None]
    except ValueError as error:
        raise ValueError(f"`{name}` cannot be filled in: {error}. Write braces of its own as {{{{ and }}}}.") from None
    for place in places:
        if place not in found:
            raise ValueError(f"`{name}` has no place {{{place}}}. It needs {['{' + p + '}' for p in places]}.")
    for place in found:
        if place not in places:
            raise ValueError(f"`{name}` has a place {{{place}}}, which nothing fills. It may have {list(places)}.")


def _written(said: str | Messages) -> str:
    """A prompt or a response as text: the one message that it is, or all of several with their roles."""
    if isinstance(said, str):
        return said
    if len(said) == 1:
        return said[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in said)
