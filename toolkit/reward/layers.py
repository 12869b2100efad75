"""The layer after which a decoder is read: it ends there, or all that is wanted is read in one pass."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn


def cut_layers(config: Any, number: int | None) -> None:
    """
    Let a decoder end after some of its layers.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Its configuration, which is changed.
        number (`int` or `None`):
            Layers that are kept; `None` for all.

    Raises:
        `ValueError`: If it has not as many.
    """
    of_text = config.get_text_config()
    if number is None or number == of_text.num_hidden_layers:
        return
    if not 1 <= number <= of_text.num_hidden_layers:
        found = f"`num_hidden_layers` is {number}, and the decoder has {of_text.num_hidden_layers} layers"
        raise ValueError(f"{found}. Set at most as many, or leave it out.")
    of_text.num_hidden_layers = number
    if getattr(of_text, "layer_types", None):
        of_text.layer_types = of_text.layer_types[:number]


def keep_layers(model: Any, number: int) -> None:
    """
    Let a reward model that is loaded end after some of its layers, as if it had been loaded so.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Reward model, which is changed.
        number (`int`):
            Layers that are kept.

    Raises:
        `ValueError`: If it has not as many, or its layers are not found.
    """
    count = model.config.get_text_config().num_hidden_layers
    if number == count:
        return
    backbone = getattr(model, model.base_model_prefix)
    lists = [module for module in backbone.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if len(lists) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(lists)} lists of {count} layers, so it is not known what to leave out. "
            "Set `num_hidden_layers` in place of `layers`."
        )
    cut_layers(model.config, number)
    del lists[0][number:]
    model.settings.num_hidden_layers = number
    model.config.multi_scale = asdict(model.settings)


def final_norm(backbone: Any) -> Any:
    """The norm behind a decoder's last layer. Raises `ValueError` where it is not found by its usual names."""
    decoder = getattr(backbone, "decoder", backbone)
    for name in ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "norm_f"):
        if (module := getattr(decoder, name, None)) is not None:
            return module
    raise ValueError(
        f"{type(backbone).__name__} has no final norm under a usual name, so no layer but its last reads."
    )


def hidden_states(backbone: Any, output: Any, layers: Sequence[int]) -> list[Tensor]:
    """
    States after some layers, each as a decoder that ends there gives it: behind the final norm.

    Args:
        backbone ([`~transformers.PreTrainedModel`]):
            Decoder without a head.
        output ([`~transformers.utils.ModelOutput`]):
            What it gave with `output_hidden_states=True`.
        layers (`Sequence[int]`):
            Numbers of layers, from 1.

    Returns:
        `list[torch.Tensor]`: Of each layer `(B, T, H)`.
    """
    states, norm = output.hidden_states, final_norm(backbone)
    # The last has been through the norm
    return [states[k] if k == len(states) - 1 else norm(states[k]) for k in layers]
