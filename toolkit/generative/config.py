"""Configuration of the trainer of a judge that thinks."""

from dataclasses import dataclass

from ..policy.config import ReinforceConfig
from ..training.options import check_number, help_from_docstring
from .turns import JudgeSettings

# Of the parent, for rewards and baselines; one model thinks and answers, and both responses are read
_FIXED = {"baseline": "leave_one_out", "prefix_baseline": False, "normalize_rewards": False, "reward_weights": None}
_FIXED |= {"normalize_advantages": False, "reward_clip_range": None, "mask_truncated_completions": False}
_FIXED |= {"temperature": 1.0, "remove_unused_columns": False}


@help_from_docstring
@dataclass
class ThoughtConfig(JudgeSettings, ReinforceConfig):
    r"""
    Configuration of the [`ThoughtTrainer`]: what [`ReinforceConfig`] and [`JudgeSettings`] have.

    `per_device_train_batch_size` counts thoughts, as it counts responses in [`ReinforceConfig`]: a pair has
    `2 * num_thoughts` of them, a list `list_size * num_thoughts`. `label_smoothing_factor` is the probability that a
    label is wrong.

    Args:
        num_generations (`int`, *optional*):
            Follows from `num_thoughts`.
        beta (`float`, *optional*, defaults to `0.0`):
            Price of a nat by which a thought departs from the reference, in nats of a pair's loss. With 0 no reference
            is kept.
        crossed_weights (`bool`, *optional*, defaults to `False`):
            Whether a thought is weighed by the others alone, which leaves no bias in the gradient's direction and more
            noise. For 8 thoughts and more.
        train_thoughts (`bool`, *optional*, defaults to `True`):
            Whether thoughts are trained, and not the answers alone.
        weight_by_strength (`bool`, *optional*, defaults to `True`):
            Whether a pair's loss is weighted by its `strength` over the data set's mean, where it has such a column.
        rationale_weight (`float`, *optional*, defaults to `0.0`):
            What thoughts that are given cost beside a pair's loss, by the mean nats of their tokens, after
            https://huggingface.co/papers/2407.14477. They are the column `rationale`: texts under `chosen` and
            `rejected`, or one of both responses with `protocol='pair'`; where a row has none it costs nothing.
        list_size (`int`, *optional*, defaults to `2`):
            Responses of the longest ranked list, whose loss is the mean over its comparisons. With 2 lists are pairs.
            In places that a shorter list leaves empty its last response is judged again, which trains nothing.
    """

    num_generations: int | None = None
    beta: float = 0.0
    crossed_weights: bool = False
    train_thoughts: bool = True
    weight_by_strength: bool = True
    rationale_weight: float = 0.0
    list_size: int = 2

    def __post_init__(self) -> None:
        JudgeSettings.__post_init__(self)
        check_number("label_smoothing_factor", self.label_smoothing_factor, 0, 0.5)
        check_number("list_size", self.list_size, 2, whole=True)
        check_number("rationale_weight", self.rationale_weight, 0)
        if self.rationale_weight and self.list_size > 2:
            raise ValueError("`rationale_weight` goes with pairs, and `list_size` is more than 2. Leave one out.")
        if self.list_size > 2 and self.protocol == "pair":
            raise ValueError(f"`list_size` is {self.list_size}, and `protocol='pair'` shows pairs. Leave one out.")
        group, given = self.list_size * self.num_thoughts, self.num_generations
        if given not in (None, group):
            raise ValueError(f"`num_generations` is {given}, and a group has {group} thoughts. Leave it out.")
        self.num_generations = group
        for name, only in _FIXED.items():
            if getattr(self, name) != only:
                raise ValueError(f"`{name}={getattr(self, name)!r}` does not apply to thoughts. Leave it out.")
        if self.num_thoughts == 1 and (self.train_thoughts or self.crossed_weights):
            only = "`train_thoughts=False` without `crossed_weights`"
            raise ValueError(f"With `num_thoughts=1` a thought has no other to be compared with. Set more, or {only}.")
        if self.beta and not self.train_thoughts:
            raise ValueError(f"`beta` is {self.beta}, and thoughts that are not trained do not depart. Set it to 0.")
        ReinforceConfig.__post_init__(self)
        if (self.num_generations_eval or 0) % (each := self.list_size * (1 + self.swap_answers)):
            raise ValueError(f"`num_generations_eval` is {self.num_generations_eval}. Make it a multiple of {each}.")
