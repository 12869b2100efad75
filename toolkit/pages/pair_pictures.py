"""Pictures of scored pairs, from plain numbers: scores of both sides, reliability, and score against length."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np

from ..stats.intervals import wilson_interval
from .page import COLOURS, Picture, number, picture_axes

_SIDE_COLOURS = {"chosen": COLOURS[0], "rejected": COLOURS[1]}
_BINS = 30
_MOST_POINTS = 300  # of each side: a picture is drawn in the page, where thousands of circles would be megabytes
_GROUPS = 10  # of as many responses, by their length


def score_histogram(
    chosen: Sequence[float], rejected: Sequence[float], title: str = "Scores", name: str = "scores"
) -> Picture:
    """
    How the scores of chosen and of rejected responses are spread, over the same bins.

    Args:
        chosen (`Sequence[float]` of length `P`), rejected (`Sequence[float]` of length `P`):
            Scores of both sides of `P` pairs, finite.
        title (`str`, *optional*), name (`str`, *optional*):
            Title of the picture, and name of its file.

    Returns:
        [`Picture`]
    """
    figure, axes = picture_axes(title)
    sides = {"chosen": np.asarray(chosen, dtype=float), "rejected": np.asarray(rejected, dtype=float)}
    edges = np.histogram_bin_edges(np.concatenate(list(sides.values())), bins=_BINS)
    for side, scores in sides.items():
        colour = _SIDE_COLOURS[side]
        axes.hist(scores, bins=edges, histtype="stepfilled", color=colour, alpha=0.35, label=side)
        axes.axvline(scores.mean(), color=colour, linewidth=1.4)
    axes.set(xlabel="score", ylabel="responses")
    axes.legend(frameon=False, fontsize=9)
    means = ", ".join(f"{side} {number(float(scores.mean()))} on average" for side, scores in sides.items())
    return Picture(figure, name, f"{title}: {means}.", "Upright lines: the mean of each side.")


def reliability_picture(
    curves: Mapping[str, Sequence[tuple[float, float, int]]], title: str = "Reliability", name: str = "reliability"
) -> Picture:
    """
    How often the response that is held better was the chosen one, against how probable that was said to be.

    Args:
        curves (`Mapping[str, Sequence[tuple[float, float, int]]]`):
            Of each model its bins, as [`~toolkit.stats.calibration.reliability`] gives them: mean probability, between
            0.5 and 1, share of pairs ranked right, and number of pairs.
        title (`str`, *optional*), name (`str`, *optional*):
            Title of the picture, and name of its file.

    Returns:
        [`Picture`]
    """
    figure, axes = picture_axes(title)
    axes.plot([0.5, 1], [0.5, 1], color="black", linewidth=0.8, linestyle=":")
    told = []
    for (label, points), colour in zip(curves.items(), cycle(COLOURS), strict=False):
        said, found, pairs = zip(*points, strict=True)
        bars = [wilson_interval(share * count, count) for share, count in zip(found, pairs, strict=True)]
        around = [[bar.value - bar.low for bar in bars], [bar.high - bar.value for bar in bars]]
        axes.errorbar(said, found, around, fmt="o-", markersize=4, linewidth=1, capsize=3, color=colour, label=label)
        shares = zip(said, found, strict=True)
        told.append(f"{label}: " + ", ".join(f"said {100 * p:.0f}%, found {100 * q:.0f}%" for p, q in shares))
    axes.set(xlabel="probability that the score gives", ylabel="share ranked right", xlim=(0.48, 1.02))
    axes.set_ylim(max(0.0, min(0.45, axes.get_ylim()[0])), 1.02)
    if len(curves) > 1:  # below, as bins of few pairs may lie anywhere
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    caption = "Dotted: calibrated. Below it the score is too sure. Bars are 95% intervals, of pairs taken one by one."
    return Picture(figure, name, f"{title}. {'; '.join(told)}.", caption)


def length_picture(
    chosen_length: Sequence[float],
    chosen: Sequence[float],
    rejected_length: Sequence[float],
    rejected: Sequence[float],
    title: str = "Score against length",
    unit: str = "characters",
    name: str = "length",
) -> Picture:
    """
    Score of each response against its length, and the mean score of responses of like length.

    Args:
        chosen_length (`Sequence[float]` of length `P`), rejected_length (`Sequence[float]` of length `P`):
            Lengths of both sides of `P` pairs, above 0.
        chosen (`Sequence[float]` of length `P`), rejected (`Sequence[float]` of length `P`):
            Their scores, finite.
        title (`str`, *optional*), unit (`str`, *optional*), name (`str`, *optional*):
            Title of the picture, unit of the lengths, and name of the picture's file.

    Returns:
        [`Picture`]
    """
    figure, axes = picture_axes(title)
    count = len(chosen)
    shown = np.linspace(0, count - 1, min(count, _MOST_POINTS)).round().astype(int)
    sides = {"chosen": (chosen_length, chosen), "rejected": (rejected_length, rejected)}
    for side, points in sides.items():
        x, y = (np.asarray(values)[shown] for values in points)
        axes.plot(x, y, "o", markersize=2.5, alpha=0.4, color=_SIDE_COLOURS[side], label=side)
    lengths, scores = (np.concatenate(values) for values in zip(*sides.values(), strict=True))
    groups = np.array_split(np.argsort(lengths, kind="stable"), min(_GROUPS, len(lengths)))
    means = [(lengths[group].mean(), scores[group].mean()) for group in groups]
    x, y = zip(*means, strict=True)
    axes.plot(x, y, "o-", color="black", markersize=4, label="mean of a tenth")
    axes.set(xlabel=f"length, {unit}", ylabel="score", xscale="log")
    axes.legend(frameon=False, fontsize=9)
    alt = f"{title}: mean score {number(float(means[0][1]))} of the shortest tenth, {number(float(means[-1][1]))} of "
    alt += "the longest."
    of = "" if len(shown) == count else f" Points: {len(shown):,} pairs of {count:,}, evenly chosen."
    return Picture(figure, name, alt, f"Black: mean score of each tenth of the responses, by length.{of}")
