"""
The recipes, from their command lines: the whole loop at a small size, under `accelerate launch` where that is what a
test is about, and else in this process.
"""

import html
import json
import re
import runpy
import sys

import pytest

from tests.helpers import ROOT, run_python
from toolkit.sandbox.rows import HELD_OUT_SEED, sample_pairs


def launch(recipe, *arguments, folder, processes=1):
    options = ["--config_file", ROOT / "deepspeed_configs" / "cpu_two_processes.yaml"]
    if processes == 1:
        options = ["--cpu", "--num_processes", "1", "--num_machines", "1"]
        options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    command = ["-m", "accelerate.commands.launch", *options, ROOT / "recipes" / f"{recipe}.py", *arguments]
    done = run_python(*command, cwd=folder)
    # Several processes now and then abort while the interpreter exits, with everything saved: what they wrote counts.
    assert done.returncode == 0 or processes > 1, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def run_here(demo, monkeypatch):
    """Runs a recipe in this process, as a script, in the folder of the demo's models; returns that folder."""
    monkeypatch.chdir(demo[0])

    def run(recipe, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *map(str, arguments)])
        runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"), run_name="__main__")
        return demo[0]

    return run


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    sizes = {"pairs": 64, "test_size": 24, "sft_steps": 3, "reinforce_steps": 2}
    out = launch("demo", *(word for name, size in sizes.items() for word in (f"--{name}", size)), folder=folder)
    return folder, out


def test_the_demo_leaves_models_metrics_and_a_page(demo):
    folder, out = demo
    run = folder / "runs" / "demo"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["reward_model"]["eval_pairs"] == 24
    assert len(metrics["log"]) == 2
    page = (run / "report" / "index.html").read_text()
    # what the judge says of held-out prompts stands in the curve of its reward, and the texts beside each other
    curve = page.partition('alt="Reward by gold_judge by step: ')[2].partition('"')[0]
    assert re.fullmatch(r"training prompts from .* to .*, held-out prompts from .* to .*\.", curve)
    assert all(row["after"].strip() in html.unescape(page) for row in metrics["policy"]["examples"])
    assert all((run / model / "model.safetensors").exists() for model in ("start", "reward", "policy"))
    assert all(name in out for name in ("token", "segment", "response", "mix", "longer wins", "win rate"))


def test_the_loop_of_rounds_goes_on_where_it_stopped_with_more_processes(demo, run_here):
    folder, _ = demo
    for name, steps in (("reward", 2), ("reinforce", 1)):
        text = (ROOT / "recipes" / "configs" / f"sandbox_joint_{name}.yaml").read_text()
        lines = [line for line in text.splitlines() if not line.startswith(("max_steps", "num_train_epochs"))]
        (folder / f"{name}.yaml").write_text("\n".join([*lines, f"max_steps: {steps}", ""]))
    arguments = ["--config", ROOT / "recipes" / "configs" / "sandbox_joint.yaml", "--train_size", 32]
    arguments += ["--eval_size", 16, "--pairs_per_round", 24, "--max_new_tokens", 8]
    arguments += ["--reward_config", "reward.yaml", "--reinforce_config", "reinforce.yaml"]
    run_here("train_jointly", *arguments, "--rounds", 1)
    first = folder / "runs" / "joint" / "round-1"
    written = (first / "reward" / "model.safetensors").stat().st_mtime_ns
    (folder / "runs" / "joint" / "run.lock").unlink()  # the first run was in this very process, which lives on
    out = launch("train_jointly", *arguments, "--rounds", 2, folder=folder, processes=2)
    assert (first / "reward" / "model.safetensors").stat().st_mtime_ns == written
    assert "Round 2" in out
    accuracies = json.loads((folder / "runs" / "joint" / "round-2" / "accuracy.json").read_text())
    assert list(accuracies) == ["trained once", "before this round", "after this round"]


def test_training_and_evaluation_of_a_reward_model_agree(run_here):
    config = ROOT / "recipes" / "configs" / "sandbox_reward.yaml"
    sizes = ["--train_size", 32, "--eval_size", 30]
    folder = run_here("train_reward", "--config", config, "--output_dir", "reward", *sizes)
    trained = json.loads((folder / "reward" / "eval_results.json").read_text())
    sample_pairs(30, seed=HELD_OUT_SEED).to_json(folder / "pairs.jsonl")  # a file, all of which is evaluated
    arguments = ["--models", "reward", "--dataset_name", "pairs.jsonl", "--batch_size", 2]
    run_here("evaluate_reward", *arguments, "--output_file", "figures.json")
    evaluated = json.loads((folder / "figures.json").read_text())
    assert trained["num_processes"] == 1
    model = evaluated["models"]["reward"]
    assert model["accuracy"]["value"] == pytest.approx(trained["eval_accuracy"])
    assert model["scales"]["token"]["value"] == pytest.approx(trained["eval_accuracy/token"])
    # two processes score a block each, and give the figures of one to the last digit
    launch("evaluate_reward", *arguments, "--output_file", "of_two.json", folder=folder, processes=2)
    assert json.loads((folder / "of_two.json").read_text()) == evaluated


def test_a_judge_is_started_cold_and_goes_on(run_here):
    config = ROOT / "recipes" / "configs" / "sandbox_judge.yaml"
    arguments = ["--num_thoughts", 2, "--per_device_train_batch_size", 8, "--train_size", 16, "--save_steps", 1]
    arguments += ["--cold_start_steps", 2, "--output_dir", "judge"]
    arguments += ["--resume_from_checkpoint", "true"]
    folder = run_here("train_judge", "--config", config, *arguments, "--max_steps", 1)
    start = (folder / "judge_start" / "model.safetensors").stat().st_mtime_ns
    arguments += ["--eval_strategy", "steps", "--eval_steps", 2, "--eval_size", 2, "--per_device_eval_batch_size", 8]
    run_here("train_judge", "--config", config, *arguments, "--max_steps", 2)
    assert (folder / "judge_start" / "model.safetensors").stat().st_mtime_ns == start
    log = json.loads((folder / "judge" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "pair_loss" in entry] == [1, 2]
    assert [entry["step"] for entry in log if "eval_pair_loss" in entry] == [2]
    assert json.loads((folder / "judge" / "judge.json").read_text())["answers"] == ["sure", "no"]


def test_reinforce_runs_from_its_yaml_file(run_here):
    config = ROOT / "recipes" / "configs" / "sandbox_reinforce.yaml"
    arguments = ["--per_device_train_batch_size", 8, "--train_size", 16, "--save_steps", 1]
    # one command line that begins where there is nothing, and goes on where there is a checkpoint
    arguments += ["--output_dir", "policy", "--resume_from_checkpoint", "true"]
    folder = run_here("train_reinforce", "--config", config, *arguments, "--max_steps", 2)
    assert (folder / "policy" / "model.safetensors").exists()
    (folder / "policy" / "checkpoint-2" / "manifest.json").unlink()  # as if it had died in that save
    arguments += ["--eval_strategy", "steps", "--eval_steps", 3, "--eval_size", 4, "--per_device_eval_batch_size", 4]
    run_here("train_reinforce", "--config", config, *arguments, "--max_steps", 3)
    log = json.loads((folder / "policy" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "reward" in entry] == [1, 2, 3]
    assert [entry["step"] for entry in log if "eval_reward" in entry] == [3]
    assert log[-1]["train_runtime"] > 0
