"""The form of a set of pairs or ranked lists, found from its columns and first rows, and what it makes of each row."""

import re
from dataclasses import dataclass, field
from typing import Any

from .answers import CHOSEN, LABELS, SIGNED, Answer, Answers, OneARow, Row, find_answers, find_two, is_several
from .division import REPEATED, check_prompt, check_responses, divide
from .lists import ORDERS, RANKED_COLUMNS, Ranking, column_of_lists, find_lists, pairs_of
from .messages import MESSAGES, SPEAKS, TEXT, TRANSCRIPT, conversation, is_empty, kind_of, unpack
from .prompts import REJECTED_PROMPT, Prompts, find_prompts, looks_like_prompts
from .row_errors import RowError, describe

TEXT_COLUMNS = ("prompt", "chosen", "rejected")
NUMBER_COLUMNS = ("margin", "strength")
FIRST_ROWS = 1000  # from which the form is found
GREATEST = 1e6  # of a margin, in nats, or a strength: beyond it losses and means of weights overflow
# Turns of a transcript that is not of the known form, at the beginning of a line
ASKS = re.compile(r"^\W{0,4}(human|user|prompter)\b\W{0,4}:", re.IGNORECASE | re.MULTILINE)
RESPONDS = re.compile(r"^\W{0,4}(assistant|ai|bot|chatbot|gpt|model)\b\W{0,4}:", re.IGNORECASE | re.MULTILINE)
PARTS = "some pairs that state no preference among others, which were left out"
FORMS = "`chosen` and `rejected`, as text or lists of {role, content} messages, with such a `prompt` or after it"


@dataclass
class Form:
    """
    What a set's rows look like, and how each becomes pairs.

    Args:
        name (`str`):
            What to tell the user.
        columns (`tuple[str, ...]`):
            Columns that it reads; the others stay beside the pair.
        prompts (`Prompts`):
            How the prompt is read.
        answers (`Answers`, *optional*):
            How the responses are read; a set of prompts has none.
        kinds (`dict[str, str]`):
            Kind of prompt and responses, which all rows share.
    """

    name: str
    columns: tuple[str, ...]
    prompts: Prompts
    answers: Answers | None
    kinds: dict[str, str]
    notes: list[str] = field(default_factory=list)  # what was changed on the way in the last row

    @property
    def is_text(self) -> bool:
        """Whether prompts and responses are plain text; else they are messages."""
        return set(self.kinds.values()) == {TEXT}

    @property
    def numbers(self) -> list[str]:
        """Which of `margin` and `strength` the pairs have."""
        has_strength = self.answers is not None and self.answers.has_strength
        return [each for each in NUMBER_COLUMNS if each in self.columns or (each == "strength" and has_strength)]

    @property
    def is_of_two_prompts(self) -> bool:
        """Whether the two sides of a pair may answer different prompts."""
        return self.answers is not None and REJECTED_PROMPT in self.columns

    @property
    def alone(self) -> int:
        """How many prompts had one response only so far, where rows of one response each are brought together."""
        read = self.answers.read if self.answers else None
        return read.alone if isinstance(read, OneARow) else 0

    @property
    def is_lists(self) -> bool:
        """Whether its rows are ranked lists."""
        return self.answers is not None and self.answers.lists

    def pairs(self, row: Row) -> list[Row]:
        """Pairs of a row, those of a list included. Arguments and errors are those of [`rows`]."""
        return [pair for each in self.rows(row) for pair in pairs_of(each)]

    def rows(self, row: Row) -> list[Row]:
        """
        Pairs of a row, or its list, each checked.

        Args:
            row (`dict`):
                A row as it was found; a column that it lacks counts as null.

        Returns:
            `list[dict]`: `prompt`, `chosen` and `rejected`, as text or lists of messages, `rejected_prompt`, and
                `margin` and `strength` as numbers, where the set has them, then the row's other columns. Of a list
                `responses` and their `ranks` in place of the two sides. Empty where a row alone makes no pair.

        Raises:
            `RowError`: If the row is wrong, or, with `no_preference`, if no pair of it states a preference.
        """
        assert self.answers is not None
        self.notes.clear()
        for column in (*TEXT_COLUMNS, REJECTED_PROMPT, *NUMBER_COLUMNS):
            if column not in self.columns and row.get(column) is not None:
                raise RowError(column, describe(row[column]), "The first rows have no such column: give it to all.")
        others = self._others(row)
        pairs: list[Row] = []
        fault = None
        for answer in self.answers.read(row):
            try:
                pairs.append(self._pair(row, answer) | others)
            except RowError as error:
                fault = fault or self._renamed(error)
                if not error.no_preference:
                    raise fault from None
        if fault and not pairs:
            raise fault
        if fault:
            self.notes.append(PARTS)
        return pairs

    def prompt(self, row: Row) -> Row:
        """
        The prompt of a row, whatever its responses are as long as they tell where it ends, and the other columns.

        Args:
            row (`dict`):
                A row as it was found.

        Raises:
            `RowError`: If the prompt is wrong, empty or ends with the assistant's message, or, with `no_preference`,
                if it cannot be told from the responses.
        """
        self.notes.clear()
        alone = self.answers is None or self.is_text or self.kinds.get("prompt", TEXT) != TEXT
        try:
            prompt = self._prompt_alone(row) if alone and self.prompts.column else self._prompt_of_pair(row)
            return {"prompt": check_prompt(prompt)} | self._others(row)
        except RowError as error:
            raise self._renamed(error) from None

    def _others(self, row: Row) -> Row:
        return {column: value for column, value in row.items() if column not in self.columns}

    def _pair(self, row: Row, answer: Answer | Ranking) -> Row:
        if self.is_of_two_prompts:
            pair = self._of_two_prompts(row, answer.sides())
        else:
            pair = divide(self._values(row, answer.sides()), self.kinds, self.notes)
            if not self.prompts.column and not isinstance(pair["prompt"], str):
                pair["prompt"] = self.prompts.with_system(row, pair["prompt"])
            check_responses(pair)
        if self.is_text and (not self.prompts.column or REPEATED in self.notes):
            _check_text(pair)
        if isinstance(answer, Ranking):
            prompt, *responses = pair.values()
            pair = {"prompt": prompt, **dict(zip(RANKED_COLUMNS, (responses, answer.ranks), strict=True))}
        for column in NUMBER_COLUMNS:
            if column in self.columns:
                pair[column] = _number(row.get(column), column)
        if isinstance(answer, Answer) and answer.strength is not None and "strength" not in pair:
            pair["strength"] = answer.strength
        return pair

    def _of_two_prompts(self, row: Row, sides: Row) -> Row:
        """A pair whose sides are divided each by itself, from the prompt that it answers."""
        other = row if row.get(REJECTED_PROMPT) is None else row | {"prompt": row[REJECTED_PROMPT]}
        found: Row = {}
        for (side, response), asked in zip(sides.items(), (row, other), strict=True):
            try:  # twice, since a whole conversation tells where it begins beside another one
                twice = divide(self._values(asked, {side: response, "twice": response}), self.kinds, self.notes)
            except RowError as error:
                if asked is row or error.column != "prompt":
                    raise
                raise RowError(REJECTED_PROMPT, error.found, error.remedy, error.no_preference) from None
            found[side], found[f"{side} prompt"] = twice[side], twice["prompt"]
        prompt, rejected = found.pop("chosen prompt"), found.pop("rejected prompt")
        for some in [found] if prompt == rejected else [{side: response} for side, response in found.items()]:
            check_responses(some)
        return {"prompt": prompt, **found, REJECTED_PROMPT: rejected}

    def _values(self, row: Row, sides: Row) -> Row:
        """Unpacked values of a row, each of the kind that all rows share; an empty response is of any kind."""
        values = {column: unpack(side, column) for column, side in sides.items()}
        if self.prompts.column:
            values = {"prompt": self.prompts.read(row, self.notes), **values}
        known = {column: self.kinds["prompt" if column == "prompt" else "chosen"] for column in values}
        found = {column: kind_of(value, column, known[column]) for column, value in values.items()}
        for column, kind in found.items():
            says_nothing = column != "prompt" and is_empty(values[column])
            if says_nothing:
                values[column] = [] if known[column] == MESSAGES else ""
            elif kind != known[column]:
                if column == "rejected" and found.get("chosen") == self.kinds["chosen"]:
                    raise RowError(column, kind, f"'chosen' has {found['chosen']}: write both alike.")
                raise RowError(column, kind, f"Rows before have {known[column]}: bring all rows to one form.")
        return values

    def _prompt_alone(self, row: Row) -> Any:
        value = self.prompts.read(row, self.notes)
        kind = kind_of(value, "prompt", self.kinds["prompt"])
        if kind != self.kinds["prompt"]:
            raise RowError("prompt", kind, f"Rows before have {self.kinds['prompt']}: bring all rows to one form.")
        if kind == TEXT and not self.is_text:
            return [{"role": "user", "content": value}]
        return value if kind == TEXT else conversation(value, "prompt", kind, self.notes)

    def _prompt_of_pair(self, row: Row) -> Any:
        assert self.answers is not None
        remedy = "Remove the row: its prompt cannot be told."
        if self.is_lists:
            found = row.get(self.answers.columns[0])
            sides = Ranking(self.answers.columns[0], found if isinstance(found, list) else [], []).sides()
        else:
            sides = Answer(*[row.get(column) for column in self.answers.columns[:2]]).sides()
        for column, side in sides.items():
            if side is not None and is_empty(side):
                raise RowError(column, "an empty response", remedy, no_preference=True)
        if len(sides) < 2:
            raise RowError(self.answers.columns[0], "fewer than two responses", remedy, no_preference=True)
        if self.is_text and sides["chosen"] == sides["rejected"]:
            raise RowError("rejected", "the same text as in 'chosen'", remedy, no_preference=True)
        prompt = divide(self._values(row, sides), self.kinds, self.notes)["prompt"]
        return prompt if self.prompts.column or isinstance(prompt, str) else self.prompts.with_system(row, prompt)

    def _renamed(self, error: RowError) -> RowError:
        """The error, with the column's name in the file in place of that in the pair."""
        sides = self.answers.columns[:2] if self.answers else ()
        if self.answers and sides not in CHOSEN:  # which of two was preferred stands elsewhere
            sides = ("' or '".join(sides),) * 2
        names = dict(zip(("chosen", "rejected"), sides, strict=False)) | {"prompt": self.prompts.column or "prompt"}
        return RowError(names.get(error.column, error.column), error.found, error.remedy, error.no_preference)


def find_form(rows: list[Row], columns: list[str], name: str) -> Form:
    """
    Find the form of a set of preference pairs.

    Args:
        rows (`list[dict]`):
            Its first rows; [`FIRST_ROWS`] are enough.
        columns (`list[str]`):
            Its columns.
        name (`str`):
            Data set or file, as errors shall name it.

    Returns:
        `Form`

    Raises:
        `ValueError`: If there is no row, or columns and rows are of no form that is known, or may be of several.
    """
    if not rows:
        raise ValueError(f"Data set '{name}' is empty. Give it at least one row.")
    absent = [column for column in ("chosen", "rejected") if column not in columns]
    answers = _find_answers(rows, columns) if len(absent) != 1 else None
    if answers is None and (two := find_two(columns)):
        known = [*LABELS, *SIGNED, f"score_{two[0][-1]}"]
        raise ValueError(f"Data set '{name}' has {list(two)}, but no column of {known} says which is better. Add one.")
    if answers is None and (lists := column_of_lists(rows, columns)):
        raise ValueError(f"Data set '{name}' has '{lists}', but no column of {[*ORDERS]} says how they rank. Add one.")
    if answers is None:
        raise ValueError(f"Data set '{name}' has no column {absent}; it has {columns}. It needs {FORMS}.")
    if answers.lists and "margin" in columns:
        raise ValueError(f"Data set '{name}' has 'margin' beside lists, and a margin is of a pair. Remove the column.")
    kind, is_whole = _kind_of_answers(rows, answers)
    answers = _find_answers(rows, columns)  # anew, as what brings rows together has seen the first ones
    assert answers is not None
    prompts = find_prompts(rows, columns, name, is_whole)
    if REJECTED_PROMPT in columns and (prompts.column != "prompt" or answers.columns[:2] != CHOSEN[0]):
        found = f"has '{REJECTED_PROMPT}', which goes with 'prompt', 'chosen' and 'rejected', and is read as"
        raise ValueError(f"Data set '{name}' {found} {answers.name}; {prompts.name}. Rename columns, or remove it.")
    own = [column for column in (*TEXT_COLUMNS, REJECTED_PROMPT, *NUMBER_COLUMNS) if column in columns]
    read = tuple(dict.fromkeys((*own, *prompts.columns, *answers.columns)))
    if prompts.column is None and not is_whole:
        _check_common_beginning(rows, [column for column in columns if column not in read], answers, name)
    kinds = {"prompt": _kind_of_prompts(rows, prompts)} if prompts.column else {}
    kinds |= {"chosen": kind, "rejected": kind}
    told = "transcripts as in HH-RLHF" if kind == TRANSCRIPT else kind
    if kinds.get("prompt", kind) != kind:
        told = f"{kinds['prompt']} (prompt) and {kind} (responses)"
    other = f", that of the rejected side in `{REJECTED_PROMPT}` where it has one" if REJECTED_PROMPT in own else ""
    return Form(f"{told}: {answers.name}; {prompts.name}{other}", read, prompts, answers, kinds)


def find_prompt_form(rows: list[Row], columns: list[str], name: str) -> Form:
    """
    Find the form of a set of prompts, or of preference pairs whose prompts are taken.

    Arguments, results and errors are those of [`find_form`].
    """
    if rows and {"chosen", "rejected"} & set(columns) != {"chosen"} and _find_answers(rows, columns):
        return find_form(rows, columns, name)
    prompts = find_prompts(rows, columns, name)
    if prompts.column is None:
        raise ValueError(f"Data set '{name}' has no column 'prompt'; it has {columns}. Rename it, or give {FORMS}.")
    if not rows:
        raise ValueError(f"Data set '{name}' is empty. Give it at least one row.")
    own = [column for column in (*TEXT_COLUMNS, *NUMBER_COLUMNS) if column in columns]
    read = tuple(dict.fromkeys((*own, *prompts.columns)))
    return Form(prompts.name, read, prompts, None, {"prompt": _kind_of_prompts(rows, prompts)})


def _find_answers(rows: list[Row], columns: list[str]) -> Answers | None:
    return find_answers(rows, columns) or (None if find_two(columns) else find_lists(rows, columns))


def _kind_of_answers(rows: list[Row], answers: Answers) -> tuple[str, bool]:
    """Kind of the first responses that are of one, and whether they are whole conversations, with their prompt."""
    kinds: list[tuple[str, bool]] = []
    first, wrong = "", TEXT
    for row in rows:
        try:
            for answer in list(answers.read(row))[:1]:
                chosen = unpack(answer.chosen, "")
                wrong = kind = kind_of(chosen, "")
                if not is_empty(chosen) and not is_empty(answer.rejected):
                    speaker = conversation(chosen, "", kind, [])[0]["role"]
                    first = first or str(chosen)
                    kinds.append((kind, speaker != "assistant"))
        except RowError:
            pass  # told with its number when the row's turn comes
    if SPEAKS.match(first) and (TRANSCRIPT, True) in kinds:
        return TRANSCRIPT, True  # the first one is a turn alone
    return kinds[0] if kinds else (wrong, False)


def _kind_of_prompts(rows: list[Row], prompts: Prompts) -> str:
    for row in rows:
        try:
            value = prompts.read(row, [])
            if value is not None:
                return kind_of(value, "")
        except RowError:
            pass  # told with its number when the row's turn comes
    return TEXT


def _check_common_beginning(rows: list[Row], columns: list[str], answers: Answers, name: str) -> None:
    """Refuse to take what two responses have in common for their prompt where that may stand elsewhere."""
    remedy = "Put what was asked into a column 'prompt'"
    if named := looks_like_prompts(rows, columns):
        found = f"has no column 'prompt', but {named} may hold prompts"
        raise ValueError(f"Data set '{name}' {found}. Rename the right one, remove the others.")
    sides = answers.columns[:2]
    if sides not in CHOSEN or any(is_several(row.get(column)) for row in rows for column in sides):
        raise ValueError(f"Data set '{name}' has no column 'prompt'; it has {[*sides, *columns]}. {remedy}.")
    for text in (row.get(sides[0]) for row in rows):
        if isinstance(text, str) and (mark := ASKS.search(text)) and RESPONDS.search(text):
            found = f"'{sides[0]}' holds turns that begin with {mark[0].strip()!r}, which is not known"
            raise ValueError(f"Data set '{name}': {found}. Write lists of messages. {remedy}, if this is plain text.")


def _check_text(pair: Row) -> None:
    """Refuse a part of a text that would be messages if it stood alone: one reading must be like the next."""
    for column, value in pair.items():
        if (kind := kind_of(unpack(value, column), column)) != TEXT:
            raise RowError(column, f"text whose rest begins as {kind} do", "Write the prompt into a column 'prompt'.")


def _number(value: Any, column: str) -> float:
    try:
        found = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = float("nan")
    if not abs(found) <= GREATEST:
        raise RowError(column, describe(value), f"Write a number up to {GREATEST:g}, or remove the column.")
    if column == "strength" and found < 0:
        raise RowError(column, describe(value), "Write its size, and swap the responses where the sign says so.")
    return found
