"""Training and `check` agree on every row: what is kept, how it reads, and what is said of what is refused."""

import gzip
import json
from types import SimpleNamespace

import pytest

from toolkit.data.checks import PairCounts
from toolkit.data.loading import load_pairs
from toolkit.data.survey import Survey, add_prompts, find_sources

READ = ("prompt", "chosen", "rejected", "margin", "strength")


@pytest.fixture(autouse=True)
def own_cache_and_no_network(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **fields):
    return {"role": "assistant", "content": content, **fields}


PLAIN = {"prompt": "2 + 2?", "chosen": "Four.", "rejected": "Five."}
TALK = {"prompt": [user("Sky?")], "chosen": [assistant("Blue.")], "rejected": [assistant("Green.")]}
TRANSCRIPT = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
COMMON = {"chosen": "one two three", "rejected": "one two four"}


def by_training(name, split=None):
    """Pairs that training reads, or what it says."""
    try:
        return [{column: row[column] for column in READ if column in row} for row in load_pairs(str(name), split)]
    except ValueError as error:
        return str(error)


def survey_of(name, split=None):
    kept = []
    files = SimpleNamespace(add=kept.append, reject=lambda *_: None)
    survey = Survey(PairCounts(), files=files)
    for source in find_sources(str(name), split):
        survey.add(source)
    return survey, kept


def by_check(name, split=None):
    """Pairs that `check` finds usable, or what it says that training says."""
    try:
        survey, kept = survey_of(name, split)
    except ValueError as error:
        return str(error)
    if survey.refusals:
        return survey.refusals[0]
    return [{column: row[column] for column in READ if column in row} for row in kept]


def lines(*rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


ODD = {
    "empty": (PLAIN, {"chosen": ""}),
    "blank": (PLAIN, {"rejected": " \n"}),
    "invisible": (PLAIN, {"rejected": "\u200b"}),
    "same": (PLAIN, {"rejected": "Four."}),
    "same but for a space": (PLAIN, {"rejected": "Four. "}),
    "null": (PLAIN, {"chosen": None}),
    "no prompt": (PLAIN, {"prompt": None}),
    "empty prompt": (PLAIN, {"prompt": ""}),
    "a number": (PLAIN, {"chosen": 3}),
    "a list of texts": (PLAIN, {"chosen": ["a", "b"]}),
    "messages among text": (PLAIN, {"chosen": [assistant("x")]}),
    "an object": (PLAIN, {"rejected": {"text": "x"}}),
    "true": (PLAIN, {"rejected": True}),
    "a late strength": (PLAIN, {"strength": 1}),
    "a strength in words": (PLAIN | {"strength": 1}, {"strength": "high"}),
    "a negative strength": (PLAIN | {"strength": 1}, {"strength": -1}),
    "no strength": (PLAIN | {"strength": 1}, {"strength": None}),
    "an endless strength": (PLAIN | {"strength": 1}, {"strength": float("inf")}),
    "a strength of nan": (PLAIN | {"strength": 1}, {"strength": float("nan")}),
    "a strength of true": (PLAIN | {"strength": 1}, {"strength": True}),
    "no strength at all": (PLAIN | {"strength": 0}, {}),
    "one strength": (PLAIN | {"strength": 0}, {"strength": 2.5}),
    "a great margin": (PLAIN | {"margin": 1}, {"margin": 1e9}),
    "a negative margin": (PLAIN | {"margin": 1}, {"margin": -2}),
    "another column": (PLAIN, {"x": [1, "a"]}),
    "half a character": (PLAIN, {"chosen": "a \ud83d b"}),
    "a control character": (PLAIN, {"chosen": "a\x00b"}),
    "the prompt repeated": (PLAIN, {"chosen": "2 + 2? Four.", "rejected": "2 + 2? Five."}),
    "no message": (TALK, {"chosen": []}),
    "a blank message": (TALK, {"chosen": [assistant(" ")]}),
    "the same message": (TALK, {"rejected": [assistant("Blue.")]}),
    "the user's end": (TALK, {"rejected": [assistant("x"), user("y")]}),
    "the user's beginning": (TALK, {"chosen": [user("x"), assistant("y")]}),
    "no content": (TALK, {"prompt": [{"role": "user"}]}),
    "content of null": (TALK, {"chosen": [assistant(None)]}),
    "content of a number": (TALK, {"chosen": [assistant(5)]}),
    "content of parts": (TALK, {"chosen": [assistant([{"type": "text", "text": "x"}])]}),
    "a role of a number": (TALK, {"chosen": [{"role": 3, "content": "x"}]}),
    "no messages of a prompt": (TALK, {"prompt": []}),
    "a tool call": (TALK, {"chosen": [assistant("x", tool_calls=[{"f": 1}])]}),
    "another field": (TALK, {"chosen": [assistant("x", name="n")]}),
    "text among messages": (TALK, {"chosen": "text"}),
    "a text prompt among messages": (TALK, {"prompt": "text"}),
    "two turns of one": (TALK, {"prompt": [user("a"), user("b")]}),
    "ShareGPT's names": (TALK, {"prompt": [{"from": "human", "value": "q"}]}),
    "JSON in text": (TALK, {"chosen": json.dumps([assistant("x")])}),
    "an answer as prompt": (TALK, {"prompt": [user("a"), assistant("b")]}),
    "a system message": (TALK, {"prompt": [{"role": "system", "content": "s"}, user("a")]}),
    "an empty turn": (TRANSCRIPT, {"chosen": "\n\nHuman: a\n\nAssistant:"}),
    "an empty transcript": (TRANSCRIPT, {"chosen": ""}),
    "the same transcript": (TRANSCRIPT, {"rejected": TRANSCRIPT["chosen"]}),
    "a transcript that ends with the user": (TRANSCRIPT, {"rejected": TRANSCRIPT["chosen"] + "\n\nHuman: c"}),
    "text among transcripts": (TRANSCRIPT, {"rejected": "c"}),
    "a stripped transcript": (TRANSCRIPT, {key: text.strip() for key, text in TRANSCRIPT.items()}),
    "two prompts": (TRANSCRIPT, {"chosen": "\n\nHuman: z\n\nAssistant: b"}),
    "a late prompt": (TRANSCRIPT, {"prompt": "x"}),
    "nothing in common": (COMMON, {"chosen": "nothing"}),
    "a beginning of the other": (COMMON, {"chosen": "one two "}),
}


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("case", ODD)
def test_an_odd_row_is_to_check_what_it_is_to_training(tmp_path, case, place):
    good, change = ODD[case]
    rows = [good, good, good]
    rows[place] = good | change
    path = tmp_path / "pairs.jsonl"
    path.write_text(lines(*rows))
    assert by_check(path) == by_training(path)


FILES = {
    "mostly.jsonl": lines(PLAIN | {"chosen": ""}, PLAIN | {"rejected": ""}, PLAIN),
    "half.jsonl": lines(PLAIN | {"chosen": ""}, PLAIN),
    "none.jsonl": lines(PLAIN | {"chosen": ""}),
    "empty.jsonl": "",
    "incomplete.jsonl": lines({"prompt": "a", "chosen": "b"}),
    "question.jsonl": lines(*[{"question": "What is it?", "chosen": "a b", "rejected": "a c"}] * 2),
    "blank.jsonl": lines(PLAIN, "", PLAIN, "  ", PLAIN | {"chosen": ""}),
    "broken.jsonl": lines(PLAIN, "{", PLAIN),
    "scalar.jsonl": lines(PLAIN, "5"),
    "dates.jsonl": lines(*[PLAIN | {"prompt": "2020-01-01", "x": "2020-01-01T00:00:00"}] * 2),
    "no_keys.jsonl": lines(PLAIN, {}, PLAIN),
    "mark.jsonl": "\ufeff" + lines(PLAIN, PLAIN),
    "returns.jsonl": lines(PLAIN, PLAIN).replace("\n", "\r\n"),
    "separator.jsonl": json.dumps(PLAIN | {"chosen": "a\u2028b"}, ensure_ascii=False) + "\n",
    "latin.jsonl": (lines(PLAIN)[:-2] + ', "x": "é"}\n').encode("latin-1"),
    "utf16.jsonl": lines(PLAIN).encode("utf-16"),
    "pretty.jsonl": json.dumps(PLAIN, indent=1) + "\n" + json.dumps(PLAIN | {"x": [{"y": 1}]}, indent=2) + "\n",
    "unfinished.jsonl": json.dumps(PLAIN, indent=1)[:-2],
    "twice.jsonl": lines(PLAIN, '{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}'),
    "list.json": json.dumps([PLAIN, PLAIN | {"chosen": ""}, PLAIN], indent=1),
    "mixed.json": json.dumps([PLAIN, 5]),
    "object.json": json.dumps({"data": [PLAIN]}),
    "lines.ndjson": lines(PLAIN, PLAIN),
    "packed.jsonl.gz": gzip.compress(lines(PLAIN, PLAIN | {"rejected": ""}, PLAIN).encode(), mtime=0),
    "cut.jsonl.gz": gzip.compress(lines(PLAIN, PLAIN).encode(), mtime=0)[:-12],
    "unpacked.jsonl.gz": lines(PLAIN),
    "quoted.csv": 'prompt,chosen,rejected\n"a\nb",good,bad\n\n\np,,good\np,x,3\n',
    "strength.csv": "prompt,chosen,rejected,strength\np,good,bad,1\np,bad,good,2.5\n",
    "no_strength.csv": "prompt,chosen,rejected,strength\np,good,bad,1\np,bad,good,\n",
    "short.csv": "prompt,chosen,rejected\na,b\n",
    "header.csv": "prompt,chosen,rejected\n",
    "semicolons.csv": "prompt;chosen;rejected\na;b;c\n",
    "tabs.tsv": "prompt\tchosen\trejected\np\tNone\t3\n",
    "text.txt": lines(PLAIN),
    "junk.parquet": "PAR1junk",
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_to_check_what_it_is_to_training(tmp_path, name):
    path = tmp_path / name
    content = FILES[name]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert by_check(path) == by_training(path)


@pytest.mark.parametrize("good", [PLAIN, TALK, TRANSCRIPT], ids=["plain", "talk", "transcript"])
def test_tables_are_to_check_what_they_are_to_training(tmp_path, good):
    from datasets import Dataset, DatasetDict

    table = Dataset.from_list([good, good | {"rejected": good["chosen"]}, good])
    table.to_parquet(tmp_path / "pairs.parquet")
    table.save_to_disk(tmp_path / "saved")
    DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "splits")
    found = by_check(tmp_path / "pairs.parquet")
    assert len(found) == 2
    for name, split in [("pairs.parquet", None), ("saved", None), ("splits", "test"), ("splits", None)]:
        path = tmp_path / name
        assert by_check(path, split) == by_training(path, split)
    assert by_check(tmp_path / "saved") == found


def test_several_files_are_to_check_what_they_are_to_training(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(PLAIN | {"strength": 1, "x": 1}))
    (tmp_path / "b.jsonl").write_text(lines(PLAIN | {"strength": 0.5, "x": "y"}, PLAIN | {"strength": 2}))
    for name in (tmp_path, tmp_path / "*.jsonl", tmp_path / "[ab].jsonl", tmp_path / "c*"):
        assert by_check(name) == by_training(name)
    assert len(by_check(tmp_path)) == 3
    (tmp_path / "b.jsonl").write_text(lines(PLAIN | {"strength": 0}))
    assert (
        by_check(tmp_path)
        == by_training(tmp_path)
        == (f"Data set '{tmp_path}/b.jsonl', column 'strength': found 0 in every row. Write others, or remove it.")
    )


@pytest.mark.parametrize("other", [TALK, TRANSCRIPT, PLAIN | {"strength": 1}, PLAIN | {"margin": 1}])
def test_files_that_cannot_be_one_table_are_refused_by_both(tmp_path, other):
    (tmp_path / "a.jsonl").write_text(lines(PLAIN))
    (tmp_path / "b.jsonl").write_text(lines(other))
    for message in (by_check(tmp_path), by_training(tmp_path)):
        assert "a.jsonl' and '" in message
        assert "Bring them to one form." in message


def test_every_kind_of_row_is_counted_with_its_place(tmp_path):
    path = tmp_path / "pairs.jsonl"
    bad = [PLAIN | {"chosen": ""}, PLAIN | {"margin": "x"}, PLAIN | {"margin": "y"}]
    path.write_text(lines(*([PLAIN | {"margin": 1}] * 5), *[{"margin": 2} | each for each in bad]))
    survey, kept = survey_of(path)
    assert len(kept) == len(survey.counts) == 5
    assert {what: (kind.rows, [place.row for (place,) in kind.first]) for what, kind in survey.left_out.items()} == {
        "an empty response": (1, [6])
    }
    (wrong,) = survey.wrong.values()
    assert (wrong.rows, [place.row for (place,) in wrong.first]) == (2, [7, 8])
    assert survey.refusals == [wrong.message] == [by_training(path)]
    assert "row 7, column 'margin': found text: 'x'" in wrong.message


@pytest.mark.parametrize(
    "rows", [[PLAIN, PLAIN | {"chosen": ""}], [{"prompt": "2 + 2?"}], [{"prompt": [user("2 + 2?")]}, {"prompt": []}]]
)
def test_prompts_are_taken_from_pairs_and_from_prompts_alone(tmp_path, rows):
    path = tmp_path / "other.jsonl"
    path.write_text(lines(*rows))
    others, counts = PairCounts(), PairCounts()
    (source,) = find_sources(str(path))
    add_prompts(source, others)
    (tmp_path / "pairs.jsonl").write_text(lines(PLAIN, PLAIN | {"prompt": "3 + 3?"}))
    survey = Survey(counts)
    survey.add(*find_sources(str(tmp_path / "pairs.jsonl")))
    counts.finish(others)
    (kind,) = (kind for what, kind in counts.kinds.items() if "other files" in what)
    assert [[place.row for place in places] for places in kind.first] == [[1, 1]]
