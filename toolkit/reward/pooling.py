"""The head as one linear map, as engines of inference read it at every token, and the arithmetic of who asks them.

vLLM's and SGLang's sequence classification classes know one parameter of a head, `score.weight`, and what they return
of a token is linear in its state. Weights of scales that follow the prompt, and means over tokens, are left to whoever
asks. Both were read in the engines' documentation and source, and neither has been run here.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.positions import response_mask
from ..training.run_record import write_json
from .fingerprints import read_json
from .head import PARAMETERS, HeadOutput, MultiScaleHead, MultiScaleSettings
from .output import MultiScaleRewardOutput
from .reading import read_scores, response_starts

POOLING_NAME = "pooling.json"
STATE = "state"  # rows that give a token's state itself
ARITHMETIC = {
    "none": "reward = mean over the scales of their scores",
    "gate": "weights = softmax(gate rows at the prompt's last token + gate_bias), with unit_prompt the rows over the "
    "length of the `state` rows there; reward = sum over the scales of weight times score",
    "head": "response row at any token + sum of the context_response rows there times the context_prompt rows at the "
    "prompt's last token, in its place; reward = mean over the scales of their scores",
}
CENTRED = "; of the response row, or what is in its place, that at the prompt's last token is taken off before"
SCALE_SCORES = {
    "token": "mean of the row over the response's tokens",
    "segment": "mean of the row over the segment ends: the first of every run of segment_boundary_ids in the "
    "response, and its last token where that is none of them",
    "response": "the row at the response's last token",
}


@dataclass
class PooledHead:
    """
    What a client must know of a stacked head. Stored beside it as `pooling.json`.

    Args:
        rows (`dict[str, int]`):
            What the rows of `score.weight` are, in their order, and how many each has.
        gate_bias (`list[float]`):
            Added to the gate's rows, as engines load no bias; empty without a gate.
        settings ([`MultiScaleSettings`]):
            Settings of the model.
    """

    rows: dict[str, int]
    gate_bias: list[float]
    settings: MultiScaleSettings


def stack_head(head: MultiScaleHead, settings: MultiScaleSettings) -> tuple[Tensor, PooledHead]:
    """
    All linear maps of a head in one matrix.

    A gate that reads the prompt's state at length 1 needs that length, which no few linear maps tell: the state itself
    is then among what is returned, one row for each of its dimensions.

    Args:
        head ([`MultiScaleHead`]):
            Head of a model of hidden size `H`.
        settings ([`MultiScaleSettings`]):
            Settings of that model.

    Returns:
        `tuple[torch.Tensor, PooledHead]`: The matrix `(L, H)` in float32, and what its `L` rows are.
    """
    maps = {scale: getattr(head, PARAMETERS[scale]) for scale in settings.scales}
    if settings.context == "gate":
        maps["gate"] = head.gate
        if settings.unit_prompt:
            maps[STATE] = torch.eye(head.in_features)
    if settings.context == "head":
        maps |= {name: getattr(head, name) for name in ("context_prompt", "context_response")}
    bias = head.gate_bias.tolist() if settings.context == "gate" else []
    stacked = torch.cat([part.detach().float().cpu() for part in maps.values()])
    return stacked, PooledHead({name: len(part) for name, part in maps.items()}, bias, settings)


def read_pooled(
    logits: Tensor,
    input_ids: Tensor,
    head: PooledHead,
    attention_mask: Tensor | None = None,
    response_start: Tensor | None = None,
) -> MultiScaleRewardOutput:
    """
    Scores out of what an engine returns of every token: those of the model itself.

    Args:
        logits (`torch.Tensor` of shape `(B, T, L)`, float):
            A stacked head read at every token, without an activation.
        input_ids (`torch.Tensor` of shape `(B, T)`, int64):
            Prompt and response of each row, padded on either side.
        head ([`PooledHead`]):
            What the `L` rows are, from [`load_pooled_head`].
        attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*):
            1 on real tokens; where it is not given every token is real.
        response_start (`torch.Tensor` of shape `(B,)`, int64, *optional*):
            Index of each row's first response token. Where it is not given, the response starts after the last
            response marker that was saved with the model.

    Returns:
        [`MultiScaleRewardOutput`]: `logits` is the score.

    Raises:
        `ValueError`: If `logits` have not a row of the head for each token, or the response cannot be found.
    """
    wanted = (*input_ids.shape, sum(head.rows.values()))
    if logits.shape != wanted:
        raise ValueError(
            f"`logits` have the shape {tuple(logits.shape)}, and {wanted} is needed: of every token all rows of the "
            "head. Ask the engine for every token (vLLM's task `token_classify`), and for the folder's own model."
        )
    settings, device = head.settings, logits.device
    attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if response_start is None:
        response_start = response_starts(settings, input_ids, attention_mask)
    read = dict(zip(head.rows, logits.float().split(list(head.rows.values()), dim=-1), strict=True))
    context = (response_start - 1).clamp(min=0)
    at_prompt = {name: value[torch.arange(len(context), device=device), context] for name, value in read.items()}
    zeros = logits.new_zeros(input_ids.shape, dtype=torch.float32)
    scores = {scale: read[scale][..., 0] if scale in read else zeros for scale in SCALE_SCORES}
    if settings.context == "head":
        by_prompt = at_prompt["context_prompt"][:, None]
        scores["response"] = scores["response"] + (read["context_response"] * by_prompt).sum(-1)
    if settings.centre_by_prompt:
        rows = torch.arange(len(context), device=device)
        scores["response"] = scores["response"] - scores["response"][rows, context][:, None]
    if settings.context == "gate":
        length = at_prompt[STATE].norm(dim=-1, keepdim=True) if settings.unit_prompt else 1.0
        gate = (at_prompt["gate"] / length + torch.tensor(head.gate_bias, device=device)).softmax(-1)
    else:
        gate = torch.full((len(context), len(settings.scales)), 1 / len(settings.scales), device=device)
    response = response_mask(response_start, attention_mask)
    boundaries = torch.tensor(settings.segment_boundary_ids, dtype=torch.long, device=device)
    boundary = torch.isin(input_ids, boundaries) & response
    return read_scores(HeadOutput(**scores, gate=gate), response, boundary, context, settings.scales)


def save_pooled_head(head: PooledHead, folder: str | Path) -> None:
    """
    Write what a client must know, with the arithmetic in words.

    Args:
        head ([`PooledHead`]):
            What the rows of `score.weight` are.
        folder (`str` or `Path`):
            Folder of the model.
    """
    settings = head.settings
    write_json(
        Path(folder, POOLING_NAME),
        {
            **asdict(head),
            "request": "token ids of prompt and response as in training; of every token all rows, no activation",
            "scores": {scale: SCALE_SCORES[scale] for scale in settings.scales},
            "reward": ARITHMETIC[settings.context] + (CENTRED if settings.centre_by_prompt else ""),
        },
    )


def load_pooled_head(folder: str | Path) -> PooledHead:
    """
    Read what a client must know of an exported folder; the weights are not looked at.

    Args:
        folder (`str` or `Path`):
            Folder that `prefscale export --form pooling` has made, or a copy of its `pooling.json` alone.

    Returns:
        [`PooledHead`]

    Raises:
        `ValueError`: If the file is missing or damaged.
    """
    saved: dict[str, Any] = read_json(Path(folder, POOLING_NAME))
    try:
        return PooledHead(saved["rows"], saved["gate_bias"], MultiScaleSettings.from_saved(saved["settings"]))
    except KeyError as error:
        raise ValueError(f"'{Path(folder, POOLING_NAME)}' lacks {error}. Export the model again.") from None
