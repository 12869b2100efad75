"""What follows from a run's figures: sentences, each by a rule on what the run left, and where to look."""

from typing import Literal, NamedTuple

from ..stats.intervals import Interval, PairAccuracy

# Level of warnings. A report looks for some ten faults, so that about one report in a hundred has a false one.
SURE = 0.999
# Headings of the sections that show what a verdict is about
HELD_OUT, TRAINING, ANSWERS = "Held-out pairs", "Training", "The same prompts before and after"


class Verdict(NamedTuple):
    """A sentence on a run: a claim that holds, a fault, or a question that the run leaves open."""

    outcome: Literal["good", "bad", "open"]
    text: str
    look: str  # heading of the section that shows it


def percent(share: Interval | PairAccuracy) -> str:
    """A share and its interval, in percent."""
    return f"{100 * share.value:.1f}% ({100 * share.low:.1f} to {100 * share.high:.1f})"


def points(difference: Interval) -> str:
    """A difference of shares and its interval, in points."""
    value, low, high = (f"{100 * x:.1f}".replace("-", "−") for x in difference)
    return f"{value} points ({low} to {high})"


def less(difference: Interval) -> Interval:
    """How far something is below, of how far it is above."""
    return Interval(-difference.value, -difference.high, -difference.low)


def rounded(figure: Interval) -> str:
    """A figure and its interval, to three digits."""
    value, low, high = (f"{x:.3g}".replace("-", "−") for x in figure)
    return f"{value} ({low} to {high})"
