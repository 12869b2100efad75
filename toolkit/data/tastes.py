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

ANNOTATOR, ATTRIBUTES = "annotator", "attributes"
# What the trainer reads in their place: the annotator's place in the list of names, what a pair weighs among the pairs
# of its annotator, and of each attribute by how much the chosen response has more of it
TASTE_COLUMNS = ("annotator_index", "annotator_share", "attribute_gaps")


def taste_names(dataset: Any, outputs: int, reader: str, reader_weights: str) -> tuple[list[str], list[str]]:
    """
    Names of the annotators and attributes that a training set has and a head with several outputs needs.

    Args:
        dataset (`datasets.Dataset`):
            Pairs or lists, as they are given.
        outputs (`int`):
            Outputs of the head.
        reader, reader_weights (`str`):
            What makes a preference of them, and whose its weights are.

    Returns:
        `tuple[list[str], list[str]]`: Annotators and attributes, each in order; none where the head needs none, or the
        data have none.

    Raises:
        `ValueError`: If there is no column `annotator` and each shall have weights, or the number of attributes is
        another than that of outputs.
    """
    annotators, attributes = list[str](), list[str]()
    columns = getattr(dataset, "column_names", None) or []
    if reader_weights == "annotator":
        if ANNOTATOR not in columns:
            raise ValueError(
                f"`reader_weights='annotator'` needs a column '{ANNOTATOR}' in the training data, which have "
                f"{sorted(columns)}. Rename the column that says who made a label."
            )
        annotators = sorted({str(name) for name in dataset[ANNOTATOR] if name is not None})
    has_attributes = ATTRIBUTES in columns and "chosen" in columns
    if outputs > 1 and (reader, reader_weights) == ("linear", "shared") and not has_attributes:
        raise ValueError(
            f"`outputs={outputs}` with weights that all share need pairs with a column '{ATTRIBUTES}', without which "
            "they are one. Add it, or set `reader_weights` or `reader`."
        )
    if outputs > 1 and has_attributes:
        attributes = sorted({name for value in dataset[ATTRIBUTES] for name in _names(value)})
        if len(attributes) != outputs:
            raise ValueError(
                f"The training data have {len(attributes)} attributes, {attributes}, and `outputs` is {outputs}. Set "
                f"`outputs={len(attributes)}`, or leave the column '{ATTRIBUTES}' out."
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
            What has the names of `annotators` and `attributes` that the model knows. Where it knows none the set stays
            as it is.
        train (`bool`):
            Whether it is the training set, in which the annotators' prior has a say.

    Returns:
        `datasets.Dataset`: The set with its columns. Annotators whose names are not known have the index -1, which a
        warning counts. An attribute of which a response has no value, or both have the same, is a gap of NaN or 0.

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


def _names(value: Any) -> list[str]:
    sides = value if isinstance(value, list) else [value]
    return [name for side in sides if isinstance(side, dict) for name in side]


def _gaps(value: Any, names: list[str], dataset: str, row: int) -> list[float]:
    """Of each attribute that of chosen less that of rejected, or the gap that is given; NaN where none is."""
    if isinstance(value, list) and all(isinstance(side, dict) for side in value):  # an object of each response
        value = {name: [side.get(name) for side in value] for name in names}
    try:
        if not isinstance(value, dict | None):
            raise RowError(ATTRIBUTES, describe(value), "Write an object of numbers for each of the two responses.")
        return [_gap((value or {}).get(name), f"{ATTRIBUTES}.{name}") for name in names]
    except RowError as error:
        raise error.at(dataset, row_number(dataset, row)) from None


def _gap(value: Any, column: str) -> float:
    sides = value if isinstance(value, list) else [value, 0.0]
    if len(sides) != 2:
        raise RowError(column, f"{len(sides)} values", "Write one for each of the two responses, or their gap.")
    if None in sides:
        return math.nan
    chosen, rejected = (number(side, column) for side in sides)
    return chosen - rejected
