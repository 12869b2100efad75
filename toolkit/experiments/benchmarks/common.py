"""What the benchmarks share: their arguments, model and data, and what becomes of their rounds."""

import math
import os
import platform
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset

from ...arguments import SANDBOX, DataArguments, make_once
from ...data.formats import pairs_of_one_prompt
from ...data.loading import load_pairs
from ...data.messages import texts_of
from ...pages.tables import print_table
from ...planning.memory import Decoder
from ...sandbox.models import new_decoder, train_tokenizer
from ...sandbox.rows import sample_pairs
from .rounds import Round, now

CPU_INFO = Path("/proc/cpuinfo")
CONTEXT_LENGTH = 32_768  # of the decoder from scratch, whose rotary positions need no weights


@dataclass
class BenchmarkArguments(DataArguments):
    """What is measured, and on what: arguments of the benchmarks, beside the data's."""

    dataset_name: str = field(default=SANDBOX, metadata={"help": "Pairs, named as in [`DataArguments`]."})
    train_size: int = field(default=400, metadata={"help": "Pairs of a round."})
    model: str | None = field(
        default=None,
        metadata={
            "help": "Hub name or folder of a causal model. Where it is not given, a Qwen3-shaped decoder from scratch."
        },
    )
    hidden_size: int = field(default=384, metadata={"help": "Width of the decoder from scratch, a multiple of 32."})
    layers: int = field(default=6, metadata={"help": "Layers of the decoder from scratch."})
    vocab_size: int = field(default=4096, metadata={"help": "Most tokens of the tokenizer that is trained for it."})
    device: str = field(default="cpu", metadata={"help": "'cpu' or 'cuda'; of several GPUs the first is used."})
    dtype: str = field(
        default="float32",
        metadata={
            "help": "'float32', or 'bfloat16': in training by autocast over float32 weights, as TRL does; in scoring, "
            "weights."
        },
    )
    threads: int = field(default=1, metadata={"help": "Threads of each process."})
    max_length: int = field(
        default=512,
        metadata={
            "help": "Most tokens of a row. Longer pairs are left out for all alike, as one side would drop and one "
            "shorten them."
        },
    )
    rounds: int = field(default=5, metadata={"help": "Rounds, each over the same data."})
    seed: int = field(default=0, metadata={"help": "Seed of the data's choice, the decoder and the training."})
    output_dir: str = field(
        default="runs/benchmark", metadata={"help": "Folder of the decoder, the chosen data and the results."}
    )

    def __post_init__(self) -> None:
        check_device(self.device, self.dtype)
        if self.threads < 1 or self.rounds < 1:
            raise ValueError(f"`threads` is {self.threads} and `rounds` {self.rounds}. Both must be at least 1.")


def check_device(device: str, dtype: str) -> None:
    """Refuse a device or a type that no benchmark runs with, and a GPU where there is none."""
    for name, value, allowed in (("device", device, ("cpu", "cuda")), ("dtype", dtype, ("float32", "bfloat16"))):
        if value not in allowed:
            raise ValueError(f"`{name}` is '{value}'. Use '{allowed[0]}' or '{allowed[1]}'.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("`device` is 'cuda', but torch finds no GPU. Set `device=cpu`.")


class Arm(NamedTuple):
    """A way to train: whose trainer and configuration, and its options beside those that all arms share."""

    trainer: type[Any]
    config: type[Any]
    options: dict[str, Any]
    reward: Callable[[str], Any] = str  # of a policy's arm: makes its reward function of the model's folder


def trainer_options(args: BenchmarkArguments) -> dict[str, Any]:
    """Options of every trainer of a benchmark, which writes nothing but its figures."""
    return {
        "output_dir": args.output_dir,
        "seed": args.seed,
        "use_cpu": args.device == "cpu",
        "bf16": args.dtype == "bfloat16",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def benchmark_pairs(args: BenchmarkArguments) -> Dataset:
    """All pairs that a benchmark may choose from: columns `prompt`, `chosen` and `rejected`, checked and shuffled."""
    if args.dataset_name == SANDBOX:
        pairs = sample_pairs(4 * args.train_size, seed=args.seed)
    else:
        pairs = load_pairs(args.dataset_name, args.dataset_train_split, args.dataset_config)
    pairs = pairs_of_one_prompt(pairs, args.dataset_name, "the benchmark reads")
    return pairs.select_columns(["prompt", "chosen", "rejected"]).shuffle(seed=args.seed)


def benchmark_model(args: BenchmarkArguments, pairs: Dataset) -> str:
    """
    Hub name or folder of the model, which is made where none is named and no run before has made it: its tokenizer is
    trained on `pairs`.
    """
    name = f"decoder-{args.hidden_size}x{args.layers}-{args.vocab_size}"
    return args.model or make_once(Path(args.output_dir) / name, _save_decoder, args, pairs)


def _save_decoder(folder: Path, args: BenchmarkArguments, pairs: Dataset) -> None:
    texts = (text for row in pairs for side in row.values() for text in texts_of(side))
    tokenizer = train_tokenizer(texts, args.vocab_size)
    torch.manual_seed(args.seed)
    new_decoder(tokenizer, args.hidden_size, args.layers, CONTEXT_LENGTH).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# Arithmetic


class Spread(NamedTuple):
    """Median of some figures, with the least and the greatest."""

    median: float
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    """Median, least and greatest of some values."""
    values = list(values)
    return Spread(statistics.median(values), min(values), max(values))


def speed_ratios(rounds: list[Round], reference: list[Round]) -> Spread:
    """How many times as fast as the reference, round by round: both must have as many (`ValueError`)."""
    return spread(
        (mine.items / mine.seconds) / (other.items / other.seconds)
        for mine, other in zip(rounds, reference, strict=True)
    )


def model_flops(decoder: Decoder, tokens: int, squares: int, backward: bool) -> float:
    r"""
    Floating-point operations that a decoder needs for some tokens, whatever an implementation does beyond them.

    $$ 2 P t + 2 w s $$

    forward, and twice that again backward: a multiplication and an addition for each token `t` and weight `P` of the
    linear maps, and for each of the `s / 2` pairs that attention visits, in each of its `w` channels, both where
    queries meet keys and where values are summed. Not in it are padding, activations that are computed again, norms
    and heads. Eq. (2.2) of https://huggingface.co/papers/2001.08361, for causal attention.

    A real token that several rows share counts once where the model is run on it once; `squares` is the sum of
    [`~toolkit.experiments.benchmarks.rounds.visible_squares`] over the rows, and `backward` says that gradients of all
    weights are taken.
    """
    width = decoder.heads * decoder.head_dim
    forward = 2.0 * decoder.layers * (decoder.linear_weights * tokens + width * squares)
    return 3 * forward if backward else forward


def matmul_rate(device: str, dtype: str, threads: int, repeats: int = 10) -> float:
    """
    Rate of the machine at what it does best, the product of two large square matrices: floating-point operations a
    second in the fastest of several repeats.
    """
    torch.set_num_threads(threads)
    size = 1024 if device == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    seconds = []
    for _ in range(repeats + 1):  # the first warms up
        start = now(device)
        left @ right
        seconds.append(now(device) - start)
    return float(2 * size**3 / min(seconds[1:]))


def largest_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """
    The most that two series of one length, such as losses by step, differ by at any place; NaN where one holds a NaN.
    """
    differences = [abs(one - other) for one, other in zip(first, second, strict=True)]
    return math.nan if any(map(math.isnan, differences)) else max(differences)


# Results


def describe_machine(device: str, dtype: str, threads: int) -> dict[str, Any]:
    """What the figures were measured on, for JSON: its name, cores and versions, and its [`matmul_rate`]."""
    versions = {name: version(name) for name in ("torch", "transformers", "trl")}
    cpu = re.search(r"model name\s*: (.+)", CPU_INFO.read_text()) if CPU_INFO.exists() else None
    name = torch.cuda.get_device_name() if device == "cuda" else cpu[1] if cpu else platform.machine()
    rate = matmul_rate(device, dtype, threads)
    return {"name": name, "cores": os.cpu_count(), "matmul_flops_per_second": rate, "versions": versions}


def summarize_arms(
    results: Mapping[str, list[Round]], decoder: Decoder, rate: float, backward: bool
) -> dict[str, dict[str, Any]]:
    """
    The figures of every arm over all its rounds, beside the first arm's; `rate` is the machine's [`matmul_rate`].

    Returns:
        `dict[str, dict[str, Any]]`: For JSON, by arm: `per_second`, all items over all seconds; `ratio`, a
        [`Spread`] of the rounds' ratios to the reference; `real_tokens` and `padded_tokens` of all rounds;
        `resting_bytes` and `peak_bytes`, the most of any round; `matmul_share`, what the model's operations on real
        tokens come to a second, over `rate`; and `rounds`.
    """
    reference, figures = next(iter(results.values())), {}
    for name, rounds in results.items():
        seconds, tokens = sum(r.seconds for r in rounds), sum(r.real_tokens for r in rounds)
        flops = model_flops(decoder, tokens, sum(r.squares for r in rounds), backward)
        figures[name] = {
            "per_second": sum(r.items for r in rounds) / seconds,
            "ratio": speed_ratios(rounds, reference)._asdict(),
            "real_tokens": tokens,
            "padded_tokens": sum(r.padded_tokens for r in rounds),
            "resting_bytes": max(r.resting_bytes for r in rounds),
            "peak_bytes": max(r.peak_bytes for r in rounds),
            "matmul_share": flops / seconds / rate,
            "rounds": [r._replace(values=())._asdict() for r in rounds],
        }
    return figures


def print_arms(title: str, unit: str, figures: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what [`summarize_arms`] found; `unit` is what is counted, 'pairs' or 'responses'."""
    columns = (f"{unit}/s", "ratio", "least to most", "real tokens", "with padding", "peak MB", "% of matmul rate")
    rows = [
        (
            name,
            f"{f['per_second']:.2f}",
            f"{f['ratio']['median']:.2f}",
            f"{f['ratio']['low']:.2f} to {f['ratio']['high']:.2f}",
            f"{f['real_tokens']:,}",
            f"{f['padded_tokens']:,}",
            f"{f['peak_bytes'] / 1e6:.0f}",
            f"{100 * f['matmul_share']:.1f}",
        )
        for name, f in figures.items()
    ]
    print_table(title, ("", *columns), rows)
