"""What `prefscale check` prints of a set of preference pairs."""

from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from ..data.checks import (
    CONTRADICTED,
    EMPTY_PROMPTS,
    NEARLY_REPEATED,
    ODD_CHARACTERS,
    REPEATED,
    SHARED_PROMPTS,
    SIDES,
    Kind,
    PairCounts,
    Place,
    Row,
    histogram,
)
from ..data.prompts import REJECTED_PROMPT
from ..data.survey import Survey
from ..pages.tables import print_table

if TYPE_CHECKING:
    from ..data.token_checks import TokenChecks

SHOWN = 600  # characters of a text, from its beginning and its end
KNOWN_ROLES = {"system", "user", "assistant", "tool"}
# What follows from a kind of rows, the gravest first
ADVICE = {
    CONTRADICTED: "They cancel each other out in training: look whether the label or the order of sides is wrong.",
    SHARED_PROMPTS: "An evaluation on the other files would look better than it is: keep them out of one of the two.",
    REPEATED: "Each counts as often as it is there: remove them, unless they are labels of several people.",
    NEARLY_REPEATED: "They differ in case, punctuation and white space alone, and count as pairs of their own.",
    EMPTY_PROMPTS: "A reward model with a `context` needs prompts: write them, or train with `context='none'`.",
    **dict.fromkeys(ODD_CHARACTERS, "Look at one: they seldom mean what was written."),
}


def print_survey(survey: Survey, tokens: "TokenChecks | None") -> None:
    """
    Print what a survey found, from how rows are read to what training would do.

    Args:
        survey ([`~toolkit.data.survey.Survey`]):
            The survey, its counts finished.
        tokens ([`~toolkit.data.token_checks.TokenChecks`], *optional*):
            The checks at a tokenizer, where there were any.
    """
    names = len(survey.forms) > 1
    for name, form in survey.forms.items():
        print(safe(f"{name}: read as {form.name}"))
    counts = survey.counts
    found = {"row": survey.rows, "usable pair": len(counts), "different prompt": counts.distinct_prompts()}
    print(", ".join(_many(number, what) for what, number in found.items()))
    if survey.lists:
        sizes = " to ".join(map(str, sorted({min(survey.lists), max(survey.lists)})))
        print(f"{_many(len(survey.lists), 'list')} of {sizes} responses; every two that are not tied count as a pair")
    if survey.alone:
        print(f"{_many(survey.alone, 'prompt')} with one response only, which make no pair")
    if survey.shown:
        print()
        _print_pair(*survey.shown, tokens)
    sections = {"Refused": survey.wrong, "Left out": survey.left_out, "Changed": survey.changed}
    for title, kinds in (sections | {"Worth a look": counts.kinds}).items():
        if kinds:
            print(f"\n{title}")
        for what, kind in kinds.items():
            told = kind.message.split(": ", 1)[-1] if kinds is survey.wrong else what
            print(safe(f"  {_many(kind.rows)}: {told} ({places(kind, names)})"))
    if len(counts):
        _print_description(counts, tokens)
    print("\nVerdict")
    for sentence in verdict(survey, tokens is not None):
        print(safe(f"  {sentence}"))


def verdict(survey: Survey, is_tokenized: bool) -> Iterator[str]:
    """
    What training would do, and what to look at first.

    Args:
        survey ([`~toolkit.data.survey.Survey`]):
            The survey, its counts finished.
        is_tokenized (`bool`):
            Whether rows were looked at as tokens.

    Yields:
        `str`: Sentences.
    """
    counts = survey.counts
    taken = _many(len(survey.lists), "list") if survey.lists else _many(len(counts), "pair")
    wrong, left_out = (sum(kind.rows for kind in kinds.values()) for kinds in (survey.wrong, survey.left_out))
    if survey.refusals:
        yield f"Training would refuse these data: {survey.refusals[0]}"
        if wrong > 1:
            yield f"It is the first of {wrong:,} rows that training refuses."
    elif left_out:
        yield f"Training would leave out {left_out:,} of {_many(survey.rows)} and take {taken}."
    else:
        yield f"Training would take {taken} and leave out none of {_many(survey.rows)}."
    if survey.files:
        for path, rows in survey.files.written.items():
            yield f"Wrote {_many(rows)} to {path}." if rows else f"Nothing was to be written to {path}."
    elif wrong and len(counts):
        yield f"`--fix OUT.jsonl` writes the {len(counts):,} usable pairs, and the rest with reasons."
    first = [kind for kind in ADVICE if kind in counts.kinds]
    for kind in first[:3]:
        begins = "Look first at" if kind == first[0] else "Then at"
        yield f"{begins} {kind} ({_many(counts.kinds[kind].rows)}). {ADVICE[kind]}"
    if odd := sorted(counts.roles.keys() - KNOWN_ROLES):
        yield f"The roles {odd} may be unknown to a chat template."
    longer = counts.longer_wins()
    if len(counts) and not longer.low <= 0.5 <= longer.high:
        share = max(longer.value, 1 - longer.value)
        which = "longer" if longer.value > 0.5 else "shorter"
        yield f"Preferring the {which} response is right in {share:.1%}: an accuracy means little below that."
    if not is_tokenized:
        yield "Whether rows fit a model, and differ for it, `--tokenizer` tells."


def safe(text: str) -> str:
    """Text that can be printed: line ends as arrows, and what does not print or turns the direction as its code."""
    text = text.replace("\n", "↵")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def places(kind: Kind, names: bool) -> str:
    """
    Where the first rows of a kind stand.

    Args:
        kind ([`~toolkit.data.checks.Kind`]):
            The kind.
        names (`bool`):
            Whether there are several files, so that each place needs its name.
    """
    told = [
        " with ".join(_place(place, names or place.name != found[0].name) for place in found) for found in kind.first
    ]
    return ", ".join(told) + (", …" if kind.rows > len(told) else "")


def _many(number: int, what: str = "row") -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _place(place: Place, name: bool) -> str:
    return f"{place.name} row {place.row}" if name else f"row {place.row}"


def _print_pair(place: Place, pair: Row, tokens: "TokenChecks | None") -> None:
    print(safe(f"The first pair, of {_place(place, True)}, as it is trained on:"))
    if tokens:
        for side, (before, response) in tokens.show(pair, place).items():
            print(f"  {side}: the model reads “{_shortened(before)}”")
            print(f"  and scores “{_shortened(response)}”")
        return
    for side in (*SIDES, *([REJECTED_PROMPT] if REJECTED_PROMPT in pair else [])):
        value = pair[side]
        said = [("", value)] if isinstance(value, str) else [(f"{m['role']}: ", m["content"]) for m in value]
        for role, text in said or [("", "")]:
            print(f"  {side + ': ':10}{safe(role)}{_shortened(text)}")


def _shortened(text: str) -> str:
    half = SHOWN // 2
    if len(text) > SHOWN:
        text = f"{text[:half]} [… {len(text) - SHOWN:,} characters …] {text[-half:]}"
    return safe(text)


def _print_description(counts: PairCounts, tokens: "TokenChecks | None") -> None:
    lengths: dict[str, Sequence[int]] = {f"{side}, characters": counts.lengths[side] for side in SIDES}
    if tokens:
        lengths["longer row, tokens"] = tokens.lengths
    print()
    rows = [
        (name, f"{np.mean(all_):,.0f}", f"{np.median(all_):,.0f}", f"{np.max(all_):,}")
        for name, all_ in lengths.items()
    ]
    print_table("Lengths", ("", "mean", "median", "most"), rows)
    longer = counts.longer_wins()
    print(
        f"The chosen response is the longer one in {longer.value:.1%} (95% interval {longer.low:.1%} to "
        f"{longer.high:.1%}; {longer.ties:,} of equal length, each a half)"
    )
    for column, values in counts.numbers.items():
        if values:
            zeros = sum(value == 0 for value in values) / len(values)
            range_ = f"{min(values):g} to {max(values):g}, median {median(values):g}, {zeros:.1%} are 0"
            print(f"{column}: {range_}  {histogram(values)}")
    for column, labelled in counts.annotators.items():
        _, each = np.unique(np.frombuffer(labelled, dtype=np.uint64), return_counts=True)
        spread = f"{each.min():,} to {each.max():,} pairs each, median {np.median(each):,.0f}"
        print(
            safe(
                f"{column}: {len(each):,} different, {spread}; the most frequent one has {each.max() / each.sum():.1%}"
            )
        )
    if counts.roles:
        print(safe("roles: " + ", ".join(f"{role} {number:,}" for role, number in counts.roles.most_common())))
