"""prefscale: reward models that score at several scales, and REINFORCE that learns from them, on TRL's trainers."""

import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.loading import load_pairs, load_prompts
    from .generative.config import ThoughtConfig
    from .generative.reward import ThoughtReward
    from .generative.trainer import ThoughtTrainer
    from .judges.duels import compare_policies
    from .judges.labels import label_pairs
    from .pages.explain import explain
    from .policy.config import ReinforceConfig
    from .policy.sampling import sample_responses
    from .policy.trainer import ReinforceTrainer
    from .reward.config import PREFERENCE_MODELS, MultiScaleRewardConfig
    from .reward.evaluation import evaluate_pairs
    from .reward.group_reward import GroupRewardFunction
    from .reward.head import MultiScaleSettings
    from .reward.loading import AutoModelForMultiScaleReward
    from .reward.output import MultiScaleRewardOutput
    from .reward.scorer import RewardFunction
    from .reward.scores import ResponseScore
    from .reward.shared_base import SharedBaseRewardFunction
    from .reward.trainer import MultiScaleRewardTrainer
    from .serving.client import RemoteRewardFunction

__all__ = [
    "PREFERENCE_MODELS",
    "AutoModelForMultiScaleReward",
    "GroupRewardFunction",
    "MultiScaleRewardConfig",
    "MultiScaleRewardOutput",
    "MultiScaleRewardTrainer",
    "MultiScaleSettings",
    "ReinforceConfig",
    "ReinforceTrainer",
    "RemoteRewardFunction",
    "ResponseScore",
    "RewardFunction",
    "SharedBaseRewardFunction",
    "ThoughtConfig",
    "ThoughtReward",
    "ThoughtTrainer",
    "compare_policies",
    "evaluate_pairs",
    "explain",
    "label_pairs",
    "load_pairs",
    "load_prompts",
    "sample_responses",
]

# A name is imported when it is first asked for: TRL and Transformers take seconds, which a command that shows its
# options, or a program that wants one loss, need not wait for. Editors and type checkers read the imports above.
_MODULES = {
    "PREFERENCE_MODELS": "reward.config",
    "AutoModelForMultiScaleReward": "reward.loading",
    "GroupRewardFunction": "reward.group_reward",
    "MultiScaleRewardConfig": "reward.config",
    "MultiScaleRewardOutput": "reward.output",
    "MultiScaleRewardTrainer": "reward.trainer",
    "MultiScaleSettings": "reward.head",
    "ReinforceConfig": "policy.config",
    "ReinforceTrainer": "policy.trainer",
    "RemoteRewardFunction": "serving.client",
    "ResponseScore": "reward.scores",
    "RewardFunction": "reward.scorer",
    "SharedBaseRewardFunction": "reward.shared_base",
    "ThoughtConfig": "generative.config",
    "ThoughtReward": "generative.reward",
    "ThoughtTrainer": "generative.trainer",
    "compare_policies": "judges.duels",
    "evaluate_pairs": "reward.evaluation",
    "explain": "pages.explain",
    "label_pairs": "judges.labels",
    "load_pairs": "data.loading",
    "load_prompts": "data.loading",
    "sample_responses": "policy.sampling",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Accelerate imports DeepSpeed, and PEFT imports bitsandbytes, wherever they are installed, whatever a run needs.


def _concerns_the_run(record: logging.LogRecord) -> bool:
    """Not so DeepSpeed's remark, on being imported, that there is no GPU, where it is not what trains."""
    used = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    return used or not record.getMessage().startswith("Setting accelerator to CPU")


logging.getLogger("DeepSpeed").addFilter(_concerns_the_run)
# Says on being imported which library it loaded, or why it could not; that reason is in the error of every later use.
logging.getLogger("bitsandbytes.cextension").setLevel(logging.CRITICAL)
