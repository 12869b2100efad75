"""Reward models, their tokenizers and adapters, from folders and the hub."""

import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from peft import PeftModel, load_peft_weights
from torch import nn
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file
from transformers.utils.logging import get_logger

from ..data.probes import NotTried, why_no_decoder
from ..training.command_line import check_path
from .adapters import (
    adapter_folder,
    check_reachable,
    fit_vocabulary,
    load_adapter_config,
    load_adapter_settings,
    restore_adapter_dtype,
)
from .fingerprints import read_json, weight_files
from .head import MultiScaleSettings
from .layers import cut_layers
from .model import USE_A_DECODER, check_adapter, reward_model_class
from .record import ADAPTER_PREFIX, ADAPTER_SETTINGS_NAME, HEAD_PREFIX, RECORD_NAME, finder, read_record
from .saved_checks import (
    agreed,
    check_base,
    check_base_is_there,
    check_saved,
    check_tokenizer_files,
    check_vocabulary,
    refuse_missing,
)

logger = get_logger(__name__)
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
        check_path(str(name_or_path), "reward model")
        hub = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs and key != "trust_remote_code"}
        folder = adapter_folder(name_or_path, **hub)
        if folder is not None:
            return _load_adapter(name_or_path, folder, settings, kwargs)
        is_folder = os.path.isdir(name_or_path)
        if is_folder:  # before Transformers reads what may be damaged
            written = read_json(os.path.join(name_or_path, "config.json"))
            if "multi_scale" in written or os.path.isfile(os.path.join(name_or_path, RECORD_NAME)):
                check_saved(name_or_path, finder(name_or_path), adapter=False)
        shared = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
        config: Any = AutoConfig.from_pretrained(name_or_path, num_labels=1, **shared)
        saved = getattr(config, "multi_scale", None)
        if settings is None and saved is None:
            raise ValueError(
                f"'{name_or_path}' is not a multi-scale reward model: its config.json has no `multi_scale`. Train it "
                "with MultiScaleRewardTrainer (`prefscale reward`), which begins its head; a new one without training "
                "takes `settings=MultiScaleSettings()`."
            )
        if saved is None:
            assert settings is not None, "else it has been refused"
            model, missing = _load_whole(name_or_path, config, settings, kwargs)
            refuse_if_missing(name_or_path, {key for key in missing if not key.startswith(HEAD_PREFIX)})
            return model
        settings = agreed(name_or_path, settings, MultiScaleSettings.from_saved(saved))
        model, missing = _load_whole(name_or_path, config, settings, kwargs)
        if not is_folder:  # its files have been fetched now, and its record is with them
            fetch_record(name_or_path, **hub)
            check_saved(name_or_path, finder(name_or_path, **_place(hub)), adapter=False)
        refuse_if_missing(name_or_path, missing)
        return model


def _load_adapter(
    name_or_path: str, folder: str, settings: MultiScaleSettings | None, kwargs: dict[str, Any]
) -> PeftModel:
    """An adapter and the base that it was trained on, which runs no code of its own."""
    record = check_saved(name_or_path, finder(folder), adapter=True)
    adapter_config = load_adapter_config(folder)
    check_adapter(adapter_config)
    if settings is None or os.path.isfile(os.path.join(folder, ADAPTER_SETTINGS_NAME)):
        settings = agreed(name_or_path, settings, load_adapter_settings(folder))
    base, base_mark = adapter_config.base_model_name_or_path, None if record is None else record.base
    check_base_is_there(name_or_path, base, base_mark)
    of_base = options_of_base(name_or_path, folder, kwargs)
    if base_mark is not None and base_mark.commit is not None and base_mark.name == base:
        of_base.setdefault("revision", base_mark.commit)
    hub = {key: of_base[key] for key in HUB_OPTIONS if key in of_base}
    of_hub = {key: value for key, value in hub.items() if key != "trust_remote_code"}
    check_reachable(base, f"base of the adapter '{name_or_path}'", **of_hub)
    find = finder(base, **_place(hub))
    if base_mark is not None and os.path.isdir(base):
        check_base(name_or_path, base_mark, base, find)
    if os.path.isdir(base):
        read_json(os.path.join(base, "config.json"))  # one line where it is damaged
    config: Any = AutoConfig.from_pretrained(base, num_labels=1, **hub)
    model, missing = _load_whole(base, config, settings, of_base, of_adapter=True)
    if base_mark is not None and not os.path.isdir(base):  # its files have been fetched now
        check_base(name_or_path, base_mark, base, find)
    refuse_if_missing(base, {key for key in missing if not key.startswith(HEAD_PREFIX)})
    own = {key.removeprefix(ADAPTER_PREFIX) for key in load_peft_weights(folder, device="cpu")}
    refuse_if_missing(name_or_path, missing - own)
    fit_vocabulary(model, folder)
    # PEFT would freeze it, but a whole model can be trained on when it is loaded, and so can this.
    return restore_adapter_dtype(PeftModel.from_pretrained(model, folder, is_trainable=True), folder)


def _load_whole(
    name_or_path: str,
    config: Any,
    settings: MultiScaleSettings,
    kwargs: dict[str, Any],
    of_adapter: bool = False,
) -> tuple[Any, set[str]]:
    """A model whose head is read or begun, and the names of the weights that no file has."""
    begins = getattr(config, "multi_scale", None) is None and not of_adapter
    config.multi_scale = asdict(settings)
    layers = config.get_text_config().num_hidden_layers
    cut_layers(config, settings.num_hidden_layers)
    is_cut = settings.num_hidden_layers not in (None, layers)
    config_class: Any = type(config)
    load: Any = reward_model_class(config_class).from_pretrained
    if os.path.isdir(name_or_path) and not weight_files(finder(name_or_path)):
        raise ValueError(f"'{name_or_path}' has no file of weights, such as model.safetensors. Copy it again, whole.")
    if begins:
        # Whose report would name the weights of all layers that are left out
        with without_load_report() if is_cut else nullcontext():
            model, info = load(name_or_path, config=config, output_loading_info=True, **kwargs)
        if is_cut:
            kept = f"its first {settings.num_hidden_layers} layers of {layers}"
            logger.warning(f"A reward model is begun from '{name_or_path}': {kept}, and a new head.")
    else:
        # What is missing is refused here, or read from the adapter: a report of new weights would be wrong
        options = {**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True}
        with without_load_report():
            model, info = load(name_or_path, config=config, **options)
        refuse_mismatched(name_or_path, info["mismatched_keys"])
    hub = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
    model.loaded_files = weight_files(finder(name_or_path, **_place(hub)))
    check_decoder(model, name_or_path)
    keep_gradients_in_4bit(model)
    for parameter in model.score.parameters():
        # Transformers keeps in float32 what it reads, not what a checkpoint lacks: a new head, or an adapter's.
        if not hasattr(parameter, "ds_id"):  # in pieces under ZeRO-3, whose dtype is DeepSpeed's to settle
            parameter.data = parameter.data.float()
    if "response" not in model.settings.scales or model.settings.outputs > 1:
        # It takes no part in the score. Frozen here, since loading makes every parameter trainable.
        model.score.weight.requires_grad_(False)
    return model, set(info["missing_keys"])


@contextmanager
def without_load_report() -> Iterator[None]:
    """Within it Transformers does not report weights that a checkpoint lacks, or has beside the model's."""
    log = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    log.addFilter(is_other)
    try:
        yield
    finally:
        log.removeFilter(is_other)


def refuse_if_missing(name: str, missing: set[str]) -> None:
    """Refuse a model of which weights would be random."""
    if missing:
        refuse_missing(name, sorted(missing, key=lambda key: (not key.startswith(HEAD_PREFIX), key)))


def refuse_mismatched(name: str, mismatched: Collection[Any]) -> None:
    """
    Refuse weights whose shapes are not those of their configuration.

    Args:
        name (`str`):
            Folder or hub name.
        mismatched (`Collection`):
            Name, shape in the files and shape in the model of each.

    Raises:
        `ValueError`: Naming the first.
    """
    if mismatched:
        key, found, wanted = min(mismatched, key=lambda entry: entry[0])
        raise ValueError(
            f"The weights of '{name}' do not fit its config.json: {key} has the shape {list(found)}, and "
            f"{list(wanted)} is asked for. Restore config.json, or copy the folder again."
        )


def options_of_base(name: str, folder: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """
    Options for the base of an adapter, out of those that are given for the adapter.

    Args:
        name (`str`):
            Folder or hub name of the adapter.
        folder (`str`):
            Its folder, into which one of the hub has been fetched, in the revision that is given.
        kwargs (`dict`):
            Options of `from_pretrained`.

    Returns:
        `dict[str, Any]`: Those that trust no code, since an adapter may name any model as its base, and without
        `revision` where that is the adapter's.
    """
    if kwargs.get("trust_remote_code"):
        logger.warning_once(
            f"`trust_remote_code` is not passed on to the base that the adapter '{name}' names: code of a base that "
            "somebody else has chosen is not run."
        )
    of_base = {key: value for key, value in kwargs.items() if key != "revision" or folder == name}
    return {**of_base, "trust_remote_code": False}


def fetch_record(name_or_path: str, **hub: Any) -> None:
    """Fetch the record of a model of the hub, where it has one."""
    cached_file(name_or_path, RECORD_NAME, _raise_exceptions_for_missing_entries=False, **hub)


def _place(hub: dict[str, Any]) -> dict[str, Any]:
    return {key: hub[key] for key in ("revision", "cache_dir") if key in hub}


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
    if not os.path.isdir(name_or_path):
        fetch_record(name_or_path, **of_hub)
    find = finder(name_or_path, **_place(of_hub))
    record = read_record(find)
    own = cached_file(name_or_path, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False, **of_hub)
    if own is not None:
        read_json(own)  # one line where it is damaged
    if record is not None:
        # Before what is damaged is read; of the hub's tokenizers the next lines fetch what there is
        for name in record.tokenizer or {}:
            cached_file(name_or_path, name, _raise_exceptions_for_missing_entries=False, **of_hub)
        check_tokenizer_files(name_or_path, record, find)
    if folder is None or own is not None:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **kwargs)
    else:
        of_base = options_of_base(name_or_path, folder, kwargs)
        tokenizer = AutoTokenizer.from_pretrained(load_adapter_config(folder).base_model_name_or_path, **of_base)
    if record is not None:
        check_vocabulary(name_or_path, record, tokenizer)
    return tokenizer


def check_place(device: str | torch.device | None, dtype: Any) -> None:
    """
    Refuse what is no device, or no type of weights.

    Args:
        device (`str` or `torch.device`, *optional*):
            Where a model shall go.
        dtype (`str` or `torch.dtype`, *optional*):
            Type of its weights.

    Raises:
        `ValueError`: Naming what was given.
    """
    try:
        torch.device(device or "cpu")
    except RuntimeError:
        raise ValueError(f"`device` is {device!r}. Give 'cpu', or 'cuda' where there is a GPU.") from None
    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"`dtype` is {dtype!r}. Give 'float32', 'bfloat16', 'float16' or 'auto'.")


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
        name_or_path = load_adapter_config(folder).base_model_name_or_path
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


def loading_options(given: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is given for a model that scores: bfloat16 on a GPU where nobody has said otherwise."""
    says_dtype = bool(given.keys() & {"dtype", "torch_dtype"})
    return given if says_dtype or device.type != "cuda" else {"dtype": torch.bfloat16, **given}


def is_partitioned(model: Any) -> bool:
    """Whether the weights were partitioned as they were loaded, which Transformers does under ZeRO-3."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())
