"""One pass over files of preference pairs: what training makes of every row, and what is worth knowing beside it."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import NamedTuple

from .checks import Kind, PairCounts, Place, Row, Unusable
from .files import stream_rows
from .fixes import PairFiles
from .forms import FIRST_ROWS, Form, find_form, find_prompt_form
from .lists import pairs_of
from .prompts import REJECTED_PROMPT
from .row_errors import RowError
from .tally import Tally, check_left_out, check_pairs

ONE_FORM = "Bring them to one form."


class Source(NamedTuple):
    """Rows of a file or a data set with their numbers, and its columns where they are known before the rows."""

    name: str
    rows: Iterable[tuple[int, Row]]
    columns: list[str] | None = None
    total: int | None = None  # number of rows where it is known before them


PairCheck = Callable[[Place, Row], Unusable | None]


@dataclass
class Survey:
    """
    What a pass over files found.

    Args:
        counts ([`~toolkit.data.checks.PairCounts`]):
            Takes the usable pairs.
        check (`Callable`, *optional*):
            What else is checked of each pair that has its form, such as how it comes out of a tokenizer.
        files ([`~toolkit.data.fixes.PairFiles`], *optional*):
            Takes usable pairs and the other rows.
    """

    counts: PairCounts
    check: PairCheck | None = None
    files: PairFiles | None = None
    rows: int = 0
    lists: list[int] = field(default_factory=list)  # responses of each ranked list
    forms: dict[str, Form] = field(default_factory=dict)  # of each file
    left_out: dict[str, Kind] = field(default_factory=dict)  # rows without a preference
    wrong: dict[str, Kind] = field(default_factory=dict)  # rows that training refuses
    changed: dict[str, Kind] = field(default_factory=dict)  # rows of which something is read otherwise than it stands
    alone: int = 0  # prompts with one response, where rows of one response each are brought together
    refusals: list[str] = field(default_factory=list)  # what training says when it refuses, first of all the first
    shown: tuple[Place, Row] | None = None  # the first usable pair

    def add(self, source: Source) -> None:
        """
        Go through the rows of a file.

        Raises:
            `ValueError`: If it cannot be read on, or has no form that is known, which training refuses as well.
        """
        first, columns, rows = _begin(source)
        form = find_form(first, columns, source.name)
        self._compare(source.name, form)
        left_out, pairs, before = Tally(source.name), len(self.counts), self.rows
        refused = len(self.refusals)
        for number, row in rows:
            self.rows += 1
            self._add_row(Place(source.name, number), row, form, left_out)
        self.alone += form.alone
        if len(self.refusals) > refused:
            return
        strengths = self.counts.numbers["strength"][pairs:] if "strength" in form.numbers else None
        try:
            check_left_out(left_out, self.rows - before, form.name)
            check_pairs(source.name, len(self.counts) - pairs, strengths)
        except ValueError as error:
            self.refusals.append(str(error))

    def _compare(self, name: str, form: Form) -> None:
        """Refuse files that cannot be one table."""
        for other, known in list(self.forms.items())[:1]:
            kinds = ["plain text" if each.is_text else "messages" for each in (known, form)]
            if kinds[0] != kinds[1]:
                self.refusals.append(f"Files '{other}' and '{name}' differ: {kinds[0]} and {kinds[1]}. {ONE_FORM}")
            elif odd := sorted(_optional(known) ^ _optional(form)):
                self.refusals.append(f"Of files '{other}' and '{name}' only one has the column {odd}. {ONE_FORM}")
            if self.files and self.refusals:
                raise ValueError(self.refusals.pop())
        self.forms[name] = form

    def _add_row(self, place: Place, row: Row, form: Form, left_out: Tally) -> None:
        try:
            found = form.rows(row)
        except RowError as error:
            if error.no_preference:
                left_out.add(error.found, place.row)
            # What is found in wrong rows may be different in each
            kind = error.found if error.no_preference else f"{error.column}: {error.remedy}"
            self._set_aside(Unusable(kind, str(error.at(*place)), error.no_preference), place, row)
            return
        for note in form.notes:
            self.changed.setdefault(note, Kind()).add(place)
        for each in found:
            pairs = pairs_of(each)
            if self.check and (unusable := self.check(place, each)):
                self._set_aside(unusable, place, row)
                continue
            if form.is_lists:
                self.lists.append(len(each["ranks"]))
            for pair in pairs:
                self.counts.add(place, pair)
            if self.files:
                self.files.add(each)
            if self.shown is None:
                self.shown = place, pairs[0]

    def _set_aside(self, unusable: Unusable, place: Place, row: Row) -> None:
        kinds = self.left_out if unusable.left_out else self.wrong
        kinds.setdefault(unusable.kind, Kind(unusable.message)).add(place)
        if not unusable.left_out and not self.refusals:
            self.refusals.append(unusable.message)
        if self.files:
            self.files.reject(*place, unusable.message, row)


def _optional(form: Form) -> set[str]:
    return {*form.numbers, *([REJECTED_PROMPT] if form.is_of_two_prompts else [])}


def find_sources(name_or_path: str, split: str | None = None) -> list[Source]:
    """
    Rows behind a name, read as they are asked for.

    Args:
        name_or_path (`str`):
            What [`~toolkit.data.loading.load_table`] takes.
        split (`str`, *optional*):
            Split of a hub data set or folder; needed where there are several.

    Returns:
        `list[Source]`: A file each, in the order of their names; a data set of the hub or a saved one is one.
    """
    path = os.path.expanduser(name_or_path)
    if os.path.isfile(path) and split in (None, "train"):
        return [Source(path, stream_rows(path))]
    from .loading import locate  # with which come Transformers and torch

    found = locate(name_or_path, split)
    if isinstance(found, list):
        return [Source(file, stream_rows(file)) for file in found]
    return [Source(name_or_path, enumerate(found, start=1), found.column_names, len(found))]


def add_prompts(source: Source, counts: PairCounts) -> None:
    """
    Count the prompts of other rows, of pairs or of prompts alone, whatever else is wrong with a row.

    Args:
        source ([`Source`]):
            The rows.
        counts ([`~toolkit.data.checks.PairCounts`]):
            Takes the prompts.

    Raises:
        `ValueError`: If the file cannot be read, or has no form that is known.
    """
    first, columns, rows = _begin(source)
    form = find_prompt_form(first, columns, source.name)
    for number, row in rows:
        try:
            prompt = form.prompt(row)["prompt"]
        except RowError:
            continue  # empty, or not to be told
        counts.add_prompt(Place(source.name, number), prompt)


def _begin(source: Source) -> tuple[list[Row], list[str], Iterable[tuple[int, Row]]]:
    """First rows of a source, its columns as far as they tell, and all rows."""
    rows = iter(source.rows)
    first = list(islice(rows, FIRST_ROWS))
    if not first:
        raise ValueError(f"File '{source.name}' is empty. Write at least one row.")
    columns = source.columns or list(dict.fromkeys(column for _, row in first for column in row))
    return [row for _, row in first], columns, chain(first, rows)
