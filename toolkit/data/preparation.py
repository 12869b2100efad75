"""A set of pairs or lists as the reward trainer reads it: checked, tokenized, and what was lost on the way said."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from .formats import keep_normalized, normalize_pairs
from .packing import shared_prefix_length
from .prompts import REJECTED_PROMPT
from .tally import EQUAL, check_equal
from .templates import TEMPLATE_COLUMNS
from .tokens import LIST_COLUMNS, PAIR_COLUMNS, tokenize_list, tokenize_pair

logger = get_logger(__name__)


def tokenize_pairs(
    dataset: Dataset,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    needs_prompt: bool,
    drop_long: bool,
    length_column_name: str,
    num_proc: int | None = None,
) -> Dataset:
    """
    Check and tokenize preference pairs or ranked lists.

    Args:
        dataset (`datasets.Dataset`):
            Pairs in any of TRL's preference formats, or lists of responses with ranks. Columns by the names that are
            written here are left out, which a warning says; a data set with all of them was tokenized before and is
            returned as it is.
        name (`str`):
            Name of the data set, for messages.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the reward model.
        max_length (`int` or `None`):
            Most tokens of a row. Longer pairs lose tokens from the left of their prompt, which a warning counts.
        needs_prompt (`bool`):
            Whether the score reads the prompt's last token.
        drop_long (`bool`):
            Whether pairs of which a response alone is too long are left out and counted instead of refused.
        length_column_name (`str`):
            Column for a pair's number of distinct tokens.
        num_proc (`int`, *optional*):
            Processes that tokenize.

    Returns:
        `datasets.Dataset`: The pairs, with the columns of [`~toolkit.data.tokens.tokenize_pair`] but `error`; the
        lists, with those of [`~toolkit.data.tokens.tokenize_list`].

    Raises:
        `TypeError`: If the data set is streamed.
        `ValueError`: If a row is wrong; the message names row, column and remedy.
    """
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            f"Data set '{name}' is streamed. Every pair is checked and the strengths are compared with their mean "
            "before training, so load it whole."
        )
    if any(set(columns) <= set(dataset.column_names) for columns in (PAIR_COLUMNS, LIST_COLUMNS)):
        return dataset  # tokenized before
    own = {*PAIR_COLUMNS, *LIST_COLUMNS, "response_pairs", "error", "weight", length_column_name}
    if taken := [column for column in dataset.column_names if column in own]:
        logger.warning(
            f"Data set '{name}': the columns {taken} have names that the trainer uses itself, and are not read. Only "
            "`margin` and `strength` have a say in the loss."
        )
        if len(taken) == len(dataset.column_names):
            raise ValueError(
                f"Data set '{name}' has tokens alone ({taken}), and not all that the trainer reads of them, such as "
                "where a response begins. Give the texts, in `prompt`, `chosen` and `rejected`."
            )
        dataset = keep_normalized(dataset.remove_columns(taken), dataset)
    options: dict[str, Any] = {
        "tokenizer": tokenizer,
        "max_length": max_length,
        "dataset_name": name,
        "needs_prompt": needs_prompt,
        "length_column_name": length_column_name,
    }
    dataset = normalize_pairs(dataset, name, whole_lists=True)
    what = "pairs" if "chosen" in dataset.column_names else "lists"
    function = tokenize_pair if what == "pairs" else tokenize_list
    key = Hasher.hash([dataset._fingerprint, function.__name__, options, _code(), transformers.__version__])
    how: dict[str, Any] = {"fn_kwargs": options, "num_proc": num_proc, "desc": f"Tokenizing {name}"}
    dataset = dataset.map(function, with_indices=True, new_fingerprint=key, **how)
    dataset = _without_long_responses(dataset, name, max_length, drop_long, what)
    dataset = _without_equal_rows(dataset, name, length_column_name, what)
    cut = [tokens for tokens in dataset["cut_tokens"] if tokens]
    if cut:
        logger.warning(
            f"Data set '{name}': {len(cut)} of {len(dataset)} {what} were longer than `max_length={max_length}` and "
            f"lost {sum(cut) / len(cut):.0f} tokens on average, {max(cut)} at most, from the left of their prompt."
        )
    return dataset


@cache
def _code() -> bytes:
    """What makes rows: the cache's own key does not notice when the functions that a function calls have changed."""
    return b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))


def group_by_prompt(dataset: Dataset, name: str, length_column_name: str) -> Dataset:
    """
    Put tokenized pairs with the same prompt into rows in which each response stands once.

    No row becomes longer than the longest pair is, so that a batch needs no more memory for as many rows.

    Args:
        dataset (`datasets.Dataset`):
            Pairs from [`tokenize_pairs`], with `weight` and `margin` where they have them.
        name (`str`):
            Name of the data set, for messages.
        length_column_name (`str`):
            Column for a row's number of distinct tokens.

    Returns:
        `datasets.Dataset`: `prompt` and the template's arguments where they are known, `response_ids` and
        `response_starts`, `response_pairs`, of each pair the two places among them, the preferred one first, `weight`
        and `margin`, of each pair, `shared_tokens`, and the column for the length. Other columns are left out.
    """
    numbers = [column for column in ("weight", "margin") if column in dataset.column_names]
    given = [column for column in ("prompt", REJECTED_PROMPT, *TEMPLATE_COLUMNS) if column in dataset.column_names]
    longest, rows, latest = max(dataset[length_column_name]), list[dict[str, Any]](), dict[str, dict[str, Any]]()
    for pair in dataset.select_columns([*PAIR_COLUMNS, *given, *numbers]):
        sides = [(pair[f"{side}_ids"], pair[f"{side}_start"]) for side in ("chosen", "rejected")]
        prompt = pair.get("prompt", sides[0][0][: sides[0][1]])  # its tokens where no more is known
        key = json.dumps([prompt, pair["cut_tokens"], *(pair[column] for column in given)])
        row = latest.get(key)
        merged = [*row["rows"], *(side for side in sides if side not in row["rows"])] if row else sides
        if row is None or _lengths(merged)[1] > longest:
            row, merged = {column: pair[column] for column in given}, sides
            row |= {column: [] for column in ("response_pairs", *numbers)}
            latest[key] = row
            rows.append(row)
        row["rows"] = merged
        row["response_pairs"].append([merged.index(side) for side in sides])
        for column in numbers:
            row[column].append(pair[column])
    for row in rows:
        merged = row.pop("rows")
        row["response_ids"], row["response_starts"] = map(list, zip(*merged, strict=True))
        row["shared_tokens"], row[length_column_name] = _lengths(merged)
    tokens = sum(row[length_column_name] for row in rows)
    logger.warning(
        f"Data set '{name}': its {len(dataset)} pairs stand in {len(rows)} rows by their prompts, which have {tokens} "
        f"distinct tokens in place of {sum(dataset[length_column_name])}."
    )
    return Dataset.from_list(rows)


def _lengths(rows: list[tuple[list[int], int]]) -> tuple[int, int]:
    """Number of tokens with which all rows begin, and of all tokens where these are counted once."""
    shared = shared_prefix_length([ids for ids, _ in rows])
    return shared, shared + sum(len(ids) - shared for ids, _ in rows)


def _without_equal_rows(dataset: Dataset, name: str, length_column_name: str, what: str) -> Dataset:
    """Leave out and count the pairs and lists of which two responses are the same tokens, and state no preference."""
    if what == "pairs":  # whose distinct tokens are all shared
        lengths = zip(dataset[length_column_name], dataset["shared_tokens"], strict=True)
        differs = [pair != shared for pair, shared in lengths]
    else:
        differs = [len(set(map(tuple, ids))) == len(ids) for ids in dataset["response_ids"]]
    equal = differs.count(False)
    check_equal(name, equal, len(differs), what)
    if not equal:
        return dataset
    logger.warning(f"Data set '{name}': left out {equal} of {len(differs)} {what} with {EQUAL}.")
    return dataset.select([place for place, each in enumerate(differs) if each])


def _without_long_responses(
    dataset: Dataset, name: str, max_length: int | None, drop_long: bool, what: str
) -> Dataset:
    """Refuse, or leave out and count, the pairs and lists of which a response alone is too long."""
    wrong = [reason for reason in dataset["error"] if reason]
    if wrong and not (drop_long and len(wrong) < len(dataset)):
        more = f" It is the first of {len(wrong)} such rows of {len(dataset)}." if len(wrong) > 1 else ""
        raise ValueError(wrong[0] + more)
    if wrong:
        long = f"{len(wrong)} of {len(dataset)} {what}, of which a response alone is longer than `max_length`"
        logger.warning(f"Data set '{name}': left out {long}={max_length}.")
        dataset = dataset.filter(lambda reason: not reason, input_columns="error")
    return dataset.remove_columns("error")
