"""Reward models, their tokenizers and adapters, from folders and the hub."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel, load_peft_weights
from torch import nn
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file
from transformers.utils.logging import get_logger
from transformers.utils.peft_utils import find_adapter_config_file

from ..data.probes import NotTried, why_no_decoder
from .head import MultiScaleSettings
from .model import USE_A_DECODER, check_adapter, reward_model_class

logger = get_logger(__name__)
ADAPTER_SETTINGS_NAME = "multi_scale.json"
# Which file of a name is meant, and how it is fetched; the same for models, configurations and tokenizers
HUB_OPTIONS = ("revision", "trust_remote_code", "token", "cache_dir")


class AutoModelForMultiScaleReward:
    """Loads a multi-scale reward model, or begins one from a causal-LM or classification checkpoint."""

    @staticmethod
    def from_pretrained(name_or_path: str, settings: MultiScaleSettings | None = None, **kwargs: Any) -> Any:
        """
        Load a checkpoint with the architecture's own class and the multi-scale head.

        Args:
            name_or_path (`str`):
                Hub name or folder of a model, or of a LoRA adapter that `MultiScaleRewardTrainer` saved.
            settings ([`MultiScaleSettings`], *optional*):
                Scales and context of a new reward model. Not needed, and taken from the checkpoint, for one that was
                trained here.
            kwargs (`dict`, *optional*):
                What `AutoModelForSequenceClassification.from_pretrained` takes: `dtype`, `attn_implementation`,
                `quantization_config`, `device_map`, `revision`, …

        Returns:
            [`~transformers.PreTrainedModel`], or [`~peft.PeftModel`] for an adapter.

        Raises:
            `ValueError`: If the checkpoint is not a multi-scale reward model and no `settings` are given, it is no
            decoder, its architecture has no stock reward head, or an adapter puts tokens of its own before a row.
        """
        shared = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
        folder = adapter_folder(name_or_path, **{key: shared[key] for key in shared if key != "trust_remote_code"})
        if folder is not None:
            base = PeftConfig.from_pretrained(folder).base_model_name_or_path
            if settings is None or Path(folder, ADAPTER_SETTINGS_NAME).is_file():
                settings = _as_trained(settings, load_adapter_settings(folder))
            fetched = folder != name_or_path  # in the revision that is given, which then is not the base's
            of_base = {key: value for key, value in kwargs.items() if not (fetched and key == "revision")}
            check_adapter(PeftConfig.from_pretrained(folder))
            model: Any = AutoModelForMultiScaleReward.from_pretrained(base, settings, **of_base)
            fit_vocabulary(model, folder)
            # PEFT would freeze it, but a whole model can be trained on when it is loaded, and so can this.
            return restore_adapter_dtype(PeftModel.from_pretrained(model, folder, is_trainable=True), folder)

        config: Any = AutoConfig.from_pretrained(name_or_path, num_labels=1, **shared)
        saved = getattr(config, "multi_scale", None)
        if settings is None and saved is None:
            raise ValueError(
                f"'{name_or_path}' is not a multi-scale reward model: its config.json has no `multi_scale`. Train it "
                "with MultiScaleRewardTrainer first, or pass `settings=MultiScaleSettings()` to begin a new head."
            )
        if settings is not None:
            settings = settings if saved is None else _as_trained(settings, MultiScaleSettings.from_saved(saved))
            config.multi_scale = asdict(settings)
            cut_layers(config, settings.num_hidden_layers)
        config_class: Any = type(config)
        model = reward_model_class(config_class).from_pretrained(name_or_path, config=config, **kwargs)
        check_decoder(model, name_or_path)
        keep_gradients_in_4bit(model)
        for parameter in model.score.parameters():
            # Transformers keeps in float32 what it reads, not what a checkpoint lacks: a new head, or an adapter's.
            if not hasattr(parameter, "ds_id"):  # in pieces under ZeRO-3, whose dtype is DeepSpeed's to settle
                parameter.data = parameter.data.float()
        if "response" not in model.settings.scales:
            # It takes no part in the score and stays 0. Frozen here, since loading makes every parameter trainable.
            model.score.weight.requires_grad_(False)
        return model


def load_tokenizer(name_or_path: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """
    Tokenizer of a model, or the one beside an adapter, which may have another template than its base's.

    Args:
        name_or_path (`str`):
            Hub name or folder of a model or an adapter.
        kwargs (`dict`, *optional*):
            `revision`, `trust_remote_code`, `token` and `cache_dir`; other options of `from_pretrained` are left out.

    Returns:
        [`~transformers.PreTrainedTokenizerBase`]: That of the base, where an adapter has none beside it.
    """
    kwargs = {key: kwargs[key] for key in HUB_OPTIONS if kwargs.get(key) is not None}
    of_hub = {key: value for key, value in kwargs.items() if key != "trust_remote_code"}
    folder = adapter_folder(name_or_path, **of_hub)
    own = cached_file(name_or_path, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False, **of_hub)
    if folder is None or own is not None:
        return AutoTokenizer.from_pretrained(name_or_path, **kwargs)
    if folder != name_or_path:
        kwargs.pop("revision", None)  # which is the adapter's
    return AutoTokenizer.from_pretrained(PeftConfig.from_pretrained(folder).base_model_name_or_path, **kwargs)


def _as_trained(settings: MultiScaleSettings | None, saved: MultiScaleSettings) -> MultiScaleSettings:
    """What is asked for, but for how a trained head reads the decoder, which another training does not change."""
    if settings is None:
        return saved
    layers = settings.num_hidden_layers or saved.num_hidden_layers
    return replace(settings, unit_prompt=saved.unit_prompt, num_hidden_layers=layers)


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
        raise ValueError(f"`num_hidden_layers` is {number}, and the decoder has {of_text.num_hidden_layers} layers.")
    of_text.num_hidden_layers = number
    if getattr(of_text, "layer_types", None):
        of_text.layer_types = of_text.layer_types[:number]


def check_decoder(model: Any, name: str) -> None:
    """
    Refuse encoders, whose value of a response's beginning would depend on what follows, and what mixes rows.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Reward model.
        name (`str`):
            Its name or folder, for the message.

    Raises:
        `ValueError`: If a small copy of the model is no decoder.
    """
    reason = why_no_decoder(model)
    if isinstance(reason, NotTried):
        logger.warning(f"Nothing shows that '{name}' is a decoder, as a reward model must be: {reason}.")
    elif reason is not None:
        raise ValueError(f"'{name}' ({type(model).__name__}) cannot be a reward model here: {reason}. {USE_A_DECODER}")


def fit_vocabulary(model: Any, folder: str) -> None:
    """
    Give a base as many embeddings as an adapter has that was trained with tokens which the base has not.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Base, whose embeddings are resized in place. The adapter's file has the values of all of them.
        folder (`str`):
            Folder of the adapter.
    """
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    rows = [
        weight.size(0)
        for key, weight in load_peft_weights(folder, device="cpu").items()
        if key.startswith(f"base_model.model.{name}.") and key.endswith("weight") and "lora_" not in key
    ]
    if rows and rows[0] != embeddings.num_embeddings:
        model.resize_token_embeddings(rows[0], mean_resizing=False)


def generation_stops(name_or_path: str, **kwargs: Any) -> list[int]:
    """
    Ids at which a model's generation stops, which some models have beside their tokenizer's EOS.

    Args:
        name_or_path (`str`):
            Hub name or folder of a model or an adapter, whose base is meant.
        kwargs (`dict`, *optional*):
            `revision`, `token` and `cache_dir`; other options of `from_pretrained` are left out.

    Returns:
        `list[int]`: None where it has no `generation_config.json`.
    """
    kwargs = {key: kwargs[key] for key in HUB_OPTIONS if kwargs.get(key) is not None and key != "trust_remote_code"}
    folder = adapter_folder(name_or_path, **kwargs)
    if folder is not None:
        kwargs.pop("revision", None)  # which is the adapter's
        name_or_path = PeftConfig.from_pretrained(folder).base_model_name_or_path
    try:
        stops: Any = GenerationConfig.from_pretrained(name_or_path, **kwargs).eos_token_id
    except OSError:
        return []
    return stops if isinstance(stops, list) else [] if stops is None else [stops]


def keep_gradients_in_4bit(model: nn.Module) -> None:
    """
    Stop bitsandbytes from packing 4-bit weights anew at their first evaluation, which it does for good on CPUs with
    bfloat16 instructions: no gradient passes through them afterwards, and their scales are rounded.

    Args:
        model (`torch.nn.Module`):
            A model with or without such weights.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def adapter_folder(name_or_path: str, **kwargs: Any) -> str | None:
    """
    Folder of an adapter.

    Args:
        name_or_path (`str`):
            Hub name, whose files are fetched, or folder.
        kwargs:
            `revision`, `token` and `cache_dir` for the hub.

    Returns:
        `str`: `None` for what is no adapter.
    """
    if find_adapter_config_file(name_or_path, **kwargs) is None:
        return None
    if os.path.isdir(name_or_path):
        return name_or_path
    # Not the checkpoints that may lie beside it
    return str(snapshot_download(name_or_path, allow_patterns=["adapter_*", ADAPTER_SETTINGS_NAME], **kwargs))


def restore_adapter_dtype(model: PeftModel, folder: str, adapter_name: str = "default") -> PeftModel:
    """
    Give an adapter the dtype in which it was saved, and so trained. PEFT loads those in bfloat16, which TRL trains
    beside 4-bit weights, as float32, and scores then differ in the third digit.

    Args:
        model ([`~peft.PeftModel`]):
            Model with the adapter, loaded from `folder`.
        folder (`str`):
            Folder of the adapter.
        adapter_name (`str`, *optional*, defaults to `"default"`):
            Its name in the model.

    Returns:
        [`~peft.PeftModel`]: `model`.
    """
    saved = load_peft_weights(folder, device="cpu")
    for name, parameter in model.named_parameters():
        key = name.replace(f".{adapter_name}", "")  # files leave out the adapter's name
        if key in saved:
            parameter.data = parameter.data.to(saved[key].dtype)
    return model


def save_adapter_settings(settings: MultiScaleSettings, folder: str) -> None:
    """
    Write the settings beside a LoRA adapter, whose own files have no room for them.

    Args:
        settings ([`MultiScaleSettings`]):
            Settings of the model that the adapter belongs to.
        folder (`str`):
            Folder of the adapter. A `config.json` there would make stock loaders take it for a whole model.
    """
    Path(folder, ADAPTER_SETTINGS_NAME).write_text(json.dumps(asdict(settings), indent=2) + "\n")


def load_adapter_settings(folder: str) -> MultiScaleSettings:
    """
    Read the settings beside a LoRA adapter.

    Args:
        folder (`str`):
            Folder of the adapter.

    Returns:
        [`MultiScaleSettings`]

    Raises:
        `ValueError`: If there are none.
    """
    path = Path(folder, ADAPTER_SETTINGS_NAME)
    if not path.is_file():
        raise ValueError(
            f"The adapter in '{folder}' has no {ADAPTER_SETTINGS_NAME} beside it. MultiScaleRewardTrainer writes that "
            "file when it saves; for an adapter saved otherwise call `save_adapter_settings` or pass `settings`."
        )
    return MultiScaleSettings.from_saved(json.loads(path.read_text()))
