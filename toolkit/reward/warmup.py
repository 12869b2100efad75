"""The gradient of the coarse scales grows over the first part of a training."""

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from .head import MultiScaleHead


class CoarseWarmup(TrainerCallback):
    """
    Lets the gradient that all scales but the finest one send into the decoder grow from nothing to its full size.

    Args:
        share (`float`):
            Share of the training's steps over which it grows, from 0 to 1.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Set the factor for the step that begins."""
        steps = self.share * state.max_steps
        set_coarse_gradient(kwargs["model"], min(1.0, state.global_step / steps) if steps else 1.0)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Leave the model as one that was loaded."""
        set_coarse_gradient(kwargs["model"], 1.0)


def set_coarse_gradient(model: nn.Module, factor: float) -> None:
    """Set the factor of every head, with PEFT also of the copy that is trained."""
    for module in model.modules():
        if isinstance(module, MultiScaleHead):
            module.coarse_gradient = factor
