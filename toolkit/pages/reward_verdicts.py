"""Verdicts on a training that ranks pairs: a reward model's, or DPO."""

import math
from collections.abc import Mapping
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from ..reward.scales import SCALES
from ..stats.intervals import Interval, PairAccuracy, difference_of_shares, wilson_interval
from ..stats.metrics import effective_count, mean_interval
from .run_files import RunRecord
from .verdicts import HELD_OUT, SURE, TRAINING, Verdict, less, percent, points

_TELLING = 0.1  # width of an interval of a share beyond which one half inside it says little, as of 380 pairs or fewer


def reward_verdicts(record: RunRecord) -> list[Verdict]:
    """Verdicts on a training that ranks pairs: a reward model's, or DPO."""
    found = [against_chance(record), against_length(record), against_scales(record), gate(record), overfitting(record)]
    return [verdict for verdict in found if verdict]


def held_out_accuracy(record: RunRecord, name: str = "") -> PairAccuracy | None:
    """Accuracy of the mix, a scale or `longer_wins` on held-out pairs; where TRL logs no interval it is computed."""
    figures, key = record.evaluation, f"eval_accuracy/{name}" if name else "eval_accuracy"
    key = key if name or key in figures else "eval_rewards/accuracies"  # DPO's
    pairs = figures.get("eval_pairs", figures.get("eval_runtime", 0) * figures.get("eval_samples_per_second", 0))
    if key not in figures or round(pairs) == 0:
        return None
    ties = int(figures.get(key.replace("accuracy", "ties"), 0))
    return PairAccuracy(*wilson_interval(figures[key] * round(pairs), round(pairs)), ties, round(pairs))


def against_chance(record: RunRecord) -> Verdict | None:
    """Whether the 95% interval of the accuracy is above one half; a wide one around it leaves that open."""
    mix = held_out_accuracy(record)
    if mix is None:
        return None
    text = f"It ranks {percent(mix)} of {mix.pairs:,} held-out pairs right"
    if mix.low > 0.5:
        return Verdict("good", f"{text}, better than chance.", HELD_OUT)
    if mix.high < 0.5:
        return Verdict("bad", f"{text}, worse than chance. See whether chosen and rejected are swapped.", HELD_OUT)
    if mix.high - mix.low > _TELLING:
        return Verdict("open", f"{text}, which chance explains, too: give it more pairs.", HELD_OUT)
    return Verdict("bad", f"{text}, which chance explains: nothing is shown to carry over to new pairs.", HELD_OUT)


def against_length(record: RunRecord) -> Verdict | None:
    """Whether it ranks better than by length alone, pair by pair, and else whether length is what it reads."""
    rule = held_out_accuracy(record, "longer_wins")
    if rule is None:
        return None
    side = "shorter" if rule.value < 0.5 else "longer"
    lead, share = _lead(record, "longer_wins", 0.95), max(rule.value, 1 - rule.value)
    text = f"preferring the {side} response, which ranks {100 * share:.1f}% right"
    if lead.low > 0:
        return Verdict("good", f"It is better than {text}: by {points(lead)}.", HELD_OUT)
    leaning = _leaning(record, -1 if side == "shorter" else 1)
    if leaning is not None and leaning.low > 0:
        prefers = f"It reads length: it prefers the {side} response in {100 * (share + leaning.value):.1f}% of pairs"
        text = f"{prefers}, the labels in {100 * share:.1f}%, and it ranks no more pairs right than that rule"
        return Verdict("bad", f"{text}: {points(lead)}.", HELD_OUT)
    if lead.high < 0:
        return Verdict("bad", f"It is worse than {text}: by {points(less(lead))}.", HELD_OUT)
    return Verdict("open", f"It is not shown to be better than {text}: the difference is {points(lead)}.", HELD_OUT)


def against_scales(record: RunRecord) -> Verdict | None:
    """Whether a scale alone ranks better than the mix."""
    found = {scale: held_out_accuracy(record, scale) for scale in SCALES}
    scales = {scale: accuracy for scale, accuracy in found.items() if accuracy}
    if len(scales) < 2:
        return None
    best = max(scales, key=lambda scale: scales[scale].value)
    text = f"{best} scale, which ranks {100 * scales[best].value:.1f}% right by itself"
    lead = _lead(record, best, SURE)
    if lead.high < 0:
        return Verdict("bad", f"The mix is below its {text}: by {points(less(lead))}.", HELD_OUT)
    return Verdict("good", f"The mix is not shown to be below its best scale, the {text}.", HELD_OUT)


def gate(record: RunRecord) -> Verdict | None:
    """Whether a gate that reads the prompt has given all weight to one scale."""
    weights = {scale: record.evaluation.get(f"eval_gate/{scale}") for scale in SCALES}
    found = {scale: weight for scale, weight in weights.items() if weight is not None}
    if len(found) < 2 or record.model.get("multi_scale", {}).get("context") != "gate":
        return None
    most = max(found, key=lambda scale: found[scale])
    text = f"mean weight of {found[most]:.2f} to the {most} scale"
    # Where a scale's scores are small its weight tells little, so the order of pairs is asked, too
    if found[most] >= 0.9 and _ordered_otherwise(record, most) < 0.05:
        return Verdict(
            "bad", f"The gate has collapsed: it gives a {text}, and the mix orders pairs as it does.", HELD_OUT
        )
    return Verdict("good", f"The gate uses its scales: it gives the largest {text}.", HELD_OUT)


def overfitting(record: RunRecord) -> Verdict | None:
    """Whether the held-out loss or accuracy got worse from its best while the training loss fell, or half of what is
    ranked right in training is not ranked right outside it."""
    course, trained = record.evaluations, _training_accuracy(record)
    if len(course) > 1 and (worse := _worse_than_best(record, course)):
        return Verdict("bad", worse, HELD_OUT if "eval_accuracy" in course[-1] else TRAINING)
    text = "The held-out loss is not shown to rise at the end." if len(course) > 1 else ""
    if record.kept in [row["step"] for row in course[:-1]] and course[-1]["step"] == record.kept:
        text = f"The best checkpoint, of step {record.kept:,}, was kept."
    accuracy = held_out_accuracy(record)
    if trained is not None and accuracy is not None:
        gap = difference_of(trained, accuracy, SURE)
        shares = (
            f"{100 * trained.value:.1f}% of the last training pairs right and {100 * accuracy.value:.1f}% of held-out"
        )
        if gap.low > (trained.value - 0.5) / 2:
            why = "so that most of what it learnt does not carry over"
            return Verdict("bad", f"Overfitted: it ranks {shares} ones, {why}.", HELD_OUT)
        text += f" It ranks {shares} ones."
    return Verdict("good", f"No overfitting is shown. {text.strip()}", TRAINING) if text else None


def _worse_than_best(record: RunRecord, course: list[dict[str, Any]]) -> str | None:
    """What got worse on held-out data from its best evaluation to the last, while the training loss fell."""
    last, best = course[-1], min(course, key=lambda row: float(row["eval_loss"]))
    if not _training_fell(record, best["step"], last["step"]):
        return None
    rise, since = last["eval_loss"] - best["eval_loss"], f"from step {best['step']:,} to {last['step']:,}"
    text = f"Overfitted: the held-out loss rose by {rise:.3f} nats {since} while the training loss fell."
    if record.held_out and "loss" in record.held_out.scores:
        # Of the last evaluation's pairs. The best one's are as many, and taken for independent they vary more.
        noise = paired_interval(record.held_out.scores["loss"], record.held_out.prompts, SURE)
        if rise > math.sqrt(2) * (noise.high - noise.value):
            return text
    elif _rises_steadily([row["eval_loss"] for row in course]):
        return text
    peak = max(course, key=lambda row: float(row.get("eval_accuracy", 0)))
    if "eval_pairs" in last:
        at_peak, at_last = (_accuracy_of(row, "eval_") for row in (peak, last))
        fall = difference_of(at_peak, at_last, SURE)
        if fall.low > 0:
            return f"Overfitted: the held-out accuracy fell by {points(fall)} from step {peak['step']:,}."
    return None


def right(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Of each pair 1 where it is ranked right, a half in a tie."""
    return (chosen > rejected).double() + 0.5 * (chosen == rejected)


def paired_interval(differences: Tensor, prompts: Tensor, confidence: float) -> Interval:
    """Mean of differences, pair by pair, with an interval as wide as so many independent prompts make it."""
    value, low, high = mean_interval(differences, confidence)
    wider = math.sqrt(len(differences) / effective_count(differences, prompts))
    return Interval(value, value - wider * (value - low), value + wider * (high - value))


def _lead(record: RunRecord, name: str, confidence: float) -> Interval:
    """How far the mix's accuracy is above that of a scale or of length, pair by pair where the pairs are there."""
    other = record.evaluation[f"eval_accuracy/{name}"]
    flipped = name == "longer_wins" and other < 0.5
    if record.held_out is None:
        mix = _accuracy_of(record.evaluation, "eval_")
        return difference_of(mix, mix._replace(value=1 - other if flipped else other), confidence)
    scores = record.held_out.scores
    keys = ("chosen_length", "rejected_length") if name == "longer_wins" else (f"chosen/{name}", f"rejected/{name}")
    others = right(*(scores[key] for key in keys))
    ahead = right(scores["chosen"], scores["rejected"]) - (1 - others if flipped else others)
    return paired_interval(ahead, record.held_out.prompts, confidence)


def _leaning(record: RunRecord, side: int) -> Interval | None:
    """Share of pairs in which the longer (1) or shorter (-1) response scores higher, less that of the labels."""
    if record.held_out is None:
        return None
    scores = record.held_out.scores
    longer = side * (scores["chosen_length"] - scores["rejected_length"]).sign()
    zeros = torch.zeros_like(longer)
    preferred = right((scores["chosen"] - scores["rejected"]) * longer, zeros)
    return paired_interval(preferred - right(longer, zeros), record.held_out.prompts, SURE)


def _ordered_otherwise(record: RunRecord, scale: str) -> float:
    """Share of pairs that the mix orders otherwise than a scale, at the most; 0 where it is not known."""
    if record.held_out is None:
        return 0.0
    scores = record.held_out.scores
    gaps = (scores["chosen"] - scores["rejected"]) * (scores[f"chosen/{scale}"] - scores[f"rejected/{scale}"])
    return wilson_interval(int((gaps < 0).sum()), len(gaps)).high


def _training_accuracy(record: RunRecord) -> PairAccuracy | None:
    """Accuracy on the pairs of the tenth of all logs before the weights that were evaluated."""
    until = record.evaluations[-1]["step"] if record.evaluations else math.inf
    rows = [row for row in record.training if "accuracy" in row and "pairs" in row and row["step"] <= until]
    rows = rows[-max(1, len(record.training) // 10) :]
    pairs = sum(row["pairs"] for row in rows)
    right_ones = sum(row["accuracy"] * row["pairs"] for row in rows)
    return _accuracy_of({"accuracy": right_ones / pairs, "pairs": pairs}) if pairs else None


def _accuracy_of(figures: Mapping[str, Any], prefix: str = "") -> PairAccuracy:
    share, pairs = figures[f"{prefix}accuracy"], int(figures[f"{prefix}pairs"])
    return PairAccuracy(*wilson_interval(share * pairs, pairs), int(figures.get(f"{prefix}ties", 0)), pairs)


def difference_of(one: PairAccuracy, other: PairAccuracy, confidence: float) -> Interval:
    """How far an accuracy is above another one of independent pairs."""
    return difference_of_shares(one.value * one.pairs, one.pairs, other.value * other.pairs, other.pairs, confidence)


def _training_fell(record: RunRecord, since: int, until: int) -> bool:
    """Whether the training loss fell between two steps by more than the noise from log to log explains."""
    rows = [row for row in record.training if math.isfinite(row["loss"])]
    some = max(1, len(rows) // 10)
    losses = torch.tensor([row["loss"] for row in rows], dtype=torch.float64)
    ends = [losses[: sum(row["step"] <= step for row in rows)][-some:] for step in (since, until)]
    if not all(map(len, ends)) or len(losses) < 2:
        return False
    noise = (losses.diff().square().mean() / 2).sqrt() * NormalDist().inv_cdf((1 + SURE) / 2)
    return bool(ends[0].mean() - ends[1].mean() > noise * math.sqrt(2 / some))


def _rises_steadily(values: list[float]) -> bool:
    """Whether a figure rose at each of the last three evaluations or more, ever since its least value."""
    since = values[values.index(min(values)) :]
    return len(since) > 3 and all(one < other for one, other in pairwise(since))
