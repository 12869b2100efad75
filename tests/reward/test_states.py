"""A frozen decoder's states give the training, the evaluation and the scores of the decoder itself."""

import logging
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.helpers import logged
from tests.tiny import pad_rows
from toolkit import AutoModelForMultiScaleReward, MultiScaleRewardTrainer, RewardFunction, evaluate_pairs
from toolkit.reward import states as states_module
from toolkit.reward.model import MultiScaleMixin
from toolkit.reward.setup import freeze_decoder, load_for_training
from toolkit.reward.states import StateRows, distinct_rows, divide, fingerprint, load_states

CONTEXTS = {
    "none": {"context": "none"},
    "gate": {},
    "head": {"scales": ["response"], "context": "head"},
    "pointwise": {"context": "none", "loss_type": "pointwise"},
}


@pytest.fixture
def strong_pairs(chat_pairs):
    """Twenty-two pairs of unlike strength, so that an epoch ends within a step of two batches of four."""
    return chat_pairs.add_column("strength", [1.0 + i % 3 for i in range(len(chat_pairs))]).select(range(22))


@pytest.fixture
def frozen(reward_config, tiny_folder, strong_pairs):
    def make(model=None, pairs=strong_pairs, evals=None, peft_config=None, **options):
        args = reward_config(freeze_decoder=True, **options)
        return MultiScaleRewardTrainer(model or tiny_folder(), args, pairs, evals, peft_config=peft_config)

    return make


@pytest.fixture
def unfrozen(reward_config, tiny_folder, strong_pairs):
    """The ordinary trainer, given a model whose decoder has no gradients."""

    def make(evals=None, **options):
        args = reward_config(**options)
        model = load_for_training(tiny_folder(), args, None, strong_pairs)
        freeze_decoder(model)
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
        return MultiScaleRewardTrainer(model, args, strong_pairs, evals, processing_class=tokenizer)

    return make


@pytest.fixture
def no_decoder(monkeypatch):
    """From its call on, nothing may run the decoder."""

    def refuse(*args, **kwargs):
        raise AssertionError("the decoder ran")

    return lambda: monkeypatch.setattr(MultiScaleMixin, "_run", refuse)


def assert_same_log(found, expected) -> None:
    """All that was logged, but for times and operations."""
    for first, second in zip(found.state.log_history, expected.state.log_history, strict=True):
        assert first.keys() == second.keys()
        for key in first:
            if "_per_second" not in key and "runtime" not in key and key not in ("total_flos", "step_time"):
                assert first[key] == pytest.approx(second[key], abs=2e-5, rel=2e-4), key


@pytest.mark.parametrize("shared", [None, False], ids=["shared", "plain"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_a_frozen_training_is_that_of_the_decoder(frozen, unfrozen, strong_pairs, no_decoder, context, shared):
    options = {"gradient_accumulation_steps": 2, "max_steps": 4, "learning_rate": 1e-2, "shared_prompts": shared}
    options |= {"evals": strong_pairs.select(range(7)), "eval_strategy": "steps", "eval_steps": 2}
    expected, found = unfrozen(**options, **CONTEXTS[context]), frozen(**options, **CONTEXTS[context])
    expected.train()
    no_decoder()
    found.train()
    assert len(logged(found, "loss")) == 4  # the last of them of the second epoch
    assert len(logged(found, "eval_loss")) == 2
    assert_same_log(found, expected)
    for name, value in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], value, atol=1e-4, rtol=1e-4)


def test_only_the_head_is_trained(frozen, caplog):
    with caplog.at_level(logging.INFO):
        trainer = frozen(max_steps=2)
    assert {name for name, value in trainer.model.named_parameters() if value.requires_grad} == {
        f"score.{name}" for name, _ in trainer.model.score.named_parameters()
    }
    assert "The decoder's" in caplog.text
    assert "0 of 1 files are there, the others are computed now." in caplog.text


def test_saved_models_score_as_the_frozen_evaluation(frozen, strong_pairs, no_decoder, tmp_path):
    trainer = frozen(evals=strong_pairs, max_steps=6, learning_rate=1e-2)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    found = trainer.predict(trainer.eval_dataset).predictions
    scored = evaluate_pairs(RewardFunction(str(tmp_path / "saved")), strong_pairs)
    for k, name in enumerate(("chosen", "rejected", "scale_chosen", "scale_rejected", "gate")):
        torch.testing.assert_close(torch.tensor(found[k]), getattr(scored, name), atol=1e-5, rtol=0)
    loaded = AutoModelForMultiScaleReward.from_pretrained(str(tmp_path / "saved"))
    torch.testing.assert_close(loaded.state_dict(), trainer.model.state_dict())
    stock = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "saved"))
    row = trainer.train_dataset[0]
    rows = pad_rows([row["chosen_ids"]], [row["chosen_start"]], 0)
    logits = stock(rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    torch.testing.assert_close(logits, loaded(**rows).scale_scores[:, 2:], atol=1e-5, rtol=0)


def test_pairs_given_later_are_read_by_the_decoder(frozen, unfrozen, strong_pairs):
    later = strong_pairs.select(range(5, 12))
    trainer = frozen(evals={"first": later, "second": strong_pairs.select(range(3))})
    both, alone = trainer.evaluate(), trainer.evaluate(later)
    assert (both["eval_first_pairs"], both["eval_second_pairs"]) == (7, 3)
    assert alone["eval_loss"] == pytest.approx(both["eval_first_loss"], abs=1e-5)
    # A prepared set of another trainer has the places of another table
    other = frozen(pairs=strong_pairs.select(range(12, 22)))
    assert other.evaluate(trainer.eval_dataset["first"])["eval_loss"] == pytest.approx(alone["eval_loss"], abs=1e-5)


def test_a_resumed_frozen_run_is_the_undisturbed_one(frozen):
    options = {"max_steps": 9, "save_strategy": "steps", "save_steps": 4, "logging_steps": 3}
    whole = frozen(gradient_accumulation_steps=2, **options)
    whole.train()
    resumed = frozen(gradient_accumulation_steps=2, **{**options, "save_strategy": "no"})
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir, "checkpoint-4")))
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), atol=0, rtol=0)
    for key in ("loss", "accuracy", "num_tokens", "grad_norm"):
        assert logged(resumed, key) == logged(whole, key), key


def test_other_rates_and_heads_read_the_same_states(frozen, no_decoder, caplog):
    first = frozen()
    no_decoder()
    with caplog.at_level(logging.INFO):
        again = frozen(learning_rate=0.1, seed=7, context="none", scales=["token"])
    assert again.data_collator.table.columns == first.data_collator.table.columns
    assert torch.equal(again.data_collator.table.states, first.data_collator.table.states)
    assert "1 of 1 files are there." in caplog.text


def test_another_decoder_or_other_rows_have_other_states(frozen, strong_pairs, reward_model):
    trainer, model = frozen(), reward_model()
    rows = distinct_rows([trainer.train_dataset])
    names = [fingerprint(model, rows, "float32"), fingerprint(model, rows, "bfloat16")]
    names.append(fingerprint(model, rows._replace(starts=[start - 1 for start in rows.starts]), "float32"))
    names.append(fingerprint(model, distinct_rows([trainer.train_dataset.select(range(20))]), "float32"))
    model.score.weight.data += 1  # which no state hangs on
    assert fingerprint(model, rows, "float32") == names[0]
    next(model.model.parameters()).data[0, 0] += 1e-3
    names.append(fingerprint(model, rows, "float32"))
    model.set_layout([], [5])
    names.append(fingerprint(model, rows, "float32"))
    assert len({*names}) == len(names)


def test_a_killed_run_goes_on_with_the_next_file(frozen, monkeypatch, tmp_path):
    whole = frozen().data_collator.table
    monkeypatch.setattr(states_module, "SHARD_TOKENS", 200)
    read, calls = states_module.read_groups, []

    def killed(*args):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(args)
        return read(*args)

    monkeypatch.setattr(states_module, "read_groups", killed)
    with pytest.raises(KeyboardInterrupt):
        frozen(states_dir=str(tmp_path / "kept"))
    files = sorted((tmp_path / "kept").rglob("*.safetensors"))
    assert len(files) == 3
    written = [file.stat().st_mtime_ns for file in files]
    monkeypatch.setattr(states_module, "read_groups", read)
    table = frozen(states_dir=str(tmp_path / "kept")).data_collator.table
    assert [file.stat().st_mtime_ns for file in files] == written
    torch.testing.assert_close(table.states, whole.states, atol=1e-5, rtol=1e-5)
    files[1].write_bytes(files[1].read_bytes()[:100])
    with pytest.raises(ValueError, match=r"00001-of-.* is damaged .* Delete it; a new run computes it again"):
        frozen(states_dir=str(tmp_path / "kept"))


def test_dropout_does_not_act_on_states(frozen, tiny_folder, tmp_path):
    tables = []
    for disable in (True, False):
        trainer = frozen(tiny_folder("gpt2"), disable_dropout=disable, states_dir=str(tmp_path / str(disable)))
        tables.append(trainer.data_collator.table)
    assert torch.equal(tables[0].states, tables[1].states)


def test_processes_without_a_common_disk_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"lack a\.safetensors, which another process.*`states_dir`"):
        load_states(tmp_path, [tmp_path / "a.safetensors"], 1)


def test_rows_that_come_again_are_read_once():
    def pairs(*sides):
        names = ("chosen_ids", "rejected_ids", "chosen_start", "rejected_start")
        return Dataset.from_list([dict(zip(names, side, strict=True)) for side in sides])

    train = pairs(([1, 2, 3], [1, 2, 4], 2, 2), ([1, 2, 4], [1, 2, 3], 2, 2))
    held_out = pairs(([1, 2, 3], [1, 2, 3], 2, 1))  # where the response starts counts, too
    rows = distinct_rows([train, held_out])
    assert rows.places == [[(0, 1), (1, 0)], [(0, 2)]]
    assert rows.ids == [[1, 2, 3], [1, 2, 4], [1, 2, 3]]
    assert rows.starts == [2, 2, 1]


def test_files_of_a_cache_have_like_numbers_of_tokens(monkeypatch):
    monkeypatch.setattr(states_module, "SHARD_TOKENS", 6)
    rows = StateRows([[1, 2, 3, 4], [5, 6], [1, 2, 3, 5, 5], [7, 8, 9]], [3, 1, 3, 1], [])
    assert divide(rows, shared_prompts=False) == [[[1], [3], [0]], [[2]]]  # 2, 3 and 4 tokens, and 5
    assert divide(rows, shared_prompts=True) == [[[1], [3], [0, 2]]]  # 2, 3 and 3 + 1 + 2


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"peft_config": LoraConfig(task_type="SEQ_CLS")}, "an adapter"),
        ({"max_tokens_per_batch": 500}, "`max_tokens_per_batch`"),
        ({"train_sampling_strategy": "group_by_length"}, "`train_sampling_strategy='group_by_length'`"),
        ({"train_sampling_strategy": "batch_rebalance"}, "`train_sampling_strategy='batch_rebalance'`"),
        ({"fp16_full_eval": True}, "evaluation in half precision"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_go_with_a_frozen_decoder_is_refused(frozen, options, what):
    with pytest.raises(ValueError, match=f"`freeze_decoder=True` does not go with {what}"):
        frozen(**options)


@pytest.mark.parametrize("launcher", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"])
def test_weights_in_pieces_are_refused(reward_config, launcher, monkeypatch, tiny_folder, strong_pairs):
    args = reward_config(freeze_decoder=True)
    if launcher.endswith("DEEPSPEED"):
        monkeypatch.setattr(args, "deepspeed_plugin", object())
    else:
        monkeypatch.setenv(launcher, "true")
    with pytest.raises(ValueError, match=r"does not go with (DeepSpeed|FSDP), which has nothing to divide"):
        MultiScaleRewardTrainer(tiny_folder(), args, strong_pairs)


def test_checkpointing_changes_nothing(frozen):
    losses = []
    for options in ({}, {"gradient_checkpointing": True}, {"activation_checkpointing": True}):
        trainer = frozen(max_steps=3, **options)
        trainer.train()
        losses.append(logged(trainer, "loss"))
    assert losses[0] == losses[1] == losses[2]
