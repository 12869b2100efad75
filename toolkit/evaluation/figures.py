"""From scores to figures: what a model ranks right, on which pairs, how sure it is, and how much of it is length."""

from itertools import combinations
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..stats.best_of import ScoredSet, best_of
from ..stats.calibration import (
    ReliabilityBin,
    calibration_error,
    calibration_error_by_chance,
    cross_fitted,
    fit_temperature,
    log_loss,
    reliability,
)
from ..stats.intervals import Interval, PairAccuracy, wilson_interval
from ..stats.length_control import of_like_length, without_length
from ..stats.metrics import correlation, pair_accuracy
from ..stats.multiple import holm
from ..stats.rankings import best_found, kendall_tau
from ..stats.resampling import bootstrap_interval
from .pairs import TIES, RankedList, ResponseSet, Scored, ScoredPairs


class Calibration(NamedTuple):
    """How sure the gaps of a score are, and how right."""

    log_loss: float  # in nats
    error: float  # expected calibration error
    error_by_chance: float  # which a calibrated score with these gaps exceeds once in twenty times
    temperature: float | None  # fitted on all pairs; None with one prompt, as the two below
    scaled_log_loss: float | None  # with temperatures of other prompts
    scaled_error: float | None
    reliability: list[ReliabilityBin]


class LengthControl(NamedTuple):
    """How a score goes with length, and what it ranks right beside it."""

    correlation: float  # of score and length in characters, over all responses
    slope: float  # score for a response e times as long as another to the same prompt
    like_length: PairAccuracy  # of pairs whose longer side is at most 1.2 times as long
    regressed_out: PairAccuracy


class BestOf(NamedTuple):
    """How often the response with the highest score of a set is a right one."""

    value: float
    low: float
    high: float
    chance: float  # by drawing one at random
    sets: int


class ListFigures(NamedTuple):
    """How near the order of scores comes to rankings."""

    kendall_tau: Interval  # mean over the lists
    top_1: Interval  # share of lists in which the response with the highest score is one of the best rank
    lists: int


class ModelFigures(NamedTuple):
    """What is known of one score."""

    kind: str
    accuracy: PairAccuracy
    scales: dict[str, PairAccuracy]
    groups: dict[str, dict[str, PairAccuracy]]
    attributes: dict[str, PairAccuracy]  # of the pairs that differ in it, of which the side with more is to be higher
    calibration: Calibration
    length: LengthControl
    best_of: BestOf | None
    best_of_subsets: dict[str, BestOf]
    lists: ListFigures | None


class Difference(NamedTuple):
    """How much more often one score ranks a pair right than another one."""

    first: str
    second: str
    value: float
    low: float
    high: float
    p: float  # two-sided, by the normal distribution with the bootstrap's spread
    p_of_family: float  # Holm's, for all differences together


class Figures(NamedTuple):
    """Everything that is known of several scores on the same pairs."""

    pairs: int
    prompts: int
    responses: int
    undecided_prompts: int
    models: dict[str, ModelFigures]
    differences: list[Difference]


def figures_of(scored: list[Scored], pairs: ScoredPairs) -> Figures:
    """
    Figures of several scores on the same pairs.

    Args:
        scored (`list[Scored]`):
            Scores of all responses.
        pairs ([`~toolkit.evaluation.pairs.ScoredPairs`]):
            The pairs and sets that the responses make.

    Returns:
        [`Figures`]
    """
    return Figures(
        pairs=len(pairs.chosen),
        prompts=len(pairs.prompt_numbers.unique()),
        responses=len(pairs.responses),
        undecided_prompts=pairs.undecided,
        models={each.name: _figures_of_one(each, pairs) for each in scored},
        differences=_differences(scored, pairs),
    )


def _figures_of_one(scored: Scored, pairs: ScoredPairs) -> ModelFigures:
    gap = scored.gaps_of(pairs)
    alone = scored.gaps is None  # a reader of two responses orders no more than these
    sets = [each for each in pairs.sets if alone and not is_ties(each.subset)]
    subsets = {each.subset for each in sets if each.subset is not None}
    return ModelFigures(
        kind=scored.kind,
        accuracy=accuracy_of(gap, pairs.prompt_numbers),
        scales={
            name: accuracy_of(scores[pairs.chosen] - scores[pairs.rejected], pairs.prompt_numbers)
            for name, scores in scored.scales.items()
        },
        groups={
            name: _accuracies_by(labels, gap, pairs) for name, labels in pairs.groups.items() if len(set(labels)) > 1
        },
        attributes=_accuracies_by_attribute(scored, gap, pairs),
        calibration=_calibration(gap, pairs.prompt_numbers),
        length=_length_control(scored.scores, gap, pairs),
        best_of=_best_of([set_of(scored, each) for each in sets]) if sets else None,
        best_of_subsets={
            name: _best_of([set_of(scored, each) for each in sets if each.subset == name]) for name in sorted(subsets)
        },
        lists=_of_lists(scored.scores, pairs.lists) if alone and pairs.lists else None,
    )


def is_ties(subset: str | None) -> bool:
    """Whether a subset is RewardBench 2's of many right answers, which has a rule of its own."""
    return (subset or "").lower() == TIES


def set_of(scored: Scored, each: ResponseSet) -> ScoredSet:
    """Scores of a set of responses."""
    return ScoredSet(scored.scores[each.responses].tolist(), each.correct)


def accuracy_of(gap: Tensor, prompts: Tensor) -> PairAccuracy:
    """Share of gaps above 0, with the interval of pairs of which those of one prompt go together."""
    return pair_accuracy(gap, torch.zeros_like(gap), clusters=prompts)


def _accuracies_by(labels: list[str | None], gap: Tensor, pairs: ScoredPairs) -> dict[str, PairAccuracy]:
    found = {}
    for name in sorted({label for label in labels if label is not None}):
        some = torch.tensor([label == name for label in labels])
        found[name] = accuracy_of(gap[some], pairs.prompt_numbers[some])
    return found


def _accuracies_by_attribute(scored: Scored, gap: Tensor, pairs: ScoredPairs) -> dict[str, PairAccuracy]:
    found = {}
    for name, more in pairs.attributes.items():
        own = scored.attributes.get(name)
        said = (gap if own is None else own[pairs.chosen] - own[pairs.rejected]) * more.sign()
        differ = more.abs() > 0  # not where it is not known
        if differ.any():
            found[name] = accuracy_of(said[differ], pairs.prompt_numbers[differ])
    return found


def _calibration(gap: Tensor, prompts: Tensor) -> Calibration:
    several = len(prompts.unique()) > 1
    scaled = cross_fitted(gap, prompts) if several else gap
    return Calibration(
        log_loss=log_loss(gap),
        error=calibration_error(gap),
        error_by_chance=calibration_error_by_chance(gap),
        temperature=fit_temperature(gap) if several else None,
        scaled_log_loss=log_loss(scaled) if several else None,
        scaled_error=calibration_error(scaled) if several else None,
        reliability=reliability(gap),
    )


def _length_control(scores: Tensor, gap: Tensor, pairs: ScoredPairs) -> LengthControl:
    first, second = pairs.lengths[pairs.chosen], pairs.lengths[pairs.rejected]
    slope, residuals = without_length(gap, first, second)
    like = of_like_length(first, second)
    return LengthControl(
        correlation=correlation(scores, pairs.lengths),
        slope=slope,
        like_length=accuracy_of(gap[like], pairs.prompt_numbers[like]),
        regressed_out=accuracy_of(residuals, pairs.prompt_numbers),
    )


def _best_of(sets: list[ScoredSet]) -> BestOf:
    found = wilson_interval(sum(map(best_of, sets)), len(sets))
    return BestOf(*found, sum(each.correct / len(each.scores) for each in sets) / len(sets), len(sets))


def _of_lists(scores: Tensor, lists: list[RankedList]) -> ListFigures:
    """Kendall's correlation and the best found, with intervals by a bootstrap over prompts."""
    ranks = pad_sequence([torch.tensor(each.ranks) for each in lists], True, -1)
    own = pad_sequence([scores[each.responses] for each in lists], True)
    _, numbers = torch.tensor([each.prompt for each in lists]).unique(return_inverse=True)
    sizes = torch.bincount(numbers)
    tau, top = (
        scores.new_zeros(len(sizes)).index_add_(0, numbers, of(own, ranks)) for of in (kendall_tau, best_found)
    )
    return ListFigures(bootstrap_interval(tau[None], sizes), bootstrap_interval(top[None], sizes), len(lists))


def _differences(scored: list[Scored], pairs: ScoredPairs) -> list[Difference]:
    """Differences of every two, by a bootstrap over prompts."""
    _, numbers = pairs.prompt_numbers.unique(return_inverse=True)
    sizes = torch.bincount(numbers)
    right = {}
    for each in scored:
        outcomes = (each.gaps_of(pairs).sign() + 1) / 2
        right[each.name] = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, numbers, outcomes)
    found = []
    for first, second in combinations(right, 2):
        interval = bootstrap_interval((right[first] - right[second])[None], sizes)
        found.append((first, second, interval, _p_value(interval)))
    families = holm([p for *_, p in found])
    return [
        Difference(first, second, *interval, p, family)
        for (first, second, interval, p), family in zip(found, families, strict=True)
    ]


def _p_value(interval: Interval) -> float:
    """Two-sided, of the difference 0, as if the bootstrap's means were normal."""
    spread = (interval.high - interval.low) / (2 * NormalDist().inv_cdf(0.975))
    if spread == 0:
        return 1.0 if interval.value == 0 else 0.0
    return 2 * NormalDist().cdf(-abs(interval.value) / spread)
