"""Rewards of responses against each other, by readers that compare two and have no score of one alone."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..data.messages import Messages
from .readers import group_scores
from .scorer import RewardFunction
from .scores import ResponseScore, rewards_of


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

    def __call__(
        self,
        prompts: Sequence[str | Messages],
        completions: Sequence[str | Messages],
        completion_ids: list[list[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Rewards of a batch; arguments and errors as of [`RewardFunction`]."""
        scores = self.score(prompts, completions, completion_ids, **columns)
        if log_metric is not None:
            self.report(scores, log_metric)
        return rewards_of(scores)

    def score(
        self,
        prompts: Sequence[str | Messages],
        completions: Sequence[str | Messages],
        completion_ids: list[list[int]] | None = None,
        **columns: Any,
    ) -> list[ResponseScore | None]:
        """Scores of a batch, `reward` that of the group; arguments and errors as of [`RewardFunction`]."""
        scores = super().score(prompts, completions, completion_ids, **columns)
        groups: dict[str, list[int]] = {}
        for place, (prompt, score) in enumerate(zip(prompts, scores, strict=True)):
            if score is not None:
                groups.setdefault(json.dumps(prompt), []).append(place)
        for places in groups.values():
            found = [score for place in places if (score := scores[place]) is not None]
            if len(found) == 1:
                raise ValueError(
                    f"Response {places[0] + 1} of the batch has no other one to its prompt to be compared with. Give "
                    "all responses to a prompt in one call; in training make `per_device_train_batch_size` a "
                    "multiple of `num_generations`."
                )
            outputs = torch.stack([score.z for score in found if score.z is not None])
            rewards = group_scores(outputs, found[0].weights, self.settings.reader).tolist()
            for place, score, reward in zip(places, found, rewards, strict=True):
                scores[place] = score._replace(reward=reward)
        return scores
