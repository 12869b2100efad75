"""What a run's numbers depend on, as a checkpoint carries it: its data, its models and its options."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import torch
from accelerate.logging import get_logger
from datasets import Dataset
from torch import nn

from .run_record import options_of, read_json, write_json

logger = get_logger(__name__)

FINGERPRINT_NAME = "fingerprint.json"
_SAMPLES = 256  # numbers of a tensor that are hashed: a trained tensor differs in nearly all of them
# New at every start, and then read from the checkpoint: heads, adapters and copies that are trained beside them
_NEW = ("score.", "lora_", "modules_to_save.", "trainable_tokens_")
# Options that change where things go, what is shown and how fast it is, and no number of the training
_WITHOUT_EFFECT = (
    "output_dir", "resume_", "logging_", "log_", "save_", "eval_", "per_device_eval_", "hub_", "push_to_hub",
    "report_to", "run_name", "project", "trackio_", "disable_tqdm", "dataset_num_proc", "dataloader_num_workers",
    "dataloader_pin", "dataloader_persistent", "dataloader_prefetch", "ddp_", "do_", "load_best", "metric_for",
    "greater_is", "include_", "enable_jit", "vllm_server", "vllm_group", "local_rank", "batch_eval", "prediction_loss",
    "skip_memory", "num_completions_to_print", "num_generations_eval", "states_dir",
)  # fmt: skip
# Of a model's configuration; the rest says where it lies, how it was saved, or what its tensors say themselves
_LAYERS = ("model_type", "num_", "hidden_", "rope_", "layer_types", "sliding_window", "layer_norm", "rms_norm")


def data_digest(rows: Any) -> str | None:
    """
    SHA-256 of all rows of a table, however it is stored: in parts, in other chunks, or as a choice of another's rows.

    Args:
        rows (`datasets.Dataset` or another):
            Rows to train on.

    Returns:
        `str`, or `None` for what is no table: a stream is only known when it has been read.
    """
    if not isinstance(rows, Dataset):
        return None
    digest = hashlib.sha256(repr(sorted(rows.features.items())).encode())
    columns = sorted(rows.column_names)
    for part in rows.select_columns(columns).with_format("arrow").iter(batch_size=1000):
        table = part.select(columns).replace_schema_metadata(None).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        digest.update(sink.getvalue())
    return digest.hexdigest()


def weights_digest(model: nn.Module, without_new: bool = False) -> str:
    """
    SHA-256 over the names, shapes and a few hundred numbers of every tensor of a model, in no noticeable time.

    The numbers are rounded to bfloat16, so that a model has one digest in every type of its weights. Of weights that
    ZeRO-3 divides among processes only the names count.

    Args:
        model (`nn.Module`):
            Model.
        without_new (`bool`, *optional*, defaults to `False`):
            Whether heads and adapters are left out, which a training makes anew.

    Returns:
        `str`
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if without_new and any(part in name for part in _NEW):
            continue
        # An adapter wraps a layer; its weight is the one it was
        name = name.replace("base_model.model.", "").replace("base_layer.", "").replace("original_module.", "")
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        flat = parameter.detach().flatten()[:: max(1, parameter.numel() // _SAMPLES)]
        flat = flat.to(torch.bfloat16).view(torch.int16) if flat.is_floating_point() else flat
        digest.update(flat.cpu().numpy().tobytes())
    return digest.hexdigest()


def _config_digest(model: Any) -> str:
    config = {key: value for key, value in model.config.to_dict().items() if key.startswith(_LAYERS)}
    config.pop("num_labels", None)
    return hashlib.sha256(repr(sorted(config.items())).encode()).hexdigest()


def fingerprint(train_dataset: Any, models: Mapping[str, tuple[Any, bool]]) -> dict[str, Any]:
    """
    What tells one run's data and models from another's.

    Args:
        train_dataset (`datasets.Dataset` or a stream):
            Rows to train on.
        models (`Mapping[str, tuple[PreTrainedModel, bool]]`):
            Each model by what an error calls it, and whether it is the one that is trained.

    Returns:
        `dict`: For `fingerprint.json`, without options.
    """
    rows = len(train_dataset) if isinstance(train_dataset, Dataset) else None
    told = {
        role: {
            "name": model.config.name_or_path,
            "config": _config_digest(model),
            "weights": weights_digest(model, without_new=trained),
        }
        for role, (model, trained) in models.items()
    }
    return {"data": {"rows": rows, "sha256": data_digest(train_dataset)}, "models": told}


def training_options(args: Any) -> dict[str, Any]:
    """The options of a dataclass that change the numbers of a training, as JSON values, without secrets."""
    options = options_of(args)
    found = {**options["default"], **options["changed"]}
    return {name: value for name, value in sorted(found.items()) if not name.startswith(_WITHOUT_EFFECT)}


def save_fingerprint(folder: str | Path, found: Mapping[str, Any]) -> None:
    """Put a run's fingerprint into a checkpoint."""
    write_json(Path(folder, FINGERPRINT_NAME), found)


def check_same_run(checkpoint: str | Path, now: Mapping[str, Any]) -> None:
    """
    Refuse to go on from a checkpoint with other data or another model, and say which options differ.

    Args:
        checkpoint (`str` or `Path`):
            Checkpoint. One of an older version has no fingerprint, which a warning says.
        now (`Mapping[str, Any]`):
            What [`fingerprint`] gave for this run, with its `options`.

    Raises:
        `ValueError`: Naming what differs.
    """
    file = Path(checkpoint, FINGERPRINT_NAME)
    if not file.is_file():
        logger.warning(f"'{checkpoint}' has no {FINGERPRINT_NAME}: whether data and model are the same is not known.")
        return
    another = "Resume from another checkpoint."
    then = read_json(file, dict, another)
    if not {"data", "models", "options"} <= then.keys():
        raise ValueError(f"'{file}' is damaged: it lacks what a run's numbers depend on. {another}")
    remedy = "Resume with what that run had, or begin a new one in another `output_dir`."
    if then["data"] != now["data"]:
        counts = [part["data"]["rows"] for part in (then, now)]
        what = f"{counts[0]} rows then, {counts[1]} now" if counts[0] != counts[1] else f"other {counts[1]} rows"
        raise ValueError(f"Checkpoint '{checkpoint}' was trained on other data ({what}). {remedy}")
    for role in sorted(then["models"].keys() | now["models"].keys()):
        old, new = (part["models"].get(role) for part in (then, now))
        if old is None or new is None:
            raise ValueError(f"Checkpoint '{checkpoint}': only one of the two runs has a {role}. {remedy}")
        differs = [what for what in ("config", "weights") if old[what] != new[what]]
        if differs:
            names = f"'{old['name']}' then, '{new['name']}' now"
            raise ValueError(f"Checkpoint '{checkpoint}': another {role} ({names}; other {differs[0]}). {remedy}")
    old, new = then["options"], now["options"]
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    if changed:
        listed = ", ".join(f"{name} {old.get(name)} → {new.get(name)}" for name in changed)
        logger.warning(f"Going on from '{checkpoint}' with other options: {listed}.")
