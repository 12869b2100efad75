"""Configuration of the reward trainer."""

from dataclasses import dataclass, field
from typing import Any

from trl import RewardConfig

from ..training.options import COUNT, SHARE, check_numbers, check_training_numbers, help_from_docstring
from .head import check_reader, check_scales
from .scales import SCALES

# The five preference models of Table 1 of the paper; each is a set of options and nothing else.
PREFERENCE_MODELS: dict[str, dict[str, Any]] = {
    "unbiased": {
        "scales": ["response"],
        "context": "none",
        "loss_type": "pointwise",
        "weight_by_strength": False,
    },
    "simple contrast": {
        "scales": ["response"],
        "context": "none",
        "loss_type": "pairwise",
        "weight_by_strength": False,
    },
    "weighted": {
        "scales": ["response"],
        "context": "none",
        "loss_type": "pairwise",
        "weight_by_strength": True,
    },
    "context-aware": {
        "scales": ["response"],
        "context": "head",
        "loss_type": "pairwise",
        "weight_by_strength": True,
    },
    "multi-scale": {
        "scales": ["token", "segment", "response"],
        "context": "none",
        "loss_type": "pairwise",
        "weight_by_strength": True,
    },
}
LOSS_TYPES = ("pairwise", "pointwise", "plackett_luce", "log_sum_exp")
_RANGES: dict[tuple[str, ...], dict[str, Any]] = {
    ("num_hidden_layers", "layers", "max_tokens_per_batch", "max_length", "pad_to_multiple_of"): COUNT,
    ("dataset_num_proc", "list_reach", "outputs"): COUNT,
    ("learning_rates", "scale_loss_weight", "center_rewards_coefficient"): {"least": 0},
    ("coarse_warmup", "list_reach_warmup"): SHARE,
    # Above a half the other response would be the one that is preferred
    ("label_smoothing_factor",): {"least": 0, "most": 0.5},
}


@help_from_docstring
@dataclass
class MultiScaleRewardConfig(RewardConfig):
    r"""
    Configuration of the [`MultiScaleRewardTrainer`]: what [`trl.RewardConfig`] has, and the structure of the score.

    `max_length` differs from TRL's: a pair that is too long loses tokens from the left of its prompt instead of being
    dropped. `label_smoothing_factor` is the probability that a label is wrong.

    Args:
        scales (`list[str]`, *optional*, defaults to `["token", "segment", "response"]`):
            Scales that make up the score: 'token', 'segment', 'response', or some of them.
        context (`str`, *optional*, defaults to `"none"`):
            How the prompt enters the score: with 'none' every scale weighs the same for all prompts, 'gate' weighs
            them by prompt, 'head' conditions the response head on it.
        centre_by_prompt (`bool`, *optional*, defaults to `False`):
            Whether a score is that of the response less that of an empty one, so that responses to different prompts
            compare. Differences between responses to one prompt stay as they are.
        num_hidden_layers (`int`, *optional*):
            Run so many of the decoder's layers and read its state there. In the middle a pretrained decoder often says
            more of a response than at its end, and a reward model without the rest is faster.
        loss_type (`str`, *optional*, defaults to `"pairwise"`):
            'pairwise' compares the two responses of a pair; 'pointwise' labels chosen 1 and rejected 0. Of ranked
            lists these take every two responses; 'plackett_luce' takes the choice of the best, then of the next best
            and so on, 'log_sum_exp' one logarithm over all comparisons. With pairs those two are 'pairwise'.
        outputs (`int`, *optional*, defaults to `1`):
            Numbers that the head says of a response at each scale, of which a reader makes the preference. With
            labels of attributes one for each attribute.
        reader (`str`, *optional*, defaults to `"linear"`):
            How: 'linear' by a weighted sum, 'mixture' as one of several judges that each has a score, 'skew' by areas
            between vectors, which can go in circles, 'gaussian' by a score and its variance, with two outputs.
        reader_weights (`str`, *optional*, defaults to `"shared"`):
            Whose the reader's weights are: 'shared' by all, read from the 'prompt', or of each 'annotator', by a
            column of that name.
        list_reach (`int`, *optional*):
            Most steps between the ranks of two responses of a list that are compared: 1 compares neighbours alone.
            All are compared where it is not set.
        list_reach_warmup (`float`, *optional*):
            Share of the training over which that reach grows from 1 to its end. It does not grow where none is set.
        scale_loss_weight (`float`, *optional*, defaults to `0.5`):
            Weight of the loss by which each scale must rank the pair on its own. With one scale it has no effect.
        coarse_warmup (`float`, *optional*, defaults to `0.5`):
            Share of the training over which the gradient that all scales but the finest one send into the decoder
            grows from nothing to its full size, so that what single tokens tell is found first. With one scale it has
            no effect.
        weight_by_strength (`bool`, *optional*, defaults to `True`):
            Whether a pair's loss is weighted by its `strength` over the data set's mean, where it has such a column.
        shared_prompts (`bool`, *optional*):
            Whether what the two sides of a pair have in common at their beginning passes through the decoder once. The
            scores and gradients are the same. Where it is not set, it is done if the decoder and its attention
            implementation allow it, and with SDPA if the lengths of the training rows let it save time.
        group_by_prompt (`bool`, *optional*, defaults to `False`):
            Whether training pairs with the same prompt are one row, in which the prompt and each response pass through
            the decoder once. Every pair keeps its loss. A batch has `per_device_train_batch_size` such rows.
        max_tokens_per_batch (`int`, *optional*):
            Make training batches of as many pairs of like length as fit into so many tokens, padding included, in
            place of `per_device_train_batch_size` pairs.
        drop_long_pairs (`bool`, *optional*, defaults to `False`):
            Whether pairs of which a response alone is longer than `max_length` are left out, which a warning counts.
            Otherwise the first of them is an error.
        freeze_decoder (`bool`, *optional*, defaults to `False`):
            Whether the head alone is trained. What it reads of the decoder is then computed once for every row, kept
            on disk, and used in all epochs, evaluations and later trainings on the same rows. The decoder's dropout
            does not act.
        states_dir (`str`, *optional*):
            Folder where that is kept, with `freeze_decoder`; `_states` in the output folder where it is not set.
        learning_rates (`list[float]`, *optional*):
            With `freeze_decoder`: rates of which `recipes/train_reward.py` takes the one that ranks most training
            pairs right by cross-validation, in place of `learning_rate`.
        layers (`list[int]`, *optional*):
            With `learning_rates`: numbers of layers that are tried with every rate, in place of `num_hidden_layers`.
            One pass of the decoder, which ends at the largest, reads them all.
    """

    scales: list[str] = field(default_factory=lambda: list(SCALES))
    context: str = "none"
    centre_by_prompt: bool = False
    num_hidden_layers: int | None = None
    loss_type: str = "pairwise"
    outputs: int = 1
    reader: str = "linear"
    reader_weights: str = "shared"
    list_reach: int | None = None
    list_reach_warmup: float | None = None
    scale_loss_weight: float = 0.5
    coarse_warmup: float = 0.5
    weight_by_strength: bool = True

    shared_prompts: bool | None = None
    group_by_prompt: bool = False
    max_tokens_per_batch: int | None = None
    drop_long_pairs: bool = False

    freeze_decoder: bool = False
    states_dir: str | None = None
    learning_rates: list[float] | None = None
    layers: list[int] | None = None

    def __post_init__(self) -> None:
        check_training_numbers(self)
        super().__post_init__()  # type: ignore[no-untyped-call]
        check_numbers(self, _RANGES)  # of which TRL has filled one in
        check_scales(self.scales, self.context, self.centre_by_prompt)
        check_reader(self)
        self._check_loss()
        for name, usual in {"batch_eval_metrics": False, "eval_do_concat_batches": True}.items():
            if getattr(self, name) != usual:
                raise ValueError(
                    f"`{name}={not usual}` leaves no table of all pairs, of which the exact figures are made. Leave "
                    "it out: `compute_metrics` gets all pairs at once."
                )
        if self.learning_rates is not None and not self.freeze_decoder:
            raise ValueError(
                "`learning_rates` are compared on a frozen decoder. Set `freeze_decoder`, or leave them out."
            )
        for name in ("learning_rates", "layers"):
            if getattr(self, name) == []:
                raise ValueError(f"`{name}` is empty. Give one or more, or leave it out.")
        self._check_layers()

    def _check_loss(self) -> None:
        if self.loss_type not in LOSS_TYPES:
            raise ValueError(f"`loss_type` is '{self.loss_type}'. Use one of {[*LOSS_TYPES]}.")
        if self.loss_type in LOSS_TYPES[2:] and self.label_smoothing_factor:
            raise ValueError(
                f"`label_smoothing_factor` is of single comparisons, which `loss_type='{self.loss_type}'` does not "
                "have. Leave one of the two out."
            )
        if self.loss_type == "plackett_luce" and (self.list_reach or self.list_reach_warmup):
            raise ValueError(
                "`list_reach` is of comparisons, and `loss_type='plackett_luce'` has choices among all that are left. "
                "Leave it out, or take 'log_sum_exp'."
            )
        if self.reader != "linear" and (self.loss_type != "pairwise" or self.center_rewards_coefficient):
            raise ValueError(
                f"`reader='{self.reader}'` says by how much one response is preferred to the other, and has no score "
                f"of each for `loss_type='{self.loss_type}'` or `center_rewards_coefficient`. Use 'pairwise' alone."
            )
        if self.outputs > 1 and (self.learning_rates is not None or self.group_by_prompt):
            raise ValueError(
                "`learning_rates` and `group_by_prompt` are for heads with one output. Leave them out, or `outputs`."
            )

    def _check_layers(self) -> None:
        if self.layers is not None and self.learning_rates is None:
            raise ValueError("`layers` are compared with `learning_rates`. Give those, too, or `num_hidden_layers`.")
        if self.layers is not None and self.num_hidden_layers is not None:
            raise ValueError("`layers` are tried in place of `num_hidden_layers`. Leave one of the two out.")
