"""Tokenizers and chat templates with which rows cannot be made, or would not be what they seem."""

from collections.abc import Callable
from typing import Any

from tests.corpus.bench import Bench
from tests.corpus.cases import Accepted, Case, Refused
from tests.corpus.data_rows import PLAIN, TALKS, said

TURNS = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
OPENING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ORDER = "Bring the messages into the order that it knows, or use another template"
BRIEF = [{**row, "prompt": [*said(("system", "Be brief.")), *row["prompt"]]} for row in TALKS]


def tokenize(bench: Bench, tokenizer: Any, rows: list[dict[str, Any]], **options: Any) -> int:
    """Pairs as the trainer reads them."""
    from accelerate import PartialState
    from datasets import Dataset

    from toolkit.data.preparation import tokenize_pairs

    PartialState()  # as a trainer makes it
    defaults: dict[str, Any] = {"max_length": 64, "needs_prompt": True, "drop_long": False}
    defaults |= {"length_column_name": "length"} | options
    return len(tokenize_pairs(Dataset.from_list(rows), "pairs", tokenizer, **defaults))


def rows(name: str, changes: dict[str, Any], found: Any, expected: Refused | Accepted, **options: Any) -> Case:
    """Pairs at a tokenizer that differs from a good one in some of its attributes."""
    return Case(name, lambda bench: tokenize(bench, bench.shop.tokenizer_with(**changes), found, **options), expected)


def template(name: str, text: str, found: Any, expected: Refused | Accepted) -> Case:
    return rows(f"a template {name}", {"chat_template": text}, found, expected)


def with_(base: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    """Rows of which the third has other values."""
    return [*base[:2], {**base[2], **changes}, *base[3:]]


ROWS = [
    template(
        "that is missing", None, TALKS, Refused("the tokenizer has no chat template", "Set `chat_template_path`")
    ),
    template(
        "that refuses system messages", NO_SYSTEM + TURNS + OPENING, BRIEF, Refused("System role not supported", ORDER)
    ),
    template(
        "that refuses its own messages",
        "{{ raise_exception('Roles must alternate') }}",
        TALKS,
        Refused(
            "row 1: The chat template refuses a conversation of ['user', 'assistant']: Roles must alternate", ORDER
        ),
    ),
    template(
        "that is no template",
        "{% for m in messages %}{{ m['role'] }}",
        TALKS,
        Refused("row 1: The chat template fails at a conversation of", "Mend it"),
    ),
    template(
        "with a bracket too few",
        "{{ messages[0]['content' }}",
        TALKS,
        Refused("row 1: The chat template fails at a conversation of", "Mend it"),
    ),
    template(
        "that asks for what no message has",
        "{{ messages[0].parts[0].text }}",
        TALKS,
        Refused("row 1: The chat template fails at a conversation of", "Mend it"),
    ),
    template(
        "that adds numbers to text",
        "{{ messages[0].content + 1 }}",
        TALKS,
        Refused("row 1: The chat template fails at a conversation of", "Mend it"),
    ),
    template("that writes nothing", "{{ '' }}", TALKS, Refused("row 1: The chat template leaves out", "Use another")),
    template(
        "that leaves the answer out",
        TURNS.replace("m['content']", "(m['content'] if m['role'] == 'user' else '')") + OPENING,
        TALKS,
        Refused("leaves out what the assistant says after ['user']", "Use another template"),
    ),
    template(
        "that keeps four letters of an answer",
        TURNS.replace("m['content']", "m['content'][:4]") + OPENING,
        with_(TALKS, chosen=said(("assistant", "Seven times.")), rejected=said(("assistant", "Seven."))),
        Accepted("left out 2 of 4 pairs with responses that are the same once they are tokens", 2),
    ),
    rows(
        "a response longer than a row",
        {},
        with_(TALKS, rejected=said(("assistant", "Seven. " * 90))),
        Refused("row 3, column 'rejected': a response of", "Raise `max_length`, or leave the row out"),
    ),
    rows(
        "a response longer than a row, left out",
        {},
        with_(TALKS, rejected=said(("assistant", "Seven. " * 90))),
        Accepted("left out 1 of 4 pairs, of which a response alone is longer than `max_length`=64", 3),
        drop_long=True,
    ),
    rows(
        "all responses longer than a row",
        {},
        TALKS,
        Refused("It is the first of 4 such rows", "of 4"),
        max_length=3,
        drop_long=True,
    ),
    rows(
        "a prompt longer than a row",
        {},
        with_(TALKS, prompt=said(("user", "What? " * 90))),
        Accepted("1 of 4 pairs were longer than `max_length=64` and lost", 4),
    ),
    rows(
        "no prompt where it is read",
        {},
        with_(PLAIN, prompt=""),
        Refused("row 3, column 'prompt': the prompt is empty", "leave that option out"),
    ),
    rows("no prompt where it is not read", {}, with_(PLAIN, prompt=""), Accepted(value=4), needs_prompt=False),
    rows(
        "no EOS for plain text",
        {"eos_token": None},
        PLAIN,
        Refused("row 1: The tokenizer has no EOS token", "Set `eos_token`"),
    ),
    rows(
        "columns with names of ours",
        {},
        [{**row, "weight": 9.0, "error": "x", "shared_tokens": 1} for row in TALKS],
        Accepted("the columns ['weight', 'error', 'shared_tokens'] have names that the trainer uses itself", 4),
    ),
    rows(
        "tools that are no JSON",
        {},
        [{**row, "tools": "{'name': 1}"} for row in TALKS],
        Refused("row 1: column 'tools': found text", "Write a list"),
    ),
    rows(
        "tools as a number",
        {},
        [{**row, "tools": 3} for row in TALKS],
        Refused("row 1: column 'tools': found a number: 3", "Write a list"),
    ),
    rows(
        "options of the template as text",
        {},
        [{**row, "chat_template_kwargs": "x"} for row in TALKS],
        Refused("row 1: column 'chat_template_kwargs': found text: 'x'", "Write an object"),
    ),
    rows(
        "options of the template that it has not",
        {},
        [{**row, "chat_template_kwargs": {"enable_thinking": True}} for row in TALKS],
        Accepted(value=4),
    ),
]


def checked(
    name: str, save: Callable[[Bench], str], words: list[str], expected: Refused | Accepted, found: Any = TALKS
) -> Case:
    """`prefscale check` at a tokenizer."""
    return Case(
        f"check: {name}",
        lambda bench: bench.check("pairs.jsonl", "--tokenizer", save(bench), *words, load=False),
        expected,
        lambda bench: bench.write("pairs.jsonl", found),
    )


def saved(bench: Bench) -> str:
    return str(bench.shop.tokenizer_folder)


def changed(**changes: Any) -> Callable[[Bench], str]:
    def save(bench: Bench) -> str:
        bench.shop.tokenizer_with(**changes).save_pretrained(bench.path("tokenizer"))
        return bench.path("tokenizer")

    return save


def cut_short(bench: Bench) -> str:
    bench.shop.tokenizer.save_pretrained(bench.path("tokenizer"))
    return str(bench.write("tokenizer/tokenizer.json", "{").rpartition("/")[0])


def a_list(bench: Bench) -> str:
    bench.shop.tokenizer.save_pretrained(bench.path("tokenizer"))
    return str(bench.write("tokenizer/tokenizer_config.json", "[]").rpartition("/")[0])


NO_TOKENIZER = "cannot be loaded"
CHECKED = [
    checked("a good one", saved, [], Accepted("longer row, tokens")),
    checked(
        "a folder that is not there",
        lambda bench: "./absent",
        [],
        Refused(NO_TOKENIZER, "Give a hub name or a folder"),
    ),
    checked(
        "a folder without a tokenizer", lambda b: b.path(), [], Refused(NO_TOKENIZER, "Give a hub name or a folder")
    ),
    checked("a tokenizer cut short", cut_short, [], Refused(NO_TOKENIZER, "Give a hub name or a folder")),
    checked("settings that are a list", a_list, [], Refused(NO_TOKENIZER, "Give a hub name or a folder")),
    checked("a file", lambda b: b.path("pairs.jsonl"), [], Refused(NO_TOKENIZER, "Give a hub name or a folder")),
    checked(
        "no template",
        changed(chat_template=None),
        [],
        Refused("row 1: The data are conversations, but the tokenizer has no", "Set `chat_template_path`", 1),
    ),
    checked("rows of 8 tokens", saved, ["--max-length", "8"], Refused("does not fit into `max_length=8`", "Raise", 1)),
    checked(
        "rows of 0 tokens", saved, ["--max-length", "0"], Refused("`--max-length` is 0", "Give a positive number")
    ),
    checked(
        "rows of -3 tokens", saved, ["--max-length", "-3"], Refused("`--max-length` is -3", "Give a positive number")
    ),
]

CASES = [*ROWS, *CHECKED]
