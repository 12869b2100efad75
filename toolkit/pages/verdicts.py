"""What follows from a run's figures: sentences, each by a rule on what the run left, and where to look."""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..reward.scales import SCALES
from ..stats.curves import changes_to_last
from ..stats.intervals import Interval, PairAccuracy, difference_of_shares, wilson_interval
from ..stats.metrics import mean_interval, pair_accuracy
from .run_files import RunRecord

# Level of warnings. A report looks for some ten faults, so that about one report in a hundred has a false one.
SURE = 0.999
PARTS = 5  # of a policy's run, whose means are compared
HELD_OUT, TRAINING, ANSWERS = "Held-out pairs", "Training", "The same prompts before and after"


class Verdict(NamedTuple):
    """A sentence on a run: a claim that holds, a fault, or a question that the run leaves open."""

    outcome: Literal["good", "bad", "open"]
    text: str
    look: str  # heading of the section that shows it


def reward_verdicts(record: RunRecord) -> list[Verdict]:
    """Verdicts on a training that ranks pairs: a reward model's, or DPO."""
    found = [against_chance(record), against_length(record), against_scales(record), gate(record), overfitting(record)]
    return [verdict for verdict in found if verdict]


def policy_verdicts(record: RunRecord) -> list[Verdict]:
    """Verdicts on a training by rewards."""
    found = [learning(record), hacking(record), divergence(record), entropy(record), repetition(record)]
    return [verdict for verdict in found if verdict]


def held_out_accuracy(record: RunRecord, name: str = "") -> PairAccuracy | None:
    """Accuracy of the mix, a scale or `longer_wins` on held-out pairs; TRL logs none of the rest, which is computed."""
    figures, key = record.evaluation, f"eval_accuracy/{name}" if name else "eval_accuracy"
    key = key if name or key in figures else "eval_rewards/accuracies"  # DPO's
    pairs = figures.get("eval_pairs", figures.get("eval_runtime", 0) * figures.get("eval_samples_per_second", 0))
    if key not in figures or round(pairs) == 0:
        return None
    ties = int(figures.get(key.replace("accuracy", "ties"), 0))
    return PairAccuracy(*wilson_interval(figures[key] * round(pairs), round(pairs)), ties, round(pairs))


def against_chance(record: RunRecord) -> Verdict | None:
    """Whether the 95% interval of the accuracy is above one half."""
    mix = held_out_accuracy(record)
    if mix is None:
        return None
    text = f"It ranks {_percent(mix)} of {mix.pairs:,} held-out pairs right"
    if mix.low > 0.5:
        return Verdict("good", f"{text}, better than chance.", HELD_OUT)
    if mix.high < 0.5:
        return Verdict("bad", f"{text}, worse than chance. See whether chosen and rejected are swapped.", HELD_OUT)
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
        return Verdict("good", f"It is better than {text}: by {_points(lead)}.", HELD_OUT)
    leaning = _leaning(record, -1 if side == "shorter" else 1)
    if leaning is not None and leaning.low > 0:
        reads = f"It reads length: it prefers the {side} response in {100 * (share + leaning.value):.1f}% of pairs, the"
        text = f"{reads} labels in {100 * share:.1f}%, and it is not shown to rank better than that rule: {_points(lead)}."
        return Verdict("bad", text, HELD_OUT)
    return Verdict("bad", f"It is not shown to be better than {text}: {_points(lead)}.", HELD_OUT)


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
        return Verdict("bad", f"The mix is below its {text}: by {_points(lead)}.", HELD_OUT)
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
        return Verdict("bad", f"The gate has collapsed: it gives a {text}, and the mix orders pairs as it does.", TRAINING)
    return Verdict("good", f"The gate uses its scales: it gives the largest {text}.", TRAINING)


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
        right, pairs = trained
        mix = accuracy.value * accuracy.pairs
        gap = difference_of_shares(right, pairs, mix, accuracy.pairs, SURE)
        text += f" At the end it ranks {100 * right / pairs:.1f}% of training pairs right."
        if gap.low > (right / pairs - 0.5) / 2:
            fault = f"Overfitted: it ranks {100 * right / pairs:.1f}% of training pairs right and {100 * accuracy.value:.1f}"
            return Verdict("bad", f"{fault}% of held-out ones, so that most of what it learnt does not carry over.", HELD_OUT)
    return Verdict("good", f"No overfitting is shown. {text.strip()}", TRAINING) if text else None


def _worse_than_best(record: RunRecord, course: list[dict[str, Any]]) -> str | None:
    """What got worse on held-out data from its best evaluation to the last, while the training loss fell."""
    last, best = course[-1], min(course, key=lambda row: float(row["eval_loss"]))
    if _loss_until(record, last["step"]) >= _loss_until(record, best["step"]):
        return None
    rise, since = last["eval_loss"] - best["eval_loss"], f"from step {best['step']:,} to {last['step']:,}"
    text = f"Overfitted: the held-out loss rose by {rise:.3f} nats {since} while the training loss fell."
    if record.held_out and "loss" in record.held_out.scores:
        # Of the last evaluation's pairs. The best one's are as many, and taken for independent they vary more.
        noise = mean_interval(record.held_out.scores["loss"], SURE)
        if rise > math.sqrt(2) * (noise.high - noise.value):
            return text
    elif _rises_steadily([row["eval_loss"] for row in course]):
        return text
    peak = max(course, key=lambda row: float(row.get("eval_accuracy", 0)))
    if "eval_pairs" in last:
        pairs = int(last["eval_pairs"])
        fall = difference_of_shares(peak["eval_accuracy"] * pairs, pairs, last["eval_accuracy"] * pairs, pairs, SURE)
        if fall.low > 0:
            return f"Overfitted: the held-out accuracy fell by {_points(fall)} from step {peak['step']:,}."
    return None


def learning(record: RunRecord) -> Verdict:
    """Whether the reward of the last fifth of the run is above that of the first, beyond the noise between logs."""
    rewards = _series(record, "reward")
    if len(rewards) < 2 * PARTS:
        text = f"{len(rewards)} logs are too few to tell what was learnt from noise. Log {2 * PARTS} times or more."
        return Verdict("open", text, TRAINING)
    change = changes_to_last(rewards, PARTS)[0]
    text = f"from the first fifth of the run to the last by {_change(change)}"
    if change.low > 0:
        return Verdict("good", f"The reward that it is trained on rose {text}.", TRAINING)
    if change.high < 0:
        return Verdict("bad", f"The reward that it is trained on fell {text}.", TRAINING)
    return Verdict("bad", f"Nothing is shown to be learnt: the reward changed {text}, within the noise.", TRAINING)


def hacking(record: RunRecord) -> Verdict | None:
    """Whether a reward that is not trained on fell, to the last fifth of the run from any before, while the other rose."""
    rewards = _series(record, "reward")
    if len(rewards) < 2 * PARTS:
        return None
    gained, (rose, *_) = changes_to_last(rewards, PARTS), changes_to_last(rewards, PARTS)
    others = untrained_rewards(record)
    followed = []
    for name, values in others.items():
        judged = record.comparison.gain if record.comparison and name == record.judge else None
        fell = [
            change
            for change, gain in zip(changes_to_last(values, PARTS, SURE), gained, strict=True)
            if change.high < 0 < gain.value
        ]
        if judged and judged.high < 0 and rose.low > 0:
            fell.append(judged)
        if fell:
            worst = min(fell)
            text = f"Reward hacking: {name}, which it is not trained on, fell by {_change(worst)} while the reward rose."
            return Verdict("bad", f"{text}{_growth(record)}", TRAINING)
        if (judged or changes_to_last(values, PARTS)[0]).low > 0:
            followed.append(name)
    if rose.low <= 0:
        return None
    if not others:
        text = "Whether the reward is exploited cannot be told: it logged no reward that it is not trained on"
        return Verdict("open", f"{text} (`reward_weights 1 0` logs a second one).{_growth(record)}", TRAINING)
    if missing := [name for name in others if name not in followed]:
        text = f"{', '.join(missing)}, on which it is not trained, is not shown to rise with the reward."
        return Verdict("open", f"{text}{_growth(record)}", TRAINING)
    return Verdict("good", f"{', '.join(followed)}, on which it is not trained, rose too.{_growth(record)}", TRAINING)


def divergence(record: RunRecord) -> Verdict | None:
    """Whether a token's divergence from the reference is above the uncertainty that the policy began with."""
    kl, uncertainty, length = (_ends(record, key) for key in ("kl", "entropy", "completions/mean_length"))
    if kl is None or uncertainty is None or kl[1] == 0:
        return None
    text = f"{kl[1]:.3g} nats a token from the reference" + (f", {kl[1] * length[1]:.3g} a response" if length else "")
    # Certain of one of the reference's own texts it would diverge by as much as that text surprises the reference
    if kl[1] > uncertainty[0]:
        fault = f"It left the reference behind: it is {text}, more than the {uncertainty[0]:.3g} of uncertainty"
        return Verdict("bad", f"{fault} that it began with, and writes what the reference hardly would.", TRAINING)
    return Verdict("good", f"It stayed near the reference: it is {text}.", TRAINING)


def entropy(record: RunRecord) -> Verdict | None:
    """Whether the entropy fell to a tenth, or two answers to one prompt are the same more often than not."""
    ends, length = _ends(record, "entropy"), _ends(record, "completions/mean_length")
    if ends is None:
        return None
    text = f"from {ends[0]:.3g} to {ends[1]:.3g} nats a token"
    same = length is not None and ends[1] * length[1] < math.log(2) <= ends[0] * length[0]
    if ends[1] < ends[0] / 10 or same:
        return Verdict("bad", f"The entropy collapsed, {text}: there is little left to compare.", TRAINING)
    return Verdict("good", f"The entropy has not collapsed: {text}.", TRAINING)


def repetition(record: RunRecord) -> Verdict | None:
    """Whether answers after training repeat their own words more than those before, prompt by prompt."""
    cards = [card["responses"] for card in record.before_after if len(card["responses"]) == 2]
    if not cards:
        return None
    before, after = (torch.tensor([repeated(card[side]["text"]) for card in cards]) for side in (0, 1))
    text = f"{100 * before.mean():.0f}% of its three-word sequences were repeated before and {100 * after.mean():.0f}% after"
    if pair_accuracy(after, before, SURE).low > 0.5:
        return Verdict("bad", f"It repeats itself: {text}, on {len(cards)} prompts.", ANSWERS)
    return Verdict("good", f"It is not shown to repeat itself more: {text}, on {len(cards)} prompts.", ANSWERS)


def repeated(text: str) -> float:
    """Share of a text's three-word sequences that stood in it before; 0 where it has none."""
    words = text.split()
    sequences = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0


def untrained_rewards(record: RunRecord) -> dict[str, Tensor]:
    """Rewards that are logged and have no weight, by the options or, without them, since one alone is the sum."""
    rows = [row for row in record.log if "reward" in row]
    names = [key.split("/")[1] for key in rows[0] if key.startswith("rewards/") and key.endswith("/mean")] if rows else []
    means = {name: _series(record, f"rewards/{name}/mean") for name in names}
    total, weights = _series(record, "reward"), record.options.get("reward_weights")
    if weights is not None and len(weights) == len(names):
        untrained = [name for name, weight in zip(names, weights, strict=True) if weight == 0]
    else:
        alone = [n for n in names if means[n].shape == total.shape and torch.allclose(means[n], total, rtol=1e-3)]
        untrained = [name for name in names if alone and name != alone[0]]
    return {name: means[name] for name in untrained if means[name].shape == total.shape}


def right(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Of each pair 1 where it is ranked right, a half in a tie."""
    return (chosen > rejected).double() + 0.5 * (chosen == rejected)


def _lead(record: RunRecord, name: str, confidence: float) -> Interval:
    """How far the mix's accuracy is above that of a scale or a rule of length, pair by pair where the pairs are there."""
    mix, other = held_out_accuracy(record), held_out_accuracy(record, name)
    assert mix is not None and other is not None  # the caller has seen them
    flipped = name == "longer_wins" and other.value < 0.5
    if record.held_out is None:
        value = 1 - other.value if flipped else other.value
        return difference_of_shares(mix.value * mix.pairs, mix.pairs, value * mix.pairs, mix.pairs, confidence)
    scores = record.held_out.scores
    keys = ("chosen_length", "rejected_length") if name == "longer_wins" else (f"chosen/{name}", f"rejected/{name}")
    others = right(*(scores[key] for key in keys))
    return mean_interval(right(scores["chosen"], scores["rejected"]) - (1 - others if flipped else others), confidence)


def _leaning(record: RunRecord, side: int) -> Interval | None:
    """Share of pairs in which the longer (1) or shorter (-1) response scores higher, less that of the labels."""
    if record.held_out is None:
        return None
    scores = record.held_out.scores
    longer = side * (scores["chosen_length"] - scores["rejected_length"]).sign()
    zeros = torch.zeros_like(longer)
    return mean_interval(right((scores["chosen"] - scores["rejected"]) * longer, zeros) - right(longer, zeros), SURE)


def _ordered_otherwise(record: RunRecord, scale: str) -> float:
    """Share of pairs that the mix orders otherwise than a scale, at the most; 0 where it is not known."""
    if record.held_out is None:
        return 0.0
    scores = record.held_out.scores
    gaps = (scores["chosen"] - scores["rejected"]) * (scores[f"chosen/{scale}"] - scores[f"rejected/{scale}"])
    return wilson_interval(int((gaps < 0).sum()), len(gaps)).high


def _training_accuracy(record: RunRecord) -> tuple[float, int] | None:
    """Pairs ranked right among those of the last tenth of training, and how many those are."""
    rows = [row for row in record.training if "accuracy" in row and "pairs" in row]
    rows = rows[-max(1, len(rows) // 10) :]
    pairs = sum(int(row["pairs"]) for row in rows)
    return (sum(row["accuracy"] * row["pairs"] for row in rows), pairs) if pairs else None


def _loss_until(record: RunRecord, step: int) -> float:
    """Mean training loss of the tenth of all logs that ends at a step."""
    losses = [row["loss"] for row in record.training if row["step"] <= step]
    losses = losses[-max(1, len(record.training) // 10) :]
    return sum(losses) / len(losses) if losses else math.inf


def _rises_steadily(values: list[float]) -> bool:
    """Whether a figure rose at each of the last three evaluations or more, ever since its least value."""
    since = values[values.index(min(values)) :]
    return len(since) > 3 and all(one < other for one, other in zip(since, since[1:], strict=False))


def _series(record: RunRecord, key: str) -> Tensor:
    """A figure of the policy's training, log by log."""
    values = [row[key] for row in record.log if "reward" in row and isinstance(row.get(key), int | float)]
    return torch.tensor([value for value in values if math.isfinite(value)], dtype=torch.float64)


def _ends(record: RunRecord, key: str) -> tuple[float, float] | None:
    """Mean of a figure in the first fifth of the run and in the last."""
    values = _series(record, key)
    if len(values) < PARTS:
        return None
    parts = values.tensor_split(PARTS)
    return parts[0].mean().item(), parts[-1].mean().item()


def _growth(record: RunRecord) -> str:
    """A sentence where responses grew beyond the noise."""
    lengths, ends = _series(record, "completions/mean_length"), _ends(record, "completions/mean_length")
    if ends is None or len(lengths) < 2 * PARTS or changes_to_last(lengths, PARTS, SURE)[0].low <= 0:
        return ""
    return f" Responses grew from {ends[0]:.0f} to {ends[1]:.0f} tokens."


def _percent(share: Interval | PairAccuracy) -> str:
    return f"{100 * share.value:.1f}% ({100 * share.low:.1f} to {100 * share.high:.1f})"


def _points(lead: Interval) -> str:
    """A difference of shares, in points; of a negative one its size where a sentence says so."""
    return f"{100 * lead.value:+.1f} points ({100 * lead.low:+.1f} to {100 * lead.high:+.1f})"


def _change(change: Interval) -> str:
    return f"{change.value:+.3g} ({change.low:+.3g} to {change.high:+.3g})"
