"""prefscale: reward models that score at several scales, and REINFORCE that learns from them, on TRL's trainers."""

from .adapters import SharedBaseRewardFunction
from .head import MultiScaleSettings
from .modeling import AutoModelForMultiScaleReward, MultiScaleRewardOutput
from .reinforce_config import ReinforceConfig
from .reinforce_trainer import ReinforceTrainer
from .reward_config import PREFERENCE_MODELS, MultiScaleRewardConfig
from .reward_function import ResponseScore, RewardFunction
from .reward_trainer import MultiScaleRewardTrainer

__all__ = [
    "PREFERENCE_MODELS",
    "AutoModelForMultiScaleReward",
    "MultiScaleRewardConfig",
    "MultiScaleRewardOutput",
    "MultiScaleRewardTrainer",
    "MultiScaleSettings",
    "ReinforceConfig",
    "ReinforceTrainer",
    "ResponseScore",
    "RewardFunction",
    "SharedBaseRewardFunction",
]
