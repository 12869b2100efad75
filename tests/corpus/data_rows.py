"""Rows of preference pairs that are wrong, say nothing, or are odd and right."""

import json
from typing import Any

from tests.corpus.bench import Bench
from tests.corpus.cases import Accepted, Case, Refused

PLAIN = [
    {"prompt": "Where does the Nile end?", "chosen": "In the Mediterranean.", "rejected": "In the desert."},
    {"prompt": "Who painted Guernica?", "chosen": "Picasso did.", "rejected": "Some painter."},
    {"prompt": "What is 3 times 4?", "chosen": "Twelve, as 3 + 3 + 3 + 3.", "rejected": "Seven."},
    {"prompt": "Is ice lighter than water?", "chosen": "Yes, so it swims.", "rejected": "No idea."},
]
SIDES = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
TALKS: list[dict[str, Any]] = [
    {side: [{"role": role, "content": row[side]}] for side, role in SIDES.items()} for row in PLAIN
]
TRANSCRIPTS = [
    {side: f"\n\nHuman: {row['prompt']}\n\nAssistant: {row[side]}" for side in ("chosen", "rejected")} for row in PLAIN
]
ANNOTATED: list[dict[str, Any]] = [row | {"strength": 1.0, "margin": 0.5} for row in PLAIN]
REST = len(PLAIN) - 1
LEFT_OUT = "Training would leave out 1 of 4 rows"


def said(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def rows(name: str, found: list[Any], expected: Refused | Accepted, called: str = "pairs.jsonl") -> Case:
    """A file of rows."""

    def given(bench: Bench) -> None:
        bench.write(called, found)

    return Case(name, lambda bench: bench.check(called), expected, given)


def third(name: str, changes: dict[str, Any], expected: Refused | Accepted, base: list[Any] = PLAIN) -> Case:
    """Rows of which the third has other values."""
    return rows(name, [*base[:2], base[2] | changes, base[3]], expected)


def wrong(name: str, column: str, value: Any, found: str, remedy: str, base: list[Any] = PLAIN) -> Case:
    """Rows of which the third has a value that training refuses."""
    expected = Refused(f"row 3, column '{column}': found {found}", remedy, 1)
    return third(name, {column: value}, expected, base)


def without(row: dict[str, Any], column: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != column}


WRITE_TEXT = "Write text or a list of {role, content} messages"
ONE_FORM = "bring all rows to one form"
IN_EACH = "Write role and content as text in each"
NUMBER = "Write a number up to 1e+06, or remove the column"
VALUES = [
    wrong("null for the better response", "chosen", None, "null", WRITE_TEXT),
    wrong("null for the prompt", "prompt", None, "null", WRITE_TEXT),
    wrong("a number for a response", "rejected", 7, "a number: 7", WRITE_TEXT),
    wrong("true for a response", "chosen", True, "true", WRITE_TEXT),
    wrong("an object for a response", "chosen", {"text": "Twelve."}, "an object", WRITE_TEXT),
    wrong("messages among texts", "chosen", TALKS[2]["chosen"], "messages", ONE_FORM),
    wrong("text among messages", "chosen", "Twelve.", "plain text", ONE_FORM, TALKS),
    wrong("a number for the prompt of messages", "prompt", 12, "a number: 12", WRITE_TEXT, TALKS),
    third("a column that one row has not", {"rejected": None}, Refused("row 3, column 'rejected'", WRITE_TEXT, 1)),
    rows(
        "a row without one of the responses",
        [*PLAIN[:2], without(PLAIN[2], "rejected"), PLAIN[3]],
        Refused("row 3, column 'rejected': found null", WRITE_TEXT, 1),
    ),
    rows(
        "all rows without the other response",
        [without(row, "rejected") for row in PLAIN],
        Refused("has no column ['rejected']; it has ['prompt', 'chosen']", "It needs `chosen` and `rejected`", 1),
    ),
    wrong("a message without a role", "chosen", [{"content": "Twelve."}], "message 1", IN_EACH, TALKS),
    wrong("a message without content", "chosen", [{"role": "assistant"}], "message 1", IN_EACH, TALKS),
    wrong("null as content", "prompt", said(("user", None)), "message 1", IN_EACH, TALKS),
    wrong("a number as content", "chosen", said(("assistant", 12)), "message 1", IN_EACH, TALKS),
    wrong(
        "content in parts, as of images",
        "prompt",
        said(("user", [{"type": "text", "text": "3 times 4?"}])),
        "message 1",
        IN_EACH,
        TALKS,
    ),
    wrong("messages that are texts", "prompt", ["What is", "3 times 4?"], "message 1 as What is", IN_EACH, TALKS),
    wrong(
        "a call of a tool",
        "chosen",
        [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "times"}}]}],
        "tool calls in message 1",
        "Write them into its content, as text",
        TALKS,
    ),
    wrong(
        "a response that begins as the prompt ends",
        "chosen",
        said(("user", "Well?"), ("assistant", "Twelve.")),
        "a response that begins with a message from 'user'",
        "Begin it with the assistant's",
        TALKS,
    ),
    rows(
        "messages as Python prints them",
        [{side: str(value) for side, value in row.items()} for row in TALKS],
        Refused("row 1, column 'chosen': found messages as Python prints them", "Write them as JSON", 1),
    ),
    rows("messages as JSON in text", [{k: json.dumps(v) for k, v in row.items()} for row in TALKS], Accepted(value=4)),
    rows(
        "a transcript beside plain text",
        [{"chosen": TRANSCRIPTS[0]["chosen"], "rejected": "In the desert."}, *TRANSCRIPTS[1:]],
        Refused("row 1, column 'rejected': found plain text", "write both alike", 1),
    ),
    rows(
        "a transcript with names of its own",
        [{k: v.replace("Human", "Q: User").replace("Q: ", "") for k, v in row.items()} for row in TRANSCRIPTS],
        Refused("holds turns that begin with 'User:', which is not known", "Write lists of messages", 1),
    ),
]
NUMBERS = [
    wrong("a strength as a word", "strength", "high", "text: 'high'", NUMBER, ANNOTATED),
    wrong("a negative strength", "strength", -0.5, "a number: -0.5", "swap the responses where the sign", ANNOTATED),
    wrong("no strength", "strength", None, "null", NUMBER, ANNOTATED),
    wrong("a strength of true", "strength", True, "true", NUMBER, ANNOTATED),
    wrong("a list as strength", "strength", [1, 2], "a list", NUMBER, ANNOTATED),
    wrong("a strength beyond all measure", "strength", 1e308, "a number: 1e+308", NUMBER, ANNOTATED),
    wrong("a strength that overflows", "strength", 10**400, "a number: ", NUMBER, ANNOTATED),
    wrong("a margin that is infinite", "margin", float("inf"), "a number: inf", NUMBER, ANNOTATED),
    wrong("a margin that is not a number", "margin", float("nan"), "a number: nan", NUMBER, ANNOTATED),
    wrong("a margin as a date", "margin", "2024-05-01", "text: '2024-05-01'", NUMBER, ANNOTATED),
    rows(
        "strengths of 0 alone",
        [row | {"strength": 0} for row in PLAIN],
        Refused("column 'strength': found 0 in every row", "Write others, or remove it", 1),
    ),
    rows(
        "a strength in the last row alone",
        [*PLAIN[:3], PLAIN[3] | {"strength": 2}],
        Refused("row 1, column 'strength': found null", NUMBER, 1),
    ),
    rows("strengths as text, as in CSV", [row | {"strength": "0.5"} for row in PLAIN], Accepted("strength: 0.5", 4)),
    rows(
        "scores that all contradict the choice",
        [row | {"score_chosen": 1, "score_rejected": 2} for row in PLAIN],
        Refused("4 of 4 rows cannot be used: 4 with scores that contradict", "Check that this is its form", 1),
    ),
    third(
        "a score that is a word",
        {"score_chosen": "good"},
        Refused("row 3, column 'score_chosen': found text: 'good'", "Write a number, or remove the column", 1),
        [row | {"score_chosen": 2, "score_rejected": 1} for row in PLAIN],
    ),
]
LABELLED = [
    {"prompt": row["prompt"], "response_a": row["chosen"], "response_b": row["rejected"], "winner": "model_a"}
    for row in PLAIN
]
FORMS = [
    rows(
        "two responses and nothing that says which is better",
        [without(row, "winner") for row in LABELLED],
        Refused("has ['response_a', 'response_b'], but no column of", "Add one", 1),
    ),
    third(
        "a winner of another name",
        {"winner": "claude"},
        Refused("row 3, column 'winner': found text: 'claude'", "Write one of ['model_a', 'model_b'", 1),
        LABELLED,
    ),
    third(
        "a tie", {"winner": "tie"}, Accepted(f"1 row: no response that is better (row 3)…{LEFT_OUT}", REST), LABELLED
    ),
    rows(
        "one response and a label, as for KTO",
        [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in PLAIN],
        Refused("has no column ['chosen', 'rejected']; it has ['prompt', 'completion', 'label']", "It needs", 1),
    ),
    rows(
        "a question and a context beside the responses",
        [without(row, "prompt") | {"question": row["prompt"], "context": "A book."} for row in PLAIN],
        Refused("each of the columns ['question', 'context'] may be the prompt", "Put all that was asked into", 1),
    ),
    rows(
        "the prompt in a column of its own name",
        [without(row, "prompt") | {"frage": row["prompt"]} for row in PLAIN],
        Refused("has no column 'prompt', but ['frage'] may hold prompts", "Rename the right one", 1),
    ),
    rows(
        "ratings of one response alone",
        [{"prompt": row["prompt"], "completions": [{"response": row["chosen"], "score": 1}]} for row in PLAIN],
        Refused("4 of 4 rows cannot be used: 4 with no two responses with different scores", "Check that this", 1),
    ),
    third(
        "a rating that is a word",
        {"completions": [{"response": "Twelve.", "score": "A"}, {"response": "Seven.", "score": "B"}]},
        Refused("row 3, column 'completions.score': found text: 'A'", "Write a number", 1),
        [
            {
                "prompt": row["prompt"],
                "completions": [
                    {"response": row["chosen"], "score": "2"},
                    {"response": row["rejected"], "score": "1"},
                ],
            }
            for row in PLAIN
        ],
    ),
    rows(
        "prompts alone",
        [{"prompt": row["prompt"]} for row in PLAIN],
        Refused("has no column ['chosen', 'rejected']; it has ['prompt']", "It needs `chosen` and `rejected`", 1),
    ),
    rows(
        "a prompt with messages beside answers in text",
        [row | {"prompt": said(("user", row["prompt"]))} for row in PLAIN],
        Accepted("read as…", 4),
    ),
]
NOTHING_SAID = [
    third("an empty response", {"chosen": ""}, Accepted(f"an empty response (row 3)…{LEFT_OUT}", REST)),
    third("a response of blanks", {"rejected": " \n\t"}, Accepted(f"an empty response (row 3)…{LEFT_OUT}", REST)),
    third("a response that shows nothing", {"chosen": "\u200b\ufeff"}, Accepted("an empty response (row 3)", REST)),
    third("no message as a response", {"chosen": []}, Accepted("an empty response (row 3)", REST), TALKS),
    third("two equal responses", {"rejected": PLAIN[2]["chosen"]}, Accepted("the same response as in 'chosen'", REST)),
    third(
        "responses that differ in blanks",
        {"chosen": "Twelve.", "rejected": " Twelve.\n"},
        Accepted("a response that differs from 'chosen' only in white space", REST),
    ),
    third(
        "a dialogue that ends with the user",
        {"rejected": said(("assistant", "Seven."), ("user", "Sure?"))},
        Accepted("a last message from 'user' (row 3)", REST),
        TALKS,
    ),
    rows(
        "no row that says anything",
        [row | {"chosen": ""} for row in PLAIN],
        Refused("4 of 4 rows cannot be used: 4 with an empty response (row 1", "remove these rows", 1),
    ),
    rows(
        "three of four rows that say nothing",
        [*[row | {"rejected": row["chosen"]} for row in PLAIN[:3]], PLAIN[3]],
        Refused("3 of 4 rows cannot be used", "More than half is too much", 1),
    ),
]
ODD = [
    rows("one row", PLAIN[:1], Accepted("1 row, 1 usable pair", 1)),
    rows("a row that stands twice", [*PLAIN, PLAIN[1]], Accepted("repeated pairs (row 5 with row 2)", 5)),
    rows(
        "a row labelled both ways",
        [*PLAIN, PLAIN[1] | {"chosen": PLAIN[1]["rejected"], "rejected": PLAIN[1]["chosen"]}],
        Accepted("pairs labelled both ways (row 2 with row 5", 5),
    ),
    rows("blank lines between rows", [PLAIN[0], "", PLAIN[1] | {"chosen": ""}, *PLAIN[2:]], Accepted("(row 3)", REST)),
    third("an empty prompt", {"prompt": ""}, Accepted("empty prompts (row 3)", 4)),
    third(
        "an empty prompt of messages",
        {"prompt": []},
        Accepted("empty prompts (row 3)", 4),
        TALKS,
    ),
    third("a control character", {"chosen": "Twelve\x1b[0m."}, Accepted("control characters (row 3)", 4)),
    third("UTF-8 read as Latin-1", {"chosen": "ZwÃ¶lf."}, Accepted("text decoded wrongly…(row 3)", 4)),
    third(
        "a replacement character", {"rejected": "S\ufffdven."}, Accepted("replacement characters (U+FFFD) (row 3)", 4)
    ),
    third("text that turns its direction", {"chosen": "\u202eTwelve."}, Accepted("bidirectional controls (row 3)", 4)),
    third(
        "a prompt that both responses repeat",
        {"chosen": "What is 3 times 4? Twelve.", "rejected": "What is 3 times 4? Seven."},
        Accepted("repeat at their beginning, where it was taken off (row 3)", 4),
    ),
    third(
        "two turns of one speaker",
        {"prompt": said(("user", "What is"), ("user", "3 times 4?"))},
        Accepted("adjacent turns of one speaker, which were joined…(row 3)", 4),
        TALKS,
    ),
    third(
        "a message with a field of its own",
        {"chosen": [{"role": "assistant", "content": "Twelve.", "thinking": "3 + 3 + 3 + 3"}]},
        Accepted("messages with fields beside role and content, which are not read (row 3)", 4),
        TALKS,
    ),
    third(
        "a role that no template knows",
        {"prompt": said(("narrator", "Once."))},
        Accepted("['narrator'] may be", 4),
        TALKS,
    ),
    third(
        "a system message", {"prompt": said(("system", "Be brief."), ("user", "3 times 4?"))}, Accepted("", 4), TALKS
    ),
    third("an answer of a megabyte", {"rejected": "Seven. " * 150_000}, Accepted("rejected, characters…1,050,000", 4)),
    rows(
        "columns of all kinds beside the pair",
        [
            row | {"id": i, "tags": ["a"], "meta": {"date": "2024-05-01T00:00:00"}, "weight": 2.0}
            for i, row in enumerate(PLAIN)
        ],
        Accepted("4 usable pairs", 4),
    ),
    rows(
        "capital letters in roles",
        [
            {side: [{"role": each[0]["role"].upper(), "content": each[0]["content"]}] for side, each in row.items()}
            for row in TALKS
        ],
        Accepted("roles: assistant 8, user 4", 4),
    ),
    rows(
        "a transcript of one turn",
        [
            *TRANSCRIPTS[:2],
            {"chosen": "\n\nHuman: Hm?\n\nAssistant: Twelve.", "rejected": "\n\nHuman: Hm?\n\nAssistant:"},
            TRANSCRIPTS[3],
        ],
        Accepted("an empty response (row 3)", REST),
    ),
    rows(
        "tables of messages by their fields",
        [
            {side: {"role": [each[0]["role"]], "content": [each[0]["content"]]} for side, each in row.items()}
            for row in TALKS
        ],
        Accepted("read as messages", 4),
    ),
]
CASES = VALUES + NUMBERS + FORMS + NOTHING_SAID + ODD
