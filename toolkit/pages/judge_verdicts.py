"""Verdicts on the training of a judge that thinks."""

import math

from ..stats.curves import changes_to_last
from .policy_verdicts import PARTS, series
from .run_files import RunRecord
from .verdicts import TRAINING, Verdict, rounded

DEAF = 0.99  # share of the thoughts that are effective, above which an answer hardly depends on its thought
ONE_SIDED = 0.98  # share of answers


def judge_verdicts(record: RunRecord) -> list[Verdict]:
    """Verdicts on the training of a judge by pairs."""
    found = [ranking(record), listening(record), one_sided(record), unfinished(record), preference_for_letters(record)]
    return [verdict for verdict in found if verdict]


def ranking(record: RunRecord) -> Verdict:
    """Whether the loss of the pairs fell from the first fifth of the run to the last, beyond the noise of the logs."""
    losses = series(record, "pair_loss")
    if len(losses) < 2 * PARTS:
        text = f"{len(losses)} logs are too few to tell what was learnt from noise. Log {2 * PARTS} times or more."
        return Verdict("open", text, TRAINING)
    change, last = changes_to_last(losses, PARTS)[0], losses.tensor_split(PARTS)[-1].mean().item()
    text = f"the loss of the pairs changed by {rounded(change)} from the first fifth of the run to the last"
    if last >= math.log(2):
        fault = f"{last:.3g}, where 0.693 says nothing of either response"
        return Verdict("bad", f"It ranks no better than chance: {text}, to {fault}.", TRAINING)
    if change.low > 0:
        return Verdict("bad", f"It ranks worse: {text}.", TRAINING)
    if change.high < 0:
        return Verdict("good", f"It ranks better: {text}.", TRAINING)
    return Verdict("open", f"Nothing is shown to be learnt: {text}, within the noise.", TRAINING)


def listening(record: RunRecord) -> Verdict | None:
    """Whether answers depend on the thoughts: of N thoughts that weigh alike all N are effective."""
    effective, count = _last(record, "thoughts/effective"), record.options.get("num_thoughts")
    if effective is None or not isinstance(count, int) or count < 2:
        return None
    text = f"{effective:.2f} of {count} thoughts about a response are effective"
    if effective > DEAF * count:
        return Verdict("bad", f"The answers do not listen to the thoughts: {text}, so that all weigh alike.", TRAINING)
    if effective < 1 + 0.1 * (count - 1):
        return Verdict("open", f"One thought decides: {text}. A few more leave less to chance.", TRAINING)
    return Verdict("good", f"The answers depend on the thoughts: {text}.", TRAINING)


def one_sided(record: RunRecord) -> Verdict | None:
    """Whether nearly all answers are the same."""
    good = _last(record, "answers/good")
    if good is None:
        return None
    if max(good, 1 - good) > ONE_SIDED:
        said = "yes" if good > 0.5 else "no"
        text = f"It says {said} to {100 * max(good, 1 - good):.0f}% of the responses"
        return Verdict("open", f"{text}; the ranking lies in how sure it is. See `accuracy`.", TRAINING)
    return Verdict("good", f"It says yes to {100 * good:.0f}% of the responses and no to the others.", TRAINING)


def unfinished(record: RunRecord) -> Verdict | None:
    """Whether thoughts are cut off."""
    clipped = _last(record, "completions/clipped_ratio")
    if clipped is None or clipped < 0.1:
        return None
    text = f"{100 * clipped:.0f}% of the thoughts were cut off at `max_completion_length`"
    return Verdict("bad", f"{text} and answered unfinished. Set more tokens, or ask for less.", TRAINING)


def preference_for_letters(record: RunRecord) -> Verdict | None:
    """Whether an answer is given because of its letter or of its place."""
    for key, what in (("letter_bias", "its letter"), ("position_bias", "the place of a response")):
        bias = _last(record, f"answers/{key}")
        if bias is not None and abs(bias) > 0.1:
            text = f"An answer's probability differs by {100 * abs(bias):.0f} points with {what}"
            return Verdict("open", f"{text}; what is asked both ways cancels it.", TRAINING)
    return None


def _last(record: RunRecord, key: str) -> float | None:
    """Mean of a figure in the last fifth of the run."""
    values = series(record, key)
    return values.tensor_split(PARTS)[-1].mean().item() if len(values) >= PARTS else None
