"""Whether a saved reward model is still what was saved, found out in no time that is noticed when it is loaded."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils.logging import get_logger

from .fingerprints import (
    ADAPTER_WEIGHTS,
    WHOLE_WEIGHTS,
    FileMark,
    changed_tokenizer_file,
    fingerprint,
    read_json,
    weight_files,
)
from .head import ASKED_FOR, MultiScaleSettings
from .record import HEAD_PREFIX, RECORD_NAME, BaseMark, Find, SavedRecord, head_in, read_record

logger = get_logger(__name__)

# What a folder may say otherwise than when it was saved: where its base has gone, and what tools write of themselves
MAY_CHANGE = {
    "_name_or_path",
    "architectures",
    "auto_mapping",
    "base_model_name_or_path",
    "dtype",
    "inference_mode",
    "parent_library",
    "peft_version",
    "revision",
    "torch_dtype",
    "transformers_version",
}
ON_PURPOSE = f"where the change is meant, delete its {RECORD_NAME} to load it unchecked"


def check_saved(name: str, find: Find, adapter: bool) -> SavedRecord | None:
    """
    Refuse a saved model whose files are not those that were saved.

    Args:
        name (`str`):
            Its folder or hub name, for messages.
        find (`Callable`):
            From [`~toolkit.reward.record.finder`].
        adapter (`bool`):
            Whether it is an adapter.

    Returns:
        [`~toolkit.reward.record.SavedRecord`], or `None` for a folder from before, of which a line says that it cannot
        be checked.

    Raises:
        `ValueError`: Naming the file, what is wrong with it, and what to do.
    """
    record = read_record(find)
    files = weight_files(find, ADAPTER_WEIGHTS if adapter else WHOLE_WEIGHTS)
    head = head_in(files, adapter)
    if record is None:
        logger.warning_once(
            f"'{name}' has no {RECORD_NAME} beside its weights, as models of earlier versions: it is loaded without a "
            "check of what was saved. Saving it again writes one."
        )
        return None
    check_settings(name, record, find)
    if lacking := sorted(record.weights.keys() - files.keys()):
        raise ValueError(f"'{name}' lacks {lacking[0]}, which was saved with it. Copy the folder again, whole.")
    check_head(name, record.head, head)
    check_marks(name, record.weights, files)
    return record


def check_settings(name: str, record: SavedRecord, find: Find) -> None:
    """
    Refuse settings that are not those that were saved.

    Args:
        name (`str`):
            Folder or hub name, for messages.
        record ([`~toolkit.reward.record.SavedRecord`]):
            What was saved.
        find (`Callable`):
            From [`~toolkit.reward.record.finder`].

    Raises:
        `ValueError`: Naming the file and the first setting that differs.
    """
    for file, saved in record.settings.items():
        path = find(file)
        if path is None:
            raise ValueError(f"'{name}' lacks {file}, which was saved with it. Copy the folder again, whole.")
        before, now = _flat(saved), _flat(read_json(path))
        for key in sorted(before.keys() | now.keys()):
            if key.split(".")[0] not in MAY_CHANGE and before.get(key) != now.get(key):
                raise ValueError(
                    f"'{path}' is not as it was saved: `{key}` is {now.get(key)!r} and was {before.get(key)!r}. "
                    f"Restore the file; {ON_PURPOSE}."
                )


def check_head(name: str, saved: dict[str, list[int]], found: dict[str, list[int]]) -> None:
    """
    Refuse weights that lack what the head had.

    Args:
        name (`str`):
            Folder or hub name, for messages.
        saved, found (`dict[str, list[int]]`):
            Shapes by name.

    Raises:
        `ValueError`: Naming what is missing or of another shape.
    """
    lacking = [f"{HEAD_PREFIX}{key}" for key in saved if key not in found]
    if lacking:
        refuse_missing(name, lacking)
    for key, shape in saved.items():
        if found[key] != shape:
            raise ValueError(
                f"The weights of '{name}' have {HEAD_PREFIX}{key} of shape {found[key]}, and {shape} was saved. Copy "
                "the folder again."
            )


def refuse_missing(name: str, missing: list[str]) -> None:
    """
    Refuse a model of which weights would be random.

    Args:
        name (`str`):
            Folder or hub name.
        missing (`list[str]`):
            Names of the weights that no file has, at least one.

    Raises:
        `ValueError`: Always.
    """
    reason = ", as after a stock class has saved it again" if missing[0].startswith(HEAD_PREFIX) else ""
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    raise ValueError(
        f"The weights of '{name}' lack {', '.join(missing[:5])}{more}, which would be random{reason}. "
        "Take the folder that MultiScaleRewardTrainer or our own model saved."
    )


def check_marks(name: str, saved: dict[str, FileMark], found: dict[str, Path]) -> None:
    """
    Refuse files of weights that are not those that were saved.

    Args:
        name (`str`):
            Folder or hub name, for messages.
        saved (`dict[str, FileMark]`):
            What they were known by; none is missing.
        found (`dict[str, Path]`):
            Those that would be read.

    Raises:
        `ValueError`: Naming the file.
    """
    for file, mark in saved.items():
        size = found[file].stat().st_size
        if size != mark.size or fingerprint(found[file]) != mark.fingerprint:
            how = f"has {size:,} bytes and had {mark.size:,}" if size != mark.size else "has other weights"
            raise ValueError(
                f"'{found[file]}' is not the file that was saved: it {how}, as after a save that was broken off, or "
                f"by another program. Copy the folder again; {ON_PURPOSE}."
            )
    if others := sorted(found.keys() - saved.keys()):
        raise ValueError(
            f"'{name}' would be read from {others[0]}, which was not saved with it. Remove it; {ON_PURPOSE}."
        )


def check_base(adapter: str, base: BaseMark, name: str, find: Find) -> None:
    """
    Refuse a base that an adapter was not trained on; wherever it lies, it is known by its weights.

    Args:
        adapter (`str`):
            Folder or hub name of the adapter, for messages.
        base ([`~toolkit.reward.record.BaseMark`]):
            What it was trained on.
        name (`str`):
            Folder or hub name of what it would be put on.
        find (`Callable`):
            Of that, from [`~toolkit.reward.record.finder`].

    Raises:
        `ValueError`: Naming both.
    """
    found = weight_files(find)
    changed = [file for file, mark in base.weights.items() if file not in found or not _same(mark, found[file])]
    if changed or (base.weights and found.keys() != base.weights.keys()):
        which = f"'{base.name}'" + (f" at commit {base.commit}" if base.commit else "")
        raise ValueError(
            f"The adapter '{adapter}' was trained on {which}, and '{name}' is not that model any more: "
            f"{(changed or sorted(found))[0]} is another. Put back the base that it was trained on, or name its "
            "folder as `base_model_name_or_path` in adapter_config.json."
        )


def check_base_is_there(adapter: str, name: Any, base: BaseMark | None) -> None:
    """
    Refuse an adapter whose base was a folder that is gone, before the hub is asked for it.

    Args:
        adapter (`str`):
            Folder or hub name of the adapter, for messages.
        name (`str`):
            The base that it names.
        base ([`~toolkit.reward.record.BaseMark`], *optional*):
            What it was trained on.

    Raises:
        `ValueError`: Naming the folder.
    """
    was_folder = base is not None and base.is_folder and base.name == name
    if not name or ((was_folder or os.path.isabs(name) or name.startswith(".")) and not os.path.isdir(name)):
        raise ValueError(
            f"The adapter '{adapter}' is to be put on the model in '{name or ''}', and there is no such folder. Put "
            "it back, or name where it is as `base_model_name_or_path` in adapter_config.json."
        )


def check_tokenizer_files(name: str, record: SavedRecord, find: Find) -> None:
    """
    Refuse a tokenizer that is not the one that was saved with a model.

    Args:
        name (`str`):
            Folder or hub name, for messages.
        record ([`~toolkit.reward.record.SavedRecord`]):
            What was saved.
        find (`Callable`):
            From [`~toolkit.reward.record.finder`].

    Raises:
        `ValueError`: Naming the file.
    """
    if record.tokenizer is not None and (change := changed_tokenizer_file(record.tokenizer, find)) is not None:
        raise ValueError(
            f"The tokenizer of '{name}' is not the one that was saved with it: {change}, and its ids or rows would be "
            f"others. Restore the file; {ON_PURPOSE}."
        )


def check_vocabulary(name: str, record: SavedRecord, tokenizer: Any) -> None:
    """
    Refuse a tokenizer with ids that a model has no embedding for.

    Args:
        name (`str`):
            Folder or hub name, for messages.
        record ([`~toolkit.reward.record.SavedRecord`]):
            What was saved.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer that would be used.

    Raises:
        `ValueError`: Naming the first such token.
    """
    token, number = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if number >= record.embeddings:
        raise ValueError(
            f"The tokenizer of '{name}' has the token {token!r} with id {number}, and the model has embeddings for "
            f"ids below {record.embeddings}: it is another model's. Put the tokenizer that it was trained with there."
        )


def agreed(name: str, settings: MultiScaleSettings | None, saved: MultiScaleSettings) -> MultiScaleSettings:
    """
    Settings for a model that has its own: its scales and context stay, and so does how its head reads the decoder.

    Args:
        name (`str`):
            Folder or hub name, for messages.
        settings ([`MultiScaleSettings`], *optional*):
            What is asked for.
        saved ([`MultiScaleSettings`]):
            What it was saved with.

    Returns:
        [`MultiScaleSettings`]

    Raises:
        `ValueError`: If others are asked for.
    """
    if settings is None:
        return saved
    for option in (*ASKED_FOR, "annotators", "attributes"):
        own, asked = getattr(saved, option), getattr(settings, option)
        some = option in ("annotators", "attributes") and set(asked) <= set(own)  # of those that it knows
        if own != asked and not some:
            raise ValueError(
                f"'{name}' was saved with `{option}={own!r}`, and `{option}={asked!r}` is asked for. Ask for the "
                "same, or begin a new head from the model that its training began from."
            )
    layers = settings.num_hidden_layers or saved.num_hidden_layers
    return replace(
        settings,
        unit_prompt=saved.unit_prompt,
        num_hidden_layers=layers,
        annotators=saved.annotators,
        attributes=saved.attributes,
    )


def _same(mark: FileMark, path: Path) -> bool:
    return path.stat().st_size == mark.size and fingerprint(path) == mark.fingerprint


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of one level more, so that a message can name the one that differs."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= {f"{key}.{inner}": one for inner, one in value.items()} if isinstance(value, dict) else {key: value}
    return flat
