"""Scores less the value of an empty response, and pairs whose sides answer different prompts."""

import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from tests.helpers import logged
from toolkit import AutoModelForMultiScaleReward, MultiScaleRewardTrainer, MultiScaleSettings, RewardFunction
from toolkit.pages.explain import explain
from toolkit.reward.evaluation import evaluate_pairs
from toolkit.reward.export import export
from toolkit.reward.head import MultiScaleHead
from toolkit.reward.losses import pairwise_logistic_loss
from toolkit.reward.pooling import load_pooled_head, read_pooled
from toolkit.reward.reading import read_scores
from toolkit.reward.record import what_stock_reads
from toolkit.stats.metrics import summarize_pairs
from toolkit.training.run_record import EXAMPLES_NAME, save_pair_examples

ALL = ["token", "segment", "response"]


@pytest.fixture(scope="module")
def crossed_pairs(chat_pairs):
    """Pairs whose rejected side answers the prompt of the row before, but for every third."""
    rows = chat_pairs.to_list()
    for i, row in enumerate(rows):
        row["rejected_prompt"] = row["prompt"] if i % 3 == 0 else rows[i - 1]["prompt"]
    return Dataset.from_list(rows)


@pytest.fixture
def train_on(reward_config, tiny_folder):
    def make(data, eval_dataset=None, **options):
        return MultiScaleRewardTrainer(tiny_folder(), reward_config(**options), data, eval_dataset)

    return make


@pytest.mark.parametrize("centred", [True, False])
def test_two_prompts_by_hand(centred):
    # The one prompt promises 1.5 and its response 2; the other 0.1 and 1, which is the greater gain
    settings = MultiScaleSettings(["response"], centre_by_prompt=centred)
    head = MultiScaleHead(1, settings)
    head.weight.data.fill_(1.0)
    hidden, response = torch.tensor([[1.5, 2.0], [0.1, 1.0]])[..., None], torch.tensor([[False, True]] * 2)
    context = torch.zeros(2, dtype=torch.long)
    found = read_scores(head(hidden, context), response, torch.zeros_like(response), context, ["response"])
    first, second = found.logits.flatten()
    torch.testing.assert_close(torch.stack([first, second]), torch.tensor([0.5, 0.9] if centred else [2.0, 1.0]))
    expected = math.log1p(math.exp(0.4 if centred else -1.0))  # 0.9130 and 0.3133
    assert pairwise_logistic_loss(first, second).item() == pytest.approx(expected)
    assert found.prompt_value.flatten().tolist() == pytest.approx([0, 0] if centred else [1.5, 0.1])


@pytest.mark.parametrize("context", ["none", "gate", "head"])
def test_a_score_loses_the_value_of_its_prompt_at_every_prefix(reward_model, tokenizer, chat_pairs, context):
    model = reward_model("qwen3", ALL, context)
    function = RewardFunction(model, processing_class=tokenizer)
    prompts, responses = list(chat_pairs["prompt"][:4]), list(chat_pairs["chosen"][:4])
    before = function.score(prompts, responses)
    model.settings.centre_by_prompt = model.score.centre_by_prompt = True
    for plain, centred in zip(before, function.score(prompts, responses), strict=True):
        assert plain.prompt_value.abs().sum() > 1e-3
        assert centred.reward == pytest.approx(plain.reward - plain.prompt_value.sum().item(), abs=1e-5)
        torch.testing.assert_close(centred.prefix_values, plain.prefix_values - plain.prompt_value)
        assert not centred.prompt_value.any()
    # its parts still add up
    (explained,) = explain(function, prompts[0], responses[:1])
    assert sum(explained.parts) == pytest.approx(explained.reward, abs=1e-5)


def test_with_one_prompt_a_pair_costs_what_it_did(train_on, chat_pairs):
    options = {"context": "gate", "learning_rate": 1e-2, "max_steps": 4}
    plain, centred = (train_on(chat_pairs, centre_by_prompt=centre, **options) for centre in (False, True))
    for trainer in (plain, centred):
        trainer.train()
    for key in ("loss", "margin", "loss/response"):
        assert logged(centred, key) == pytest.approx(logged(plain, key), abs=1e-5), key
    assert logged(centred, "mean_reward") != pytest.approx(logged(plain, "mean_reward"), abs=1e-3)


def test_two_prompts_train_alike_packed_grouped_frozen_and_not(train_on, crossed_pairs):
    options = {"centre_by_prompt": True, "learning_rate": 1e-2, "max_steps": 4, "eval_dataset": crossed_pairs}
    packed, plain = (train_on(crossed_pairs, shared_prompts=share, **options) for share in (True, False))
    frozen = train_on(crossed_pairs, freeze_decoder=True, **options)
    grouped = train_on(crossed_pairs, group_by_prompt=True, per_device_train_batch_size=24, **options)
    whole = train_on(crossed_pairs, per_device_train_batch_size=24, **options)
    decoder = train_on(crossed_pairs, **options)
    for name, parameter in decoder.model.named_parameters():
        parameter.requires_grad_(name.startswith("score."))
    for trainer in (packed, plain, frozen, decoder, grouped, whole):
        trainer.train()
    assert logged(packed, "num_tokens")[-1] < logged(plain, "num_tokens")[-1]  # what both sides begin with is shared
    for one, other in ((packed, plain), (frozen, decoder), (grouped, whole)):
        assert logged(one, "loss") == pytest.approx(logged(other, "loss"), abs=2e-5)
        assert one.evaluate()["eval_margin"] == pytest.approx(other.evaluate()["eval_margin"], abs=2e-5)


def test_saved_and_loaded_scores_are_those_of_training(train_on, crossed_pairs, tmp_path):
    trainer = train_on(crossed_pairs, crossed_pairs, centre_by_prompt=True, learning_rate=1e-2, max_steps=3)
    trainer.train()
    found = trainer.predict(trainer.eval_dataset)
    save_pair_examples(trainer, found.predictions, each=12)
    assert Path(trainer.args.output_dir, EXAMPLES_NAME).read_text().count("(It answers: ") > 0
    trainer.save_model(str(tmp_path / "saved"))
    reward = RewardFunction(str(tmp_path / "saved"))
    assert reward.settings.centre_by_prompt
    scored = evaluate_pairs(reward, trainer.eval_dataset)
    expected = {key: found.metrics[f"test_{key}"] for key in ("margin", "accuracy", "mean_reward")}
    summary = summarize_pairs(scored, reward.settings.scales)
    assert {key: summary[key] for key in expected} == pytest.approx(expected, abs=1e-5)
    row = trainer.eval_dataset[1]
    assert row["rejected_prompt"] != row["prompt"]
    other = reward([row["rejected_prompt"]], [row["rejected"]])
    assert scored.rejected[1].item() == pytest.approx(other[0], abs=1e-5)


def test_engines_and_stock_classes_are_told(reward_model, tokenizer, chat_pairs, tmp_path):
    model = reward_model("qwen3", ["response"], "none")
    assert what_stock_reads(model, False) is None
    model.settings.centre_by_prompt = model.score.centre_by_prompt = True
    model.config.multi_scale = asdict(model.settings)
    assert "without taking off the value of an empty response" in what_stock_reads(model, False)
    model.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="Use the form 'pooling'"):
        export(str(tmp_path / "whole"), tmp_path / "stock", "stock")
    export(str(tmp_path / "whole"), tmp_path / "pooling", "pooling")
    reward, head = RewardFunction(str(tmp_path / "whole")), load_pooled_head(tmp_path / "pooling")
    row = reward.encode(chat_pairs["prompt"][0], chat_pairs["chosen"][0])
    engine = AutoModelForSequenceClassification.from_pretrained(tmp_path / "pooling").eval()
    ids = torch.tensor([row.input_ids])
    with torch.no_grad():
        logits = engine.model(ids).last_hidden_state @ engine.score.weight.T
    found = read_pooled(logits, ids, head, response_start=torch.tensor([row.response_start]))
    assert found.logits.item() == pytest.approx(reward.score_encoded([row])[0].reward, abs=1e-5)


def test_an_empty_prompt_and_a_model_without_are_refused(train_on, reward_folder, reward_config, plain_pairs):
    with pytest.raises(ValueError, match=r"centres the response head, but `scales` is \['token'\]. Add 'response'"):
        reward_config(centre_by_prompt=True, scales=["token"], context="none")
    rows = Dataset.from_list([row | {"prompt": ""} for row in plain_pairs.to_list()])
    with pytest.raises(ValueError, match=r"the prompt is empty, but `context` or `centre_by_prompt` reads it"):
        train_on(rows, centre_by_prompt=True)
    with pytest.raises(ValueError, match=r"was saved with `centre_by_prompt=False`, and `centre_by_prompt=True` is"):
        MultiScaleRewardTrainer(reward_folder(), reward_config(centre_by_prompt=True), plain_pairs)
    model = AutoModelForMultiScaleReward.from_pretrained(reward_folder())
    with pytest.raises(ValueError, match=r"The model has `centre_by_prompt=False`, the configuration `centre_by_prom"):
        MultiScaleRewardTrainer(model, reward_config(centre_by_prompt=True), plain_pairs)
