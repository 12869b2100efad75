"""How a step of reward training grows: points to measure, pairs of exact lengths, the step, and what is made of it."""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ...data.batches import BESIDE_THE_ROWS, SIDES, MultiScaleCollator
from ...data.markers import response_marker_ids
from ...data.positions import group_rows
from ...data.tokens import segment_boundary_ids
from ...planning.memory import Decoder
from ...planning.plan import decoder_shape
from ...reward.head import MultiScaleSettings
from ...reward.losses import multi_scale_loss
from ...reward.model import reward_model_class
from ...sandbox.models import new_decoder, train_tokenizer
from .common import CONTEXT_LENGTH, check_device, model_flops, speed_ratios, spread
from .rounds import Meter, Round, now, turn_order

UNSHARED, SHARED = "ours, unshared", "ours"
LAYOUTS = {UNSHARED: False, SHARED: True}  # whether the two sides of a pair share their prompt
SPECIAL_TOKENS, VOCABULARY = 3, 259  # the tokenizer has these and the 256 bytes: embeddings take no part in the floor


@dataclass
class ScalingArguments:
    """What is varied, around which point, and where it is measured."""

    response_lengths: list[int] = field(
        default_factory=lambda: [64, 128, 256, 512, 1024], metadata={"help": "Tokens of a response."}
    )
    prompt_shares: list[float] = field(
        default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 0.9],
        metadata={"help": "Share of the prompt in a row; the prompt has at least one token."},
    )
    sizes: list[str] = field(
        default_factory=lambda: ["64x2", "128x4", "256x4", "256x8", "384x6"],
        metadata={"help": "Hidden size, a multiple of 32, and layers of the decoders."},
    )
    base_response_length: int = field(
        default=128, metadata={"help": "Tokens of a response while something else is varied."}
    )
    base_prompt_share: float = field(
        default=0.5, metadata={"help": "Share of the prompt while something else is varied."}
    )
    base_size: str = field(
        default="256x4", metadata={"help": "Hidden size and layers while something else is varied."}
    )
    pairs: int = field(default=2, metadata={"help": "Pairs of a step."})
    repeats: int = field(default=5, metadata={"help": "Times that each layout is measured at each point."})
    device: str = field(default="cpu", metadata={"help": "'cpu' or 'cuda'; of several GPUs the first is used."})
    dtype: str = field(
        default="float32",
        metadata={"help": "'float32', or 'bfloat16' by autocast over float32 weights, as TRL does."},
    )
    threads: int = field(default=1, metadata={"help": "Threads, on the CPU."})
    seed: int = field(default=0, metadata={"help": "Seed of the tokens and the weights."})
    output_dir: str = field(default="runs/scaling", metadata={"help": "Folder of the results."})

    def __post_init__(self) -> None:
        check_device(self.device, self.dtype)
        for name in ("pairs", "repeats", "threads", "base_response_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}. It must be at least 1.")
        for share in [*self.prompt_shares, self.base_prompt_share]:
            if not 0 <= share < 1:
                raise ValueError(f"A prompt's share of a row is {share}. It must be at least 0 and below 1.")
        for size in [*self.sizes, self.base_size]:
            hidden, _, layers = size.partition("x")
            if not (hidden.isdecimal() and layers.isdecimal() and int(hidden) % 32 == 0 < int(hidden) * int(layers)):
                raise ValueError(f"'{size}' is no size. Give a multiple of 32 and a number of layers, as in '256x4'.")


class Point(NamedTuple):
    """Where a step is measured."""

    response_length: int  # tokens, of both responses of a pair
    prompt_share: float  # of the tokens of a row
    size: str  # hidden size x layers

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt; at least one, since the gate reads its last."""
        return max(1, round(self.response_length * self.prompt_share / (1 - self.prompt_share)))


def sweeps_of(args: ScalingArguments) -> dict[str, list[Point]]:
    """The points of each sweep, in which one field of [`Point`] varies, by the name of that field."""
    base = Point(args.base_response_length, args.base_prompt_share, args.base_size)
    return {
        "response_length": [base._replace(response_length=length) for length in args.response_lengths],
        "prompt_share": [base._replace(prompt_share=share) for share in args.prompt_shares],
        "size": [base._replace(size=size) for size in args.sizes],
    }


def synthetic_pairs(point: Point, pairs: int, seed: int) -> list[dict[str, Any]]:
    """
    Pairs of random tokens, of exact lengths: what [`~toolkit.data.tokens.tokenize_pair`] makes of a pair, as far as
    [`~toolkit.data.batches.MultiScaleCollator`] needs it. The responses differ from their first token on, so that the
    prompt is all that a pair shares.
    """
    rng, ids, start = random.Random(seed), range(SPECIAL_TOKENS, VOCABULARY), point.prompt_length
    rows = []
    for _ in range(pairs):
        prompt, firsts = rng.choices(ids, k=start), rng.sample(ids, 2)
        chosen, rejected = ([*prompt, first, *rng.choices(ids, k=point.response_length - 1)] for first in firsts)
        starts = {"chosen_start": start, "rejected_start": start, "shared_tokens": start}
        rows.append({"chosen_ids": chosen, "rejected_ids": rejected} | starts)
    return rows


def new_reward_model(tokenizer: PreTrainedTokenizerFast, size: str, seed: int) -> Any:
    """
    Our reward model on a Qwen3-shaped decoder with random weights; `size` as in '256x4'. Its class is made for the
    decoder's, so there is no name for its type.
    """
    hidden, layers = map(int, size.split("x"))
    with torch.device("meta"):  # only its configuration is needed
        config = new_decoder(tokenizer, hidden, layers, CONTEXT_LENGTH).config
    config.multi_scale = asdict(MultiScaleSettings())
    torch.manual_seed(seed)
    model: Any = reward_model_class(type(config))(config)  # type: ignore[arg-type]  # a class is hashable
    model.set_layout(response_marker_ids(tokenizer), segment_boundary_ids(tokenizer))
    return model.train()


def train_step(
    model: PreTrainedModel, collator: MultiScaleCollator, pairs: list[dict[str, Any]], device: str, dtype: str
) -> float:
    """
    A step of reward training but the optimizer's: collate, forward, loss, backward. The gradients are dropped.

    Returns:
        `float`: The loss, in nats.
    """
    batch = {name: tensor.to(device) for name, tensor in collator(pairs).items()}
    with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
        rows = {name: tensor for name, tensor in batch.items() if name not in BESIDE_THE_ROWS}
        outputs = model(**rows, use_cache=False)
    groups = group_rows(batch["group_sizes"], len(SIDES))
    chosen, rejected = outputs.logits[groups, 0].unbind(1)
    loss = multi_scale_loss(chosen, rejected, *outputs.scale_scores[groups].unbind(1)).total.mean()
    loss.backward()
    model.zero_grad()
    return loss.item()


def measure_point(point: Point, args: ScalingArguments) -> tuple[Decoder, dict[str, list[Round]]]:
    """
    Measure both layouts at a point, on one model and the same pairs, in turn.

    Returns:
        `tuple[Decoder, dict[str, list[Round]]]`: Shape of the decoder, and the rounds of each layout, a step each,
        with its loss.
    """
    tokenizer = train_tokenizer([], VOCABULARY)
    model = new_reward_model(tokenizer, point.size, args.seed).to(args.device)
    pairs, meter = synthetic_pairs(point, args.pairs, args.seed), Meter(model, args.device)
    collators = {name: MultiScaleCollator(tokenizer.pad_token_id, shared_prompts=LAYOUTS[name]) for name in LAYOUTS}
    step = partial(train_step, model, pairs=pairs, device=args.device, dtype=args.dtype)
    for collator in collators.values():
        step(collator)  # warms up
    names = [name for order in turn_order(list(LAYOUTS), args.repeats) for name in order]
    seconds: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    for name in names:
        start = now(args.device)
        step(collators[name])
        seconds[name].append(now(args.device) - start)
    # Memory in steps of their own: for it the meter empties the allocator, and to get that memory back from the system
    # is no part of a step in the midst of training.
    results: dict[str, list[Round]] = {name: [] for name in LAYOUTS}
    for name in names:
        meter.start()
        loss = step(collators[name])
        measured = meter.stop(args.pairs, [loss])
        results[name].append(measured._replace(seconds=seconds[name][len(results[name])]))
    return decoder_shape(model), results


def summarize_point(rounds: Mapping[str, list[Round]], decoder: Decoder, rate: float) -> dict[str, Any]:
    """
    Cost of a step in each layout of [`measure_point`], beside its floor by the machine's rate, and what sharing gains.

    Returns:
        `dict[str, Any]`: For JSON. `layouts` has for each `seconds` and `peak_bytes`, a [`Spread`] over the steps;
        `tokens` of a step; its `flops` ([`~toolkit.experiments.benchmarks.common.model_flops`]);
        `floor_seconds`, those over the rate; and `floor_ratio`, the median of the seconds over it.
        `time_gain` is how many times as fast a step is with shared prompts, a [`Spread`] of the repeats' ratios;
        `memory_gain` the ratio of the median peaks; and `flops_gain` what the operations alone would gain.
    """
    layouts: dict[str, dict[str, Any]] = {}
    for name, repeats in rounds.items():
        flops = model_flops(decoder, repeats[0].real_tokens, repeats[0].squares, backward=True)
        seconds = spread(r.seconds for r in repeats)
        layouts[name] = {
            "seconds": seconds._asdict(),
            "floor_seconds": flops / rate,
            "floor_ratio": seconds.median * rate / flops,
            "peak_bytes": spread(r.peak_bytes for r in repeats)._asdict(),
            "tokens": repeats[0].real_tokens,
            "flops": flops,
        }
    unshared, shared = layouts[UNSHARED], layouts[SHARED]
    return {
        "layouts": layouts,
        "time_gain": speed_ratios(rounds[SHARED], rounds[UNSHARED])._asdict(),
        "memory_gain": unshared["peak_bytes"]["median"] / shared["peak_bytes"]["median"],
        "flops_gain": unshared["flops"] / shared["flops"],
    }
