"""The file beside a saved reward model that says what was saved, by which loading sees whether it still is."""

import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers.utils.hub import cached_file
from transformers.utils.logging import get_logger

from ..training.run_record import write_json
from .fingerprints import (
    ADAPTER_WEIGHTS,
    WHOLE_WEIGHTS,
    FileMark,
    mark_of,
    read_json,
    tensor_shapes,
    tokenizer_marks,
    weight_files,
)
from .head import MultiScaleHead, MultiScaleSettings
from .probe_scores import ProbeScores, embeddings_of, probe, why_not_probed

logger = get_logger(__name__)

RECORD_NAME = "prefscale.json"
ADAPTER_SETTINGS_NAME = "multi_scale.json"
HEAD_PREFIX = "score."  # of the head's keys in a file of weights
ADAPTER_PREFIX = "base_model.model."  # of all keys in an adapter's file
HUB_NAME = r"\w[\w.-]*(/\w[\w.-]*)?"
SETTINGS_FILES = {False: ("config.json",), True: (ADAPTER_SETTINGS_NAME, "adapter_config.json")}  # by "is an adapter"

Find = Callable[[str], str | None]  # path of a file by its name


@dataclass
class BaseMark:
    """
    The model that an adapter was trained on.

    Args:
        name (`str`):
            Its folder or hub name.
        is_folder (`bool`):
            Whether it was a folder.
        commit (`str`, *optional*):
            Its commit on the hub.
        weights (`dict[str, FileMark]`):
            Its files of weights; none where they were not found.
    """

    name: str
    is_folder: bool
    commit: str | None
    weights: dict[str, FileMark]


@dataclass
class SavedRecord:
    """
    What was saved.

    Args:
        settings (`dict[str, dict[str, Any]]`):
            Content of the files of settings, by name.
        head (`dict[str, list[int]]`):
            Shape of each parameter of the head, by name.
        embeddings (`int`):
            Token ids lie below it.
        weights (`dict[str, FileMark]`):
            The files of weights.
        tokenizer (`dict[str, str]`, *optional*):
            Hashes of the tokenizer's files; `None` where the model was saved without one.
        base (`BaseMark`, *optional*):
            The model that an adapter was trained on.
        probes (`ProbeScores`, *optional*):
            Scores of fixed rows; `None` where the model was not whole in the process that saved it.
    """

    settings: dict[str, dict[str, Any]]
    head: dict[str, list[int]]
    embeddings: int
    weights: dict[str, FileMark]
    tokenizer: dict[str, str] | None = None
    base: BaseMark | None = None
    probes: ProbeScores | None = None


def finder(name_or_path: str, **hub: Any) -> Find:
    """
    A function that finds files of a model by their names, in its folder or in what has been fetched from the hub.

    Args:
        name_or_path (`str`):
            Folder or hub name.
        hub (`dict`, *optional*):
            `revision` and `cache_dir`.

    Returns:
        `Callable`: Gives the path of a file, or `None` where there is none.
    """
    if os.path.isdir(name_or_path):
        return lambda name: path if os.path.isfile(path := os.path.join(name_or_path, name)) else None
    if re.fullmatch(HUB_NAME, name_or_path) is None:  # a folder that is gone
        return lambda name: None
    only_fetched: Any = {
        "local_files_only": True,
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    return lambda name: cached_file(name_or_path, name, **only_fetched, **hub)


def read_record(find: Find) -> SavedRecord | None:
    """
    Read the record of a saved model.

    Args:
        find (`Callable`):
            From [`finder`].

    Returns:
        [`SavedRecord`], or `None` for what was saved before there were any.

    Raises:
        `ValueError`: If it is damaged.
    """
    path = find(RECORD_NAME)
    if path is None:
        return None
    saved = read_json(path)
    try:
        weights, base, probes = saved.pop("weights"), saved.pop("base"), saved.pop("probes")
        record = SavedRecord(**saved, weights=_marks(weights))
        if base is not None:
            record.base = BaseMark(**{**base, "weights": _marks(base["weights"])})
        record.probes = None if probes is None else ProbeScores(**probes)
        for name in ("settings", "head", "tokenizer"):
            if not isinstance(getattr(record, name), dict) and (name, record.tokenizer) != ("tokenizer", None):
                raise TypeError(f"`{name}` is {getattr(record, name)!r}")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"'{path}' is damaged, or of a later version of prefscale ({error}). Restore it as it was saved; without "
            "it the folder is loaded unchecked."
        ) from None
    return record


def save_record(record: SavedRecord, folder: str | Path) -> None:
    """
    Write a record in one piece.

    Args:
        record ([`SavedRecord`]):
            What was saved.
        folder (`str` or `Path`):
            Folder of the model.
    """
    write_json(Path(folder, RECORD_NAME), asdict(record))


def write_record(model: Any, folder: str | Path) -> None:
    """
    Record a model whose weights and settings have been saved; its tokenizer may follow by [`add_tokenizer`].

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The reward model, or the adapter with its base.
        folder (`str` or `Path`):
            Where it was saved.
    """
    adapter, find = isinstance(model, PeftModel), finder(str(folder))
    base: Any = model.get_base_model() if adapter else model
    files = weight_files(find, ADAPTER_WEIGHTS if adapter else WHOLE_WEIGHTS)
    head = head_in(files, adapter)
    if lacking := [name for name in head_names(base.settings) if name not in head]:
        leave_without_record(folder, f"its weights lack {HEAD_PREFIX}{lacking[0]}")
        return
    reason = why_not_probed(model)
    if reason is not None:
        logger.warning_once(f"The scores of fixed rows are not saved beside the model: {reason}.")
    if (line := what_stock_reads(base, adapter)) is not None:
        logger.warning_once(line)
    record = SavedRecord(
        settings={name: read_json(path) for name in SETTINGS_FILES[adapter] if (path := find(name)) is not None},
        head=head,
        embeddings=embeddings_of(model).num_embeddings,
        weights={name: mark_of(path) for name, path in files.items()},
        base=_base_mark(model) if adapter else None,
        probes=None if reason is not None else probe(model),
    )
    save_record(record, folder)


def leave_without_record(folder: str | Path, reason: str) -> None:
    """
    Take away the record of what was in a folder before, where what it holds now cannot be recorded.

    Args:
        folder (`str` or `Path`):
            Folder of the model.
        reason (`str`):
            Why it cannot.
    """
    Path(folder, RECORD_NAME).unlink(missing_ok=True)
    logger.warning(f"'{folder}' has no {RECORD_NAME}, since {reason}: what is loaded from it cannot be checked.")


def add_tokenizer(folder: str | Path) -> None:
    """
    Add the tokenizer that has been saved beside a model to its record.

    Args:
        folder (`str` or `Path`):
            Folder of the model; one without a record stays without.
    """
    find = finder(str(folder))
    record = read_record(find)
    if record is not None:
        save_record(replace(record, tokenizer=tokenizer_marks(find) or None), folder)


def head_names(settings: MultiScaleSettings) -> list[str]:
    """
    Names of the parameters that a head has.

    Args:
        settings ([`MultiScaleSettings`]):
            Scales and context.

    Returns:
        `list[str]`
    """
    with torch.device("meta"):
        return [name for name, _ in MultiScaleHead(1, settings).named_parameters()]


def head_in(files: dict[str, Path], adapter: bool) -> dict[str, list[int]]:
    """
    What files of weights have of a head.

    Args:
        files (`dict[str, Path]`):
            From [`~toolkit.reward.fingerprints.weight_files`]; others than safetensors are passed over.
        adapter (`bool`):
            Whether they are an adapter's.

    Returns:
        `dict[str, list[int]]`: Shapes by name.

    Raises:
        `ValueError`: If a file is cut short or damaged.
    """
    prefix = f"{ADAPTER_PREFIX}{HEAD_PREFIX}" if adapter else HEAD_PREFIX
    return {
        name.removeprefix(prefix): shape
        for path in files.values()
        if path.suffix == ".safetensors"
        for name, shape in tensor_shapes(path).items()
        if name.startswith(prefix)
    }


def what_stock_reads(model: Any, adapter: bool) -> str | None:
    """
    What [`~transformers.AutoModelForSequenceClassification`] makes of a saved reward model, where it is not the score.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Reward model.
        adapter (`bool`):
            Whether it is saved as an adapter.

    Returns:
        `str`: One line, or `None` where a stock class reads the score.
    """
    settings, config = model.settings, model.config.get_text_config()
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if "response" not in settings.scales:
        found = f"reads 0 for every row, since `scales` is {settings.scales}"
    elif adapter and settings.num_hidden_layers is not None:
        found = f"runs all layers of the base, and the head reads it after {settings.num_hidden_layers}"
    elif settings.outputs > 1:
        found = f"reads the linear response scale alone, by {shared_weights(settings)}"
    elif len(settings.scales) > 1 or settings.context != "none":
        what = f"the mix of {settings.scales}" if len(settings.scales) > 1 else "which is conditioned on the prompt"
        found = f"reads the linear response scale alone and not the score, {what}"
    elif settings.centre_by_prompt:
        found = "reads the score without taking off the value of an empty response, the same for all of a prompt"
    elif config.pad_token_id is not None and config.pad_token_id in ends:
        found = "does not read the score where a row ends with EOS, which is the padding token and is passed over"
    else:
        return None
    return f"A stock class {found}. Score with AutoModelForMultiScaleReward or RewardFunction."


def shared_weights(settings: MultiScaleSettings) -> str:
    """Which weights of a reader score where nobody chooses others, in words."""
    of = f" of {', '.join(settings.attributes)}" if settings.attributes else ""
    whose = {"prompt": "before it reads a prompt", "annotator": "of annotators who are not known"}
    return f"the weights{of} of the {settings.reader} reader {whose.get(settings.reader_weights, 'for all')}"


def _base_mark(model: PeftModel) -> BaseMark:
    config: Any = model.peft_config[model.active_adapter]
    base: Any = model.get_base_model()
    name, files = config.base_model_name_or_path or "", base.loaded_files or {}
    is_folder = os.path.isdir(name)
    # In the hub's cache a file lies in a folder that is called after its commit
    commit = None if is_folder or not files else next(iter(files.values())).parent.name
    there = all(path.is_file() for path in files.values())
    return BaseMark(name, is_folder, commit, {file: mark_of(path) for file, path in files.items()} if there else {})


def _marks(saved: dict[str, dict[str, Any]]) -> dict[str, FileMark]:
    return {name: FileMark(**mark) for name, mark in saved.items()}
