"""What a reward training is refused for when it begins: tokenizers and rows that a decoder does not go with."""

import copy
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from trl import RewardConfig

from toolkit import AutoModelForMultiScaleReward, MultiScaleRewardTrainer, MultiScaleSettings, RewardFunction
from toolkit.reward.setup import check_places, settle_sharing


@pytest.fixture
def other(tokenizer):
    """A copy of the tokenizer that a test may change."""
    return copy.deepcopy(tokenizer)


def test_plain_text_needs_a_token_that_ends_it(tiny_folder, reward_config, plain_pairs, other):
    other.eos_token = None
    with pytest.raises(ValueError, match=r"no EOS token, with which a response in plain text ends.*--eos_token"):
        MultiScaleRewardTrainer(tiny_folder(), reward_config(), plain_pairs, processing_class=other)
    config = reward_config(eos_token="<|im_end|>")  # which TRL gives to the tokenizer
    trainer = MultiScaleRewardTrainer(tiny_folder(), config, plain_pairs, processing_class=other)
    assert trainer.train_dataset[0]["chosen_ids"][-1] == other.eos_token_id


def test_padding_needs_a_token(tiny_folder, reward_config, chat_pairs, other):
    other.eos_token = other.pad_token = None
    with pytest.raises(ValueError, match=r"neither a padding token nor an EOS token.*--pad_token"):
        MultiScaleRewardTrainer(tiny_folder(), reward_config(), chat_pairs, processing_class=other)


def test_padding_needs_an_embedding(tiny_folder, reward_config, chat_pairs, other):
    other.add_special_tokens({"pad_token": "<|blank|>"})
    with pytest.raises(ValueError, match=r"`pad_token` '<\|blank\|>' has the id 400.*below 400.*resize_token_emb"):
        MultiScaleRewardTrainer(tiny_folder(), reward_config(), chat_pairs, processing_class=other)


def test_rows_stay_within_the_places_of_a_model(tiny_folder, reward_config, chat_pairs):
    folder = tiny_folder("gpt2", n_positions=48)
    with pytest.raises(ValueError, match=r"Pair 1 of data set 'train' has a row of \d+ tokens.*places for 48.*th=48`"):
        MultiScaleRewardTrainer(folder, reward_config(), chat_pairs)
    config = reward_config(max_length=48, drop_long_pairs=True)
    trainer = MultiScaleRewardTrainer(folder, config, chat_pairs)
    assert max(map(len, trainer.train_dataset["chosen_ids"])) <= 48


def test_the_longest_row_is_counted_by_token(reward_model):
    from datasets import Dataset

    model = reward_model()  # 256 places
    rows = [{"chosen_ids": [3] * 256, "rejected_ids": [3]}, {"chosen_ids": [3], "rejected_ids": [3] * 257}]
    check_places(Dataset.from_list(rows[:1]), "train", model)
    with pytest.raises(ValueError, match="Pair 2 of data set 'train' has a row of 257 tokens"):
        check_places(Dataset.from_list(rows), "train", model)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_adapters_that_put_tokens_before_a_row_are_refused(tiny_folder, reward_config, chat_pairs, kind):
    config = kind(task_type="SEQ_CLS", num_virtual_tokens=2)
    with pytest.raises(ValueError, match=r"kind P\w+_TUNING, which puts tokens of its own before every row.*LoRA"):
        MultiScaleRewardTrainer(tiny_folder(), reward_config(), chat_pairs, peft_config=config)


def test_a_model_with_such_an_adapter_is_refused_wherever_it_comes_from(reward_model, tokenizer, tmp_path):
    config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    model = get_peft_model(reward_model(), config)
    with pytest.raises(ValueError, match="PROMPT_TUNING"):
        RewardFunction(model, tokenizer)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="PROMPT_TUNING"):
        AutoModelForMultiScaleReward.from_pretrained(str(tmp_path), MultiScaleSettings(context="gate"))


def test_lora_is_not(reward_model, tokenizer):
    RewardFunction(get_peft_model(reward_model(), LoraConfig(task_type="SEQ_CLS")), tokenizer)


@pytest.mark.parametrize(("asked", "shared"), [(None, False), (True, True), (False, False)])
def test_sides_of_a_pair_share_their_prompt_where_it_saves_time(reward_model, asked, shared):
    args = SimpleNamespace(shared_prompts=asked, length_column_name="length", device=torch.device("cpu"))
    long = Dataset.from_dict({"length": [9000], "shared_tokens": [1000]})  # two responses of 4,000 tokens each
    short = Dataset.from_dict({"length": [90], "shared_tokens": [50]})
    allowed = asked is not False
    assert settle_sharing(reward_model(), args, long, allowed) == shared
    assert settle_sharing(reward_model(), args, short, allowed) == allowed


def test_trls_own_configuration_is_named(tiny_folder, cpu_options, tmp_path, chat_pairs):
    config = RewardConfig(str(tmp_path), **cpu_options)
    with pytest.raises(ValueError, match=r"`args` is a RewardConfig\. Give a MultiScaleRewardConfig"):
        MultiScaleRewardTrainer(tiny_folder(), config, chat_pairs)


def test_rows_that_are_no_data_set_are_named(tiny_folder, reward_config, chat_pairs):
    with pytest.raises(TypeError, match=r"must be a `Dataset`, got `list`. Of rows `Dataset.from_list` makes one"):
        MultiScaleRewardTrainer(tiny_folder(), reward_config(), chat_pairs.to_list())
