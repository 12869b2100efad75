"""The other commands: plans that do not add up, files that are there, and words that no command knows."""

from typing import Any

from tests.corpus.bench import Bench
from tests.corpus.cases import Accepted, Case, Refused
from tests.corpus.data_rows import PLAIN, TALKS
from tests.corpus.reports import files


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
    said("a command misspelt", ["chek", "pairs.jsonl"], "invalid choice: 'chek'", "choose from 'init', 'reward'"),
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
        "argument --max-length/--max_length: expected one argument",
        "--help` tells more",
    ),
    said(
        "lengths without a tokenizer",
        ["check", "x", "--max-length", "9"],
        "`--max-length` counts tokens",
        "Give `--tokenizer`",
    ),
    said("verify of what is not there", ["verify", "./absent"], "There is no folder './absent'", "Give that of a"),
    said("one folder twice to report", ["report", "a", "a"], "A run is given twice: a, a", "Give each run once"),
]


def evaluate(name: str, words: list[str], found: str, remedy: str) -> Case:
    """The recipe that evaluates a reward model."""

    def act(bench: Bench) -> Any:
        from toolkit.evaluation.command import main

        given = ["--models", str(bench.shop.saved / "whole"), "--dataset_name", bench.path("pairs.jsonl")]
        here = [word.replace("@", bench.path() + "/") for word in words]
        return bench.recipe("evaluate_reward", *given, *here, main=main)

    def given(bench: Bench) -> None:
        bench.write("pairs.jsonl", TALKS)
        bench.write("other.json", '{"mine": 1}')

    return Case(f"evaluate: {name}", act, Refused(found, remedy), given)


EVALUATED = [
    evaluate("figures into a table", ["--output_file", "@a.csv"], "a.csv' would hold JSON", "Give it a name"),
    evaluate(
        "figures over the pairs", ["--output_file", "@pairs.jsonl"], "pairs.jsonl' would hold JSON", "Give it a name"
    ),
    evaluate("no model", ["--models", "./absent"], "There is no folder './absent' (model)", "Correct the path"),
    evaluate("no data", ["--dataset_name", "@absent.jsonl"], "There is no file or folder", "Correct the path"),
    evaluate(
        "figures over other figures",
        ["--output_file", "@other.json"],
        "other.json' exists and holds no figures",
        "Give another",
    ),
    evaluate("rows of two tokens", ["--max_length", "2"], "does not fit into `max_length=2`", "Raise `max_length`"),
]


def exported(name: str, form: str, found: str, remedy: str, saved: str = "whole", folder: str = "new") -> Case:
    """What the shop has saved, or what is not there, in another form."""

    def act(bench: Bench) -> Any:
        source = str(bench.shop.saved / saved) if saved != "absent" else bench.path(saved)
        return bench.command("export", source, bench.path(folder), "--form", form)

    return Case(f"export: {name}", act, Refused(found, remedy), lambda bench: bench.write("mine/a.txt", "mine"))


EXPORTED = [
    exported("into a folder that is there", "stock", "mine' exists", "Name a folder that is not there", folder="mine"),
    exported("a whole model merged", "merged", "no adapter to merge", "Use it as it is"),
    exported("a decoder without a head", "pooling", "is not a multi-scale reward model", "Train it", saved="base"),
    exported("a model that is not there", "stock", "There is no folder", "Correct the path", saved="absent"),
    exported("a form that nobody knows", "onnx", "argument --form: invalid choice: 'onnx'", "choose from 'merged'"),
]
CASES = [*PLANS, *WRITTEN, *WORDS, *EVALUATED, *EXPORTED]
