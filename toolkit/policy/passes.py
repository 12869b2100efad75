"""Passes of a policy over responses, several of which answer the same prompt: its tokens go through the model once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer

from ..data.kernels import in_one_row, is_flex, on_cpu
from ..data.packing import (
    IMPLEMENTATIONS,
    branch_mask,
    group_by_prefix,
    groups_to_share,
    kinds_of_attention,
    pack_rows,
    why_masked,
)
from ..data.positions import positions_from
from ..data.probes import TOLERANCE, gap, on_small_copy, probe_rows


class PolicyBatch(NamedTuple):
    """Inputs of a pass over `B` responses of at most `W` tokens, packed into rows, and where to read its output."""

    inputs: dict[str, Tensor]  # of the model, with `shift_labels` (1, N) of the N hidden states that are read
    read: Tensor  # (N,) int64, where these are in the flattened rows
    # (B, W) int64, which of them predicts each token; -1 on padding
    index: Tensor  # type: ignore[assignment]


def policy_batch(
    model: PreTrainedModel, prompts: list[list[int]], responses: list[list[int]], pad_token_id: int, share: bool
) -> PolicyBatch:
    """
    Lay out prompts and responses as `[prompt but its last token | branch | branch | …]`.

    A branch is the prompt's last token with the response but its last: its hidden states predict the response, the
    first token as well, and the last is never read.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Policy, without wrappers; its configuration decides on the mask's form.
        prompts (`list[list[int]]`):
            Prompt of each response; not empty.
        responses (`list[list[int]]`):
            Token ids of each response.
        pad_token_id (`int`):
            Id on padding.
        share (`bool`):
            Whether responses to one prompt share its tokens; without it each has a row of its own.

    Returns:
        [`PolicyBatch`]
    """
    rows = [prompt + response[:-1] for prompt, response in zip(prompts, responses, strict=True)]
    shared = [len(prompt) - 1 for prompt in prompts]
    groups = groups_to_share(model, rows, shared, len(rows)) if share else [[i] for i in range(len(rows))]
    order = [i for group in groups for i in group]
    packed = pack_rows([[rows[i] for i in group] for group in groups], [shared[g[0]] for g in groups], pad_token_id)
    labels = torch.full((packed.input_ids.numel(),), -100)
    index = torch.full((len(rows), max(1, *map(len, responses))), -1)
    for row, i in enumerate(order):
        length = len(responses[i])
        index[i, :length] = packed.token_index[row, shared[i] : shared[i] + length]
        labels[index[i, :length]] = torch.tensor(responses[i], dtype=torch.long)
    known = labels != -100
    known[0] |= not known.any()  # a pass reads something
    read, place = known.nonzero()[:, 0], known.cumsum(0) - 1
    index = torch.where(index < 0, -1, place[index.clamp(min=0)])
    inputs = {"input_ids": packed.input_ids, "shift_labels": labels[read][None]}
    flex = is_flex(model) and why_masked(model) is None
    if len(groups) < len(rows) or flex:
        mask = branch_mask(model, packed.branch_ids.to(model.device))
        inputs |= {"attention_mask": mask, "position_ids": packed.position_ids}
    elif why_masked(model) is not None:
        inputs["attention_mask"] = packed.attention_mask
    if flex:
        paddings = {"input_ids": pad_token_id, "position_ids": 0}
        inputs |= {name: in_one_row(inputs[name], padding) for name, padding in paddings.items()}
    inputs = {key: value.to(model.device) for key, value in inputs.items()}
    return PolicyBatch(inputs, read.to(model.device), index.to(model.device))


def prompts_together(batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """
    The same batches with their rows sorted by prompt, so that responses to one prompt share a pass.

    Args:
        batches (`list[dict[str, torch.Tensor]]`):
            Batches of equal size and width, with `prompt_ids` and `prompt_mask`.

    Returns:
        `list[dict[str, torch.Tensor]]`: As many batches, the shorter prompts first.
    """
    whole = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    # The mask before the ids: padding comes first in a row, and a short prompt has the most zeros there.
    prompts = torch.cat([whole["prompt_mask"], whole["prompt_ids"]], dim=1)
    order = prompts.unique(dim=0, return_inverse=True)[1].argsort(stable=True)
    columns = [value[order].chunk(len(batches)) for value in whole.values()]
    return [dict(zip(whole, parts, strict=True)) for parts in zip(*columns, strict=True)]


def unpadded(input_ids: Tensor, attention_mask: Tensor, response_width: int) -> tuple[list[Any], list[Any]]:
    """
    Token ids of prompts and responses, without their padding.

    Args:
        input_ids (`torch.Tensor` of shape `(B, T)`, int64):
            Prompts padded on the left, then responses padded on the right.
        attention_mask (`torch.Tensor` of shape `(B, T)`):
            1 on real tokens.
        response_width (`int`):
            Columns of the responses.

    Returns:
        `tuple[list[list[int]], list[list[int]]]`: Prompts and responses.
    """
    sizes = [input_ids.size(1) - response_width, response_width]
    ids, mask = (tensor.split(sizes, dim=1) for tensor in on_cpu((input_ids, attention_mask.bool())))
    prompts, responses = (
        [row[keep].tolist() for row, keep in zip(*side, strict=True)] for side in zip(ids, mask, strict=True)
    )
    return prompts, responses


def decoder_of(model: nn.Module) -> PreTrainedModel:
    """
    The causal language model inside the wrappers of processes and adapters.

    Args:
        model ([`~torch.nn.Module`]):
            Policy or reference, wrapped or not.

    Returns:
        [`~transformers.PreTrainedModel`]
    """
    base = extract_model_from_parallel(model, keep_torch_compile=False)
    return cast(PreTrainedModel, base.get_base_model() if isinstance(base, PeftModel) else base)


def response_log_probs(
    model: nn.Module,
    prompts: list[list[int]],
    responses: list[list[int]],
    *,
    width: int,
    batch_size: int,
    pad_token_id: int,
    share: bool,
) -> tuple[Tensor, Tensor | None]:
    """
    Log-probability of every token of the responses, and the entropy of what it was drawn from.

    Args:
        model ([`~torch.nn.Module`]):
            Policy as it is wrapped for training, or its reference, with TRL's fused head
            ([`trl.trainer.utils.add_fused_lm_head`]).
        prompts (`list[list[int]]` of length `B`):
            Prompt of each response; not empty.
        responses (`list[list[int]]` of length `B`):
            Token ids of each response, at most `width`.
        width (`int`):
            Width of the result.
        batch_size (`int`):
            Responses of a forward pass. The number of passes follows from it alone, so all processes make as many.
        pad_token_id (`int`):
            Id on padding.
        share (`bool`):
            Whether responses to one prompt share its tokens in a pass.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]` of shape `(B, width)`, float32: Log-probabilities and entropies in nats, 0
        after a response; `None` for entropies that the fused head does not give.
    """
    whole = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    order = [i for group in group_by_prefix(whole, list(map(len, prompts)), len(whole)) for i in group]
    decoder, found = decoder_of(model), []
    # Routers' own loss, which nothing here reads, is made of masks that are not those of shared prompts
    routers = getattr(decoder.config.get_text_config(), "output_router_logits", False)
    without = {"output_router_logits": False} if routers else {}
    for first in range(0, len(order), batch_size):
        chunk = order[first : first + batch_size]
        batch = policy_batch(decoder, [prompts[i] for i in chunk], [responses[i] for i in chunk], pad_token_id, share)
        with _reading(decoder, batch.read):
            output = model(**batch.inputs, **without, fused_lm_head=True)
        found.append([_by_response(values, batch.index, width) for values in (output.log_probs, output.entropy)])
    place = torch.tensor(order).argsort()
    logps, entropies = (None if parts[0] is None else torch.cat(parts)[place] for parts in zip(*found, strict=True))
    return logps, entropies  # type: ignore[return-value]  # the head always gives log-probabilities


@contextmanager
def _reading(decoder: PreTrainedModel, places: Tensor) -> Iterator[None]:
    """Give the head only the hidden states at `places` of the flattened rows, as one row."""
    # TRL's fused head leaves out what has no label where Triton runs, and elsewhere scores the prompts as well

    def pick(backbone: nn.Module, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.flatten(0, 1).index_select(0, places)[None]
        return output

    hook = decoder.base_model.register_forward_hook(pick)
    try:
        yield
    finally:
        hook.remove()


def _by_response(values: Tensor | None, index: Tensor, width: int) -> Tensor | None:
    if values is None:
        return None
    read = values.flatten()[index.clamp(min=0)].float() * (index >= 0)
    return F.pad(read, (0, width - index.size(1)))


class _OneTypeLayer(StaticLayer):
    """A layer that takes keys and values of two types, as they come under autocast: rotary keys stay in float32."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return super().update(key_states.to(self.dtype), value_states.to(self.dtype), *args, **kwargs)


def prefill_once(model: PreTrainedModel) -> None:
    """
    Let `generate` run each distinct prompt of a batch through the model once, and give its cache to all its rows.

    Transformers runs every row, also those that repeat a prompt for another sample, and then copies the whole cache
    for every token that it appends. This one has its full size from the beginning.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Policy, without wrappers, that [`why_not_prefilled`] allows it for. Its `generate` is replaced on this
            instance. Calls other than TRL's own, of a batch padded on the left with one sequence a row and a
            `generation_config` that has `max_new_tokens`, are Transformers'.
    """
    generate: Callable[..., Any] = model.generate  # type: ignore[assignment]
    config = model.config.get_text_config()

    def fits(generation_config: GenerationConfig) -> bool:
        sequences = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        asked = (generation_config.use_cache, model.generation_config.use_cache)  # what stands in the first counts
        cached = next((each for each in asked if each is not None), True)
        plain = sequences == 1 and not generation_config.cache_implementation
        return bool(generation_config.max_new_tokens and cached and plain)

    @wraps(generate)
    def generate_from_copies(*args: Any, **kwargs: Any) -> Any:
        own = kwargs.keys() == {"input_ids", "attention_mask", "generation_config"} and not args
        # `generate` runs the last token itself, so that one token alone leaves nothing to share
        if not own or not fits(kwargs["generation_config"]) or kwargs["input_ids"].size(1) == 1:
            return generate(*args, **kwargs)
        input_ids, attention_mask = kwargs["input_ids"], kwargs["attention_mask"]
        length, generation_config = input_ids.size(1), kwargs["generation_config"]
        rows = torch.cat([input_ids, attention_mask], dim=1)
        distinct, place = rows.unique(dim=0, return_inverse=True)
        ids, mask = distinct.chunk(2, dim=1)
        prefilled = DynamicCache(config=config)
        model(
            input_ids=ids[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=positions_from(mask)[:, :-1],
            past_key_values=prefilled,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = StaticCache(config=config, max_cache_len=length + generation_config.max_new_tokens)
        empty: list[Any] = cache.layers
        cache.layers = [_OneTypeLayer(layer.max_cache_len) for layer in empty]
        filled: list[Any] = prefilled.layers
        for i, layer in enumerate(filled):
            cache.update(layer.keys[place], layer.values[place], i)
            layer.keys = layer.values = None  # not held beside their copies
        return generate(**kwargs, past_key_values=cache)

    model.generate = generate_from_copies  # type: ignore[assignment]


@on_small_copy
def _generates_otherwise(model: Any) -> str:
    """What a small copy of a policy shows against caches that are filled once for several rows; or nothing."""
    # Of unlike length, and each for two rows; the windows of a copy slide on while it generates
    long, short = probe_rows()[0][:14], probe_rows()[1][:10]
    width = len(long)
    ids = torch.tensor([prompt for prompt in (long, [short[0]] * (width - len(short)) + short) for _ in range(2)])
    mask = torch.ones_like(ids)
    mask[2:, : width - len(short)] = 0
    model.generation_config.eos_token_id = None  # so that no row ends early
    # A trainer has turned it off in the policy's configuration, where it is of passes and not of generation
    model.generation_config.use_cache = True
    config = GenerationConfig(
        max_new_tokens=10, do_sample=False, pad_token_id=0, disable_compile=True, return_dict_in_generate=True,
        output_logits=True,
    )  # fmt: skip
    inputs = {"input_ids": ids, "attention_mask": mask, "generation_config": config}
    plain = torch.stack(model.generate(**inputs).logits)
    prefill_once(model)
    worst = gap(torch.stack(model.generate(**inputs).logits), plain)
    if worst <= TOLERANCE:
        return ""
    return f"what a small copy of it generates from a cache that was filled once is other ({worst:.1g} of the spread)"


def why_not_prefilled(model: PreTrainedModel) -> str | None:
    """
    What about a policy keeps [`prefill_once`] from generating what `generate` would.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Policy, without wrappers. The small copy that it is tried on is of its class and configuration.

    Returns:
        `str`, or `None` where a small copy of it generates the same.
    """
    if getattr(model, "_is_stateful", False):
        return "it has recurrent layers, whose state is no cache of keys and values"
    if (implementation := model.config.get_text_config()._attn_implementation) not in IMPLEMENTATIONS:
        return f"its attention implementation '{implementation}' is not tried with a cache of full size"
    reason = _generates_otherwise(model)
    return f"{reason}{kinds_of_attention(model.config.get_text_config())}" if reason else None
