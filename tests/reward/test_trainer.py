import logging
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import DeepSpeedPlugin
from datasets import Dataset
from peft import LoraConfig
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig
from trl import RewardConfig, RewardTrainer

from tests.helpers import logged
from tests.tiny import pad_rows
from toolkit import PREFERENCE_MODELS, AutoModelForMultiScaleReward, MultiScaleRewardTrainer, MultiScaleSettings
from toolkit.reward.head import MultiScaleHead
from toolkit.reward.model import base_reward_model
from toolkit.stats.metrics import PairScores
from toolkit.training.manifests import write_manifest

PLAIN_RESPONSE = {"scales": ["response"], "context": "none", "weight_by_strength": False}


@pytest.fixture
def reward_trainer(reward_config, tiny_folder, plain_pairs):
    def make(
        train_dataset=plain_pairs, model=None, eval_dataset=None, peft_config=None, compute_metrics=None, **options
    ):
        return MultiScaleRewardTrainer(
            model=model or tiny_folder(),
            args=reward_config(**options),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            peft_config=peft_config,
            compute_metrics=compute_metrics,
        )

    return make


def score_alone(trainer, dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of every chosen and every rejected response of a prepared data set, each in a batch of its own."""
    model = trainer.model.eval()
    scores = {"chosen": [], "rejected": []}
    for pair in dataset:
        for side, found in scores.items():
            with torch.no_grad():
                output = model(**pad_rows([pair[f"{side}_ids"]], [pair[f"{side}_start"]], 0))
            found.append(output.logits[0, 0])
    return torch.stack(scores["chosen"]), torch.stack(scores["rejected"])


def first_pairs(trainer, count: int = 4) -> tuple[dict, PairScores]:
    """A batch of the first pairs of the training data, and what the trainer makes of it."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(count)])
    _, pairs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
    return batch, pairs


def assert_trl_losses(reward_config, reward_trainer, folder, pairs, shared_prompts=False, **options):
    """Twenty steps of TRL's trainer and of ours at one seed, with the response scale alone and TRL's own order."""
    options = {"max_steps": 20, "max_length": 512, "train_sampling_strategy": "random", **options}
    theirs = RewardTrainer(folder, reward_config(RewardConfig, **options), train_dataset=pairs)
    theirs.train()
    ours = reward_trainer(pairs, shared_prompts=shared_prompts, **PLAIN_RESPONSE, **options)
    ours.train()
    assert len(logged(theirs, "loss")) == 20
    assert np.std(logged(theirs, "loss")) > 1e-3
    assert logged(ours, "loss") == pytest.approx(logged(theirs, "loss"), abs=1e-5 if shared_prompts else 1e-6)
    assert logged(ours, "grad_norm") == pytest.approx(logged(theirs, "grad_norm"), rel=1e-4)
    assert ours.model.state_dict().keys() == theirs.model.state_dict().keys()
    return ours, theirs


@pytest.mark.parametrize("form", ["plain", "chat"])
def test_response_scale_alone_is_trls_trainer(request, reward_config, reward_trainer, tiny_folder, form):
    pairs = request.getfixturevalue(f"{form}_pairs")
    ours, theirs = assert_trl_losses(reward_config, reward_trainer, tiny_folder(), pairs)
    for name, value in theirs.model.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], value, atol=1e-5, rtol=1e-5)
    for key in ("accuracy", "margin", "min_reward", "max_reward", "num_tokens"):
        assert logged(ours, key) == pytest.approx(logged(theirs, key), abs=1e-5), key


@pytest.mark.parametrize("form", ["plain", "chat"])
def test_shared_prompts_give_trls_losses(request, reward_config, reward_trainer, tiny_folder, form):
    pairs = request.getfixturevalue(f"{form}_pairs")
    ours, theirs = assert_trl_losses(reward_config, reward_trainer, tiny_folder(), pairs, shared_prompts=True)
    assert logged(ours, "num_tokens")[-1] < logged(theirs, "num_tokens")[-1]


def test_rebalanced_batches_give_trls_losses(reward_config, reward_trainer, tiny_folder, chat_pairs):
    # TRL's random batches of eight, cut into four of like length and unlike size
    options = {"max_steps": 9, "max_length": 512, "seed": 3}
    theirs = RewardTrainer(
        tiny_folder(),
        reward_config(RewardConfig, per_device_train_batch_size=8, **options),
        train_dataset=chat_pairs,
    )
    theirs.train()
    cut = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2}
    ours = reward_trainer(chat_pairs, train_sampling_strategy="batch_rebalance", **cut, **PLAIN_RESPONSE, **options)
    assert len({len(batch["response_start"]) for batch in ours.get_train_dataloader()}) > 1
    ours.train()
    assert ours.state.epoch == 3
    assert logged(ours, "loss") == pytest.approx(logged(theirs, "loss"), abs=1e-5)
    assert logged(ours, "grad_norm") == pytest.approx(logged(theirs, "grad_norm"), rel=1e-4)


def test_accumulated_centred_steps_are_trls_too(reward_config, reward_trainer, tiny_folder, plain_pairs):
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "center_rewards_coefficient": 0.1}
    assert_trl_losses(reward_config, reward_trainer, tiny_folder(), plain_pairs, **options)


def test_steps_with_margins_are_trls_too(reward_config, reward_trainer, tiny_folder, plain_pairs):
    pairs = plain_pairs.add_column("margin", [0.1 * i for i in range(len(plain_pairs))])
    assert_trl_losses(reward_config, reward_trainer, tiny_folder(), pairs)


def test_steps_on_real_pairs_are_trls(reward_config, reward_trainer, tiny_folder, real_pairs):
    # what is longer than `max_length` TRL drops and we shorten, so only pairs that fit can be compared
    lengths = reward_trainer(
        real_pairs, model=tiny_folder(max_position_embeddings=4096), max_length=None
    ).train_dataset
    fits = [max(map(len, ids)) <= 256 for ids in zip(lengths["chosen_ids"], lengths["rejected_ids"], strict=True)]
    assert sum(fits) > 100
    pairs = real_pairs.select([i for i, fit in enumerate(fits) if fit])
    assert_trl_losses(reward_config, reward_trainer, tiny_folder(), pairs)


@pytest.mark.parametrize("name", PREFERENCE_MODELS)
def test_every_preference_model_trains_and_evaluates(reward_trainer, chat_pairs, name):
    pairs = chat_pairs.add_column("strength", [1.0 + i % 3 for i in range(len(chat_pairs))])
    trainer = reward_trainer(pairs, eval_dataset=pairs.select(range(7)), **PREFERENCE_MODELS[name])
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.train()
    metrics = trainer.evaluate()
    assert all(math.isfinite(loss) for loss in logged(trainer, "loss"))
    assert metrics["eval_pairs"] == 7
    assert metrics["eval_loss"] > 0
    moved = [key for key, value in trainer.model.state_dict().items() if not torch.equal(value, before[key])]
    assert {key for key in before if "score" in key} <= set(moved)


@pytest.mark.parametrize("name", ["unbiased", "multi-scale"])
def test_training_learns_the_pairs_by_heart(reward_trainer, plain_pairs, name):
    options = {"max_steps": 30, "learning_rate": 1e-2, "per_device_train_batch_size": 8}
    trainer = reward_trainer(eval_dataset=plain_pairs, **PREFERENCE_MODELS[name], **options)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.7 * before["eval_loss"]
    assert after["eval_accuracy"] > 0.9


def test_loss_of_a_pair_by_hand(reward_trainer, reward_folder):
    trainer = reward_trainer(model=reward_folder(), scale_loss_weight=0.25)
    _, pairs = first_pairs(trainer)
    expected = -logsigmoid(pairs.chosen - pairs.rejected)
    for k in range(3):
        expected = expected - 0.25 * logsigmoid(pairs.scale_chosen[:, k] - pairs.scale_rejected[:, k])
    torch.testing.assert_close(pairs.loss, expected)
    mixed = (pairs.gate * pairs.scale_chosen).sum(1)
    torch.testing.assert_close(pairs.chosen, mixed)  # the prompt is the same, so the pair has one gate
    torch.testing.assert_close(pairs.scale_losses, -logsigmoid(pairs.scale_chosen - pairs.scale_rejected))


def test_strength_weighs_the_loss(reward_trainer, plain_pairs, reward_folder):
    strengths = [1.0, 2.0, 3.0, 6.0] * 6  # mean 3
    pairs = plain_pairs.add_column("strength", strengths)
    weighted = reward_trainer(pairs, model=reward_folder())
    batch, scored = first_pairs(weighted)
    torch.testing.assert_close(batch["weight"], torch.tensor([1 / 3, 2 / 3, 1.0, 2.0]))
    _, plain = first_pairs(reward_trainer(pairs, model=reward_folder(), weight_by_strength=False))
    torch.testing.assert_close(scored.loss, plain.loss * torch.tensor([1 / 3, 2 / 3, 1.0, 2.0]))


def test_weights_survive_the_dataloader(reward_trainer, plain_pairs):
    pairs = plain_pairs.add_column("strength", [1.0] * 24).add_column("margin", [0.5] * 24)
    batch = next(iter(reward_trainer(pairs).get_train_dataloader()))
    assert batch["weight"].tolist() == [1.0] * 4
    assert batch["margin"].tolist() == [0.5] * 4
    assert batch["response_start"].shape == (8,)


def test_margin_and_label_smoothing_enter_the_loss(reward_trainer, plain_pairs, reward_folder):
    pairs = plain_pairs.add_column("margin", [0.5] * 24)
    options = {**PLAIN_RESPONSE, "label_smoothing_factor": 0.1}
    trainer = reward_trainer(pairs, model=reward_folder("qwen3", ["response"], "none"), **options)
    _, scored = first_pairs(trainer)
    gap = scored.chosen - scored.rejected - 0.5
    torch.testing.assert_close(scored.loss, -0.9 * logsigmoid(gap) - 0.1 * logsigmoid(-gap))


@pytest.fixture
def four_right_and_one_wrong(reward_trainer, reward_folder, plain_pairs):
    """Pairs that a response model ranks right, and last one that it ranks wrong."""
    trainer = reward_trainer(model=reward_folder("qwen3", ["response"], "none"), **PLAIN_RESPONSE)
    chosen, rejected = score_alone(trainer, trainer.train_dataset)
    right, wrong = (chosen > rejected).nonzero().flatten().tolist(), (chosen < rejected).nonzero().flatten().tolist()
    return plain_pairs.select([*right[:4], wrong[0]])


def test_evaluation_accuracy_is_exact_where_trls_is_not(
    reward_trainer, reward_config, reward_folder, plain_pairs, four_right_and_one_wrong
):
    folder = reward_folder("qwen3", ["response"], "none")
    ours = reward_trainer(
        model=folder, eval_dataset=four_right_and_one_wrong, per_device_eval_batch_size=4, **PLAIN_RESPONSE
    )
    metrics = ours.evaluate()
    chosen, rejected = score_alone(ours, ours.eval_dataset)
    assert (chosen > rejected).tolist() == [True] * 4 + [False]
    assert metrics["eval_accuracy"] == pytest.approx(0.8)
    assert metrics["eval_pairs"] == 5
    assert metrics["eval_margin"] == pytest.approx((chosen - rejected).mean().item(), abs=1e-5)
    assert metrics["eval_loss"] == pytest.approx(-logsigmoid(chosen - rejected).mean().item(), abs=1e-5)
    config = reward_config(RewardConfig, per_device_eval_batch_size=4)
    theirs = RewardTrainer(folder, config, train_dataset=plain_pairs, eval_dataset=four_right_and_one_wrong)
    assert theirs.evaluate()["eval_accuracy"] == pytest.approx((1.0 + 0.0) / 2)  # a mean of two batches


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_evaluation_does_not_depend_on_the_batch_size(reward_trainer, reward_folder, plain_pairs, batch_size):
    held_out = plain_pairs.select(range(7))
    trainer = reward_trainer(model=reward_folder(), eval_dataset=held_out, per_device_eval_batch_size=batch_size)
    metrics = trainer.evaluate()
    chosen, rejected = score_alone(trainer, trainer.eval_dataset)
    assert metrics["eval_accuracy"] == pytest.approx((chosen > rejected).float().mean().item())
    assert metrics["eval_min_reward"] == pytest.approx(min(chosen.min(), rejected.min()).item(), abs=1e-5)


def test_ties_count_half(reward_trainer, reward_folder, plain_pairs):
    model = AutoModelForMultiScaleReward.from_pretrained(reward_folder("qwen3", ["response"], "none"))
    model.score.weight.data.zero_()
    metrics = reward_trainer(model=model, eval_dataset=plain_pairs.select(range(5)), **PLAIN_RESPONSE).evaluate()
    assert metrics["eval_accuracy"] == 0.5
    assert metrics["eval_ties"] == 5


def test_compute_metrics_gets_one_row_a_pair(reward_trainer, reward_folder, plain_pairs):
    seen = []

    def keep(prediction):
        seen.append(PairScores(*prediction.predictions))
        return {"wins": float((seen[-1].chosen > seen[-1].rejected).sum())}

    trainer = reward_trainer(
        model=reward_folder(),
        eval_dataset=plain_pairs.select(range(5)),
        compute_metrics=keep,
        per_device_eval_batch_size=4,
    )
    metrics = trainer.evaluate()
    chosen, rejected = score_alone(trainer, trainer.eval_dataset)
    assert {column.shape for column in seen[0]} == {(5,), (5, 3)}
    np.testing.assert_allclose(seen[0].chosen, chosen, atol=1e-5)
    np.testing.assert_allclose(seen[0].rejected, rejected, atol=1e-5)
    assert metrics["eval_wins"] == (chosen > rejected).sum().item()


FIGURES = {"accuracy", "accuracy_low", "accuracy_high", "ties"}
EXPECTED = {*FIGURES, "pairs", "margin", "min_reward", "mean_reward", "max_reward", "length_correlation", "loss"}
EXPECTED |= {f"{name}/longer_wins" for name in FIGURES} | {"num_tokens"}
EXPECTED |= {
    f"{name}/{scale}" for name in (*FIGURES, "loss", "margin", "gate") for scale in ("token", "segment", "response")
}


def test_names_of_the_metrics(reward_trainer, plain_pairs):
    trainer = reward_trainer(eval_dataset=plain_pairs.select(range(5)))
    trainer.train()
    trainer.evaluate()
    train, evaluated = trainer.state.log_history[0], trainer.state.log_history[-1]
    assert EXPECTED | {"grad_norm", "learning_rate", "epoch"} == train.keys() - {"step"}
    own = {key.removeprefix("eval_") for key in evaluated if key.startswith("eval_")}
    assert own - {"runtime", "samples_per_second", "steps_per_second", "model_preparation_time"} == EXPECTED


def test_training_figures_are_exact_over_the_pairs_since_the_last_log(reward_trainer, reward_folder, plain_pairs):
    options = {"logging_steps": 3, "per_device_train_batch_size": 8, "learning_rate": 0.0}
    trainer = reward_trainer(plain_pairs.select(range(20)), model=reward_folder(), **options)
    trainer.train()  # three batches, of 8, 8 and 4 pairs
    chosen, rejected = score_alone(trainer, trainer.train_dataset)
    assert logged(trainer, "pairs") == [20.0]
    assert logged(trainer, "accuracy") == pytest.approx([(chosen > rejected).double().mean().item()])
    assert logged(trainer, "margin") == pytest.approx([(chosen - rejected).mean().item()], abs=1e-5)


def test_an_epochs_last_step_of_several_batches_counts_all_its_pairs(reward_trainer, reward_folder, plain_pairs):
    # Transformers fetches all batches of a step before it trains on the first, and accelerate calls each the last
    options = {"gradient_accumulation_steps": 3, "max_steps": 1, "shared_prompts": False}
    trainer = reward_trainer(plain_pairs.select(range(10)), model=reward_folder(), **options)
    trainer.train()
    assert logged(trainer, "pairs") == [10.0]
    rows = zip(trainer.train_dataset["chosen_ids"], trainer.train_dataset["rejected_ids"], strict=True)
    assert logged(trainer, "num_tokens") == [sum(len(chosen) + len(rejected) for chosen, rejected in rows)]


def test_weights_and_margins_stay_exact_in_a_bfloat16_engine(reward_trainer, plain_pairs, monkeypatch):
    pairs = plain_pairs.add_column("strength", [1.0, 3.0] * 12).add_column("margin", [1.001] * 24)
    trainer = reward_trainer(pairs)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    engine = HfTrainerDeepSpeedConfig({"bf16": {"enabled": True}, "zero_optimization": {"stage": 0}})
    engine.trainer_config_process(trainer.args)
    plugin = DeepSpeedPlugin(hf_ds_config=engine)
    monkeypatch.setattr(type(trainer.accelerator.state), "deepspeed_plugin", plugin)
    trainer.is_deepspeed_enabled = True
    prepared = trainer._prepare_inputs({**batch, "other": torch.tensor([1.001])})
    assert prepared["other"].dtype == torch.bfloat16
    for column in ("margin", "weight"):
        assert torch.equal(prepared[column], batch[column])
    assert prepared["margin"].tolist() == [pytest.approx(1.001)] * 4


def test_what_is_pushed_to_the_hub_during_training_can_be_loaded(reward_trainer, reward_config, tmp_path, monkeypatch):
    trainer = reward_trainer(peft_config=LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"]))
    pushed = []

    class Hub:  # there is none here: it keeps what would be uploaded
        def upload_folder(self, folder_path, **_):
            pushed.append(shutil.copytree(folder_path, tmp_path / "pushed"))

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    monkeypatch.setattr("transformers.trainer.PushInProgress", lambda jobs: None)
    trainer.hub_model_id, trainer.push_in_progress = "me/reward", None
    trainer.save_model(str(tmp_path / "checkpoint-1"))
    trainer._push_from_checkpoint(str(tmp_path / "checkpoint-1"))
    loaded = AutoModelForMultiScaleReward.from_pretrained(str(pushed[0]))
    assert base_reward_model(loaded).settings == trainer.reward_model.settings


def test_training_on_from_an_adapter_takes_the_tokenizer_beside_it(reward_trainer, chat_pairs, tmp_path):
    first = reward_trainer(chat_pairs, peft_config=LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"]))
    first.processing_class.chat_template += "<other>"
    first.save_model(str(tmp_path / "adapter"))
    again = reward_trainer(chat_pairs, model=str(tmp_path / "adapter"))
    assert again.processing_class.chat_template.endswith("<other>")
    for file in (tmp_path / "adapter").glob("*token*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"not the one that was saved with it: tokenizer\.json is missing"):
        reward_trainer(chat_pairs, model=str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "prefscale.json").unlink()
    again = reward_trainer(chat_pairs, model=str(tmp_path / "adapter"))  # has the base's, as none is beside it
    assert not again.processing_class.chat_template.endswith("<other>")


def test_each_evaluation_set_has_its_own_figures(reward_trainer, plain_pairs, reward_folder):
    sets = {"first": plain_pairs.select(range(5)), "second": plain_pairs.select(range(5, 12))}
    metrics = reward_trainer(model=reward_folder(), eval_dataset=sets).evaluate()
    assert (metrics["eval_first_pairs"], metrics["eval_second_pairs"]) == (5, 7)


def test_a_data_set_given_to_evaluate_is_prepared(reward_trainer, plain_pairs, reward_folder):
    trainer = reward_trainer(model=reward_folder())
    assert trainer.evaluate(plain_pairs.select(range(3)))["eval_pairs"] == 3


def test_long_pairs_lose_prompt_tokens_and_that_is_said(reward_trainer, plain_pairs, caplog):
    whole = reward_trainer(max_length=None).train_dataset
    limit = 30
    over = [
        max(0, len(c) - limit, len(r) - limit) for c, r in zip(whole["chosen_ids"], whole["rejected_ids"], strict=True)
    ]
    assert 0 < sum(map(bool, over)) < len(over)
    fits = [len(ids) - start < limit for ids, start in zip(whole["chosen_ids"], whole["chosen_start"], strict=True)]
    fits = [
        ok and len(r) - s < limit
        for ok, r, s in zip(fits, whole["rejected_ids"], whole["rejected_start"], strict=True)
    ]
    kept = [i for i, ok in enumerate(fits) if ok]
    over = [over[i] for i in kept]
    with caplog.at_level(logging.WARNING):
        cut = reward_trainer(plain_pairs.select(kept), max_length=limit).train_dataset
    assert len(cut) == len(kept)
    assert cut["cut_tokens"][:] == over
    for i, k in enumerate(kept):
        for side in ("chosen", "rejected"):
            assert cut[i][f"{side}_ids"] == whole[k][f"{side}_ids"][over[i] :]
            assert cut[i][f"{side}_start"] == whole[k][f"{side}_start"] - over[i]
    hit = [tokens for tokens in over if tokens]
    assert f"'train': {len(hit)} of {len(kept)} pairs were longer than `max_length={limit}`" in caplog.text
    assert f"{max(hit)} at most" in caplog.text


def test_a_response_that_is_too_long_is_named_or_dropped(reward_trainer, plain_pairs, caplog):
    rows = plain_pairs.to_list()[:3]
    rows[1]["rejected"] = " much too long" * 40
    with pytest.raises(ValueError, match=r"Data set 'train', row 2, column 'rejected': a response of \d+ tokens"):
        reward_trainer(Dataset.from_list(rows), max_length=60)
    rows[2]["chosen"] = " much too long" * 50
    with pytest.raises(ValueError, match=r"'train', row 2, column 'rejected'.*It is the first of 2 such rows of 3"):
        reward_trainer(Dataset.from_list(rows), max_length=60)
    with caplog.at_level(logging.WARNING):
        kept = reward_trainer(Dataset.from_list(rows), max_length=60, drop_long_pairs=True).train_dataset
    assert len(kept) == 1
    assert "'train': left out 2 of 3 pairs, of which a response alone is longer than `max_length`=60" in caplog.text
    many = [rows[0]] * 1100 + [rows[1]]  # `datasets` settles the columns' types after 1,000 rows
    with pytest.raises(ValueError, match=r"'train', row 1101, column 'rejected'"):
        reward_trainer(Dataset.from_list(many), max_length=60)
    with pytest.raises(ValueError, match=r"Data set 'held out', row 2, column 'rejected'"):
        reward_trainer(eval_dataset={"held out": Dataset.from_list(rows)}, max_length=60)


def test_an_empty_prompt_needs_a_score_that_does_not_read_it(reward_trainer, plain_pairs):
    rows = plain_pairs.to_list()[:4]
    rows[2]["prompt"] = ""
    with pytest.raises(
        ValueError, match=r"Data set 'train', row 3, column 'prompt': the prompt is empty, but `context`"
    ):
        reward_trainer(Dataset.from_list(rows))
    trainer = reward_trainer(Dataset.from_list(rows), context="none", max_steps=1)
    trainer.train()
    assert trainer.train_dataset["chosen_start"][2] == 0


def test_a_streamed_data_set_is_refused(reward_trainer, plain_pairs):
    with pytest.raises(TypeError, match=r"Data set 'train' is streamed.*load it whole"):
        reward_trainer(plain_pairs.to_iterable_dataset())


def test_lora_of_another_task_is_refused(reward_trainer):
    for task in (None, "CAUSAL_LM"):
        with pytest.raises(ValueError, match=r"Set `task_type='SEQ_CLS'`, or `--lora_task_type SEQ_CLS`"):
            reward_trainer(peft_config=LoraConfig(task_type=task))


def test_the_callers_configuration_is_left_as_it_was(reward_trainer, reward_config, tiny_folder, plain_pairs):
    config = reward_config(model_init_kwargs={"attn_implementation": "eager"})
    trainer = MultiScaleRewardTrainer(tiny_folder(), config, plain_pairs)
    assert config.model_init_kwargs == {"attn_implementation": "eager"}
    assert trainer.model.config._attn_implementation == "eager"


def test_a_saved_model_goes_on_with_the_same_figures(reward_trainer, plain_pairs, tmp_path):
    held_out = plain_pairs.select(range(6))
    trainer = reward_trainer(eval_dataset=held_out)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    again = reward_trainer(model=str(tmp_path / "saved"), eval_dataset=held_out)
    first, second = trainer.evaluate(), again.evaluate()
    for key in EXPECTED - {"num_tokens"}:
        assert second[f"eval_{key}"] == pytest.approx(first[f"eval_{key}"], abs=1e-6), key


def test_a_model_and_a_configuration_that_disagree_are_refused(reward_trainer, tiny_folder, plain_pairs):
    settings = MultiScaleSettings(scales=["token"], context="none")
    model = AutoModelForMultiScaleReward.from_pretrained(tiny_folder(), settings)
    with pytest.raises(ValueError, match=r"The model has `scales=\['token'\]`"):
        reward_trainer(plain_pairs, model=model)


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])  # the first names the kind of every layer
@pytest.mark.parametrize("adapter", [False, True])
def test_fewer_layers_are_read_and_kept(reward_trainer, tiny_folder, plain_pairs, tmp_path, architecture, adapter):
    options = {"target_modules": "all-linear", "fan_in_fan_out": architecture == "gpt2"}
    lora = LoraConfig(task_type="SEQ_CLS", r=4, **options) if adapter else None
    folder = tiny_folder(architecture)
    trainer = reward_trainer(model=folder, num_hidden_layers=1, shared_prompts=False, max_steps=2, peft_config=lora)
    trainer.train()
    trainer.save_model(str(tmp_path))
    base = trainer.reward_model
    assert base.config.num_hidden_layers == base.settings.num_hidden_layers == 1
    again = AutoModelForMultiScaleReward.from_pretrained(str(tmp_path)).eval()
    batch, _ = first_pairs(trainer)
    batch = {key: batch[key] for key in ("input_ids", "attention_mask", "response_start")}
    trainer.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, trainer.model(**batch).logits)
        # A decoder that ends there reads what the whole one says there, behind its final norm
        whole = AutoModelForCausalLM.from_pretrained(folder)
        rows = {key: batch[key] for key in ("input_ids", "attention_mask")}
        states = whole(**rows, output_hidden_states=True).hidden_states[1]
        norm = whole.base_model.norm if architecture == "qwen3" else whole.base_model.ln_f
        fresh = AutoModelForMultiScaleReward.from_pretrained(folder, MultiScaleSettings(num_hidden_layers=1))
        read = fresh.base_model(**rows).last_hidden_state
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(read[real], norm(states)[real])
    # Trained on by name, it stays as it is, with or without a word of the layers
    assert base_reward_model(reward_trainer(model=str(tmp_path)).model).config.num_hidden_layers == 1


def test_a_number_of_layers_that_a_model_has_not_is_refused(reward_trainer, tiny_folder):
    with pytest.raises(ValueError, match=r"`num_hidden_layers` is 3, and the decoder has 2 layers"):
        reward_trainer(num_hidden_layers=3)
    model = AutoModelForMultiScaleReward.from_pretrained(tiny_folder(), MultiScaleSettings(context="gate"))
    with pytest.raises(ValueError, match=r"The model has 2 layers, and `num_hidden_layers` is 1"):
        reward_trainer(model=model, num_hidden_layers=1)


def test_training_on_does_not_change_how_a_gate_reads(reward_trainer, reward_model, tokenizer, tmp_path):
    model = reward_model()
    model.settings.unit_prompt = model.score.unit_prompt = False
    model.set_layout([], [])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert reward_trainer(model=str(tmp_path)).reward_model.score.unit_prompt is False
    assert reward_trainer().reward_model.score.unit_prompt is True


@pytest.mark.parametrize("adapter", [False, True])
def test_a_run_that_began_before_goes_on_with_its_gate(reward_trainer, tmp_path, adapter):
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear") if adapter else None
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "peft_config": lora}
    trainer = reward_trainer(**options)
    trainer.train()
    checkpoint = Path(trainer.args.output_dir, "checkpoint-1")
    [file] = checkpoint.glob("resume_state_*.pt")
    state = torch.load(file, weights_only=True)
    assert state.pop("unit_prompt") is True
    torch.save(state, file)
    write_manifest(checkpoint)
    trainer = reward_trainer(**options)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    heads = [module for module in trainer.model.modules() if isinstance(module, MultiScaleHead)]
    assert not any(head.unit_prompt for head in heads)
    trainer.save_model(str(tmp_path / "final"))
    again = AutoModelForMultiScaleReward.from_pretrained(str(tmp_path / "final"))
    assert base_reward_model(again).settings.unit_prompt is False


def test_shared_and_unshared_runs_have_the_same_losses(reward_trainer, chat_pairs):
    options = {"max_steps": 20, "eval_dataset": chat_pairs.select(range(7))}
    shared, unshared = (reward_trainer(chat_pairs, shared_prompts=share, **options) for share in (None, False))
    for trainer in (shared, unshared):
        trainer.train()
    assert logged(shared, "loss") == pytest.approx(logged(unshared, "loss"), abs=1e-5)
    assert logged(shared, "grad_norm") == pytest.approx(logged(unshared, "grad_norm"), rel=1e-4)
    assert logged(shared, "num_tokens")[-1] < logged(unshared, "num_tokens")[-1]
    ours, theirs = shared.evaluate(), unshared.evaluate()
    for key in ("eval_loss", "eval_accuracy", "eval_margin", "eval_gate/token"):
        assert ours[key] == pytest.approx(theirs[key], abs=1e-5), key


def test_lora_and_checkpointed_runs_share_too(reward_trainer, chat_pairs):
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear")
    losses = []
    for share in (True, False):
        options = {"shared_prompts": share, "activation_checkpointing": True, "peft_config": lora, "max_steps": 6}
        trainer = reward_trainer(chat_pairs, learning_rate=1e-2, **options)
        trainer.train()
        losses.append(logged(trainer, "loss"))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0][0] != pytest.approx(losses[0][-1], abs=1e-3)


def test_shared_prompts_in_four_bits(reward_config, tiny_folder, chat_pairs):
    losses = []
    for share in (True, False):
        trainer = MultiScaleRewardTrainer(
            tiny_folder("qwen3", hidden_size=64, head_dim=32),
            reward_config(shared_prompts=share, max_steps=6, learning_rate=1e-2),
            chat_pairs,
            quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
            peft_config=LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear"),
        )
        trainer.train()
        losses.append(logged(trainer, "loss"))
    assert losses[0] == pytest.approx(losses[1], abs=2e-2)  # the adapters are bfloat16, with three digits
    assert losses[0][0] != pytest.approx(losses[0][-1], abs=0.1)


def test_batches_by_tokens_weigh_every_pair_of_a_step_alike(reward_trainer, chat_pairs):
    # One step over all pairs: in two unequal batches by their tokens, in six equal ones, and in one.
    ways = [
        {"max_tokens_per_batch": 600, "max_steps": 1},
        {"train_sampling_strategy": "batch_rebalance", "per_device_train_batch_size": 4},
        {"per_device_train_batch_size": 24},
    ]
    found = []
    for options in ways:
        trainer = reward_trainer(chat_pairs, **{"max_steps": 1, **options})
        batches = len(trainer.get_train_dataloader())
        trainer = reward_trainer(chat_pairs, gradient_accumulation_steps=batches, **{"max_steps": 1, **options})
        sizes = {len(batch["response_start"]) for batch in trainer.get_train_dataloader()}
        trainer.train()
        found.append((len(sizes) > 1, logged(trainer, "loss")[0], logged(trainer, "grad_norm")[0]))
    assert [uneven for uneven, _, _ in found] == [True, True, False]
    for _, loss, grad_norm in found[:2]:
        assert loss == pytest.approx(found[2][1], abs=1e-5)
        assert grad_norm == pytest.approx(found[2][2], rel=1e-4)
    assert logged(trainer, "pairs")[0] == 24


@pytest.mark.parametrize("shared", [True, False])
def test_batches_by_tokens_count_the_padding(reward_trainer, chat_pairs, shared):
    options = {"max_tokens_per_batch": 512, "pad_to_multiple_of": 64, "shared_prompts": shared}
    batches = list(reward_trainer(chat_pairs, **options).get_train_dataloader())
    assert max(batch["input_ids"].numel() for batch in batches) <= 512
    assert all(batch["input_ids"].size(1) % 64 == 0 for batch in batches)


def test_a_collator_that_would_be_replaced_is_refused(reward_folder, reward_config, plain_pairs):
    with pytest.raises(ValueError, match="`data_collator` cannot be set"):
        MultiScaleRewardTrainer(reward_folder(), reward_config(), plain_pairs, data_collator=lambda rows: rows)


def test_what_is_asked_of_a_decoder_that_cannot_share(reward_trainer, tiny_folder, chat_pairs):
    window = {"architecture": "qwen3", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    folder = tiny_folder(**window)
    with pytest.raises(ValueError, match=r"cannot run both sides of a pair in one row: .* it has layers of the kinds"):
        reward_trainer(chat_pairs, model=folder, shared_prompts=True)
    trainer = reward_trainer(chat_pairs, model=folder)
    trainer.train()
    assert "branch_ids" not in next(iter(trainer.get_train_dataloader()))


@pytest.mark.parametrize("lora", [False, True])
def test_the_coarse_scales_gradient_grows_over_the_warmup(reward_trainer, plain_pairs, lora):
    adapters = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear") if lora else None
    trainer = reward_trainer(plain_pairs, peft_config=adapters, coarse_warmup=0.5)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])

    def gradients(step, scales):
        """Of the chosen responses' scores at some scales, into the decoder alone."""
        trainer.state.global_step, trainer.state.max_steps = step, 8
        trainer.callback_handler.on_step_begin(trainer.args, trainer.state, trainer.control)
        trainer.model.zero_grad()
        _, pairs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
        pairs.scale_chosen[:, scales].sum().backward()
        named = trainer.model.named_parameters()
        found = [p.grad.flatten() for name, p in named if "score" not in name and p.grad is not None]
        return torch.cat(found)

    coarse, whole = gradients(4, [1, 2]), gradients(4, [0, 1, 2])
    assert coarse.norm() > 0
    torch.testing.assert_close(gradients(0, [1, 2]), torch.zeros_like(coarse))
    torch.testing.assert_close(gradients(1, [1, 2]), coarse / 4)
    torch.testing.assert_close(gradients(7, [1, 2]), coarse)
    torch.testing.assert_close(gradients(0, [0, 1, 2]), whole - coarse)  # the token scale's is never held back


@pytest.mark.parametrize("values", [[5.0, 0.1] * 12, [0.0] * 24, ["high"] * 24])
def test_columns_by_the_trainers_own_names_have_no_say(reward_trainer, plain_pairs, reward_folder, caplog, values):
    plain_pairs = plain_pairs.add_column("strength", [1.0, 3.0] * 12)
    named = plain_pairs.add_column("weight", values).add_column("shared_tokens", [1] * 24)
    with caplog.at_level(logging.WARNING):
        batch, scored = first_pairs(reward_trainer(named, model=reward_folder()))
    _, expected = first_pairs(reward_trainer(plain_pairs, model=reward_folder()))
    assert torch.equal(scored.loss, expected.loss)
    assert batch["weight"].tolist() == [0.5, 1.5, 0.5, 1.5]
    assert "'train': the columns ['weight', 'shared_tokens'] have names that the trainer uses itself" in caplog.text


def test_a_loss_that_is_not_finite_stops_the_run(reward_trainer, plain_pairs):
    trainer = reward_trainer(plain_pairs)
    with torch.no_grad():
        trainer.model.score.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="The loss of a pair is not finite after step 0"):
        trainer.train()


def test_a_training_without_a_step_is_refused(reward_trainer, plain_pairs):
    with pytest.raises(ValueError, match="leaves none of the 3 pairs, which are fewer than a batch of 4"):
        reward_trainer(plain_pairs.select(range(3)), dataloader_drop_last=True)
