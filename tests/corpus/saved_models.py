"""Reward models, adapters and their bases that are not what was saved: damaged, edited, incomplete, or another's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.corpus.bench import Bench
from tests.corpus.cases import Case, Disagreement, Refusal, Refused

RESTORE, COPY = "Restore the file", "Copy"
WEIGHTS = {"whole": "model.safetensors", "adapter": "adapter_model.safetensors"}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def copied(bench: Bench) -> Path:
    """A base, a reward model and an adapter that names this base, all to be damaged."""
    shutil.copytree(bench.shop.saved, bench.folder, dirs_exist_ok=True)
    edit(bench.folder / "adapter/adapter_config.json", base_model_name_or_path=bench.path("base"))
    return bench.folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


def without(path: Path, *keys: str) -> None:
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in keys}))


def settings(path: Path, **changes: Any) -> None:
    edit(path, multi_scale={**json.loads(path.read_bytes())["multi_scale"], **changes})


def cut(path: Path, size: int = 100) -> None:
    path.write_bytes(path.read_bytes()[:-size])


def tensors(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def load(bench: Bench, form: str, **options: Any) -> Any:
    """A model by both ways to one: its class, and a reward function, which loads its tokenizer, too."""
    from toolkit import AutoModelForMultiScaleReward

    return type(AutoModelForMultiScaleReward.from_pretrained(bench.path(form), **options)).__name__


def is_found_wrong(bench: Bench, form: str) -> None:
    """Verifying must find what loading refuses."""
    try:
        bench.command("verify", bench.path(form))
    except Refusal as refusal:
        if refusal.status == 1:
            return
        raise
    raise Disagreement(f"`verify` finds nothing wrong with '{form}'.")


def damaged(
    name: str, form: str, harm: Callable[[Path], Any], found: str, remedy: str, verify: bool = True, **options: Any
) -> Case:
    """A folder to which something has been done since it was saved."""

    def given(bench: Bench) -> None:
        harm(copied(bench))

    def act(bench: Bench) -> Any:
        if verify:
            is_found_wrong(bench, form)
        return load(bench, form, **options)

    return Case(f"{form}: {name}", act, Refused(found, remedy), given)


def whole(name: str, file: str, harm: Callable[[Path], Any], found: str, remedy: str) -> Case:
    return damaged(name, "whole", lambda work: harm(work / "whole" / file), found, remedy)


def adapter(name: str, file: str, harm: Callable[[Path], Any], found: str, remedy: str) -> Case:
    return damaged(name, "adapter", lambda work: harm(work / "adapter" / file), found, remedy)


def damages(form: str) -> list[Case]:
    """What may happen to the weights and the record of either form."""
    make = whole if form == "whole" else adapter
    file = WEIGHTS[form]
    return [
        make("weights cut short", file, cut, f"{file}' is cut short", COPY),
        make("weights of which half is left", file, lambda p: cut(p, p.stat().st_size // 2), "is cut short", COPY),
        make("weights that are empty", file, lambda p: p.write_bytes(b""), f"{file}' is damaged or cut short", COPY),
        make("zeros for weights", file, lambda p: p.write_bytes(bytes(p.stat().st_size)), "is", COPY),
        make("a pointer for weights", file, lambda p: p.write_bytes(POINTER), f"{file}' is damaged", COPY),
        make("bytes after the weights", file, lambda p: p.write_bytes(p.read_bytes() + b"\n"), "is damaged", COPY),
        make("no weights", file, Path.unlink, f"lacks {file}", "Copy the folder again"),
        make(
            "other weights",
            file,
            lambda p: tensors(p, lambda found: {key: value * 1.01 for key, value in found.items()}),
            "is not the file that was saved: it has other weights",
            "Copy the folder again",
        ),
        make(
            "weights without one of the head",
            file,
            lambda p: tensors(p, lambda found: {k: v for k, v in found.items() if not k.endswith("score.segment")}),
            "lack score.segment, which would be random",
            "Take the folder that",
        ),
        make("a record cut short", "prefscale.json", cut, "prefscale.json' cannot be read", RESTORE),
        make(
            "an empty record", "prefscale.json", lambda p: p.write_text("{}"), "prefscale.json' is damaged", "Restore"
        ),
        make(
            "a list as record", "prefscale.json", lambda p: p.write_text("[]"), "holds a list and no settings", RESTORE
        ),
        make("a later record", "prefscale.json", lambda p: edit(p, head=7), "prefscale.json' is damaged", "Restore"),
    ]


WHOLE = [
    whole("settings cut short", "config.json", cut, "config.json' cannot be read", RESTORE),
    whole(
        "settings that are empty", "config.json", lambda p: p.write_text(""), "config.json' cannot be read", RESTORE
    ),
    whole("settings as a list", "config.json", lambda p: p.write_text("[]"), "holds a list and no settings", RESTORE),
    whole("no settings", "config.json", Path.unlink, "config.json' cannot be read", RESTORE),
    whole(
        "another context",
        "config.json",
        lambda p: settings(p, context="none"),
        "`multi_scale.context` is 'none'",
        RESTORE,
    ),
    whole(
        "a scale less",
        "config.json",
        lambda p: settings(p, scales=["token", "response"]),
        "`multi_scale.scales` is",
        RESTORE,
    ),
    whole(
        "a scale that is not known",
        "config.json",
        lambda p: settings(p, scales=["word"]),
        "`multi_scale.scales` is ['word']",
        RESTORE,
    ),
    whole(
        "scales as text",
        "config.json",
        lambda p: settings(p, scales="token"),
        "`multi_scale.scales` is 'token'",
        RESTORE,
    ),
    whole("a setting of its own", "config.json", lambda p: settings(p, depth=3), "`multi_scale.depth` is 3", RESTORE),
    whole(
        "other marker ids",
        "config.json",
        lambda p: settings(p, response_marker_ids=[9]),
        "`multi_scale.response_marker_ids` is [9]",
        RESTORE,
    ),
    whole(
        "text as marker ids",
        "config.json",
        lambda p: settings(p, response_marker_ids="x"),
        "`multi_scale.response_marker_ids` is 'x'",
        RESTORE,
    ),
    whole(
        "another width", "config.json", lambda p: edit(p, hidden_size=64), "`hidden_size` is 64 and was 32", RESTORE
    ),
    whole(
        "another vocabulary",
        "config.json",
        lambda p: edit(p, vocab_size=500),
        "`vocab_size` is 500 and was 400",
        RESTORE,
    ),
    whole(
        "an epsilon of its own",
        "config.json",
        lambda p: edit(p, rms_norm_eps=0.1),
        "`rms_norm_eps` is 0.1 and was",
        RESTORE,
    ),
    whole(
        "another architecture",
        "config.json",
        lambda p: edit(p, model_type="llama"),
        "`model_type` is 'llama'",
        RESTORE,
    ),
    whole(
        "an architecture nobody knows",
        "config.json",
        lambda p: edit(p, model_type="qwen99"),
        "`model_type` is 'qwen99'",
        RESTORE,
    ),
    whole(
        "no head in its settings",
        "config.json",
        lambda p: without(p, "multi_scale"),
        "`multi_scale.annotators` is None",
        RESTORE,
    ),
    damaged(
        "a stock class saved it again",
        "whole",
        lambda work: saved_by_a_stock_class(work / "whole"),
        "lack score.gate",
        "Take the folder that",
    ),
    damaged(
        "weights that are no numbers",
        "whole",
        lambda work: tensors(work / "whole/model.safetensors", lambda found: {k: v / 0 for k, v in found.items()}),
        "it has other weights",
        "Copy the folder again",
    ),
]
ADAPTERS = [
    adapter("settings of LoRA cut short", "adapter_config.json", cut, "adapter_config.json' cannot be read", RESTORE),
    adapter("another rank", "adapter_config.json", lambda p: edit(p, r=8), "`r` is 8 and was 4", RESTORE),
    adapter(
        "another scale", "adapter_config.json", lambda p: edit(p, lora_alpha=64), "`lora_alpha` is 64 and was", RESTORE
    ),
    adapter(
        "other layers",
        "adapter_config.json",
        lambda p: edit(p, target_modules=["q_proj"]),
        "`target_modules` is",
        RESTORE,
    ),
    adapter(
        "a kind nobody knows",
        "adapter_config.json",
        lambda p: edit(p, peft_type="MORA"),
        "`peft_type` is 'MORA'",
        RESTORE,
    ),
    adapter("no kind", "adapter_config.json", lambda p: without(p, "peft_type"), "`peft_type` is None", RESTORE),
    adapter(
        "settings of the head missing",
        "multi_scale.json",
        Path.unlink,
        "lacks multi_scale.json",
        "Copy the folder again",
    ),
    adapter("settings of the head cut", "multi_scale.json", cut, "multi_scale.json' cannot be read", RESTORE),
    adapter(
        "another context",
        "multi_scale.json",
        lambda p: edit(p, context="head"),
        "`context` is 'head' and was 'gate'",
        RESTORE,
    ),
    damaged(
        "a base that has gone",
        "adapter",
        lambda w: shutil.rmtree(w / "base"),
        "there is no such folder",
        "Put it back",
    ),
    damaged(
        "a base that is empty",
        "adapter",
        lambda w: [file.unlink() for file in (w / "base").iterdir()],
        "is not that model any more",
        "Put back the base",
    ),
    damaged(
        "a base that was trained since",
        "adapter",
        lambda w: tensors(w / "base/model.safetensors", lambda found: {k: v * 1.01 for k, v in found.items()}),
        "is not that model any more: model.safetensors is another",
        "Put back the base",
    ),
    damaged(
        "another base by its name",
        "adapter",
        lambda w: edit(w / "adapter/adapter_config.json", base_model_name_or_path=str(w / "whole")),
        "is not that model any more",
        "Put back the base",
    ),
    damaged(
        "no base in its settings",
        "adapter",
        lambda w: edit(w / "adapter/adapter_config.json", base_model_name_or_path=None),
        "there is no such folder",
        "name where it is as `base_model_name_or_path`",
    ),
    damaged("settings of the base cut", "adapter", lambda w: cut(w / "base/config.json"), "config.json", RESTORE),
]


def saved_by_a_stock_class(folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).save_pretrained(folder)


CASES = [*damages("whole"), *damages("adapter"), *WHOLE, *ADAPTERS]
