"""What the head reads of a frozen decoder, of every distinct row of a training, computed once and kept on disk."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from accelerate.logging import get_logger
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from ..data.batches import SIDES, StateTable
from ..data.packing import fill_batches, group_by_prefix, grouped_inputs, packed_lengths
from .head import STATES
from .layers import keep_layers

logger = get_logger(__name__)

# Of a vector's length: rows alone and packed differ by rounding, which bfloat16 does to three digits
_ALIKE = 0.05
SHARD_TOKENS = 50_000  # what a stop costs at most
# No part of what the decoder computes
_NOT_COMPUTED = {"_name_or_path", "architectures", "id2label", "label2id", "multi_scale", "pad_token_id"}


class StateRows(NamedTuple):
    """`N` distinct rows, and for each of several data sets which of them its pairs or lists have."""

    ids: list[list[int]]
    starts: list[int]  # index of each row's first response token
    places: list[list[tuple[int, ...]]]  # of each data set the rows of chosen and rejected, or of every list


def distinct_rows(datasets: Sequence[Dataset]) -> StateRows:
    """
    The distinct rows of tokenized pairs, all chosen before all rejected, or of tokenized lists.

    Args:
        datasets (`Sequence[datasets.Dataset]`):
            Tokenized pairs or lists.

    Returns:
        [`StateRows`]
    """
    found: dict[tuple[int, bytes], int] = {}
    rows = StateRows([], [], [])

    def place_of(ids: list[int], start: int) -> int:
        place = found.setdefault((start, np.array(ids).tobytes()), len(rows.ids))
        if place == len(rows.ids):
            rows.ids.append(ids)
            rows.starts.append(start)
        return place

    for dataset in datasets:
        if "response_ids" in dataset.column_names:
            lists = zip(dataset["response_ids"], dataset["response_starts"], strict=True)
            rows.places.append([tuple(map(place_of, *each)) for each in lists])
        else:
            sides = [map(place_of, dataset[f"{side}_ids"], dataset[f"{side}_start"]) for side in SIDES]
            rows.places.append(list(zip(*map(list, sides), strict=True)))
    return rows


def divide(rows: StateRows, shared_prompts: bool) -> list[list[list[int]]]:
    """
    Divide rows among the files of a cache.

    Args:
        rows ([`StateRows`]):
            Rows.
        shared_prompts (`bool`):
            Whether rows with one prompt run as one.

    Returns:
        `list[list[list[int]]]`: Of each file its groups of rows of like length, each of one prompt where that is
        shared. A file has about `SHARD_TOKENS` tokens.
    """
    groups = [[i] for i in range(len(rows.ids))]
    if shared_prompts:
        groups = group_by_prefix(rows.ids, rows.starts, len(rows.ids))
    lengths = packed_lengths(groups, rows.ids, rows.starts)
    files: list[list[list[int]]] = []
    size = 0
    for k in sorted(range(len(groups)), key=lambda k: lengths[k]):
        if not files or size >= SHARD_TOKENS:
            files.append([])
            size = 0
        files[-1].append(groups[k])
        size += lengths[k]
    return files


def fingerprint(model: Any, rows: StateRows, *settings: Any) -> str:
    """
    A name for the states of rows, which are others if any of what makes them is.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Reward model. Its head and which scales that has do not count.
        rows ([`StateRows`]):
            Rows.
        settings (`Any`):
            What else decides on the states; JSON values.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_COMPUTED}
    attention = model.config.get_text_config()._attn_implementation
    boundaries, version = model.settings.segment_boundary_ids, transformers.__version__
    what = [config, attention, boundaries, version, SHARD_TOKENS, *settings]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        if not name.startswith("score."):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    for ids, start in zip(rows.ids, rows.starts, strict=True):
        digest.update(np.array([start, len(ids), *ids]).tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def read_groups(
    model: Any,
    rows: StateRows,
    groups: list[list[int]],
    batch_size: int,
    pad_token_id: int,
    seen: Callable[[int], object],
    layers: Sequence[int] = (),
) -> Tensor:
    """
    States of groups of rows.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Reward model, in evaluation mode.
        rows ([`StateRows`]):
            Rows.
        groups (`list[list[int]]`):
            Indices of the `R` rows of each group, which have the same prompt.
        batch_size (`int`):
            Most rows of a forward pass; a group that has more goes alone.
        pad_token_id (`int`):
            Id on padding.
        seen (`Callable`):
            Called after every forward pass with the number of its tokens, padding not counted.
        layers (`Sequence[int]`, *optional*):
            Numbers of the `L` layers; the last alone where none are given.

    Returns:
        `torch.Tensor` of shape `(R, L, 4, H)`, float32: On the CPU, in the order of the groups.
    """
    lengths = packed_lengths(groups, rows.ids, rows.starts)
    found: dict[int, Tensor] = {}
    for batch in fill_batches(lengths, list(map(len, groups)), batch_size):
        ids = [[rows.ids[i] for i in groups[k]] for k in batch]
        starts = [[rows.starts[i] for i in groups[k]] for k in batch]
        inputs = grouped_inputs(ids, starts, pad_token_id)
        inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        states = model.response_states(**inputs, layers=layers, use_cache=False).cpu()
        found |= dict(zip((i for k in batch for i in groups[k]), states, strict=True))
        seen(sum(lengths[k] for k in batch))
    return torch.stack([found[i] for group in groups for i in group])


def load_states(folder: Path, files: list[Path], count: int) -> Tensor:
    """
    The states of all rows.

    Args:
        folder (`Path`):
            Folder of the cache.
        files (`list[Path]`):
            Its files.
        count (`int`):
            Number of rows `N`.

    Returns:
        `torch.Tensor` of shape `(N, L, 4, H)`, float32.

    Raises:
        `ValueError`: If a file is missing or damaged.
    """
    states: Tensor | None = None
    for file in files:
        if not file.is_file():
            raise ValueError(
                f"The states in '{folder}' lack {file.name}, which another process has computed. Set `states_dir` to "
                "a folder on a disk that all machines share."
            )
        try:
            part = load_file(file)
        except SafetensorError as error:
            raise ValueError(f"'{file}' is damaged ({error}). Delete it; a new run computes it again.") from None
        if states is None:
            states = torch.empty(count, *part["states"].shape[1:])
        states[part["rows"]] = part["states"]
    assert states is not None, "a training has a pair"
    return states


def frozen_states(trainer: Any) -> StateTable:
    """
    Compute what a training and its evaluations read of a frozen decoder, or find it, and give the data their columns.

    Args:
        trainer ([`MultiScaleRewardTrainer`]):
            A trainer with tokenized data. Its data sets get the columns of the table.

    Returns:
        [`~toolkit.data.batches.StateTable`]

    Raises:
        `ValueError`: If a file of the states is missing or damaged.
    """
    args, model, evals = trainer.args, trainer.reward_model, trainer.eval_dataset
    layers = sorted(set(args.layers or []))
    if layers:
        keep_layers(model, layers[-1])
    named = evals if isinstance(evals, dict) else {} if evals is None else {"eval": evals}
    datasets = [trainer.train_dataset, *named.values()]
    rows, shared = distinct_rows(datasets), trainer.shared_prompts
    settings = [layers, shared, str(model.dtype), trainer.accelerator.mixed_precision]
    name = fingerprint(model, rows, *settings)
    # The hub gets no file of an output folder whose path begins like this
    folder = Path(args.states_dir or Path(args.output_dir, "_states"), name)
    groups = divide(rows, shared)
    files = [folder / f"{number:05}-of-{len(groups):05}.safetensors" for number in range(len(groups))]
    _compute(trainer, rows, dict(zip(files, groups, strict=True)), layers)
    states = load_states(folder, files, len(rows.ids))
    # Under a name of these states alone, so that a data set of another trainer is never read in this one's table
    columns = (f"{SIDES[0]}_states_{name}", f"{SIDES[1]}_states_{name}")
    of_layers = dict(zip(layers, states.unbind(1), strict=False))
    table = StateTable(states[:, -1], columns, of_layers, f"response_states_{name}")
    trainer.train_dataset, *others = map(_with_places, datasets, rows.places, [table] * len(datasets))
    if evals is not None:
        found = dict(zip(named, others, strict=True))
        trainer.eval_dataset = found if isinstance(evals, dict) else found["eval"]
    return table


def read_layer(trainer: Any, number: int) -> None:
    """
    Let a trainer, its model and its states read one of the layers that were cached.

    Args:
        trainer ([`MultiScaleRewardTrainer`]):
            A trainer with `freeze_decoder` and `layers`, before its training. Its model ends at the layer afterwards.
        number (`int`):
            Number of the layer.

    Raises:
        `ValueError`: If the decoder that ends there gives other states than were read of it within the whole one.
    """
    model, table, row = trainer.reward_model, trainer.data_collator.table, trainer.train_dataset[0]
    keep_layers(model, number)
    states = table.layers[number].clone()  # so that the others can go
    trainer.data_collator.table = table._replace(states=states, layers={})
    ids = torch.tensor([row["chosen_ids"]], device=model.device)
    start, training = torch.tensor([row["chosen_start"]], device=model.device), model.training
    with torch.no_grad(), trainer.accelerator.autocast():
        found = model.eval().response_states(ids, response_start=start, use_cache=False)[0, 0].cpu()
    model.train(training)
    expected = states[row[table.columns[0]]]
    off = ((found - expected).norm() / expected.norm()).item()
    if not off < _ALIKE:
        raise ValueError(
            f"Layer {number} of {type(model).__name__}, read within the whole decoder, is {off:.0%} off what the "
            "decoder gives that ends there. Set `num_hidden_layers` in place of `layers`."
        )


def _with_places(dataset: Dataset, places: list[tuple[int, ...]], table: StateTable) -> Dataset:
    own = [*table.columns, table.list_column]
    dataset = dataset.remove_columns([column for column in own if column in dataset.column_names])
    if "response_ids" in dataset.column_names:
        return dataset.add_column(table.list_column, list(map(list, places)))
    for column, side in zip(table.columns, zip(*places, strict=True), strict=True):
        dataset = dataset.add_column(column, list(side))
    return dataset


def _compute(trainer: Any, rows: StateRows, files: dict[Path, list[list[int]]], layers: Sequence[int]) -> None:
    """Write the files that are not there yet, this process its share of them."""
    args, model, accelerator = trainer.args, trainer.reward_model, trainer.accelerator
    missing = [file for file in files if not file.is_file()]
    tokens = {file: sum(packed_lengths(groups, rows.ids, rows.starts)) for file, groups in files.items()}
    megabytes = len(rows.ids) * max(1, len(layers)) * len(STATES) * model.score.in_features * 4 / 2**20
    logger.log(
        logging.WARNING if missing else logging.INFO,
        f"The decoder's states of {len(rows.ids)} distinct rows ({sum(tokens.values())} tokens, {megabytes:.1f} MiB) "
        f"are kept in '{next(iter(files)).parent}': {len(files) - len(missing)} of {len(files)} files are there"
        f"{', the others are computed now' if missing else ''}.",
    )
    accelerator.wait_for_everyone()  # all have the same list of what is missing
    training = model.training
    model.eval()
    own = missing[accelerator.process_index :: accelerator.num_processes]
    batch_size, pad = len(SIDES) * args.per_device_eval_batch_size, trainer.processing_class.pad_token_id
    quiet = args.disable_tqdm or not own or not accelerator.is_main_process
    with tqdm(desc="Reading the decoder", total=sum(tokens[f] for f in own), unit=" tokens", disable=quiet) as bar:
        for file in own:
            with accelerator.autocast():
                states = read_groups(model, rows, files[file], batch_size, pad, bar.update, layers)
            _write(file, {"rows": torch.tensor([i for group in files[file] for i in group]), "states": states})
    model.train(training)
    accelerator.wait_for_everyone()


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Of a name of its own, since another run may compute the same
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
        save_file(tensors, part.name)
    os.replace(part.name, file)
