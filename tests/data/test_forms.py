"""Rows as other people publish them, built from the documented fields of each set: real files are not at hand."""

import json
import math

import pytest
from datasets import Dataset

from tests.helpers import ROOT
from toolkit.data.answers import CHOSEN, LABELS, SIGNED
from toolkit.data.division import common_beginning
from toolkit.data.files import stream_rows
from toolkit.data.formats import normalize_pairs, normalize_prompts
from toolkit.data.forms import find_form
from toolkit.data.loading import load_pairs
from toolkit.data.prompts import NAMES, SYSTEMS
from toolkit.data.row_errors import RowError

HH = ROOT.parent / "shared" / "data" / "hh_harmless_base_test.jsonl.gz"


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def system(content):
    return {"role": "system", "content": content}


def talk(prompt, chosen, rejected, **others):
    return {"prompt": prompt, "chosen": [assistant(chosen)], "rejected": [assistant(rejected)], **others}


def plain(prompt, chosen, rejected, **others):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **others}


def said(who, value):
    return {"from": who, "value": value}


def rated(response, score):
    return {"response": response, "overall_score": score, "model": "m", "annotations": {"honesty": {"Rating": "4"}}}


def steered(prompt, response, helpfulness):
    others = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 2}
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, **others}


def voted(post, first, second, **votes):
    return {"history": post, "human_ref_A": first, "human_ref_B": second, **votes, **SHP}


PKU = {"is_response_0_safe": True, "is_response_1_safe": False, "safer_response_id": 0}
SHP = {"post_id": "x1", "domain": "askculinary_train", "seconds_difference": 9.0}
GRADES = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 2}
BENCH = {"num_correct": 1, "num_incorrect": 2, "total_completions": 3, "models": ["m", "n", "o"], "subset": "Math"}

# Name of the form: what its name must tell, rows as they are published, and the pairs that they mean
FORMS = {
    "HH-RLHF": (
        "transcripts as in HH-RLHF: `chosen` and `rejected`; prompt at the beginning of both",
        [
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sky?\n\nAssistant: Blue.",
                "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sky?\n\nAssistant: Green.",
            }
        ],
        [talk([user("Hi"), assistant("Hello"), user("Sky?")], "Blue.", "Green.")],
    ),
    "HH-RLHF stripped, each line ending in one break": (
        "transcripts as in HH-RLHF",
        [{"chosen": "Human: Sky?\nAssistant: Blue.", "rejected": "Human: Sky?\nAssistant: Green."}],
        [talk([user("Sky?")], "Blue.", "Green.")],
    ),
    "rm-static": (
        "prompt in `prompt`",
        [{"prompt": "\n\nHuman: Sky?\n\nAssistant:", "response": " Blue.", "chosen": " Blue.", "rejected": " Red."}],
        [talk([user("Sky?")], " Blue.", " Red.", response=" Blue.")],
    ),
    "instruction and input": (
        "prompt in `instruction` and `input`",
        [
            {"instruction": "Translate.", "input": "Hund", "chosen": "dog", "rejected": "cat"},
            {"instruction": "Say hi.", "input": "", "chosen": "hi", "rejected": "no"},
        ],
        [plain("Translate.\nHund", "dog", "cat"), plain("Say hi.", "hi", "no")],
    ),
    "LLaMA-Factory, alpaca": (
        "prompt in `instruction` and `input` and `history` and `system`",
        [
            {
                "instruction": "And you?",
                "input": "",
                "system": "Be kind.",
                "history": [["Hello", "Hi"]],
                "chosen": "Fine.",
                "rejected": "Bad.",
            },
            {"instruction": "Well?", "input": None, "system": "", "history": [], "chosen": "Yes.", "rejected": "No."},
        ],
        [
            talk([system("Be kind."), user("Hello"), assistant("Hi"), user("And you?")], "Fine.", "Bad."),
            talk([user("Well?")], "Yes.", "No."),
        ],
    ),
    "LLaMA-Factory, sharegpt": (
        "messages: `chosen` and `rejected`; prompt in `conversations`",
        [
            {
                "conversations": [said("human", "Hi"), said("gpt", "Hello"), said("human", "Sky?")],
                "chosen": said("gpt", "Blue."),
                "rejected": said("gpt", "Green."),
            }
        ],
        [talk([user("Hi"), assistant("Hello"), user("Sky?")], "Blue.", "Green.")],
    ),
    "conversations beside text": (
        "prompt in `conversations`",
        [{"conversations": [said("human", "Sky?")], "chosen": "Blue.", "rejected": "Green."}],
        [talk([user("Sky?")], "Blue.", "Green.")],
    ),
    "Orca": (
        "prompt in `question` and `system`",
        [
            {"system": "You are helpful.", "question": "Sky?", "chosen": "Blue.", "rejected": "Green."},
            {"system": "", "question": "Sea?", "chosen": "Wet.", "rejected": "Dry."},
        ],
        [talk([system("You are helpful."), user("Sky?")], "Blue.", "Green."), talk([user("Sea?")], "Wet.", "Dry.")],
    ),
    "Orca, distilled": (
        "prompt in `input` and `system`",
        [{"system": "You are helpful.", "input": "Sky?", "chosen": "Blue.", "rejected": "Red.", "rating": [9, 2]}],
        [talk([system("You are helpful."), user("Sky?")], "Blue.", "Red.", rating=[9, 2])],
    ),
    "OpenRLHF": (
        "messages: `chosen` and `rejected`, strength from `chosen_score` - `rejected_score`; prompt at the beginning",
        [
            {
                "chosen": [user("Sky?"), assistant("Blue.")],
                "rejected": [user("Sky?"), assistant("Green.")],
                "chosen_score": 4.5,
                "rejected_score": 2.0,
                "source": "s",
            }
        ],
        [talk([user("Sky?")], "Blue.", "Green.", strength=2.5, source="s")],
    ),
    "UltraFeedback": (
        "every two of `completions`, strength from the difference in `overall_score`",
        [
            {
                "source": "s",
                "instruction": "Sky?",
                "models": ["m", "m", "m"],
                "completions": [rated("Red.", 1.0), rated("Blue.", 9.0), rated("Green.", 1.0)],
            }
        ],
        [
            plain("Sky?", "Blue.", "Red.", strength=8.0, source="s", models=["m", "m", "m"]),
            plain("Sky?", "Blue.", "Green.", strength=8.0, source="s", models=["m", "m", "m"]),
        ],
    ),
    "UltraFeedback in an older table": (
        "every two of `completions`",
        [{"instruction": "Sky?", "completions": {"response": ["Red.", "Blue."], "overall_score": [1.0, 9.0]}}],
        [plain("Sky?", "Blue.", "Red.", strength=8.0)],
    ),
    "UltraFeedback, binarized": (
        "strength from `score_chosen` - `score_rejected`",
        [
            {
                "prompt": "Sky?",
                "prompt_id": "0a",
                "chosen": [user("Sky?"), assistant("Blue.")],
                "rejected": [user("Sky?"), assistant("Green.")],
                "messages": [user("Sky?"), assistant("Blue.")],
                "score_chosen": 8.5,
                "score_rejected": 6.0,
            }
        ],
        [
            talk(
                [user("Sky?")],
                "Blue.",
                "Green.",
                strength=2.5,
                prompt_id="0a",
                messages=[user("Sky?"), assistant("Blue.")],
            )
        ],
    ),
    "UltraFeedback, cleaned": (
        "strength from `chosen-rating` - `rejected-rating`",
        [
            {
                "prompt": "Sky?",
                "chosen": [user("Sky?"), assistant("Blue.")],
                "chosen-rating": 5.0,
                "rejected": [user("Sky?"), assistant("Green.")],
                "rejected-rating": 3.5,
            }
        ],
        [talk([user("Sky?")], "Blue.", "Green.", strength=1.5)],
    ),
    "RewardBench": (
        "plain text: `chosen` and `rejected`; prompt in `prompt`",
        [plain("Sky?", "Blue.", "Green.", chosen_model="m", rejected_model="n", subset="easy", id=3)],
        [plain("Sky?", "Blue.", "Green.", chosen_model="m", rejected_model="n", subset="easy", id=3)],
    ),
    "RewardBench 2": (
        "`chosen` and `rejected`",
        [{"id": "7", "prompt": "Sky?", "chosen": ["Blue."], "rejected": ["Green.", "Red."], **BENCH}],
        [plain("Sky?", "Blue.", worse, id="7", **BENCH) for worse in ("Green.", "Red.")],
    ),
    "RewardBench 2, ties": (
        "`chosen` and `rejected`",
        [{"id": "8", "prompt": "A colour?", "chosen": ["Blue.", "Red."], "rejected": ["Dog.", "Two."]}],
        [plain("A colour?", better, worse, id="8") for better in ("Blue.", "Red.") for worse in ("Dog.", "Two.")],
    ),
    "SHP": (
        "by `labels` as in SHP, strength from ln `score_ratio`",
        [
            voted("How?", "So.", "No.", labels=1, score_A=60, score_B=20, score_ratio=3.0),
            voted("Why?", "Eh.", "Ah.", labels=0, score_A=2, score_B=3, score_ratio=1.5),
        ],
        [
            plain("How?", "So.", "No.", strength=math.log(3), **SHP),
            plain("Why?", "Ah.", "Eh.", strength=math.log(1.5), **SHP),
        ],
    ),
    "PKU-SafeRLHF": (
        "by `better_response_id`",
        [
            {"prompt": "Sky?", "response_0": "Blue.", "response_1": "Red.", "better_response_id": 0, **PKU},
            {"prompt": "Sky?", "response_0": "Red.", "response_1": "Blue.", "better_response_id": 1, **PKU},
        ],
        [plain("Sky?", "Blue.", "Red.", **PKU)] * 2,
    ),
    "HelpSteer": (
        "strength from the difference in `helpfulness`, as in HelpSteer",
        [
            steered("Sky?", "Blue.", 4),
            steered("Sky?", "Red.", 1),
            steered("Sky?", "Grey.", 1),
            steered("Sea?", "Dry.", 0),
            steered("Sea?", "Wet.", 3),
        ],
        [
            plain("Sky?", "Blue.", "Red.", strength=3.0, **GRADES),
            plain("Sky?", "Blue.", "Grey.", strength=3.0, **GRADES),
            plain("Sea?", "Wet.", "Dry.", strength=3.0, **GRADES),
        ],
    ),
    "HelpSteer 2, marked turns": (
        "strength from the difference in `helpfulness`, as in HelpSteer",
        [
            steered("Hi\n\n<extra_id_1>Assistant\n\nHello\n\n<extra_id_1>User\n\nSky?", "Blue.", 4),
            steered("Hi\n\n<extra_id_1>Assistant\n\nHello\n\n<extra_id_1>User\n\nSky?", "Red.", 2),
            steered("Sea?", "Dry.", 0),
            steered("Sea?", "Wet.", 3),
        ],
        [
            talk([user("Hi"), assistant("Hello"), user("Sky?")], "Blue.", "Red.", strength=2.0, **GRADES),
            talk([user("Sea?")], "Wet.", "Dry.", strength=3.0, **GRADES),
        ],
    ),
    "HelpSteer 2, preference": (
        "by `preference_strength` as in HelpSteer 2, strength from its size",
        [
            {"prompt": "Sky?", "response_1": "Blue.", "response_2": "Red.", "preference_strength": -2, "split": "t"},
            {"prompt": "Sky?", "response_1": "Red.", "response_2": "Blue.", "preference_strength": 1, "split": "t"},
        ],
        [
            plain("Sky?", "Blue.", "Red.", strength=2.0, split="t"),
            plain("Sky?", "Blue.", "Red.", strength=1.0, split="t"),
        ],
    ),
    "HelpSteer 3": (
        "by `overall_preference` as in HelpSteer 3, strength from its size; prompt in `context`",
        [
            {
                "domain": "general",
                "language": "english",
                "context": [user("Hi"), assistant("Hello"), user("Sky?")],
                "response1": "Red.",
                "response2": "Blue.",
                "overall_preference": 3,
            }
        ],
        [
            talk(
                [user("Hi"), assistant("Hello"), user("Sky?")],
                "Blue.",
                "Red.",
                strength=3.0,
                domain="general",
                language="english",
            )
        ],
    ),
    "WebGPT comparisons": (
        "strength from `score_0` - `score_1`",
        [
            {
                "question": {"dataset": "d", "id": "1", "full_text": "Sky?"},
                "answer_0": "Red.",
                "answer_1": "Blue.",
                "score_0": -0.5,
                "score_1": 0.5,
            }
        ],
        [plain("Sky?", "Blue.", "Red.", strength=1.0)],
    ),
    "AlpacaFarm": (
        "by `preference`",
        [{"instruction": "Sky?", "input": "", "output_1": "Red.", "output_2": "Blue.", "preference": 2}],
        [plain("Sky?", "Blue.", "Red.")],
    ),
    "Chatbot Arena": (
        "by `winner`",
        [
            {
                "conversation_a": [user("Sky?"), assistant("Red.")],
                "conversation_b": [user("Sky?"), assistant("Blue.")],
                "winner": "model_b",
            }
        ],
        [talk([user("Sky?")], "Blue.", "Red.")],
    ),
    "ranked answers": (
        "every two of `answers`, strength from the difference in `rank`",
        [{"prompt": "Sky?", "answers": [{"answer": "Red.", "rank": 2.0}, {"answer": "Blue.", "rank": 1.0}]}],
        [plain("Sky?", "Blue.", "Red.", strength=1.0)],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_published_form_is_read_as_it_is_meant(form, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    told, rows, expected = FORMS[form]
    assert told in find_form(rows, list(rows[0]), form).name
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_pairs(str(path)).to_list() == expected


@pytest.mark.parametrize("form", FORMS)
def test_a_row_alone_is_read_as_in_its_set(form):
    _, rows, expected = FORMS[form]
    found = find_form(rows, list(rows[0]), form)
    assert [pair for row in rows for pair in found.pairs(row)] == expected


@pytest.mark.parametrize("form", FORMS)
def test_normalizing_a_published_form_twice_is_normalizing_it_once(form):
    once = normalize_pairs(Dataset.from_list(FORMS[form][1]), form)
    assert normalize_pairs(Dataset.from_list(once.to_list()), form).to_list() == once.to_list()


@pytest.mark.parametrize("form", FORMS)
def test_prompts_of_a_published_form_are_those_of_its_pairs(form):
    _, rows, expected = FORMS[form]
    found = [row["prompt"] for row in normalize_prompts(Dataset.from_list(rows), form)]
    assert [prompt for i, prompt in enumerate(found) if prompt not in found[:i]] == [
        pair["prompt"] for i, pair in enumerate(expected) if pair["prompt"] not in [p["prompt"] for p in expected[:i]]
    ]


# What is left out, changed or refused

PAIR = {"prompt": "2 + 2?", "chosen": "Four.", "rejected": "Five."}
SIDES = ("chosen", "rejected")
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


def test_a_column_that_begins_late_in_a_file_is_refused_like_a_null_in_its_first_rows():
    form = find_form([PAIR], list(PAIR), "pairs")
    with pytest.raises(RowError, match="strength"):
        form.pairs(PAIR | {"strength": 1})
    with pytest.raises(ValueError, match="row 1, column 'strength': found null"):
        normalized(PAIR | {"strength": None}, PAIR | {"strength": 1})


# HH-RLHF as its files are, rebuilt from its dialogues


@pytest.fixture(scope="module")
def dialogues():
    if not HH.is_file():
        pytest.skip("the folder ../shared/data is absent")
    return [row for _, row in zip(range(300), (row for _, row in stream_rows(str(HH))), strict=False)]


def transcript(messages):
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[message['role']]}: {message['content'].strip()}" for message in messages)


def transcripts(row):
    return {side: transcript([*row["prompt"], assistant(row[side])]) for side in SIDES}


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        str.strip,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.strip().replace("\n", "\r\n"),
        lambda text: text + "\n",
    ],
    ids=["as it is", "stripped", "with carriage returns", "both", "with a last line break"],
)
def test_real_transcripts_are_the_dialogues_they_were_made_of(dialogues, change):
    rows = [{side: change(text) for side, text in transcripts(row).items()} for row in dialogues]
    expected = [
        talk(
            [turn | {"content": turn["content"].strip()} for turn in row["prompt"]],
            *(row[side].strip() for side in SIDES),
        )
        for row in dialogues
    ]
    assert normalized(*rows) == expected


def test_oddities_planted_into_real_transcripts_are_read_as_meant(dialogues, caplog):
    rows = [transcripts(row) for row in dialogues[:40]]
    whole = normalized(*rows)
    rows[3]["chosen"] = rows[3]["chosen"][: rows[3]["chosen"].rindex("Assistant:")] + "Assistant:"
    rows[5]["rejected"] += "\n\nHuman: And then?"
    rows[7] = {side: text.strip() for side, text in rows[7].items()}
    rows[9] = {side: text.replace("\n\nHuman: ", "\n\nHuman: Hm.\n\nHuman: ", 1) for side, text in rows[9].items()}
    rows[11]["rejected"] = rows[11]["chosen"] + " "
    first = whole[9]["prompt"][0]
    whole[9]["prompt"][0] = first | {"content": "Hm.\n\n" + first["content"]}
    assert normalized(*rows) == [row for place, row in enumerate(whole) if place not in (3, 5, 11)]
    for found in (
        "1 with an empty response (row 4)",
        "1 with a last message from 'user' (row 6)",
        "as in 'chosen' (row 12)",
    ):
        assert found in caplog.text
    assert (
        "1 with adjacent turns of one speaker, which were joined with a blank line between them (row 10)"
        in caplog.text
    )


def examples():
    """Rows of the table of the documentation: what they are like, rows of a file, and what they are read as."""
    lines = (ROOT / "docs" / "data.md").read_text().splitlines()
    cells = [line.split(" | ") for line in lines if line.startswith("| ") and "`{" in line]
    return {
        name.lstrip("| "): [[json.loads(row.strip("` |")) for row in cell.split(" <br> ")] for cell in (given, read)]
        for name, given, read in cells
    }


@pytest.mark.parametrize("like", examples())
def test_an_example_of_the_documentation_is_read_as_it_says(like):
    given, read = examples()[like]
    assert normalized(*given) == read


def test_the_documentation_names_every_column_that_is_known():
    text = (ROOT / "docs" / "data.md").read_text()
    known = {*NAMES, *SYSTEMS, *LABELS, *SIGNED, *(pair[0] for pair in CHOSEN)}
    assert {name for name in known if f"`{name}`" not in text} == set()
