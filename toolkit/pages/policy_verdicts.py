"""Verdicts on a training by rewards of a policy's own responses."""

import math

import torch
from torch import Tensor

from ..stats.curves import changes_to_last
from ..stats.metrics import pair_accuracy
from .run_files import RunRecord
from .verdicts import ANSWERS, SURE, TRAINING, Verdict, less, rounded

PARTS = 5  # of a run, whose means are compared


def policy_verdicts(record: RunRecord) -> list[Verdict]:
    """Verdicts on a training by rewards."""
    found = [learning(record), hacking(record), divergence(record), entropy(record), repetition(record)]
    return [verdict for verdict in found if verdict]


def learning(record: RunRecord) -> Verdict:
    """Whether the reward of the last fifth of the run is above that of the first, beyond the noise between logs. It is
    flat where a tenth of the spread between responses, from which it is to learn, is more than it can have gained."""
    rewards = series(record, "reward")
    if len(rewards) < 2 * PARTS:
        text = f"{len(rewards)} logs are too few to tell what was learnt from noise. Log {2 * PARTS} times or more."
        return Verdict("open", text, TRAINING)
    change = changes_to_last(rewards, PARTS)[0]
    text = "from the first fifth of the run to the last"
    if change.low > 0:
        return Verdict("good", f"The reward that it is trained on rose by {rounded(change)} {text}.", TRAINING)
    if change.high < 0:
        return Verdict("bad", f"The reward that it is trained on fell by {rounded(less(change))} {text}.", TRAINING)
    text = f"the reward that it is trained on changed by {rounded(change)} {text}, within the noise."
    spread = series(record, "reward_std")
    if len(spread) and change.high < spread.mean().item() / 10:
        return Verdict("bad", f"Nothing was learnt: {text}", TRAINING)
    return Verdict("open", f"Nothing is shown to be learnt: {text}", TRAINING)


def hacking(record: RunRecord) -> Verdict | None:
    """Whether a reward that it is not trained on fell from any fifth of the run to the last, while the other rose."""
    rewards = series(record, "reward")
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
            fault = f"{name}, on which it is not trained, fell by {rounded(less(min(fell)))} while the reward rose."
            return Verdict("bad", f"Reward hacking: {fault}{_growth(record)}", TRAINING)
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
    shares = (f"{100 * side.mean():.0f}%" for side in (before, after))
    text = "{} of its three-word sequences were repeated before and {} after".format(*shares)
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
    names = (
        [key.split("/")[1] for key in rows[0] if key.startswith("rewards/") and key.endswith("/mean")] if rows else []
    )
    means = {name: series(record, f"rewards/{name}/mean") for name in names}
    total, weights = series(record, "reward"), record.options.get("reward_weights")
    if weights is not None and len(weights) == len(names):
        untrained = [name for name, weight in zip(names, weights, strict=True) if weight == 0]
    else:
        alone = [n for n in names if means[n].shape == total.shape and torch.allclose(means[n], total, rtol=1e-3)]
        untrained = [name for name in names if alone and name != alone[0]]
    return {name: means[name] for name in untrained if means[name].shape == total.shape}


def series(record: RunRecord, key: str) -> Tensor:
    """A figure of the policy's training, log by log."""
    values = [row[key] for row in record.log if "reward" in row and isinstance(row.get(key), int | float)]
    return torch.tensor([value for value in values if math.isfinite(value)], dtype=torch.float64)


def _ends(record: RunRecord, key: str) -> tuple[float, float] | None:
    """Mean of a figure in the first fifth of the run and in the last."""
    values = series(record, key)
    if len(values) < PARTS:
        return None
    parts = values.tensor_split(PARTS)
    return parts[0].mean().item(), parts[-1].mean().item()


def _growth(record: RunRecord) -> str:
    """A sentence where responses grew beyond the noise."""
    lengths, ends = series(record, "completions/mean_length"), _ends(record, "completions/mean_length")
    if ends is None or len(lengths) < 2 * PARTS or changes_to_last(lengths, PARTS, SURE)[0].low <= 0:
        return ""
    return f" Responses grew from {ends[0]:.0f} to {ends[1]:.0f} tokens."
