"""What a multi-scale reward model liked and disliked in a response: the parts of its score beside the text, in the
terminal and as a page of HTML."""

import math
import os
import unicodedata
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.text import Text

from ..data.messages import Messages, text_of
from ..data.tokens import EncodedResponse
from ..reward.contributions import score_contributions
from ..reward.scales import SCALES
from ..reward.scorer import RewardFunction
from ..reward.scores import ResponseScore
from .page import render_template
from .tables import print_table

# Blue and orange stay apart for colour-blind readers. Both are light enough for black text, at the fullest, too.
_BLUE, _ORANGE = (90, 160, 216), (240, 160, 48)
_STRONGEST = 5  # tokens that the terminal lists on either side, for those who see no colours
_CONFIG_NAMES = ["config.json", "adapter_config.json"]


class ExplainedToken(NamedTuple):
    """A piece of text and what it adds to the score. Tokens that only together make up a character are one piece."""

    text: str
    score: float  # of the token, in nats; the mean where there are several
    contribution: float  # to the response's score, in nats


class ExplainedSegment(NamedTuple):
    """A segment, or tokens that belong to none, such as an end of turn after a full stop."""

    tokens: list[ExplainedToken]
    score: float | None  # in nats; None where it is no segment
    contribution: float | None  # to the response's score, in nats

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)


class Explanation(NamedTuple):
    """A response's score in parts. All scores and contributions are in nats, the lists in the order of `scales`."""

    reward: float
    scales: list[str]
    scores: list[float]  # of each scale
    gate: list[float]  # weight of each scale
    parts: list[float]  # weight × score; they sum to `reward`
    segments: list[ExplainedSegment]  # whose tokens are those of the response, in order

    @property
    def tokens(self) -> list[ExplainedToken]:
        return [token for segment in self.segments for token in segment.tokens]


def load_reward_function(model: str, **template_kwargs: Any) -> RewardFunction:
    """
    A reward function of a saved multi-scale reward model or adapter, by its folder or hub name.

    Raises:
        `ValueError`: If there is no such model, or it is of another kind.
    """
    if os.path.isdir(model) and not any(os.path.isfile(os.path.join(model, name)) for name in _CONFIG_NAMES):
        raise ValueError(f"Folder '{model}' has none of {_CONFIG_NAMES}. Name one that MultiScaleRewardTrainer saved.")
    try:
        return RewardFunction(model, chat_template_kwargs=template_kwargs)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())  # Transformers writes paragraphs
        raise ValueError(
            f"'{model}' cannot be loaded as a reward model with its tokenizer: {reason} Name one that "
            "MultiScaleRewardTrainer saved."
        ) from error


def explain(reward: RewardFunction, prompt: str | Messages, responses: Sequence[str | Messages]) -> list[Explanation]:
    """
    Split the scores of responses to one prompt into what their tokens, their segments and they as a whole add.

    Args:
        reward ([`RewardFunction`]):
            The reward model.
        prompt (`str` or `list[dict[str, str]]`):
            Prompt, plain or messages.
        responses (sequence of `str` or `list[dict[str, str]]`):
            Responses in the same form, each of which has come to its end.

    Returns:
        `list[Explanation]`: Of each response.

    Raises:
        `ValueError`: If a response is empty or too long, its score is not finite, or the prompt is empty and the score
            reads it.
    """
    rows = []
    for number, response in enumerate(responses, start=1):
        if not text_of(response).strip():
            raise ValueError(f"Response {number} is empty: it has no token to score. Give it some text.")
        row = reward.encode(prompt, response)
        if row.response_start == 0 and reward.settings.context != "none":
            raise ValueError(
                f"The prompt is empty, but this model's `context` is '{reward.settings.context}', which reads the "
                "prompt's last token. Give a prompt."
            )
        tokens, most = len(row.input_ids) - row.response_start, reward.max_length
        if most is not None and tokens >= most:
            raise ValueError(
                f"Response {number} has {tokens} tokens; the model reads {most}, with one or more of the prompt. "
                "Shorten it."
            )
        rows.append(row)
    scored = reward.score([prompt] * len(rows), list(responses))
    scores = [score for score in scored if score is not None]  # none is: no response is empty
    for number, score in enumerate(scores, start=1):
        if not math.isfinite(score.reward):
            raise ValueError(
                f"Response {number} scores {score.reward}: the model's weights are broken. Train it anew."
            )
    return [_explain_row(reward, row, score) for row, score in zip(rows, scores, strict=True)]


def _explain_row(reward: RewardFunction, row: EncodedResponse, score: ResponseScore) -> Explanation:
    scales = reward.settings.scales
    gate, scores = (dict(zip(scales, values.tolist(), strict=True)) for values in (score.gate, score.scale_scores))
    contributions = score_contributions(
        score.token_scores[None],
        score.segment_scores[None],
        torch.tensor([scores.get("response", 0.0)]),
        torch.tensor([[gate.get(scale, 0.0) for scale in SCALES]]),
        torch.ones(1, len(score.token_scores), dtype=torch.bool),
        score.segment_ends[None],
    )
    by_token, by_segment = contributions.token[0], contributions.segment[0]
    parts = {"token": by_token.sum(), "segment": by_segment.sum(), "response": contributions.response.sum()}
    tokens = list(zip(_texts(reward, row), score.token_scores.tolist(), by_token.tolist(), strict=True))
    segments = []
    for places in _runs(reward, row, score.segment_ends.tolist()):
        pieces, last = _join_characters([tokens[t] for t in places]), places[-1]
        if "segment" in scales and score.segment_ends[last]:
            segment = ExplainedSegment(pieces, score.segment_scores[last].item(), by_segment[last].item())
        else:
            segment = ExplainedSegment(pieces, None, None)
        segments.append(segment)
    return Explanation(
        reward=score.reward,
        scales=list(scales),
        scores=list(scores.values()),
        gate=list(gate.values()),
        parts=[parts[scale].item() for scale in scales],
        segments=segments,
    )


def _texts(reward: RewardFunction, row: EncodedResponse) -> list[str]:
    """Text that each token adds; none for one that begins a character, which the token that completes it gets."""
    texts, before, first = list[str](), max(row.response_start - 1, 0), row.response_start

    def decode(start: int, end: int) -> str:
        return str(reward.processing_class.decode(row.input_ids[start:end], clean_up_tokenization_spaces=False))

    for end in range(row.response_start + 1, len(row.input_ids) + 1):
        # Decoded after the token before it: some tokenizers drop the space before a token that comes first.
        text = decode(before, end)[len(decode(before, first)) :]
        if text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(row.input_ids):
            texts.append("")
            continue
        texts.append(text)
        before, first = first, end
    return texts


def _runs(reward: RewardFunction, row: EncodedResponse, ends: list[bool]) -> list[list[int]]:
    """Tokens of the response, segment by segment; those in a row that belong to no segment are together, too."""
    if "segment" not in reward.settings.scales:
        return [list(range(len(ends)))]
    boundaries, ended, keys = set(reward.settings.segment_boundary_ids), 0, []
    for token, end in zip(row.input_ids[row.response_start :], ends, strict=True):
        keys.append((ended, token in boundaries and not end))  # a later token of a run of boundaries is outside
        ended += end
    return [list(places) for _, places in groupby(range(len(ends)), keys.__getitem__)]


def _join_characters(tokens: list[tuple[str, float, float]]) -> list[ExplainedToken]:
    joined, scores, part = [], list[float](), 0.0
    for t, (text, score, contribution) in enumerate(tokens, start=1):
        scores.append(score)
        part += contribution
        if text or t == len(tokens):
            joined.append(ExplainedToken(text, sum(scores) / len(scores), part))
            scores, part = [], 0.0
    return joined


class Comparison(NamedTuple):
    """Two responses to one prompt, side by side. Differences are first minus second, in nats."""

    difference: float
    probability: float  # that the first is preferred, σ(difference)
    by_scale: list[float]  # in the order of the model's scales; they sum to `difference`
    decisive: int | None  # index of the scale that does most for the preferred response; None in a tie


def compare(first: Explanation, second: Explanation) -> Comparison:
    """What of the difference between two responses to one prompt comes from which scale of the model."""
    difference = first.reward - second.reward
    by_scale = [one - other for one, other in zip(first.parts, second.parts, strict=True)]
    gains = [math.copysign(1, difference) * gain for gain in by_scale]
    probability = torch.tensor(difference, dtype=torch.float64).sigmoid().item()
    return Comparison(difference, probability, by_scale, gains.index(max(gains)) if difference else None)


def _verdict(names: Sequence[str], first: Explanation, second: Explanation) -> str:
    comparison = compare(first, second)
    if comparison.decisive is None:
        return f"The model prefers neither: both score {first.reward:+.4f}."
    name, size = names[comparison.difference < 0], abs(comparison.difference)
    probability = max(comparison.probability, 1 - comparison.probability)
    scale, part = first.scales[comparison.decisive], abs(comparison.by_scale[comparison.decisive])
    return (
        f"The model prefers {name} by {size:.4f} nats, a probability of {probability:.3f}. The {scale} scale does "
        f"most for it: {part:+.4f}."
    )


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


def _limits(explanations: Sequence[Explanation]) -> tuple[float, float]:
    """Contributions of a token and of a segment that get the full colour: the largest of all responses."""
    tokens = [abs(token.contribution) for e in explanations for token in e.tokens]
    segments = [abs(segment.contribution or 0.0) for e in explanations for segment in e.segments]
    return max(tokens), max(segments)


def _colour(value: float, limit: float) -> str:
    """White at 0, blue at `limit`, orange at its negative."""
    share = min(abs(value) / limit, 1.0) if limit else 0.0
    red, green, blue = (round(255 + share * (c - 255)) for c in (_BLUE if value > 0 else _ORANGE))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _visible(text: str, line_end: str = "↵\n") -> str:
    """Text with its line ends marked, and by their numbers the characters that would steer a terminal or turn text."""
    shown = {"\n": line_end, "\t": "\t", "\u200c": "\u200c", "\u200d": "\u200d"}
    return "".join(
        shown.get(c) or (f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in ("Cc", "Cf") else c) for c in text
    )


def _turns(prompt: str | Messages) -> list[tuple[str, str]]:
    messages = [{"role": "prompt", "content": prompt}] if isinstance(prompt, str) else prompt
    return [(_visible(message["role"]), _visible(message["content"], "\n")) for message in messages]


def print_explanations(prompt: str | Messages, names: Sequence[str], explanations: Sequence[Explanation]) -> None:
    """Print scores, heat maps and, of two responses, which one the model prefers; of one or two with their names."""
    console = Console(highlight=False, markup=False)

    def show(text: Text | str, style: str = "") -> None:
        console.print(text, style=style, soft_wrap=not console.is_terminal)

    for role, content in _turns(prompt):
        show(f"{role}: {content}", "dim")
    scales, (token_limit, segment_limit) = explanations[0].scales, _limits(explanations)
    for name, e in zip(names, explanations, strict=True):
        columns, *rows = _score_rows(e)
        print_table(f"\n{name}", columns, rows)
        heat = Text()
        for token in e.tokens:
            style = f"black on {_colour(token.contribution, token_limit)}" if "token" in scales else ""
            heat.append(_visible(token.text), style)
        show(heat)
        if "token" in scales:
            ranked = sorted(e.tokens, key=lambda token: token.contribution)
            show(_name_strongest("most for it", [token for token in ranked[::-1] if token.contribution > 0]))
            show(_name_strongest("most against it", [token for token in ranked if token.contribution < 0]))
        if "segment" in scales:
            show("segments:")
        for segment in e.segments:
            if segment.contribution is not None:
                line = Text(f"{segment.contribution:+.4f}", f"black on {_colour(segment.contribution, segment_limit)}")
                show(Text.assemble(line, f" {_visible(segment.text, '↵').strip()}"))
    if "token" in scales:
        steps = [(f" {x * token_limit:+.4f} ", f"black on {_colour(x, 1.0)}") for x in (-1.0, -0.5, 0.0, 0.5, 1.0)]
        show(Text.assemble("\ncolour of a token, by what it contributes: ", *steps))
    if note := _note(scales):
        show(f"\n{note}")
    if len(explanations) == 2:
        columns, *rows = _comparison_rows(names, *explanations)
        print_table("\nboth", columns, rows)
        show(_verdict(names, *explanations), "bold")


def _name_strongest(title: str, tokens: list[ExplainedToken]) -> str:
    named = [f"“{_visible(token.text, '↵')}” {token.contribution:+.4f}" for token in tokens[:_STRONGEST]]
    return f"{title}: {', '.join(named) or 'nothing'}"


def render_html(model: str, prompt: str | Messages, names: Sequence[str], explanations: Sequence[Explanation]) -> str:
    """The same as one page of HTML that needs no script, no other file and no network; `model` is in its title."""
    both = len(explanations) == 2
    token_limit, segment_limit = _limits(explanations)
    return render_template(
        "explain.html.jinja",
        {"visible": _visible, "colour": _colour},
        model=model,
        turns=_turns(prompt),
        responses=[(name, e, _score_rows(e)) for name, e in zip(names, explanations, strict=True)],
        scales=explanations[0].scales,
        note=_note(explanations[0].scales),
        verdict=_verdict(names, *explanations) if both else None,
        comparison=_comparison_rows(names, *explanations) if both else [],
        token_limit=token_limit,
        segment_limit=segment_limit,
    )
