"""What becomes of preference pairs at a tokenizer: rows that are equal, cut or too long."""

from array import array
from collections import Counter
from typing import Any

from transformers import AutoTokenizer

from .checks import PairCounts, Place, Row, Unusable
from .tally import EQUAL, check_equal
from .tokens import tokenize_list, tokenize_pair

MAX_LENGTH = 1024  # tokens of a row, as the reward trainer's `max_length` has it where nobody sets it
CUT = "prompts that lose tokens from their left to fit"
TOO_LONG = "responses that do not fit"
REFUSED = "rows that the tokenizer or its template refuses"


class TokenChecks:
    """
    Tokenizes pairs as the reward trainer does with its default options.

    Args:
        name (`str`):
            Hub name or folder of the tokenizer.
        counts ([`~toolkit.data.checks.PairCounts`]):
            Takes what is not wrong, but worth knowing.
        max_length (`int`, *optional*):
            Most tokens of a row; 1024 where it is not given.

    Raises:
        `ValueError`: If there is no such tokenizer, or `max_length` is not positive.
    """

    def __init__(self, name: str, counts: PairCounts, max_length: int | None = None) -> None:
        self.counts, self.max_length = counts, MAX_LENGTH if max_length is None else max_length
        if self.max_length < 1:
            raise ValueError(f"`--max-length` is {max_length}. Give a positive number of tokens.")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name)
        except Exception as error:  # files of other kinds make it fail in many ways
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise ValueError(
                f"`--tokenizer {name}` cannot be loaded: {reason}. Give a hub name or a folder."
            ) from None
        self.pairs, self.equal = Counter[str](), Counter[str]()  # of each file
        self.lengths = array("Q")  # of the longer row of each pair, in tokens, before it is cut

    def __call__(self, place: Place, pair: Row) -> Unusable | None:
        """
        What is wrong with a pair once it is tokens.

        Args:
            place ([`~toolkit.data.checks.Place`]):
                Where it stands.
            pair (`dict`):
                A pair or a list in the form of [`~toolkit.data.formats.normalize_pairs`].

        Returns:
            [`~toolkit.data.survey.Unusable`] or `None`
        """
        try:
            found = self._tokenize(pair, place)
        except ValueError as error:
            where = "" if str(error).startswith("Data set") else f"Data set '{place.name}', row {place.row}: "
            return Unusable(REFUSED, f"{where}{error}")
        rows = found["response_ids"] if "response_ids" in found else [found["chosen_ids"], found["rejected_ids"]]
        self.lengths.append(max(map(len, rows)) + found["cut_tokens"])
        if found["error"]:
            return Unusable(TOO_LONG, found["error"])
        if found["cut_tokens"]:
            self.counts.note(CUT, place)
        self.pairs[place.name] += 1
        if len(set(map(tuple, rows))) == len(rows):
            return None
        self.equal[place.name] += 1
        return Unusable(EQUAL, f"Data set '{place.name}', row {place.row}: found {EQUAL}.", left_out=True)

    def refusal(self) -> str | None:
        """What training says where too many pairs are equal, of the first file of which that is true."""
        try:
            for name, pairs in self.pairs.items():
                check_equal(name, self.equal[name], pairs)
        except ValueError as error:
            return str(error)
        return None

    def _tokenize(self, pair: Row, place: Place) -> dict[str, Any]:
        options: dict[str, Any] = {
            "dataset_name": place.name,
            "tokenizer": self.tokenizer,
            "max_length": self.max_length,
        }
        options |= {"needs_prompt": False, "length_column_name": "length"}  # as with the default `context="none"`
        tokenize = tokenize_pair if "chosen" in pair else tokenize_list
        return tokenize(pair, place.row - 1, **options)

    def show(self, pair: Row, place: Place) -> dict[str, tuple[str, str]]:
        """
        A usable pair as the model reads it.

        Args:
            pair (`dict`):
                A pair in the form of [`~toolkit.data.formats.normalize_pairs`].
            place ([`~toolkit.data.checks.Place`]):
                Where it stands.

        Returns:
            `dict[str, tuple[str, str]]`: Of `chosen` and `rejected` what the model reads before the response, and the
                response, special tokens included.
        """
        found = self._tokenize(pair, place)
        shown = {}
        for side in ("chosen", "rejected"):
            ids, start = found[f"{side}_ids"], found[f"{side}_start"]
            shown[side] = (str(self.tokenizer.decode(ids[:start])), str(self.tokenizer.decode(ids[start:])))
        return shown
