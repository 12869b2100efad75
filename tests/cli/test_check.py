import copy
import json
import re

import pytest

from tests.helpers import ROOT
from tests.tiny import TURN_END, TURN_START
from toolkit.cli.check_text import safe
from toolkit.cli.main import main
from toolkit.reward.config import MultiScaleRewardConfig

PLAIN = {"prompt": "2 + 2?", "chosen": "Four.", "rejected": "Five, I think."}
BAD = PLAIN | {"chosen": ""}
WRONG = PLAIN | {"rejected": 3}


@pytest.fixture
def write(tmp_path):
    """Write rows to a file, and return its name."""

    def write(*rows, name="pairs.jsonl"):
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def check(capsys):
    """Run the command, and return its exit status with what it printed."""

    def check(*words):
        status = main(["check", *map(str, words)])
        out, err = capsys.readouterr()
        return status, out, err

    return check


def talk(prompt, chosen, rejected, system=None):
    messages = [("system", system)] if system else []
    return {
        "prompt": [{"role": role, "content": text} for role, text in [*messages, ("user", prompt)]],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def test_form_first_pair_and_verdict_are_told(write, check):
    status, out, err = check(write(PLAIN, PLAIN | {"prompt": "3 + 3?", "chosen": "Six of them, I am sure."}))
    assert (status, err) == (0, "")
    assert "pairs.jsonl: read as plain text: `chosen` and `rejected`; prompt in `prompt`" in out
    assert "2 rows, 2 usable pairs, 2 different prompts" in out
    assert "  prompt:   2 + 2?\n  chosen:   Four.\n  rejected: Five, I think.\n" in out
    assert "longer one in 50.0%" in out
    assert "Training would take 2 pairs and leave out none of 2 rows." in out
    assert "Look first" not in out


def test_the_page_shows_what_the_command_prints(check, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    rows, printed = (re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL)[1] for kind in ("json", "text"))
    (tmp_path / "pairs.jsonl").write_text(rows, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert check("pairs.jsonl") == (0, printed, "")


def test_messages_are_shown_with_their_roles(write, check):
    _, out, _ = check(write(talk("Sky?\nSea?", "Blue.", "Red.", system="Be brief.")))
    assert "  prompt:   system: Be brief.\n  prompt:   user: Sky?↵Sea?\n  chosen:   assistant: Blue.\n" in out
    assert "roles: assistant 2, system 1, user 1" in out


def test_prompts_and_responses_of_different_kinds_are_told(write, check):
    _, out, _ = check(write(talk("Sky?", "", "") | {"chosen": "Blue.", "rejected": "Red."}))
    assert "pairs.jsonl: read as messages (prompt) and plain text (responses): `chosen` and `rejected`" in out


def test_a_person_sees_a_bar_that_knows_its_end(write, check, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    path = write(*[PLAIN] * 5)
    status, _, err = check(path)
    assert status == 0
    assert "pairs.jsonl:" in err
    assert "/5.00" in err


def test_the_prompt_of_each_side_is_shown(write, check, tmp_path):
    rows = [{"prompt": "Sky?", "chosen": "Blue.", "rejected": "Wet.", "rejected_prompt": "Sea?"}]
    status, out = check(write(rows[0] | {"context": "At noon."}))[:2]
    assert status == 0
    assert "prompt in `prompt` and `context`, that of the rejected side in `rejected_prompt` where it has one" in out
    assert "system: At noon." in out
    assert "rejected_prompt: system: At noon." in out
    assert "user: Sea?" in out


def test_lists_are_counted_and_described_by_their_pairs(write, check, tmp_path):
    ranked = {"prompt": "2 + 2?", "responses": ["Five.", "Four.", "Six."], "ranks": [2, 1, 2]}
    two = {"prompt": "3 + 3?", "responses": ["Six.", "Seven, or so."], "ranks": [1, 2]}
    path, fixed = write(ranked, two, ranked | {"ranks": [1, 1, 1]}), tmp_path / "fixed.jsonl"
    status, out, _ = check(path, "--fix", fixed)
    assert status == 0
    assert "read as plain text: lists of `responses`, by `ranks`, the lowest the best; prompt in `prompt`" in out
    assert "3 rows, 3 usable pairs, 2 different prompts\n2 lists of 2 to 3 responses; every two" in out
    assert "  chosen:   Four.\n  rejected: Five.\n" in out
    assert "1 row: no two responses of different rank (row 3)" in out
    assert "Training would leave out 1 of 3 rows and take 2 lists." in out
    rows = [json.loads(line) for line in fixed.read_text().splitlines()]
    assert rows == [ranked | {"ranks": [1, 0, 1]}, two | {"ranks": [0, 1]}]
    assert "Training would take 2 lists and leave out none of 2 rows." in check(fixed)[1]


def test_what_is_left_out_is_counted_and_named(write, check):
    status, out, _ = check(
        write(PLAIN, BAD, "", BAD, *[PLAIN] * 3, PLAIN | {"rejected": "Four."}, BAD, BAD, *[PLAIN] * 3)
    )
    assert status == 0
    assert "  4 rows: an empty response (row 2, row 4, row 9, …)" in out
    assert "  1 row: the same response as in 'chosen' (row 8)" in out
    assert "Training would leave out 5 of 12 rows and take 7 pairs." in out


def test_what_is_refused_is_named_with_what_training_says(write, check):
    path = write(PLAIN, WRONG, PLAIN, WRONG)
    status, out, _ = check(path)
    assert status == 1
    assert "  2 rows: found a number: 3. Write text or a list of {role, content} messages. (row 2, row 4)" in out
    assert f"Training would refuse these data: Data set '{path}', row 2, column 'rejected': found a number: 3." in out
    assert "It is the first of 2 rows that training refuses." in out
    assert "`--fix OUT.jsonl` writes the 2 usable pairs" in out


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([BAD, BAD, PLAIN], "2 of 3 rows cannot be used"),
        ([PLAIN | {"strength": 0}], "column 'strength': found 0 in every row"),
        ([PLAIN, "{"], "row 2, character 2: not valid JSON"),
    ],
)
def test_a_set_that_training_refuses_as_a_whole_is_status_one(write, check, rows, message):
    status, out, err = check(write(*rows))
    assert status == 1
    assert message in out + err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("rows", "message"),
    [([{"prompt": "a", "chosen": "b"}], "no column ['rejected']"), ([], "is empty"), (None, "no file or folder")],
)
def test_what_cannot_be_read_at_all_is_one_line(write, check, tmp_path, rows, message):
    status, out, err = check(write(*rows) if rows is not None else tmp_path / "absent.jsonl")
    assert (status, out) == (1, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_what_to_look_at_first_is_the_gravest(write, check):
    turned = PLAIN | {"chosen": PLAIN["rejected"], "rejected": PLAIN["chosen"]}
    _, out, _ = check(write(PLAIN, PLAIN, turned, PLAIN | {"prompt": "caf\ufffd"}))
    assert "  3 rows: pairs labelled both ways (row 1 with row 3, row 2 with row 3, row 3 with row 1)" in out
    assert "  1 row: repeated pairs (row 2 with row 1)" in out
    order = [
        out.index(words) for words in ("Look first at pairs labelled both ways (3 rows)", "Then at repeated pairs")
    ]
    assert order == sorted(order)
    assert "  1 row: replacement characters (U+FFFD) (row 4)" in out


def test_several_files_are_one_set_whose_places_have_names(write, check):
    one, two = write(PLAIN, name="a.jsonl"), write("", PLAIN, name="b.jsonl")
    status, out, _ = check(one, two)
    assert status == 0
    assert f"repeated pairs ({two} row 2 with {one} row 1)" in out
    status, out, _ = check(one, write(talk("a", "b", "c"), name="c.jsonl"))
    assert status == 1
    assert "plain text and messages" in out


def test_prompts_of_other_files_are_named(write, check, tmp_path):
    pairs, other = write(PLAIN, PLAIN | {"prompt": "3 + 3?"}), write({"prompt": "3 + 3?"}, name="test.jsonl")
    status, out, _ = check(pairs, "--against", other)
    assert status == 0
    assert f"prompts that the other files have, too (row 2 with {other} row 1)" in out
    assert "Look first at prompts that the other files have, too" in out
    status, _, err = check(pairs, "--against", tmp_path / "absent.jsonl")
    assert (status, len(err.splitlines())) == (2, 1)


def test_near_repeats_are_counted_on_demand(write, check):
    path = write(PLAIN, PLAIN | {"chosen": "four!"})
    assert "near repeats" not in check(path)[1]
    assert "  1 row: near repeats (row 2 with row 1)" in check(path, "--near")[1]


def test_strengths_annotators_and_roles_are_described(write, check):
    rows = [PLAIN | {"prompt": str(i), "strength": i % 4, "annotator": f"a{i % 3}"} for i in range(8)]
    _, out, _ = check(write(*rows))
    assert "strength: 0 to 3, median 1.5, 25.0% are 0" in out
    assert "annotator: 3 different, 2 to 3 pairs each, median 3; the most frequent one has 37.5%" in out
    _, out, _ = check(write(talk("a", "b", "c") | {"prompt": [{"role": "narrator", "content": "x"}]}))
    assert "The roles ['narrator'] may be unknown to a chat template." in out


def test_a_longer_side_that_wins_too_often_is_told(write, check):
    _, out, _ = check(write(*[PLAIN | {"prompt": str(i), "chosen": "Four, as everybody knows."} for i in range(30)]))
    assert "Preferring the longer response is right in 100.0%" in out


# At a tokenizer


@pytest.fixture(scope="module")
def tokenizer_folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_first_pair_is_shown_as_tokens(write, check, tokenizer_folder):
    status, out, _ = check(write(talk("Sky?", "Blue.", "Red.")), "--tokenizer", tokenizer_folder)
    assert status == 0
    assert f"chosen: the model reads “{TURN_START}user↵Sky?{TURN_END}↵{TURN_START}assistant↵”" in out
    assert f"and scores “Blue.{TURN_END}↵”" in out
    assert f"and scores “Red.{TURN_END}↵”" in out
    assert "longer row, tokens" in out


def test_rows_that_are_too_long_are_told_from_those_that_are_cut(write, check, tokenizer_folder):
    rows = [talk("Sky?", "Blue.", "Red."), talk("x " * 40, "Blue.", "Red."), talk("Sky?", "x " * 40, "Red.")]
    options = ("--tokenizer", tokenizer_folder, "--max-length", 40)
    status, out, _ = check(write(*rows), *options)
    assert status == 1
    assert "prompts that lose tokens from their left to fit (row 2)" in out
    assert "does not fit into `max_length=40`" in out
    assert "(row 3)" in out
    assert check(write(*rows[:2]), *options)[0] == 0
    assert check(write(*rows), *options[:2])[0] == 0


def test_rows_that_are_equal_as_tokens_are_left_out(write, check, tokenizer, tmp_path):
    other = copy.copy(tokenizer)
    other.chat_template = tokenizer.chat_template.replace("message['content']", "message['content'][:4]")
    other.save_pretrained(tmp_path / "tokenizer")
    rows = [talk("Sky?", "Blue.", "Red."), talk("Sky?", "Blue, I think.", "Blue, or red."), talk("Sky?", "a", "b")]
    status, out, _ = check(write(*rows), "--tokenizer", tmp_path / "tokenizer")
    assert status == 0
    assert "  1 row: responses that are the same once they are tokens (row 2)" in out
    assert "leave out 1 of 3 rows and take 2 pairs" in out
    status, out, _ = check(write(*rows[:2], rows[1]), "--tokenizer", tmp_path / "tokenizer")
    assert status == 1
    assert "2 of 3 pairs have responses that are the same once they are tokens" in out


def test_lists_are_checked_as_tokens_whole(write, check, tokenizer_folder):
    ranked = {"prompt": "2 + 2?", "responses": ["Five.", "Four.", "Six. " * 30], "ranks": [2, 1, 2]}
    short = ranked | {"responses": ["Five.", "Four."], "ranks": [1, 2]}
    status, out, _ = check(write(ranked, short), "--tokenizer", tokenizer_folder, "--max-length", 40)
    assert status == 1
    assert "row 1, column 'responses[3]': a response of" in out
    assert "2 rows, 1 usable pair, 1 different prompt\n1 list of 2 responses" in out


def test_the_most_tokens_are_those_of_the_trainer():
    from toolkit.data.token_checks import MAX_LENGTH

    assert MultiScaleRewardConfig.max_length == MAX_LENGTH


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-length", "5"], "Give `--tokenizer`"),
        (["--tokenizer", "./absent"], "`--tokenizer ./absent` cannot be loaded"),
        (["--fix", "pairs.csv"], "ends in '.jsonl'"),
    ],
)
def test_options_that_cannot_be_are_one_line_and_status_two(write, check, options, message):
    status, out, err = check(write(PLAIN), *options)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


# Fixed files


def test_what_is_fixed_has_nothing_to_fix(write, check, tmp_path):
    columns = {"strength": 2, "annotator": "a", "x": [1, {"y": None}]}
    rows = [talk("a", f"b{i}", "c") | columns for i in range(4)]
    whole = [
        row | {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]} for row in rows
    ]
    path = write(*whole, rows[0] | {"chosen": []}, rows[0] | {"strength": -1})
    out = tmp_path / "out.jsonl"
    status, printed, _ = check(path, "--fix", out)
    assert status == 1  # the file itself is what it was
    assert f"Wrote 4 rows to {out}." in printed
    assert f"Wrote 2 rows to {tmp_path / 'out.rejected.jsonl'}." in printed
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows
    rejected = [json.loads(line) for line in (tmp_path / "out.rejected.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"]) for row in rejected] == [(path, 5), (path, 6)]
    assert "an empty response" in rejected[0]["why"]
    assert "column 'strength': found a number: -1" in rejected[1]["why"]
    assert rejected[1]["row"] == rows[0] | {"strength": -1}
    status, printed, _ = check(out, "--fix", tmp_path / "again.jsonl")
    assert status == 0
    assert "Training would take 4 pairs and leave out none of 4 rows." in printed
    assert (tmp_path / "again.jsonl").read_text() == out.read_text()
    assert not (tmp_path / "again.rejected.jsonl").exists()


def test_nothing_is_fixed_of_a_file_that_cannot_be_read_to_its_end(write, check, tmp_path):
    status, printed, _ = check(write(PLAIN, "{", PLAIN), "--fix", tmp_path / "out.jsonl")
    assert status == 1
    assert "Wrote" not in printed
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_files_of_two_forms_are_not_fixed_into_one(write, check, tmp_path):
    files = write(PLAIN, name="a.jsonl"), write(talk("a", "b", "c"), name="b.jsonl")
    assert check(*files, "--fix", tmp_path / "out.jsonl")[0] == 1
    assert not (tmp_path / "out.jsonl").exists()


# What is printed


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("a\nb", "a↵b"),
        ("é’ 中 😀", "é’ 中 😀"),
        ("\x1b[31m\x07", "\\x1b[31m\\x07"),
        ("\u202eevil\u200b", "\\u202eevil\\u200b"),
        ("\ud83d", "\\ud83d"),
        ("[red]a[/]", "[red]a[/]"),
    ],
)
def test_text_is_safe_to_print(text, printed):
    assert safe(text) == printed


def test_hostile_text_and_names_are_printed_as_they_are(write, check):
    path = write(PLAIN | {"prompt": "\x1b[31mred\u202e", "[bold]": 1}, name="a [red].jsonl")
    status, out, _ = check(path)
    assert status == 0
    assert "a [red].jsonl: read as" in out
    assert "\\x1b[31mred\\u202e" in out
    assert not set("\x1b\u202e") & set(out)


def test_a_long_text_is_shown_by_its_ends(write, check):
    _, out, _ = check(write(PLAIN | {"prompt": "a" * 300 + "b" * 1000 + "c" * 300}))
    assert "a" * 300 + " [… 1,000 characters …] " + "c" * 300 in out


def test_prompts_with_one_response_are_counted_where_rows_are_brought_together(write, check):
    rows = [
        {"prompt": prompt, "response": said, "helpfulness": i} for i, (prompt, said) in enumerate(["aw", "ax", "by"])
    ]
    status, out, _ = check(write(*rows))
    assert status == 0
    assert "3 rows, 1 usable pair, 1 different prompt\n1 prompt with one response only, which make no pair\n" in out
