"""Kill training runs, or tell them to stop, and let them go on: `python -m tests.launch.kills`.

Every case is run once undisturbed. Then all its processes are killed with `kill -9`, at a random moment or in the
middle of a save, and in another run the first process is sent SIGTERM or SIGINT, in four cases within a save. Each
time the run is started again with the last complete checkpoint. Prints what was lost and how far the final weights lie
from the undisturbed ones. Results go into `--work` as they come; what is there is not run again.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from tests.launch.backends import prepare, specification, start
from toolkit.pages.tables import print_table
from toolkit.training.manifests import MANIFEST_NAME, what_is_missing

STEPS = 16
# Saves in the middle of a generation's use, after 5 and 15 steps with the one, after 3, 9 and 15 with the other.
SEVERAL_STEPS = {"steps_per_generation": 4, "num_generations": 2, "baseline": "leave_one_out", "save_steps": 5}
TWO_PASSES = {"steps_per_generation": 2, "num_iterations": 2, "gradient_accumulation_steps": 2}
# Saves after 3, 9 and 15 steps, in the middle of a generation's use
JUDGED_TWICE = {"steps_per_generation": 2, "gradient_accumulation_steps": 1, "swap_answers": True}
# trainer, adapter, stage, processes, further options
CASES = {
    "reward-full": ("reward", "none", "ddp", 1, {"gradient_accumulation_steps": 2}),
    "reward-lora": ("reward", "lora", "ddp", 1, {}),
    "reward-qlora": ("reward", "qlora", "ddp", 1, {}),
    "reinforce-full": ("reinforce", "none", "ddp", 1, {"baseline": "moving_average"}),
    "reinforce-lora": ("reinforce", "lora", "ddp", 1, SEVERAL_STEPS),
    "reinforce-qlora": ("reinforce", "qlora", "ddp", 1, TWO_PASSES),
    "reward-qlora-2": ("reward", "qlora", "ddp", 2, {}),
    "reward-lora-zero2-2": ("reward", "lora", "zero2", 2, {}),
    "reinforce-lora-2": ("reinforce", "lora", "ddp", 2, SEVERAL_STEPS),
    "reinforce-qlora-zero3-2": ("reinforce", "qlora", "zero3", 2, TWO_PASSES),
    "judge-full": ("judge", "none", "ddp", 1, JUDGED_TWICE),
    "judge-lora-2": ("judge", "lora", "ddp", 2, JUDGED_TWICE),
}
# The four cases whose signal comes in the middle of a save; every second signal is SIGINT
IN_A_SAVE = ("reward-full", "reward-lora", "reinforce-full", "reinforce-lora-2")
# A shell says 143 of either; the second is of a signal behind the last step, when the handlers are given back
STATUS = {"SIGTERM": ("143", "-15"), "SIGINT": ("130",)}
TIMES = ("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")
NOT_COMPARED = (*TIMES, "total_flos")  # Transformers' estimate, whose last digits hang on how often it was summed


def spec_of(work: Path, name: str, case: str) -> dict:
    trainer, adapter, _, processes, more = CASES[case]
    options = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 2}
    # Of a constant rate, so that a step too many shows.
    options |= {"lr_scheduler_type": "constant", "learning_rate": 1e-3, **more}
    spec = specification(work, name, trainer, adapter, processes, logging_steps=2, **options)
    return {**spec, "pairs": str(work / "few_pairs.jsonl"), "resume": True}


def finish(work: Path, name: str, case: str) -> dict:
    """Run a case to its end, from its last complete checkpoint if it has one."""
    _, _, stage, processes, _ = CASES[case]
    file = work / f"{name}.result-0.json"
    start(work, stage, processes, name, spec_of(work, name, case)).wait()
    if not file.is_file():
        raise RuntimeError(f"{name} wrote no result:\n{(work / f'{name}.log').read_text()[-3000:]}")
    return json.loads(file.read_text())


def complete(folder: Path) -> list[str]:
    found = [path.name for path in folder.glob("checkpoint-*") if what_is_missing(path) is None]
    return sorted(found, key=lambda name: int(name.rpartition("-")[2]))


def disturbances(case: str) -> list[tuple[str, str]]:
    """What is done to a case, and when."""
    number = "SIGINT" if list(CASES).index(case) % 2 else "SIGTERM"
    of_signal = "in a save" if case in IN_A_SAVE else "at random"
    return [("kill", "at random"), ("kill", "in a save"), (number, of_signal)]


def disturb(
    process: subprocess.Popen, folder: Path, how: str, moment: str, save_steps: int, rng: random.Random
) -> tuple[str, int]:
    """Wait for the moment, then end the run; returns what was under way, and the exit status."""
    # In the first save of all there is nothing to go on from; at random that would only be so by bad luck.
    first = save_steps if moment == "in a save" else 2 * save_steps
    target = folder / f"checkpoint-{rng.choice(range(first, STEPS, save_steps))}"
    while not target.exists() and process.poll() is None:
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.02 if moment == "in a save" else 0.5))
    if how == "kill":
        launcher = psutil.Process(process.pid)
        for one in [*launcher.children(recursive=True), launcher]:  # the launcher gives every worker its own session
            one.kill()
    else:
        process.send_signal(getattr(signal, how))
    process.wait()
    half = sorted(path.name for path in folder.glob("checkpoint-*") if not (path / MANIFEST_NAME).exists())
    return ", ".join(half), process.returncode


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = [*folder.glob("model.safetensors"), *folder.glob("adapter_model.safetensors")]
    return load_file(file)


def worst_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max((first[key].double() - second[key].double()).abs().max().item() for key in first)


def same_log(first: dict, second: dict) -> bool:
    """Whether everything but the times was logged alike."""
    strip = [
        [{k: v for k, v in entry.items() if k not in NOT_COMPARED} for entry in run["log"]] for run in (first, second)
    ]
    return strip[0] == strip[1]


def disturbed_row(work: Path, name: str, case: str, how: str, moment: str, rng: random.Random) -> tuple:
    """Run a case, end it, let it go on, and compare it with the undisturbed one."""
    shutil.rmtree(work / name, ignore_errors=True)
    _, _, stage, processes, _ = CASES[case]
    spec = spec_of(work, name, case)
    process = start(work, stage, processes, name, spec)
    half, status = disturb(process, work / name, how, moment, spec["options"]["save_steps"], rng)
    kept = complete(work / name)
    resumed = finish(work, name, case)
    difference = worst_difference(weights(work / name), weights(work / case))
    said = Path(resumed["resumed_from"] or "the beginning").name
    log = "same" if same_log(json.loads((work / f"{case}.result-0.json").read_text()), resumed) else "differs"
    return case, f"{how} {moment}", half or "-", ", ".join(kept), said, f"{difference:.0e}", log, str(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/kills"), help="folder for models and results")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    work = args.work.resolve()
    prepare(work)
    rng, rows, failed = random.Random(args.seed), [], False
    for case in args.cases:
        undisturbed = work / f"{case}.result-0.json"
        if not undisturbed.is_file():
            shutil.rmtree(work / case, ignore_errors=True)  # or it would go on from what an interrupted command left
            finish(work, case, case)
        for how, moment in disturbances(case):
            name = f"{case}-{how}-{moment.replace(' ', '-')}-{args.seed}"
            if not (work / f"{name}.row.json").is_file():
                row = disturbed_row(work, name, case, how, moment, rng)
                (work / f"{name}.row.json").write_text(json.dumps(row))
            rows.append(json.loads((work / f"{name}.row.json").read_text()))
            print(*rows[-1], sep=" | ", flush=True)
            bound = 0 if CASES[case][3] == 1 else 1e-6
            _, _, half, kept, said, difference, log, status = rows[-1]
            last = kept.split(", ")[-1] or "the beginning"
            failed |= float(difference) > bound or log != "same" or said != last
            # A launcher has a status of its own, and nothing is half written where there was time
            failed |= how != "kill" and (half != "-" or (CASES[case][3] == 1 and status not in STATUS[how]))
    header = ("run", "ended", "half written", "complete", "resumed from", "difference", "log", "exit")
    print_table("Killed and resumed, against the undisturbed run", header, rows)
    sys.exit(failed)


if __name__ == "__main__":
    main()
