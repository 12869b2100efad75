"""What is left out, changed or refused among rows that other people publish."""

import math
import random

import pytest
from datasets import Dataset

from tests.data.published import assistant, plain, rated, said, steered, talk, user, voted
from toolkit.data.division import common_beginning
from toolkit.data.formats import normalize_pairs
from toolkit.data.forms import find_form
from toolkit.data.row_errors import RowError

PAIR = {"prompt": "2 + 2?", "chosen": "Four.", "rejected": "Five."}
TURNS = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}


def normalized(*rows):
    return normalize_pairs(Dataset.from_list(list(rows)), "pairs").to_list()


@pytest.mark.parametrize(
    ("good", "bad", "found"),
    [
        ({**PAIR, "score_chosen": 3, "score_rejected": 2}, {"score_rejected": 3}, "the same score for both responses"),
        ({**PAIR, "chosen_score": 3, "rejected_score": 2}, {"rejected_score": 4}, "scores that contradict which"),
        (voted("a", "b", "c", labels=1, score_A=3, score_B=2), {"labels": 0}, "scores that contradict which response"),
        (voted("a", "b", "c", labels=1, score_A=3, score_B=2), {"score_B": 3}, "the same score for both responses"),
        (
            {"prompt": "a", "response1": "b", "response2": "c", "overall_preference": 1},
            {"overall_preference": 0},
            "no r",
        ),
        ({"prompt": "a", "response_a": "b", "response_b": "c", "winner": "model_a"}, {"winner": "tie"}, "no response"),
        ({"prompt": "a", "completions": [rated("b", 1), rated("c", 2)]}, {"completions": [rated("b", 1)]}, "no two"),
        ({"prompt": "a", "chosen": ["b"], "rejected": ["c"]}, {"rejected": ["b"]}, "the same response as in 'chosen'"),
        (TURNS, {"chosen": "\n\nHuman: a\n\nAssistant:"}, "an empty response"),
        (TURNS, {"chosen": "Human: a"}, "a last message from 'user'"),
    ],
)
def test_a_row_of_a_published_form_without_a_preference_is_left_out(good, bad, found, caplog):
    assert len(normalized(good, good | bad, good)) == 2
    assert f"left out 1 of 3 rows: 1 with {found}" in caplog.text
    assert "(row 2)" in caplog.text


@pytest.mark.parametrize(
    ("good", "bad", "column", "found"),
    [
        ({**PAIR, "score_chosen": 3, "score_rejected": 2}, {"score_chosen": None}, "score_chosen", "null"),
        (
            {**PAIR, "score_chosen": 3, "score_rejected": 2},
            {"score_chosen": math.inf},
            "score_chosen",
            "a number: inf",
        ),
        (voted("a", "b", "c", labels=1), {"labels": 2}, "labels", r"a number: 2. Write one of \[1, 0\]"),
        (voted("a", "b", "c", labels=1, score_ratio=2.0), {"score_ratio": 0.5}, "score_ratio", "a number: 0.5"),
        (voted("a", "b", "c", labels=1), {"human_ref_B": None}, "human_ref_A' or 'human_ref_B", "null"),
        (
            {"prompt": "a", "response_0": "b", "response_1": "c", "winner": "model_a"},
            {"winner": "A"},
            "winner",
            "text",
        ),
        ({"prompt": "a", "completions": [rated("b", 1), rated("c", 2)]}, {"completions": None}, "completions", "null"),
        ({"question": "a", "chosen": "b", "rejected": "c"}, {"question": None}, "question", "null"),
        (
            {"instruction": "a", "input": "", "chosen": "b", "rejected": "c"},
            {"instruction": None},
            "instruction",
            "null",
        ),
        ({"conversations": [said("human", "a")], "chosen": "b", "rejected": "c"}, {"chosen": None}, "chosen", "null"),
        (TURNS, {"rejected": "c"}, "rejected", "plain text. 'chosen' has a Human/Assistant transcript"),
    ],
)
def test_a_wrong_value_of_a_published_form_is_named_by_the_column_of_the_file(good, bad, column, found):
    with pytest.raises(ValueError, match=f"Data set 'pairs', row 2, column '{column}': found {found}"):
        normalized(good, good | bad, good)


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"frage": "Was ist das?"}, r"but \['frage'\] may hold prompts"),
        ({"title": "A short one", "id": "x7"}, r"but \['title'\] may hold prompts"),
        ({"text": "Hm?"}, r"but \['text'\] may hold prompts"),
        ({"task": "Write a poem about the sea."}, r"but \['task'\] may hold prompts"),
        ({"talk": [user("Hm?")]}, r"but \['talk'\] may hold prompts"),
        (
            {"question": "Who?", "context": "It was me."},
            r"each of the columns \['question', 'context'\] may be the prompt",
        ),
        ({"instruction": "Sum up.", "context": "A text."}, r"each of the columns \['instruction', 'context'\] may be"),
    ],
)
def test_a_column_that_may_hold_the_prompt_is_named(columns, found):
    with pytest.raises(ValueError, match=f"Data set 'pairs'.*{found}"):
        normalized({**columns, "chosen": "I can do it.", "rejected": "I could."})


def test_columns_that_describe_a_pair_are_no_prompts():
    row = {"source": "a b c", "task": "qa", "model": "m 7b", "id": "x7"}
    (found,) = normalized({**row, "chosen": "The sky is blue.", "rejected": "The sky is green."})
    assert found == {"prompt": "The sky is", "chosen": " blue.", "rejected": " green.", **row}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "a", "response_0": "b", "response_1": "c"},
            r"has \['response_0', 'response_1'\], but no column of",
        ),
        ({"prompt": "a", "completion": "b", "label": True}, r"has no column \['chosen', 'rejected'\]; it has"),
        ({"chosen": ["a", "b"], "rejected": ["c", "d"]}, "has no column 'prompt'"),
        (
            {"prompt": ["a", "b"], "chosen": ["a", "b"], "rejected": ["c", "d"]},
            "row 1, column 'prompt': found message 1",
        ),
        (
            {"chosen": "User: a\n\nAssistant: b", "rejected": "User: a\n\nAssistant: c"},
            "turns that begin with 'User:'",
        ),
        (
            {"chosen": "### Human: a\n### Assistant: b", "rejected": "### Human: a\n### Assistant: c"},
            "with '### Human:'",
        ),
    ],
)
def test_what_is_unclear_is_refused(row, message):
    with pytest.raises(ValueError, match=message):
        normalized(row)


def test_no_word_is_divided_between_prompt_and_responses():
    assert normalized({"chosen": "I can do it.", "rejected": "I could."}) == [plain("I", " can do it.", " could.")]
    assert normalized({"chosen": "猫が好き", "rejected": "猫が嫌い"}) == [plain("猫が", "好き", "嫌い")]


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("The sky is blue.", "The sky is green."),
        ("Q: Yes", "Q: No"),
        ("one two ", "one two three"),
        ([user("a"), assistant("b")], [user("a"), assistant("c")]),
        ([user("a"), assistant("b")], [user("a"), assistant("b"), user("c"), assistant("d")]),
    ],
)
def test_the_common_beginning_is_that_of_trl(chosen, rejected):
    from trl import extract_prompt

    parts = common_beginning(chosen, rejected)
    assert dict(zip(("prompt", "chosen", "rejected"), parts, strict=True)) == extract_prompt(
        {"chosen": chosen, "rejected": rejected}
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            plain("What is it?", "What is it? A dog.", "What is it?\nA cat."),
            plain("What is it?", " A dog.", "\nA cat."),
        ),
        (plain("Name: ", "Name: Ann", "Name: Bob"), plain("Name: ", "Ann", "Bob")),
        (plain("a b c?", "a b c? a b c? e", "a b c?a b c? f"), plain("a b c?", " e", " f")),
    ],
)
def test_a_text_prompt_at_the_head_of_both_responses_is_taken_off(row, expected, caplog):
    assert normalized(row) == [expected]
    assert "1 with a text prompt that both responses repeat at their beginning" in caplog.text
    assert normalized(expected) == [expected]


@pytest.mark.parametrize(
    "row",
    [
        plain("Hello", "Hello there!", "Hello!"),
        plain("The sun is up", "The sun is upside down.", "The sun is up there."),
        plain("What is it?", "What is it? A dog.", "A cat."),
    ],
)
def test_what_only_looks_like_a_repeated_prompt_stays(row):
    assert normalized(row) == [row]


def test_adjacent_turns_of_one_speaker_become_one_turn(caplog):
    start = [user("a"), user("b")]
    assert normalized({"prompt": start, "chosen": [assistant("c"), assistant("d")], "rejected": [assistant("e")]}) == [
        talk([user("a\n\nb")], "c\n\nd", "e")
    ]
    assert "1 with adjacent turns of one speaker, which were joined with a blank line between them" in caplog.text
    text = "\n\nHuman: a\n\nHuman: b\n\nAssistant: "
    assert normalized({"chosen": text + "c", "rejected": text + "e"}) == [talk([user("a\n\nb")], "c", "e")]
    whole = {"chosen": [*start, assistant("c")], "rejected": [*start, assistant("e")]}
    assert normalized({"prompt": start, **whole}) == normalized(whole) == [talk([user("a\n\nb")], "c", "e")]


def test_responses_of_one_prompt_are_brought_together_only_where_they_stand_together(caplog):
    rows = [
        steered("a", "b", 1),
        steered("c", "d", 2),
        steered("a", "e", 3),
        steered("a", "f", 3),
        steered("c", "g", 1),
    ]
    assert normalized(*rows, steered("c", "h", 4))[0]["strength"] == 3.0
    assert "2 prompts have one response only, and make no pair" in caplog.text
    assert (
        "left out 1 of 6 rows: 1 with the same helpfulness as in the rows before with this prompt (row 4)"
        in caplog.text
    )
    with pytest.raises(ValueError, match="row 101, column 'prompt': found more than 100 neighbouring rows"):
        normalized(*[steered("a", "b" + "c" * place, place % 5) for place in range(102)])


def test_pairs_of_a_row_without_a_preference_are_left_out_where_others_have_one(caplog):
    row = {"prompt": "a", "completions": [rated("b", 1), rated("c", 2), rated("b ", 3)]}
    assert [pair["strength"] for pair in normalized(row)] == [1.0, 1.0]
    assert "1 with some pairs that state no preference among others, which were left out (row 1)" in caplog.text


def test_names_of_systems_are_no_system_messages():
    rows = [PAIR | {"system": "bart"}, PAIR | {"system": "t5"}]
    assert normalized(*rows) == rows
    row = {"system": "Concise.", "question": "Who?", "chosen": "I.", "rejected": "It was me."}
    assert normalized(row) == [talk([{"role": "system", "content": "Concise."}, user("Who?")], "I.", "It was me.")]


def test_a_column_that_begins_late_in_a_file_is_refused_like_a_null_in_its_first_rows():
    form = find_form([PAIR], list(PAIR), "pairs")
    with pytest.raises(RowError, match="strength"):
        form.pairs(PAIR | {"strength": 1})
    with pytest.raises(ValueError, match="row 1, column 'strength': found null"):
        normalized(PAIR | {"strength": None}, PAIR | {"strength": 1})


# Rows of any kind

TURNS_BEGIN = ["\n\nHuman: ", "\n\nAssistant: ", "Human:", "[{"]
PARTS = [*TURNS_BEGIN, "a", "b", "1", " ", "\n", "sky?", "\u200b", "\r\n", "é", "猫", ":"]
SETS = [
    ("chosen", "rejected"),
    ("prompt", "chosen", "rejected", "strength"),
    ("question", "system", "chosen", "rejected"),
    ("instruction", "input", "history", "chosen", "rejected"),
    ("prompt", "response_0", "response_1", "better_response_id"),
    ("history", "human_ref_A", "human_ref_B", "labels", "score_A", "score_B"),
    ("prompt", "response", "helpfulness"),
    ("prompt", "completions"),
]


def any_value(source, column, style):
    def text():
        return "".join(source.choices(PARTS, k=source.randrange(6)))

    def message():
        return {"role": source.choice(["user", "assistant", "system", "human", "gpt"]), "content": text()}

    if column in ("strength", "better_response_id", "labels", "score_A", "score_B", "helpfulness"):
        return source.choice([0, 1, 2, 0.5, "1", None])
    if column == "completions":
        return [rated(text(), source.choice([1, 2, 3])) for _ in range(source.randrange(4))]
    style = source.randrange(4) if style is None else style
    return [text(), text(), [message() for _ in range(source.randrange(4))], source.choice([None, 3, [text()]])][style]


@pytest.mark.parametrize("seed", range(10))
def test_rows_of_any_kind_are_read_or_refused_and_reading_them_again_changes_nothing(seed):
    source, read = random.Random(seed), 0
    for _ in range(300):
        columns, style, start = source.choice(SETS), source.choice([None, 0, 2]), "".join(source.choices(PARTS, k=3))
        rows = [{each: any_value(source, each, style) for each in columns} for _ in range(source.randrange(1, 4))]
        for row in rows:
            row |= {side: start + row[side] for side in ("chosen", "rejected") if isinstance(row.get(side), str)}
        pairs, wrong = [], False
        try:
            form = find_form(rows, list(columns), "rows")
        except ValueError:
            continue
        for row in rows:
            try:
                pairs += form.pairs(row)
            except RowError as error:
                wrong = wrong or not error.no_preference
        if pairs and not wrong:
            again = find_form(pairs, list(pairs[0]), "pairs")
            assert [pair for row in pairs for pair in again.pairs(row)] == pairs
            read += len(pairs)
    assert read > 20
