"""Pairs whose two sides answer different prompts, and a context before the conversation, from the file to tokens."""

import json
import logging

import pytest
from datasets import Dataset

from tests.data.published import assistant, plain, system, talk, user
from toolkit.data.checks import CONTRADICTED, REPEATED, PairCounts, Place
from toolkit.data.formats import normalize_pairs, normalize_prompts, pairs_of_one_prompt
from toolkit.data.forms import find_form
from toolkit.data.held_out import hold_out
from toolkit.data.loading import load_pairs
from toolkit.data.packing import shared_prefix_length
from toolkit.data.preparation import group_by_prompt, tokenize_pairs
from toolkit.data.survey import Survey, find_sources

SKY, SEA = [user("What colour is the sky?")], [user("What colour is the sea?")]
OPTIONS = {"max_length": None, "needs_prompt": True, "drop_long": False, "length_column_name": "length"}


@pytest.fixture(autouse=True)
def plain_logger(monkeypatch):
    monkeypatch.setattr("toolkit.data.preparation.logger", logging.getLogger("toolkit.data.preparation"))


def normalized(*rows):
    return normalize_pairs(Dataset.from_list(list(rows)), "pairs").to_list()


def test_each_side_keeps_the_prompt_that_it_answers():
    rows = [
        plain("Sky?", "Blue.", "Wet.", rejected_prompt="Sea?", id=1),
        plain("Sky?", "Blue.", "Red.", rejected_prompt=None, id=2),  # both sides answer the one prompt
        plain("Sea?", "Blue.", "Blue.", rejected_prompt="Snow?", id=3),  # the same response, another prompt
    ]
    found = normalized(*rows)
    assert found == [rows[0], rows[1] | {"rejected_prompt": "Sky?"}, rows[2]]
    assert normalized(*found) == found
    told = find_form(rows, list(rows[0]), "pairs").name
    assert told.endswith("prompt in `prompt`, that of the rejected side in `rejected_prompt` where it has one")
    assert [row["prompt"] for row in normalize_prompts(Dataset.from_list(rows), "x")] == ["Sky?", "Sky?", "Sea?"]


def test_messages_and_whole_conversations_are_divided_side_by_side():
    expected = talk(SKY, "Blue.", "Wet.", rejected_prompt=SEA)
    whole = {"chosen": [*SKY, assistant("Blue.")], "rejected": [*SEA, assistant("Wet.")]}
    assert normalized(expected) == normalized({"prompt": SKY, "rejected_prompt": SEA, **whole}) == [expected]
    texts = {"prompt": SKY[0]["content"], "rejected_prompt": SEA[0]["content"]}
    assert normalized({**texts, **whole}) == [expected]
    system_row = expected | {"system_prompt": "Be very kind."}
    assert normalized(system_row)[0]["rejected_prompt"] == [system("Be very kind."), *SEA]


def test_a_prompt_that_one_side_repeats_is_taken_off_that_side():
    first, second = "Say what colour the sky is:", "Say what colour the sea is:"
    [found] = normalized(plain(first, f"{first} blue.", "green.", rejected_prompt=second))
    assert (found["chosen"], found["rejected"]) == (" blue.", "green.")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "responses": ["a", "b"], "ranks": [1, 2]}, "'rejected_prompt', which goes with 'prompt'"),
        ({"prompt": "p", "response_a": "a", "response_b": "b", "winner": "model_a"}, "which goes with 'prompt'"),
        (
            {"question": "p", "chosen": "a", "rejected": "b"},
            "is read as `chosen` and `rejected`; prompt in `question`",
        ),
        (plain("p", "a", "b") | {"rejected_prompt": 7}, "column 'rejected_prompt': found a number: 7"),
    ],
)
def test_a_prompt_of_one_side_that_cannot_be_read_is_refused(row, message):
    with pytest.raises(ValueError, match=message):
        normalized({"rejected_prompt": "q", **row})


def test_what_reads_one_prompt_of_a_pair_refuses_two(tmp_path):
    rows = [plain("Sky?", "Blue.", "Wet.", rejected_prompt="Sea?"), plain("a", "b", "c", rejected_prompt="d")]
    pairs = normalize_pairs(Dataset.from_list(rows), "pairs")
    with pytest.raises(ValueError, match=r"not divided by prompt\. Set `eval_dataset_name`"):
        hold_out(pairs, 1, 0)
    with pytest.raises(ValueError, match=r"'x' has a column 'rejected_prompt', and the judge reads one prompt"):
        pairs_of_one_prompt(pairs, "x", "the judge reads")
    for name, some in {"1": rows, "2": [plain("a", "b", "c")]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    with pytest.raises(ValueError, match="differ in column 'rejected_prompt'"):  # dropped, it would be another pair
        load_pairs(str(tmp_path / "*.jsonl"))
    survey = Survey(PairCounts())
    for name in ("1", "2"):
        survey.add(next(iter(find_sources(str(tmp_path / f"{name}.jsonl")))))
    assert "only one has the column ['rejected_prompt']" in survey.refusals[0]


def test_pairs_with_other_prompts_are_no_repeats():
    counts = PairCounts()
    rows = [plain("p", "a", "b"), plain("p", "a", "b", rejected_prompt="q"), plain("q", "b", "a", rejected_prompt="p")]
    for number, row in enumerate([*rows, rows[1]], start=1):
        counts.add(Place("x", number), row)
    counts.finish()
    assert {kind: found.first for kind, found in counts.kinds.items()} == {
        REPEATED: [(Place("x", 4), Place("x", 2))],
        CONTRADICTED: [(Place("x", n), Place("x", 3 if n != 3 else 2)) for n in (2, 3, 4)],
    }


def test_both_rows_are_those_of_pairs_alone_and_share_their_beginning(tokenizer):
    rows = [talk(SKY, "Blue.", "Wet.", rejected_prompt=SEA), talk(SKY, "Blue.", "Wet.", rejected_prompt=SKY)]
    two, one = tokenize_pairs(Dataset.from_list(rows), "pairs", tokenizer, **OPTIONS)
    [other] = tokenize_pairs(Dataset.from_list([talk(SEA, "Blue.", "Wet.")]), "pairs", tokenizer, **OPTIONS)
    for column in ("ids", "start"):
        assert two[f"chosen_{column}"] == one[f"chosen_{column}"]
        assert two[f"rejected_{column}"] == other[f"rejected_{column}"]
    shared = shared_prefix_length([two["chosen_ids"], two["rejected_ids"]])
    assert 0 < shared == two["shared_tokens"] < two["chosen_start"]  # the question begins alike
    assert two["length"] == len(two["chosen_ids"]) + len(two["rejected_ids"]) - shared
    # Rows by their prompts have as many pairs, and each response its own prompt
    pairs = tokenize_pairs(Dataset.from_list([*rows, rows[0] | {"chosen": [assistant("Grey.")]}]), "pairs", tokenizer,
                           **OPTIONS)  # fmt: skip
    grouped = group_by_prompt(pairs, "pairs", "length").to_list()
    assert sum(len(row["response_pairs"]) for row in grouped) == 3
    for row in grouped:
        if row["rejected_prompt"] == SEA:
            assert two["rejected_ids"] in row["response_ids"]


def test_each_side_is_cut_by_what_its_own_prompt_is_too_long(tokenizer):
    long = [user(f"{SEA[0]['content']} " * 6)]
    rows = [talk(SKY, "Blue.", "Wet.", rejected_prompt=long)]
    [whole] = tokenize_pairs(Dataset.from_list(rows), "pairs", tokenizer, **OPTIONS)
    most = len(whole["chosen_ids"]) + 3
    [cut] = tokenize_pairs(Dataset.from_list(rows), "pairs", tokenizer, **(OPTIONS | {"max_length": most}))
    assert cut["chosen_ids"] == whole["chosen_ids"]
    assert len(cut["rejected_ids"]) == most
    assert cut["cut_tokens"] == len(whole["rejected_ids"]) - most


def test_a_context_stands_in_the_system_turn():
    row = plain("Sky?", "Blue.", "Red.", context="It is noon.")
    expected = talk([system("It is noon."), user("Sky?")], "Blue.", "Red.")
    assert normalized(row) == [expected]
    assert find_form([row], [*row], "x").name.endswith("prompt in `prompt` and `context`")
    both = [system("Be kind to all.\n\nIt is noon."), user("Sky?")]
    assert normalized(row | {"system": "Be kind to all."})[0]["prompt"] == both
    own = {"prompt": [system("Be kind to all."), user("Sky?")], "chosen": "Blue.", "rejected": "Red."}
    assert normalized(own | {"context": "It is noon."})[0]["prompt"] == both
    without = normalized(row, row | {"context": None})[1]["prompt"]
    assert without == [user("Sky?")]
    whole = {side: [user("Sky?"), assistant(text)] for side, text in (("chosen", "Blue."), ("rejected", "Red."))}
    assert normalized(whole | {"context": "It is noon."}) == [expected]
    with pytest.raises(ValueError, match=r"column 'context': found a number: 3\. Write it as text, or remove the col"):
        normalized(row | {"context": 3})
