"""The head of the multi-scale reward model: a linear map a scale, and the gate or the prompt-conditioned part."""

from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init  # which leaves alone what a checkpoint has given

from .scales import SCALES, scale_gradient

# Name of each scale's map in the head
PARAMETERS = {"token": "token", "segment": "segment", "response": "weight"}
CONTEXTS = ("none", "gate", "head")
# What the head reads of a response: the state of the prompt's last token, the means over the response's tokens and
# over its segment ends, and the state of its last token
STATES = ("prompt", *SCALES)

# Rank of the prompt-conditioned part of the head in the "head" context: two (rank, hidden) matrices, since a full
# bilinear map would have as many parameters as an attention layer.
CONTEXT_RANK = 16


@dataclass
class MultiScaleSettings:
    """
    What a checkpoint must remember beside its weights. Stored in its `config.json` under `multi_scale`.

    Args:
        scales (`list[str]`, *optional*, defaults to `["token", "segment", "response"]`):
            Scales that make up the score.
        context (`str`, *optional*, defaults to `"none"`):
            How the prompt enters: `"gate"` weighs the scales, `"head"` conditions the response head, `"none"` not at
            all (several scales are then averaged).
        response_marker_ids (`list[int]`, *optional*):
            Token ids that the chat template writes before the assistant's turn. Empty: a caller must say where the
            response starts.
        segment_boundary_ids (`list[int]`, *optional*):
            Token ids that end a segment.
        conversational (`bool`, *optional*):
            Whether the model was trained on conversations or on plain text; `None` where that is not known, as of
            models from before it was written down.
        stop_token_ids (`list[int]`, *optional*):
            Token ids at which generation stopped with the model that training began from: a policy from it ends its
            responses with them.
        centre_by_prompt (`bool`, *optional*, defaults to `False`):
            Whether the response head is read less its value at the prompt's last token, that of an empty response, so
            that scores of responses to different prompts compare.
        unit_prompt (`bool`, *optional*, defaults to `True`):
            Whether the gate reads the prompt's state scaled to length 1. Models from before this was written down read
            it as it is.
        num_hidden_layers (`int`, *optional*):
            Layers of the decoder that are run, where it has more.
    """

    scales: list[str] = field(default_factory=lambda: list(SCALES))
    context: str = "none"
    response_marker_ids: list[int] = field(default_factory=list)
    segment_boundary_ids: list[int] = field(default_factory=list)
    conversational: bool | None = None
    stop_token_ids: list[int] = field(default_factory=list)
    centre_by_prompt: bool = False
    unit_prompt: bool = True
    num_hidden_layers: int | None = None

    def __post_init__(self) -> None:
        check_scales(self.scales, self.context, self.centre_by_prompt)

    @property
    def reads_prompt(self) -> bool:
        """Whether a score needs a prompt that is not empty."""
        return self.context != "none" or self.centre_by_prompt

    @classmethod
    def from_saved(cls, saved: dict[str, Any]) -> "MultiScaleSettings":
        """
        Settings as a checkpoint has them.

        Args:
            saved (`dict[str, Any]`):
                What was written, by this version or an earlier one.

        Returns:
            [`MultiScaleSettings`]

        Raises:
            `ValueError`: If it is damaged.
        """
        known = {one.name for one in fields(cls)}
        if not isinstance(saved, dict) or not saved.keys() <= known or not isinstance(saved.get("scales", []), list):
            raise ValueError(f"The settings of the reward model are damaged: {saved!r}. They are {sorted(known)}.")
        return cls(**{"unit_prompt": False, **saved})


def check_scales(scales: list[str], context: str, centre_by_prompt: bool = False) -> None:
    """
    Refuse scales or a context that do not exist or do not go together.

    Args:
        scales (`list[str]`):
            Names of scales.
        context (`str`):
            How the prompt enters.
        centre_by_prompt (`bool`, *optional*, defaults to `False`):
            Whether the response head is read less its value for an empty response.

    Raises:
        `ValueError`: Naming what is wrong and what may stand there.
    """
    unknown = [scale for scale in scales if scale not in SCALES]
    if unknown or not scales or len(set(scales)) < len(scales):
        raise ValueError(f"`scales` is {scales}. Name one or more of {list(SCALES)}, each once.")
    if context not in CONTEXTS:
        raise ValueError(f"`context` is '{context}'. Use one of {list(CONTEXTS)}.")
    if context == "gate" and len(scales) == 1:
        raise ValueError(f"`context='gate'` weighs scales, but there is only {scales}. Use 'none' or 'head'.")
    if context == "head" and "response" not in scales:
        raise ValueError(f"`context='head'` conditions the response head, but `scales` is {scales}. Add 'response'.")
    if centre_by_prompt and "response" not in scales:
        raise ValueError(f"`centre_by_prompt` centres the response head, but `scales` is {scales}. Add 'response'.")


class HeadOutput(NamedTuple):
    """What the head reads from the hidden states. `R` rows of `W` tokens."""

    token: Tensor  # (R, W) float32
    segment: Tensor  # (R, W) float32
    response: Tensor  # (R, W) float32
    gate: Tensor  # (R, S) float32, a row sums to 1


class MultiScaleHead(nn.Linear):
    """
    The linear map of a stock reward model, with those of the other scales and the gate beside it.

    `weight` is the response head, under the key `score.weight` that stock classes read. The others are parameters of
    this one module rather than modules of their own: PEFT saves a module called `score` whole, and neither LoRA's
    `all-linear` nor 4-bit quantisation can take hold of a part of it.

    Args:
        hidden_size (`int`):
            Width of the decoder.
        settings ([`MultiScaleSettings`]):
            Scales and context.

    Attributes:
        coarse_gradient (`float`):
            Factor on the gradient that all scales but the finest one send into the decoder. The trainer sets it; it
            belongs to a training rather than to the model, so it is not saved.
    """

    def __init__(self, hidden_size: int, settings: MultiScaleSettings) -> None:
        super().__init__(hidden_size, 1, bias=False)
        self.scales = list(settings.scales)
        for scale in ("token", "segment"):
            if scale in self.scales:
                self.register_parameter(scale, nn.Parameter(torch.empty(1, hidden_size)))
        if settings.context == "gate":
            self.gate = nn.Parameter(torch.empty(len(self.scales), hidden_size))
            self.gate_bias = nn.Parameter(torch.empty(len(self.scales)))
        if settings.context == "head":
            self.context_prompt = nn.Parameter(torch.empty(CONTEXT_RANK, hidden_size))
            self.context_response = nn.Parameter(torch.empty(CONTEXT_RANK, hidden_size))
        self.context = settings.context
        self.unit_prompt = settings.unit_prompt
        self.centre_by_prompt = settings.centre_by_prompt
        self.coarse_gradient = 1.0

    def initialize(self, std: float) -> None:
        """
        Draw new maps for all scales but the response, whose own is the architecture's to initialise.

        The gate starts even and the prompt has no say at first, so that training begins as the plain mean of scales.
        A response head that takes no part in the score is 0.

        Args:
            std (`float`):
                Standard deviation of the normal distribution.
        """
        for name, parameter in self.named_parameters():
            unused = name == "weight" and "response" not in self.scales
            if unused or name in ("gate", "gate_bias", "context_response"):
                init.zeros_(parameter)
            elif name != "weight":
                init.normal_(parameter, mean=0.0, std=std)

    def forward(  # type: ignore[override]
        self, hidden: Tensor, context_index: Tensor, token_index: Tensor | None = None
    ) -> HeadOutput:
        """
        Read the hidden states.

        Args:
            hidden (`torch.Tensor` of shape `(B, T, H)`, any dtype):
                Hidden states.
            context_index (`torch.Tensor` of shape `(R,)`, int64):
                Each row's last prompt token.
            token_index (`torch.Tensor` of shape `(R, W)`, int64, *optional*):
                Where the tokens of each row are among the `B * T`, as in [`~toolkit.data.packing.PackedRows`].
                Without it the rows are those of `hidden`.

        Returns:
            [`HeadOutput`]
        """

        def by_row(values: Tensor) -> Tensor:
            return values if token_index is None else values.flatten(0, 1)[token_index.clamp(min=0)]

        # In bfloat16 two good responses tie: an 8-bit mantissa cannot tell 4.01 from 4.02. Autocast would undo this.
        # DeepSpeed in bfloat16 casts the weights, too, and keeps float32 copies of them in the optimizer.
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            rows = torch.arange(len(context_index), device=hidden.device)
            if token_index is None:
                prompt = hidden[rows, context_index]
            else:
                prompt = hidden.flatten(0, 1)[token_index[rows, context_index]]
            zeros = hidden.new_zeros(hidden.shape[:2] if token_index is None else token_index.shape)
            coarse = scale_gradient(hidden, self.coarse_gradient)
            finest = min(self.scales, key=SCALES.index)
            seen = {scale: hidden if scale == finest else coarse for scale in self.scales}

            def score(scale: str) -> Tensor:
                if scale not in self.scales:
                    return zeros
                return by_row(F.linear(seen[scale], getattr(self, PARAMETERS[scale]).float())[..., 0])

            response = score("response")
            if self.context == "head":
                if finest != "response":
                    prompt = scale_gradient(prompt, self.coarse_gradient)
                by_prompt = F.linear(prompt, self.context_prompt.float())[:, None]
                weights = by_row(F.linear(seen["response"], self.context_response.float()))
                response = response + (weights * by_prompt).sum(-1)
            if self.centre_by_prompt:
                response = response - response[rows, context_index][:, None]
            if self.context == "gate":
                # The prompt's state is large in a pretrained decoder and much the same for all prompts. As it is, a
                # few optimizer steps of it saturate the softmax.
                prompt = F.normalize(prompt, dim=-1) if self.unit_prompt else prompt
                gate = F.linear(prompt, self.gate.float(), self.gate_bias.float()).softmax(-1)
            else:
                gate = hidden.new_full((len(rows), len(self.scales)), 1 / len(self.scales))
            return HeadOutput(
                token=score("token"),
                segment=score("segment"),
                response=response,
                gate=gate,
            )

    def read_states(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """
        Read the few states of a response that linear maps need: a mean of scores is the score of the mean state.

        Args:
            states (`torch.Tensor` of shape `(R, 4, H)`, any dtype):
                Of every response the vectors in the order of [`STATES`].

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Scores of the scales and their weights, `(R, S)` float32 each.
        """
        read: HeadOutput = self(states, torch.full((len(states),), STATES.index("prompt"), device=states.device))
        scores = {scale: getattr(read, scale)[:, STATES.index(scale)] for scale in self.scales}
        return torch.stack([scores[scale] for scale in self.scales], dim=1), read.gate
