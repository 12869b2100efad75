"""Configuration of the REINFORCE trainer."""

from dataclasses import dataclass
from numbers import Real
from typing import Any

from trl import RLOOConfig

from ..training.options import COUNT, SHARE, check_numbers, check_training_numbers, help_from_docstring

BASELINES = ("none", "batch_mean", "moving_average", "leave_one_out")
SAMPLING_MODES = ("sequence_truncate", "token_truncate")
# Beside those of every training
_RANGES: dict[tuple[str, ...], dict[str, Any]] = {
    ("moving_average_decay", "prefix_decay", "min_p", "ref_model_mixup_alpha"): SHARE,
    ("prefix_penalty", "beta", "epsilon", "epsilon_high", "top_k"): {"least": 0},
    ("num_generations", "num_generations_eval", "steps_per_generation", "generation_batch_size"): COUNT,
    ("max_completion_length", "num_iterations", "max_prompt_length", "ref_model_sync_steps"): COUNT,
    ("vllm_importance_sampling_clip_max",): {"least": 1},
    ("temperature", "top_p", "repetition_penalty", "vllm_gpu_memory_utilization"): {"above": 0},
    ("reward_weights",): {},
}


@help_from_docstring
@dataclass
class ReinforceConfig(RLOOConfig):
    r"""
    Configuration of the [`ReinforceTrainer`]: what [`trl.RLOOConfig`] has, and the baseline.

    One generation a prompt (`num_generations=1`) is allowed with every baseline but leave-one-out. `disable_dropout`
    defaults to `True`: with dropout the log-probabilities of sampling and of training are those of two policies.
    `reward_clip_range` applies after `normalize_rewards`.

    Args:
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether to disable dropout in the model.
        baseline (`str`, *optional*, defaults to `"leave_one_out"`):
            What is subtracted from a response's return: 'none', 'batch_mean', 'moving_average' (of earlier batches) or
            'leave_one_out' (the other responses to the prompt).
        moving_average_decay (`float`, *optional*, defaults to `0.9`):
            Share of the old average that a batch leaves, for the 'moving_average' baseline.
        prefix_baseline (`bool`, *optional*, defaults to `False`):
            Whether to subtract, at every token, what the reward model's value of the prefix before it explains. Needs
            one `RewardFunction` among the reward functions.
        prefix_decay (`float`, *optional*, defaults to `0.9`):
            Weight that a batch keeps in the prefix fit when the next one comes.
        prefix_penalty (`float`, *optional*, defaults to `0.01`):
            Ridge penalty of the prefix fit, relative to each feature's own scale.
        normalize_rewards (`bool`, *optional*, defaults to `False`):
            Whether to bring rewards to mean 0 and standard deviation 1 by running statistics of earlier batches.
        max_prompt_length (`int`, *optional*):
            Most tokens of a prompt. Longer ones are left out, and their number is said.
        vllm_importance_sampling_correction (`bool`, *optional*, defaults to `True`):
            Whether to weigh what vLLM has sampled by the policy's probability over vLLM's. The two differ a little.
        vllm_importance_sampling_mode (`str`, *optional*, defaults to `"sequence_truncate"`):
            'sequence_truncate' weighs a whole response, which leaves the gradient exact but for the truncation;
            'token_truncate' each token on its own, which varies less in long responses.
        vllm_importance_sampling_clip_max (`float`, *optional*, defaults to `3.0`):
            Largest weight.
    """

    disable_dropout: bool = True
    baseline: str = "leave_one_out"
    moving_average_decay: float = 0.9
    prefix_baseline: bool = False
    prefix_decay: float = 0.9
    prefix_penalty: float = 0.01
    normalize_rewards: bool = False
    max_prompt_length: int | None = None
    vllm_importance_sampling_correction: bool = True
    vllm_importance_sampling_mode: str = "sequence_truncate"
    vllm_importance_sampling_clip_max: float = 3.0

    def __post_init__(self) -> None:
        check_training_numbers(self)
        check_numbers(self, _RANGES)
        self._check_clip_range()
        if self.baseline not in BASELINES:
            raise ValueError(f"`baseline` is '{self.baseline}'. Use one of {list(BASELINES)}.")
        if self.vllm_importance_sampling_mode not in SAMPLING_MODES:
            raise ValueError(
                f"`vllm_importance_sampling_mode` is '{self.vllm_importance_sampling_mode}'. Use one of "
                f"{list(SAMPLING_MODES)}."
            )
        if self.baseline == "leave_one_out" and self.num_generations < 2:  # type: ignore[operator]
            raise ValueError(
                "`baseline='leave_one_out'` needs other responses to the same prompt. Set `num_generations` to 2 or "
                "more, or use 'moving_average' or 'batch_mean'."
            )
        try:
            super().__post_init__()  # type: ignore[no-untyped-call]
        except ValueError as error:
            # TRL's last check, after everything is set up. It is meant for its own leave-one-out baseline.
            if self.num_generations != 1 or "RLOO requires at least 2 generations" not in str(error):
                raise

    def _check_clip_range(self) -> None:
        if self.reward_clip_range is not None:
            ends = list(self.reward_clip_range)
            # The command line takes one word for it
            if len(ends) != 2 or not all(isinstance(end, Real) for end in ends) or not ends[0] < ends[1]:
                remedy = "Give two numbers, the lower one first; of a recipe in its YAML file."
                raise ValueError(f"`reward_clip_range` is {ends}. {remedy}")
