"""Two processes under ZeRO-2, ZeRO-3 and FSDP2: the same training as without, with the state really divided up."""

from functools import partial

import pytest
import torch
from datasets import load_dataset
from peft import LoraConfig, load_peft_weights
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RLOOConfig, RLOOTrainer

from tests.launch import backends
from tests.launch.backends import (
    ROWS,
    name_of,
    planned_states,
    reloaded_scores,
    results_of,
    series,
    specification,
    worst_difference,
)
from tests.launch.scripts import train
from toolkit import MultiScaleRewardConfig, MultiScaleRewardTrainer, RewardFunction, ThoughtReward
from toolkit.reward.record import finder, read_record

STEPS = 6  # of each run; the command `tests.launch.backends` does twice as many
CASES = [
    ("reward", "none", "zero2"),
    ("reward", "lora", "zero3"),
    ("reward", "none", "zero3"),
    ("reinforce", "lora", "zero2"),
    ("reinforce", "none", "zero3"),
    ("reward", "none", "fsdp2"),
    ("reinforce", "lora", "fsdp2"),
]
# Every process samples with its own seed, so a policy of one process sees other responses than that of two.
REFERENCES = [("reinforce", "lora", "ddp"), ("reinforce", "none", "ddp")]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backends")
    backends.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def reward_adapter(work, cpu_options):
    """Folder of a reward model trained with LoRA."""
    config = MultiScaleRewardConfig(
        output_dir=str(work / "adapter"), context="gate", max_steps=2, learning_rate=3e-2, **cpu_options
    )
    pairs = load_dataset("json", data_files=str(work / "pairs.jsonl"), split="train", cache_dir=str(work / "cache"))
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear")
    trainer = MultiScaleRewardTrainer(str(work / "base"), config, pairs, peft_config=lora)
    trainer.train()
    trainer.save_model()
    return config.output_dir


def few_steps(work, name: str, trainer: str, adapter: str, processes: int) -> dict:
    short = {"max_completion_length": 8} if trainer == "reinforce" else {}
    return specification(work, name, trainer, adapter, processes, max_steps=STEPS, **short)


# Labels that are more than pairs, and options that they alone have
LABELS = {
    "lists": {"loss_type": "log_sum_exp", "list_reach_warmup": 0.5, "centre_by_prompt": True},
    "people": {"outputs": 2, "reader": "mixture", "reader_weights": "annotator", "context": "none"},
}


def labels_specification(work, labels: str, name: str, adapter: str, processes: int) -> dict:
    """A training on ranked lists, or on pairs of several annotators."""
    spec = specification(work, name, "reward", adapter, processes, max_steps=STEPS, **LABELS[labels])
    return spec | {"pairs": str(work / f"{labels}.jsonl")}


def specifications(work, reward_adapter) -> dict[str, list[dict]]:
    """All trainings of two processes, by their stage."""
    specs = {stage: [] for stage in ("ddp", "zero2", "zero3", "fsdp2")}
    for trainer, adapter, stage in [*CASES, *REFERENCES]:
        specs[stage].append(few_steps(work, name_of(stage, 2, trainer, adapter), trainer, adapter, 2))
    for stage in ("zero2", "zero3"):
        half = {"bf16": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
        specs[stage].append(specification(work, f"half-{stage}", "reward", "none", 2, max_steps=2, **half))
    for stage in ("ddp", "zero2", "zero3"):
        specs[stage].append(specification(work, f"judge-{stage}", "judge", "none", 2, max_steps=3))
    for labels, stage in (("lists", "ddp"), ("lists", "zero3"), ("people", "zero3")):
        specs[stage].append(labels_specification(work, labels, f"{labels}-{stage}", "lora", 2))
    for way, share in {"shared": True, "separate": False}.items():
        spec = specification(work, way, "reinforce", "lora", 2, max_steps=4, max_completion_length=8)
        specs["zero3"].append(spec | {"reward": reward_adapter, "share_base": share})
    return specs


@pytest.fixture(scope="module")
def two(work, reward_adapter):
    """Gives the results of both processes, by name of the training."""
    backends.start_forked(work, 2, "all", specifications(work, reward_adapter)).wait()
    return partial(results_of, work, processes=2, launched="all")


@pytest.fixture(scope="module")
def run(two):
    def results(stage: str, trainer: str, adapter: str) -> list[dict]:
        return two(name_of(stage, 2, trainer, adapter))

    return results


@pytest.fixture(scope="module")
def alone(work):
    """Makes results of a reward model's training in this process; made once."""
    made = {}

    def result(adapter: str) -> dict:
        if adapter not in made:
            name = name_of("ddp", 1, "reward", adapter)
            train.main(few_steps(work, name, "reward", adapter, 1))
            (made[adapter],) = results_of(work, name, 1, name)
        return made[adapter]

    return result


@pytest.mark.parametrize(("trainer", "adapter", "stage"), CASES)
def test_every_stage_trains_alike_and_saves_what_it_trained(work, run, alone, trainer, adapter, stage):
    results = run(stage, trainer, adapter)
    assert len(series(results[0], "grad_norm")) == STEPS
    reference = alone(adapter) if trainer == "reward" else run("ddp", trainer, adapter)[0]
    assert worst_difference(results[0], reference, trainer, STEPS) < 1e-5
    saved = reloaded_scores(work, name_of(stage, 2, trainer, adapter), trainer, adapter)
    assert len(saved) == ROWS
    # A policy's are sums over a row's tokens, in the hundreds, where float32 itself has steps of 3e-5.
    assert saved == pytest.approx(results[0]["scores"], abs=1e-5, rel=1e-6)
    assert results[0]["scores"] == results[1]["scores"]


@pytest.mark.parametrize(("trainer", "adapter", "stage"), CASES)
def test_processes_hold_what_the_plan_says(work, run, trainer, adapter, stage):
    results, plan = run(stage, trainer, adapter), planned_states(work, trainer, adapter, stage, 2)
    for part, planned in plan._asdict().items():
        assert max(result["held"][part] for result in results) == pytest.approx(planned, rel=0.02), part


@pytest.mark.parametrize(("labels", "stage"), [("lists", "ddp"), ("lists", "zero3"), ("people", "zero3")])
def test_lists_and_annotators_train_alike_in_two_processes(work, two, labels, stage):
    train.main(labels_specification(work, labels, labels, "lora", 1))
    (alone,), results = results_of(work, labels, 1, labels), two(f"{labels}-{stage}")
    assert worst_difference(results[0], alone, "reward", STEPS) < 1e-5
    for key in ("kendall_tau", "lists", "num_tokens") if labels == "lists" else ("accuracy", "num_tokens"):
        assert series(results[0], key).tolist() == pytest.approx(series(alone, key).tolist(), abs=1e-6), key
    saved = reloaded_scores(work, f"{labels}-{stage}", "reward", "lora")
    assert saved == pytest.approx(results[0]["scores"], abs=1e-5)


@pytest.mark.parametrize("labels", LABELS)
def test_lists_and_annotators_train_with_qlora(work, labels):
    train.main(labels_specification(work, labels, f"{labels}-qlora", "qlora", 1))
    (result,) = results_of(work, f"{labels}-qlora", 1, f"{labels}-qlora")
    assert (series(result, "grad_norm") > 0).tolist() == [True] * STEPS
    saved = reloaded_scores(work, f"{labels}-qlora", "reward", "qlora")
    assert saved == pytest.approx(result["scores"], abs=1e-2)


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_gradients_of_bfloat16_weights_add_up_in_float32(work, two, stage):
    results = two(f"half-{stage}")
    planned = planned_states(work, "reward", "none", stage, 2, bf16=True).gradients
    for result in results:
        assert result["gradient_types"] == ["torch.float32"]
        assert result["held"]["gradients"] == pytest.approx(planned, rel=0.01)


def test_the_state_is_divided_up(run, alone):
    whole = alone("none")["held"]
    for stage, divided in (("zero2", 1), ("zero3", 2)):
        for result in run(stage, "reward", "none"):
            assert result["held"]["weights"] == pytest.approx(whole["weights"] / divided, rel=0.01)
            # DeepSpeed's own float32 copy of the weights, and Adam's two moments
            assert result["held"]["optimizer"] == pytest.approx(3 * whole["weights"] / 2, rel=0.01)


def test_the_reward_model_is_divided_up_under_zero3(work, run):
    results = run("zero3", "reinforce", "none")
    for result in results:
        assert result["reward_held"] == pytest.approx(result["reward_total"] / 2, rel=0.01)
    # the first process scored one row and the second three, in two batches: neither waits for the other for ever
    pairs = load_dataset("json", data_files=str(work / "pairs.jsonl"), split="train", cache_dir=str(work / "cache"))
    alone = RewardFunction(str(work / "reward"))(pairs["prompt"][:3], pairs["chosen"][:3])
    assert results[0]["uneven"] == pytest.approx(alone[:1], abs=1e-5)
    assert results[1]["uneven"] == pytest.approx(alone, abs=1e-5)


def test_what_zero3_saves_drops_into_trl(work, run, tmp_path):
    run("zero3", "reward", "none")
    folder = str(work / name_of("zero3", 2, "reward", "none"))
    stock = AutoModelForSequenceClassification.from_pretrained(folder)
    assert stock.num_labels == 1
    record = read_record(finder(folder))
    assert record.weights
    assert record.tokenizer
    assert record.probes is None  # no process had the whole model
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


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_a_judge_trains_alike_and_its_settings_are_saved(work, two, stage):
    expected, results = two("judge-ddp")[0], two(f"judge-{stage}")
    for key in ("pair_loss", "grad_norm", "advantage_std", "kl"):
        assert len(series(expected, key)) == 3
        torch.testing.assert_close(series(results[0], key), series(expected, key), rtol=1e-4, atol=1e-5)
    saved = reloaded_scores(work, f"judge-{stage}", "judge", "none")
    assert saved == pytest.approx(results[0]["scores"], abs=1e-5, rel=1e-6)
    assert ThoughtReward(str(work / f"judge-{stage}")).num_thoughts == 2


def test_a_reward_adapter_on_the_policys_base_trains_as_the_separate_model_under_zero3(work, two):
    shared, separate = two("shared"), two("separate")
    for key in ("loss", "grad_norm", "reward", "kl"):
        expected = series(separate[0], key)
        assert len(expected) == 4
        torch.testing.assert_close(series(shared[0], key), expected)
    for rank in range(2):
        assert shared[rank]["reward_held"] == pytest.approx(shared[rank]["reward_total"] / 2, rel=0.02)
        # one row on the first process and three on the second, which makes a pass more
        assert len(shared[rank]["uneven"]) == 1 + 2 * rank
        assert shared[rank]["uneven"] == pytest.approx(separate[rank]["uneven"], abs=1e-5)
    saved, expected = (load_peft_weights(str(work / name), device="cpu") for name in ("shared", "separate"))
    assert not [path for path in (work / "shared").iterdir() if path.is_dir()]
    assert saved.keys() == expected.keys()
    for key, value in saved.items():
        torch.testing.assert_close(value, expected[key])
