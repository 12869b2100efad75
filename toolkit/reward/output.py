"""What the multi-scale reward model says of a batch."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class MultiScaleRewardOutput(ModelOutput):
    """
    Output of the multi-scale reward model. `B` rows, `T` tokens, `S` scales in the order of `settings.scales`.

    Args:
        logits (`torch.Tensor` of shape `(B, 1)`, float32):
            The score, where TRL and Transformers look for it.
        scale_scores (`torch.Tensor` of shape `(B, S)`, float32):
            Score of each scale on its own.
        gate (`torch.Tensor` of shape `(B, S)`, float32):
            Weight of each scale; a row sums to 1.
        prefix_values (`torch.Tensor` of shape `(B, T, S)`, float32):
            Each scale's value of the response up to and including each token; 0 outside the response.
        prompt_value (`torch.Tensor` of shape `(B, S)`, float32):
            The same for the empty response: the response head read on the last prompt token, 0 at the other scales.
        token_scores (`torch.Tensor` of shape `(B, T)`, float32):
            Score of each token; 0 outside the response.
        segment_scores (`torch.Tensor` of shape `(B, T)`, float32):
            Score of each segment at its last token; 0 elsewhere.
        response_mask (`torch.Tensor` of shape `(B, T)`, bool):
            Tokens of the response.
        segment_ends (`torch.Tensor` of shape `(B, T)`, bool):
            Last token of each segment, that of one still open at the end included.
        outputs (`torch.Tensor` of shape `(B, S, m)`, float32):
            With several outputs of the head: what each scale says of the response; the gate mixes them to its `z`.
        weights (`torch.Tensor` of shape `(B, K)`, float32):
            With them: weights of the reader.
        taste (`torch.Tensor` of shape `(B, K)`, float32):
            With annotators: what their own parameters add to those of all.
    """

    logits: Tensor | None = None
    scale_scores: Tensor | None = None
    gate: Tensor | None = None
    prefix_values: Tensor | None = None
    prompt_value: Tensor | None = None
    token_scores: Tensor | None = None
    segment_scores: Tensor | None = None
    response_mask: Tensor | None = None
    segment_ends: Tensor | None = None
    outputs: Tensor | None = None
    weights: Tensor | None = None
    taste: Tensor | None = None
