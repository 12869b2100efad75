"""Configuration of the REINFORCE trainer."""

from dataclasses import dataclass, field

from trl import RLOOConfig

BASELINES = ("none", "batch_mean", "moving_average", "leave_one_out")


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
    """

    disable_dropout: bool = field(default=True, metadata={"help": "Whether to disable dropout in the model."})
    baseline: str = field(
        default="leave_one_out",
        metadata={
            "help": "What is subtracted from a response's return: 'none', 'batch_mean', 'moving_average' (of earlier "
            "batches) or 'leave_one_out' (the other responses to the prompt)."
        },
    )
    moving_average_decay: float = field(
        default=0.9,
        metadata={"help": "Share of the old average that a batch leaves, for the 'moving_average' baseline."},
    )
    prefix_baseline: bool = field(
        default=False,
        metadata={
            "help": "Whether to subtract, at every token, what the reward model's value of the prefix before it "
            "explains. Needs one `RewardFunction` among the reward functions."
        },
    )
    prefix_decay: float = field(
        default=0.9,
        metadata={"help": "Weight that a batch keeps in the prefix fit when the next one comes."},
    )
    prefix_penalty: float = field(
        default=0.01,
        metadata={"help": "Ridge penalty of the prefix fit, relative to each feature's own scale."},
    )
    normalize_rewards: bool = field(
        default=False,
        metadata={
            "help": "Whether to bring rewards to mean 0 and standard deviation 1 by running statistics of earlier "
            "batches."
        },
    )

    def __post_init__(self) -> None:
        if self.baseline not in BASELINES:
            raise ValueError(f"`baseline` is '{self.baseline}'. Use one of {list(BASELINES)}.")
        if self.baseline == "leave_one_out" and self.num_generations < 2:  # type: ignore[operator]
            raise ValueError(
                "`baseline='leave_one_out'` needs other responses to the same prompt. Set `num_generations` to 2 or "
                "more, or use 'moving_average' or 'batch_mean'."
            )
        for name in ("moving_average_decay", "prefix_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}. It must lie between 0 and 1.")
        if self.prefix_penalty < 0:
            raise ValueError(f"`prefix_penalty` is {self.prefix_penalty}. It must not be negative.")
        try:
            super().__post_init__()  # type: ignore[no-untyped-call]
        except ValueError as error:
            # TRL's last check, after everything is set up. It is meant for its own leave-one-out baseline.
            if self.num_generations != 1 or "RLOO requires at least 2 generations" not in str(error):
                raise
