"""Responses of a policy to a list of prompts, outside any trainer."""

from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..data.messages import Messages


class Sampled(NamedTuple):
    """Token ids of a response, and of what the policy was given before it."""

    prompt: list[int]
    response: list[int]  # up to and including the one that ended it, where one did


def sample_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str] | list[Messages],
    *,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    batch_size: int = 64,
    chat_template_kwargs: dict[str, Any] | None = None,
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
        chat_template_kwargs (`dict`, *optional*):
            Variables of the chat template, where the prompts are messages.

    Returns:
        `list[str]`: Texts of the responses, without special tokens.
    """
    sampled = sample_ids(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        seed=seed,
        temperature=temperature,
        batch_size=batch_size,
        chat_template_kwargs=chat_template_kwargs,
    )
    texts: list[str] = tokenizer.batch_decode([each.response for each in sampled], skip_special_tokens=True)
    return texts


def sample_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str] | list[Messages],
    *,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    batch_size: int = 64,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> list[Sampled]:
    """
    One sampled response to every prompt, as token ids. Arguments are those of [`sample_responses`].

    Returns:
        `list[Sampled]`
    """
    config = GenerationConfig(
        **({"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}),
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=model.generation_config.eos_token_id or tokenizer.eos_token_id,
        disable_compile=True,
    )
    texts = [
        prompt
        if isinstance(prompt, str)
        else tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=True, **(chat_template_kwargs or {})
        )
        for prompt in prompts
    ]
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    training, sampled = model.training, list[Sampled]()
    model.eval()
    try:
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(seed)
            for first in tqdm(range(0, len(texts), batch_size), desc="Sampling responses", leave=False):
                batch = tokenizer(
                    texts[first : first + batch_size],
                    return_tensors="pt",
                    padding=True,
                    padding_side="left",
                    add_special_tokens=isinstance(prompts[0], str),
                    return_token_type_ids=False,
                ).to(model.device)
                generated = model.generate(**batch, generation_config=config)  # type: ignore[operator]
                width = batch["input_ids"].size(1)
                for row, mask in zip(generated, batch["attention_mask"].bool(), strict=True):
                    response = row[width:].tolist()
                    end = next((i for i, token in enumerate(response) if token in ends), len(response))
                    sampled.append(Sampled(row[:width][mask].tolist(), response[: end + 1]))
    finally:
        model.train(training)
    return sampled
