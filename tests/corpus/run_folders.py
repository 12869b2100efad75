"""Folders of runs, their locks and their checkpoints: used, taken, damaged, or of another run."""

import contextlib
import json
import shutil
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.corpus.bench import ON_A_CPU, Bench
from tests.corpus.cases import Accepted, Case, Refused
from tests.corpus.data_rows import TALKS

GO_ON = "Go on with it by `--resume_from_checkpoint true`"
LEFT = {"checkpoint-4/trainer_state.json": "{}", "model.safetensors": "w", "run.json": '{"a": 1}', "notes.txt": "mine"}


def claim(bench: Bench, resume: Any = None, overwrite: bool = False, name: str = "run") -> bool:
    """What a recipe does with its folder; afterwards the lock is given back, as at the end of a process."""
    from toolkit.training.run_folder import LOCK_NAME, claim_folder, delete_earlier_run

    resume = bench.path(resume) if isinstance(resume, str) and "checkpoint" in resume else resume
    claim_folder(bench.path(name), resume, overwrite)
    delete_earlier_run(bench.path(name), overwrite)
    (bench.folder / name / LOCK_NAME).unlink()
    return True


def folder(
    name: str, left: dict[str, str], expected: Refused | Accepted, destroys: tuple[str, ...] = (), **options: Any
) -> Case:
    """An output folder with what is in it."""

    def given(bench: Bench) -> None:
        for file, content in left.items():
            bench.write(f"run/{file}", content)

    return Case(name, lambda bench: claim(bench, **options), expected, given, destroys)


def lock(name: str, content: str, found: str, remedy: str) -> Case:
    return folder(name, {"run.lock": content}, Refused(found, remedy))


def held(**changes: Any) -> str:
    """A lock of the first process of this machine, which never ends."""
    import psutil

    first = psutil.Process(1)
    process = {
        "host": socket.gethostname(),
        "pid": 1,
        "started": first.create_time(),
        "launcher": None,
        "command": "x",
    }
    return json.dumps({"processes": [process | changes]})


WORKS = Accepted(value=True)
LOCKS = [
    lock("a lock that is empty", "", "run.lock' is no lock that can be read", "Delete it if no run"),
    lock("a lock cut short", '{"processes": [{"host"', "run.lock' is no lock that can be read", "Delete it if no run"),
    lock("a lock of another program", "12345\n", "run.lock' is no lock that can be read", "Delete it if no run"),
    lock(
        "a lock without processes", '{"processes": 3}', "run.lock' is no lock that can be read", "Delete it if no run"
    ),
    lock("a run at work", held(), "is taken by process 1, a run at work", "give another `output_dir`"),
    lock("a run on another machine", held(host="node-9"), "is taken by a run on node-9", "Wait for it, or delete"),
    folder("a lock of a run that died", {"run.lock": held(pid=2**22 + 5, started=1.0)}, WORKS, ("run.lock",)),
    folder("a lock of a process of before", {"run.lock": held(started=1.0)}, WORKS, ("run.lock",)),
]
USED = [
    folder("a run in the folder", LEFT, Refused("holds a run (checkpoint-4, model.safetensors, run.json)", GO_ON)),
    folder(
        "weights alone in the folder", {"model.safetensors": "w"}, Refused("holds a run (model.safetensors)", GO_ON)
    ),
    folder(
        "an adapter in the folder", {"adapter_config.json": "{}"}, Refused("holds a run (adapter_config.json)", GO_ON)
    ),
    folder("other files in the folder", {"notes.txt": "mine", "data.csv": "a"}, WORKS),
    folder("a run that shall go on", LEFT, WORKS, resume=True),
    folder("a run that goes on from a checkpoint", LEFT, WORKS, resume="run/checkpoint-4"),
    folder("a checkpoint of another folder", LEFT, Refused("holds a run", GO_ON), resume="elsewhere/checkpoint-4"),
    folder(
        "one that shall be deleted",
        LEFT,
        WORKS,
        ("trainer_state.json", "model.safetensors", "run.json"),
        overwrite=True,
    ),
    folder(
        "one that shall be deleted and go on",
        LEFT,
        Refused("`overwrite_output_dir` deletes what `resume_from_checkpoint` goes on from", "Leave out one of them"),
        resume=True,
        overwrite=True,
    ),
    folder(
        "weights alone that shall go on",
        {"model.safetensors": "w"},
        Refused("holds a trained model ('model.safetensors') and no checkpoint", "Give another `output_dir`"),
        resume=True,
    ),
    Case(
        "a file in place of the folder",
        lambda bench: claim(bench),
        Refused("run' is a file", "Give another `output_dir`"),
        lambda bench: bench.write("run", "mine"),
    ),
    Case(
        "a file in place of a folder above it",
        lambda bench: claim(bench, name="file/run"),
        Refused("file", "Give another `output_dir`"),
        lambda bench: bench.write("file", "mine"),
    ),
]


def train(bench: Bench, *words: str) -> Any:
    """The recipe of a reward model, up to its end."""
    from toolkit.jobs.reward import main

    options = ["--output_dir", bench.path("run"), "--model_name_or_path", bench.shop.causal(), "--max_steps", "1"]
    options += ["--dataset_name", bench.path("pairs.jsonl"), "--eval_dataset_name", bench.path("pairs.jsonl")]
    with contextlib.chdir(bench.folder):
        return bench.recipe("train_reward", *ON_A_CPU, *options, *words, main=main)


def mistaken(name: str, words: list[str], found: str, remedy: str, rows: Any = TALKS) -> Case:
    """A mistake that is found when a run that shall be deleted is in the folder: nothing of it may go."""

    def given(bench: Bench) -> None:
        bench.write("pairs.jsonl", rows)
        for file, content in LEFT.items():
            bench.write(f"run/{file}", content)

    def act(bench: Bench) -> Any:
        try:
            return train(bench, "--overwrite_output_dir", "true", *words)
        finally:
            (bench.folder / "run/run.lock").unlink(missing_ok=True)

    return Case(f"to be deleted, but {name}", act, Refused(found, remedy), given)


MISTAKEN = [
    mistaken("no data", ["--dataset_name", "absent.jsonl"], "There is no file or folder 'absent.jsonl'", "Correct"),
    mistaken(
        "wrong data", [], "row 1, column 'chosen': found null", "Write text", [{"chosen": None, "rejected": "b"}]
    ),
    mistaken("no data named", ["--eval_dataset_name", "absent"], "Cannot load 'absent'", "Correct the name"),
    mistaken("no model", ["--model_name_or_path", "./absent"], "There is no folder './absent' (model)", "Correct"),
    mistaken(
        "a model of another kind", ["--model_name_or_path", "pairs.jsonl"], "pairs.jsonl' (model) is a file", "Give"
    ),
    mistaken(
        "too few pairs", ["--dataloader_drop_last", "true"], "leaves none of the 4 pairs", "make batches smaller"
    ),
    mistaken("a tracker nobody knows", ["--report_to", "wandbb"], "wandbb is not supported", "wandb"),
    mistaken("attention nobody knows", ["--attn_implementation", "flash"], "flash", "attn_implementation"),
    mistaken("no rank", ["--use_peft", "--lora_r", "0"], "`lora_r` is 0", "of at least 1"),
    mistaken("a negative scale", ["--use_peft", "--lora_alpha", "-1"], "`lora_alpha` is -1", "above 0"),
    mistaken("a share above 1", ["--use_peft", "--lora_dropout", "2"], "`lora_dropout` is 2.0", "between 0 and 1"),
    mistaken(
        "a layer nobody has",
        ["--use_peft", "--lora_target_modules", "qproj"],
        "`target_modules` names ['qproj']",
        "Name some of",
    ),
    mistaken("rows too short", ["--max_length", "4"], "row 1, column 'chosen': a response of", "Raise `max_length`"),
]


def late(name: str, words: list[str], found: str, remedy: str, unclear: str) -> Case:
    """A mistake that Transformers finds when the training has begun."""

    def act(bench: Bench) -> Any:
        try:
            return train(bench, *words)
        finally:
            (bench.folder / "run/run.lock").unlink(missing_ok=True)

    def given(bench: Bench) -> None:
        bench.write("pairs.jsonl", TALKS)

    return Case(f"when it has begun: {name}", act, Refused(found, remedy), given, unclear=unclear)


EVERY_STEP = ["--eval_strategy", "steps", "--eval_steps", "1", "--save_steps", "1", "--load_best_model_at_end", "true"]
LATE = [
    late(
        "arguments of the optimizer that are none",
        ["--optim_args", "nothing"],
        "optim_args",
        "Give",
        "Transformers takes them apart when it makes the optimizer, and names neither option nor value",
    ),
    late(
        "arguments of the schedule that it has not",
        ["--lr_scheduler_kwargs", '{"slope": 1}'],
        "lr_scheduler_kwargs",
        "Give",
        "a function of Transformers is called with them, which ends in a traceback",
    ),
    late(
        "a figure to choose by that is not measured",
        ["--metric_for_best_model", "eval_beauty", *EVERY_STEP],
        "metric_for_best_model",
        "Consider changing",
        "Transformers looks for it after the first evaluation, and its message, which names it, ends a traceback",
    ),
]


def checkpoints(bench: Bench) -> Path:
    """A run with two checkpoints; its trainer is the shop's."""
    trainer = bench.shop.reward_trainer
    shutil.copytree(bench.shop.folder / "run", bench.folder / "run")
    trainer.args.output_dir = bench.path("run")
    return bench.folder / "run"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damaged(harm: Callable[[Path], Any]) -> Callable[[Bench], None]:
    return lambda bench: harm(checkpoints(bench) / "checkpoint-2")


def resume(bench: Bench, name: str = "run/checkpoint-2") -> Any:
    """Going on from a checkpoint."""
    return bench.shop.reward_trainer.train(resume_from_checkpoint=bench.path(name)).global_step


def half(name: str, harm: Callable[[Path], Any], found: str) -> Case:
    """A checkpoint that is not what was saved."""
    remedy = "Resume with `resume_from_checkpoint=True`"
    return Case(f"a checkpoint: {name}", resume, Refused(f"is not complete: {found}", remedy), damaged(harm))


def last(name: str, harm: Callable[[Path], Any], said: str) -> Case:
    """One of two checkpoints that is passed over, and the other one that is gone on from."""

    def act(bench: Bench) -> str:
        from toolkit.training.manifests import last_complete_checkpoint

        return Path(last_complete_checkpoint(bench.path("run")) or "").name

    said = f"checkpoint-2' is not complete and is passed over: {said}"
    return Case(f"the last checkpoint: {name}", act, Accepted(said, "checkpoint-1"), damaged(harm))


def without_checkpoints(bench: Bench) -> None:
    for path in checkpoints(bench).glob("checkpoint-*"):
        shutil.rmtree(path)


def resume_last(bench: Bench) -> Any:
    return bench.shop.reward_trainer.train(resume_from_checkpoint=True).global_step


STATE, MODEL = "trainer_state.json", "model.safetensors"
RESUMED = [
    half("without its manifest", lambda p: (p / "manifest.json").unlink(), "it has no manifest.json"),
    half(
        "with a manifest cut short", lambda p: (p / "manifest.json").write_text('{"files": {'), "its manifest.json is"
    ),
    half("with weights cut short", lambda p: (p / MODEL).write_bytes(b"w"), f"its file {MODEL} has 1 bytes instead"),
    half("with another bit", lambda p: flip(p / MODEL), f"its file {MODEL} has changed since it was saved"),
    half("without its optimizer", lambda p: (p / "optimizer.pt").unlink(), "its file optimizer.pt is gone"),
    half("with an edited state", lambda p: (p / STATE).write_text("{}"), f"its file {STATE} has 2 bytes instead"),
    half("that has gone", shutil.rmtree, "there is no such folder"),
    last("without its manifest", lambda p: (p / "manifest.json").unlink(), "it has no manifest.json"),
    last("with another bit in its optimizer", lambda p: flip(p / "optimizer.pt"), "its file optimizer.pt has changed"),
    last("with an empty manifest", lambda p: (p / "manifest.json").write_text(""), "its manifest.json is damaged"),
    last("without its random state", lambda p: next(p.glob("rng*")).unlink(), "its file rng_state.pth is gone"),
    last("as an empty folder", lambda p: (shutil.rmtree(p), p.mkdir()), "it has no manifest.json"),
    Case(
        "no checkpoint to go on from",
        resume_last,
        Refused("No complete checkpoint found", "Start without"),
        without_checkpoints,
    ),
    Case(
        "a file as a checkpoint",
        lambda b: resume(b, "run/file"),
        Refused("there is no such folder", "Resume with"),
        lambda b: (checkpoints(b) / "file").touch(),
    ),
]


def weights_alone(folder: Path) -> None:
    from toolkit.training.manifests import write_manifest

    for path in folder.glob("resume_state_*"):
        path.unlink()
    write_manifest(folder)


def with_fingerprint(folder: Path, text: str) -> None:
    from toolkit.training.manifests import write_manifest

    (folder / "fingerprint.json").write_text(text)
    write_manifest(folder)


def then(**changes: Any) -> Callable[[Bench], None]:
    """What the run of a checkpoint had, in place of what this one has."""

    def harm(folder: Path) -> None:
        content = json.loads((folder / "fingerprint.json").read_text())
        for key, value in changes.items():
            content[key] = {**content[key], **value}
        with_fingerprint(folder, json.dumps(content))

    return damaged(harm)


NEW_RUN = "Resume with what that run had, or begin a new one in another `output_dir`"
OTHER_MODEL = {"model": {"name": "gpt2", "config": "0", "weights": "0"}}
OF_ANOTHER = [
    Case(
        "a checkpoint of weights alone",
        resume,
        Refused("holds weights alone", "Load it as a model"),
        damaged(weights_alone),
    ),
    Case(
        "other rows", resume, Refused("was trained on other data (other 24 rows)", NEW_RUN), then(data={"sha256": "0"})
    ),
    Case("more rows", resume, Refused("(99 rows then, 24 now)", NEW_RUN), then(data={"rows": 99, "sha256": "0"})),
    Case("another model", resume, Refused("another model ('gpt2' then", NEW_RUN), then(models=OTHER_MODEL)),
    Case(
        "a reward model less",
        resume,
        Refused("only one of the two runs has a reward", NEW_RUN),
        then(models={"reward model 1": {}}),
    ),
    Case(
        "other options",
        resume,
        Accepted("with other options: learning_rate 0.5 →", 2),
        then(options={"learning_rate": 0.5}),
    ),
    Case(
        "a fingerprint cut short",
        resume,
        Refused("fingerprint.json' is damaged", "Resume from another"),
        damaged(partial(with_fingerprint, text="{")),
    ),
    Case(
        "a fingerprint without its parts",
        resume,
        Refused("fingerprint.json' is damaged", "Resume from another"),
        damaged(partial(with_fingerprint, text="{}")),
    ),
]


def save_over(bench: Bench) -> str:
    """A checkpoint of a step that is there already, and cannot be proven whole."""
    from toolkit.training.manifests import begin_manifest

    begin_manifest(bench.folder / "run/checkpoint-2")
    return ", ".join(sorted(path.name for path in (bench.folder / "run").glob("*checkpoint-*")))


KEPT = "checkpoint-1, checkpoint-2, unproven-checkpoint-2"
SAVED = [
    Case(f"a save over a checkpoint {name}", save_over, Accepted("Moved to", KEPT), damaged(harm))
    for name, harm in (
        ("without a manifest", lambda p: (p / "manifest.json").unlink()),
        ("whose weights are gone", lambda p: (p / MODEL).unlink()),
        ("whose manifest is damaged", lambda p: (p / "manifest.json").write_text("[]")),
    )
]
CASES = [*LOCKS, *USED, *MISTAKEN, *LATE, *RESUMED, *OF_ANOTHER, *SAVED]
