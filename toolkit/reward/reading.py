"""From what the head reads at every token to the scores of responses, wherever the decoder has run."""

import torch
from torch import Tensor

from ..data.positions import find_response_start, last_kept, segment_ends
from .head import HeadOutput, MultiScaleSettings
from .output import MultiScaleRewardOutput
from .scales import SCALES, mix, scale_prefix_values


def response_starts(settings: MultiScaleSettings, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """
    Where the responses start, by the marker that was saved with the model.

    Args:
        settings ([`MultiScaleSettings`]):
            Settings of the model.
        input_ids (`torch.Tensor` of shape `(B, T)`, int64):
            Token ids.
        attention_mask (`torch.Tensor` of shape `(B, T)`, bool or integer):
            `True` or 1 on real tokens.

    Returns:
        `torch.Tensor` of shape `(B,)`, int64.

    Raises:
        `ValueError`: If there is no marker, a row lacks it, or nothing follows it.
    """
    if settings.response_marker_ids:
        return find_response_start(input_ids, attention_mask, settings.response_marker_ids)
    if settings.scales == ["response"] and not settings.reads_prompt:
        return last_kept(attention_mask)  # only the last token is read, wherever the response starts
    raise ValueError(
        "This reward model was trained on plain text, or with a chat template that does not mark where the "
        "response starts. Pass `response_start`, or score with `toolkit.RewardFunction`, which knows."
    )


def read_scores(
    head: HeadOutput, response: Tensor, boundary: Tensor, context_index: Tensor, scales: list[str]
) -> MultiScaleRewardOutput:
    """
    Scores of responses.

    Args:
        head ([`~toolkit.reward.head.HeadOutput`]):
            What the head reads of `R` rows of `W` tokens.
        response (`torch.Tensor` of shape `(R, W)`, bool):
            Tokens of the response.
        boundary (`torch.Tensor` of shape `(R, W)`, bool):
            Those of them that end a segment or stand behind its end.
        context_index (`torch.Tensor` of shape `(R,)`, int64):
            Each row's last prompt token.
        scales (`list[str]` of length `S`):
            Scales of the model.

    Returns:
        [`MultiScaleRewardOutput`]
    """
    ends = segment_ends(boundary, response)
    chosen = [SCALES.index(scale) for scale in scales]
    prefix = scale_prefix_values(head.token, head.segment, head.response, boundary, ends, response)[..., chosen]

    row = torch.arange(response.size(0), device=response.device)
    last = last_kept(response)
    scale_scores = prefix[row, last]
    ends = with_open_end(ends, boundary, last)
    at_prompt = head.response.new_zeros(row.numel(), len(SCALES))
    at_prompt[:, SCALES.index("response")] = head.response[row, context_index]
    return MultiScaleRewardOutput(
        logits=mix(scale_scores, head.gate)[:, None],
        scale_scores=scale_scores,
        gate=head.gate,
        prefix_values=prefix,
        prompt_value=at_prompt[:, chosen],
        token_scores=head.token * response,
        segment_scores=head.segment * ends,
        response_mask=response,
        segment_ends=ends,
    )


def with_open_end(ends: Tensor, boundary: Tensor, last: Tensor) -> Tensor:
    """The ends of segments `(R, W)`, where one that is still open at a row's `last` token ends there."""
    is_last = torch.arange(ends.size(1), device=last.device) == last[:, None]
    return ends | (is_last & ~boundary)
