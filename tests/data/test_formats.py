import gzip
import json
import math

import pytest
from datasets import Dataset, Value

from tests.data.published import assistant, user
from toolkit.data.formats import keep_normalized, normalize_pairs, normalize_prompts
from toolkit.data.loading import load_pairs

PLAIN = {"prompt": "2 + 2?", "chosen": "Four.", "rejected": "Five."}
SKY = "What color is the sky?"


@pytest.fixture(autouse=True)
def own_cache_and_no_network(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


TALK = {"prompt": [user(SKY)], "chosen": [assistant("Blue.")], "rejected": [assistant("Green.")]}


def pairs(*rows):
    return list(normalize_pairs(Dataset.from_list(list(rows)), "pairs.jsonl"))


def prompts(*rows):
    return list(normalize_prompts(Dataset.from_list(list(rows)), "prompts.jsonl"))


def write(path, *rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    with gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w") as file:
        file.write(text)
    return str(path)


# The accepted forms


def test_plain_pairs_with_a_prompt_stay_as_they_are():
    assert pairs(PLAIN) == [PLAIN]


def test_conversational_pairs_stay_as_they_are():
    assert pairs(TALK) == [TALK]


def test_plain_responses_to_a_conversation_become_the_assistants_message():
    assert pairs({"prompt": [user(SKY)], "chosen": "Blue.", "rejected": "Green."}) == [TALK]


def test_the_prompt_of_whole_conversations_is_their_common_beginning():
    start = [user("Hello"), assistant("Hi"), user(SKY)]
    row = {"chosen": [*start, assistant("Blue.")], "rejected": [*start, assistant("Green.")]}
    assert pairs(row) == [TALK | {"prompt": start}]


def test_both_sides_keep_a_message_where_one_conversation_goes_on_from_the_other():
    short = [user(SKY), assistant("Blue.")]
    expected = {"prompt": short[:1], "chosen": short[1:], "rejected": [short[1], user("Sure?"), assistant("No.")]}
    assert pairs({"chosen": short, "rejected": [*short, user("Sure?"), assistant("No.")]}) == [expected]


def test_conversations_that_differ_from_the_start_have_an_empty_prompt():
    row = {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]}
    assert pairs(row) == [{"prompt": []} | row]


def test_whole_conversations_beside_a_prompt_do_not_repeat_it():
    whole = {"chosen": [user(SKY), assistant("Blue.")], "rejected": [user(SKY), assistant("Green.")]}
    assert pairs({"prompt": [user(SKY)], **whole}) == [TALK]
    assert pairs({"prompt": SKY, **whole}) == [TALK]


def test_the_prompt_of_plain_pairs_is_their_common_beginning():
    row = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    assert pairs(row) == [{"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}]


def test_plain_pairs_without_a_common_beginning_lose_no_character():
    row = {"chosen": "blue ", "rejected": "green"}
    assert pairs(row) == [{"prompt": ""} | row]


def test_transcripts_become_messages():
    start = "\n\nHuman: Hello \n\nAssistant: Hi\nthere\n\nHuman: What color is the sky?\n\nAssistant:"
    row = {"chosen": start + " Blue.", "rejected": start + " Green."}
    expected = TALK | {"prompt": [user("Hello"), assistant("Hi\nthere"), user(SKY)]}
    assert pairs(row) == [expected]
    assert pairs(row | {"prompt": start}) == [expected]
    assert pairs({"prompt": start, "chosen": " Blue.", "rejected": " Green."}) == [
        expected | {"chosen": [assistant(" Blue.")], "rejected": [assistant(" Green.")]}
    ]


def test_only_the_two_names_after_a_blank_line_begin_a_turn():
    text = "\n\nHuman: a\nHuman: b\n\nhuman: c\n\nHumans: d Human: e\n\nAssistant: "
    said = "a\nHuman: b\n\nhuman: c\n\nHumans: d Human: e"
    assert pairs({"chosen": text + "f", "rejected": text + "g"})[0]["prompt"] == [user(said)]


def test_transcripts_that_part_early_keep_the_common_turns_as_prompt():
    row = {
        "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
        "rejected": "\n\nHuman: a\n\nAssistant: e\n\nHuman: f\n\nAssistant: g",
    }
    chosen, rejected = [assistant("b"), user("c"), assistant("d")], [assistant("e"), user("f"), assistant("g")]
    assert pairs(row) == [{"prompt": [user("a")], "chosen": chosen, "rejected": rejected}]


def test_columns_come_in_order_numbers_as_floats_and_others_unchanged():
    row = {"id": 7, "strength": 2, "tags": {"a": [1]}, **PLAIN, "margin": -1}
    result = normalize_pairs(Dataset.from_list([row]), "pairs")
    assert result.column_names == ["prompt", "chosen", "rejected", "margin", "strength", "id", "tags"]
    assert result.features["strength"].dtype == result.features["margin"].dtype == "float64"
    assert result[0] == row


def test_other_fields_of_a_message_are_left_out():
    named = {"prompt": [user(SKY) | {"name": "Ann"}], "chosen": "Blue.", "rejected": "Green."}
    assert pairs(named) == [TALK]


def test_an_empty_prompt_is_allowed_in_pairs():
    assert pairs(PLAIN, PLAIN | {"prompt": ""})[1]["prompt"] == ""
    assert pairs(TALK, TALK | {"prompt": []})[1]["prompt"] == []
    whole = {"prompt": [], "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]}
    assert pairs(TALK, whole)[1] == whole


def test_a_strength_of_zero_is_allowed_beside_others():
    assert [row["strength"] for row in pairs(PLAIN | {"strength": 0}, PLAIN | {"strength": 1})] == [0.0, 1.0]


# What is refused


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (PLAIN, {"chosen": " \n"}),
        (PLAIN, {"rejected": "Four."}),
        (TALK, {"chosen": []}),
        (TALK, {"rejected": [assistant("Blue.")]}),
    ],
)
def test_rows_without_a_preference_are_left_out_and_counted(good, bad, caplog):
    rows = [row | {"margin": i, "id": i} for i, row in enumerate([good, good | bad, good | bad, good])]
    table = Dataset.from_list(rows).cast_column("id", Value("int32"))
    found = normalize_pairs(table, "pairs.jsonl")
    kept = pairs(good)[0]
    assert list(found) == [kept | {"margin": float(i), "id": i} for i in (0, 3)]
    assert "Data set 'pairs.jsonl': left out 2 of 4 rows: 2 with " in caplog.text
    assert "(row 2 is the first)" in caplog.text
    assert found.features["id"] == Value("int32")
    rows[3]["margin"] = math.nan
    with pytest.raises(ValueError, match="row 4, column 'margin'"):
        normalize_pairs(Dataset.from_list(rows), "pairs.jsonl")
    with pytest.raises(
        ValueError, match=r"'pairs.jsonl': 2 of 3 rows cannot be used.* read as .*`chosen` and `rejected`"
    ):
        normalize_pairs(Dataset.from_list(rows[:3]), "pairs.jsonl")


@pytest.mark.parametrize(
    ("good", "bad", "found"),
    [
        (PLAIN, {"chosen": " \n"}, "an empty response"),
        (PLAIN, {"rejected": ""}, "an empty response"),
        (PLAIN, {"rejected": "\u200b\ufeff "}, "an empty response"),
        (PLAIN, {"rejected": "Four."}, "the same response as in 'chosen'"),
        (PLAIN, {"rejected": " Four.\n"}, "a response that differs from 'chosen' only in white space"),
        (PLAIN, {"rejected": "Fo\u200bur."}, "a response that differs from 'chosen' only in white space"),
        (TALK, {"chosen": []}, "an empty response"),
        (TALK, {"chosen": [assistant(" ")]}, "an empty response"),
        (TALK, {"rejected": [assistant("Blue.")]}, "the same response"),
        (TALK, {"rejected": [assistant("Blue. ")]}, "a response that differs from 'chosen' only in white space"),
        (TALK, {"rejected": [assistant("x"), user("y")]}, "a last message from 'user'"),
    ],
)
def test_what_states_no_preference_is_left_out_with_its_reason(good, bad, found, caplog):
    assert pairs(good, good | bad, good) == pairs(good) * 2
    assert f"left out 1 of 3 rows: 1 with {found}" in caplog.text
    assert "(row 2)" in caplog.text


@pytest.mark.parametrize(
    ("good", "bad", "column", "found"),
    [
        (PLAIN, {"chosen": None}, "chosen", "null"),
        (PLAIN, {"prompt": None}, "prompt", "null"),
        (TALK, {"chosen": [user("Blue?"), assistant("x")]}, "chosen", "a response that begins with .* 'user'"),
        (TALK, {"prompt": [{"role": "user"}]}, "prompt", "message 1 as"),
        (TALK, {"chosen": [{"content": "x"}]}, "chosen", "message 1 as"),
        (TALK, {"chosen": [assistant("x"), assistant(None)]}, "chosen", "message 2 as"),
    ],
)
def test_a_bad_value_is_named(good, bad, column, found):
    with pytest.raises(ValueError, match=rf"Data set 'pairs.jsonl', row 2, column '{column}': found {found}"):
        pairs(good, good | bad, good)


@pytest.mark.parametrize(
    ("bad", "column", "found"),
    [
        ({"chosen": 3}, "chosen", "a number: 3"),
        ({"chosen": [assistant("Four.")]}, "chosen", "messages. Rows before have plain text"),
        ({"prompt": [user("2 + 2?")]}, "prompt", "messages. Rows before have plain text"),
        ({"rejected": {"text": "Five."}}, "rejected", "an object"),
        ({"rejected": assistant("Five.")}, "rejected", "messages. 'chosen' has plain text: write both alike"),
        ({"rejected": True}, "rejected", "true"),
        ({"strength": "high"}, "strength", "text: 'high'"),
        ({"strength": None}, "strength", "null"),
        ({"strength": -1}, "strength", "a number: -1"),
        ({"strength": float("nan")}, "strength", "a number: nan"),
        ({"strength": True}, "strength", "true"),
        ({"margin": "x"}, "margin", "text: 'x'"),
        ({"margin": None}, "margin", "null"),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_file_and_line(tmp_path, bad, column, found):
    row = PLAIN | {"strength": 1, "margin": 0.5}
    path = write(tmp_path / "pairs.jsonl", row, row, row | bad, row)
    with pytest.raises(ValueError, match=rf"Data set '{path}', row 3, column '{column}': found {found}"):
        load_pairs(path)


@pytest.mark.parametrize(("bad", "column"), [({"strength": -1}, "strength"), ({"chosen": 3}, "chosen")])
def test_blank_lines_hold_no_row_but_count(tmp_path, bad, column):
    row = PLAIN | {"strength": 1}
    path = write(tmp_path / "pairs.jsonl", "", row, "", row | bad)
    with pytest.raises(ValueError, match=rf"Data set '{path}', row 4, column '{column}': found a number"):
        load_pairs(path)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("column", ["margin", "strength"])
def test_a_number_must_be_finite(value, column):
    with pytest.raises(
        ValueError, match=rf"row 2, column '{column}': found a number: {value}. Write a number up to 1e\+06"
    ):
        pairs(PLAIN | {column: 1.0}, PLAIN | {column: value})


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_a_kind_that_changes_far_down_a_long_file_is_named(tmp_path, name):
    # beyond 10 MB, where the JSON loader would turn the list into text without a word
    rows = [PLAIN | {"prompt": "x" * 1_000_000} for _ in range(12)]
    path = write(tmp_path / name, *rows, PLAIN | {"chosen": [assistant("Four.")]})
    with pytest.raises(ValueError, match=r"row 13, column 'chosen': found messages. Rows before have plain text"):
        load_pairs(path)


def test_strengths_that_are_all_zero_are_refused():
    with pytest.raises(ValueError, match=r"Data set 'pairs.jsonl', column 'strength': found 0 in every row"):
        pairs(PLAIN | {"strength": 0}, PLAIN | {"strength": 0})


def test_missing_columns_are_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"'pairs.jsonl' has no column \['rejected'\]; it has \['prompt', 'chosen'\]"):
        pairs({"prompt": "a", "chosen": "b"})


def test_a_table_without_rows_is_refused():
    with pytest.raises(ValueError, match="Data set 'none' is empty"):
        normalize_pairs(Dataset.from_dict({"chosen": [], "rejected": []}), "none")


def test_responses_of_two_kinds_are_refused():
    with pytest.raises(ValueError, match=r"row 1, column 'rejected': found plain text. 'chosen' has messages"):
        pairs({"prompt": [user("a")], "chosen": [assistant("b")], "rejected": "c"})


def test_a_plain_prompt_that_conversations_do_not_hold_is_not_lost():
    assert pairs(TALK | {"prompt": SKY}) == [TALK]
    whole = {"chosen": [user("And now?"), assistant("a")], "rejected": [user("And now?"), assistant("b")]}
    with pytest.raises(ValueError, match="row 1, column 'prompt': found plain text that is not in both"):
        pairs(whole | {"prompt": SKY})


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        ({"chosen": "\n\nHuman: a\n\nAssistant:"}, "an empty response"),
        ({"chosen": ""}, "an empty response"),
        ({"rejected": "\n\nHuman: a\n\nAssistant: b"}, "the same response"),
        ({"rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c"}, "a last message from 'user'"),
        ({"rejected": "Human: a"}, "a last message from 'user'"),
    ],
)
def test_a_transcript_without_a_preference_is_left_out(bad, found, caplog):
    row = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    assert pairs(row, row | bad) == pairs(row)
    assert f"left out 1 of 2 rows: 1 with {found}" in caplog.text
    with pytest.raises(ValueError, match=r"row 2, column 'rejected': found plain text. 'chosen' has a Human/Assist"):
        pairs(row, row | {"rejected": "c"})


def test_an_implicit_plain_pair_whose_rest_is_blank_is_left_out():
    good = {"chosen": "one two three", "rejected": "one two four"}
    assert len(pairs(good, {"chosen": "one two ", "rejected": "one two three"})) == 1


# Prompts


def test_prompts_keep_their_form_and_other_columns():
    assert prompts({"task": "qa", "prompt": SKY}) == [{"prompt": SKY, "task": "qa"}]
    assert prompts({"prompt": [user(SKY)]}) == [{"prompt": [user(SKY)]}]
    assert prompts({"prompt": SKY}, {"prompt": SKY}) == [{"prompt": SKY}, {"prompt": SKY}]


@pytest.mark.parametrize("end", ["\n\nAssistant:", "\n\nAssistant: ", ""])
def test_a_transcript_as_prompt_ends_with_the_users_turn(end):
    text = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c" + end
    assert prompts({"prompt": text}) == [{"prompt": [user("a"), assistant("b"), user("c")]}]


def test_prompts_are_taken_from_pairs():
    assert prompts(PLAIN | {"strength": -1, "margin": 1, "task": "sum"}) == [{"prompt": "2 + 2?", "task": "sum"}]
    row = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    assert prompts(row) == [{"prompt": [user("a")]}]


@pytest.mark.parametrize(
    ("good", "bad", "found"),
    [
        (SKY, " ", "an empty prompt"),
        (SKY, None, "null"),
        ([user(SKY)], [], "an empty prompt"),
        ([user(SKY)], [user("")], "an empty prompt"),
        ([user(SKY)], [user(SKY), assistant("Blue")], "a last message from 'assistant'"),
        ("\n\nHuman: a", "\n\nHuman: a\n\nAssistant: b", "a last message from 'assistant'"),
        ("\n\nHuman: a", "b", "plain text. Rows before have a Human/Assistant transcript"),
    ],
)
def test_a_bad_prompt_is_named(good, bad, found):
    with pytest.raises(ValueError, match=f"Data set 'prompts.jsonl', row 2, column 'prompt': found {found}"):
        prompts({"prompt": good}, {"prompt": bad})


def test_a_prompt_is_taken_from_a_pair_without_a_preference_too(caplog):
    whole = {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b")]}
    assert prompts(whole) == [{"prompt": [user("a")]}]
    assert prompts(PLAIN | {"rejected": PLAIN["chosen"]}) == [{"prompt": PLAIN["prompt"]}]
    assert prompts({"chosen": "Q: Yes", "rejected": "Q: Yes"}, {"chosen": "Q: Yes", "rejected": "Q: No"}) == [
        {"prompt": "Q:"}
    ]
    assert "left out 1 of 2 rows: 1 with the same text as in 'chosen' (row 1)" in caplog.text
    assert prompts(PLAIN | {"rejected": ""}, PLAIN) == [{"prompt": PLAIN["prompt"]}] * 2
    transcript = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    assert prompts(transcript, transcript | {"chosen": ""}) == [{"prompt": [user("a")]}]


def test_prompts_need_a_prompt_or_a_pair():
    with pytest.raises(ValueError, match=r"has no column 'prompt'; it has \['text'\]"):
        prompts({"text": "a"})


def test_tool_calls_are_refused_and_other_fields_named(tmp_path, caplog):
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "clock"}]}
    prompt = [{"role": "user", "content": "When?", "id": 7}]
    answers = [[{"role": "assistant", "content": text}] for text in ("Now.", "Then.")]
    rows = [dict(zip(("prompt", "chosen", "rejected"), (prompt, *answers), strict=True))]
    table = normalize_pairs(Dataset.from_list(rows), "pairs")
    assert table[0]["prompt"] == [{"role": "user", "content": "When?"}]
    assert "1 with messages with fields beside role and content, which are not read (row 1)" in caplog.text
    rows[0]["chosen"] = [call, *answers[0]]
    with pytest.raises(ValueError, match=r"row 1, column 'chosen': found tool calls in message 1"):
        normalize_pairs(Dataset.from_list(rows), "pairs")


def turns(*texts):
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]


ONCE = {
    "transcripts": {"chosen": "\n\nHuman: A?\n\nAssistant: b", "rejected": "\n\nHuman: A?\n\nAssistant: c"},
    "text": {"chosen": "A? b", "rejected": "A? c"},
    "user turns that differ": {"chosen": turns("A", "b", "C", "d"), "rejected": turns("A", "b", "E", "f")},
    "nothing in common": {"chosen": turns("A", "b"), "rejected": turns("C", "d")},
    "an empty list as prompt": {"prompt": [], "chosen": turns("A", "b"), "rejected": turns("A", "c")},
}


@pytest.mark.parametrize("row", ONCE.values(), ids=ONCE)
def test_normalizing_twice_is_normalizing_once(row):
    once = normalize_pairs(Dataset.from_list([row] * 2), "pairs")
    assert normalize_pairs(once, "pairs") is once
    again = normalize_pairs(once.select(range(2)), "pairs")  # another table, whose rows are checked anew
    assert again is not once
    assert again.to_list() == once.to_list()


def test_rows_taken_from_checked_ones_are_not_checked_again():
    once = normalize_pairs(Dataset.from_list([ONCE["text"]] * 3), "pairs")
    part = keep_normalized(once.select([2, 0]), once)
    assert normalize_pairs(part, "pairs") is part
    raw = Dataset.from_list([ONCE["text"]] * 3)
    assert normalize_pairs(keep_normalized(raw.select([0]), raw), "pairs").column_names == ["prompt", *ONCE["text"]]


def test_a_response_does_not_go_on_with_the_speaker_of_the_prompt():
    row = {"prompt": turns("A"), "chosen": turns("B", "c"), "rejected": turns("B", "d")}
    with pytest.raises(ValueError, match="begins with a message from 'user', as the prompt ends"):
        normalize_pairs(Dataset.from_list([row]), "pairs")


@pytest.mark.parametrize("change", [str.strip, lambda text: text.replace("\n", "\r\n"), lambda text: "\n" + text])
def test_transcripts_are_known_however_they_begin_and_lines_end(change):
    row = {"chosen": "\n\nHuman: A\nb?\n\nAssistant: Yes.", "rejected": "\n\nHuman: A\nb?\n\nAssistant: No."}
    changed = {column: change(text) for column, text in row.items()}
    expected = normalize_pairs(Dataset.from_list([row]), "pairs").to_list()
    assert normalize_pairs(Dataset.from_list([changed]), "pairs").to_list() == expected
    assert expected[0]["prompt"] == [{"role": "user", "content": "A\nb?"}]


def test_text_that_only_speaks_of_a_human_is_no_transcript():
    row = {"prompt": "Who?", "chosen": "Human: a person.", "rejected": "The\n\nAssistant: a machine."}
    assert normalize_pairs(Dataset.from_list([row]), "pairs").to_list() == [row]
