"""Many heads on the states of a frozen decoder, trained side by side.

Heads of one preference model that differ in their learning rate, their weight decay, or the pairs that they may see,
see the same batches in the same order, so that one tensor holds the maps of all of them. Each is trained as
`MultiScaleRewardTrainer` trains one: AdamW, gradients clipped to norm 1, warmup, cosine.

Shapes: `K` heads, `P` pairs, `S` scales, `H` hidden size.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...reward.head import CONTEXT_RANK, STATES
from ...reward.losses import multi_scale_loss
from ...reward.scales import mix

BATCH, WARMUP = 32, 0.1  # pairs of a step, as many of which as a head may see; share of the steps
BETAS, EPSILON, CLIP = (0.9, 0.999), 1e-8, 1.0  # Transformers' defaults
STD = 0.02

Maps = dict[str, Tensor]  # (K, ...), of each scale, the gate and the part that the prompt conditions


class Plan(NamedTuple):
    """What a head reads, and how it is trained: options of the trainer under their names there."""

    scales: tuple[str, ...] = ("token", "segment", "response")
    context: str = "none"
    unit_prompt: bool = True
    loss_type: str = "pairwise"
    weight_by_strength: bool = True
    scale_loss_weight: float = 0.5


def new_maps(plan: Plan, heads: int, size: int, seed: int) -> Maps:
    """Maps of new heads, all with the same values: as `MultiScaleHead` draws them."""
    generator = torch.Generator().manual_seed(seed)
    maps = {scale: STD * torch.randn(1, size, generator=generator) for scale in plan.scales}
    if plan.context == "gate":
        maps |= {"gate": torch.zeros(len(plan.scales), size), "gate_bias": torch.zeros(len(plan.scales))}
    if plan.context == "head":
        maps |= {
            "context_prompt": STD * torch.randn(CONTEXT_RANK, size, generator=generator),
            "context_response": torch.zeros(CONTEXT_RANK, size),
        }
    return {name: value.expand(heads, *value.shape).clone() for name, value in maps.items()}


def read(plan: Plan, maps: Maps, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """
    Scores of `N` responses by every head.

    Args:
        plan ([`Plan`]):
            What the heads read.
        maps (`dict[str, torch.Tensor]`):
            Their maps.
        states (`torch.Tensor` of shape `(N, 4, H)`, float32):
            Vectors in the order of [`~toolkit.reward.head.STATES`].

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: Scores `(K, N)`, those of each scale and the weights of the
            scales, `(K, N, S)`.
    """
    prompt = states[:, STATES.index("prompt")]
    by_scale = []
    for scale in plan.scales:
        vector = states[:, STATES.index(scale)]
        score = (maps[scale] @ vector.T)[:, 0]
        if scale == "response" and plan.context == "head":
            score = score + ((maps["context_prompt"] @ prompt.T) * (maps["context_response"] @ vector.T)).sum(1)
        by_scale.append(score)
    scores = torch.stack(by_scale, -1)
    if plan.context == "gate":
        prompt = F.normalize(prompt, dim=-1) if plan.unit_prompt else prompt
        gate = (maps["gate"] @ prompt.T + maps["gate_bias"][..., None]).softmax(1).mT
    else:
        gate = torch.full_like(scores, 1 / len(plan.scales))
    return mix(scores.flatten(0, 1), gate.flatten(0, 1)).view(scores.shape[:2]), scores, gate


def train(
    plan: Plan,
    chosen: Tensor,
    rejected: Tensor,
    weight: Tensor,
    *,
    rates: Tensor,
    decays: Tensor,
    seen: Tensor | None = None,
    epochs: int = 5,
    seed: int = 0,
) -> Maps:
    """
    Train heads on the states of pairs.

    Args:
        plan ([`Plan`]):
            What they read, and their loss.
        chosen (`torch.Tensor` of shape `(P, 4, H)`, float32):
            States of the preferred responses.
        rejected (`torch.Tensor` of shape `(P, 4, H)`, float32):
            States of the other ones.
        weight (`torch.Tensor` of shape `(P,)`, float32):
            Weight of each pair, with mean 1.
        rates (`torch.Tensor` of shape `(K,)`, float32):
            Learning rate of each head.
        decays (`torch.Tensor` of shape `(K,)`, float32):
            Weight decay of each head.
        seen (`torch.Tensor` of shape `(K, P)`, bool, *optional*):
            Pairs that each head may see; every head sees about as many. All where it is not given.
        epochs (`int`, *optional*, defaults to `5`):
            Times that the pairs are gone through.
        seed (`int`, *optional*, defaults to `0`):
            Of the new maps and of the order.

    Returns:
        `dict[str, torch.Tensor]`: The maps.
    """
    seen = torch.ones(len(rates), len(chosen), dtype=torch.bool) if seen is None else seen
    size = round(BATCH * seen.size(1) / (seen.sum() / len(seen)).item())
    maps = {name: value.requires_grad_() for name, value in new_maps(plan, len(rates), chosen.size(2), seed).items()}
    optimizer = _AdamW(maps, rates, decays)
    steps = epochs * -(-len(chosen) // size)
    generator, step = torch.Generator().manual_seed(seed), 0
    for _ in range(epochs):
        for rows in torch.randperm(len(chosen), generator=generator).split(size):
            loss = _losses(plan, maps, chosen[rows], rejected[rows], weight[rows])
            keep = seen[:, rows].float()
            # A head is stepped by its own loss, so that their sum has every head's own gradient
            total = ((loss * keep).sum(1) / keep.sum(1).clamp(min=1)).sum()
            optimizer.step(torch.autograd.grad(total, list(maps.values())), _schedule(step, steps))
            step += 1
    return {name: value.detach() for name, value in maps.items()}


def _losses(plan: Plan, maps: Maps, chosen: Tensor, rejected: Tensor, weight: Tensor) -> Tensor:
    """Losses `(K, P)`."""
    (good, good_scales, _), (bad, bad_scales, _) = (read(plan, maps, side) for side in (chosen, rejected))
    losses = multi_scale_loss(
        good.flatten(),
        bad.flatten(),
        good_scales.flatten(0, 1),
        bad_scales.flatten(0, 1),
        pointwise=plan.loss_type == "pointwise",
        weight=weight.repeat(len(good)) if plan.weight_by_strength else None,
        scale_weight=plan.scale_loss_weight,
    )
    return losses.total.view(good.shape)


def _schedule(step: int, steps: int) -> float:
    """Share of the learning rate: a linear warmup, then half a cosine, as Transformers has them."""
    warmup = math.ceil(WARMUP * steps)
    if step < warmup:
        return step / max(1, warmup)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class _AdamW:
    """AdamW for the maps of many heads, each with a rate, a decay and a gradient norm of its own."""

    def __init__(self, maps: Maps, rates: Tensor, decays: Tensor) -> None:
        self.values, self.rates, self.decays, self.steps = list(maps.values()), rates, decays, 0
        self.first = [torch.zeros_like(value) for value in self.values]
        self.second = [torch.zeros_like(value) for value in self.values]

    @torch.no_grad()
    def step(self, gradients: Any, share: float) -> None:
        self.steps += 1
        norm = sum((gradient.flatten(1) ** 2).sum(1) for gradient in gradients) ** 0.5
        factor = (CLIP / (norm + 1e-6)).clamp(max=1)
        ones = [1 - beta**self.steps for beta in BETAS]
        for value, gradient, first, second in zip(self.values, gradients, self.first, self.second, strict=True):
            shape = (-1,) + (1,) * (value.dim() - 1)
            gradient, rate = gradient * factor.view(shape), (share * self.rates).view(shape)
            value.mul_(1 - rate * self.decays.view(shape))
            first.lerp_(gradient, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            value.sub_(rate / ones[0] * first / ((second / ones[1]).sqrt() + EPSILON))
