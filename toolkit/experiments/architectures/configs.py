"""Configurations of tiny models: one of every architecture, and of what architectures do in more ways than one."""

from collections.abc import Iterator
from typing import Any

from transformers import AutoConfig, AutoModelForSequenceClassification

from ...data.probes import small_config
from ...data.rotary import KINDS, rope_parameters

LIMIT = 16

# By architecture, what its own defaults leave out
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "falcon": {"alibi": {"alibi": True}, "new decoder": {"new_decoder_architecture": True, "num_kv_heads": 8}},
    "gpt_neo": {"global": {"attention_types": [[["global"], 24]]}},
    "gpt_neox": {"serial": {"use_parallel_residual": False}},
    "llama": {
        "dynamic RoPE": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
        "multi-query": {"num_key_value_heads": 1},
    },
    "mistral": {"no window": {"sliding_window": None}},
    "opt": {"projected": {"word_embed_proj_dim": 384}, "norm after": {"do_layer_norm_before": False}},
    "phi3": {
        "window": {"sliding_window": 2047},
        "LongRoPE": {
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 48,
                "long_factor": [4.0] * 48,
            },
        },
    },
    "qwen2": {"window": {"use_sliding_window": True, "max_window_layers": 2}},
}
# What every checkpoint says and the defaults of the configuration do not
SAID: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}},
    },
    "deepseek_v2": {"num_experts_per_tok": 6},
    "esm": {"vocab_size": 33},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
}


def architectures() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """
    What to try.

    Yields:
        `tuple[str, str, dict[str, Any]]`: Model type with the variant in brackets, model type, and the options of its
        configuration.
    """
    mapping: Any = AutoModelForSequenceClassification._model_mapping
    for kind in sorted({config_class.model_type for config_class in mapping}):
        for variant, options in {"": {}, **VARIANTS.get(kind, {})}.items():
            yield (f"{kind} ({variant})" if variant else kind), kind, options


def full_config(kind: str, **options: Any) -> Any:
    """
    Configuration as a checkpoint has it.

    Args:
        kind (`str`):
            Model type.
        options:
            Of its configuration; defaults elsewhere.

    Returns:
        [`~transformers.PreTrainedConfig`]
    """
    return AutoConfig.for_model(kind, **SAID.get(kind, {}), **options)


def tiny_config(kind: str, **options: Any) -> Any:
    """
    Configuration of a tiny model.

    Args:
        kind (`str`):
            Model type.
        options:
            Of its configuration; defaults elsewhere.

    Returns:
        [`~transformers.PreTrainedConfig`]
    """
    config = small_config(full_config(kind, **options))
    for parameters in rope_parameters(config):  # rows of the trial go beyond where frequencies are fixed
        if parameters["rope_type"] in KINDS:
            config.max_position_embeddings = LIMIT
        if "original_max_position_embeddings" in parameters:
            parameters["original_max_position_embeddings"] = config.original_max_position_embeddings = LIMIT
    text = config.get_text_config()
    text.pad_token_id, text.bos_token_id, text.eos_token_id = 0, 1, 2
    config.num_labels = 1
    return config
