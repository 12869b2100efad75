"""prefscale: reward models that score at several scales, and REINFORCE that learns from them, on TRL's trainers."""

from .policy.config import ReinforceConfig
from .policy.trainer import ReinforceTrainer
from .reward.config import PREFERENCE_MODELS, MultiScaleRewardConfig
from .reward.head import MultiScaleSettings
from .reward.loading import AutoModelForMultiScaleReward
from .reward.model import MultiScaleRewardOutput
from .reward.scorer import ResponseScore, RewardFunction
from .reward.shared_base import SharedBaseRewardFunction
from .reward.trainer import MultiScaleRewardTrainer

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
