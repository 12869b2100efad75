import copy
import itertools
import logging
import operator

import pytest
from datasets import Dataset, concatenate_datasets, load_dataset

from toolkit.data import tokens
from toolkit.data.preparation import group_by_prompt, tokenize_pairs


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


def ranked(responses, ranks, number=0):
    sides = [[{"role": "assistant", "content": text}] for text in responses]
    return {"prompt": [{"role": "user", "content": "Sky?"}], "responses": sides, "ranks": ranks, "id": number}


def test_lists_are_tokenized_as_their_pairs_are_with_the_best_first(tokenizer):
    [found] = tokenized(tokenizer, ranked(["Red.", "Blue, I think.", "Grey."], [2, 1, 2]))
    pairs = tokenized(tokenizer, pair("Blue, I think.", "Red.", 0), pair("Blue, I think.", "Grey.", 1))
    assert found["response_ids"] == [pairs[0]["chosen_ids"], pairs[0]["rejected_ids"], pairs[1]["rejected_ids"]]
    assert found["response_starts"] == [pairs[0]["chosen_start"]] * 3
    assert found["response_ranks"] == [0, 1, 1]
    assert found["ranks"] == [1, 0, 1]  # beside the responses as they were found
    shared = found["shared_tokens"]
    assert shared >= pairs[0]["chosen_start"]
    assert found["length"] == shared + sum(len(ids) - shared for ids in found["response_ids"])


def test_lists_lose_tokens_of_their_prompt_together_and_what_is_too_long_is_named(tokenizer, caplog):
    row = ranked(["Red.", "Blue, I think.", "Grey."], [1, 2, 3])
    [whole] = tokenized(tokenizer, row)
    limit = max(map(len, whole["response_ids"])) - 2
    options = {"needs_prompt": True, "drop_long": False, "length_column_name": "length"}
    [cut] = tokenize_pairs(Dataset.from_list([row]), "lists", tokenizer, max_length=limit, **options)
    assert cut["response_ids"] == [ids[2:] for ids in whole["response_ids"]]
    assert "'lists': 1 of 1 lists were longer" in caplog.text
    with pytest.raises(
        ValueError, match=r"Data set 'lists', row 1, column 'responses\[2\]': a response of \d+ tokens"
    ):
        tokenize_pairs(Dataset.from_list([row]), "lists", tokenizer, max_length=6, **options)


def test_lists_with_responses_that_are_the_same_tokens_are_left_out_and_counted(tokenizer, forgetful, caplog):
    rows = [ranked(["Grey.", *sides], [1, 2, 3], number) for number, sides in enumerate([GOOD, THOUGHT, BEGUN])]
    assert tokenized(tokenizer, *rows)["id"][:] == [0, 1, 2]
    assert tokenized(forgetful, *rows)["id"][:] == [0, 2]
    assert "left out 1 of 3 lists with responses that are the same once they are tokens" in caplog.text


def test_pairs_by_their_prompts_keep_every_label(tokenizer, caplog):
    texts = [("Red.", "Blue."), ("Blue.", "Grey."), ("Grey.", "Red."), ("Red.", "Blue."), ("Blue.", "Red.")]
    pairs = tokenized(tokenizer, *[pair(*sides, number) for number, sides in enumerate(texts)])
    other = {
        **pair("Red.", "Blue.", 5),
        "prompt": [{"role": "user", "content": "What colour is the sea, if not red?"}],
    }
    pairs = concatenate_datasets([pairs, tokenized(tokenizer, other)])  # whose row is the longest one
    pairs = pairs.add_column("weight", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    options = [{"thinking": number == 3} for number in range(6)]
    apart = group_by_prompt(pairs.add_column("chat_template_kwargs", options), "pairs.jsonl", "length")
    assert [(len(row["response_pairs"]), row["chat_template_kwargs"]) for row in apart] == [
        (4, {"thinking": False}), (1, {"thinking": True}), (1, {"thinking": False})
    ]  # fmt: skip
    rows = group_by_prompt(pairs, "pairs.jsonl", "length")
    found = [
        ([row["response_ids"][better], row["response_ids"][worse]], weight)
        for row in rows
        for (better, worse), weight in zip(row["response_pairs"], row["weight"], strict=True)
    ]
    expected = zip(pairs["chosen_ids"], pairs["rejected_ids"], pairs["weight"], strict=True)
    key = operator.itemgetter(1)
    assert sorted(found, key=key) == [([chosen, rejected], weight) for chosen, rejected, weight in expected]
    assert [len(row["response_ids"]) for row in rows] == [3, 2]  # each response once
    for row in rows:
        shared = row["shared_tokens"]
        assert row["length"] == shared + sum(len(ids) - shared for ids in row["response_ids"])
        assert row["response_starts"] == [pairs[0 if len(row["response_pairs"]) > 1 else 5]["chosen_start"]] * len(
            row["response_ids"]
        )
    assert "its 6 pairs stand in 2 rows by their prompts, which have" in caplog.text


def test_rows_by_prompts_are_no_longer_than_the_longest_pair(tokenizer):
    texts = [f"It is {colour}, I think." for colour in ("red", "blue", "grey", "green", "pink", "black")]
    pairs = tokenized(tokenizer, *[pair(*sides, 0) for sides in itertools.combinations(texts, 2)])
    rows = group_by_prompt(pairs, "pairs.jsonl", "length")
    assert sum(map(len, rows["response_pairs"])) == 15
    assert max(rows["length"]) <= max(pairs["length"])


def test_a_template_that_makes_most_pairs_equal_is_refused(forgetful):
    with pytest.raises(ValueError, match=r"'pairs.jsonl': 2 of 3 pairs .* Look what the chat template leaves"):
        tokenized(forgetful, pair(*THOUGHT, 0), pair(*GOOD, 1), pair(*THOUGHT, 2))


def test_rows_are_made_anew_when_what_makes_them_has_changed(tokenizer, tmp_path, monkeypatch):
    Dataset.from_list([pair(*GOOD, number) for number in range(3)]).to_json(tmp_path / "pairs.jsonl")

    def rows():
        pairs = load_dataset("json", data_files=str(tmp_path / "pairs.jsonl"), cache_dir=str(tmp_path), split="train")
        options = {"max_length": 64, "needs_prompt": True, "drop_long": False, "length_column_name": "length"}
        return tokenize_pairs(pairs, "pairs.jsonl", tokenizer, **options)

    first, again = rows(), rows()
    assert first.cache_files == again.cache_files != []
    encode = tokens.encode_text

    def longer(*args, **options):
        row = encode(*args, **options)
        return row._replace(input_ids=[*row.input_ids, 7])

    monkeypatch.setattr(tokens, "encode_text", longer)
    monkeypatch.setattr("toolkit.data.preparation._code", lambda: b"another version")
    assert rows()["chosen_ids"][0] != first["chosen_ids"][0]


def test_tokens_without_where_a_response_begins_are_named(tokenizer):
    with pytest.raises(ValueError, match=r"'pairs.jsonl' has tokens alone \(\['chosen_ids', 'rejected_ids'\]\)"):
        tokenized(tokenizer, {"chosen_ids": [5, 6, 7], "rejected_ids": [5, 8]})
