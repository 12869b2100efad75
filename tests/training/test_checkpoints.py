"""Checkpoints are whole or passed over, and a run that goes on from one is the undisturbed run, to the last bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer

from toolkit import MultiScaleRewardTrainer, ReinforceTrainer, RewardFunction
from toolkit.training import checkpoints
from toolkit.training.manifests import MANIFEST_NAME, last_complete_checkpoint, what_is_missing, write_manifest

# What is timed, and the mean loss over the steps of one call of `train`.
NOT_REPEATED = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss"}
SAVING = {"save_strategy": "steps", "lr_scheduler_type": "constant"}


def nf4() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def lora(task_type: str) -> LoraConfig:
    return LoraConfig(task_type=task_type, r=4, target_modules="all-linear", lora_dropout=0.0)


@pytest.fixture
def reward_trainer(reward_config, tiny_folder, chat_pairs):
    def make(quantized=False, **options):
        return MultiScaleRewardTrainer(
            # 20 pairs: five steps of four an epoch
            tiny_folder("qwen3", hidden_size=64, head_dim=32) if quantized else tiny_folder(),
            reward_config(**{**SAVING, **options}),
            chat_pairs.select(range(20)),
            quantization_config=nf4() if quantized else None,
            peft_config=lora("SEQ_CLS") if quantized else None,
        )

    return make


@pytest.fixture
def policy_trainer(reinforce_config, tiny_folder, reward_folder, chat_pairs):
    def make(quantized=False, **options):
        more = {"baseline": "moving_average", "prefix_baseline": True, "normalize_rewards": True, "beta": 0.05}
        return ReinforceTrainer(
            tiny_folder("qwen3", hidden_size=64, head_dim=32) if quantized else tiny_folder(),
            RewardFunction(reward_folder()),
            reinforce_config(**{**SAVING, **more, **options}),
            train_dataset=chat_pairs.select_columns(["prompt"]).select(range(20)),
            quantization_config=nf4() if quantized else None,
            peft_config=lora("CAUSAL_LM") if quantized else None,
        )

    return make


def assert_same_end(whole, resumed) -> None:
    """The same weights, to the last bit, and the same log but for the times."""
    expected = dict(whole.model.named_parameters())
    for name, parameter in resumed.model.named_parameters():
        assert parameter.dtype == expected[name].dtype, name
        assert torch.equal(parameter, expected[name]), name
    first, second = (
        [{key: value for key, value in entry.items() if key not in NOT_REPEATED} for entry in run.state.log_history]
        for run in (whole, resumed)
    )
    assert second == first


def checkpoint_of(trainer, step: int) -> str:
    return str(Path(trainer.args.output_dir, f"checkpoint-{step}"))


def letters(completions, **kwargs) -> list[float]:
    return [float(sum(map(str.isalpha, completion[0]["content"]))) for completion in completions]


class Died(BaseException):
    """As abrupt as a death can be within one process."""


# ---- what is complete


def fill(folder: Path) -> Path:
    (folder / "global_step4").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"0123456789")
    (folder / "global_step4" / "shard.pt").write_bytes(b"012")
    return folder


def test_a_checkpoint_is_complete_when_all_its_files_are_there_in_full(tmp_path):
    folder = fill(tmp_path / "checkpoint-4")
    assert what_is_missing(folder) == "it has no manifest.json, which is written last"
    write_manifest(folder)
    assert what_is_missing(folder) is None
    listed = json.loads((folder / MANIFEST_NAME).read_text())["files"]
    assert {name: entry["bytes"] for name, entry in listed.items()} == {
        "global_step4/shard.pt": 3,
        "model.safetensors": 10,
    }
    # sha256sum of "0123456789", as coreutils prints it
    assert listed["model.safetensors"]["sha256"].startswith("84d89877f0d4041efb6bf91a16f0248f")
    (folder / "model.safetensors").write_bytes(b"01234")
    assert what_is_missing(folder) == "its file model.safetensors has 5 bytes instead of 10"
    (folder / "model.safetensors").unlink()
    assert what_is_missing(folder) == "its file model.safetensors is gone"


def test_the_last_complete_one_is_taken_and_those_after_it_are_named(tmp_path, caplog):
    for step in (4, 8, 12, 100):
        fill(tmp_path / f"checkpoint-{step}")
    for step in (4, 8):
        write_manifest(tmp_path / f"checkpoint-{step}")
    fill(tmp_path / "checkpoint-best")  # not a step
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    passed_over = [record.getMessage() for record in caplog.records]
    assert len(passed_over) == 2
    assert "checkpoint-12' is not complete and is passed over: it has no manifest" in passed_over[0]
    assert "checkpoint-100'" in passed_over[1]


def test_there_may_be_none(tmp_path):
    assert last_complete_checkpoint(tmp_path / "nothing here") is None
    fill(tmp_path / "checkpoint-4")
    assert last_complete_checkpoint(tmp_path) is None


def test_every_process_must_have_it(tmp_path, monkeypatch):
    # machines without a shared disk: the other one died in the save of step 8
    for step in (4, 8):
        write_manifest(fill(tmp_path / f"checkpoint-{step}"))
    monkeypatch.setattr(
        "toolkit.training.manifests.gather_object", lambda mine: [*mine, {4} if isinstance(mine[0], set) else None]
    )
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


# ---- what a run that dies leaves


@pytest.mark.parametrize(
    ("owner", "name"), [(Trainer, "_save_rng_state"), (checkpoints, "write_manifest")], ids=["within", "at the end"]
)
def test_a_save_that_is_cut_short_is_passed_over_and_costs_no_other(reward_trainer, monkeypatch, caplog, owner, name):
    options = {"max_steps": 6, "save_steps": 2}
    whole = reward_trainer(**options)
    whole.train()
    shutil.rmtree(whole.args.output_dir)

    dying = reward_trainer(save_total_limit=1, **options)
    save = getattr(owner, name)

    def die_at_step_4(*args):
        if dying.state.global_step == 4:
            raise Died
        save(*args)

    monkeypatch.setattr(owner, name, die_at_step_4)
    with pytest.raises(Died):
        dying.train()
    monkeypatch.undo()
    # the weights of step 4 are written, and TRL would resume from them; step 2 is still there, limit or not
    assert Path(checkpoint_of(dying, 4), "model.safetensors").is_file()
    resumed = reward_trainer(save_total_limit=1, **options)
    with pytest.raises(ValueError, match=r"checkpoint-4' is not complete: it has no manifest\.json"):
        resumed.train(resume_from_checkpoint=checkpoint_of(dying, 4))
    resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-4' is not complete and is passed over" in caplog.text
    assert_same_end(whole, resumed)
    assert [path.name for path in Path(resumed.args.output_dir).glob("checkpoint-*")] == ["checkpoint-6"]


def test_nothing_of_an_older_run_is_left_in_a_checkpoint(reward_trainer):
    trainer = reward_trainer(max_steps=2, save_steps=2)
    stale = Path(checkpoint_of(trainer, 2), "rng_state_7.pth")
    stale.parent.mkdir(parents=True)
    stale.write_text("of a run with eight processes")
    trainer.train()
    assert not stale.exists()
    assert what_is_missing(stale.parent) is None


def test_resuming_without_a_checkpoint_says_so(reward_trainer):
    with pytest.raises(ValueError, match="No complete checkpoint found in"):
        reward_trainer(max_steps=2).train(resume_from_checkpoint=True)


def test_weights_alone_cannot_be_resumed_from(reward_trainer):
    trainer = reward_trainer(max_steps=2, save_steps=2, save_only_model=True)
    trainer.train()
    with pytest.raises(ValueError, match="holds weights alone: it was saved with `save_only_model=True`"):
        reward_trainer(max_steps=3).train(resume_from_checkpoint=True)


def test_false_begins_anew(reward_trainer):
    first = reward_trainer(max_steps=2, save_steps=2)
    first.train()
    again = reward_trainer(max_steps=2, save_steps=2)
    again.train(resume_from_checkpoint=False)
    assert_same_end(first, again)


# ---- what goes on is the same


@pytest.mark.parametrize("quantized", [False, True], ids=["full", "qlora"])
def test_a_resumed_reward_run_is_the_undisturbed_one(reward_trainer, quantized):
    # five steps an epoch, in two micro-batches each; saves fall between two logs, at an epoch's end and within it
    options = {"max_steps": 11, "logging_steps": 4, "quantized": quantized}
    options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    whole = reward_trainer(save_steps=1, **options)
    whole.train()
    for step in (5, 6) if quantized else (3, 5, 6, 9):
        resumed = reward_trainer(save_strategy="no", **options)
        resumed.train(resume_from_checkpoint=checkpoint_of(whole, step))
        assert_same_end(whole, resumed)
    assert whole.state.log_history[-2]["num_tokens"] > 0


@pytest.mark.parametrize(
    "order",
    [
        {"max_tokens_per_batch": 300},
        {"train_sampling_strategy": "group_by_length"},
        {"train_sampling_strategy": "batch_rebalance"},
    ],
    ids=["by tokens", "grouped", "rebalanced"],
)
def test_a_run_in_another_order_resumes_in_a_later_epoch(reward_trainer, order):
    options = {"max_steps": 14, "logging_steps": 4, "gradient_accumulation_steps": 2, **order}
    whole = reward_trainer(save_steps=9, **options)
    whole.train()
    assert whole.state.epoch * 9 / 14 > 1  # the checkpoint is of a later epoch than the first
    resumed = reward_trainer(save_strategy="no", **options)
    resumed.train(resume_from_checkpoint=checkpoint_of(whole, 9))
    assert_same_end(whole, resumed)


GENERATION = {
    "on-policy": {"num_generations": 1},
    # a generation batch serves four steps, so that every save falls in the middle of its use
    "several steps": {"num_generations": 1, "steps_per_generation": 4, "per_device_train_batch_size": 1},
    "two passes": {"steps_per_generation": 2, "num_iterations": 2, "gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize("generation", GENERATION)
def test_a_resumed_policy_run_is_the_undisturbed_one(policy_trainer, generation):
    options = {"max_steps": 11, "logging_steps": 4, **GENERATION[generation]}
    whole = policy_trainer(save_steps=3, **options)
    whole.train()
    # where steps share a generation, in each place of its use
    for step in (3, 6, 9) if "steps_per_generation" in options else (6,):
        resumed = policy_trainer(save_strategy="no", **options)
        resumed.train(resume_from_checkpoint=checkpoint_of(whole, step))
        assert_same_end(whole, resumed)
        for part, other in zip(whole._prefix_baseline.fit, resumed._prefix_baseline.fit, strict=True):
            assert torch.equal(part, other)
        assert whole._reward_moments == resumed._reward_moments
        assert whole._moving_average == resumed._moving_average


def test_a_later_epoch_keeps_its_order_of_prompts(policy_trainer):
    # 20 prompts, 4 a step: the save after step 7 falls into the second epoch, whose order is drawn after the first's
    options = {"max_steps": 12, "num_generations": 1}
    whole = policy_trainer(save_steps=7, **options)
    whole.train()
    resumed = policy_trainer(save_strategy="no", **options)
    resumed.train(resume_from_checkpoint=checkpoint_of(whole, 7))
    assert_same_end(whole, resumed)


def test_a_resumed_policy_in_four_bits_is_the_undisturbed_one(policy_trainer):
    options = {"max_steps": 5, "quantized": True, **GENERATION["two passes"]}
    whole = policy_trainer(save_steps=3, **options)
    whole.train()
    resumed = policy_trainer(save_strategy="no", **options)
    resumed.train(resume_from_checkpoint=checkpoint_of(whole, 3))
    assert {p.dtype for n, p in resumed.model.named_parameters() if "lora_" in n} == {torch.bfloat16}
    assert_same_end(whole, resumed)


@pytest.mark.parametrize(("step", "exact"), [(3, True), (5, False)])
def test_a_policy_on_streamed_prompts_is_exact_in_the_first_epoch(
    tiny_folder, reinforce_config, chat_pairs, step, exact, caplog
):
    def trainer(**options):
        # two generations a prompt and four rows a step: four steps an epoch
        prompts = chat_pairs.select_columns(["prompt"]).select(range(8)).to_iterable_dataset()
        config = reinforce_config(**{**SAVING, "max_steps": 8, "baseline": "none", **options})
        return ReinforceTrainer(tiny_folder(), letters, config, train_dataset=prompts)

    whole = trainer(save_steps=step)
    whole.train()
    resumed = trainer(save_strategy="no")
    resumed.train(resume_from_checkpoint=checkpoint_of(whole, step))
    assert resumed.state.global_step == 8
    assert ("The prompts are streamed" in caplog.text) != exact
    if exact:
        assert_same_end(whole, resumed)


def test_a_policy_that_goes_on_from_an_adapter_keeps_its_reference(tiny_folder, reinforce_config, chat_pairs):
    def trainer(**options):
        torch.manual_seed(3)
        base = AutoModelForCausalLM.from_pretrained(tiny_folder())
        adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
        config = reinforce_config(**{**SAVING, "max_steps": 4, "beta": 0.5, "baseline": "none", **options})
        prompts = chat_pairs.select_columns(["prompt"])
        return ReinforceTrainer(get_peft_model(base, adapter), letters, config, train_dataset=prompts)

    whole = trainer(save_steps=2)
    whole.train()
    resumed = trainer(save_strategy="no")
    resumed.train(resume_from_checkpoint=checkpoint_of(whole, 2))
    assert resumed.state.log_history[-2]["kl"] > 0
    assert_same_end(whole, resumed)


def test_a_finished_run_takes_no_further_step(reward_trainer):
    # four steps do not end the epoch of five, and Transformers would take a fifth
    whole = reward_trainer(max_steps=4, save_steps=4)
    whole.train()
    resumed = reward_trainer(max_steps=4, save_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert_same_end(whole, resumed)


def test_generations_that_are_used_up_are_not_saved(policy_trainer):
    trainer = policy_trainer(max_steps=4, save_steps=1, **GENERATION["several steps"])
    trainer.train()
    kept = [
        torch.load(Path(checkpoint_of(trainer, step), "resume_state_0.pt"), weights_only=True)["generations"]
        for step in (1, 2, 3, 4)
    ]
    assert [generations is not None for generations in kept] == [True, True, True, False]
    assert [len(batch["completion_ids"]) for batch in kept[0]] == [1, 1, 1, 1]


def test_more_or_fewer_processes_go_on_with_a_warning(policy_trainer, caplog):
    trainer = policy_trainer(max_steps=4, save_steps=2, **GENERATION["several steps"])
    trainer.train()
    file = Path(checkpoint_of(trainer, 2), "resume_state_0.pt")
    torch.save({**torch.load(file, weights_only=True), "processes": 2}, file)
    write_manifest(file.parent)
    resumed = policy_trainer(max_steps=4, save_strategy="no", **GENERATION["several steps"])
    resumed.train(resume_from_checkpoint=str(file.parent))
    assert "was saved by 2 processes and this run has 1" in caplog.text
    assert "not used up are those of other processes" in caplog.text
    assert resumed.state.global_step == 4
    assert (
        resumed._reward_moments.size == 8
    )  # 4 responses before the checkpoint, and 4 new ones for the two steps left
