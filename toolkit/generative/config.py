"""Configuration of the trainer of a judge that thinks."""

from dataclasses import dataclass, field

from ..policy.config import ReinforceConfig
from ..training.options import check_number, help_from_docstring
from .turns import TURNS, JudgeSettings

# Options of the parent for rewards and baselines, which a judge has none of, with what they must stay
_FIXED = {
    "baseline": "leave_one_out",
    "prefix_baseline": False,
    "normalize_rewards": False,
    "normalize_advantages": False,
    "reward_clip_range": None,
    "reward_weights": None,
    "mask_truncated_completions": False,
    "remove_unused_columns": False,
    "temperature": 1.0,  # the answer's probability is of the same model as the thoughts
}


@help_from_docstring
@dataclass
class ThoughtConfig(ReinforceConfig):
    r"""
    Configuration of the [`ThoughtTrainer`]: what [`ReinforceConfig`] has, and how the judge is asked.

    `per_device_train_batch_size` counts thoughts, as it counts responses in [`ReinforceConfig`]: a pair has
    `2 * num_thoughts` of them, and `max_completion_length` is the most tokens of one. `label_smoothing_factor` is the
    probability that a label is wrong. `beta` is the price of a nat by which a thought departs from the reference, in
    nats of a pair's loss.

    Args:
        num_thoughts (`int`, *optional*, defaults to `8`):
            Thoughts about each of the two responses; with `protocol='pair'`, about each of the two orders.
        num_generations (`int`, *optional*):
            Follows from `num_thoughts`.
        beta (`float`, *optional*, defaults to `0.0`):
            Price of a thought's divergence from the reference. With 0 no reference is kept.
        protocol (`str`, *optional*, defaults to `"point"`):
            'point' asks whether one response is good, and compares two by what it says of each; 'pair' shows both and
            asks which is better.
        judge_template (`str`, *optional*):
            What the judge is asked to think about, with the places {prompt} and {response}, or {prompt}, {first} and
            {second}.
        question (`str`, *optional*):
            What it is asked after its thought, with the places {yes} and {no}, or {first} and {second}, for `answers`.
        answers (`list[str]`, *optional*, defaults to `["A", "B"]`):
            The two answers, each of one token.
        two_answers (`bool`, *optional*, defaults to `False`):
            Whether the probability of an answer is that among the two, in place of the whole vocabulary. A pass then
            has every thought twice.
        swap_answers (`bool`, *optional*, defaults to `False`):
            Whether every second thought is asked with the two answers exchanged, so that a liking for one of them
            cancels.
        crossed_weights (`bool`, *optional*, defaults to `False`):
            Whether a thought is weighed by the others alone, which leaves no bias in the gradient's direction and more
            noise. For 8 thoughts and more.
        train_thoughts (`bool`, *optional*, defaults to `True`):
            Whether thoughts are trained, and not the answers alone.
        weight_by_strength (`bool`, *optional*, defaults to `True`):
            Whether a pair's loss is weighted by its `strength` over the data set's mean, where it has such a column.
    """

    num_thoughts: int = 8
    num_generations: int | None = None
    beta: float = 0.0
    protocol: str = "point"
    judge_template: str | None = None
    question: str | None = None
    answers: list[str] = field(default_factory=lambda: ["A", "B"])
    two_answers: bool = False
    swap_answers: bool = False
    crossed_weights: bool = False
    train_thoughts: bool = True
    weight_by_strength: bool = True

    def __post_init__(self) -> None:
        check_number("num_thoughts", self.num_thoughts, 1, whole=True)
        check_number("label_smoothing_factor", self.label_smoothing_factor, 0, 0.5)
        group = 2 * self.num_thoughts
        if self.num_generations not in (None, group):
            raise ValueError(
                f"`num_generations` is {self.num_generations}, and `num_thoughts={self.num_thoughts}` about each of "
                f"two responses are {group}. Leave it out."
            )
        self.num_generations = group
        for name, only in _FIXED.items():
            if getattr(self, name) != only:
                raise ValueError(
                    f"`{name}={getattr(self, name)!r}` does not apply to a judge's thoughts. Leave it out."
                )
        if self.num_thoughts == 1 and (self.train_thoughts or self.crossed_weights):
            name = "crossed_weights" if self.crossed_weights else "train_thoughts"
            raise ValueError(
                f"`{name}` compares the thoughts about a response, and `num_thoughts` is 1. Set 2 or more, or "
                "`train_thoughts=False`."
            )
        if self.beta and not self.train_thoughts:
            raise ValueError(
                f"`beta` is {self.beta} for the divergence of thoughts that are not trained. Set it to 0."
            )
        super().__post_init__()
        if self.num_generations_eval is not None and self.num_generations_eval % 2:
            raise ValueError(f"`num_generations_eval` is {self.num_generations_eval}, of two responses. Make it even.")
        _ = self.settings  # which refuses turns without places

    @property
    def settings(self) -> JudgeSettings:
        """How the judge is asked."""
        template, question = TURNS.get(self.protocol, TURNS["point"])
        return JudgeSettings(
            self.protocol,
            self.judge_template or template,
            self.question or question,
            self.answers,
            self.two_answers,
            self.swap_answers,
            self.num_thoughts,
            self.max_completion_length or 0,
        )
