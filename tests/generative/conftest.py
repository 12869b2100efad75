"""A judge so small that every thought of one token can be enumerated, and pairs for it."""

import pytest

# Every token there is: of the chat template, of texts, and of answers
WORDS = ("<pad>", "<end>", "<user>", "<judge>", "red", "yes", "no")
TEMPLATE = (
    "{% for message in messages %}{{ '<user> ' if message['role'] == 'user' else '<judge> ' }}"
    "{{ message['content'] + ' <end> ' }}{% endfor %}{% if add_generation_prompt %}{{ '<judge> ' }}{% endif %}"
)
ASKED = {"judge_template": "{prompt} {response}", "question": "{yes} {no}", "answers": ["yes", "no"]}


@pytest.fixture(scope="session")
def small_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<end>", "additional_special_tokens": ["<user>", "<judge>"]}
    return PreTrainedTokenizerFast(tokenizer_object=words, chat_template=TEMPLATE, **special)


@pytest.fixture
def small_judge(small_tokenizer, decoder_config):
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = decoder_config("qwen3", vocab_size=len(WORDS), eos_token_id=1, pad_token_id=0, initializer_range=0.4)
    return AutoModelForCausalLM.from_config(config)


@pytest.fixture
def thought_config(tmp_path, cpu_options):
    from toolkit.generative.config import ThoughtConfig

    def make(**options):
        defaults = {"learning_rate": 1e-3, "max_steps": 3, "num_thoughts": 2, "max_completion_length": 6}
        defaults |= {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 8}
        return ThoughtConfig(output_dir=str(tmp_path / "judge"), **{**cpu_options, **defaults, **options})

    return make
