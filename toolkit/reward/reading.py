"""From what the head reads at every token to the scores of responses, wherever the decoder has run."""

from typing import Any

import torch
from torch import Tensor

from ..data.positions import find_response_start, last_kept, segment_ends
from .head import HeadOutput, MultiScaleSettings
from .losses import pairwise_logistic_loss
from .output import MultiScaleRewardOutput
from .readers import read_gap
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


def read_outputs(
    head: HeadOutput,
    response: Tensor,
    boundary: Tensor,
    context_index: Tensor,
    settings: MultiScaleSettings,
    shares: Tensor,
) -> MultiScaleRewardOutput:
    """[`read_scores`] of a head with several outputs, which add up to every score by `shares` `(R, m)`."""

    def scores(by: Tensor) -> Any:
        names = ("token", "segment", "response")
        one = head._replace(**{name: (getattr(head, name) * by[:, None]).sum(-1) for name in names})
        return read_scores(one, response, boundary, context_index, settings.scales)

    each = [scores(alone).scale_scores for alone in torch.eye(settings.outputs).to(shares)[:, None]]
    total: MultiScaleRewardOutput = scores(shares)
    total.outputs, total.weights, total.taste = torch.stack(each, dim=-1), head.weights, head.taste
    return total


def mixed_outputs(output: MultiScaleRewardOutput) -> Tensor:
    """The outputs of each row, `z` of shape `(B, m)`: those of the scales mixed by the gate."""
    return (output.outputs * output.gate[..., None]).sum(1)  # type: ignore[index,operator]


def read_pairs(output: MultiScaleRewardOutput, pairs: Tensor, reader: str) -> tuple[Tensor, Tensor]:
    """
    Scores of the two sides of pairs, whose rows are `pairs` `(P, 2)` int64, by the name of a reader.

    Their difference is what the reader says of a pair: all but a linear one have no score of a response alone, and
    half the gap stands on either side. Of the mix `(P, 2)`, and of each scale `(P, 2, S)`.
    """
    if reader == "linear":
        return output.logits[pairs, 0], output.scale_scores[pairs]  # type: ignore[index]
    weights = None if output.weights is None else output.weights[pairs[:, 0], None]
    values = torch.cat([mixed_outputs(output)[:, None], output.outputs], dim=1)[pairs]  # type: ignore[list-item]
    gaps = read_gap(values[:, 0], values[:, 1], weights, reader)
    sides = torch.stack([gaps, -gaps], dim=1) / 2
    return sides[..., 0], sides[..., 1:]


def taste_losses(output: MultiScaleRewardOutput, inputs: dict[str, Tensor], label_smoothing: float) -> Tensor | float:
    r"""
    What annotators' weights and labels of attributes cost beside the loss of each pair or list, `(P,)` in nats.

    It is $\frac1{2 n_a} \|u_a\|^2$ of an annotator's own parameters, standard normal before their $n_a$ rows were seen
    (`annotator_share` has $1 / n_a$), and the mean of the pairwise losses of the attributes in which the two responses
    differ (by `attribute_gaps`, each label wrong with the probability `label_smoothing`). 0 without these inputs. The
    first rows of the output are the first of every pair or list.
    """
    loss: Tensor | float = 0.0
    if (share := inputs.get("annotator_share")) is not None and output.taste is not None:
        loss = loss + share / 2 * output.taste[: len(share)].square().sum(-1)
    if (labels := inputs.get("attribute_gaps")) is not None:
        order = labels.nan_to_num().sign()
        chosen, rejected = mixed_outputs(output).split(len(labels))
        of_each = pairwise_logistic_loss(order * chosen, order * rejected, label_smoothing=label_smoothing)
        loss = loss + (order.abs() * of_each).sum(-1) / order.abs().sum(-1).clamp(min=1)
    return loss


def with_open_end(ends: Tensor, boundary: Tensor, last: Tensor) -> Tensor:
    """The ends of segments `(R, W)`, where one that is still open at a row's `last` token ends there."""
    is_last = torch.arange(ends.size(1), device=last.device) == last[:, None]
    return ends | (is_last & ~boundary)
