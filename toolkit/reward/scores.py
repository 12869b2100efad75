"""What a reward model says of one response."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.utils.logging import get_logger

from .head import MultiScaleSettings

logger = get_logger(__name__)
# An annotator's name, weights of attributes by name, or of the outputs in their order
Reader = str | int | Mapping[str, float] | Sequence[float]


class ResponseScore(NamedTuple):
    """Score of one response. `R` tokens of the response as the reward model reads it, `S` scales. On the CPU."""

    reward: float
    scale_scores: Tensor  # (S,) float32
    gate: Tensor  # (S,) float32
    prefix_values: Tensor  # (R, S) float32, gate-weighted value of the response up to and including each token; with
    # `same_tokens` at the tokens that were sampled, of which there may be others than in the row
    prompt_value: Tensor  # (S,) float32, gate-weighted value of the empty response
    token_scores: Tensor  # (R,) float32
    segment_scores: Tensor  # (R,) float32, 0 but at segment ends
    segment_ends: Tensor  # (R,) bool, last token of each segment, an open one at the end included
    ends: list[int]  # of each token, where it ends in the text, in characters
    same_tokens: bool = False  # whether `prefix_values` stand at the tokens that the policy sampled
    head_tokens: int = 0  # with `same_tokens`, those before them that the template wrote, such as an empty thought
    cut_tokens: int = 0  # tokens that the prompt lost from its left to fit
    z: Tensor | None = None  # (m,) float32, what a head with several outputs says, its scales mixed by the gate
    weights: Tensor | None = None  # (K,) float32, with which its reader reads responses to this prompt


def rewards_of(scores: list[ResponseScore | None]) -> list[float | None]:
    """Reward of each score; `None` where there is none."""
    return [None if score is None else score.reward for score in scores]


def response_score(output: Any, k: int, ends: list[int]) -> ResponseScore:
    """Score of the response in row `k` of a model's output, on the CPU; `ends` are those of its row."""
    response, gate = output.response_mask[k], output.gate[k]
    return ResponseScore(
        reward=output.logits[k, 0].item(),
        scale_scores=output.scale_scores[k],
        gate=gate,
        prefix_values=output.prefix_values[k][response] * gate,
        prompt_value=output.prompt_value[k] * gate,
        token_scores=output.token_scores[k][response],
        segment_scores=output.segment_scores[k][response],
        segment_ends=output.segment_ends[k][response],
        ends=ends,
        z=None if output.outputs is None else (output.outputs[k] * gate[:, None]).sum(0),
        weights=None if output.weights is None else output.weights[k],
    )


def reader_inputs(settings: MultiScaleSettings, reader: Reader | None, rows: int) -> dict[str, Tensor]:
    """
    What a model's `forward` is given beside `R` rows, so that their score is that of a chosen reader.

    Of an annotator whom the model does not know it is that of all, which a warning says; an attribute that is not
    named weighs 0. Raises `ValueError` where the model has no annotators, no such attribute, or other outputs.
    """
    if reader is None:
        return {}
    if isinstance(reader, str | int):
        if settings.reader_weights != "annotator":
            raise ValueError(f"`reader` is {reader!r}, and the model was not trained with weights of annotators.")
        if str(reader) not in settings.annotators:
            logger.warning_once(f"The model does not know the annotator {reader!r}: the weights that all share score.")
            return {"annotator": torch.full((rows,), -1)}
        return {"annotator": torch.full((rows,), settings.annotators.index(str(reader)))}
    if isinstance(reader, Mapping):
        if unknown := sorted(reader.keys() - set(settings.attributes)):
            raise ValueError(f"`reader` names the attributes {unknown}, and the model has {settings.attributes}.")
        reader = [reader.get(name, 0.0) for name in settings.attributes]
    if len(reader) != settings.outputs or settings.outputs == 1:
        raise ValueError(f"`reader` has {len(reader)} weights, and the model {settings.outputs} outputs.")
    return {"mixed": torch.tensor(reader, dtype=torch.float)}


def report_scores(scores: list[ResponseScore], scales: list[str], log_metric: Callable[[str, float], None]) -> None:
    """Report the mean of every scale, that of its weight, and the number of shortened prompts, where there are any."""
    if not scores:
        return
    log_metric("reward_model/shortened_prompts", float(sum(score.cut_tokens > 0 for score in scores)))
    for i, scale in enumerate(scales):
        log_metric(f"reward_model/{scale}", sum(s.scale_scores[i].item() for s in scores) / len(scores))
        log_metric(f"reward_model/gate/{scale}", sum(s.gate[i].item() for s in scores) / len(scores))
