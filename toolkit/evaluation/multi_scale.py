"""Scores by a multi-scale reward model, and what the reader of one with several outputs says of pairs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils.logging import get_logger

from ..data.messages import Messages
from ..data.tastes import ANNOTATOR
from ..reward.model import base_reward_model
from ..reward.readers import read_gap
from ..reward.scorer import RewardFunction
from ..reward.scores import ResponseScore
from .pairs import Scored, ScoredPairs

logger = get_logger(__name__)

MIX = "mix"
_OUTPUT, _WEIGHT = "output {}", "weight {}"  # names of what a reader needs, among the scores


class MultiScaleScorer:
    """
    Scores of responses by a multi-scale reward model: its mix, its scales, and its outputs where it has several.

    Args:
        reward ([`~toolkit.RewardFunction`]):
            The model.
    """

    def __init__(self, reward: RewardFunction) -> None:
        self.reward, self.settings = reward, reward.settings

    def __call__(
        self, prompts: Sequence[str | Messages], responses: Sequence[str | Messages], columns: dict[str, list[Any]]
    ) -> dict[str, list[float]]:
        """Scores by name, in the order of the responses."""
        found = self.reward.score(prompts, responses, **columns)
        scores = [each for each in found if each is not None]
        if len(scores) < len(found):
            raise ValueError(f"Response {found.index(None) + 1} of the batch is empty. Leave its pair out.")
        rows = [self._named(each) for each in scores]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _named(self, score: ResponseScore) -> dict[str, float]:
        named = {MIX: score.reward} | dict(zip(self.settings.scales, score.scale_scores.tolist(), strict=True))
        for name, values in ((_OUTPUT, score.z), (_WEIGHT, score.weights)):
            named |= {name.format(k): value for k, value in enumerate([] if values is None else values.tolist())}
        return named

    def with_reader(self, found: Scored, pairs: ScoredPairs) -> list[Scored]:
        """
        The score with its outputs by attribute, and beside it what the model's own reader says of the pairs.

        Args:
            found ([`Scored`]):
                What the model says of each response, everything but the mix among `scales`.
            pairs ([`~toolkit.evaluation.pairs.ScoredPairs`]):
                The pairs, whose `annotator` is the one for whom a model with weights of annotators reads them; of
                others, and where there is none, it is read with the weights that all share, which a warning counts.

        Returns:
            `list[Scored]`: The second only where the reader's gap is not the difference of two scores.
        """
        settings, scales = self.settings, dict(found.scales)
        outputs = [scales.pop(_OUTPUT.format(k)) for k in range(settings.outputs)] if settings.outputs > 1 else []
        weights = [scales.pop(name) for name in list(scales) if name not in settings.scales]
        found = found._replace(scales=scales, attributes=dict(zip(settings.attributes, outputs, strict=False)))
        by_annotator = settings.reader_weights == "annotator" and ANNOTATOR in pairs.groups
        if not outputs or (settings.reader == "linear" and not by_annotator):
            return [found]
        z, own = torch.stack(outputs, dim=-1), None
        if by_annotator:
            own = self._weights_of(pairs.groups[ANNOTATOR], found.name)
        elif weights:
            own = torch.stack(weights, dim=-1)[pairs.chosen]
        gaps = read_gap(z[pairs.chosen], z[pairs.rejected], own, settings.reader)
        return [found, Scored(f"{found.name} (reader)", found.kind, found.scores, {}, gaps=gaps)]

    def _weights_of(self, annotators: list[str | None], name: str) -> Tensor:
        place = {own: k for k, own in enumerate(self.settings.annotators)}
        index = torch.tensor([-1 if own is None else place.get(own, -1) for own in annotators])
        if unknown := int((index < 0).sum()):
            logger.warning(
                f"Model '{name}': {unknown:,} of {len(index):,} pairs have no annotator whom it knows, and are read "
                "with the weights that all share."
            )
        with torch.no_grad():
            weights: Tensor = base_reward_model(self.reward.model).score.weights_of_annotators(index)
        return weights.double().cpu()
