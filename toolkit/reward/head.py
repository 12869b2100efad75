"""The head of the multi-scale reward model: a linear map a scale, and the gate or the prompt-conditioned part."""

from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init  # which leaves alone what a checkpoint has given

from .readers import READERS, WEIGHTS, number_of_weights, score_weights, weights_of
from .scales import SCALES, scale_gradient

# Name of each scale's map in the head
PARAMETERS = {"token": "token", "segment": "segment", "response": "weight"}
NO_READER = ("linear", "shared")  # of a head with one output
CONTEXTS = ("none", "gate", "head")
# What the head reads of a response: the state of the prompt's last token, the means over the response's tokens and
# over its segment ends, and the state of its last token
STATES = ("prompt", *SCALES)

# Rank of the prompt-conditioned part of the head in the "head" context: two (rank, hidden) matrices, since a full
# bilinear map would have as many parameters as an attention layer.
CONTEXT_RANK = 16

# What a configuration asks of a model, under the same names in its settings
ASKED_FOR = ("scales", "context", "centre_by_prompt", "outputs", "reader", "reader_weights")


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
        outputs (`int`, *optional*, defaults to 1):
            Numbers that each scale says of a response, `m`.
        reader (`str`, *optional*, defaults to `"linear"`):
            What makes a preference of them: `"linear"`, `"mixture"`, `"skew"` or `"gaussian"`.
        reader_weights (`str`, *optional*, defaults to `"shared"`):
            Whose the reader's weights are: `"shared"` by all, read from the `"prompt"`, or of an `"annotator"`.
        annotators (`list[str]`, *optional*):
            Names of the annotators that have weights of their own.
        attributes (`list[str]`, *optional*):
            Names of the outputs, where labels of attributes taught them.
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
    outputs: int = 1
    reader: str = "linear"
    reader_weights: str = "shared"
    annotators: list[str] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_scales(self.scales, self.context, self.centre_by_prompt)
        check_reader(self)

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


def check_reader(settings: Any) -> None:
    """Refuse, with a `ValueError`, a reader that does not exist or does not fit the settings or configuration."""
    outputs, reader, by = settings.outputs, settings.reader, settings.reader_weights
    for name, value, known in (("reader", reader, READERS), ("reader_weights", by, WEIGHTS)):
        if value not in known:
            raise ValueError(f"`{name}` is '{value}'. Use one of {list(known)}.")
    given = f"`outputs={outputs}`, `reader='{reader}'` and `reader_weights='{by}'` do not go together"
    wrong = {
        "one output is read by a linear reader with shared weights": outputs == 1 and (reader, by) != NO_READER,
        "a Gaussian reader has two outputs, mean and log variance": reader == "gaussian" and outputs != 2,
        "a skew reader has two outputs a plane": reader == "skew" and outputs % 2 == 1,
        "a Gaussian reader has no weights": reader == "gaussian" and by != "shared",
        "a skew reader has no weights of annotators": reader == "skew" and by == "annotator",
        "`context='head'` is for one output": outputs > 1 and settings.context == "head",
    }
    for what, found in wrong.items():
        if found:
            raise ValueError(f"{given}: {what}. Change one of them.")


class HeadOutput(NamedTuple):
    """What the head reads from the hidden states. `R` rows of `W` tokens; with `m` outputs `(R, W, m)`."""

    token: Tensor  # (R, W) float32
    segment: Tensor  # (R, W) float32
    response: Tensor  # (R, W) float32
    gate: Tensor  # (R, S) float32, a row sums to 1
    weights: Tensor | None = None  # (R, K) float32, of the reader
    taste: Tensor | None = None  # (R, K) float32, what an annotator's own parameters add to those of all


class MultiScaleHead(nn.Linear):
    """
    The linear map of a stock reward model, with those of the other scales and the gate beside it.

    `weight` is the response head, under the key `score.weight` that stock classes read. The others are parameters of
    this one module rather than modules of their own: PEFT saves a module called `score` whole, and neither LoRA's
    `all-linear` nor 4-bit quantisation can take hold of a part of it.

    With several outputs the response scale's maps are `response`, and `weight` is made of them when it is saved: the
    one map by which the weights that all share, or the prior of annotators, read a response.

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

    reader: Tensor
    reader_prompt: Tensor
    reader_annotator: Tensor

    def __init__(self, hidden_size: int, settings: MultiScaleSettings) -> None:
        super().__init__(hidden_size, 1, bias=False)
        self.scales = list(settings.scales)
        for scale in ("token", "segment"):
            if scale in self.scales:
                self.register_parameter(scale, nn.Parameter(torch.empty(settings.outputs, hidden_size)))
        if settings.context == "gate":
            self.gate = nn.Parameter(torch.empty(len(self.scales), hidden_size))
            self.gate_bias = nn.Parameter(torch.empty(len(self.scales)))
        if settings.context == "head":
            self.context_prompt = nn.Parameter(torch.empty(CONTEXT_RANK, hidden_size))
            self.context_response = nn.Parameter(torch.empty(CONTEXT_RANK, hidden_size))
        self.settings = settings
        if settings.outputs > 1:
            self._add_reader(hidden_size)
        self.context = settings.context
        self.unit_prompt = settings.unit_prompt
        self.centre_by_prompt = settings.centre_by_prompt
        self.coarse_gradient = 1.0

    def _add_reader(self, hidden_size: int) -> None:
        outputs, by = self.settings.outputs, self.settings.reader_weights
        count = number_of_weights(self.settings.reader, outputs)
        shapes: dict[str, tuple[int, ...]] = {}
        if "response" in self.scales:
            shapes["response"] = (outputs, hidden_size)
        if count:
            shapes["reader"] = (count,)
        if by != "shared":
            rows = {"prompt": (count, hidden_size), "annotator": (len(self.settings.annotators), count)}
            shapes[f"reader_{by}"] = rows[by]
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.weight.requires_grad_(False)  # it takes no part in the score

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
            unused = name == "weight" and ("response" not in self.scales or self.settings.outputs > 1)
            if name == "reader" and self.settings.reader == "linear" and self.settings.reader_weights != "prompt":
                init.constant_(parameter, 1 / self.settings.outputs)
            elif unused or name in ("gate", "gate_bias", "context_response") or name.startswith("reader"):
                init.zeros_(parameter)
            elif name != "weight":
                init.normal_(parameter, mean=0.0, std=std)

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        context_index: Tensor,
        token_index: Tensor | None = None,
        annotator: Tensor | None = None,
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
            annotator (`torch.Tensor` of shape `(R,)`, int64, *optional*):
                Each row's annotator, as a place in `settings.annotators`; -1 for one that is not known. By default
                none is.

        Returns:
            [`HeadOutput`]
        """
        outputs = self.settings.outputs

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
            places = hidden.shape[:2] if token_index is None else token_index.shape
            zeros = hidden.new_zeros(places if outputs == 1 else (*places, outputs))
            coarse = scale_gradient(hidden, self.coarse_gradient)
            finest = min(self.scales, key=SCALES.index)
            seen = {scale: hidden if scale == finest else coarse for scale in self.scales}

            def score(scale: str) -> Tensor:
                if scale not in self.scales:
                    return zeros
                own = "response" if outputs > 1 and scale == "response" else PARAMETERS[scale]
                read = F.linear(seen[scale], getattr(self, own).float())
                return by_row(read[..., 0] if outputs == 1 else read)

            response = score("response")
            if self.context == "head":
                if finest != "response":
                    prompt = scale_gradient(prompt, self.coarse_gradient)
                by_prompt = F.linear(prompt, self.context_prompt.float())[:, None]
                weights = by_row(F.linear(seen["response"], self.context_response.float()))
                response = response + (weights * by_prompt).sum(-1)
            if self.centre_by_prompt:
                response = response - response[rows, context_index][:, None]
            if self.context == "gate" or outputs > 1:
                # The prompt's state is large in a pretrained decoder and much the same for all prompts. As it is, a
                # few optimizer steps of it saturate the softmax.
                prompt = F.normalize(prompt, dim=-1) if self.unit_prompt else prompt
            if self.context == "gate":
                gate = F.linear(prompt, self.gate.float(), self.gate_bias.float()).softmax(-1)
            else:
                gate = hidden.new_full((len(rows), len(self.scales)), 1 / len(self.scales))
            return HeadOutput(
                token=score("token"),
                segment=score("segment"),
                response=response,
                gate=gate,
                **self._reader_weights(prompt, annotator),
            )

    def weights_of_annotators(self, annotator: Tensor) -> Tensor:
        """Weights `(R, K)` of a reader with `reader_weights="annotator"`, of places `(R,)` as [`forward`] has them."""
        weights: Tensor = self._reader_weights(annotator[:, None], annotator)["weights"]
        return weights

    def _reader_weights(self, prompt: Tensor, annotator: Tensor | None) -> dict[str, Tensor]:
        """Weights of the reader for rows, from their prompts `(R, H)` and annotators; none where it has none."""
        settings, found = self.settings, dict[str, Tensor]()
        if settings.outputs == 1 or not number_of_weights(settings.reader, settings.outputs):
            return found
        values = self.reader.float().expand(len(prompt), -1)
        if settings.reader_weights == "prompt":
            values = values + F.linear(prompt, self.reader_prompt.float())
        elif settings.reader_weights == "annotator" and annotator is not None:
            own = self.reader_annotator.float()[annotator.clamp(min=0)]
            found["taste"] = own * (annotator >= 0)[:, None]
            values = values + found["taste"]
        return {"weights": weights_of(values, settings.reader, settings.reader_weights), **found}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        fold_outputs(destination, self.settings, prefix)

    def read_states(self, states: Tensor, annotator: Tensor | None = None) -> tuple[Tensor, HeadOutput]:
        """
        Read the few states of a response that linear maps need: a mean of scores is the score of the mean state.

        Args:
            states (`torch.Tensor` of shape `(R, 4, H)`, any dtype):
                Of every response the vectors in the order of [`STATES`].
            annotator (`torch.Tensor` of shape `(R,)`, int64, *optional*):
                As in [`forward`].

        Returns:
            `tuple[torch.Tensor, HeadOutput]`: Scores of the scales, `(R, S)` float32, or their outputs `(R, S, m)`
            where there are several, and what else the head reads.
        """
        at_prompt = torch.full((len(states),), STATES.index("prompt"), device=states.device)
        read: HeadOutput = self(states, at_prompt, annotator=annotator)
        scores = {scale: getattr(read, scale)[:, STATES.index(scale)] for scale in self.scales}
        return torch.stack([scores[scale] for scale in self.scales], dim=1), read


def fold_outputs(state: dict[str, Tensor], settings: MultiScaleSettings, prefix: str) -> None:
    """
    Make `weight` of a head with several outputs what stock classes shall read, in tensors by names with a prefix.

    That is the response scale as the weights read it that all share. A head without one stays as it is.
    """
    maps, values = state.get(f"{prefix}response"), state.get(f"{prefix}reader")
    if maps is None or maps.numel() == 0:  # as of weights that ZeRO-3 has in pieces
        return
    weights = None if values is None else weights_of(values.detach(), settings.reader, settings.reader_weights)
    own = score_weights(weights, settings.reader, settings.outputs)
    state[f"{prefix}weight"] = own.to(maps)[None] @ maps.detach()
