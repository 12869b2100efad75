"""Options of a job that nobody has given, where TRL's own defaults would not run or would leave out what is wanted."""

from collections.abc import Collection
from typing import Any

import torch

KEEPING_BEST = {
    "eval_strategy": "steps",
    "eval_steps": 0.25,
    "save_strategy": "steps",
    "save_steps": 0.25,
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",
}


def reward_defaults(given: Collection[str]) -> dict[str, Any]:
    """
    Defaults of a reward training: where it runs, its folder, and that the best of four checkpoints is kept.

    Args:
        given (`Collection[str]`):
            Names of the options that the user gave. With any of those that say when to evaluate and to save, all of
            these are TRL's and the user's.

    Returns:
        `dict[str, Any]`: Values of options, by name.
    """
    keeping = {} if KEEPING_BEST.keys() & set(given) else KEEPING_BEST
    return {"output_dir": "runs/reward", **_shared_defaults(given), **keeping}


def reinforce_defaults(given: Collection[str]) -> dict[str, Any]:
    """Defaults of REINFORCE: where it runs, and its folder. Argument and result as in [`reward_defaults`]."""
    return {"output_dir": "runs/policy", **_shared_defaults(given)}


def annotator_defaults(given: Collection[str]) -> dict[str, Any]:
    """Defaults of a comparison of annotators, for which nothing is trained. As in [`reward_defaults`]."""
    asked = {"freeze_decoder": True, "outputs": 2, "reader_weights": "annotator"}
    return {"output_dir": "runs/annotators", **_shared_defaults(given), **asked}


def _shared_defaults(given: Collection[str]) -> dict[str, Any]:
    # TRL's default, by the name that Transformers does not warn of
    found: dict[str, Any] = {} if "gradient_checkpointing" in given else {"activation_checkpointing": True}
    if not torch.accelerator.is_available():
        # TRL's own are refused there; and many processors have no bfloat16, where it takes many times as long
        found |= {"use_cpu": True, "bf16": False}
    return found
