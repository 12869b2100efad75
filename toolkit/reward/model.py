"""The multi-scale reward model: any decoder that `AutoModelForSequenceClassification` knows, with a head that scores
tokens, segments and the response, mixed by a gate that reads the prompt."""

import inspect
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from ..data.kernels import in_one_row, is_flex
from ..data.packing import branch_mask, padded_right, why_masked
from ..data.positions import last_kept, positions_from, response_mask, segment_ends
from ..data.rotary import settle_frequencies
from .head import HeadOutput, MultiScaleHead, MultiScaleSettings
from .layers import hidden_states
from .output import MultiScaleRewardOutput
from .readers import score_weights
from .reading import read_outputs, read_scores, response_starts, with_open_end
from .record import leave_without_record, write_record
from .scales import mix

USE_A_DECODER = "Use a causal model such as Qwen3, Llama, GPT-NeoX or GPT-2."


class _Run(NamedTuple):
    """What a decoder has made of `R` rows in `B` rows of `T` tokens."""

    hidden: list[Tensor]  # (B, T, H), after the last layer or after each that was asked for
    input_ids: Tensor  # (R, W)
    attention_mask: Tensor  # (R, W)
    response_start: Tensor  # (R,)
    token_index: Tensor | None  # (R, W), where the rows' tokens are among the B * T; none where R rows are the B


class MultiScaleMixin:
    """
    Stands before an architecture's own classification class and scores at several scales.

    The backbone, its loading, saving, sharding and quantisation stay Transformers'; only the head and what is read
    from it are ours.
    """

    config: Any
    settings: MultiScaleSettings
    base_model_prefix: str
    push_to_hub: Any
    _keep_in_fp32_modules_strict = frozenset({"score"})  # which also keeps it out of 4-bit and 8-bit
    _boundary_cache: Tensor | None = None
    loaded_files: dict[str, Path] | None = None  # the files of weights that it was loaded from

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]  # the architecture's class comes after this one
        stock: Any = getattr(self, "score", None)
        if not isinstance(stock, nn.Linear):
            raise ValueError(
                f"{type(self).__name__} has no linear head called `score`, so it is not a decoder with a stock reward "
                f"head. {USE_A_DECODER}"
            )
        self.settings = MultiScaleSettings.from_saved(config.multi_scale)
        # As wide as the stock head, which some decoders project their hidden states for
        self.score = MultiScaleHead(stock.in_features, self.settings)
        settle_frequencies(self)  # type: ignore[arg-type]
        # The stock class has initialised all its modules; the new head goes through the same door.
        self.post_init()  # type: ignore[attr-defined]

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[misc]
        if isinstance(module, MultiScaleHead):
            module.initialize(
                getattr(self.config.get_text_config(), "initializer_range", 0.02)
            )  # Transformers' default

    def save_pretrained(
        self,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: Any = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save as any model of Transformers, and beside it what loading and `prefscale verify` compare it with."""
        of_hub = {key: kwargs.pop(key) for key in ("repo_id", "commit_message", "create_pr") if key in kwargs}
        nothing = state_dict is not None and not state_dict  # as where DeepSpeed writes the weights itself
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)  # type: ignore[misc]
        if is_main_process and nothing:
            leave_without_record(save_directory, "no weights were given")
        elif is_main_process:
            write_record(self, save_directory)
        if push_to_hub and is_main_process:  # with the record
            self.push_to_hub(of_hub.pop("repo_id", Path(save_directory).name), **of_hub, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        response_start: Tensor | None = None,
        position_ids: Tensor | None = None,
        branch_ids: Tensor | None = None,
        token_index: Tensor | None = None,
        states: Tensor | None = None,
        annotator: Tensor | None = None,
        mixed: Tensor | None = None,
        **kwargs: Any,
    ) -> MultiScaleRewardOutput:
        """
        Score a batch of prompts with their responses.

        Args:
            input_ids (`torch.Tensor` of shape `(B, T)`, int64):
                Prompt and response of each row, padded on either side.
            attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*):
                1 on real tokens; where it is not given every token is real.
            response_start (`torch.Tensor` of shape `(B,)`, int64, *optional*):
                Index of each row's first response token, padding included. Where it is not given, the response starts
                after the last response marker that was saved with the model.
            position_ids (`torch.Tensor` of shape `(B, T)`, int64, *optional*):
                Positions; counted from each row's first real token where they are not given.
            branch_ids (`torch.Tensor` of shape `(B, T)`, int64, *optional*):
                With `token_index` and `position_ids`, for rows packed by [`~toolkit.data.packing.pack_rows`]: the
                output is that of the `R` rows by themselves, and `response_start` counts in them.
            token_index (`torch.Tensor` of shape `(R, W)`, int64, *optional*):
                Where the tokens of each row are among the `B * T`.
            states (`torch.Tensor` of shape `(R, 4, H)`, *optional*):
                In place of all of these, what [`response_states`] has read of the rows before. The output then has
                `logits`, `scale_scores` and `gate` alone, and what a reader needs.
            annotator (`torch.Tensor` of shape `(R,)`, int64, *optional*):
                Each row's annotator, as a place in `settings.annotators`, whose weights the reader then has; -1 for
                one that is not known.
            mixed (`torch.Tensor` of shape `(m,)`, float, *optional*):
                With several outputs: by what they add up to the score, in place of the reader's weights.

        Returns:
            [`MultiScaleRewardOutput`]

        Raises:
            `ValueError`: If the response cannot be found.
        """
        if states is not None:
            return self._read_states(*self.score.read_states(states, annotator), mixed)
        assert input_ids is not None, "tokens, or states that were read before"
        rows = self._run(input_ids, attention_mask, response_start, position_ids, branch_ids, token_index, **kwargs)
        return self._read(rows, annotator, mixed)

    def response_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        response_start: Tensor | None = None,
        position_ids: Tensor | None = None,
        branch_ids: Tensor | None = None,
        token_index: Tensor | None = None,
        layers: Sequence[int] = (),
        **kwargs: Any,
    ) -> Tensor:
        """
        All that the head reads of a batch, as the decoder alone decides it.

        Args:
            input_ids, attention_mask, response_start, position_ids, branch_ids, token_index:
                As in [`forward`].
            layers (`Sequence[int]`, *optional*):
                Numbers of layers, from 1. Each is read as a decoder that ends there would be.

        Returns:
            `torch.Tensor` of shape `(R, L, 4, H)`, float32: Of each of `L` layers, or the last alone, the vectors of
            [`~toolkit.reward.head.STATES`].

        Raises:
            `ValueError`: If the response cannot be found.
        """
        rows = self._run(
            input_ids, attention_mask, response_start, position_ids, branch_ids, token_index, layers, **kwargs
        )
        response, boundary = self._layout(rows)
        last = last_kept(response)
        ends = with_open_end(segment_ends(boundary, response), boundary, last)
        index, row = rows.token_index, torch.arange(len(last), device=last.device)
        context, read = (rows.response_start - 1).clamp(min=0), []
        for hidden in rows.hidden:
            own = (hidden if index is None else hidden.flatten(0, 1)[index.clamp(min=0)]).float()
            means = [(own * keep[..., None]).sum(1) / keep.sum(1, keepdim=True) for keep in (response, ends)]
            read.append(torch.stack([own[row, context], *means, own[row, last]], dim=1))
        return torch.stack(read, dim=1)

    def _run(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        response_start: Tensor | None = None,
        position_ids: Tensor | None = None,
        branch_ids: Tensor | None = None,
        token_index: Tensor | None = None,
        layers: Sequence[int] = (),
        **kwargs: Any,
    ) -> "_Run":
        """The decoder's pass, as in `forward` and `response_states`."""
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        backbone = getattr(self, self.base_model_prefix)
        if layers:
            kwargs["output_hidden_states"] = True
        if token_index is not None:
            assert branch_ids is not None, "they come with `token_index`"
            assert response_start is not None, "of rows that share a beginning the caller knows it"
            assert position_ids is not None, "they come with `token_index`, too"
            hidden = _packed_hidden(backbone, input_ids, position_ids, branch_ids, layers, **kwargs)
            input_ids = input_ids.flatten()[token_index.clamp(min=0)]
            return _Run(hidden, input_ids, token_index >= 0, response_start, token_index)
        if response_start is None:
            response_start = response_starts(self.settings, input_ids, attention_mask)
        mask: Tensor | None = attention_mask
        if position_ids is None and why_masked(backbone) is None and padded_right(attention_mask):
            if is_flex(backbone):  # rows with nothing to share
                positions, branch_ids = positions_from(attention_mask), attention_mask.long() - 1
                hidden = _packed_hidden(backbone, input_ids, positions, branch_ids, layers, **kwargs)
                return _Run(hidden, input_ids, attention_mask, response_start, None)
            mask = None  # nor positions: where these begin again in padding, Transformers makes a mask of them
        elif position_ids is None and "position_ids" in inspect.signature(backbone.forward).parameters:
            position_ids = positions_from(attention_mask)
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        output = backbone(input_ids, attention_mask=mask, **kwargs)
        return _Run(_hidden(backbone, output, layers), input_ids, attention_mask, response_start, None)

    def _layout(self, rows: "_Run") -> tuple[Tensor, Tensor]:
        """Tokens of each response, and those of them that end a segment or stand behind its end."""
        response = response_mask(rows.response_start, rows.attention_mask)
        return response, torch.isin(rows.input_ids, self._boundary_ids(response.device)) & response

    def _read(self, rows: "_Run", annotator: Tensor | None, mixed: Tensor | None) -> MultiScaleRewardOutput:
        response, boundary = self._layout(rows)
        context = (rows.response_start - 1).clamp(min=0)
        head = self.score(rows.hidden[0], context, rows.token_index, annotator)
        if self.settings.outputs == 1:
            return read_scores(head, response, boundary, context, self.settings.scales)
        return read_outputs(head, response, boundary, context, self.settings, self._shares(head, mixed))

    def _read_states(self, scores: Tensor, head: HeadOutput, mixed: Tensor | None) -> MultiScaleRewardOutput:
        if self.settings.outputs == 1:
            return MultiScaleRewardOutput(mix(scores, head.gate)[:, None], scores, head.gate)
        totals = (scores * self._shares(head, mixed)[:, None]).sum(-1)
        several = {"outputs": scores, "weights": head.weights, "taste": head.taste}
        return MultiScaleRewardOutput(mix(totals, head.gate)[:, None], totals, head.gate, **several)

    def _shares(self, head: HeadOutput, mixed: Tensor | None) -> Tensor:
        """By what the outputs of each row add up to its score, `(R, m)`."""
        own = score_weights(head.weights, self.settings.reader, self.settings.outputs) if mixed is None else mixed
        return own.to(head.gate).expand(len(head.gate), -1)

    def set_layout(
        self,
        response_marker_ids: list[int],
        segment_boundary_ids: list[int],
        conversational: bool | None = None,
    ) -> None:
        """
        Remember, for saving too, how the response and its segments are found in token ids.

        Args:
            response_marker_ids (`list[int]`):
                Ids that stand before every assistant's turn; empty for plain text.
            segment_boundary_ids (`list[int]`):
                Ids that end a segment.
            conversational (`bool`, *optional*):
                Whether the model is trained on conversations; `None` where that is not known.
        """
        self.settings.response_marker_ids = list(response_marker_ids)
        self.settings.segment_boundary_ids = list(segment_boundary_ids)
        self.settings.conversational = conversational
        self.config.multi_scale = asdict(self.settings)
        self._boundary_cache = None

    def set_unit_prompt(self, unit_prompt: bool) -> None:
        """
        Remember, for saving too, how the gate reads the prompt.

        Args:
            unit_prompt (`bool`):
                Whether it reads the prompt's state scaled to length 1.
        """
        self.settings.unit_prompt = unit_prompt
        self.config.multi_scale = asdict(self.settings)
        for module in self.modules():  # type: ignore[attr-defined]
            if isinstance(module, MultiScaleHead):  # of which PEFT has a second one
                module.unit_prompt = unit_prompt

    def _boundary_ids(self, device: torch.device) -> Tensor:
        # Not a buffer: loading by way of the meta device leaves a buffer that the checkpoint lacks undefined.
        if self._boundary_cache is None or self._boundary_cache.device != device:
            self._boundary_cache = torch.tensor(self.settings.segment_boundary_ids, dtype=torch.long, device=device)
        return self._boundary_cache


def _packed_hidden(
    backbone: Any, input_ids: Tensor, position_ids: Tensor, branch_ids: Tensor, layers: Sequence[int], **kwargs: Any
) -> list[Tensor]:
    shape, mask, flex = input_ids.shape, branch_mask(backbone, branch_ids), is_flex(backbone)
    if flex:
        input_ids, position_ids = in_one_row(input_ids, 0), in_one_row(position_ids, 0)
    found = _hidden(backbone, backbone(input_ids, attention_mask=mask, position_ids=position_ids, **kwargs), layers)
    return [each[0, : shape.numel()].view(*shape, -1) for each in found] if flex else found


def _hidden(backbone: Any, output: Any, layers: Sequence[int]) -> list[Tensor]:
    return hidden_states(backbone, output, layers) if layers else [output.last_hidden_state]


@cache
def reward_model_class(config_class: Any) -> Any:
    """
    The multi-scale reward model of an architecture, whose configuration must have `multi_scale`.

    Args:
        config_class (`type`):
            Class of its configuration.

    Returns:
        `type`: A subclass of the architecture's own sequence classification class.

    Raises:
        `ValueError`: If Transformers has no such class.
    """
    try:
        stock: Any = AutoModelForSequenceClassification._model_mapping[config_class]
    except KeyError:
        raise ValueError(f"Transformers has no sequence classification class for {config_class.__name__}.") from None
    # It bears the stock name, since Transformers writes the class's name into `config.json`, and serving engines
    # that go by that name should find the class that they know.
    return type(stock.__name__, (MultiScaleMixin, stock), {"__module__": __name__, "__doc__": MultiScaleMixin.__doc__})


def check_adapter(config: Any) -> None:
    """
    Refuse adapters that run tokens of their own before those of a row.

    Args:
        config ([`~peft.PeftConfig`]):
            Configuration of the adapter.

    Raises:
        `ValueError`: Naming the kind of adapter.
    """
    if config.is_prompt_learning:
        raise ValueError(
            f"The adapter is of the kind {config.peft_type.value}, which puts tokens of its own before every row, so "
            "that responses no longer start where they are read. Use LoRA: `LoraConfig`, or `--use_peft`."
        )


def base_reward_model(model: PreTrainedModel | PeftModel) -> Any:
    """
    The multi-scale reward model itself, with or without an adapter around it.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A reward model, or an adapter on one.

    Returns:
        [`~transformers.PreTrainedModel`]

    Raises:
        `ValueError`: If it is another kind of model, or an adapter puts tokens of its own before a row.
    """
    if isinstance(model, PeftModel):
        for config in model.peft_config.values():
            check_adapter(config)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, MultiScaleMixin):
        raise ValueError(
            f"{type(base).__name__} is not a multi-scale reward model. Load it with AutoModelForMultiScaleReward. "
            "Where a policy is tuned, a stock reward model goes into `reward_funcs` as it is."
        )
    return base
