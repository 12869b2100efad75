"""The parts of a score beside the text: in the terminal, and as a page of HTML."""

import math
import unicodedata
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from ..data.messages import Messages
from ..generative.reward import Judgement
from .explain import ExplainedToken, Explanation, compare
from .page import render_template
from .tables import print_table

# Blue and orange stay apart for colour-blind readers. Both are light enough for black text, at the fullest, too.
_BLUE, _ORANGE = (90, 160, 216), (240, 160, 48)
_STRONGEST = 5  # tokens that are listed on either side, for those who see no colours


def verdict(
    names: Sequence[str], explanations: Sequence[Explanation], preferred: str | None = None
) -> tuple[str, str]:
    """
    Which of two responses the model prefers, and whether that is right.

    Args:
        names (`Sequence[str]` of length 2):
            Names of the responses.
        explanations (`Sequence[Explanation]` of length 2):
            Their scores in parts.
        preferred (`str`, *optional*):
            Name of the response that the data prefer, where that is known.

    Returns:
        `tuple[str, str]`: `"good"`, `"bad"` or `"open"`, and a sentence or two. Scores that are equal as far as they
        are shown, to four digits, are a tie.
    """
    first, second = explanations
    comparison = compare(first, second)
    size = abs(comparison.difference)
    if comparison.decisive is None or f"{size:.4f}" == "0.0000":
        outcome = "open" if preferred is None else "bad"
        return outcome, f"The model prefers neither: they score {first.reward:+.4f} and {second.reward:+.4f}."
    name = names[comparison.difference < 0]
    probability = max(comparison.probability, 1 - comparison.probability)
    scale, part = first.scales[comparison.decisive], abs(comparison.by_scale[comparison.decisive])
    text = (
        f"The model prefers {name} by {size:.4f} nats, a probability of {probability:.3f}. The {scale} scale does "
        f"most for it: {part:+.4f}."
    )
    if preferred is None:
        return "open", text
    if name == preferred:
        return "good", f"Ranked right. {text}"
    return "bad", f"Ranked wrong: {preferred} is the one that the data prefer. {text}"


def _note(scales: list[str]) -> str | None:
    """What cannot be shown for a model of only some scales."""
    missing = [scale for scale in ("token", "segment") if scale not in scales]
    each = " and no ".join(missing)
    return f"This model has no {each} scale, so no {each} has a part of its own in the score." if missing else None


def _score_rows(e: Explanation) -> list[tuple[str, ...]]:
    rows = zip(e.scales, e.gate, e.scores, e.parts, strict=True)
    cells = [(scale, f"{gate:.3f}", f"{score:+.4f}", f"{part:+.4f}") for scale, gate, score, part in rows]
    return [("scale", "weight", "score", "contributes"), *cells, ("sum", f"{sum(e.gate):.3f}", "", f"{e.reward:+.4f}")]


def _comparison_rows(names: Sequence[str], first: Explanation, second: Explanation) -> list[tuple[str, ...]]:
    parts = [(*first.parts, first.reward), (*second.parts, second.reward)]
    rows = [(f"{one:+.4f}", f"{two:+.4f}", f"{one - two:+.4f}") for one, two in zip(*parts, strict=True)]
    scales = [*first.scales, "sum"]
    return [("contributes", *names, "difference"), *((s, *row) for s, row in zip(scales, rows, strict=True))]


def _limits(e: Explanation) -> tuple[float, float]:
    """Contributions of a token and of a segment that get the full colour: the largest of the response."""
    # Of each by itself: a token of a short response weighs more than one of a long response, whatever it says
    return max(abs(t.contribution) for t in e.tokens), max(abs(s.contribution or 0.0) for s in e.segments)


def _share(value: float, limit: float) -> float:
    return min(abs(value) / limit, 1.0) if limit else 0.0


def _colour(value: float, limit: float) -> str:
    """White at 0, blue at `limit`, orange at its negative."""
    share = _share(value, limit)
    red, green, blue = (round(255 + share * (c - 255)) for c in (_BLUE if value > 0 else _ORANGE))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _tint(value: float, limit: float) -> str:
    """The same for the page, whose style has the two colours, for a light screen and for a dark one."""
    return f"--tint: var(--{'plus' if value > 0 else 'minus'}) / {_share(value, limit):.3f}"


def _visible(text: str, line_end: str = "↵\n") -> str:
    """Text with its line ends marked, and by their numbers the characters that would steer a terminal or turn text."""
    shown = {"\n": line_end, "\t": "\t", "\u200c": "\u200c", "\u200d": "\u200d"}
    return "".join(
        shown.get(c) or (f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in ("Cc", "Cf") else c) for c in text
    )


def _turns(prompt: str | Messages) -> list[tuple[str, str]]:
    messages = [{"role": "prompt", "content": prompt}] if isinstance(prompt, str) else prompt
    return [(_visible(message["role"]), _visible(message["content"], "\n")) for message in messages]


def print_judgements(
    prompt: str | Messages, names: Sequence[str], judgements: Sequence[Judgement], preferred: str | None = None
) -> None:
    """Print a judge's utility of each response, and each of its thoughts beside the answer that followed it."""
    console = Console(highlight=False, markup=False)

    def show(text: str, style: str = "") -> None:
        console.print(text, style=style, soft_wrap=not console.is_terminal)

    for role, content in _turns(prompt):
        show(f"{role}: {content}", "dim")
    for name, (utility, thoughts, answers) in zip(names, judgements, strict=True):
        show(
            f"\n{name}: {utility:+.4f} nats, the logarithm of the mean answer. Good with probability, after a thought:"
        )
        for answer, thought in zip(answers, thoughts, strict=True):
            show(f"{answer:.3f}  {_visible(thought)}")
    if len(names) == 2:
        gap = judgements[0].utility - judgements[1].utility
        likely = f"{names[gap < 0]} with probability {1 / (1 + math.exp(-abs(gap))):.3f}" if gap else "neither"
        right = "" if preferred is None else f" The data prefer {preferred}."
        show(f"\nThe judge prefers {likely}.{right}", "bold")


def print_explanations(
    prompt: str | Messages,
    names: Sequence[str],
    explanations: Sequence[Explanation],
    preferred: str | None = None,
) -> None:
    """
    Print scores, heat maps and, of two responses, which one the model prefers.

    Args:
        prompt (`str` or `list[dict[str, str]]`):
            Prompt, plain or messages.
        names (`Sequence[str]`):
            Name of each response.
        explanations (`Sequence[Explanation]`):
            One or two, as [`~toolkit.pages.explain.explain`] gives them.
        preferred (`str`, *optional*):
            Name of the response that the data prefer.
    """
    console = Console(highlight=False, markup=False)

    def show(text: Text | str, style: str = "") -> None:
        console.print(text, style=style, soft_wrap=not console.is_terminal)

    for role, content in _turns(prompt):
        show(f"{role}: {content}", "dim")
    for name, e in zip(names, explanations, strict=True):
        columns, *rows = _score_rows(e)
        print_table(f"\n{name}", columns, rows)
        for line in _heat_lines(e):
            show(line)
    if note := _note(explanations[0].scales):
        show(f"\n{note}")
    if len(explanations) == 2:
        columns, *rows = _comparison_rows(names, *explanations)
        print_table("\nboth", columns, rows)
        show(verdict(names, explanations, preferred)[1], "bold")


def _heat_lines(e: Explanation) -> list[Text | str]:
    """The text with its colours, what they mean, the strongest tokens and the segments."""
    token_limit, segment_limit = _limits(e)
    heat, lines = Text(), list[Text | str]()
    for token in e.tokens:
        style = f"black on {_colour(token.contribution, token_limit)}" if "token" in e.scales else ""
        heat.append(_visible(token.text), style)
    lines.append(heat)
    if "token" in e.scales:
        steps = [(f" {x * token_limit:+.4f} ", f"black on {_colour(x, 1.0)}") for x in (-1.0, -0.5, 0.0, 0.5, 1.0)]
        lines.append(Text.assemble("colour of a token, by what it contributes: ", *steps))
        lines += _strongest(e)
    if "segment" in e.scales:
        lines.append("segments:")
    for segment in e.segments:
        if segment.contribution is not None:
            line = Text(f"{segment.contribution:+.4f}", f"black on {_colour(segment.contribution, segment_limit)}")
            lines.append(Text.assemble(line, f" {_visible(segment.text, '↵').strip()}"))
    return lines


def _strongest(e: Explanation) -> list[str]:
    ranked = sorted(e.tokens, key=lambda token: token.contribution)
    return [
        _name_strongest("most for it", [token for token in ranked[::-1] if token.contribution > 0]),
        _name_strongest("most against it", [token for token in ranked if token.contribution < 0]),
    ]


def _name_strongest(title: str, tokens: list[ExplainedToken]) -> str:
    named = [f"“{_visible(token.text, '↵')}” {token.contribution:+.4f}" for token in tokens[:_STRONGEST]]
    return f"{title}: {', '.join(named) or 'nothing'}"


def render_html(
    model: str,
    prompt: str | Messages,
    names: Sequence[str],
    explanations: Sequence[Explanation],
    preferred: str | None = None,
) -> str:
    """
    The same as one page of HTML that needs no script, no other file and no network.

    Args:
        model (`str`):
            Name of the model, for the title.
        prompt, names, explanations, preferred:
            As in [`print_explanations`].

    Returns:
        `str`: The page.
    """
    both = len(explanations) == 2
    return render_template(
        "explain.html.jinja",
        {"visible": _visible, "tint": _tint},
        model=model,
        turns=_turns(prompt),
        responses=[
            (name, e, _score_rows(e), *_limits(e), _strongest(e) if "token" in e.scales else [])
            for name, e in zip(names, explanations, strict=True)
        ],
        scales=explanations[0].scales,
        note=_note(explanations[0].scales),
        verdict=verdict(names, explanations, preferred) if both else None,
        comparison=_comparison_rows(names, *explanations) if both else [],
    )
