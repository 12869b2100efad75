"""What lies beside the weights of an adapter, and how its weights come back as they were saved."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import peft
from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel, PeftType, load_peft_weights
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from ..training.run_record import write_json
from .fingerprints import read_json
from .head import MultiScaleSettings
from .record import ADAPTER_SETTINGS_NAME, RECORD_NAME


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

    Raises:
        `OSError`: As in [`check_reachable`].
    """
    if check_reachable(name_or_path, "model", **kwargs) is None:
        return None
    if os.path.isdir(name_or_path):
        return name_or_path
    # Not the checkpoints that may lie beside it
    return str(
        snapshot_download(name_or_path, allow_patterns=["adapter_*", ADAPTER_SETTINGS_NAME, RECORD_NAME], **kwargs)
    )


def check_reachable(name_or_path: str, what: str, **kwargs: Any) -> str | None:
    """
    Refuse a name of the hub whose configuration can be neither fetched nor found in the cache.

    Args:
        name_or_path (`str`):
            Hub name or folder of a model or an adapter.
        what (`str`):
            What it was to be, for the message.
        kwargs:
            `revision`, `token` and `cache_dir` for the hub.

    Returns:
        `str`: File of an adapter's configuration; `None` for what is no adapter.

    Raises:
        `OSError`: Naming it, which Transformers does not do where it reaches no hub.
    """
    try:
        found: str | None = find_adapter_config_file(name_or_path, **kwargs)
        if found is None and not os.path.isdir(name_or_path):
            cached_file(name_or_path, CONFIG_NAME, **kwargs)  # None where a repository has none, which is said later
        return found
    except OSError as error:
        if os.path.isdir(name_or_path):
            raise
        told = str(error).strip().splitlines()[0]
        raise OSError(
            f"There is no folder '{name_or_path}' ({what}) here, and the hub did not give it: {told}"
        ) from error


def load_adapter_config(folder: str) -> Any:
    """
    Configuration of an adapter, as PEFT reads it.

    Args:
        folder (`str`):
            Folder of an adapter.

    Returns:
        [`~peft.PeftConfig`]

    Raises:
        `ValueError`: If its file is damaged, or of a kind that PEFT does not know.
    """
    path = os.path.join(folder, ADAPTER_CONFIG_NAME)
    kind = read_json(path).get("peft_type")
    if kind not in PeftType.__members__:
        raise ValueError(
            f"'{path}' is of the kind {kind!r}, which PEFT {peft.__version__} does not know. Restore the file as it "
            "was saved, or raise PEFT's version."
        )
    return PeftConfig.from_pretrained(folder)


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
    write_json(Path(folder, ADAPTER_SETTINGS_NAME), asdict(settings), indent=2)


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
    return MultiScaleSettings.from_saved(read_json(path))
