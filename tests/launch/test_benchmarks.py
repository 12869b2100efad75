"""Arms of a benchmark, each in a process of its own."""

import json
import math

import pytest

from tests.helpers import load_recipe
from toolkit.experiments.benchmarks.reward import TrainingBenchmarkArguments
from toolkit.experiments.benchmarks.rounds import measure


def test_an_arm_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"(?s)Arm 'broken' failed.*TypeError: must be real number, not Turns"):
        measure({"broken": (math.sqrt, ())}, rounds=1, threads=1)


def test_the_recipe_measures_two_arms_and_compares_losses(tmp_path, capsys):
    recipe = load_recipe("experiments/benchmark_reward")
    sizes = {"hidden_size": 32, "layers": 1, "vocab_size": 400, "train_size": 12, "batch_size": 4, "check_steps": 3}
    names = ["TRL, group_by_length", "ours"]
    recipe.main(TrainingBenchmarkArguments(**sizes, arms=names, warmup_steps=1, rounds=2, output_dir=str(tmp_path)))
    results = json.loads((tmp_path / "training.json").read_text())
    assert list(results["arms"]) == names
    theirs, ours = results["arms"].values()
    assert [r["items"] for r in theirs["rounds"] + ours["rounds"]] == [12] * 4
    # the same pairs in every round, whatever the order, and each prompt once instead of twice
    assert len({r["real_tokens"] for r in theirs["rounds"]}) == len({r["real_tokens"] for r in ours["rounds"]}) == 1
    assert ours["real_tokens"] < theirs["real_tokens"]
    assert all(len(side) == 3 for check in results["checks"].values() for side in check["losses"])
    assert all(check["difference"] < recipe.TOLERANCE for check in results["checks"].values())
    printed = capsys.readouterr().out
    assert all(text in printed for text in ["Reward training, cpu, float32, threads 1", *names, *recipe.CHECKS])
    with pytest.raises(ValueError, match=r"`arms` names \['theirs'\]"):
        recipe.main(TrainingBenchmarkArguments(arms=["theirs"]))
