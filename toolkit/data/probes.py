"""What a decoder allows, proven on a small copy of it: few layers of each kind, narrow, with short windows.

A list of architectures would go stale with every release of Transformers and say nothing of custom code; what a
configuration says of itself is not what its code does. So the copy is run, on the CPU, once for every configuration.
"""

import copy
import inspect
import re
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .positions import positions_from
from .rotary import rope_parameters, settle_frequencies

# Tokens of the probe: two responses to one prompt, longer than the windows of a copy, in all fewer than its places
PROMPT, RESPONSES, WINDOW, PLACES, VOCABULARY = 9, (17, 24), 8, 64, 64
MOST_LAYERS, EXPERTS = 16, 32
MOST_WEIGHTS = 60_000_000  # beyond them a copy is not small
TOLERANCE = 1e-4  # of hidden states, relative to their spread
WINDOW_NAME = re.compile(r"window|chunk|local|stride|block|sparse|index_topk")
NOT_A_WINDOW = re.compile(r"layer|expert|head|theta|rope|freq|token|_id|type|factor|chunk_size_feed_forward")
OTHER_WIDTHS = ("word_embed_proj_dim", "attention_hidden_size", "mamba_headdim")  # in proportion to the width
WIDTH_NAME = re.compile(r"intermediate|ffn|n_inner")

Found = TypeVar("Found")


class NotTried(str):
    """Why a probe could not be run, in place of what it would have found."""


def small_config(config: Any) -> Any:
    """
    Configuration of a small copy of a decoder, with all its structure: kinds of layers, attention, positions, experts.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of the decoder, or of a model around it.

    Returns:
        [`~transformers.PreTrainedConfig`]: Its head size is that of the decoder, since rotary positions depend on it;
        its windows have 8 tokens.

    Raises:
        `ValueError`: If it has more kinds of layers than a small copy can.
    """
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    for name in config.sub_configs:
        if getattr(config, name, None) is not None:
            setattr(config, name, small_config(getattr(config, name)))
    if getattr(config, "num_hidden_layers", None) is not None:
        _fewer_layers(config)
    if getattr(config, "num_attention_heads", None) and getattr(config, "hidden_size", None):
        _fewer_heads(config)
    _fewer_experts(config)
    for name, value in list(vars(config).items()):
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if WINDOW_NAME.search(name) and not NOT_A_WINDOW.search(name):
            setattr(config, name, min(value, WINDOW))
        elif WIDTH_NAME.search(name):
            setattr(config, name, min(value, 32))
        elif "vocab_size" in name:
            setattr(config, name, VOCABULARY)
    for i, name in enumerate(("pad_token_id", "bos_token_id", "eos_token_id")):
        if getattr(config, name, None) is not None:
            setattr(config, name, i)
    # Rows of the probe stay within the places, and within where rotary frequencies do not depend on their length
    for name in ("max_position_embeddings", "original_max_position_embeddings"):
        if getattr(config, name, None) is not None:
            setattr(config, name, PLACES)
        for parameters in rope_parameters(config):
            if parameters.get(name) is not None:
                parameters[name] = PLACES
    return config


def _fewer_layers(config: Any) -> None:
    """The first layers, and two of every other kind that a list with an entry a layer tells of."""
    count = config.num_hidden_layers
    lists = {k: v for k, v in vars(config).items() if isinstance(v, list | tuple) and len(v) == count and count > 1}
    kinds = [repr(kind) for kind in zip(*lists.values(), strict=True)] or [""] * count
    of_kinds = [i for i, kind in enumerate(kinds) if kinds[:i].count(kind) < 2] if lists else []
    kept = sorted({*range(min(count, 4 if lists else 8)), *of_kinds})
    if len(kept) > MOST_LAYERS:
        raise ValueError(f"it has {len(set(kinds))} kinds of layers")
    config.num_hidden_layers = len(kept)
    for name, values in list(vars(config).items()):
        if name in lists:
            setattr(config, name, type(values)(values[i] for i in kept))
        elif isinstance(values, list) and "token" not in name and all(i in range(count) for i in values):
            setattr(config, name, [kept.index(i) for i in values if i in kept])  # places of layers


def _fewer_heads(config: Any) -> None:
    heads, width = config.num_attention_heads, config.hidden_size
    of_head = width // heads if width % heads == 0 else getattr(config, "head_dim", None)
    if of_head is None:
        return
    fewer = 2
    while fewer * of_head % 4:  # matrix products of experts go by 16 bytes
        fewer *= 2
    if heads <= fewer:
        return
    for name in ("num_key_value_heads", "num_kv_heads"):
        if getattr(config, name, None) is not None:
            setattr(config, name, fewer if getattr(config, name) == heads else 1)
    config.num_attention_heads, config.hidden_size = fewer, of_head * fewer
    for name in OTHER_WIDTHS:
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, getattr(config, name) * config.hidden_size // width)


def _fewer_experts(config: Any) -> None:
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        grouped = (getattr(config, "n_group", None) or 1) > 1
        if isinstance(getattr(config, name, None), int) and not grouped:
            setattr(config, name, min(getattr(config, name), EXPERTS))


def small_copy(model_class: Any, config: Any) -> Any:
    """
    A small decoder with random weights, in float32 on the CPU. No random state but its own is touched.

    Args:
        model_class (`type`):
            Class of the decoder.
        config ([`~transformers.PreTrainedConfig`]):
            From [`small_config`].

    Returns:
        [`~transformers.PreTrainedModel`]: In evaluation mode.

    Raises:
        `ValueError`: If it is not small.
    """
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in model_class(copy.deepcopy(config)).parameters())
    if weights > MOST_WEIGHTS:
        raise ValueError(f"a copy with few and narrow layers still has {weights:,} weights")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(0)  # that of the CPU alone
        model = model_class(copy.deepcopy(config)).float().eval()
        randomize(model)
    return model


def randomize(model: nn.Module) -> None:
    """
    Give a new model weights wide enough that what its attention sees shows in what comes out.

    Args:
        model (`torch.nn.Module`):
            Changed in place; what is 0 or 1 in a new model, as in norms, no longer is.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=parameter.size(-1) ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))


def on_small_copy(probe: Callable[[Any], Found]) -> Callable[[Any], Found | NotTried]:
    """
    Run a probe on a small copy of a model, once for each configuration that the copy can have.

    Args:
        probe (`Callable`):
            Takes the copy.

    Returns:
        `Callable`: Takes the model; returns what the probe does, or why there is no copy or the probe fails on it.
    """
    found: dict[tuple[Any, ...], Found | NotTried] = {}
    # Of each model, so that its configuration is copied once
    latest: WeakKeyDictionary[PreTrainedModel, tuple[str | None, Found | NotTried]] = WeakKeyDictionary()

    @wraps(probe)
    def probed(model: Any) -> Found | NotTried:
        implementation = model.config.get_text_config()._attn_implementation
        if model in latest and latest[model][0] == implementation:
            return latest[model][1]
        try:
            config = small_config(model.config)
            # Others want a GPU or a compiler, and see the same
            config._attn_implementation = implementation if implementation in ("eager", "sdpa") else "eager"
            key = (type(model), config._attn_implementation, config.to_json_string(use_diff=False))
            if key not in found:
                autocast = torch.autocast("cpu", enabled=False)  # which may be on around the caller
                with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad(), autocast:
                    found[key] = probe(small_copy(type(model), config))
            result = found[key]
        except Exception as error:  # whatever the code of an architecture raises: nothing is proven then
            first = next(iter(str(error).splitlines()), "")
            result = NotTried(f"it could not be tried on a small copy ({type(error).__name__}: {first})")
        latest[model] = implementation, result
        return result

    return probed


def probe_rows() -> list[list[int]]:
    """
    Rows to try a copy on.

    Returns:
        `list[list[int]]`: One prompt of `PROMPT` tokens with each of its two responses, of unlike length.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = (PROMPT, *RESPONSES)
    prompt, *responses = (torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in sizes)
    return [prompt + response for response in responses]


def hidden_states(model: Any, input_ids: Tensor, **inputs: Any) -> Tensor:
    """
    What a decoder computes.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Backbone.
        input_ids (`torch.Tensor` of shape `(B, T)`, int64):
            Token ids.
        inputs:
            Further ones.

    Returns:
        `torch.Tensor` of shape `(B, T, H)`.
    """
    return model(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state  # type: ignore[no-any-return]


def gap(found: Tensor, expected: Tensor) -> float:
    """
    How far two tensors are apart.

    Args:
        found (`torch.Tensor`):
            One.
        expected (`torch.Tensor`):
            The other, of the same shape.

    Returns:
        `float`: Largest difference, relative to the spread of what is expected; infinite where a number is missing.
    """
    worst = ((found - expected).abs().max() / expected.std()).item()
    return worst if worst == worst else float("inf")


@on_small_copy
def _depends_on_others(model: Any) -> str:
    """What a small copy of a decoder shows against a score that depends on the row alone; or nothing."""
    settle_frequencies(model)
    short, long = probe_rows()
    whole = hidden_states(model, torch.tensor([long]))[0]
    ahead = gap(hidden_states(model, torch.tensor([long[:-5]]))[0], whole[:-5])
    if ahead > TOLERANCE:
        return f"a token's hidden state depends on those after it (by {ahead:.1g} of their spread)"
    mask = torch.ones(2, len(long), dtype=torch.long)
    mask[0, len(short) :] = 0
    inputs = {"attention_mask": mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = positions_from(mask)
    ids = torch.tensor([short + long[len(short) :], long])  # on padding ids as good as any
    beside = gap(hidden_states(model, ids, **inputs)[0, : len(short)], hidden_states(model, torch.tensor([short]))[0])
    if beside > TOLERANCE:
        return f"a row's hidden states depend on the padding after it (by {beside:.1g} of their spread)"
    return ""


def why_no_decoder(model: PreTrainedModel) -> str | None:
    """
    What shows that the hidden states of a model, and so its scores, depend on more than the row up to each token.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Backbone, or a model around it.

    Returns:
        `str`, or `None` where those of a small copy of it do not; a [`NotTried`] where there is no such copy.
    """
    return _depends_on_others(model.base_model) or None
