"""Rewards of responses against each other, by readers that compare two and have no score of one alone."""

import json
from collections.abc import Sequence
from typing import Any

import torch

from .readers import group_scores
from .scorer import RewardFunction
from .scores import ResponseScore


class GroupRewardFunction(RewardFunction):
    """
    [`RewardFunction`] of a model with several outputs; the reward is the mean gap to the other responses to a prompt.

    Gaps are in nats, by the model's own reader: of `mixture`, `skew` and `gaussian`, which compare two responses, this
    is what can be had of preferences as they were learnt, circles included. All responses to a prompt must be in one
    call: in training make `per_device_train_batch_size` a multiple of `num_generations`. What is said of prefixes
    stays that of a response alone.

    Args:
        model, kw:
            As of [`RewardFunction`].

    Raises:
        `ValueError`: As there; or if the model has one output, or in a call a prompt has one response alone.
    """

    def __init__(self, model: Any, *args: Any, **kw: Any) -> None:
        super().__init__(model, *args, **kw)
        if self.settings.outputs == 1:
            raise ValueError("The reward model has one output, which scores a response alone. Use `RewardFunction`.")
        if self.reader is not None:
            raise ValueError(f"`reader` is {self.reader!r}, and a group is read by the model's own. Leave it out.")

    def _of_batch(self, prompts: Sequence[Any], found: dict[int, ResponseScore]) -> list[ResponseScore | None]:
        groups: dict[str, list[int]] = {}
        for place in found:
            groups.setdefault(json.dumps(prompts[place]), []).append(place)
        for places in groups.values():
            if len(places) == 1:
                raise ValueError(
                    f"Response {places[0] + 1} of the batch has no other one to its prompt to be compared with. Give "
                    "all responses to a prompt in one call; in training make `per_device_train_batch_size` a "
                    "multiple of `num_generations`."
                )
            outputs = [z for place in places if (z := found[place].z) is not None]
            rewards = group_scores(torch.stack(outputs), found[places[0]].weights, self.settings.reader)
            for place, reward in zip(places, rewards.tolist(), strict=True):
                found[place] = found[place]._replace(reward=reward)
        return super()._of_batch(prompts, found)
