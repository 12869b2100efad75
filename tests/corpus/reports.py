"""Pages and explanations: of what is no run, of files that are damaged, and of responses that are none."""

import json
from typing import Any

from tests.corpus.bench import Bench
from tests.corpus.cases import Accepted, Case, Refused
from tests.corpus.data_rows import TALKS

STEPS = [{"step": 1, "loss": 0.7, "accuracy": 0.5}, {"step": 2, "loss": 0.6, "accuracy": 0.6}]
STATE = {"global_step": 2, "log_history": STEPS}
RUN = {"started": ["2024-05-01T10:00:00"], "command": ["train_reward.py"], "options": {}, "versions": {}}


def files(bench: Bench, folder: str, content: dict[str, Any]) -> None:
    (bench.folder / folder).mkdir(exist_ok=True)
    for name, text in content.items():
        bench.write(f"{folder}/{name}", text if isinstance(text, str | bytes) else json.dumps(text))


def report(name: str, content: dict[str, Any], expected: Refused | Accepted, destroys: tuple[str, ...] = ()) -> Case:
    """A page about what lies in a folder."""
    return Case(
        f"report: {name}",
        lambda bench: bool(bench.command("report", bench.path("run"))),
        expected,
        lambda bench: files(bench, "run", content),
        destroys,
    )


def linked(bench: Bench) -> None:
    files(bench, "run", {"trainer_state.json": STATE})
    files(bench, "mine", {"index.html": "mine"})
    (bench.folder / "run/report").symlink_to(bench.folder / "mine")


HELD_OUT = {"row": ["a", "b"], "prompt": ["p", "q"]}
HELD_OUT |= {name: [0.5, 1.5] for name in ("chosen", "rejected", "chosen_length", "rejected_length")}
RESTORE = "Remove it, or restore it"
OUTPUT_DIR = "Give the `output_dir` of a run"
STUDY = "recipes/experiments/study.py"
REPORTS = [
    report("a run", {"trainer_state.json": STATE}, Accepted("report/index.html", True)),
    report(
        "a page that is there",
        {"trainer_state.json": STATE, "report/index.html": "old"},
        Accepted(value=True),
        ("index.html",),
    ),
    report(
        "nothing",
        {},
        Refused("holds no run: neither a trainer_state.json nor a complete checkpoint, but nothing", OUTPUT_DIR),
    ),
    report("other files", {"notes.txt": "mine"}, Refused("but notes.txt", OUTPUT_DIR)),
    report("runs below it", {"a/trainer_state.json": STATE}, Refused("holds no run", "Give one of the runs below it")),
    report("a state cut short", {"trainer_state.json": '{"log_'}, Refused("trainer_state.json' is damaged", RESTORE)),
    report(
        "a state that is a list",
        {"trainer_state.json": []},
        Refused("trainer_state.json' is damaged: it holds a list", RESTORE),
    ),
    report(
        "a state without steps",
        {"trainer_state.json": STATE | {"log_history": []}},
        Refused("is empty: its log has no step", "Let it train"),
    ),
    report(
        "a log that is no list",
        {"trainer_state.json": STATE | {"log_history": {"a": 1}}},
        Refused("trainer_state.json' is damaged", RESTORE),
    ),
    report(
        "a log of numbers",
        {"trainer_state.json": STATE | {"log_history": [1, 2]}},
        Refused("trainer_state.json' is damaged", RESTORE),
    ),
    report(
        "a loss that is text",
        {"trainer_state.json": STATE | {"log_history": [{"step": 1, "loss": "low", "accuracy": 0.5}]}},
        Refused("trainer_state.json' is damaged: entry 1 of its `log_history` holds", RESTORE),
    ),
    report(
        "a step that is text",
        {"trainer_state.json": STATE | {"log_history": [{"step": "1", "loss": 1.0, "accuracy": 0.5}]}},
        Refused("trainer_state.json' is damaged: entry 1 of its `log_history` holds", RESTORE),
    ),
    report(
        "a run of another trainer",
        {"trainer_state.json": STATE | {"log_history": [{"step": 1, "loss": 1.0}]}},
        Accepted("report/index.html", True),
    ),
    report(
        "held-out scores without their columns",
        {"trainer_state.json": STATE, "held_out.json": {"chosen": [1.0]}},
        Refused("held_out.json' is damaged: its columns are ['chosen']", RESTORE),
    ),
    report(
        "held-out scores cut short",
        {"trainer_state.json": STATE, "held_out.json": HELD_OUT | {"rejected": []}},
        Refused("held_out.json' is damaged: its columns have", RESTORE),
    ),
    report(
        "a held-out score that is text",
        {"trainer_state.json": STATE, "held_out.json": HELD_OUT | {"loss": [1.0, "high"]}},
        Refused("held_out.json' is damaged: its column 'loss' mixes kinds of values", RESTORE),
    ),
    report(
        "options of the wrong kind",
        {"trainer_state.json": STATE, "run.json": RUN | {"options": {"Config": {"seed": 1}}}},
        Refused("run.json' is damaged: its options of `Config` are", RESTORE),
    ),
    report(
        "a record cut short", {"trainer_state.json": STATE, "run.json": "{"}, Refused("run.json' is damaged", RESTORE)
    ),
    report("a record of another program", {"trainer_state.json": STATE, "run.json": {"id": 3}}, Accepted(value=True)),
    report(
        "a record of the wrong kinds",
        {"trainer_state.json": STATE, "run.json": RUN | {"options": 3}},
        Refused("run.json' is damaged", RESTORE),
    ),
    report(
        "results cut short",
        {"trainer_state.json": STATE, "eval_results.json": "{"},
        Refused("eval_results.json' is damaged", RESTORE),
    ),
    report(
        "examples of the wrong kind",
        {"trainer_state.json": STATE, "examples.json": {"a": 1}},
        Refused("examples.json' is damaged", RESTORE),
    ),
    report(
        "examples without their parts",
        {"trainer_state.json": STATE, "examples.json": [{"title": "a", "responses": [1]}]},
        Accepted(value=True),
    ),
    report(
        "bytes for a state",
        {"trainer_state.json": b"\xff\xfe\x00"},
        Refused("trainer_state.json' is damaged, no text", RESTORE),
    ),
    report(
        "a loss that is not a number",
        {"trainer_state.json": json.dumps(STATE | {"log_history": [{**STEPS[0], "loss": float("nan")}, STEPS[1]]})},
        Accepted(value=True),
    ),
    report(
        "a run at its start",
        {"run.json": RUN},
        Refused("was started at 2024-05-01T10:00:00", "Wait for its first one"),
    ),
    report("a study cut short", {"settings.json": "{"}, Refused("settings.json' is damaged", "Restore it")),
    report(
        "a study of another version",
        {"settings.json": {"kind": "RealStudy", "a": 1}},
        Refused("holds no settings of a study of this version", STUDY),
    ),
    Case(
        "report: a file", lambda b: b.command("report", b.write("run", "x")), Refused("run' is no folder", OUTPUT_DIR)
    ),
    Case(
        "report: a folder that is not there",
        lambda b: b.command("report", b.path("x")),
        Refused("x' is no folder", OUTPUT_DIR),
    ),
    Case(
        "report: a link in place of the page",
        lambda b: b.command("report", b.path("run")),
        Refused("is a symbolic link", "Remove the link"),
        linked,
    ),
]


def explain(
    name: str, words: list[str], expected: Refused | Accepted, model: str = "whole", given: Any = None
) -> Case:
    """What a reward model says of a response."""

    def act(bench: Bench) -> bool:
        folder = str(bench.shop.saved / model) if model in ("whole", "adapter", "base") else bench.path(model)
        here = [word.replace("@", bench.path() + "/") for word in words]
        return bool(bench.command("explain", folder, *here))

    return Case(f"explain: {name}", act, expected, given or (lambda bench: bench.write("pairs.jsonl", TALKS)))


ASK = ["--prompt", "Why?"]
SAY = [*ASK, "--response", "So it is."]
FILE = ["--file", "@pairs.jsonl"]
GIVE = "Give `--prompt` and one or two `--response`"
EXPLAINED = [
    explain("a response", SAY, Accepted("score", True)),
    explain("an adapter", SAY, Accepted("score", True), "adapter"),
    explain("nothing", [], Refused("Found `--prompt` 0 times, `--response` 0 times", GIVE)),
    explain("no response", ASK, Refused("`--response` 0 times", GIVE)),
    explain("three responses", [*SAY, "--response", "b", "--response", "c"], Refused("`--response` 3 times", GIVE)),
    explain("an empty response", [*ASK, "--response", " "], Refused("Response 1 is empty", "Give it some text")),
    explain(
        "a response beyond the context", [*ASK, "--response", "so " * 300], Refused("Response 1 has", "Shorten it")
    ),
    explain("a row without a file", [*SAY, "--row", "1"], Refused("Found `--prompt` 1 times", GIVE)),
    explain("a file without a row", FILE, Refused("has 4 pairs, but `--row` is None", "Give 1 to 4")),
    explain("row 0", [*FILE, "--row", "0"], Refused("has 4 pairs, but `--row` is 0", "Give 1 to 4")),
    explain("a row beyond the last", [*FILE, "--row", "5"], Refused("has 4 pairs, but `--row` is 5", "Give 1 to 4")),
    explain(
        "a row by name",
        [*FILE, "--row", "last"],
        Refused("argument --row: invalid int value: 'last'", "--help` tells more"),
    ),
    explain(
        "a file and a prompt", [*FILE, "--row", "1", *ASK], Refused("`--file` brings its own prompt", "Leave out")
    ),
    explain(
        "a file that is not there",
        ["--file", "@no.jsonl", "--row", "1"],
        Refused("There is no file", "Correct the path"),
    ),
    explain(
        "a file that is damaged",
        ["--file", "@pairs.jsonl", "--row", "1"],
        Refused("row 1, character", "Write one object"),
        given=lambda b: b.write("pairs.jsonl", "{"),
    ),
    explain(
        "a page in a folder that is not there",
        [*SAY, "--html", "@no/page.html"],
        Refused("Cannot write", "Correct `--html`"),
    ),
    explain(
        "a page by the name of a folder", [*SAY, "--html", "@"], Refused("`--html` is", "a name that ends in .html")
    ),
    explain(
        "a page over the pairs", [*SAY, "--html", "@pairs.jsonl"], Refused("`--html` is", "a name that ends in .html")
    ),
    explain(
        "a page that is there",
        [*SAY, "--html", "@mine.html"],
        Refused("mine.html' exists", "another name"),
        given=lambda b: b.write("mine.html", "mine"),
    ),
    explain(
        "a page beside a part",
        [*SAY, "--html", "@a.html"],
        Accepted(value=True),
        given=lambda b: b.write("a.html.part", "mine"),
    ),
    explain("a causal model", SAY, Refused("is not a multi-scale reward model", "Name one that"), "base"),
    explain("a folder that is not there", SAY, Refused("There is no folder", "Name one that"), "absent/model"),
    explain("a folder without a model", SAY, Refused("has none of", "Name one that"), "."),
]


CASES = [*REPORTS, *EXPLAINED]
