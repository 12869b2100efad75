"""What a policy training is refused for, and prompts that it cannot be trained on."""

import copy
from pathlib import Path

import pytest
import torch
from peft import PrefixTuningConfig
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
)
from trl import RLOOConfig

from toolkit import ReinforceTrainer
from toolkit.policy.passes import why_not_prefilled
from toolkit.policy.setup import check_policy, check_prompts, last_place, warn_of_filters, warn_of_names

DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}


def weightless(config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def nothing(completions, **kwargs):
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("config", "prefilled"),
    [
        (LlamaConfig(num_hidden_layers=2), True),
        (LlamaConfig(num_hidden_layers=2, use_cache=False), True),  # as a trainer leaves it
        (GPT2Config(n_layer=2), True),
        (MistralConfig(sliding_window=None, num_hidden_layers=2), True),
        (MistralConfig(num_hidden_layers=2), False),
        (MistralConfig(num_hidden_layers=2, use_cache=False), False),
        # local layers count their window in places of the cache
        (GPTNeoConfig(num_layers=2, attention_types=[[["global", "local"], 1]]), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_cache_is_filled_once_where_a_small_copy_generates_the_same(config, prefilled):
    state = torch.random.get_rng_state()
    assert (why_not_prefilled(weightless(config)) is None) == prefilled
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_is_run_anew_is_said_with_its_reason(tiny_folder, reinforce_config, chat_pairs, monkeypatch, caplog):
    monkeypatch.setattr("toolkit.policy.trainer.why_not_prefilled", lambda model: "it slides")
    prompts = chat_pairs.select_columns("prompt")
    ReinforceTrainer(tiny_folder(), nothing, reinforce_config(), train_dataset=prompts)
    assert "Generation runs a prompt anew for each response, since it slides." in caplog.text
    assert "Training runs a prompt anew" not in caplog.text


def test_an_encoder_is_no_policy(tokenizer):
    with pytest.raises(ValueError, match="BertLMHeadModel cannot be a policy: a token's hidden state depends on"):
        check_policy(weightless(BertConfig(num_hidden_layers=2)), tokenizer, 8)


def test_responses_must_end(tiny_folder, reinforce_config, chat_pairs, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.eos_token = None
    prompts = chat_pairs.select_columns("prompt")
    with pytest.raises(ValueError, match=r"no EOS token, so that no response would end"):
        ReinforceTrainer(tiny_folder(), nothing, reinforce_config(), train_dataset=prompts, processing_class=other)


def test_padding_needs_an_embedding(tiny_folder, reinforce_config, chat_pairs, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"pad_token": "<|blank|>"})
    prompts = chat_pairs.select_columns("prompt")
    with pytest.raises(ValueError, match=r"`pad_token` '<\|blank\|>' has the id 400"):
        ReinforceTrainer(tiny_folder(), nothing, reinforce_config(), train_dataset=prompts, processing_class=other)


def test_tokens_before_a_row_are_refused(tiny_folder, reinforce_config, chat_pairs):
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    prompts = chat_pairs.select_columns("prompt")
    with pytest.raises(ValueError, match="PREFIX_TUNING"):
        ReinforceTrainer(tiny_folder(), nothing, reinforce_config(), train_dataset=prompts, peft_config=config)


def test_learned_positions_end():
    assert last_place(weightless(GPT2Config(n_positions=300, n_layer=2))) == 300
    assert last_place(weightless(OPTConfig(num_hidden_layers=2))) == 2048
    assert last_place(weightless(LlamaConfig(num_hidden_layers=2, max_position_embeddings=300))) is None


def test_prompts_and_responses_stay_within_the_places(tokenizer):
    model = weightless(GPT2Config(n_positions=300, n_layer=2))
    with pytest.raises(ValueError, match=r"`max_completion_length=300`, and GPT2LMHeadModel has places for 300"):
        check_policy(model, tokenizer, 300)
    check_prompts(model, [[3] * 100, [3]], 200)
    with pytest.raises(ValueError, match=r"prompt of 101 tokens.*more than 300.*has places for so many"):
        check_prompts(model, [[3], [3] * 101], 200)
    check_prompts(weightless(LlamaConfig(num_hidden_layers=2, max_position_embeddings=300)), [[3] * 101], 200)


def test_rows_stay_where_rotary_frequencies_are_fixed():
    model = weightless(LlamaConfig(num_hidden_layers=2, max_position_embeddings=300, rope_parameters=DYNAMIC))
    check_prompts(model, [[3] * 100], 200)
    with pytest.raises(ValueError, match=r"prompt of 101 tokens.*more than 300.*changes its rotary frequencies"):
        check_prompts(model, [[3] * 101], 200)


def test_a_trainer_looks_at_its_prompts(tiny_folder, reinforce_config, chat_pairs):
    folder = tiny_folder("gpt2", n_positions=40)
    config = reinforce_config(max_completion_length=30, max_steps=1)
    trainer = ReinforceTrainer(folder, nothing, config, train_dataset=chat_pairs.select_columns("prompt"))
    with pytest.raises(ValueError, match=r"`max_completion_length=30` are more than 40"):
        trainer.train()


def prompt_lengths(dataset, tokenizer) -> list[int]:
    """Tokens that the policy is given, from the template's text."""
    texts = [
        tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        for prompt in dataset["prompt"]
    ]
    return [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def test_long_prompts_are_left_out_and_counted(tiny_folder, reinforce_config, chat_pairs, tokenizer, caplog):
    prompts = chat_pairs.select_columns("prompt")
    lengths = prompt_lengths(prompts, tokenizer)
    most = sorted(lengths)[17]
    config = reinforce_config(max_prompt_length=most)
    trainer = ReinforceTrainer(
        tiny_folder(), nothing, config, train_dataset=prompts, eval_dataset={"some": prompts.select(range(8))}
    )
    expected = [prompt for prompt, length in zip(prompts["prompt"], lengths, strict=True) if length <= most]
    assert 18 <= len(expected) < 24
    assert list(trainer.train_dataset["prompt"]) == expected
    assert list(trainer.eval_dataset["some"]["prompt"]) == [p for p in prompts["prompt"][:8] if p in expected]
    assert f"{24 - len(expected)} of 24 prompts have more than `max_prompt_length={most}` tokens" in caplog.text
    assert len(trainer.get_train_dataloader().dataset) == len(expected)


def test_a_cap_that_leaves_nothing_or_cannot_count_is_refused(tiny_folder, reinforce_config, chat_pairs):
    prompts = chat_pairs.select_columns("prompt")
    cases = ((prompts, "Every prompt has more tokens than `max_prompt_length=2`; the shortest"),)
    cases += ((prompts.to_iterable_dataset(), "counts the prompts that it leaves out, and these are streamed"),)
    for dataset, message in cases:
        with pytest.raises(ValueError, match=message):
            ReinforceTrainer(tiny_folder(), nothing, reinforce_config(max_prompt_length=2), train_dataset=dataset)


def test_filters_that_sample_from_another_distribution_are_named(reinforce_config, caplog):
    warn_of_filters(reinforce_config())
    assert "sampled from another" not in caplog.text
    warn_of_filters(reinforce_config(top_p=0.9, top_k=50))
    assert "With `top_p=0.9`, `top_k=50` responses are sampled from another distribution" in caplog.text


def test_a_reward_model_is_no_policy(reward_folder, reinforce_config, chat_pairs):
    with pytest.raises(ValueError, match="is a Qwen3ForSequenceClassification, such as reward models are"):
        ReinforceTrainer(Path(reward_folder()), nothing, reinforce_config(), train_dataset=chat_pairs)


def test_trls_own_configuration_is_named(tiny_folder, cpu_options, tmp_path, chat_pairs):
    config = RLOOConfig(str(tmp_path), **cpu_options)
    with pytest.raises(ValueError, match=r"`args` is a RLOOConfig\. Give a ReinforceConfig"):
        ReinforceTrainer(tiny_folder(), nothing, config, train_dataset=chat_pairs)


def test_names_that_stand_for_several_functions_are_said(caplog):
    warn_of_names(["one", "other"])
    assert "are called" not in caplog.text
    warn_of_names(["RewardFunction", "other", "RewardFunction"])
    assert "Several reward functions are called ['RewardFunction']" in caplog.text
