"""The sandbox: data sets, a tokenizer, a tiny decoder and a judge for a world whose true reward is known.

The world's texts and the gold reward are in [`~toolkit.sandbox.world`]; docs/sandbox.md describes both.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from ..judges.labels import ANNOTATORS, vote
from ..training.options import check_number
from .models import PAD, TURN_END, TURN_START, chat_tokenizer, new_decoder
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

# Held-out rows are drawn with this seed, training rows with the run's own.
HELD_OUT_SEED = 1_000_003
UNKNOWN = "<|unk|>"

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


# Data sets


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
    return _rows("prompts", size, seed, tasks, lambda prompt, rng: {})


def sample_demonstrations(size: int, seed: int, tasks: Sequence[str] = TASKS) -> Dataset:
    """
    Draw demonstrations of varied, on the whole middling quality for supervised fine-tuning.

    Args:
        size, seed, tasks:
            As in [`sample_prompts`].

    Returns:
        `datasets.Dataset`: Columns `prompt` (list of one user message), `completion` (list of one assistant message)
        and `task`.
    """

    def answer(prompt: str, rng: random.Random) -> dict[str, Any]:
        return {"completion": _message("assistant", _write_varied(prompt, rng, 0.25))}

    return _rows("demonstrations", size, seed, tasks, answer)


def sample_pairs(size: int, seed: int, tasks: Sequence[str] = TASKS) -> Dataset:
    """
    Draw preference pairs labelled by the votes of simulated annotators who see the gold reward.

    Args:
        size, seed, tasks:
            As in [`sample_prompts`].

    Returns:
        `datasets.Dataset`: Columns `prompt` (list of one user message), `chosen` and `rejected` (lists of one
        assistant message), `strength` (by how large a share the vote was won: 0.2, 0.6 or 1) and `task`.
    """

    def compare(prompt: str, rng: random.Random) -> dict[str, Any]:
        one, other = _write_varied(prompt, rng), _write_varied(prompt, rng)
        while other == one:
            other = _write_varied(prompt, rng)
        votes = vote(gold_reward(prompt, one).total - gold_reward(prompt, other).total, rng)
        chosen, rejected = (_message("assistant", text) for text in ((one, other) if votes > 0 else (other, one)))
        return {"chosen": chosen, "rejected": rejected, "strength": abs(votes) / ANNOTATORS}

    return _rows("pairs", size, seed, tasks, compare)


def _rows(
    kind: str,
    size: int,
    seed: int,
    tasks: Sequence[str],
    write: Callable[[str, random.Random], dict[str, Any]],
) -> Dataset:
    """Rows of a prompt, what is written to it, and its task."""
    check_number("size", size, 1)
    rows = []
    for index in range(size):
        # A generator of the row's own, so that a data set begins with the rows of every smaller one
        rng = random.Random(f"{kind} {seed} {index}")
        task = rng.choice(tasks)
        prompt = write_prompt(task, rng)
        rows.append({"prompt": _message("user", prompt), **write(prompt, rng), "task": task})
    return Dataset.from_list(rows)


def _message(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def _write_varied(prompt: str, rng: random.Random, least: float = 0.0) -> str:
    """A response whose parts are each of any quality from the least one up."""
    return write_response(prompt, (rng.uniform(least, 1), rng.uniform(least, 1), rng.uniform(least, 1)), rng)


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
    special = [PAD, UNKNOWN, TURN_START, TURN_END]
    words = [*vocabulary(), "system", "user", "assistant"]
    # In the byte-level alphabet a space is written Ġ and a newline Ċ
    tokens = [*special, "Ċ", "Ġ", *words, *(f"Ġ{word}" for word in words)]
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN))
    pieces = Regex(r" ?[a-z]+| ?[0-9]| ?[^a-z0-9\s]|\s")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return chat_tokenizer(backend, unk_token=UNKNOWN, model_max_length=256, clean_up_tokenization_spaces=False)


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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_decoder(
            tokenizer,
            hidden_size,
            layers,
            max_length=256,
            num_attention_heads=heads,
            num_key_value_heads=max(heads // 2, 1),
            head_dim=hidden_size // heads,
            # With the usual 0.02 so small a model takes several times as long to learn to copy from the prompt
            initializer_range=0.05,
            bos_token_id=tokenizer.convert_tokens_to_ids(TURN_START),
        )
    model.eval()
    return model
