"""How many ranked lists a second a reward trainer learns from."""

import time
from typing import Any

import torch


def list_speeds(trainers: dict[str, Any], lists_a_step: int, rounds: int = 12) -> dict[str, dict[str, float]]:
    """
    Lists a second of processor time, and tokens a list, each trainer's steps in turn with the others'.

    Args:
        trainers (`dict[str, MultiScaleRewardTrainer]`):
            By name; of lists, or of the pairs that they make.
        lists_a_step (`int`):
            How many lists a batch of each has.
        rounds (`int`, *optional*, defaults to `12`):
            Steps of each that count, after two that do not.

    Returns:
        `dict[str, dict[str, float]]`: `lists/s` and `tokens/list` by trainer.
    """
    spent, tokens = dict.fromkeys(trainers, 0.0), dict.fromkeys(trainers, 0)
    loaders = {name: iter(trainer.get_train_dataloader()) for name, trainer in trainers.items()}
    optimizers = {name: torch.optim.AdamW(trainer.model.parameters(), 1e-5) for name, trainer in trainers.items()}
    for turn in range(rounds + 2):
        for name, trainer in trainers.items():
            batch, start = next(loaders[name]), time.process_time()
            trainer.compute_loss(trainer.model.train(), batch).backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            if turn >= 2:  # after what the first steps set up
                spent[name] += time.process_time() - start
                tokens[name] += batch["pair_tokens"].sum().item()
    lists = rounds * lists_a_step
    return {name: {"lists/s": lists / spent[name], "tokens/list": tokens[name] / lists} for name in trainers}
