"""Two processes under ZeRO-2 and ZeRO-3: the same training as without, with the state really divided up."""

import pytest
import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RLOOConfig, RLOOTrainer

from tests.launch import backends
from tests.launch.backends import ROWS, STEPS, planned_states, reloaded_scores, run, series, worst_difference
from toolkit import RewardFunction

CASES = [
    ("reward", "none", "zero2"),
    ("reward", "lora", "zero3"),
    ("reward", "none", "zero3"),
    ("reinforce", "lora", "zero2"),
    ("reinforce", "none", "zero3"),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backends")
    backends.prepare(folder)
    return folder


def reference_of(work, trainer: str, adapter: str) -> dict:
    # Every process samples with its own seed, so a policy of one process sees other responses than that of two.
    return run(work, "ddp", 1 if trainer == "reward" else 2, trainer, adapter)[0]


@pytest.mark.parametrize(("trainer", "adapter", "stage"), CASES)
def test_every_stage_trains_alike_and_saves_what_it_trained(work, trainer, adapter, stage):
    results = run(work, stage, 2, trainer, adapter)
    assert len(series(results[0], "grad_norm")) == STEPS
    assert worst_difference(results[0], reference_of(work, trainer, adapter), trainer) < 1e-5
    saved = reloaded_scores(work, f"{trainer}-{adapter}-{stage}-2", trainer, adapter)
    assert len(saved) == ROWS
    # A policy's are sums over a row's tokens, in the hundreds, where float32 itself has steps of 3e-5.
    assert saved == pytest.approx(results[0]["scores"], abs=1e-5, rel=1e-6)
    assert results[0]["scores"] == results[1]["scores"]


@pytest.mark.parametrize(("trainer", "adapter", "stage"), CASES)
def test_processes_hold_what_the_plan_says(work, trainer, adapter, stage):
    results, plan = run(work, stage, 2, trainer, adapter), planned_states(work, trainer, adapter, stage, 2)
    for part, planned in plan._asdict().items():
        assert max(result["held"][part] for result in results) == pytest.approx(planned, rel=0.02), part


def test_the_state_is_divided_up(work):
    whole = run(work, "ddp", 1, "reward", "none")[0]["held"]
    for stage, divided in (("zero2", 1), ("zero3", 2)):
        for result in run(work, stage, 2, "reward", "none"):
            assert result["held"]["weights"] == pytest.approx(whole["weights"] / divided, rel=0.01)
            # DeepSpeed's own float32 copy of the weights, and Adam's two moments
            assert result["held"]["optimizer"] == pytest.approx(3 * whole["weights"] / 2, rel=0.01)


def test_the_reward_model_is_divided_up_under_zero3(work):
    results = run(work, "zero3", 2, "reinforce", "none")
    for result in results:
        assert result["reward_held"] == pytest.approx(result["reward_total"] / 2, rel=0.01)
    # the first process scored one row and the second three, in two batches: neither waits for the other for ever
    pairs = load_dataset("json", data_files=str(work / "pairs.jsonl"), split="train", cache_dir=str(work / "cache"))
    alone = RewardFunction(str(work / "reward"))(pairs["prompt"][:3], pairs["chosen"][:3])
    assert results[0]["uneven"] == pytest.approx(alone[:1], abs=1e-5)
    assert results[1]["uneven"] == pytest.approx(alone, abs=1e-5)


def test_what_zero3_saves_drops_into_trl(work, tmp_path):
    run(work, "zero3", 2, "reward", "none")
    folder = str(work / "reward-none-zero3-2")
    stock = AutoModelForSequenceClassification.from_pretrained(folder)
    assert stock.num_labels == 1
    prompts = load_dataset("json", data_files=str(work / "pairs.jsonl"), split="train", cache_dir=str(work / "cache"))
    config = RLOOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        activation_checkpointing=False,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=8,
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
    )
    trainer = RLOOTrainer(
        model=str(work / "base"),
        reward_funcs=[folder, RewardFunction(folder)],
        args=config,
        train_dataset=prompts.select_columns(["prompt"]),
        processing_class=AutoTokenizer.from_pretrained(str(work / "base")),
    )
    trainer.train()
    rewards = [entry["rewards/RewardFunction/mean"] for entry in trainer.state.log_history[:-1]]
    assert torch.tensor(rewards).isfinite().all()
    assert len(rewards) == 2
