"""Responses of a policy to a list of prompts, outside any trainer."""

import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..data.messages import Messages


def sample_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str] | list[Messages],
    *,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    batch_size: int = 64,
) -> list[str]:
    """
    One sampled response to every prompt.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, with a chat template where the prompts are messages.
        prompts (`list[str]` or `list[list[dict[str, str]]]`):
            Prompts, plain or messages. A prompt that stands there twice gets two responses.
        max_new_tokens (`int`):
            Most tokens of a response.
        seed (`int`):
            Seed of the samples; the state of the global generators is left as it was.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature; 0 takes the likeliest token every time.
        batch_size (`int`, *optional*, defaults to `64`):
            Prompts that are answered together.

    Returns:
        `list[str]`: Texts of the responses, without special tokens.
    """
    texts = [
        prompt
        if isinstance(prompt, str)
        else tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        for prompt in prompts
    ]
    prompt_ids = tokenizer(texts, add_special_tokens=isinstance(prompts[0], str))["input_ids"]
    ids = sample_token_ids(
        model, tokenizer, prompt_ids, max_new_tokens=max_new_tokens, seed=seed, temperature=temperature,
        batch_size=batch_size,
    )  # fmt: skip
    responses: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return responses


def sample_token_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: list[list[int]],
    *,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    batch_size: int = 64,
) -> list[list[int]]:
    """
    [`sample_responses`] from token ids to token ids: those of each response up to and including the one that ends it.
    """
    ends = model.generation_config.eos_token_id or tokenizer.eos_token_id
    config = GenerationConfig(
        **({"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}),
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends,
        disable_compile=True,
    )
    training, responses, last = model.training, [], [ends] if isinstance(ends, int) else ends
    model.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        for first in tqdm(range(0, len(prompt_ids), batch_size), desc="Sampling responses", leave=False):
            some = {"input_ids": prompt_ids[first : first + batch_size]}
            batch = tokenizer.pad(some, padding_side="left", return_tensors="pt").to(model.device)
            generated = model.generate(**batch, generation_config=config)  # type: ignore[operator]
            for row in generated[:, batch["input_ids"].size(1) :].tolist():
                stop = next((place for place, token in enumerate(row, 1) if token in last), len(row))
                responses.append(row[:stop])
    model.train(training)
    return responses
