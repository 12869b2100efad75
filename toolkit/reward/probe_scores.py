"""Scores of a few fixed rows, by which a saved model shows that it scores as when it was saved."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.tensor import DTensor

LENGTHS = (9, 17, 33)
BOUNDARY_EVERY = 4  # so that a response has several segments, and ends within one


@dataclass
class ProbeScores:
    """
    Rows, and what a model says of them.

    Args:
        rows (`list[list[int]]`):
            Token ids of each row.
        starts (`list[int]`):
            Index of each row's first response token.
        dtype (`str`):
            Dtype of the decoder's weights when it scored.
        quantization (`dict[str, Any]`, *optional*):
            How they were quantised.
        scores (`list[float]`):
            Score of each row.
        scale_scores (`list[list[float]]`):
            Score of each scale of each row.
    """

    rows: list[list[int]]
    starts: list[int]
    dtype: str
    quantization: dict[str, Any] | None
    scores: list[float]
    scale_scores: list[list[float]]


def embeddings_of(model: Any) -> nn.Embedding:
    """
    The embeddings of a model's tokens, out of the adapter that may stand around them.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A model.

    Returns:
        `torch.nn.Embedding`: Those that are trained, where an adapter trains them.
    """
    found = [module for module in model.get_input_embeddings().modules() if isinstance(module, nn.Embedding)]
    return found[-1]


def why_not_probed(model: Any) -> str | None:
    """
    Why a model cannot score by itself in this process.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Reward model.

    Returns:
        `str`, or `None` where it can.
    """
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return "its weights are spread over devices"
    embeddings = embeddings_of(model)
    whole = embeddings.weight.shape == (embeddings.num_embeddings, embeddings.embedding_dim)
    if not whole or any(
        hasattr(parameter, "ds_id") or isinstance(parameter, DTensor) or parameter.is_meta
        for parameter in model.parameters()
    ):
        return "its weights are divided among processes, or not in memory"
    return None


def probe_rows(vocabulary: int, places: int | None, avoid: set[int], boundaries: list[int]) -> list[list[int]]:
    """
    Rows of ids that spread over a vocabulary, the same for the same arguments.

    Args:
        vocabulary (`int`):
            Ids lie below it.
        places (`int`, *optional*):
            Most tokens of a row.
        avoid (`set[int]`):
            Ids that no row has, such as that of padding.
        boundaries (`list[int]`):
            Ids that end a segment, of which every row has some.

    Returns:
        `list[list[int]]`
    """
    usable = [boundary for boundary in boundaries if boundary < vocabulary and boundary not in avoid]

    def id_at(row: int, place: int) -> int:
        if usable and place % BOUNDARY_EVERY == BOUNDARY_EVERY - 1:
            return usable[(row + place) % len(usable)]
        first = (7919 * (place + 1) * (row + 3) + 1) % vocabulary
        return next((first + i) % vocabulary for i in range(vocabulary) if (first + i) % vocabulary not in avoid)

    lengths = [min(length, places or length) for length in LENGTHS]
    return [[id_at(row, place) for place in range(length)] for row, length in enumerate(lengths)]


def score_rows(model: Any, rows: list[list[int]], starts: list[int]) -> tuple[list[float], list[list[float]]]:
    """
    Score rows one by one, in the dtype of the weights, and leave the model as it was.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Reward model.
        rows (`list[list[int]]`):
            Token ids.
        starts (`list[int]`):
            Index of each row's first response token.

    Returns:
        `tuple[list[float], list[list[float]]]`: Scores, and scores of the scales.
    """
    device = embeddings_of(model).weight.device
    modes = [(module, module.training) for module in model.modules()]
    scores, scale_scores = [], []
    model.eval()
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for row, start in zip(rows, starts, strict=True):
            ids = torch.tensor([row], device=device)
            # The class's own: a trainer may have put autocast around the instance's
            output: Any = type(model).forward(
                model,
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                response_start=torch.tensor([start], device=device),
                use_cache=False,
            )
            scores.append(output.logits.item())
            scale_scores.append(output.scale_scores[0].tolist())
    for module, training in modes:
        module.training = training
    return scores, scale_scores


def probe(model: Any) -> ProbeScores:
    """
    Score the fixed rows.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Reward model, whole in this process.

    Returns:
        [`ProbeScores`]
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    config = base.config.get_text_config()
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    rows = probe_rows(
        embeddings_of(model).num_embeddings,
        getattr(config, "max_position_embeddings", None),
        {number for number in (config.pad_token_id, config.bos_token_id, *ends) if number is not None},
        base.settings.segment_boundary_ids,
    )
    starts = [len(row) // 2 for row in rows]
    scores, scale_scores = score_rows(model, rows, starts)
    quantization = getattr(base.config, "quantization_config", None)
    return ProbeScores(
        rows,
        starts,
        str(base.dtype).removeprefix("torch."),
        quantization if quantization is None or isinstance(quantization, dict) else quantization.to_dict(),
        scores,
        scale_scores,
    )
