"""What the study watches while a policy of the sandbox trains."""

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from ...policy.sampling import sample_responses
from ...sandbox.rows import gold_judge


class GoldCurve(TrainerCallback):
    """Gold reward of the greedy responses to a few held-out prompts after every update."""

    def __init__(self, prompts: list[Any], tokenizer: Any, max_new_tokens: int) -> None:
        self.prompts, self.tokenizer, self.max_new_tokens = prompts, tokenizer, max_new_tokens
        self.curve: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "seed": 0, "batch_size": len(self.prompts)}
        texts = sample_responses(kwargs["model"], self.tokenizer, self.prompts, temperature=0, **options)
        self.curve.append(sum(gold_judge(self.prompts, texts)) / len(texts))


class Gradients(TrainerCallback):
    """The gradient of every step."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parts = [p.grad.flatten() for p in kwargs["model"].parameters() if p.grad is not None]
        self.gradients.append(torch.cat(parts).double().cpu())
