"""What is given as a reward model and is none, tokenizers beside one that are another's, and what rightly loads."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.corpus.bench import Bench
from tests.corpus.cases import Accepted, Case, Refused
from tests.corpus.saved_models import RESTORE, copied, cut, edit, load, tensors


def others(name: str, make: Callable[[Bench], Any], found: str, remedy: str, **options: Any) -> Case:
    """What is no reward model, given as one."""
    return Case(name, lambda bench: load(bench, "model", **options), Refused(found, remedy), make)


def a_copy(bench: Bench, of: str) -> None:
    shutil.copytree(of, bench.folder / "model")


def an_encoder(bench: Bench) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(bench.path("model"))


def settings_alone(bench: Bench) -> None:
    a_copy(bench, bench.shop.causal())
    (bench.folder / "model/model.safetensors").unlink()


def begins(scales: list[str]) -> dict[str, Any]:
    from toolkit import MultiScaleSettings

    return {"settings": MultiScaleSettings(scales)}


def beginning(name: str, make: Callable[[Bench], Any], found: str, remedy: str) -> Case:
    """What a new reward model is to begin from."""
    return Case(
        name,
        lambda bench: load(bench, "model", **begins(["token", "segment", "response"])),
        Refused(found, remedy),
        make,
    )


def lacks_a_layer(bench: Bench) -> None:
    a_copy(bench, bench.shop.causal())
    tensors(bench.folder / "model/model.safetensors", lambda f: {k: v for k, v in f.items() if "layers.1." not in k})


OTHERS = [
    others(
        "a causal model", lambda b: a_copy(b, b.shop.causal()), "is not a multi-scale reward model", "Train it with"
    ),
    others("an empty folder", lambda b: (b.folder / "model").mkdir(), "config.json' cannot be read", RESTORE),
    others(
        "a file",
        lambda b: b.write("model", "weights"),
        "model' (reward model) is a file",
        "Give the folder in which it lies",
    ),
    others(
        "a folder with weights alone",
        lambda b: b.write("model/model.safetensors", b""),
        "config.json' cannot be read",
        RESTORE,
    ),
    beginning("an encoder to begin from", an_encoder, "has no linear head called `score`", "Use a causal model"),
    beginning("settings without weights to begin from", settings_alone, "has no file of weights", "Copy it again"),
    beginning("a decoder without one of its layers", lacks_a_layer, "lack model.layers.1.", "Take the folder"),
    Case(
        "another set of scales than was saved",
        lambda bench: load(bench, "whole", **begins(["token", "response"])),
        Refused("was saved with `scales=['token', 'segment', 'response']`", "Ask for the same, or begin a new head"),
        copied,
    ),
]


def score(bench: Bench, form: str) -> int:
    from toolkit import RewardFunction

    return len(RewardFunction(bench.path(form))(["Why?"], ["Because it is so."]))


def tokenizer(name: str, harm: Callable[[Bench], Any], found: str, remedy: str, form: str = "whole") -> Case:
    """A tokenizer that is not the one that a model was trained with."""

    def given(bench: Bench) -> None:
        copied(bench)
        harm(bench)

    return Case(f"{form}: {name}", lambda bench: score(bench, form), Refused(found, remedy), given)


def change(file: str, harm: Callable[[Path], Any], form: str = "whole") -> Callable[[Bench], Any]:
    return lambda bench: harm(bench.folder / form / file)


def another_template(bench: Bench) -> None:
    (bench.folder / "whole/chat_template.jinja").write_text("{{ messages[-1]['content'] }}")


TOKENIZERS = [
    tokenizer(
        "the tokenizer of another model",
        lambda bench: bench.shop.other_tokenizer.save_pretrained(bench.path("whole")),
        "not the one that was saved with it: tokenizer.json is another",
        RESTORE,
    ),
    tokenizer("a tokenizer cut short", change("tokenizer.json", cut), "tokenizer.json", RESTORE),
    tokenizer(
        "a tokenizer that is empty", change("tokenizer.json", lambda p: p.write_bytes(b"")), "tokenizer.json", RESTORE
    ),
    tokenizer("no tokenizer", change("tokenizer.json", Path.unlink), "tokenizer.json is missing", RESTORE),
    tokenizer("settings of the tokenizer cut", change("tokenizer_config.json", cut), "tokenizer_config.json", RESTORE),
    tokenizer(
        "no settings of the tokenizer",
        change("tokenizer_config.json", Path.unlink),
        "tokenizer_config.json is missing",
        RESTORE,
    ),
    tokenizer("another template", another_template, "chat_template.jinja", RESTORE),
    tokenizer("no template", change("chat_template.jinja", Path.unlink), "chat_template.jinja is missing", RESTORE),
    tokenizer(
        "another EOS",
        change("tokenizer_config.json", lambda p: edit(p, eos_token="<|im_start|>")),
        "tokenizer_config.json",
        RESTORE,
    ),
    tokenizer(
        "the tokenizer beside an adapter cut",
        change("tokenizer.json", cut, "adapter"),
        "tokenizer.json",
        RESTORE,
        "adapter",
    ),
]


def moved_base(bench: Bench) -> None:
    work = copied(bench)
    shutil.move(work / "base", work / "elsewhere")
    edit(work / "adapter/adapter_config.json", base_model_name_or_path=str(work / "elsewhere"))


def of_before(bench: Bench) -> None:
    (copied(bench) / "whole/prefscale.json").unlink()


RIGHT = [
    Case(
        "whole: as it was saved",
        lambda bench: load(bench, "whole"),
        Accepted(value="Qwen3ForSequenceClassification"),
        copied,
    ),
    Case("adapter: a base that has moved", lambda bench: load(bench, "adapter"), Accepted(), moved_base),
    Case(
        "whole: from before records",
        lambda bench: load(bench, "whole"),
        Accepted("has no prefscale.json beside"),
        of_before,
    ),
    Case(
        "whole: a note beside it",
        lambda b: load(b, "whole"),
        Accepted(),
        lambda b: (copied(b) / "whole/notes.txt").touch(),
    ),
    Case(
        "whole: scored",
        lambda bench: score(bench, "whole"),
        Accepted("plain text: each is read as the user's", 1),
        copied,
    ),
    Case(
        "a path that is not there",
        lambda bench: score(bench, "nothing"),
        Refused("There is no folder…nothing' (reward model)", "Correct the path"),
    ),
]
CASES = [*OTHERS, *TOKENIZERS, *RIGHT]
