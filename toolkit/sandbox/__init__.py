"""A small world whose true reward is known: its data sets, judge, tokenizer and decoder, which need no download."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .rows import (
        HELD_OUT_SEED,
        gold_judge,
        sample_demonstrations,
        sample_pairs,
        sample_prompts,
        sandbox_decoder,
        sandbox_tokenizer,
    )
    from .world import RULES, TASKS, GoldReward, gold_range, gold_reward

__all__ = [
    "HELD_OUT_SEED",
    "RULES",
    "TASKS",
    "GoldReward",
    "gold_judge",
    "gold_range",
    "gold_reward",
    "sample_demonstrations",
    "sample_pairs",
    "sample_prompts",
    "sandbox_decoder",
    "sandbox_tokenizer",
]

# Imported when first asked for, like the names of the whole package: the world itself needs only torch.
_OF_WORLD = ("RULES", "TASKS", "GoldReward", "gold_range", "gold_reward")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    module = import_module(".world" if name in _OF_WORLD else ".rows", __name__)
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
