"""A small world whose true reward is known: its data sets, judge, tokenizer and decoder, which need no download."""

from .rows import (
    HELD_OUT_SEED,
    gold_judge,
    sample_demonstrations,
    sample_pairs,
    sample_prompts,
    sandbox_decoder,
    sandbox_tokenizer,
)
from .world import TASKS, GoldReward, gold_range, gold_reward

__all__ = [
    "HELD_OUT_SEED",
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
