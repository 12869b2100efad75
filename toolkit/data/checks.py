"""What can be counted over preference pairs in one pass: repeats, contradictions, lengths, strengths, odd characters.

Of a pair some 60 bytes stay in memory, whatever its length: hashes of its texts and the numbers that are described.
"""

import re
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..stats.intervals import PairAccuracy, wilson_interval
from .messages import Messages
from .prompts import REJECTED_PROMPT

Row = dict[str, Any]
Keys = NDArray[np.uint64]
Indices = NDArray[np.int64]

SIDES = ("prompt", "chosen", "rejected")
NUMBERS = ("strength", "margin")
# Columns that say who labelled a pair, in lower case
ANNOTATORS = {f"{who}{end}" for who in ("annotator", "worker", "rater", "labeler", "labeller") for end in ("", "_id")}
EXAMPLES = 3  # of a kind are named
REPEATED, CONTRADICTED = "repeated pairs", "pairs labelled both ways"
NEARLY_REPEATED = "near repeats"
EMPTY_PROMPTS = "empty prompts"
SHARED_PROMPTS = "prompts that the other files have, too"
BARS = "▁▂▃▄▅▆▇█"

_LATER = "\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"  # bytes of UTF-8 after the first, as Windows-1252 has them
ODD_CHARACTERS = {
    "control characters": re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
    # A joiner belongs to Indic and Arabic writing and to emoji; beside a letter of ASCII it is left over from copying
    "zero-width characters": re.compile(
        "[\u00ad\u180e\u200b\u2060-\u2064\ufeff]|[\u200c\u200d](?=[\x00-\x7f])|(?<=[\x00-\x7f])[\u200c\u200d]"
    ),
    "bidirectional controls": re.compile("[\u202a-\u202e\u2066-\u2069]"),
    "replacement characters (U+FFFD)": re.compile("\ufffd"),
    "lone surrogates": re.compile("[\ud800-\udfff]"),
    # UTF-8 that was read as Latin-1 or Windows-1252: "é" became "Ã©", "’" became "â€™", an emoji "ðŸ…"
    "text decoded wrongly (such as Ã©, â€™)": re.compile(f"[ÂÃ][\x80-\xbf]|â[€\x80]|â[{_LATER}]{{2}}|ð[Ÿ\x9f]|ï»¿"),
}
_CONTROLS = bytes({*range(32), 127} - {*b"\t\n\r"})
_MARKS = "\ufffdÃÂâðï"  # with which what is printable and odd begins
_INSIGNIFICANT = re.compile(r"[\W_]+")


class Place(NamedTuple):
    """Where a row stands: its file or data set, and its number as a user counts."""

    name: str
    row: int


class Unusable(NamedTuple):
    """What is wrong with a row: its kind, what an error says of it, and whether training leaves it out instead."""

    kind: str
    message: str
    left_out: bool = False


class Kind:
    """How many rows are of a kind, where the first of them stand, and what an error says of the very first."""

    def __init__(self, message: str = "") -> None:
        self.message = message
        self.rows = 0
        self.first: list[tuple[Place, ...]] = []  # the row, then the one that it goes with, if any

    def add(self, *places: Place) -> None:
        """Count a row."""
        self.rows += 1
        if len(self.first) < EXAMPLES:
            self.first.append(places)


class PairCounts:
    """
    Counts over preference pairs that are added one by one, in memory that does not grow with their texts.

    Args:
        near (`bool`, *optional*, defaults to `False`):
            Whether pairs that differ in case, punctuation and white space alone are counted, too.
    """

    def __init__(self, near: bool = False) -> None:
        self.kinds: dict[str, Kind] = {}
        self.roles: Counter[str] = Counter()
        self.lengths = {side: array("Q") for side in SIDES}  # in characters
        self.numbers = {column: array("d") for column in NUMBERS}
        self.annotators: dict[str, array[int]] = {}  # of each such column the hashes of its values
        self._starts, self._names, self._rows = array("Q"), list[str](), array("Q")
        self._prompts, self._pairs, self._near = array("Q"), array("Q"), array("Q") if near else None

    def __len__(self) -> int:
        return len(self._rows)

    def note(self, kind: str, *places: Place) -> None:
        """Count a row of a kind, at its place; a second place is that of the row that it goes with."""
        self.kinds.setdefault(kind, Kind()).add(*places)

    def add(self, place: Place, pair: Row) -> None:
        """
        Count a pair.

        Args:
            place ([`Place`]):
                Where it stands. Pairs come file by file.
            pair (`dict`):
                A pair in the form of [`~toolkit.data.formats.normalize_pairs`].
        """
        (prompt, asked), (chosen, better), (rejected, worse) = [self._read(pair[side]) for side in SIDES]
        texts: tuple[str, ...] = (prompt, chosen, rejected)
        if pair.get(REJECTED_PROMPT, pair["prompt"]) != pair["prompt"]:  # each side with its own prompt
            text, encoded = self._read(pair[REJECTED_PROMPT])
            texts, asked, better, worse = (*texts, text), b"", asked + b"\xff" + better, encoded + b"\xff" + worse
        self._add_prompt(place, prompt)
        for side, text in zip(SIDES, texts, strict=False):
            self.lengths[side].append(len(text))
        # No byte of encoded text is 255, so that what stands on the two sides of one cannot run together
        order = better < worse
        whole = b"\xff".join((asked, better, worse) if order else (asked, worse, better))
        self._pairs.append(_hash(whole) & ~1 | order)
        if self._near is not None:
            plain = "\xff".join(_INSIGNIFICANT.sub("", text.casefold()) for text in texts)
            self._near.append(_hash(plain.encode(errors="surrogatepass")))
        for kind in odd_characters("\n".join(texts), whole):
            self.note(kind, place)
        if not prompt or prompt.isspace():
            self.note(EMPTY_PROMPTS, place)
        self._add_columns(pair)

    def add_prompt(self, place: Place, prompt: str | Messages) -> None:
        """Count a prompt without responses, by its place; for pairs with which others are compared."""
        self._add_prompt(place, self._read(prompt)[0])

    def _add_prompt(self, place: Place, text: str) -> None:
        if not self._names or self._names[-1] != place.name:
            self._starts.append(len(self))
            self._names.append(place.name)
        self._rows.append(place.row)
        self._prompts.append(_hash(text.strip().encode(errors="surrogatepass")))

    def _read(self, value: str | Messages) -> tuple[str, bytes]:
        """Text of a cell, its messages joined; and as bytes, with the roles of messages, which are counted."""
        if isinstance(value, str):
            return value, value.encode(errors="surrogatepass")
        whole = []
        for message in value:
            role, content = message["role"], message["content"]
            self.roles[role] += 1
            whole.append(f"{len(role)} {len(content)} {role}{content}")  # cannot be read as other messages
        text = "\n".join([message["content"] for message in value])
        return text, "".join(whole).encode(errors="surrogatepass")

    def _add_columns(self, pair: Row) -> None:
        for column, value in pair.items():
            if column in self.numbers:
                self.numbers[column].append(value)
            elif column not in SIDES and column.lower() in ANNOTATORS:
                key = _hash(str(value).encode(errors="surrogatepass"))
                self.annotators.setdefault(column, array("Q")).append(key)

    def finish(self, others: "PairCounts | None" = None) -> None:
        """
        Count what can be told at the end: repeats, contradictions, and prompts that other pairs have, too.

        Args:
            others ([`PairCounts`], *optional*):
                Pairs whose prompts should not be among these, such as those of an evaluation.
        """
        pairs = _array(self._pairs)
        repeats = find_repeats(pairs)
        self._note_all(REPEATED, repeats, self)
        self._note_all(CONTRADICTED, find_contradictions(pairs), self)
        if self._near is not None:
            near = find_repeats(_array(self._near))
            self._note_all(NEARLY_REPEATED, near[~np.isin(near[:, 0], repeats[:, 0])], self)
        if others is not None:
            self._note_all(SHARED_PROMPTS, find_shared(_array(self._prompts), _array(others._prompts)), others)

    def _note_all(self, kind: str, found: Indices, others: "PairCounts") -> None:
        for row, other in found[:EXAMPLES].tolist():
            self.note(kind, self.place(row), others.place(other))
        if len(found) > EXAMPLES:
            self.kinds[kind].rows = len(found)

    def place(self, index: int) -> Place:
        """Where the pair of an index, in the order in which they were added, stands."""
        return Place(self._names[bisect_right(self._starts, index) - 1], self._rows[index])

    def distinct_prompts(self) -> int:
        """Number of prompts that differ in their text; roles and white space around it do not count."""
        return len(np.unique(_array(self._prompts)))

    def longer_wins(self) -> PairAccuracy:
        """Share of pairs whose chosen response has more characters, a tie counted as half, with its 95% interval."""
        chosen, rejected = (_array(self.lengths[side]) for side in ("chosen", "rejected"))
        wins, ties = int((chosen > rejected).sum()), int((chosen == rejected).sum())
        return PairAccuracy(*wilson_interval(wins + ties / 2, len(self)), ties, len(self))


def odd_characters(text: str, encoded: bytes) -> list[str]:
    """
    Kinds of odd characters in a text, by the names of `ODD_CHARACTERS`.

    Args:
        text (`str`):
            The text.
        encoded (`bytes`):
            The same text in UTF-8, in which control characters are found sooner.

    Returns:
        `list[str]`
    """
    if text.isascii():
        return ["control characters"] if len(encoded.translate(None, _CONTROLS)) < len(encoded) else []
    line = text.replace("\n", "").replace("\r", "").replace("\t", "")
    if line.isprintable() and not any(mark in line for mark in _MARKS):
        return []  # found sooner than by the patterns
    return [kind for kind, pattern in ODD_CHARACTERS.items() if pattern.search(text)]


def find_repeats(keys: Keys) -> Indices:
    """
    Rows whose key was seen before.

    Args:
        keys (`numpy.ndarray` of shape `(N,)`, uint64):
            A key of each row.

    Returns:
        `numpy.ndarray` of shape `(R, 2)`, int64: Index of each such row, in order, and of the first row with its key.
    """
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    first = first[group]
    rows = np.flatnonzero(first != np.arange(len(keys)))
    return np.stack((rows, first[rows]), axis=1)


def find_contradictions(keys: Keys) -> Indices:
    """
    Rows whose opposite is there, too.

    Args:
        keys (`numpy.ndarray` of shape `(N,)`, uint64):
            A key of each row, whose lowest bit says which of two ways it goes.

    Returns:
        `numpy.ndarray` of shape `(R, 2)`, int64: Index of each such row, in order, and of the first opposite row.
    """
    return find_shared(keys ^ np.uint64(1), keys)


def find_shared(keys: Keys, others: Keys) -> Indices:
    """
    Rows whose key others have, too.

    Args:
        keys (`numpy.ndarray` of shape `(N,)`, uint64):
            A key of each row.
        others (`numpy.ndarray` of shape `(M,)`, uint64):
            A key of each other row.

    Returns:
        `numpy.ndarray` of shape `(R, 2)`, int64: Index of each such row, in order, and of the first other with its
        key.
    """
    known, first = np.unique(others, return_index=True)
    rows = np.flatnonzero(np.isin(keys, known))
    return np.stack((rows, first[np.searchsorted(known, keys[rows])]), axis=1)


def histogram(values: Sequence[float], bins: int = 20) -> str:
    """
    A line of bars, one for each of equal parts of the range of the values.

    Args:
        values (`Sequence[float]`):
            At least one finite number.
        bins (`int`, *optional*, defaults to 20):
            Number of bars.

    Returns:
        `str`: A space where there is no value, else a bar whose height is in proportion to the most of any bin.
    """
    counts, _ = np.histogram(values, bins)
    heights = np.ceil(counts / max(counts.max(), 1) * len(BARS)).astype(int)
    return "".join(BARS[height - 1] if height else " " for height in heights)


def _hash(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest())


def _array(numbers: "array[int]") -> Keys:
    return np.frombuffer(numbers, dtype=np.uint64)
