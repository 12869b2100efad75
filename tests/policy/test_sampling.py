"""Responses sampled outside a trainer: their ids are those that the policy was given and wrote, without padding."""

import torch
from transformers import AutoModelForCausalLM

from toolkit import sample_responses
from toolkit.policy.sampling import sample_ids

PROMPTS = [
    [{"role": "user", "content": text}] for text in ("Who wrote it?", "Is the sky blue, or is it another colour?")
]


def test_ids_are_those_without_padding(tiny_folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder("qwen3"))
    options = {"max_new_tokens": 12, "seed": 0, "temperature": 0}
    both = sample_ids(model, tokenizer, PROMPTS, **options)
    for prompt, sampled in zip(PROMPTS, both, strict=True):
        given = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        assert sampled.prompt == given
        written = model.generate(torch.tensor([given]), max_new_tokens=12, do_sample=False)[0, len(given) :].tolist()
        assert sampled.response == written
    assert sample_responses(model, tokenizer, PROMPTS, **options) == tokenizer.batch_decode(
        [each.response for each in both], skip_special_tokens=True
    )


def test_a_response_goes_up_to_what_ends_it(tiny_folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder("qwen3"))
    options = {"max_new_tokens": 12, "seed": 0, "temperature": 0}
    whole = sample_ids(model, tokenizer, PROMPTS, **options)[0].response
    model.generation_config.eos_token_id = [whole[3], tokenizer.eos_token_id]
    assert sample_ids(model, tokenizer, PROMPTS, **options)[0].response == whole[: whole.index(whole[3]) + 1]
