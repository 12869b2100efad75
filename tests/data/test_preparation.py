import copy
import logging

import pytest
from datasets import Dataset

from toolkit.data.preparation import tokenize_pairs


@pytest.fixture(autouse=True)
def plain_logger(monkeypatch):
    """A logger that needs no process group."""
    monkeypatch.setattr("toolkit.data.preparation.logger", logging.getLogger("toolkit.data.preparation"))


@pytest.fixture(scope="module")
def forgetful(tokenizer):
    """The tokenizer with a template that leaves thoughts out, as many do."""
    other = copy.copy(tokenizer)
    other.chat_template = tokenizer.chat_template.replace(
        "message['content']", "message['content'].split('</think>')[-1]"
    )
    return other


def pair(chosen, rejected, number):
    sides = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    return {
        "prompt": [{"role": "user", "content": "Sky?"}],
        **dict(zip(("chosen", "rejected"), sides, strict=True)),
        "id": number,
    }


def tokenized(tokenizer, *rows):
    options = {"max_length": 64, "needs_prompt": True, "drop_long": False, "length_column_name": "length"}
    return tokenize_pairs(Dataset.from_list(list(rows)), "pairs.jsonl", tokenizer, **options)


GOOD, BEGUN = ("Blue.", "Red."), ("Blue.", "Blue. Or red.")
THOUGHT = ("<think>a</think>Blue.", "<think>b</think>Blue.")


def test_pairs_that_are_the_same_tokens_are_left_out_and_counted(tokenizer, forgetful, caplog):
    rows = [pair(*sides, number) for number, sides in enumerate([GOOD, THOUGHT, BEGUN, BEGUN[::-1], GOOD])]
    assert tokenized(tokenizer, *rows)["id"][:] == [0, 1, 2, 3, 4]
    assert "left out" not in caplog.text
    assert tokenized(forgetful, *rows)["id"][:] == [0, 2, 3, 4]
    assert "left out 1 of 5 pairs with responses that are the same once they are tokens" in caplog.text


def test_a_template_that_makes_most_pairs_equal_is_refused(forgetful):
    with pytest.raises(ValueError, match=r"'pairs.jsonl': 2 of 3 pairs .* Look what the chat template leaves"):
        tokenized(forgetful, pair(*THOUGHT, 0), pair(*GOOD, 1), pair(*THOUGHT, 2))
