"""LoRA and its kin: what is trained, what is saved, and that nothing is lost on the way back."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig, Gemma3TextConfig

from tests.helpers import logged
from tests.tiny import TEMPLATE, pad_rows
from toolkit import (
    AutoModelForMultiScaleReward,
    MultiScaleRewardConfig,
    MultiScaleRewardTrainer,
    MultiScaleSettings,
    RewardFunction,
    SharedBaseRewardFunction,
)
from toolkit.data.probes import NotTried
from toolkit.data.tokens import encode_response
from toolkit.reward.loading import generation_stops, load_tokenizer
from toolkit.reward.scales import SCALES

HEAD = {"weight", "token", "segment", "gate", "gate_bias"}


def lora() -> LoraConfig:
    return LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", lora_dropout=0.0)


@pytest.fixture(scope="module")
def batch(tokenizer, chat_pairs):
    rows = [encode_response(tokenizer, pair["prompt"], pair["chosen"]) for pair in chat_pairs.select(range(5))]
    return pad_rows([row.input_ids for row in rows], [row.response_start for row in rows], tokenizer.pad_token_id)


@pytest.fixture(scope="module")
def trained(tiny_folder, chat_pairs, cpu_options, tmp_path_factory):
    """A trainer after a few LoRA steps, and the folder into which it has saved."""
    folder = str(tmp_path_factory.mktemp("adapter"))
    config = MultiScaleRewardConfig(output_dir=folder, context="gate", max_steps=5, learning_rate=3e-2, **cpu_options)
    trainer = MultiScaleRewardTrainer(tiny_folder(), config, chat_pairs, peft_config=lora())
    trainer.train()
    trainer.save_model(folder)
    return trainer, folder


@pytest.fixture(scope="module")
def scores(trained, batch):
    """What the trained model says before anything is saved or loaded."""
    model = trained[0].model.eval()
    with torch.no_grad():
        return model(**batch)


@pytest.fixture(scope="module")
def merged_folder(trained, tokenizer, tmp_path_factory):
    """The adapter reloaded, merged and saved as a whole model."""
    folder = str(tmp_path_factory.mktemp("merged"))
    AutoModelForMultiScaleReward.from_pretrained(trained[1]).merge_and_unload().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_steps_moved_adapter_and_head(trained, tiny_folder, batch, scores):
    trainer, _ = trained
    parameters = dict(trainer.model.named_parameters())
    assert all(parameters[name].abs().max() > 0 for name in parameters if "lora_B" in name)
    assert scores.gate.std() > 0  # a new gate is even
    assert len(logged(trainer, "loss")) == 5


def test_lora_does_not_reach_into_the_head(trained):
    names = [name for name, _ in trained[0].model.named_parameters() if "lora_" in name]
    assert names
    assert not any("score" in name for name in names)


def test_base_weights_are_frozen(trained):
    trainable = {name for name, p in trained[0].model.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in name or "score.modules_to_save" in name for name in trainable)


def test_whole_head_is_in_the_adapter_file(trained):
    saved = load_file(Path(trained[1], "adapter_model.safetensors"))
    assert {key.removeprefix("base_model.model.score.") for key in saved if ".score." in key} == HEAD
    assert {value.dtype for key, value in saved.items() if ".score." in key} == {torch.float32}
    assert Path(trained[1], "multi_scale.json").is_file()
    assert not Path(trained[1], "config.json").exists()  # with it, stock loaders would look for a whole model


def test_an_adapter_loads_over_the_head_that_it_replaces(trained, batch, scores):
    model = AutoModelForMultiScaleReward.from_pretrained(trained[1]).eval()
    assert isinstance(model, PeftModel)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, scores.logits, atol=1e-5, rtol=0)
        with model.disable_adapter():
            assert not torch.allclose(model(**batch).logits, scores.logits)


def test_an_adapter_without_its_settings_says_so(trained, tmp_path):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(Path(trained[1], name).read_bytes())
    with pytest.raises(ValueError, match=r"has no multi_scale\.json beside it.*save_adapter_settings"):
        AutoModelForMultiScaleReward.from_pretrained(str(tmp_path))


def test_training_goes_on_from_a_saved_adapter(trained, reward_config, chat_pairs):
    trainer = MultiScaleRewardTrainer(
        trained[1], reward_config(max_steps=2, learning_rate=1e-2), chat_pairs, eval_dataset=chat_pairs
    )
    expected = trained[0].evaluate(chat_pairs)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-5)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name or "score.modules_to_save" in name}


def test_full_and_lora_runs_begin_at_the_same_loss(trained, reward_config, tiny_folder, chat_pairs):
    full = MultiScaleRewardTrainer(
        tiny_folder(), reward_config(max_steps=1, per_device_train_batch_size=8), chat_pairs
    )
    full.train()
    assert logged(full, "loss")[0] == pytest.approx(logged(trained[0], "loss")[0], abs=1e-6)


def test_four_bit_training_keeps_the_head_in_float32(tiny_folder, reward_config, chat_pairs, batch, tmp_path):
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    trainer = MultiScaleRewardTrainer(
        tiny_folder("qwen3", hidden_size=64, head_dim=32),
        reward_config(max_steps=2, learning_rate=1e-5),
        chat_pairs,
        quantization_config=quantization,
        peft_config=lora(),
    )
    assert type(trainer.reward_model.model.layers[0].mlp.up_proj.base_layer).__name__ == "Linear4bit"
    head = {name: p for name, p in trainer.model.named_parameters() if "score." in name}
    assert {parameter.dtype for parameter in head.values()} == {torch.float32}
    before = {name: parameter.detach().clone() for name, parameter in head.items()}
    trainer.train()
    # a step of 1e-5 on a weight of 0.2 would be lost in bfloat16
    moved = {name for name in head if not torch.equal(head[name], before[name])}
    assert {name for name in head if "modules_to_save" in name} == moved
    folder = str(tmp_path / "saved")
    trainer.save_model(folder)
    saved = load_file(Path(folder, "adapter_model.safetensors"))
    assert {value.dtype for key, value in saved.items() if ".score." in key} == {torch.float32}
    # and again the same scores, where PEFT would load the bfloat16 adapter as float32
    loaded = AutoModelForMultiScaleReward.from_pretrained(
        folder, quantization_config=quantization, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, trainer.model.eval()(**batch).logits)


@pytest.mark.parametrize("form", ["new", "adapter", "merged"])
def test_head_is_float32_on_a_bfloat16_model(trained, merged_folder, tiny_folder, form):
    folder = {"new": tiny_folder(), "adapter": trained[1], "merged": merged_folder}[form]
    settings = MultiScaleSettings(context="gate") if form == "new" else None
    model = AutoModelForMultiScaleReward.from_pretrained(folder, settings, dtype=torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if "score." in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "embed" in name} == {torch.bfloat16}


def test_stock_class_loads_the_adapter_here_too(trained, batch, scores):
    stock = AutoModelForSequenceClassification.from_pretrained(trained[1], num_labels=1).eval()
    with torch.no_grad():
        logits = stock(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(logits[:, 0], scores.scale_scores[:, SCALES.index("response")], atol=1e-5, rtol=0)


@pytest.fixture(scope="module", params=["by the template's tokenizer", "by the user"])
def with_new_tokens(request, tokenizer, tiny_folder, chat_pairs, cpu_options, tmp_path_factory):
    """A trainer after a few LoRA steps with tokens that its base has not, and the folder into which it has saved."""
    folder = str(tmp_path_factory.mktemp("new-tokens"))
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|new|>"]})
    other.chat_template = TEMPLATE.replace("<|im_start|>", "<|new|>")
    options, model, given = {"max_steps": 3, "learning_rate": 3e-2, **cpu_options}, tiny_folder(), {}
    if request.param == "by the user":
        model = AutoModelForMultiScaleReward.from_pretrained(model, MultiScaleSettings(context="gate"))
        model.resize_token_embeddings(len(other))
        given["processing_class"] = other
    else:
        other.save_pretrained(f"{folder}/template")
        options["chat_template_path"] = f"{folder}/template"
    config = MultiScaleRewardConfig(output_dir=folder, context="gate", **options)
    trainer = MultiScaleRewardTrainer(model, config, chat_pairs, peft_config=lora(), **given)
    trainer.train()
    with pytest.warns(UserWarning, match="embedding layer has been resized"):
        trainer.save_model(folder)
    return trainer, folder


def test_tokens_that_the_base_has_not_come_back(with_new_tokens, chat_pairs, tmp_path):
    trainer, folder = with_new_tokens
    expected = torch.tensor(trainer.predict(trainer.train_dataset).predictions[0])
    assert expected.std() > 0.01

    def scores(name):
        return torch.tensor(RewardFunction(name)(chat_pairs["prompt"][:], chat_pairs["chosen"][:]))

    torch.testing.assert_close(scores(folder), expected, atol=1e-5, rtol=0)
    merged = AutoModelForMultiScaleReward.from_pretrained(folder).merge_and_unload()
    merged.save_pretrained(tmp_path)
    trainer.processing_class.save_pretrained(tmp_path)
    torch.testing.assert_close(scores(str(tmp_path)), expected, atol=1e-5, rtol=0)


def test_tokens_that_the_base_has_not_share_no_base(with_new_tokens):
    with pytest.raises(ValueError, match=r"so it cannot share its base with a policy"):
        SharedBaseRewardFunction(with_new_tokens[1])


def test_an_encoder_is_refused(tokenizer, tmp_path):
    """One with a linear head called `score`, as a decoder's."""
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, use_bidirectional_attention=True, pad_token_id=0, num_labels=1,
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    message = r"cannot be a reward model here: a token's hidden state depends on those after it.*Use a causal model"
    with pytest.raises(ValueError, match=message):
        AutoModelForMultiScaleReward.from_pretrained(str(tmp_path), MultiScaleSettings(context="gate"))


def test_what_cannot_be_tried_is_said(tiny_folder, monkeypatch):
    said = []
    monkeypatch.setattr("toolkit.reward.loading.why_no_decoder", lambda model: NotTried("it could not be tried"))
    monkeypatch.setattr("toolkit.reward.loading.logger.warning", said.append)
    AutoModelForMultiScaleReward.from_pretrained(tiny_folder(), MultiScaleSettings(context="gate"))
    assert len(said) == 1
    assert "Nothing shows that" in said[0]


def test_where_generation_stops_is_remembered_from_the_model_that_training_began_from(tiny_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder("qwen3"))
    assert generation_stops(str(tmp_path)) == []  # no file
    for stops, expected in (([2, 1], [2, 1]), (2, [2]), (None, [])):
        model.generation_config.eos_token_id = stops
        model.generation_config.save_pretrained(tmp_path)
        assert generation_stops(str(tmp_path)) == expected


@pytest.mark.parametrize("load", [load_tokenizer, AutoModelForMultiScaleReward.from_pretrained])
def test_a_name_that_neither_the_hub_nor_the_cache_has_is_said(load):
    with pytest.raises(OSError, match=r"There is no folder 'no/such' \(model\) here, and the hub did not give it"):
        load("no/such")


def test_so_is_the_base_of_an_adapter(trained, tmp_path):
    folder = Path(shutil.copytree(trained[1], tmp_path / "adapter"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "no/such"}))
    with pytest.raises(OSError, match=r"There is no folder 'no/such' \(base of the adapter '.*'\) here, and the hub"):
        AutoModelForMultiScaleReward.from_pretrained(folder)
