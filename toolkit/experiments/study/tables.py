"""Tables of a study, computed from its cells; docs/study.md defines every column."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...sandbox.rows import HELD_OUT_SEED, sample_pairs, sample_prompts
from ...sandbox.world import TASKS, gold_range
from ...stats.curves import convergence_step, instability, noise_to_signal, trailing_mean
from ...stats.intervals import Interval
from ...stats.metrics import logistic_regression
from ...stats.resampling import bootstrap_interval
from .grid import Study
from .models import ranked_right
from .real import real_name, trained_as
from .sandbox import gradient_name, policy_name, reward_name, start_name, table_baseline

REFERENCE = "simple contrast"
LONGER, REFITTED = "longer wins", "mix refitted"
WINDOW = 10  # updates over which the gold curve is smoothed

CellName = Callable[[int], str]  # of a seed's cell
Values = Callable[[str], Tensor | None]  # of a row's name its values (S, N), by seed; None while a cell is to come


class Estimate(NamedTuple):
    """A figure of a model, and how much it lies above the reference's on the same seeds and rows."""

    value: Interval
    difference: Interval | None


Column = dict[str, Estimate]
Table = dict[str, Column]  # of each model each column; a column lacks where a cell is still to come


def _column(
    rows: Iterable[str], values_of: Values, reference: str, sizes: Tensor | None = None, same: Iterable[str] = ()
) -> Column:
    """Estimates of the rows whose cells are there; `same` are those whose values are the reference's own."""
    base, column = values_of(reference), {}
    without = {reference, *same}
    for row in rows:
        values = values_of(row)
        if values is not None:
            paired = None if base is None or row in without else bootstrap_interval(values - base, sizes)
            column[row] = Estimate(bootstrap_interval(values, sizes), paired)
    return column


def _by_row(rows: Iterable[str], columns: Mapping[str, Column]) -> Table:
    return {row: {name: column[row] for name, column in columns.items() if row in column} for row in rows}


def _table(rows: list[str], columns: Mapping[str, Values], reference: str = REFERENCE) -> Table:
    return _by_row(rows, {name: _column(rows, values_of, reference) for name, values_of in columns.items()})


def interval_text(i: Interval, factor: float = 1.0, form: str = "{:.1f}", sign: bool = False) -> str:
    """An estimate with its bounds, times a factor; infinite ones are "never", or unknown below."""

    def shown(value: float) -> str:
        if not math.isfinite(value):
            return "never" if value > 0 else "–"
        text = form.format(factor * value)
        if not text.strip("-0."):
            text = text.removeprefix("-")  # rounded to nothing
        return f"+{text}" if sign and value > 0 else text

    if i.low == -math.inf and i.high == math.inf:
        return shown(i.value)  # one seed says nothing of its error
    return f"{shown(i.value)} ({shown(i.low)} to {shown(i.high)})"


def estimates(table: Table, difference: bool = False) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns and rows of a table of shares in percent, or of the differences in it."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    rows = []
    for name, row in table.items():
        found = {c: e.difference if difference else e.value for c, e in row.items()}
        cells = [interval_text(i, 100, sign=difference) if (i := found.get(c)) else "–" for c in columns]
        if any(found.values()):
            rows.append((name, *cells))
    return columns, rows


def finite(tables: Any) -> Any:
    """Tables as JSON has them: `None` for what is not finite, as steps never reached or bounds of a single seed."""
    if isinstance(tables, dict):
        return {name: finite(part) for name, part in tables.items()}
    if isinstance(tables, list | tuple):
        return [finite(part) for part in tables]
    return tables if tables is None or math.isfinite(tables) else None


# What is measured of the cells of a name, by seed; None until all of them have ended


def by_seed(study: Study, name: CellName, read: Callable[[dict[str, Any]], Any]) -> Tensor | None:
    """What is read from each seed's cell, `(S, ...)` float64."""
    cells = study.results(map(name, study.settings.seeds))
    if len(cells) < len(study.settings.seeds):
        return None
    return torch.stack([torch.as_tensor(read(cell), dtype=torch.float64) for cell in cells])


def ranked(study: Study, name: CellName, gaps: str = "gaps") -> Tensor | None:
    """Held-out pairs that the model of each seed ranks right, `(S, N)` float64."""
    return by_seed(study, name, lambda cell: ranked_right(cell[gaps]))


def reward_scores(study: Study, name: CellName) -> Tensor | None:
    """Gold reward of each seed's responses to held-out prompts, (S, N) float64, 0 at the worst and 1 at the best."""
    gold = by_seed(study, name, lambda cell: cell["gold"])
    if gold is None:
        return None
    prompts = sample_prompts(gold.size(1), HELD_OUT_SEED)["prompt"]
    low, high = torch.tensor([gold_range(prompt) for prompt in prompts], dtype=torch.float64).unbind(1)
    return (gold - low) / (high - low)


def alignment(study: Study, name: CellName) -> Tensor | None:
    """Whether the judge prefers the tuned policy's response to the start's, (S, N) float64, ties half."""
    tuned, start = (by_seed(study, cells, lambda cell: cell["gold"]) for cells in (name, start_name))
    return None if tuned is None or start is None else ((tuned - start).sign() + 1) / 2


def curves(study: Study, name: CellName) -> Tensor | None:
    """Gold reward after each update, (S, T) float64."""
    return by_seed(study, name, lambda cell: cell["curve"])


def unsteadiness(study: Study, name: CellName) -> Tensor | None:
    """Instability of the gold reward, (S, 1) float64."""
    by_update = curves(study, name)
    return None if by_update is None else instability(by_update)[:, None]


def convergence_steps(curves: Tensor, reference: Tensor, resamples: int = 2000) -> Estimate:
    """
    Steps until the mean curve stays above the level that the reference reaches at its end, infinite where it does not.

    Of curves `(S, T)`, gold reward after each update by seed; the level is the mean over the last [`WINDOW`] updates.
    The bootstrap is over the seeds, the same ones drawn for both.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(curves), (resamples, len(curves)), generator=generator)
    drawn = torch.cat([torch.arange(len(curves))[None], drawn])
    # Against its own level the reference differs from it by rounding only
    levels = reference[drawn].mean(1)[:, -WINDOW:].mean(1, keepdim=True) - 1e-9

    def steps(curves: Tensor) -> Tensor:
        return convergence_step(trailing_mean(curves[drawn].mean(1), WINDOW) - levels, 0.0, 1)

    def interval(steps: Tensor) -> Interval:
        ordered = steps[1:].sort().values  # of whole steps and infinity no quantile is interpolated
        return Interval(
            steps[0].item(), ordered[int(0.025 * resamples)].item(), ordered[int(0.975 * resamples) - 1].item()
        )

    needed = steps(curves)
    return Estimate(interval(needed), interval(needed - steps(reference)))


# Tables


def main_table(study: Study) -> Table:
    """Table 1: accuracy, reward score, preference alignment and convergence steps of the five preference models."""
    settings = study.settings
    size, baseline, models = settings.table_size, table_baseline(settings), settings.models

    def policy(model: str) -> CellName:
        return partial(policy_name, model, size, baseline=baseline)

    columns: dict[str, Values] = {
        "accuracy": lambda m: ranked(study, partial(reward_name, m, size)),
        "reward score": lambda m: reward_scores(study, policy(m)),
        "preference alignment": lambda m: alignment(study, policy(m)),
    }
    table = _table(models, columns)
    by_model = {m: curve for m in models if (curve := curves(study, policy(m))) is not None}
    if REFERENCE in by_model:
        for model, curve in by_model.items():
            estimate = convergence_steps(curve, by_model[REFERENCE])
            table[model]["convergence steps"] = estimate._replace(difference=None) if model == REFERENCE else estimate
    return table


def task_table(study: Study) -> Table:
    """Figure 2: accuracy of the five preference models by task."""
    settings = study.settings
    tasks = sample_pairs(settings.test_pairs, HELD_OUT_SEED)["task"]
    pairs_of = {task: torch.tensor([other == task for other in tasks]) for task in TASKS}

    def of_task(task: str, model: str) -> Tensor | None:
        right = ranked(study, partial(reward_name, model, settings.table_size))
        return None if right is None else right[:, pairs_of[task]]

    return _table(settings.models, {task: partial(of_task, task) for task in TASKS})


def size_table(study: Study) -> Table:
    """Accuracy by number of pairs, against that of the weighted model."""
    settings = study.settings

    def of_size(size: int, model: str) -> Tensor | None:
        return ranked(study, partial(reward_name, model, size))

    columns = {f"{size:,}": partial(of_size, size) for size in settings.curve_sizes}
    return _table(settings.curve_models, columns, "weighted")


def instability_table(study: Study) -> Table:
    """Figure 3: instability of the gold reward by number of pairs, against that of the weighted model."""
    settings = study.settings

    def of_size(size: int, model: str) -> Tensor | None:
        return unsteadiness(study, partial(policy_name, model, size, baseline=table_baseline(settings)))

    columns = {f"{size:,}": partial(of_size, size) for size in settings.curve_sizes}
    return _table(settings.curve_models, columns, "weighted")


def gradient_table(study: Study) -> dict[str, Interval]:
    """Noise-to-signal ratio of a step's gradient at the start: median and range over the seeds."""
    table = {}
    for model in study.settings.models:
        name = partial(gradient_name, model, study.settings.table_size)
        ratios = by_seed(study, name, lambda cell: noise_to_signal(torch.tensor(cell["gram"])).value)
        if ratios is not None:
            table[model] = Interval(median(ratios.tolist()), ratios.min().item(), ratios.max().item())
    return table


def refitted_gaps(scale_gaps: Tensor) -> Tensor:
    """
    Gaps of a mix whose weights are fitted on held-out pairs, each half with the weights of the other half.

    From score of chosen less rejected by scale, `(P, S)` float64; returns `(P,)` float64.
    """
    first, gaps = torch.arange(len(scale_gaps)) % 2 == 0, torch.empty(len(scale_gaps), dtype=scale_gaps.dtype)
    for fitted in (first, ~first):
        gaps[~fitted] = scale_gaps[~fitted] @ logistic_regression(scale_gaps[fitted], 1e-4)
    return gaps


def ablation_table(study: Study) -> Table:
    """Accuracy of the multi-scale model with parts taken away or its mix refitted, against the whole."""
    settings = study.settings

    def refitted(cell: dict[str, Any]) -> Tensor:
        return ranked_right(refitted_gaps(torch.tensor(cell["scale_gaps"], dtype=torch.float64).T).tolist())

    def right(model: str) -> Tensor | None:
        name = partial(reward_name, "multi-scale" if model == REFITTED else model, settings.table_size)
        return by_seed(study, name, refitted) if model == REFITTED else ranked(study, name)

    rows = list(dict.fromkeys(["multi-scale", *settings.models, *settings.ablations, REFITTED]))
    table = _table(rows, {"accuracy": right}, "multi-scale")
    return {model: row for model, row in table.items() if row}


def baseline_table(study: Study) -> Table:
    """The policy's figures by baseline, on the multi-scale reward model, against the table's baseline."""
    settings = study.settings
    reference = table_baseline(settings)

    def policy(baseline: str) -> CellName:
        return partial(policy_name, "multi-scale", settings.table_size, baseline=baseline)

    columns: dict[str, Values] = {
        "reward score": lambda b: reward_scores(study, policy(b)),
        "preference alignment": lambda b: alignment(study, policy(b)),
        "instability": lambda b: unsteadiness(study, policy(b)),
    }
    return _table(list(dict.fromkeys([*settings.baselines, reference])), columns, reference)


def by_prompt(values: Tensor, units: list[int]) -> tuple[Tensor, Tensor]:
    """
    Sums over the pairs of each prompt, which are not independent of each other.

    Of the values of pairs `(S, P)` and the number of each pair's prompt: sums `(S, N)` and sizes `(N,)`, float64.
    """
    index = torch.tensor(units)
    sums = values.new_zeros(len(values), int(index.max()) + 1).index_add(1, index, values)
    return sums, torch.bincount(index).to(values.dtype)


def real_table(study: Study, name: Callable[[str, str, int], str] = real_name) -> Table:
    """
    Accuracy on real pairs by task, and that of preferring the longer response; intervals are over seeds and prompts.

    `name` gives the cell of a model, a task and a seed.
    """
    settings, division = study.settings, study.result("decoder") or {}
    rows = [*settings.models, LONGER]
    sums: dict[str, dict[str, Tensor]] = {}  # of each task each row's (S, N), N prompts
    sizes: dict[str, Tensor] = {}
    for task in settings.tasks if division else []:
        right = {m: ranked(study, partial(name, m, task)) for m in settings.models}
        # Every cell of the decoder has the lengths
        right[LONGER] = ranked(study, partial(real_name, "multi-scale", task), "longer")
        for row, values in right.items():
            if values is not None:
                of_task = sums.setdefault(task, {})
                of_task[row], sizes[task] = by_prompt(values, division[task]["units"][: values.size(1)])

    columns = {
        task: _column(rows, of_task.get, REFERENCE, sizes[task], _trained_as_reference(settings.models, task))
        for task, of_task in sums.items()
    }
    if len(sizes) == len(settings.tasks) > 1:
        # Every task weighs the same, however many pairs it has
        def over_tasks(row: str) -> Tensor | None:
            parts = [sums[task][row] / n.sum() for task, n in sizes.items() if row in sums[task]]
            return torch.cat(parts, 1) if len(parts) == len(sizes) else None

        columns["mean"] = _column(rows, over_tasks, REFERENCE, torch.cat([n / n.sum() for n in sizes.values()]))
    return _by_row(rows, columns)


def _trained_as_reference(models: list[str], task: str) -> list[str]:
    return [model for model in models if trained_as(model, task) == REFERENCE]
