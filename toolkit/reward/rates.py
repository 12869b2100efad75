"""Layer and learning rate of heads on a frozen decoder, by cross-validation over prompts: all rates at once."""

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.func import functional_call, vmap
from transformers import SchedulerType, get_scheduler

from ..data.batches import SIDES
from ..stats.intervals import Interval, wilson_interval
from .states import read_layer

_SCORED_AT_ONCE = 256  # pairs


class Candidate(NamedTuple):
    """What is chosen by cross-validation, by the names of the options."""

    num_hidden_layers: int
    learning_rate: float


class StatePairs(NamedTuple):
    """The pairs of a training by their states: `P` pairs, `N` rows."""

    states: Tensor  # (N, 4, H) float32
    rows: Tensor  # (P, 2) int64: rows of chosen and rejected
    columns: dict[str, Tensor]  # (P,) float32 each: `margin` and `weight` where the data have them
    prompts: Tensor  # (P,) int64: the same number for pairs with the same prompt

    def select(self, pairs: Tensor) -> "StatePairs":
        """Some of the pairs; `pairs` are their indices or a mask."""
        columns = {name: column[pairs] for name, column in self.columns.items()}
        return StatePairs(self.states, self.rows[pairs], columns, self.prompts[pairs])


def training_states(trainer: Any) -> StatePairs:
    """
    The training pairs of a trainer with a frozen decoder.

    Args:
        trainer ([`MultiScaleRewardTrainer`]):
            The trainer.

    Returns:
        [`StatePairs`]

    Raises:
        `ValueError`: If its decoder is not frozen.
    """
    table, data = trainer.data_collator.table, trainer.train_dataset
    if table is None:
        raise ValueError("Learning rates are compared on the states of a frozen decoder. Set `freeze_decoder=True`.")
    if "prompt" in data.column_names:  # of which what was cut off is a part
        names = [json.dumps(prompt) for prompt in data["prompt"]]
    else:
        sides = zip(data["chosen_ids"], data["chosen_start"], strict=True)
        names = [json.dumps(ids[:start]) for ids, start in sides]
    number: dict[str, int] = {}
    prompts = torch.tensor([number.setdefault(name, len(number)) for name in names])
    rows = torch.stack([torch.tensor(data[column][:]) for column in table.columns], dim=1)
    present = [name for name in ("margin", "weight") if name in data.column_names]
    columns = {name: torch.tensor(data[name][:], dtype=torch.float) for name in present}
    return StatePairs(table.states, rows, columns, prompts)


def prompt_folds(prompts: Tensor, folds: int, seed: int) -> Tensor:
    """
    Divide pairs so that those of a prompt stay together.

    Args:
        prompts (`torch.Tensor` of shape `(P,)`, int64):
            Number of each pair's prompt, from 0.
        folds (`int`):
            Number of parts.
        seed (`int`):
            Seed of the division.

    Returns:
        `torch.Tensor` of shape `(P,)`, int64: Part of each pair. The parts' numbers of prompts differ by one at most.

    Raises:
        `ValueError`: If there are fewer prompts than parts, or fewer than two parts.
    """
    count = int(prompts.max()) + 1
    if not 2 <= folds <= count:
        raise ValueError(
            f"The pairs have {count} different prompts, for {folds} folds. Set 2 folds up to that number."
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    part = torch.empty_like(order)
    part[order] = torch.arange(count) % folds
    return part[prompts]


def cross_validate(
    trainer: Any, rates: Sequence[float], folds: int = 5, seeds: Sequence[int] | None = None
) -> dict[Candidate, Interval]:
    """
    How many held-out training pairs heads of several learning rates rank right, at every layer that is cached.

    The heads begin as the trainer's is, and each is trained as the trainer would train it on all folds but one:
    same loss, optimizer, schedule, batches and epochs.

    Args:
        trainer ([`MultiScaleRewardTrainer`]):
            A trainer with `freeze_decoder`, before its training. It is left as it is.
        rates (`list[float]` of length `L`):
            Learning rates.
        folds (`int`, *optional*, defaults to `5`):
            Parts of the pairs; those of one prompt are in one part.
        seeds (`list[int]`, *optional*):
            Seeds of the order of pairs; the trainer's own where they are not given. Of several seeds a pair counts by
            the share of heads that rank it right.

    Returns:
        `dict[Candidate, Interval]`: Of each layer (`layers`, or the decoder's last) and rate the accuracy on pairs
        that its heads were not trained on, with its Wilson interval. A tie counts a half, and a head with a score that
        is no number has all pairs wrong.

    Raises:
        `ValueError`: If the decoder is not frozen, prompts are fewer than folds, or the optimizer or schedule is one
            that several heads cannot share.
    """
    check_shared_training(trainer)
    own = trainer.args.seed if trainer.args.data_seed is None else trainer.args.data_seed
    pairs, seeds = training_states(trainer), [own] if seeds is None else seeds
    part = prompt_folds(pairs.prompts, folds, own)
    own_layers = trainer.reward_model.config.get_text_config().num_hidden_layers
    layers = trainer.data_collator.table.layers or {own_layers: pairs.states}
    right = torch.zeros(len(layers), len(rates), dtype=torch.float64)
    for of_layer, states in zip(right, layers.values(), strict=True):
        at_layer = pairs._replace(states=states)
        for fold in range(folds):
            heads = train_heads(trainer, at_layer.select(part != fold), rates, seeds)
            of_layer += ranked_right(trainer, at_layer.select(part == fold), heads)
    # GPUs may round otherwise than each other
    counts = broadcast_object_list(right.flatten().tolist())
    candidates = itertools.starmap(Candidate, itertools.product(layers, rates))
    return {tried: wilson_interval(count, len(part)) for tried, count in zip(candidates, counts, strict=True)}


def best_candidate(accuracies: dict[Candidate, Interval]) -> Candidate:
    """The one with the highest accuracy; of several that with the fewest layers, and then the least rate."""
    return min(accuracies, key=lambda tried: (-accuracies[tried].value, *tried))


def take_candidate(trainer: Any, candidate: Candidate) -> None:
    """
    Let a trainer train with a rate, at a layer.

    Args:
        trainer ([`MultiScaleRewardTrainer`]):
            A trainer with `freeze_decoder`, before its training.
        candidate ([`Candidate`]):
            One of those that [`cross_validate`] has compared.
    """
    if trainer.data_collator.table.layers:
        read_layer(trainer, candidate.num_hidden_layers)
        trainer.args.num_hidden_layers = candidate.num_hidden_layers
    trainer.args.learning_rate = candidate.learning_rate


def check_shared_training(trainer: Any) -> None:
    """Refuse an optimizer or a schedule that heads of several rates cannot have side by side."""
    args, instead = trainer.args, "set `learning_rate` instead of `learning_rates`"
    optimizer, _ = trainer.get_optimizer_cls_and_kwargs(args, trainer.model)
    if optimizer is not torch.optim.AdamW:
        raise ValueError(
            f"Learning rates are compared with AdamW, and `optim` is '{args.optim.value}'. Take 'adamw_torch', or "
            f"{instead}."
        )
    if args.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY):
        raise ValueError(
            f"`lr_scheduler_type='{args.lr_scheduler_type.value}'` goes by what a training measures, which heads of "
            f"several rates do not share. Take another, or {instead}."
        )


def train_heads(trainer: Any, pairs: StatePairs, rates: Sequence[float], seeds: Sequence[int]) -> dict[str, Tensor]:
    """
    Train a head for each of `L` rates and `S` seeds, as the trainer would train each.

    Args:
        trainer ([`MultiScaleRewardTrainer`]):
            The trainer: its model, where the heads begin and which does not change, its loss and its arguments.
        pairs ([`StatePairs`]):
            Pairs to train on.
        rates (`list[float]`):
            Learning rates.
        seeds (`list[int]`):
            Seeds of the order of pairs.

    Returns:
        `dict[str, torch.Tensor]`: Parameters of the heads by their name in the model, each of shape `(L, S, …)`.
    """
    args, model = trainer.args, trainer.reward_model
    own = {f"score.{name}": value.detach() for name, value in model.score.named_parameters() if value.requires_grad}
    heads = [
        {name: value.expand(len(seeds), *value.shape).clone().requires_grad_() for name, value in own.items()}
        for _ in rates
    ]
    batches = [list(_batches(args, len(pairs.rows), seed)) for seed in seeds]
    steps = len(batches[0])
    trained = [_optimizer(trainer, head, rate, steps) for head, rate in zip(heads, rates, strict=True)]
    losses = vmap(vmap(_loss_of(trainer), in_dims=(0, 0, 0, None)), in_dims=(0, None, None, None))
    for step in range(steps):
        batch = torch.stack([order[step] for order in batches]).to(pairs.rows.device)
        states = pairs.states[pairs.rows[batch]].to(args.device)
        columns = {name: column[batch].to(args.device) for name, column in pairs.columns.items()}
        stacked = {name: torch.stack([head[name] for head in heads]) for name in own}
        losses(stacked, states, columns, _shares(args, batch.size(1)).to(args.device)).sum().backward()
        for head, (optimizer, schedule) in zip(heads, trained, strict=True):
            _clip(head, args.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return {name: torch.stack([head[name].detach() for head in heads]) for name in own}


@torch.no_grad()
def ranked_right(trainer: Any, pairs: StatePairs, heads: dict[str, Tensor]) -> Tensor:
    """
    How many pairs heads rank right.

    Args:
        trainer ([`MultiScaleRewardTrainer`]):
            The trainer whose model the heads belong to.
        pairs ([`StatePairs`]):
            Pairs.
        heads (`dict[str, torch.Tensor]`):
            Parameters of shape `(L, S, …)`, from [`train_heads`].

    Returns:
        `torch.Tensor` of shape `(L,)`, float64: The mean over the seeds, a tie a half.
    """

    def scores(head: dict[str, Tensor], states: Tensor) -> Tensor:
        logits: Tensor = functional_call(trainer.reward_model, head, kwargs={"states": states}).logits
        return logits[:, 0]

    right = torch.zeros(len(next(iter(heads.values()))), dtype=torch.float64)
    for rows in pairs.rows.split(_SCORED_AT_ONCE):
        states = pairs.states[rows].flatten(0, 1).to(trainer.args.device)
        found = vmap(vmap(scores, in_dims=(0, None)), in_dims=(0, None))(heads, states)
        chosen, rejected = found.unflatten(2, (-1, len(SIDES))).unbind(3)
        wins = (chosen > rejected).double() + (chosen == rejected).double() / 2
        right += wins.sum(2).mean(1).cpu()
    return right


def _loss_of(trainer: Any) -> Any:
    """Loss of a head on a batch of `B` pairs whose states are `(B, 2, 4, H)`, weighed by their shares of the step."""

    def loss(head: dict[str, Tensor], states: Tensor, columns: dict[str, Tensor], shares: Tensor) -> Tensor:
        # All chosen, then all rejected
        output = functional_call(trainer.reward_model, head, kwargs={"states": states.transpose(0, 1).flatten(0, 1)})
        sizes = torch.full((len(states),), len(SIDES), device=states.device)
        beside = {"group_sizes": sizes, "response_tokens": sizes.repeat(len(SIDES)), **columns}
        return (trainer.pair_scores(output, beside).loss * shares).sum()  # type: ignore[no-any-return]

    return loss


def _batches(args: Any, pairs: int, seed: int) -> Iterator[Tensor]:
    """Pairs of each optimizer step, in the trainer's order."""
    batch = args.train_batch_size * args.world_size
    kept = pairs // batch * batch if args.dataloader_drop_last else pairs
    if kept == 0:
        raise ValueError(
            f"`dataloader_drop_last=True` leaves none of a fold's {pairs} pairs, fewer than a batch of {batch}. Set "
            "it to False, or make batches smaller."
        )
    size = batch * args.gradient_accumulation_steps
    an_epoch = -(-kept // size)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * an_epoch)
    for step in range(steps):
        epoch, place = divmod(step, an_epoch)
        order = torch.randperm(pairs, generator=torch.Generator().manual_seed(seed + epoch))
        if args.train_sampling_strategy == "sequential":
            order = torch.arange(pairs)
        yield order[:kept][place * size : (place + 1) * size]


def _shares(args: Any, pairs: int) -> Tensor:
    """Weight of each pair in the loss of a step, which is the mean over its batches of their means."""
    batches = torch.ones(pairs).split(args.train_batch_size)
    return torch.cat([batch / len(batch) / len(batches) for batch in batches])


def _optimizer(trainer: Any, head: dict[str, Tensor], rate: float, steps: int) -> tuple[Any, Any]:
    args = trainer.args
    kind, options = trainer.get_optimizer_cls_and_kwargs(args, trainer.model)
    decays = set(trainer.get_decay_parameter_names(trainer.reward_model))
    groups = [
        {"params": [value for name, value in head.items() if name in decays], "weight_decay": args.weight_decay},
        {"params": [value for name, value in head.items() if name not in decays], "weight_decay": 0.0},
    ]
    optimizer = kind([group for group in groups if group["params"]], **{**options, "lr": rate})
    schedule = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    return optimizer, schedule


def _clip(head: dict[str, Tensor], most: float | None) -> None:
    """Clip the gradient of each seed's head to a norm, as `clip_grad_norm_` does to one's."""
    gradients = [value.grad for value in head.values() if value.grad is not None]
    if not most or not gradients:
        return
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    factors = (most / (norms + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient *= factors.view(-1, *[1] * (gradient.dim() - 1))
