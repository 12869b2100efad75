"""The kernel that each path asks for: what reaches `scaled_dot_product_attention` in every layer."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_mask
from transformers import AutoModel, AutoModelForCausalLM, MistralConfig

from tests.tiny import pad_rows, spread_head
from toolkit import (
    AutoModelForMultiScaleReward,
    MultiScaleRewardTrainer,
    MultiScaleSettings,
    ReinforceTrainer,
    RewardFunction,
)
from toolkit.data.packing import padded_right, why_masked
from toolkit.data.positions import positions_from
from toolkit.policy.passes import policy_batch

FAST = (None, True, True, 1)  # no mask, causal, one head of keys for both of the queries, not repeated
ROWS = [[5, 6, 7, 8, 20, 21], [9, 10, 40, 41, 42, 43, 44, 45], [9, 10, 11]]
STARTS = [4, 2, 2]


@pytest.fixture
def calls(monkeypatch):
    """Of each call: kind of its mask, causal flag, grouped queries, heads of keys; and whether gradients are taken."""
    made, attention = [], F.scaled_dot_product_attention

    def record(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        mask = None if attn_mask is None else str(attn_mask.dtype).removeprefix("torch.")
        made.append(((mask, is_causal, enable_gqa, key.size(1)), torch.is_grad_enabled()))
        return attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    return made


@pytest.mark.parametrize(("shared", "kernel"), [(False, FAST), (True, ("float32", False, False, 2))])
def test_reward_training(calls, reward_config, tiny_folder, plain_pairs, shared, kernel):
    config = reward_config(shared_prompts=shared, max_steps=2)
    trainer = MultiScaleRewardTrainer(tiny_folder(), config, plain_pairs, plain_pairs)
    del calls[:]
    trainer.train()
    trainer.evaluate()
    assert {call for call, _ in calls} == {kernel}
    assert {gradients for _, gradients in calls} == {True, False}


def test_scoring(calls, reward_folder):
    function = RewardFunction(reward_folder())
    function(["One?"], ["1."])  # the first call tries a small copy of the decoder, too
    del calls[:]
    function(["One?", "And two?"], ["1.", "2, and not 1."])
    assert {call for call, _ in calls} == {FAST}
    del calls[:]
    function(["One?"] * 2, ["1.", "2, and not 1."])
    assert {call for call, _ in calls} == {("float32", False, False, 2)}


def test_reinforce(calls, reinforce_config, tiny_folder, chat_pairs):
    config = reinforce_config(num_generations=1, baseline="none", max_steps=2)
    prompts = chat_pairs.select_columns("prompt")

    def ones(completions, **_):
        return [1.0] * len(completions)

    trainer = ReinforceTrainer(tiny_folder(), ones, config, train_dataset=prompts)
    del calls[:]
    trainer.train()
    assert {call for call, gradients in calls if gradients} == {FAST}


def sliding_decoder(folder, kind, **options):
    small = {"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = MistralConfig(sliding_window=8, num_hidden_layers=1, intermediate_size=16, pad_token_id=0, **small)
    model = kind.from_config(config, **options)
    model.save_pretrained(folder)
    return model


def test_attention_that_cannot_share_needs_no_mask_either(tiny_folder):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder())
    model.config._attn_implementation = "flash_attention_2"  # which cannot be loaded without a GPU
    batch = policy_batch(model, [[5, 6], [5]], [[7], [8, 9]], 0, share=False)
    assert batch.inputs.keys() == {"input_ids", "shift_labels"}


@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")  # which Transformers sets
def test_flex_attention_gets_rows_as_one_where_it_may(tiny_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder(), attn_implementation="flex_attention")
    inputs = policy_batch(model, [[5, 6], [5]], [[7], [8, 9]], 0, share=True).inputs
    assert {inputs[name].shape for name in ("input_ids", "position_ids")} == {(1, 256)}
    assert inputs["input_ids"][0, :5].tolist() == [5, 6, 5, 8, 0]
    assert inputs["shift_labels"].tolist() == [[7, 8, 9]]
    seen = create_mask(inputs["attention_mask"].mask_mod, 1, None, 256, 256, "cpu")[0, 0, :4, :4]
    assert seen.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    model = sliding_decoder(tmp_path, AutoModelForCausalLM, attn_implementation="flex_attention")
    inputs = policy_batch(model, [[5, 6], [5]], [[7], [8, 9]], 0, share=False).inputs
    assert inputs["attention_mask"].shape == inputs["input_ids"].shape == (2, 2)


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_scores_and_gradients_are_those_with_a_mask(reward_model, architecture, implementation):
    batch, found = pad_rows(ROWS, STARTS, 0), []
    for options in ({}, {"position_ids": positions_from(batch["attention_mask"])}):  # with which the mask is kept
        model = reward_model(architecture, attn_implementation=implementation)
        output = model(**batch, **options, use_cache=False)
        (output.logits[:, 0] @ torch.tensor([1.0, -2.0, 3.0])).backward()
        found.append((output, {name: parameter.grad for name, parameter in model.named_parameters()}))
    (output, gradients), (expected, expected_gradients) = found
    for name, value in expected.items():
        assert torch.equal(output[name], value), name
    scale = max(gradient.abs().max() for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).abs().max() <= 1e-6 * scale, name


def test_who_needs_the_mask_keeps_it(reward_model, tmp_path, calls):
    model = reward_model()
    assert padded_right(torch.tensor([[1, 1, 0], [1, 1, 1]]))
    assert not padded_right(torch.tensor([[0, 1, 1], [1, 1, 1]]))
    with torch.no_grad():
        model(**pad_rows(ROWS, STARTS, 0, left=1))
        assert {call for call, _ in calls} == {("bool", False, False, 2)}
    sliding_decoder(tmp_path, AutoModel)
    model = AutoModelForMultiScaleReward.from_pretrained(tmp_path, MultiScaleSettings())
    assert "slides over a window" in why_masked(model)
    del calls[:]
    with torch.no_grad():
        spread_head(model)(**pad_rows(ROWS, STARTS, 0))
    assert {call[0] for call, _ in calls} == {"bool"}
