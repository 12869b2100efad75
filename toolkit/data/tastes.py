"""Who made a label, and what it says of each attribute: columns of pairs and lists that a reader's weights need."""

import math
from collections import Counter
from typing import Any

from accelerate.logging import get_logger
from datasets import Dataset

from .answers import number
from .files import row_number
from .row_errors import RowError, describe

logger = get_logger(__name__)

SIDES = ("chosen", "rejected")
ANNOTATOR, ATTRIBUTES = "annotator", "attributes"
# What the trainer reads in their place: the annotator's place in the list of names, 1 over the number of their rows,
# and of each attribute by how much the chosen response has more of it, which is NaN where it is not known
TASTE_COLUMNS = ("annotator_index", "annotator_share", "attribute_gaps")


def taste_names(dataset: Any, outputs: int, reader: str, reader_weights: str) -> tuple[list[str], list[str]]:
    """
    Names of the annotators and attributes of a training set that a head needs, each in order.

    Args:
        dataset (`datasets.Dataset`):
            Pairs or lists, as they are given.
        outputs, reader, reader_weights:
            As in [`~toolkit.reward.head.MultiScaleSettings`].

    Raises:
        `ValueError`: If there is no column `annotator` where each shall have weights, or not as many attributes as
        outputs where all share the weights.
    """
    annotators, attributes = list[str](), list[str]()
    columns = dataset.column_names or []
    if reader_weights == "annotator":
        if ANNOTATOR not in columns:
            raise ValueError(
                f"`reader_weights='annotator'` needs a column '{ANNOTATOR}' in the training data, which have "
                f"{sorted(columns)}. Rename the column that says who made a label."
            )
        annotators = sorted({str(name) for name in dataset[ANNOTATOR] if name is not None})
    elif outputs > 1 and (reader, reader_weights) == ("linear", "shared"):
        rows = dataset[ATTRIBUTES] if ATTRIBUTES in columns and "chosen" in columns else []
        attributes = sorted({name for value in rows for side in _sides(value) for name in side or ()})
        if len(attributes) != outputs:
            raise ValueError(
                f"`outputs={outputs}` with weights that all share are attributes of pairs, and the column "
                f"'{ATTRIBUTES}' of the training data has {attributes or 'none'}. Set `outputs` to their number, or "
                "`reader_weights` or `reader` to others."
            )
    return annotators, attributes


def add_tastes(dataset: Dataset, name: str, known: Any, train: bool) -> Dataset:
    """
    Give tokenized pairs or lists the columns of `TASTE_COLUMNS` from `annotator` and `attributes`.

    Args:
        dataset (`datasets.Dataset`):
            Tokenized pairs or lists.
        name (`str`):
            Name of the data set, for messages.
        known ([`~toolkit.reward.head.MultiScaleSettings`]):
            The names that the model knows; without any the set stays as it is. Others have the index -1, which a
            warning counts.
        train (`bool`):
            Whether it is the training set, in which the annotators' prior has a say.

    Raises:
        `ValueError`: If an attribute is no number; the message names the row.
    """
    if known.annotators:
        given = dataset[ANNOTATOR][:] if ANNOTATOR in dataset.column_names else [None] * len(dataset)
        place = {own: index for index, own in enumerate(known.annotators)}
        indices = [place.get(str(own), -1) if own is not None else -1 for own in given]
        if unknown := indices.count(-1):
            logger.warning(
                f"Data set '{name}': {unknown} of {len(indices)} rows have no annotator whom the model knows, and are "
                "read with the weights that all share."
            )
        pairs = Counter(indices)
        shares = [1 / pairs[index] if train and index >= 0 else 0.0 for index in indices]
        dataset = dataset.add_column(TASTE_COLUMNS[0], indices).add_column(TASTE_COLUMNS[1], shares)
    if known.attributes and ATTRIBUTES in dataset.column_names:
        gaps = [_gaps(value, known.attributes, name, row) for row, value in enumerate(dataset[ATTRIBUTES])]
        dataset = dataset.add_column(TASTE_COLUMNS[2], gaps)
    return dataset


def attribute_gaps(value: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """
    By how much the chosen response exceeds the rejected one in each attribute, and what is no attribute.

    Args:
        value (`Any`):
            `attributes` of a pair: an object of numbers for each response, or one of gaps.

    Returns:
        `tuple[dict[str, float], dict[str, Any]]`: Gaps by name, without those that are not known of both, and by
        column what is something else than a finite number.
    """
    sides = [] if value is None else _sides(value)
    if len(sides) > len(SIDES) or not all(isinstance(side, dict | None) for side in sides):
        return {}, {ATTRIBUTES: value}
    read, odd = [dict[str, float]() for _ in sides], dict[str, Any]()
    for numbers, side in zip(read, sides, strict=True):
        for name, found in (side or {}).items():
            try:
                if found is not None:
                    numbers[name] = number(found, name)
            except RowError:
                odd[f"{ATTRIBUTES}.{name}"] = found
    named = [name for name in read[0] if name in read[-1]] if read else []
    return {name: read[0][name] - sum(side[name] for side in read[1:]) for name in named}, odd


def _sides(value: Any) -> list[Any]:
    """The objects of numbers of the two responses, or the one of gaps that there is."""
    if isinstance(value, dict) and value.keys() == set(SIDES):
        return [value[side] for side in SIDES]
    return value if isinstance(value, list) else [value]


def _gaps(value: Any, names: list[str], dataset: str, row: int) -> list[float]:
    """Of each attribute that of chosen less that of rejected, or the gap that is given; NaN where none is."""
    gaps, odd = attribute_gaps(value)
    for column in (ATTRIBUTES, *(f"{ATTRIBUTES}.{name}" for name in names)):
        if column in odd:
            remedy = "Write numbers, in an object for each of the two responses."
            raise RowError(column, describe(odd[column]), remedy).at(dataset, row_number(dataset, row))
    return [gaps.get(name, math.nan) for name in names]
