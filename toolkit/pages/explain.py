"""What a multi-scale reward model liked and disliked in a response: the parts of its score, token by token."""

import math
import os
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch

from ..data.messages import Messages, text_of
from ..data.tokens import EncodedResponse
from ..generative.reward import ThoughtReward
from ..generative.turns import is_judge
from ..reward.contributions import score_contributions
from ..reward.scales import SCALES
from ..reward.scorer import RewardFunction
from ..reward.scores import ResponseScore

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


def load_reward_function(model: str, **template_kwargs: Any) -> RewardFunction | ThoughtReward:
    """
    Reward function of a saved multi-scale reward model or adapter, by its folder or hub name, or of a judge's folder.

    Raises:
        `ValueError`: If there is no such model, or it is of another kind.
    """
    if is_judge(model):
        return ThoughtReward(model)
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
        if row.response_start == 0 and reward.settings.reads_prompt:
            context = reward.settings.context
            found = f"`context` is '{context}'" if context != "none" else "`centre_by_prompt` is set"
            raise ValueError(
                f"The prompt is empty, but this model's {found}, which reads the prompt's last token. Give a prompt."
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
