"""What follows from the figures of an evaluation, in two sentences."""

import math

from ..stats.intervals import PairAccuracy
from .figures import Calibration, Difference, Figures, LengthControl
from .scorers import RULE


def verdict(figures: Figures) -> str:
    """
    Which model is best and by how much, whether length alone does as well, whether it is calibrated, and what length
    explains.

    Args:
        figures ([`~toolkit.evaluation.figures.Figures`]):
            Figures of one model or more, and of preferring the longer response.

    Returns:
        `str`: Two sentences. A difference whose 95% interval holds 0 is called none.
    """
    ranked = ranking(figures)
    best = figures.models[ranked[0]]
    others = {name: f"{name}, the next best" for name in ranked[1:2]}
    others |= {name: "preferring the longer response" for name, model in figures.models.items() if model.kind == RULE}
    told = f"On {figures.pairs:,} pairs {ranked[0]} ranks {share(best.accuracy)} right"
    told += ", not clearly above chance" if best.accuracy.low <= 0.5 else ""
    beside = ", and ".join(_beside(difference(figures, ranked[0], name), words) for name, words in others.items())
    return f"{told}: {beside}. {_sureness(best.calibration)}, and {_length(best.length)}."


def ranking(figures: Figures) -> list[str]:
    """Names of the models, the most accurate first; rules are none."""
    names = [name for name, model in figures.models.items() if model.kind != RULE]
    return sorted(names, key=lambda name: -figures.models[name].accuracy.value)


def difference(figures: Figures, first: str, second: str) -> Difference:
    """How much one score is above another, whichever way round it was compared."""
    for found in figures.differences:
        if (found.first, found.second) == (first, second):
            return found
        if (found.second, found.first) == (first, second):
            turned = {"value": -found.value, "low": -found.high, "high": -found.low}
            return found._replace(first=first, second=second, **turned)
    raise KeyError(f"{first} and {second}")


def share(accuracy: PairAccuracy) -> str:
    """An accuracy and its interval for a reader."""
    return f"{100 * accuracy.value:.1f}% ({100 * accuracy.low:.1f} to {100 * accuracy.high:.1f})"


def points(found: Difference, digits: int = 1) -> tuple[str, str]:
    """A difference and its interval in percentage points, with signs."""
    value, low, high = (f"{100 * x:+.{digits}f}".replace("-", "−") for x in (found.value, found.low, found.high))
    return value, f"{low} to {high}"


def _beside(found: Difference, other: str) -> str:
    """Such as "2.1 points above (+0.3 to +4.0) the other one"."""
    value, interval = points(found)
    if found.low <= 0 <= found.high:
        return f"not clearly apart ({value} points, {interval}) from {other}"
    return f"{abs(100 * found.value):.1f} points {'above' if found.value > 0 else 'below'} ({interval}) {other}"


def _sureness(calibration: Calibration) -> str:
    off = f"its probabilities are off by {100 * calibration.error:.1f}% on average"
    chance = f"chance alone gives up to {100 * calibration.error_by_chance:.1f}%"
    if calibration.error <= calibration.error_by_chance:
        return f"It is calibrated as far as these pairs tell ({off}, and {chance})"
    if calibration.temperature is None or calibration.scaled_error is None:
        return f"It is not calibrated ({off}, and {chance})"
    if calibration.temperature == math.inf:
        return f"It is not calibrated ({off}), and no temperature makes it say more than chance"
    scaled = f"{100 * calibration.scaled_error:.1f}% over a temperature of {calibration.temperature:.3g}"
    return f"It is {'too sure' if calibration.temperature > 1 else 'not sure enough'} ({off}, and by {scaled})"


def _length(length: LengthControl) -> str:
    like, out = length.like_length, length.regressed_out
    after = f"{share(out)} after length is regressed out"
    if like.pairs == 0:
        return f"without length it ranks {after}; no pair has responses that are about as long"
    found = f"{share(like)} right where both responses are about as long, {after}"
    if like.low > 0.5 and out.low > 0.5:
        return f"length alone does not explain it: {found}"
    if like.low <= 0.5 and out.low <= 0.5:
        return f"length may explain all of it: {found}, neither clearly above chance"
    return f"length may explain some of it: {found}"
