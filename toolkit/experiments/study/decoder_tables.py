"""Tables of the grid on a frozen decoder, computed from its cells; docs/decoder_grid.md defines every column.

Figures are of test pairs none of whose texts are trained on, unless a table is that of the others. In a mean over
tasks kinds weigh the same, and the tasks of a kind; intervals are over seeds and over the clusters of all tasks.
"""

from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...stats.intervals import Interval
from ...stats.multiple import holm
from ...stats.resampling import bootstrap_interval
from .decoder import BEST, COMPARED, MIX, PLANS, READ_AS, DecoderStudy, tries
from .decoder_stages import heads_name, number_name, search_name, states_name, tasks_with, transfer_name, transfers
from .grid import Study
from .models import ranked_right
from .tables import LONGER, Estimate, Table, by_prompt
from .tasks import NUMBERS, TASKS, weights

FIRST_LOOK = [task.name for task in TASKS if task.first_look]


class Sums(NamedTuple):
    """Pairs of a task that are ranked right, by seed and cluster `(S, N)`, and the pairs of each cluster `(N,)`."""

    right: Tensor
    sizes: Tensor


Read = Callable[[str, str], Sums | None]  # of a model and a task; none while a cell is to come


def sums(right: Tensor, units: Sequence[int], keep: Sequence[bool]) -> Sums | None:
    """Sums over clusters of the pairs that are kept; none where there are none."""
    kept = torch.tensor(keep)
    if not bool(kept.any()):
        return None
    numbers = torch.tensor(units)[kept].unique(return_inverse=True)[1]
    return Sums(*by_prompt(right[:, kept], numbers.tolist()))


def on_test_pairs(study: Study, seen: bool = False) -> Read:
    """What models that were trained on a task rank right of its test pairs, new ones or those that are `seen`."""

    def read(model: str, task: str) -> Sums | None:
        known = study.result(states_name(task))
        if known is None:
            return None
        keep = [each is seen for each in known["seen"]]
        if model == LONGER:
            return sums(ranked_right(known["longer"])[None], known["units"], keep)
        if (result := study.result(heads_name(task, model))) is None:
            return None
        right = torch.stack([ranked_right(gaps) for gaps in result["gaps"]])
        return sums(right, known["units"], keep)

    return read


def scale_of(study: Study, model: str, scale: int) -> Read:
    """The same of one scale of a model."""

    def read(_: str, task: str) -> Sums | None:
        known, result = study.result(states_name(task)), study.result(heads_name(task, model))
        if known is None or result is None:
            return None
        right = torch.stack([ranked_right(gaps[scale]) for gaps in result["scale_gaps"]])
        return sums(right, known["units"], [not seen for seen in known["seen"]])

    return read


def mean_over(read: Read, model: str, names: Sequence[str], less: tuple[Read, str] | None = None) -> Interval | None:
    """
    Accuracy of a model on the mean over tasks, or how much it lies above another one's on the same pairs.

    Args:
        read (`Callable`):
            Sums of a model on a task.
        model (`str`):
            The model.
        names (`Sequence[str]`):
            Tasks; those without a pair to count are left out of the mean.
        less (`tuple[Callable, str]`, *optional*):
            The other model, and how it is read.

    Returns:
        [`Interval`], or `None` while a cell is to come.
    """
    found = {name: read(model, name) for name in names}
    present = {name: part for name, part in found.items() if part is not None}
    if not present:
        return None
    values, sizes = list[Tensor](), list[Tensor]()
    for (name, part), weight in zip(present.items(), weights(list(present)), strict=True):
        right = part.right
        if less is not None:
            if (other := less[0](less[1], name)) is None:
                return None
            right = right - other.right
        total = part.sizes.sum() / weight
        values.append(right / total)
        sizes.append(part.sizes / total)
    seeds = max(len(part) for part in values)  # of what has no seeds one row stands for all
    return bootstrap_interval(torch.cat([part.expand(seeds, -1) for part in values], 1), torch.cat(sizes))


def complete(study: Study) -> list[str]:
    """Tasks of which all heads have ended."""
    settings: DecoderStudy = study.settings
    done = {task: all(study.result(heads_name(task, m)) for m in settings.models) for task in settings.tasks}
    return [task for task, ended in done.items() if ended]


def grouped(names: Sequence[str]) -> dict[str, list[str]]:
    """Columns of a table: the mean over the headline's tasks, that over those of the first look, and every task."""
    groups = {
        "headline": [name for name in names if name not in FIRST_LOOK],
        "first look": [name for name in names if name in FIRST_LOOK],
    }
    return {group: chosen for group, chosen in groups.items() if chosen} | {name: [name] for name in names}


def accuracy_table(study: Study, reference: str, read: Read | None = None) -> Table:
    """Accuracy by group and task; a difference is how much the default lies above the row, or above `reference`."""
    names, read = complete(study), read or on_test_pairs(study)
    table: Table = {}
    for model in (*study.settings.models, LONGER):
        for column, tasks in grouped(names).items():
            if (value := mean_over(read, model, tasks)) is not None:
                less = None if model == reference else mean_over(read, reference, tasks, (read, model))
                table.setdefault(model, {})[column] = Estimate(value, less)
    return table


def scale_table(study: Study) -> Table:
    """Accuracy of each scale of the multi-scale model; a difference is how much their mix lies above it."""
    table: Table = {}
    names, mixed = complete(study), on_test_pairs(study)
    for i, scale in enumerate(PLANS[MIX].scales):
        read = scale_of(study, MIX, i)
        for column, tasks in grouped(names).items():
            if (value := mean_over(read, scale, tasks)) is not None:
                above = mean_over(mixed, MIX, tasks, (read, scale))
                table.setdefault(scale, {})[column] = Estimate(value, above)
    return table


def corrected(table: Table, model: str, names: Sequence[str]) -> dict[str, float]:
    """Holm's p-values over tasks of a model's differences, from their intervals by the normal distribution."""
    differences = {name: table[model][name].difference for name in names if name in table.get(model, {})}
    given = {name: d for name, d in differences.items() if d is not None}
    wide = 2 * NormalDist().inv_cdf(0.975)
    p = [2 * NormalDist().cdf(-abs(d.value) / max((d.high - d.low) / wide, 1e-12)) for d in given.values()]
    return dict(zip(given, holm(p), strict=True))


def numbers_table(study: Study) -> Table:
    """Accuracy by number of training pairs, on the mean over the tasks that have 500, and 1,000 where they do."""
    settings: DecoderStudy = study.settings
    table: Table = {}
    for model in [m for m in COMPARED if m in settings.models]:
        for number in NUMBERS:
            names = tasks_with(study, max(number, min(500, NUMBERS[-1])))
            read, other = _numbered(study, number), _numbered(study, number)
            if all(read(model, name) for name in names) and names:
                value = mean_over(read, model, names)
                less = None if model == MIX else mean_over(other, MIX, names, (read, model))
                assert value is not None, "all are there"
                table.setdefault(model, {})[f"{number:,}"] = Estimate(value, less)
    return table


def fewer_pairs_table(study: Study) -> Table:
    """
    The default with fewer pairs beside the best simple contrast with all of a number, on the tasks that have so many.

    A difference is how much the default with its pairs lies above simple contrast with the number of the column.
    """
    table: Table = {}
    for most in NUMBERS:
        names, whole = tasks_with(study, most), _numbered(study, most)
        if not names or not all(whole(BEST, name) for name in names):
            continue
        for number in [number for number in NUMBERS if number <= most]:
            read = _numbered(study, number)
            value = mean_over(read, MIX, names)
            above = mean_over(read, MIX, names, (whole, BEST))
            if value is not None and above is not None:
                column = f"{most:,} pairs ({len(names)} tasks)"
                table.setdefault(f"{MIX} with {number:,}", {})[column] = Estimate(value, above)
    return table


def _numbered(study: Study, number: int) -> Read:
    def read(model: str, task: str) -> Sums | None:
        known, result = study.result(states_name(task)), study.result(number_name(task, model, number))
        if known is None or result is None:
            return None
        right = torch.tensor(result["right"], dtype=torch.float64)
        return sums(right, known["units"], [not seen for seen in known["seen"]])

    return read


def transfer_table(study: Study) -> Table:
    """Accuracy on a task of models that were trained on others; the difference is the default's above the row's."""
    settings: DecoderStudy = study.settings
    table: Table = {}
    cases: dict[str, list[tuple[list[str], str]]] = {}
    for train_on, task in transfers(settings):
        if len(train_on) == 1:
            cases[f"{train_on[0]} to {task}"] = [(train_on, task)]
        else:
            cases.setdefault("each kind left out", []).append((train_on, task))
    for column, parts in cases.items():
        names, sources = [task for _, task in parts], {task: train_on for train_on, task in parts}

        def read(model: str, task: str, sources: dict[str, list[str]] = sources) -> Sums | None:
            result = study.result(transfer_name(sources[task], task, model))
            if result is None:
                return None
            right = torch.stack([ranked_right(gaps) for gaps in result["gaps"]])
            return sums(right, result["units"], [not seen for seen in result["seen"]])

        for model in [m for m in COMPARED if m in settings.models]:
            if all(read(model, name) for name in names):
                value = mean_over(read, model, names)
                less = None if model == MIX else mean_over(read, MIX, names, (read, model))
                if value is not None:
                    table.setdefault(model, {})[column] = Estimate(value, less)
    return table


def gates(study: Study, model: str) -> dict[str, list[float]]:
    """Of a model with a gate, on each task's test pairs: mean weight of each scale, and share of gates beyond 0.9."""
    found = {}
    for task in complete(study):
        result: Any = study.result(heads_name(task, model))
        weight = torch.tensor(result["gate"])  # (seeds, S, P)
        beyond = (weight.amax(1) > 0.9).double().mean().item()
        found[task] = [*weight.mean((0, 2)).tolist(), beyond]
    return found


def searched(study: Study, model: str) -> dict[str, float]:
    """
    Development accuracy of a model by layer and reading, each at its best rate and decay, on the mean over tasks.

    Of a model that reads as another one, the one figure at what was chosen for that.
    """
    names = [task for task in study.settings.tasks if study.result(search_name(task, model))]
    total = torch.tensor(0.0, dtype=torch.float64)
    for name, weight in zip(names, weights(names), strict=True):
        result: Any = study.result(search_name(name, model))
        total = total + weight * torch.tensor(result["accuracy"], dtype=torch.float64).mean(0)
    if not names:
        return {}
    places = [f"as {READ_AS[model]}"] if model in READ_AS else [f"{k}, {at}" for k, at in tries(study.settings, model)]
    return dict(zip(places, total.flatten(1).amax(1).tolist(), strict=True))
