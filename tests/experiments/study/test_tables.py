"""Tables of a study against figures worked by hand, from cells written as the study writes them."""

import math

import pytest
import torch

from toolkit import sandbox
from toolkit.experiments.study.grid import Study
from toolkit.experiments.study.real import RealStudy, real_name
from toolkit.experiments.study.sandbox import SandboxStudy, policy_name, reward_name, start_name
from toolkit.experiments.study.tables import (
    REFITTED,
    WINDOW,
    ablation_table,
    by_prompt,
    convergence_steps,
    instability_table,
    main_table,
    real_table,
    refitted_gaps,
    size_table,
    task_table,
)
from toolkit.training.run_record import write_json

BASELINE = "none+prefix"


def put(study, name, **result):
    write_json(study.folder / "cells" / f"{name}.json", {"result": result})


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path, SandboxStudy(seeds=[1, 2], table_size=10, curve_sizes=[10], test_pairs=4, ablations=[]))


def test_accuracy_and_its_paired_difference_by_hand(study):
    for seed, gaps in ((1, [1.0, -1.0, 2.0, 0.0]), (2, [1.0, 1.0, 2.0, -3.0])):  # 2.5 and 3 of 4 right
        put(study, reward_name("multi-scale", 10, seed), gaps=gaps)
        put(study, reward_name("simple contrast", 10, seed), gaps=[1.0, -1.0, -2.0, 0.0])  # 1.5 of 4 right
    table = main_table(study)
    assert table["multi-scale"]["accuracy"].value.value == pytest.approx(5.5 / 8)
    assert table["multi-scale"]["accuracy"].difference.value == pytest.approx(2.5 / 8)
    assert table["simple contrast"]["accuracy"].difference is None
    assert "accuracy" not in table["weighted"]  # its cells are still to come
    assert "reward score" not in table["multi-scale"]


def test_a_model_counts_only_with_all_its_seeds(study):
    put(study, reward_name("multi-scale", 10, 1), gaps=[1.0, 1.0, 1.0, 1.0])
    assert ablation_table(study) == {}


def test_accuracy_by_task_is_over_the_pairs_of_the_task(tmp_path):
    study = Study(tmp_path, SandboxStudy(seeds=[1, 2], table_size=10, test_pairs=40))
    tasks = sandbox.sample_pairs(40, sandbox.HELD_OUT_SEED)["task"]
    for seed in (1, 2):
        put(study, reward_name("weighted", 10, seed), gaps=[1.0 if task == tasks[0] else -1.0 for task in tasks])
    found = {task: estimate.value.value for task, estimate in task_table(study)["weighted"].items()}
    assert found == {task: float(task == tasks[0]) for task in sandbox.TASKS}


def test_reward_score_and_alignment_by_hand(study):
    prompts = sandbox.sample_prompts(2, sandbox.HELD_OUT_SEED)["prompt"]
    (low, high), (low2, high2) = (sandbox.gold_range(prompt) for prompt in prompts)
    for seed in (1, 2):
        put(study, start_name(seed), gold=[low, (low2 + high2) / 2])
        put(study, policy_name("unbiased", 10, seed, BASELINE), gold=[high, (low2 + high2) / 2], curve=[0.0] * 20)
    row = main_table(study)["unbiased"]
    assert row["reward score"].value.value == pytest.approx(0.75)  # best and middle
    assert row["preference alignment"].value.value == pytest.approx(0.75)  # a win and a tie


def test_refitted_weights_are_those_of_a_logistic_regression_on_the_other_half():
    generator = torch.Generator().manual_seed(0)
    gaps = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    labels = torch.rand(400, generator=generator, dtype=torch.float64) < torch.sigmoid(
        gaps @ torch.tensor([2.0, -1.0]).double()
    )
    gaps = torch.where(labels[:, None], gaps, -gaps)  # chosen less rejected
    weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14)

    def loss():
        optimizer.zero_grad()
        value = -torch.nn.functional.logsigmoid(gaps[1::2] @ weights).mean() + 1e-4 * (weights**2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    torch.testing.assert_close(refitted_gaps(gaps)[::2], (gaps[::2] @ weights).detach(), rtol=1e-5, atol=1e-5)


def test_a_refitted_mix_finds_the_scale_that_ranks_right(study):
    gaps = [[1.0] * 8, [-3.0, -3.0, 3.0, 3.0] * 2]  # the first scale is right, the second knows nothing
    for seed in (1, 2):
        put(study, reward_name("multi-scale", 10, seed), gaps=[-2.0, -2.0, 4.0, 4.0] * 2, scale_gaps=gaps)
    row = ablation_table(study)
    assert row["multi-scale"]["accuracy"].value.value == 0.5
    assert row[REFITTED]["accuracy"].value.value == 1


def test_convergence_is_to_the_level_at_the_end_of_the_reference():
    steps = torch.arange(1.0, 41)
    slow, fast = (steps / 40).repeat(3, 1), (steps / 20).clamp(max=1.2).repeat(3, 1)
    level = (steps[-WINDOW:] / 40).mean().item()
    means = [fast[0, max(0, t - WINDOW) : t].mean().item() for t in range(1, 41)]
    by_hand = 1 + next(t for t, mean in enumerate(means) if mean >= level)
    earlier = by_hand - 40  # than the slow one, which is at its own level only at its end
    assert convergence_steps(fast, slow) == ((by_hand, by_hand, by_hand), (earlier, earlier, earlier))
    assert convergence_steps(slow, slow) == ((40, 40, 40), (0, 0, 0))
    assert convergence_steps(slow / 2, slow).value.value == math.inf
    # It must stay there: a curve that falls again has not converged
    assert convergence_steps(torch.cat([fast[:, :30], fast[:, 30:] * 0], 1), slow).value.value == math.inf


def test_accuracy_by_number_of_pairs_by_hand(tmp_path):
    study = Study(tmp_path, SandboxStudy(seeds=[1, 2], curve_sizes=[10, 20], test_pairs=2))
    for seed in (1, 2):
        put(study, reward_name("multi-scale", 10, seed), gaps=[1.0, 1.0])
        put(study, reward_name("weighted", 10, seed), gaps=[1.0, -1.0])
        put(study, reward_name("weighted", 20, seed), gaps=[1.0, 0.0])
    table = size_table(study)
    assert {size: estimate.value.value for size, estimate in table["weighted"].items()} == {"10": 0.5, "20": 0.75}
    assert table["multi-scale"]["10"].difference.value == 0.5
    assert set(table["multi-scale"]) == {"10"}
    assert table["unbiased"] == {}


def test_instability_leaves_the_trend_out(study):
    steps = torch.arange(20.0)
    wave = torch.tensor([1.0, -1.0]).repeat(10)
    for seed in (1, 2):
        put(study, policy_name("weighted", 10, seed, BASELINE), curve=(0.3 * steps).tolist())
        put(study, policy_name("unbiased", 10, seed, BASELINE), curve=(0.3 * steps + 0.1 * wave).tolist())
    table = instability_table(study)
    assert table["weighted"]["10"].value.value == pytest.approx(0, abs=1e-6)
    # Of ten values ±0.1 the line takes next to nothing; the divisor is 8
    assert table["unbiased"]["10"].difference.value == pytest.approx(0.1 * math.sqrt(10 / 8), rel=0.02)


def test_pairs_of_a_prompt_stay_together():
    sums, sizes = by_prompt(torch.tensor([[1.0, 0.0, 1.0], [0.5, 1.0, 1.0]], dtype=torch.float64), [0, 1, 0])
    assert sums.tolist() == [[2.0, 0.0], [1.5, 1.0]]
    assert sizes.tolist() == [2.0, 1.0]


def test_accuracy_on_real_pairs_by_hand(tmp_path):
    models = ["simple contrast", "weighted", "multi-scale"]
    settings = RealStudy("data", seeds=[1], tasks=["code", "dialogue"], models=models)
    study = Study(tmp_path, settings)
    assert real_table(study)["multi-scale"] == {}
    units = {"code": [0, 0, 1], "dialogue": [0]}
    put(study, "decoder", **{task: {"units": found} for task, found in units.items()})
    for task, right in (("code", [1.0, 1.0, -1.0]), ("dialogue", [1.0])):
        assert "mean" not in real_table(study)["multi-scale"]  # some task is still to come
        put(study, real_name("multi-scale", task, 1), gaps=right, longer=[-1] * len(right))
        put(study, real_name("simple contrast", task, 1), gaps=[-1.0] * len(right), longer=[0] * len(right))
    put(study, real_name("weighted", "code", 1), gaps=[1.0, -1.0, -1.0], longer=[0, 0, 0])
    table = real_table(study)
    # Where a task has no strengths, weighted is the same training and has no difference
    assert table["weighted"]["dialogue"].difference is None
    assert table["weighted"]["code"].difference.value == pytest.approx(1 / 3)
    assert table["weighted"]["mean"].difference.value == pytest.approx(1 / 6)
    assert table["multi-scale"]["code"].value.value == pytest.approx(2 / 3)
    assert table["multi-scale"]["mean"].value.value == pytest.approx((2 / 3 + 1) / 2)
    assert table["multi-scale"]["mean"].difference.value == pytest.approx((2 / 3 + 1) / 2)
    assert table["longer wins"]["mean"].value.value == 0
