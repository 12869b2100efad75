"""What a policy training is refused for when it begins, and rows that it cannot be trained on."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import IterableDataset
from peft import PeftModel
from transformers import PreTrainedModel
from trl.trainer.utils import is_async_callable

from ..data.probes import PLACES, NotTried, on_small_copy, why_no_decoder
from ..data.rotary import longest_fixed_row
from ..reward.model import check_adapter
from ..reward.setup import check_ids
from ..training.run_record import read_json
from .config import ReinforceConfig

logger = get_logger(__name__)


def check_arguments(model: Any, reward_funcs: Any, args: Any, peft_config: Any) -> None:
    """Refuse what would train nothing, or other rows than it seems."""
    if not isinstance(args, ReinforceConfig):
        raise ValueError(
            f"`args` is a {type(args).__name__}. Give a ReinforceConfig, which has the options of TRL's RLOOConfig."
        )
    file = Path(model, "config.json") if isinstance(model, str) else None
    if file is not None and file.is_file():
        kinds = read_json(file, dict, "Restore it as it was saved.").get("architectures") or []
        if other := [kind for kind in kinds if kind.endswith("Classification")]:
            raise ValueError(
                f"'{model}' is a {other[0]}, such as reward models are, and generates nothing. Give the policy there: "
                "a causal language model."
            )
    if isinstance(reward_funcs, list | tuple) and not reward_funcs:
        raise ValueError("`reward_funcs` is empty: nothing would be learnt. Give at least one reward function.")
    given = list(model.peft_config.values()) if isinstance(model, PeftModel) else []
    for config in [peft_config, *given]:
        if config is not None:
            check_adapter(config)


def warn_of_names(names: list[str]) -> None:
    """Say which reward functions have one name, by which their figures are logged."""
    if same := [name for name, count in Counter(names).items() if count > 1]:
        logger.warning(
            f"Several reward functions are called {same}, and their figures are logged as one's. Give each a "
            "`__name__` of its own."
        )


def warn_of_filters(args: Any) -> None:
    """Say which options let a policy sample from another distribution than the one whose gradient is taken."""
    whole = {"top_p": (1.0,), "top_k": (0, None), "min_p": (None, 0.0), "repetition_penalty": (1.0,)}
    given = {name: getattr(args, name) for name in whole}
    if odd := [f"`{name}={value}`" for name, value in given.items() if value not in whole[name]]:
        logger.warning(
            f"With {', '.join(odd)} responses are sampled from another distribution than the policy's own, of which "
            "the gradient is taken: it is no longer exact. Leave that out, or sample with vLLM and its correction."
        )


def is_saved(what: str, reason: str | None) -> bool:
    """Whether nothing stands against running a prompt once for several responses; else it is said what does."""
    if reason is not None:
        logger.warning(f"{what} runs a prompt anew for each response, since {reason}.")
    return reason is None


def checked(func: Any, name: str) -> Any:
    """
    A reward function that refuses what cannot be a reward, before it becomes a tensor.

    Args:
        func (`Callable` or `nn.Module`):
            Reward function as TRL takes them. A module, and what is awaited, is given back as it is.
        name (`str`):
            Its name.

    Returns:
        `Callable`: It raises a `ValueError` that names the function and what it returned.
    """
    if isinstance(func, torch.nn.Module) or is_async_callable(func):
        return func

    def call(*args: Any, **columns: Any) -> list[Any]:
        found = func(*args, **columns)
        try:
            rewards = list(found)
            is_flat = torch.tensor([math.nan if reward is None else reward for reward in rewards]).dim() == 1
        except (TypeError, ValueError, RuntimeError):
            is_flat = False
        if not is_flat:
            raise ValueError(
                f"Reward function '{name}' returned {str(found)[:80]!r}. Return a list with one number, or None, for "
                "each response."
            )
        return rewards

    return call


def turn_off_dropout(model: torch.nn.Module) -> None:
    """TRL turns modules of dropout off; many attention layers keep their rate as a mere number."""
    module: Any
    for module in model.modules():
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def leave_out_long_prompts(dataset: Any, count: Callable[[dict[str, list[Any]]], list[int]], most: int) -> Any:
    """
    The rows of a data set whose prompts are short enough. A warning says how many are not.

    Args:
        dataset ([`~datasets.Dataset`] or a `dict` of them):
            Rows that prompts are made of.
        count (`Callable`):
            From rows, as a dictionary of columns, to the tokens of each one's prompt.
        most (`int`):
            Most tokens of a prompt.

    Returns:
        `dataset`'s kind.

    Raises:
        `ValueError`: If no row is left, or the rows are streamed, so that nobody could say how many are left out.
    """
    if isinstance(dataset, dict):
        return type(dataset)({name: leave_out_long_prompts(part, count, most) for name, part in dataset.items()})
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            "`max_prompt_length` counts the prompts that it leaves out, and these are streamed. Load them whole, or "
            "filter the stream and leave it unset."
        )
    lengths = [tokens for first in range(0, len(dataset), 1000) for tokens in count(dataset[first : first + 1000])]
    kept = [i for i, length in enumerate(lengths) if length <= most]
    if not kept:
        raise ValueError(f"Every prompt has more tokens than `max_prompt_length={most}`; the shortest {min(lengths)}.")
    if len(kept) < len(lengths):
        logger.warning(
            f"{len(lengths) - len(kept)} of {len(lengths)} prompts have more than `max_prompt_length={most}` tokens, "
            f"the longest {max(lengths)}: they are left out."
        )
    return dataset.select(kept) if len(kept) < len(lengths) else dataset


def check_policy(decoder: PreTrainedModel, tokenizer: Any, max_completion_length: int) -> None:
    """
    Refuse a policy that cannot be trained.

    Args:
        decoder ([`~transformers.PreTrainedModel`]):
            Policy, without wrappers.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        max_completion_length (`int`):
            Most tokens of a response.

    Raises:
        `ValueError`: If its responses would never end, it has no embedding for padding, its responses alone have more
            tokens than it has places for, or it is no decoder.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no EOS token, so that no response would end. Set `tokenizer.eos_token`.")
    check_ids(decoder, tokenizer)
    reason = why_no_decoder(decoder)
    if reason is not None and not isinstance(reason, NotTried):
        raise ValueError(f"{type(decoder).__name__} cannot be a policy: {reason}. Use a causal language model.")
    places = last_place(decoder)
    if places is not None and max_completion_length >= places:
        raise ValueError(
            f"`max_completion_length={max_completion_length}`, and {type(decoder).__name__} has places for {places} "
            "tokens of prompt and response together. Lower it."
        )


@on_small_copy
def _has_a_last_place(model: Any) -> bool:
    try:
        model(input_ids=torch.full((1, PLACES + 8), 3), use_cache=False)
    except (IndexError, RuntimeError, ValueError):
        return True
    return False


def last_place(decoder: PreTrainedModel) -> int | None:
    """
    Most tokens of a row for a decoder that has places for so many, as learned positions are.

    Args:
        decoder ([`~transformers.PreTrainedModel`]):
            Policy, without wrappers.

    Returns:
        `int`, or `None` where positions go on, or a small copy of the decoder does not tell.
    """
    places = getattr(decoder.config.get_text_config(), "max_position_embeddings", None)
    return places if places is not None and _has_a_last_place(decoder) is True else None


def check_prompts(decoder: PreTrainedModel, prompt_ids: list[list[int]], max_completion_length: int) -> None:
    """
    Refuse prompts whose responses would go beyond what a policy can be trained on.

    Args:
        decoder ([`~transformers.PreTrainedModel`]):
            Policy, without wrappers.
        prompt_ids (`list[list[int]]`):
            Token ids of the prompts of a batch.
        max_completion_length (`int`):
            Most tokens of a response.

    Raises:
        `ValueError`: If the longest prompt with its response goes beyond the last place, or beyond where rotary
            frequencies depend on a row's length: what is sampled there, with those of the row so far, is not what it
            would be trained on.
    """
    longest = max(map(len, prompt_ids), default=0)
    limits = {
        "has places for so many tokens only": last_place(decoder),
        "changes its rotary frequencies beyond so many tokens, so that it would not be trained on what it sampled": (
            longest_fixed_row(decoder.config)
        ),
    }
    for what, limit in limits.items():
        if limit is not None and longest + max_completion_length > limit:
            raise ValueError(
                f"A prompt of {longest} tokens and a response of `max_completion_length={max_completion_length}` are "
                f"more than {limit}, and {type(decoder).__name__} {what}. Lower `max_completion_length` or leave out "
                "long prompts."
            )
