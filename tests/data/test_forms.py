"""What other people publish is read as it is meant."""

import json

import pytest
from datasets import Dataset

from tests.data.published import FORMS, assistant, talk
from tests.helpers import ROOT
from toolkit.data.answers import CHOSEN, LABELS, SIGNED
from toolkit.data.files import stream_rows
from toolkit.data.formats import normalize_pairs, normalize_prompts
from toolkit.data.forms import find_form
from toolkit.data.loading import load_pairs
from toolkit.data.prompts import NAMES, SYSTEMS

HH = ROOT.parent / "shared" / "data" / "hh_harmless_base_test.jsonl.gz"
SIDES = ("chosen", "rejected")


def normalized(*rows):
    return normalize_pairs(Dataset.from_list(list(rows)), "pairs").to_list()


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
