"""What a judge is asked, in two turns: to think, and then for one of two answers."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from ..data.messages import Messages
from ..data.tokens import next_turn
from ..training.options import check_counts, help_from_docstring
from ..training.run_record import read_json, write_json

SETTINGS_NAME = "judge.json"  # beside the weights
# What is asked by protocol: the first turn with its places, and the second with a place for each of the two answers
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


@help_from_docstring
@dataclass
class JudgeSettings:
    """
    How a judge is asked: options of [`ThoughtConfig`] that the judge's folder keeps in `judge.json`.

    Args:
        protocol (`str`, *optional*, defaults to `"point"`):
            'point' asks whether one response is good, and compares two by what it says of each; 'pair' shows both and
            asks which is better.
        judge_template (`str`, *optional*):
            What the judge is asked to think about, with the places {prompt} and {response}, or {prompt}, {first} and
            {second}.
        question (`str`, *optional*):
            What it is asked after its thought, with the places {yes} and {no}, or {first} and {second}, for `answers`.
        answers (`list[str]`, *optional*, defaults to `["A", "B"]`):
            The two answers, each of one token.
        two_answers (`bool`, *optional*, defaults to `False`):
            Whether the probability of an answer is that among the two, in place of the whole vocabulary. A pass of
            training then has every thought twice.
        swap_answers (`bool`, *optional*, defaults to `False`):
            Whether every second thought is asked with the two answers exchanged, so that a liking for one cancels.
        num_thoughts (`int`, *optional*, defaults to `8`):
            Thoughts about each of the two responses; with `protocol='pair'`, about each of the two orders.
        max_completion_length (`int`, *optional*, defaults to `256`):
            Most tokens of a thought.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Further arguments of `apply_chat_template`.
    """

    protocol: str = "point"
    judge_template: str | None = None
    question: str | None = None
    answers: list[str] = field(default_factory=lambda: ["A", "B"])
    two_answers: bool = False
    swap_answers: bool = False
    num_thoughts: int = 8
    max_completion_length: int | None = 256
    chat_template_kwargs: dict[str, Any] | str | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PLACES:
            raise ValueError(f"`protocol` is '{self.protocol}'. Use one of {list(PLACES)}.")
        usual, places = TURNS[self.protocol], PLACES[self.protocol]
        self.judge_template, self.question = self.judge_template or usual[0], self.question or usual[1]
        _check_places("judge_template", self.judge_template, places[0])
        _check_places("question", self.question, places[1])
        if len(self.answers) != 2 or self.answers[0] == self.answers[1] or not all(self.answers):
            raise ValueError(f"`answers` is {self.answers}. Give two that differ, each of one token.")
        check_counts(self, "num_thoughts", "max_completion_length")
        if self.swap_answers and self.num_thoughts % 2:
            raise ValueError(
                f"`swap_answers` is for one half of {self.num_thoughts} thoughts. Make `num_thoughts` even."
            )

    @staticmethod
    def load(folder: str) -> "JudgeSettings":
        """Settings in a judge's folder."""
        file = Path(folder, SETTINGS_NAME)
        if not file.is_file():
            raise ValueError(f"There is no '{file}', by which a judge is asked. Give the folder of a trained judge.")
        found = read_json(file, dict, "Restore it, or train the judge again.")
        if other := found.keys() ^ {option.name for option in fields(JudgeSettings)}:
            raise ValueError(f"'{file}' has other settings than a judge has: {sorted(other)}. Restore it.")
        return JudgeSettings(**found)

    def save_settings(self, folder: str) -> None:
        """Write the settings alone into a judge's folder."""
        own = {option.name: getattr(self, option.name) for option in fields(JudgeSettings)}
        write_json(Path(folder, SETTINGS_NAME), own)


def is_judge(folder: str) -> bool:
    """Whether a folder holds a trained judge, of which `judge.json` says how it is asked."""
    return Path(folder, SETTINGS_NAME).is_file()


class Ending(NamedTuple):
    """What follows a thought: token ids of the second turn, and then of the good answer."""

    turn: list[int]  # from the end of the thought's turn to where the answer begins
    answer: int
    other: int  # the answer that is not the good one


class JudgeTurns:
    """A judge's two turns in its own tokens; `end_ids` are those with which it ends a thought."""

    def __init__(self, settings: JudgeSettings, tokenizer: Any, end_ids: list[int]) -> None:
        self.settings, self._tokenizer, self._end_ids = settings, tokenizer, set(end_ids)
        ways = [(right, swapped) for right in (0, 1) for swapped in (False, True)]
        self._endings = {way: self._ending(*way) for way in ways}

    def first_turn(self, *said: str | Messages) -> Messages:
        """What the judge is asked to think about: a prompt with one response, or with the two of a pair in order."""
        filled = dict(zip(PLACES[self.settings.protocol][0], map(_written, said), strict=True))
        return [{"role": "user", "content": str(self.settings.judge_template).format(**filled)}]

    def ending(self, side: int, thought: int) -> Ending:
        """What follows a thought: the n-th with the preferred response alone or first (side 0), or with the other."""
        right = side if self.settings.protocol == "pair" else 0
        return self._endings[right, self.settings.swap_answers and thought % 2 == 1]

    def written(self, thought: str) -> list[int]:
        """A thought that is given, with the end of its turn."""
        ids: list[int] = self._tokenizer(thought, add_special_tokens=False)["input_ids"]
        return [*ids, self.ending(0, 0).turn[0]]

    def up_to_end(self, sampled: list[int]) -> list[int]:
        """What was sampled, until it ends."""
        return next((sampled[: i + 1] for i, token in enumerate(sampled) if token in self._end_ids), sampled)

    def complete(self, thought: list[int], ending: Ending) -> list[int]:
        """A thought with what follows it; where it was cut off, its turn is ended."""
        finished = thought[-1:] and thought[-1] in self._end_ids
        return [*thought, *ending.turn[1 if finished else 0 :], ending.answer]

    def _ending(self, right: int, swapped: bool) -> Ending:
        answers = self.settings.answers[::-1] if swapped else self.settings.answers
        filled = dict(zip(PLACES[self.settings.protocol][1], answers, strict=True))
        options: Any = self.settings.chat_template_kwargs or {}
        text = next_turn(self._tokenizer, str(self.settings.question).format(**filled), **options)
        turn, *rows = (self._tokenizer(text + end, add_special_tokens=False)["input_ids"] for end in ("", *answers))
        if turn[0] not in self._end_ids:
            raise ValueError(
                f"The chat template ends an assistant's turn with {self._tokenizer.decode(turn[0])!r}, which does not "
                "end what the model generates. Add its id to `eos_token_id` of the model's generation configuration."
            )
        for answer, row in zip(answers, rows, strict=True):
            if self._tokenizer.decode(row[-1]).strip() != answer:  # as it would be generated after the turn's own ids
                raise ValueError(f"`answers`: {answer!r} is not one token where the answer begins. Use others.")
        return Ending(turn, rows[right][-1], rows[1 - right][-1])


def _check_places(name: str, text: str, places: tuple[str, ...]) -> None:
    try:
        found = {place for _, place, _, _ in Formatter().parse(text) if place is not None}
    except ValueError as error:
        raise ValueError(f"`{name}` cannot be filled in: {error}. Write braces of its own as {{{{ and }}}}.") from None
    if found != set(places):
        wanted, has = (", ".join(f"{{{place}}}" for place in some) or "none" for some in (places, sorted(found)))
        raise ValueError(f"`{name}` needs the places {wanted}, and has {has}.")


def _written(said: str | Messages) -> str:
    """A prompt or a response as text: the one message that it is, or all of several with their roles."""
    if isinstance(said, str) or len(said) == 1:
        return said if isinstance(said, str) else said[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in said)
