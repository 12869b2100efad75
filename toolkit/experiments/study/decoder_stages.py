"""The stages of the grid on a frozen decoder, and what is chosen between them."""

from collections.abc import Iterator
from typing import Any

import torch

from .decoder import (
    AVERAGED,
    BEST,
    COMPARED,
    READ_AS,
    Choice,
    DecoderStudy,
    choose,
    heads_cell,
    number_cell,
    number_search_cell,
    search_cell,
    states_cell,
    transfer_cell,
    tries,
)
from .grid import Cell, Study, cell_name
from .tasks import LEFT_OUT, NUMBERS, TRANSFERS, weights


def states_name(task: str) -> str:
    """Cell of a task's states."""
    return cell_name("states", task)


def search_name(task: str, model: str) -> str:
    """Cell of a model's development accuracy."""
    return cell_name("search", task, model)


def heads_name(task: str, model: str) -> str:
    """Cell of a model's heads."""
    return cell_name("heads", task, model)


def number_name(task: str, model: str, number: int, stage: str = "number") -> str:
    """Cell of a model that was trained with a number of pairs; of the search before it with another `stage`."""
    return cell_name(stage, number, task, model)


def transfer_name(train_on: list[str], task: str, model: str) -> str:
    """Cell of a model that was trained on other tasks."""
    return cell_name("transfer", train_on[0] if len(train_on) == 1 else "others", task, model)


def choices(study: Study, model: str) -> dict[int | None, Choice]:
    """What is chosen for a model by part, and under `None` by the mean over the parts."""
    if model == AVERAGED:
        return choices(study, BEST)
    settings = study.settings
    read_as = choices(study, READ_AS[model]) if model in READ_AS else {}
    found = {task: study.result(search_name(task, model)) for task in settings.tasks}
    present = {task: result for task, result in found.items() if result is not None}
    most = max(len(result["accuracy"]) for result in present.values())
    chosen = {}
    for part in (None, *range(most)):
        places = [read_as[part][:2]] if read_as else tries(settings, model)
        chosen[part] = choose(settings, places, present, part)
    return chosen


def transfers(settings: DecoderStudy) -> Iterator[tuple[list[str], str]]:
    """Tasks that are trained on together, and a task that is tested."""
    for transfer in (*TRANSFERS, *LEFT_OUT):
        train_on = [task for task in transfer.train if task in settings.tasks]
        for task in transfer.test:
            if train_on and task in settings.tasks:
                yield train_on, task


def tasks_with(study: Study, number: int) -> list[str]:
    """Tasks all of whose training halves have a number of pairs."""
    found = {task: study.result(states_name(task)) for task in study.settings.tasks}
    return [task for task, result in found.items() if result is not None and min(result["training"]) >= number]


def number_choice(study: Study, model: str, number: int) -> Choice:
    """The rate and decay of a model for a number of pairs, by the mean over its tasks; the rest is chosen already."""
    names, total = tasks_with(study, number), torch.tensor(0.0)
    for task, weight in zip(names, weights(names), strict=True):
        result: Any = study.result(number_name(task, model, number, "number-search"))
        total = total + weight * torch.tensor(result["accuracy"])
    rate, decay = (int(i) for i in torch.unravel_index(total.argmax(), total.shape))
    settings = study.settings
    return choices(study, model)[None]._replace(rate=settings.rates[rate], decay=settings.decays[decay])


def decoder_stages(study: Study) -> Iterator[list[Cell]]:
    """States, search, heads, then fewer pairs and transfer."""
    settings: DecoderStudy = study.settings
    grid = [(task, model) for task in settings.tasks for model in settings.models]
    compared = [model for model in COMPARED if model in settings.models]
    yield [Cell(states_name(task), states_cell, {"task": task}) for task in settings.tasks]
    yield [_search(study, task, model) for task, model in grid if model not in READ_AS]
    yield [_search(study, task, model) for task, model in grid if model in READ_AS and model != AVERAGED]
    chosen = {model: choices(study, model) for model in settings.models}
    yield [_heads(study, task, model, chosen[model]) for task, model in grid]
    numbered = [(n, task, model) for n in NUMBERS for task in tasks_with(study, n) for model in compared]
    yield [
        Cell(
            number_name(task, model, number, "number-search"),
            number_search_cell,
            {"task": task, "model": model, "number": number, "at": list(chosen[model][None][:2])},
            (states_name(task),),
        )
        for number, task, model in numbered
    ]
    yield [
        Cell(
            number_name(task, model, number),
            number_cell,
            {"task": task, "model": model, "number": number, "choice": list(number_choice(study, model, number))},
            (states_name(task),),
        )
        for number, task, model in numbered
    ]
    yield [
        Cell(
            transfer_name(train_on, task, model),
            transfer_cell,
            {"train_on": train_on, "task": task, "model": model, "choice": list(chosen[model][None])},
            tuple(map(states_name, [*train_on, task])),
        )
        for train_on, task in transfers(settings)
        for model in compared
    ]


def _parts(study: Study, task: str) -> int:
    result: Any = study.result(search_name(task, BEST))
    return len(result["accuracy"])


def _by_part(study: Study, task: str, chosen: dict[int | None, Choice]) -> list[list[Any]]:
    parts = _parts(study, task)
    return [list(chosen[None if parts == 1 else part]) for part in range(parts)]


def _search(study: Study, task: str, model: str) -> Cell:
    arguments: dict[str, Any] = {"task": task, "model": model}
    if model in READ_AS:
        arguments["at"] = [row[:2] for row in _by_part(study, task, choices(study, READ_AS[model]))]
    return Cell(search_name(task, model), search_cell, arguments, (states_name(task),))


def _heads(study: Study, task: str, model: str, chosen: dict[int | None, Choice]) -> Cell:
    arguments = {"task": task, "model": model, "choices": _by_part(study, task, chosen)}
    return Cell(heads_name(task, model), heads_cell, arguments, (states_name(task),))
