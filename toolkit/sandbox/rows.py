"""The sandbox: data sets, a tokenizer, a tiny decoder and a judge for a world whose true reward is known.

The world's texts and the gold reward are in [`~toolkit.sandbox.world`]; docs/sandbox.md describes both.
"""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from ..judges.labels import ANNOTATORS, vote
from .models import CHAT_TEMPLATE
from .world import (
    ADVICE,
    ATTRIBUTES,
    CODE_ASIDES,
    COURTESY,
    EMPHASIS,
    FILLER,
    FORBIDDEN,
    FUNCTIONS,
    OPERATORS,
    REACTIONS,
    ROOM,
    STATES,
    TASKS,
    TOPICS,
    VARIABLES,
    Text,
    gold_reward,
    parse_prompt,
    write_prompt,
    write_response,
)

# Judging


def gold_judge(prompts: Sequence[Text], completions: Sequence[Text], **kwargs: Any) -> list[float]:
    """
    The gold reward in the form of a reward function of TRL.

    Args:
        prompts (list of `str` or of lists of messages):
            Prompts of the sandbox.
        completions (list of `str` or of lists of messages):
            Any responses, one a prompt.
        kwargs:
            What else TRL's trainers pass; not used.

    Returns:
        `list[float]`: Gold totals, in nats.
    """
    return [gold_reward(prompt, text).total for prompt, text in zip(prompts, completions, strict=True)]


def _pair_row(prompt: str, texts: tuple[str, str], votes: int, task: str) -> dict[str, Any]:
    chosen, rejected = texts if votes > 0 else texts[::-1]
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "strength": abs(votes) / ANNOTATORS,
        "task": task,
    }


# Data sets


def _row_rng(kind: str, seed: int, index: int) -> random.Random:
    """A generator of one row's own, so that a data set begins with the rows of every smaller one."""
    return random.Random(f"{kind} {seed} {index}")


def _start_row(kind: str, seed: int, index: int, tasks: Sequence[str]) -> tuple[random.Random, str, str]:
    """A row's generator, task and prompt."""
    rng = _row_rng(kind, seed, index)
    task = rng.choice(tasks)
    return rng, task, write_prompt(task, rng)


def _write_varied(prompt: str, rng: random.Random, least: float = 0.0) -> str:
    """A response whose parts are each of any quality from the least one up."""
    return write_response(prompt, (rng.uniform(least, 1), rng.uniform(least, 1), rng.uniform(least, 1)), rng)


def sample_prompts(size: int, seed: int, tasks: Sequence[str] = TASKS) -> Dataset:
    """
    Draw prompts.

    Args:
        size (`int`):
            Number of rows. A smaller data set of the same seed is the beginning of a larger one.
        seed (`int`):
            Seed. Other seeds, and the other `sample_` functions, draw other prompts.
        tasks (sequence of `str`, *optional*, defaults to all four of [`TASKS`]):
            Tasks to draw from.

    Returns:
        `datasets.Dataset`: Columns `prompt` (list of one user message) and `task`.
    """
    rows = [_start_row("prompts", seed, index, tasks) for index in range(size)]
    prompts = [[{"role": "user", "content": prompt}] for _, _, prompt in rows]
    return Dataset.from_dict({"prompt": prompts, "task": [task for _, task, _ in rows]})


def sample_demonstrations(size: int, seed: int, tasks: Sequence[str] = TASKS) -> Dataset:
    """
    Draw demonstrations of varied, on the whole middling quality for supervised fine-tuning.

    Args:
        size (`int`):
            Number of rows, as in [`sample_prompts`].
        seed (`int`):
            Seed, as in [`sample_prompts`].
        tasks (sequence of `str`, *optional*, defaults to all four of [`TASKS`]):
            Tasks to draw from.

    Returns:
        `datasets.Dataset`: Columns `prompt` (list of one user message), `completion` (list of one assistant message)
        and `task`.
    """
    columns: dict[str, list[Any]] = {"prompt": [], "completion": [], "task": []}
    for index in range(size):
        rng, task, prompt = _start_row("demonstrations", seed, index, tasks)
        columns["prompt"].append([{"role": "user", "content": prompt}])
        columns["completion"].append([{"role": "assistant", "content": _write_varied(prompt, rng, 0.25)}])
        columns["task"].append(task)
    return Dataset.from_dict(columns)


def sample_pairs(size: int, seed: int, tasks: Sequence[str] = TASKS) -> Dataset:
    """
    Draw preference pairs labelled by the votes of simulated annotators who see the gold reward.

    Args:
        size (`int`):
            Number of rows, as in [`sample_prompts`].
        seed (`int`):
            Seed, as in [`sample_prompts`].
        tasks (sequence of `str`, *optional*, defaults to all four of [`TASKS`]):
            Tasks to draw from.

    Returns:
        `datasets.Dataset`: Columns `prompt` (list of one user message), `chosen` and `rejected` (lists of one
        assistant message), `strength` (by how large a share the vote was won: 0.2, 0.6 or 1) and `task`.
    """
    rows = []
    for index in range(size):
        rng, task, prompt = _start_row("pairs", seed, index, tasks)
        one, other = _write_varied(prompt, rng), _write_varied(prompt, rng)
        while other == one:
            other = _write_varied(prompt, rng)
        gap = gold_reward(prompt, one).total - gold_reward(prompt, other).total
        rows.append(_pair_row(prompt, (one, other), vote(gap, rng), task))
    columns = ("prompt", "chosen", "rejected", "strength", "task")
    return Dataset.from_dict({column: [row[column] for row in rows] for column in columns})


# Models


def _strings(table: Any) -> list[str]:
    """Every text in a table: keys, entries, and entries of entries."""
    if isinstance(table, str):
        return [table]
    entries = [*table, *table.values()] if isinstance(table, Mapping) else table
    return [text for entry in entries for text in _strings(entry)]


def vocabulary() -> list[str]:
    """Every word, digit and mark of the world's texts, sorted."""
    people = TOPICS, STATES, REACTIONS, ADVICE, COURTESY, FILLER, FORBIDDEN, ATTRIBUTES, list(EMPHASIS)
    code = FUNCTIONS, VARIABLES, OPERATORS, CODE_ASIDES, list(ROOM), "0 1 2 3 4 5 6 7 8 9 ! ? #"
    prompts = (
        "hi. the rose is red and needs oil. tell me its place and its need.",
        "hi. summarize this: the rose was old.",
        "hi. my rose is lost and i feel sad. what now?",
        "hi. write a function area of x and y. it checks x and adds them.",
    )
    points = [point.templates for prompt in prompts for point in parse_prompt(prompt).points]
    text = re.sub(r"{\w+}", "", " ".join(_strings((people, code, prompts, points))))
    return sorted(set(re.findall(r"[a-z]+|\d|[^\w\s]", text)))


def sandbox_tokenizer() -> PreTrainedTokenizerFast:
    """
    A tokenizer whose tokens are the world's words, each with and without a space in front.

    Returns:
        `transformers.PreTrainedTokenizerFast`: With a ChatML template, `<|im_end|>` as its end and `<|pad|>` as its
        padding token. Texts of the sandbox are decoded to what was encoded.
    """
    special = ["<|pad|>", "<|unk|>", "<|im_start|>", "<|im_end|>"]
    words = [*vocabulary(), "system", "user", "assistant"]
    # In the byte-level alphabet a space is written Ġ and a newline Ċ
    tokens = [*special, "Ċ", "Ġ", *words, *(f"Ġ{word}" for word in words)]
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<|unk|>"))
    pieces = Regex(r" ?[a-z]+| ?[0-9]| ?[^a-z0-9\s]|\s")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def sandbox_decoder(hidden_size: int = 128, layers: int = 4, heads: int = 4, seed: int = 0) -> Qwen3ForCausalLM:
    """
    A tiny decoder with random weights for [`sandbox_tokenizer`].

    Args:
        hidden_size (`int`, *optional*, defaults to `128`):
            Width of the hidden states.
        layers (`int`, *optional*, defaults to `4`):
            Number of layers.
        heads (`int`, *optional*, defaults to `4`):
            Number of attention heads; half as many hold keys and values.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights. The global random state is left as it was.

    Returns:
        `transformers.Qwen3ForCausalLM`: In float32 and evaluation mode.
    """
    tokenizer = sandbox_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(heads // 2, 1),
        head_dim=hidden_size // heads,
        max_position_embeddings=256,
        # With the usual 0.02 so small a model takes several times as long to learn to copy from the prompt
        initializer_range=0.05,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.convert_tokens_to_ids("<|im_start|>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval()
