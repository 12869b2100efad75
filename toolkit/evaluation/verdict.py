"""What follows from the figures of an evaluation, in two sentences."""

from ..stats.intervals import PairAccuracy
from ..stats.length_control import LIKE
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
    told = f"On {figures.pairs:,} pairs {ranked[0]} ranks {share(best.accuracy)} right"
    told += "" if best.accuracy.low > 0.5 else ", which is not above chance"
    if len(ranked) > 1:
        told += f", {_above(figures, ranked[0], ranked[1])} {ranked[1]}, the next"
    for name, model in figures.models.items():
        if model.kind == RULE:
            told += f", and {_above(figures, ranked[0], name)} preferring the longer response"
    return f"{told}. {_sureness(best.calibration)}, and {_length(best.length)}."


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


def _above(figures: Figures, first: str, second: str) -> str:
    """Such as "2.1 points above (+0.3 to +4.0)", to be followed by the name of the second."""
    found = difference(figures, first, second)
    value, interval = points(found)
    if found.low <= 0 <= found.high:
        return f"not clearly apart ({value} points, {interval}) from"
    size = f"{abs(100 * found.value):.1f} points ({interval})"
    return f"{size} {'above' if found.value > 0 else 'below'}"


def _sureness(calibration: Calibration) -> str:
    error, chance = (f"{100 * x:.1f}%" for x in (calibration.error, calibration.error_by_chance))
    if calibration.error <= calibration.error_by_chance:
        return f"Its gaps are calibrated as far as these pairs tell (error {error}, by chance up to {chance})"
    if calibration.temperature is None or calibration.scaled_error is None:
        return f"Its gaps are not calibrated (error {error}, by chance up to {chance})"
    scaled = f"over a temperature of {calibration.temperature:.3g}: {100 * calibration.scaled_error:.1f}%"
    kind = "too sure" if calibration.temperature > 1 else "not sure enough"
    return f"Its gaps are {kind} (calibration error {error}, by chance up to {chance}; {scaled})"


def _length(length: LengthControl) -> str:
    like, out = length.like_length, length.regressed_out
    if like.pairs == 0:
        return f"no pair has responses of like length; after length is regressed out it ranks {share(out)} right"
    where = f"where the longer response is at most {LIKE:g} times as long it ranks {share(like)} right"
    after = f"after length is regressed out {share(out)}"
    if like.low > 0.5 and out.low > 0.5:
        return f"length alone does not explain it: {where}, {after}"
    if like.low <= 0.5 and out.low <= 0.5:
        return f"length may be all of it: {where}, {after}, neither above chance"
    return f"how much of it is length is not clear: {where}, {after}"
