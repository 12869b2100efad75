"""The commands: reports of what is no run, explanations of nothing, plans that do not add up, files that are there."""

import json
from typing import Any

from tests.corpus.bench import Bench
from tests.corpus.cases import Accepted, Case, Refused
from tests.corpus.data_rows import PLAIN, TALKS

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
        Refused(
            "is neither a reward model's training nor REINFORCE: it logged ['loss'", "no `accuracy` and no `reward`"
        ),
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


def plan(line: str, found: str, remedy: str, model: str = "base") -> Case:
    def act(bench: Bench) -> bool:
        folder = bench.shop.causal() if model == "base" else bench.path(model)
        return bool(bench.command("plan", folder, *line.split()))

    return Case(f"plan: {model} {line}".strip(), act, Refused(found, remedy))


def planned(name: str, settings: Any, found: str, remedy: str) -> Case:
    """A plan for what is no decoder's configuration."""
    return Case(
        f"plan: {name}",
        lambda bench: bench.command("plan", bench.path("model")),
        Refused(found, remedy),
        lambda bench: files(bench, "model", {} if settings is None else {"config.json": settings}),
    )


ONE = "It must be a whole number of at least 1"
NO_SETTINGS = "has no configuration that can be read"
PLANS = [
    plan("--load-in-4bit", "4-bit weights cannot be trained themselves", "Add `--lora-rank`"),
    plan("--double-quantisation", "`--double-quantisation` is of 4-bit constants", "Add `--load-in-4bit`"),
    plan("--offload --zero 2", "Offloading is of ZeRO-3, but the stage is 2", "Use `--zero 3`"),
    plan("--batch 3", "`--batch` is 3 rows, but a pair is two", "Give an even number"),
    plan("--batch 0", "`--batch` is 0", ONE),
    plan("--gpus 0", "`--gpus` is 0", ONE),
    plan("--length -1", "`--length` is -1", ONE),
    plan("--lora-rank -1", "`--lora-rank` is -1", "Give a rank of 1 or more"),
    plan("--prompts 5", "`--prompts` is of --trainer reinforce", "A reward model learns from `--pairs`"),
    plan("--pairs 0", "`--pairs` is 0", ONE),
    plan("--pairs -5 --epochs 2", "`--pairs` is -5", ONE),
    plan("--pairs 5 --epochs nan", "`--epochs` is nan", "It must be"),
    plan("--pairs 5 --epochs -1", "`--epochs` is -1", "It must be"),
    plan("--pairs 5 --tokens-per-second nan", "`--tokens-per-second` is nan", "It must be"),
    plan("--pairs 5 --tokens-per-second 0", "`--tokens-per-second` is 0", "It must be"),
    plan("--pairs 5 --tokens-per-second inf", "`--tokens-per-second` is inf", "It must be"),
    plan("--trainer reinforce --beta -1", "`--beta` is -1", "It must be"),
    plan("--trainer reinforce --length 512", "leave nothing of rows of 512 for the prompt", "make it larger"),
    plan("--trainer reinforce --num-generations 0", "`--num-generations` is 0", ONE),
    plan("--trainer ppo", "argument --trainer: invalid choice: 'ppo'", "choose from"),
    plan("--zero 4", "argument --zero: invalid choice: 4", "choose from"),
    plan("--lenght 4", "There is no option `--lenght`", "Did you mean `--length`?"),
    plan("", NO_SETTINGS, "Name a model of the hub", "absent"),
    planned("a folder without settings", None, NO_SETTINGS, "Name a model of the hub"),
    planned("settings cut short", "{", NO_SETTINGS, "Name a model of the hub"),
    planned("settings that are a list", [], NO_SETTINGS, "Name a model of the hub"),
    planned("a kind nobody knows", {"model_type": "qwen99"}, NO_SETTINGS, "Name a model of the hub"),
    planned("no kind", {"hidden_size": 3}, NO_SETTINGS, "Name a model of the hub"),
    planned(
        "an encoder and decoder", {"model_type": "t5"}, "is of type 't5', which is not a decoder", "Name a causal"
    ),
    planned("experts", {"model_type": "mixtral"}, "is a mixture of experts", "Name a dense decoder"),
    planned(
        "a width that is text", {"model_type": "llama", "hidden_size": "wide"}, NO_SETTINGS, "Name a model of the hub"
    ),
    planned("no layers", {"model_type": "llama", "num_hidden_layers": -1}, "has `num_hidden_layers` -1", "Restore it"),
]


def sandbox(name: str, words: list[str], found: str, remedy: str, given: Any = None) -> Case:
    def act(bench: Bench) -> Any:
        return bench.command("sandbox", *(word.replace("@", bench.path() + "/") for word in words))

    return Case(f"sandbox: {name}", act, Refused(found, remedy), given or (lambda bench: None))


def fix(name: str, out: str, expected: Refused | Accepted, rows: Any = PLAIN, there: str = "") -> Case:
    """What of some pairs can be used, written to a file."""

    def given(bench: Bench) -> None:
        bench.write("pairs.jsonl", rows)
        if there:
            bench.write(there, "mine")

    def act(bench: Bench) -> str:
        try:
            bench.command("check", bench.path("pairs.jsonl"), "--fix", bench.path(out))
        finally:
            names = ", ".join(sorted(path.name for path in bench.folder.iterdir()))
        return names

    return Case(f"check --fix: {name}", act, expected, given)


WRONG = [*PLAIN, {"prompt": "a", "chosen": None, "rejected": "b"}]
OVERWRITE, OTHER_NAME = "would overwrite", "Choose another name"
WRITTEN = [
    sandbox(
        "a file that is there",
        ["@mine.jsonl"],
        "mine.jsonl' exists",
        "Give another name",
        lambda b: b.write("mine.jsonl", "mine"),
    ),
    sandbox("a table", ["@pairs.csv"], "pairs.csv' would hold JSON", "Give it a name that ends in .jsonl"),
    sandbox("no pairs", ["@pairs.jsonl", "--size", "0"], "`--size` is 0", "of at least 1"),
    sandbox("pairs below none", ["@pairs.jsonl", "--size", "-3"], "`--size` is -3", "of at least 1"),
    sandbox(
        "a size by name",
        ["@pairs.jsonl", "--size", "many"],
        "argument --size: invalid int value: 'many'",
        "--help` tells more",
    ),
    sandbox(
        "a folder that is a file",
        ["@mine/pairs.jsonl", "--size", "2"],
        "Cannot write",
        "Give another name",
        lambda b: b.write("mine", "mine"),
    ),
    fix("the pairs themselves", "pairs.jsonl", Refused(OVERWRITE, OTHER_NAME)),
    fix("a file that is there", "out.jsonl", Refused(OVERWRITE, OTHER_NAME), there="out.jsonl"),
    fix("a file of what was rejected", "out.jsonl", Refused(OVERWRITE, OTHER_NAME), WRONG, "out.rejected.jsonl"),
    fix("a table", "out.csv", Refused("would write JSON lines", "Choose a name that ends in '.jsonl'")),
    fix("a folder that is not there", "no/out.jsonl", Refused("there is no folder", "Make it first")),
    fix(
        "pairs cut short", "out.jsonl", Refused("not valid JSON", "Write one object a line", 1), [*PLAIN, '{"prompt"']
    ),
    fix("pairs that are all right", "out.jsonl", Accepted("Wrote 4 rows", "out.jsonl, pairs.jsonl")),
    fix("a part of somebody's", "out.jsonl", Accepted("Wrote 4 rows"), there="out.jsonl.part"),
]


def said(name: str, words: list[str], found: str, remedy: str) -> Case:
    return Case(f"prefscale: {name}", lambda bench: bench.command(*words), Refused(found, remedy))


WORDS = [
    said("no command", [], "required: command", "`prefscale --help` tells more"),
    said("a command misspelt", ["chek", "pairs.jsonl"], "invalid choice: 'chek'", "choose from 'check'"),
    said("check without a file", ["check"], "required: FILE", "`prefscale check --help` tells more"),
    said("an option cut short", ["check", "x", "--nea"], "There is no option `--nea`", "Did you mean `--near`?"),
    said(
        "an option misspelt",
        ["check", "x", "--tokeniser", "y"],
        "There is no option `--tokeniser`",
        "Did you mean `--tokenizer`?",
    ),
    said(
        "an option without its value",
        ["check", "x", "--max-length"],
        "argument --max-length: expected one argument",
        "--help` tells more",
    ),
    said(
        "lengths without a tokenizer",
        ["check", "x", "--max-length", "9"],
        "`--max-length` counts tokens",
        "Give `--tokenizer`",
    ),
    said("verify of what is not there", ["verify", "./absent"], "There is no folder './absent'", "Give that of a"),
    said("two folders to report", ["report", "a", "b"], "`b` belongs to no option", "leave it out"),
]


def evaluate(name: str, words: list[str], found: str, remedy: str) -> Case:
    """The recipe that evaluates a reward model."""

    def act(bench: Bench) -> Any:
        from tests.helpers import load_recipe

        given = ["--reward_model", str(bench.shop.saved / "whole"), "--dataset_name", bench.path("pairs.jsonl")]
        here = [word.replace("@", bench.path() + "/") for word in words]
        return bench.recipe("evaluate_reward", *given, *here, main=load_recipe("evaluate_reward").main)

    def given(bench: Bench) -> None:
        bench.write("pairs.jsonl", TALKS)
        bench.write("other.json", '{"mine": 1}')

    return Case(f"evaluate: {name}", act, Refused(found, remedy), given)


EVALUATED = [
    evaluate("figures into a table", ["--output_file", "@a.csv"], "a.csv' would hold JSON", "Give it a name"),
    evaluate(
        "figures over the pairs", ["--output_file", "@pairs.jsonl"], "pairs.jsonl' would hold JSON", "Give it a name"
    ),
    evaluate(
        "no model", ["--reward_model", "./absent"], "There is no folder './absent' (reward model)", "Correct the path"
    ),
    evaluate("no data", ["--dataset_name", "@absent.jsonl"], "There is no file or folder", "Correct the path"),
    evaluate(
        "figures over other figures",
        ["--output_file", "@other.json"],
        "other.json' exists and holds no figures",
        "Give another",
    ),
    evaluate("rows of two tokens", ["--max_length", "2"], "does not fit into `max_length=2`", "Raise `max_length`"),
]
CASES = [*REPORTS, *EXPLAINED, *PLANS, *WRITTEN, *WORDS, *EVALUATED]
