"""Ranked lists: read whole or as their pairs, with ties, and what is wrong with one told where it stands."""

import json

import pytest
from datasets import Dataset

from tests.data.published import assistant, user
from toolkit.data.formats import keep_normalized, normalize_pairs, normalize_prompts
from toolkit.data.forms import find_form
from toolkit.data.loading import load_pairs

PLAIN = {"prompt": "Sky?", "responses": ["Red.", "Blue.", "Green.", "Grey."], "ranks": [3, 1, 3, 2]}


def lists(*rows, name="lists"):
    return normalize_pairs(Dataset.from_list(list(rows)), name, whole_lists=True).to_list()


def pairs(*rows):
    return normalize_pairs(Dataset.from_list(list(rows)), "lists").to_list()


def plain(**columns):
    return {**PLAIN, **columns}


def test_a_list_stays_whole_with_dense_ranks_and_its_other_columns():
    expected = {"prompt": "Sky?", "responses": PLAIN["responses"], "ranks": [2, 0, 2, 1], "id": 7}
    assert lists(plain(id=7)) == [expected]
    assert lists(expected) == [expected]
    assert lists(plain(strength="2"))[0]["strength"] == 2.0


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("ranks", ["3", "1", "3", "2"]),
        ("scores", [1, 9.5, 1, 4]),
        ("attributes", [{"a": 1, "b": 1}, {"a": 5, "b": 4}, {"a": 2, "b": 0}, {"a": 3, "b": 1}]),
    ],
)
def test_ranks_come_from_ranks_scores_or_attributes(column, values):
    row = {"prompt": "Sky?", "responses": PLAIN["responses"], column: values}
    assert lists(row) == [{"prompt": "Sky?", "responses": PLAIN["responses"], "ranks": [2, 0, 2, 1]}]
    assert (
        f"by {'the mean of each one' if column == 'attributes' else f'`{column}`'}"
        in find_form([row], [*row], "x").name
    )


def test_the_pairs_of_a_list_are_every_two_that_are_not_tied():
    found = [(pair["chosen"], pair["rejected"]) for pair in pairs(plain(strength=2.0, id=7))]
    assert sorted(found) == [
        ("Blue.", "Green."), ("Blue.", "Grey."), ("Blue.", "Red."), ("Grey.", "Green."), ("Grey.", "Red.")
    ]  # fmt: skip
    first = pairs(plain(strength=2.0, id=7))[0]
    assert list(first) == ["prompt", "chosen", "rejected", "strength", "id"]
    assert (first["strength"], first["id"]) == (2.0, 7)


def test_messages_in_every_way():
    expected = {
        "prompt": [user("Sky?")],
        "responses": [[assistant("Red.")], [assistant("Blue.")], [assistant("Grey.")]],
        "ranks": [1, 0, 1],
    }
    ranks = {"ranks": [2, 1, 2]}
    said = ["Red.", "Blue.", "Grey."]
    turns = [[assistant(text)] for text in said]
    whole = [[user("Sky?"), assistant(text)] for text in said]
    ways = [
        {"prompt": [user("Sky?")], "responses": turns},
        {"prompt": [user("Sky?")], "responses": said},
        {"prompt": [user("Sky?")], "responses": [assistant(text) for text in said]},
        {"prompt": [user("Sky?")], "responses": whole},
        {"prompt": "Sky?", "responses": turns},
        {"responses": whole},
        {"instruction": "Sky?", "completions": turns},
    ]
    for way in ways:
        assert lists(way | ranks) == [expected], way


def test_the_prompt_of_whole_conversations_is_what_all_begin_with():
    longer = [user("Sky?"), assistant("At noon?"), user("Yes.")]
    whole = [[*longer, assistant("Blue.")], [*longer, assistant("Red.")], [user("Sky?"), assistant("Grey.")]]
    [found] = lists({"responses": whole, "ranks": [1, 2, 3]})
    assert found["prompt"] == [user("Sky?")]
    assert found["responses"] == [side[1:] for side in whole]


def test_a_prompt_that_all_responses_repeat_is_taken_off():
    prompt = "Say what colour the sky is:"
    repeated = {"prompt": prompt, "responses": [f"{prompt} red.", f"{prompt} blue.", f"{prompt} grey."]}
    assert lists(repeated | {"ranks": [1, 2, 3]})[0]["responses"] == [" red.", " blue.", " grey."]
    repeated["responses"][1] = "Blue, I say."
    assert lists(repeated | {"ranks": [1, 2, 3]})[0]["responses"] == repeated["responses"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"ranks": [1, 2, 3]}, r"column 'ranks': found 3 values. Write one for each of the 4 responses"),
        ({"ranks": [1, 2, 3, None]}, r"column 'ranks': found null. Write a number"),
        ({"responses": None}, r"column 'responses': found null. Write a list of up to 100 responses"),
        ({"responses": ["a", "b", "c", None]}, r"column 'responses\[4\]': found null. Write text or a list"),
        ({"strength": -1.0}, r"column 'strength': found a number: -1.0"),
    ],
)
def test_what_is_wrong_with_a_list_is_told_where_it_stands(columns, message):
    with pytest.raises(ValueError, match=rf"Data set 'lists', row 2, {message}"):
        lists(plain(strength=1.0), plain(**{"strength": 1.0, **columns}))


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"ranks": [1, 1, 1, 1]}, "no two responses of different rank"),
        ({"responses": ["a", "b", "", "d"]}, "an empty response"),
        ({"responses": ["a", "b", "c", "b"]}, "the same response as in 'responses[2]'"),
        ({"responses": ["a", "b", "c", "b "]}, "a response that differs from 'responses[2]' only in white space"),
        ({"responses": ["a"], "ranks": [1]}, "no two responses of different rank"),
    ],
)
def test_lists_that_state_no_preference_are_left_out_and_counted(columns, found, caplog):
    assert len(lists(plain(), plain(**columns), plain())) == 2
    assert f"left out 1 of 3 rows: 1 with {found}" in caplog.text


def test_attributes_need_the_same_names():
    row = {"prompt": "Sky?", "responses": ["Red.", "Blue."]}
    with pytest.raises(ValueError, match=r"column 'attributes.b': found null. Write a number"):
        lists(row | {"attributes": [{"a": 1, "b": 2}, {"a": 1}]})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Sky?", "responses": ["a", "b"]}, r"has 'responses', but no column of \['ranks', 'scores', 'attr"),
        ({**PLAIN, "margin": 1.0}, "has 'margin' beside lists, and a margin is of a pair"),
        ({"responses": ["a", "b"], "ranks": [1, 2]}, r"has no column 'prompt'; it has \['responses', 'ranks'\]"),
    ],
)
def test_sets_that_cannot_be_lists_are_refused(row, message):
    with pytest.raises(ValueError, match=f"Data set 'lists' {message}"):
        lists(row)


def test_prompts_of_lists_and_of_prompts_with_answers():
    assert normalize_prompts(Dataset.from_list([plain(id=7)]), "lists").to_list() == [{"prompt": "Sky?", "id": 7}]
    answered = {"prompt": "Sky?", "answers": ["Blue."]}  # such as references, which nothing ranks
    assert normalize_prompts(Dataset.from_list([answered]), "prompts").to_list() == [answered]
    whole = {"responses": [[user("Sky?"), assistant(text)] for text in ("a", "b", "c")], "ranks": [1, 2, 3]}
    assert normalize_prompts(Dataset.from_list([whole]), "lists").to_list() == [{"prompt": [user("Sky?")]}]


def test_what_was_checked_is_not_checked_again_unless_it_is_to_be_pairs():
    whole = normalize_pairs(Dataset.from_list([plain()]), "lists", whole_lists=True)
    assert normalize_pairs(whole, "lists", whole_lists=True) is whole
    assert len(normalize_pairs(whole, "lists")) == 5
    assert keep_normalized(whole.select([0]), whole).column_names == ["prompt", "responses", "ranks"]


def test_files_of_lists(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name, row in {"a": plain(), "b": plain(ranks=[4, 3, 2, 1])}.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    found = load_pairs(str(tmp_path / "*.jsonl"), whole_lists=True)
    assert found["ranks"][:] == [[2, 0, 2, 1], [3, 2, 1, 0]]
    assert len(load_pairs(str(tmp_path / "*.jsonl"))) == 5 + 6
    (tmp_path / "c.jsonl").write_text(json.dumps({"prompt": "Sky?", "chosen": "Blue.", "rejected": "Red."}) + "\n")
    with pytest.raises(ValueError, match="differ in column 'chosen'"):
        load_pairs(str(tmp_path / "*.jsonl"), whole_lists=True)
