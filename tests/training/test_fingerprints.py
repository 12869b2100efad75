"""A run is told from another by its rows, the weights that it began from and its options, and by nothing else."""

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from toolkit import MultiScaleRewardTrainer, ReinforceTrainer, RewardFunction
from toolkit.training.fingerprints import (
    check_same_run,
    data_digest,
    save_fingerprint,
    training_options,
    weights_digest,
)

ROWS = [{"text": "a" * i, "ids": list(range(i)), "margin": None if i % 2 else 0.5} for i in range(20)]


def test_rows_are_the_same_however_they_are_stored(tmp_path):
    table = Dataset.from_list(ROWS)
    expected = data_digest(table)
    parts = concatenate_datasets([table.select(range(7)), table.select(range(7, 20))])
    backwards = table.select(range(19, -1, -1)).select(range(19, -1, -1))
    table.save_to_disk(tmp_path / "saved")
    saved = Dataset.load_from_disk(str(tmp_path / "saved"))
    padded = Dataset.from_list([*ROWS[:3], *ROWS]).select(range(3, 23))
    renamed = table.select_columns(["margin", "ids", "text"])
    for same in (parts, backwards, saved, padded, renamed):
        assert data_digest(same) == expected


@pytest.mark.parametrize(
    "change", [{"text": "b"}, {"ids": [5]}, {"margin": 0.25}, {"margin": None}], ids=["text", "ids", "margin", "none"]
)
def test_one_other_cell_is_other_data(change):
    rows = [*ROWS[:4], {**ROWS[4], **change}, *ROWS[5:]]
    assert data_digest(Dataset.from_list(rows)) != data_digest(Dataset.from_list(ROWS))


def test_another_order_or_number_is_other_data_and_a_stream_has_none():
    table = Dataset.from_list(ROWS)
    assert data_digest(table.select([1, 0, *range(2, 20)])) != data_digest(table)
    assert data_digest(table.select(range(19))) != data_digest(table)
    assert data_digest(table.to_iterable_dataset()) is None


def test_a_model_is_the_same_in_every_dtype_and_under_a_new_adapter(tiny_folder):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder())
    expected = weights_digest(model, without_new=True)
    half = AutoModelForCausalLM.from_pretrained(tiny_folder(), dtype=torch.bfloat16)
    assert weights_digest(half, without_new=True) == expected
    wrapped = get_peft_model(half, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    assert weights_digest(wrapped, without_new=True) == expected
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.01)
    assert weights_digest(model, without_new=True) != expected


def test_options_that_change_nothing_are_left_out(reward_config):
    options = training_options(reward_config(learning_rate=0.25, save_steps=7, logging_steps=3, hub_token="hf_x"))
    assert options["learning_rate"] == 0.25
    assert {"seed", "scales", "loss_type", "per_device_train_batch_size", "max_steps"} <= options.keys()
    assert not options.keys() & {"output_dir", "save_steps", "logging_steps", "hub_token", "report_to"}


def test_checkpoints_of_older_versions_say_that_they_cannot_be_compared(tmp_path, caplog):
    check_same_run(tmp_path, {})
    assert "whether data and model are the same is not known" in caplog.text


@pytest.fixture
def trained(reward_config, tiny_folder, chat_pairs):
    def make(rows=8, model=None, **options):
        config = reward_config(**{"max_steps": 2, "save_strategy": "steps", "save_steps": 1, **options})
        return MultiScaleRewardTrainer(model or tiny_folder(), config, chat_pairs.select(range(rows)))

    trainer = make()
    trainer.train()
    return f"{trainer.args.output_dir}/checkpoint-1", make


def test_other_rows_are_refused(trained):
    checkpoint, make = trained
    with pytest.raises(ValueError, match=r"trained on other data \(8 rows then, 7 now\)"):
        make(rows=7).train(resume_from_checkpoint=checkpoint)


def test_another_model_is_refused(trained, tiny_folder, tmp_path):
    checkpoint, make = trained
    model = AutoModelForCausalLM.from_pretrained(tiny_folder())
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    model.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_folder()).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"another model \('.*' then, '.*other' now; other weights\)"):
        make(model=str(tmp_path / "other")).train(resume_from_checkpoint=checkpoint)


def test_other_options_are_named_and_a_seed_is_no_other_model(trained, caplog):
    checkpoint, make = trained
    make(learning_rate=0.25, seed=5, save_steps=7).train(resume_from_checkpoint=checkpoint)
    (warning,) = [m for m in caplog.messages if "other options" in m]
    assert warning.endswith("with other options: learning_rate 0.001 → 0.25, seed 42 → 5.")


def test_another_reward_model_is_refused(reinforce_config, tiny_folder, reward_folder, chat_pairs, tmp_path):
    def trainer(reward):
        prompts = chat_pairs.select_columns(["prompt"]).select(range(4))
        config = reinforce_config(max_steps=2, save_strategy="steps", save_steps=1, baseline="none")
        return ReinforceTrainer(tiny_folder(), reward, config, train_dataset=prompts)

    first = trainer(RewardFunction(reward_folder()))
    first.train()
    other = RewardFunction(reward_folder())
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.add_(0.5)
    with pytest.raises(ValueError, match="another reward model 1"):
        trainer(other).train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-1")


def test_a_fingerprint_is_read_as_it_was_saved(tmp_path):
    found = {"data": {"rows": 1, "sha256": "x"}, "models": {}, "options": {"seed": 1}}
    save_fingerprint(tmp_path, found)
    check_same_run(tmp_path, found)
    with pytest.raises(ValueError, match="other 1 rows"):
        check_same_run(tmp_path, {**found, "data": {"rows": 1, "sha256": "y"}})
