"""Tables of a study, computed from its cells; docs/study.md defines every column."""

import math
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...arguments import SANDBOX_TEST_SEED
from ...sandbox.rows import sample_pairs, sample_prompts
from ...sandbox.world import TASKS, gold_range
from ...stats.curves import convergence_step, instability, noise_to_signal, trailing_mean
from ...stats.metrics import Interval, logistic_regression
from ...stats.resampling import bootstrap_interval
from .grid import Study
from .models import ranked_right
from .real import real_name, trained_as
from .sandbox import gradient_name, policy_name, reward_name, start_name, table_baseline

REFERENCE = "simple contrast"
LONGER, REFITTED = "longer wins", "mix refitted"
WINDOW = 10  # updates over which the gold curve is smoothed


class Estimate(NamedTuple):
    """A figure of a model, and how much it lies above the reference's on the same seeds and rows."""

    value: Interval
    difference: Interval | None


Table = dict[str, dict[str, Estimate]]  # of each model each column; a column lacks where a cell is still to come


def _compare(
    models: Iterable[str],
    values_of: Callable[[str], Tensor | None],
    reference: str,
    sizes: Tensor | None = None,
    same: Iterable[str] = (),
) -> dict[str, Estimate]:
    """Estimates of the models whose cells are there, from values of shape (S, N); `same` are the reference's own."""
    base, found = values_of(reference), {}
    without = {reference, *same}
    for model in models:
        values = values_of(model)
        if values is not None:
            paired = None if base is None or model in without else bootstrap_interval(values - base, sizes)
            found[model] = Estimate(bootstrap_interval(values, sizes), paired)
    return found


def _all_seeds(study: Study, name: Callable[[int], str]) -> list[dict[str, Any]] | None:
    found = study.results([name(seed) for seed in study.settings.seeds])
    return found if len(found) == len(study.settings.seeds) else None


def finite(tables: Any) -> Any:
    """
    Tables as JSON has them.

    Args:
        tables (nested dictionaries and lists of numbers):
            An estimate is its interval and that of its difference; an interval is value, lower and upper bound.

    Returns:
        The same with `None` for what is not finite: a number of steps that is never reached, bounds of a single seed.
    """
    if isinstance(tables, dict):
        return {name: finite(part) for name, part in tables.items()}
    if isinstance(tables, list | tuple):
        return [finite(part) for part in tables]
    return tables if tables is None or math.isfinite(tables) else None


def ranked(study: Study, model: str, pairs: int) -> Tensor | None:
    """Held-out pairs that a model of each seed ranks right, (S, N) float64."""
    cells = _all_seeds(study, lambda seed: reward_name(model, pairs, seed))
    return None if cells is None else torch.stack([ranked_right(cell["gaps"]) for cell in cells])


def _gold(study: Study, name: Callable[[int], str]) -> Tensor | None:
    cells = _all_seeds(study, name)
    return None if cells is None else torch.tensor([cell["gold"] for cell in cells], dtype=torch.float64)


def reward_scores(study: Study, name: Callable[[int], str]) -> Tensor | None:
    """Gold reward of each seed's responses to held-out prompts, (S, N) float64, 0 at the worst and 1 at the best."""
    gold = _gold(study, name)
    if gold is None:
        return None
    prompts = sample_prompts(gold.size(1), SANDBOX_TEST_SEED)["prompt"]
    low, high = torch.tensor([gold_range(prompt) for prompt in prompts], dtype=torch.float64).T
    return (gold - low) / (high - low)


def alignment(study: Study, name: Callable[[int], str]) -> Tensor | None:
    """Whether the judge prefers the tuned policy's response to the start's, (S, N) float64, ties half."""
    tuned, start = _gold(study, name), _gold(study, start_name)
    return None if tuned is None or start is None else ((tuned - start).sign() + 1) / 2


def curves(study: Study, name: Callable[[int], str]) -> Tensor | None:
    """Gold reward after each update, (S, T) float64."""
    cells = _all_seeds(study, name)
    return None if cells is None else torch.tensor([cell["curve"] for cell in cells], dtype=torch.float64)


def convergence_steps(curves: Tensor, reference: Tensor, resamples: int = 2000) -> Estimate:
    """
    Steps until the mean curve stays above the level that the reference reaches at its end, with a bootstrap over the
    seeds, the same ones drawn for both.

    Args:
        curves (`torch.Tensor` of shape `(S, T)`, float):
            Gold reward after each update, by seed.
        reference (`torch.Tensor` of shape `(S, T)`, float):
            That of the reference. Its level is its mean over the last [`WINDOW`] updates.
        resamples (`int`, *optional*, defaults to `2000`):
            Number of resamples.

    Returns:
        [`Estimate`]: Steps, and how many more than the reference needs; infinite where the level is not held.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(curves), (resamples, len(curves)), generator=generator)
    drawn = torch.cat([torch.arange(len(curves))[None], drawn])
    # Against its own level the reference differs from it by rounding only
    levels = reference[drawn].mean(1)[:, -WINDOW:].mean(1) - 1e-9

    def steps(curves: Tensor) -> Tensor:
        smooth = trailing_mean(curves[drawn].mean(1), WINDOW)
        return torch.stack([convergence_step(m, level.item(), 1) for m, level in zip(smooth, levels, strict=True)])

    def interval(found: Tensor) -> Interval:
        ordered = found[1:].sort().values
        return Interval(
            found[0].item(), ordered[int(0.025 * resamples)].item(), ordered[int(0.975 * resamples) - 1].item()
        )

    found = steps(curves)
    return Estimate(interval(found), interval(found - steps(reference)))


def main_table(study: Study) -> Table:
    """Table 1: accuracy, reward score, preference alignment and convergence steps of the five preference models."""
    settings = study.settings
    size, baseline, models = settings.table_size, table_baseline(settings), settings.models

    def policy(model: str) -> Callable[[int], str]:
        return lambda seed: policy_name(model, size, seed, baseline)

    columns = {
        "accuracy": _compare(models, lambda m: ranked(study, m, size), REFERENCE),
        "reward score": _compare(models, lambda m: reward_scores(study, policy(m)), REFERENCE),
        "preference alignment": _compare(models, lambda m: alignment(study, policy(m)), REFERENCE),
    }
    reference = curves(study, policy(REFERENCE))
    found = {model: curves(study, policy(model)) for model in models}
    steps = {
        model: convergence_steps(curve, reference)
        for model, curve in found.items()
        if curve is not None and reference is not None
    }
    columns["convergence steps"] = {
        model: estimate._replace(difference=None) if model == REFERENCE else estimate
        for model, estimate in steps.items()
    }
    return {m: {name: column[m] for name, column in columns.items() if m in column} for m in models}


def task_table(study: Study) -> Table:
    """Figure 2: accuracy of the five preference models by task."""
    settings, models = study.settings, study.settings.models
    tasks = sample_pairs(settings.test_pairs, SANDBOX_TEST_SEED)["task"]

    def of_task(task: str) -> Callable[[str], Tensor | None]:
        rows = torch.tensor([found == task for found in tasks])

        def values(model: str) -> Tensor | None:
            all_rows = ranked(study, model, settings.table_size)
            return None if all_rows is None else all_rows[:, rows]

        return values

    columns = {task: _compare(models, of_task(task), REFERENCE) for task in TASKS}
    return {m: {task: column[m] for task, column in columns.items() if m in column} for m in models}


def size_table(study: Study) -> Table:
    """Accuracy by number of pairs, against that of the weighted model."""
    settings, models = study.settings, study.settings.curve_models
    columns = {
        f"{size:,}": _compare(models, lambda m, size=size: ranked(study, m, size), "weighted")
        for size in settings.curve_sizes
    }
    return {m: {name: column[m] for name, column in columns.items() if m in column} for m in models}


def instability_table(study: Study) -> Table:
    """Figure 3: instability of the gold reward by number of pairs, against that of the weighted model."""
    settings, models = study.settings, study.settings.curve_models

    def of_size(size: int) -> Callable[[str], Tensor | None]:
        def values(model: str) -> Tensor | None:
            found = curves(study, lambda seed: policy_name(model, size, seed, table_baseline(settings)))
            return None if found is None else instability(found)[:, None]

        return values

    columns = {f"{size:,}": _compare(models, of_size(size), "weighted") for size in settings.curve_sizes}
    return {m: {name: column[m] for name, column in columns.items() if m in column} for m in models}


def gradient_table(study: Study) -> dict[str, Interval]:
    """Noise-to-signal ratio of a step's gradient at the start: median and range over the seeds."""
    found = {}
    for model in study.settings.models:
        cells = _all_seeds(study, lambda seed, model=model: gradient_name(model, study.settings.table_size, seed))
        if cells is not None:
            ratios = sorted(noise_to_signal(torch.tensor(cell["gram"])).value for cell in cells)
            found[model] = Interval(median(ratios), ratios[0], ratios[-1])
    return found


def refitted_gaps(scale_gaps: Tensor) -> Tensor:
    """
    Gaps of a mix whose weights are fitted on held-out pairs, each half with the weights of the other half.

    Args:
        scale_gaps (`torch.Tensor` of shape `(P, S)`, float64):
            Score of chosen less rejected by scale.

    Returns:
        `torch.Tensor` of shape `(P,)`, float64.
    """
    first, gaps = torch.arange(len(scale_gaps)) % 2 == 0, torch.empty(len(scale_gaps), dtype=scale_gaps.dtype)
    for fitted in (first, ~first):
        gaps[~fitted] = scale_gaps[~fitted] @ logistic_regression(scale_gaps[fitted], 1e-4)
    return gaps


def ablation_table(study: Study) -> Table:
    """Accuracy of the multi-scale model with parts taken away or its mix refitted, against the whole."""
    settings = study.settings

    def values(model: str) -> Tensor | None:
        if model != REFITTED:
            return ranked(study, model, settings.table_size)
        cells = _all_seeds(study, lambda seed: reward_name("multi-scale", settings.table_size, seed))
        if cells is None:
            return None
        gaps = [refitted_gaps(torch.tensor(cell["scale_gaps"], dtype=torch.float64).T) for cell in cells]
        return torch.stack([ranked_right(found.tolist()) for found in gaps])

    models = dict.fromkeys(["multi-scale", *settings.models, *settings.ablations, REFITTED])
    found = _compare(models, values, "multi-scale")
    return {model: {"accuracy": estimate} for model, estimate in found.items()}


def baseline_table(study: Study) -> Table:
    """The policy's figures by baseline, on the multi-scale reward model, against the table's baseline."""
    settings = study.settings
    size, reference = settings.table_size, table_baseline(settings)

    def policy(baseline: str) -> Callable[[int], str]:
        return lambda seed: policy_name("multi-scale", size, seed, baseline)

    def unstable(baseline: str) -> Tensor | None:
        found = curves(study, policy(baseline))
        return None if found is None else instability(found)[:, None]

    names = list(dict.fromkeys([*settings.baselines, reference]))
    columns = {
        "reward score": _compare(names, lambda b: reward_scores(study, policy(b)), reference),
        "preference alignment": _compare(names, lambda b: alignment(study, policy(b)), reference),
        "instability": _compare(names, unstable, reference),
    }
    return {b: {name: column[b] for name, column in columns.items() if b in column} for b in names}


def by_prompt(values: Tensor, units: list[int]) -> tuple[Tensor, Tensor]:
    """
    Sums over the pairs of each prompt, which are not independent of each other.

    Args:
        values (`torch.Tensor` of shape `(S, P)`, float64):
            A value of each of `P` pairs.
        units (`list[int]`):
            Number of each pair's prompt.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Sums of shape `(S, N)` and pairs of a prompt of shape `(N,)`, float64.
    """
    index = torch.tensor(units)
    sums = values.new_zeros(len(values), int(index.max()) + 1).index_add(1, index, values)
    return sums, torch.bincount(index).to(values.dtype)


def real_table(study: Study, name: Callable[[str, str, int], str] = real_name) -> Table:
    """
    Accuracy on real pairs by task, and that of preferring the longer response.

    Args:
        study ([`~toolkit.experiments.study.grid.Study`]):
            Study with the settings of a [`~toolkit.experiments.study.real.RealStudy`].
        name (`Callable`, *optional*, defaults to [`~toolkit.experiments.study.real.real_name`]):
            Name of the cell of a model, a task and a seed.

    Returns:
        `Table`: Models by tasks; intervals are over seeds and prompts.
    """
    settings, division = study.settings, study.result("decoder")
    models = [*settings.models, LONGER]
    sums: dict[tuple[str, str], Tensor] = {}
    sizes: dict[str, Tensor] = {}
    for task in settings.tasks if division is not None else []:
        for model in models:
            if model == LONGER:  # every cell of the decoder has the lengths
                cells = _all_seeds(study, lambda seed, task=task: real_name("multi-scale", task, seed))
            else:
                cells = _all_seeds(study, lambda seed, task=task, model=model: name(model, task, seed))
            if cells is not None:
                right = torch.stack([ranked_right(c["longer" if model == LONGER else "gaps"]) for c in cells])
                sums[model, task], sizes[task] = by_prompt(right, division[task]["units"][: right.size(1)])

    columns = {
        task: _compare(
            models,
            lambda m, task=task: sums.get((m, task)),
            REFERENCE,
            sizes.get(task),
            [model for model in settings.models if trained_as(model, task) == REFERENCE],
        )
        for task in sizes
    }
    if len(sizes) == len(settings.tasks) > 1:
        # Every task weighs the same, however many pairs it has
        def over_tasks(model: str) -> Tensor | None:
            parts = [sums[model, task] / n.sum() for task, n in sizes.items() if (model, task) in sums]
            return torch.cat(parts, 1) if len(parts) == len(sizes) else None

        columns["mean"] = _compare(models, over_tasks, REFERENCE, torch.cat([n / n.sum() for n in sizes.values()]))
    return {m: {task: column[m] for task, column in columns.items() if m in column} for m in models}
