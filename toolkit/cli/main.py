"""The console command `prefscale`."""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from ..data.loading import load_pairs
from ..experiments.study.grid import SETTINGS_FILE
from ..experiments.study.page import write_study_report
from ..pages.explain import explain, load_reward_function, print_explanations, render_html
from ..pages.run_page import write_run_report
from ..pages.tables import print_accuracy, print_table
from ..planning.memory import host_bytes, in_bfloat16
from ..planning.plan import Run, build_model, list_parameters, load_config, plan_memory
from ..sandbox.rows import sample_pairs
from ..stats.metrics import pair_accuracy

# What vendors call a card. Each holds at least that many decimal gigabytes: one of "24 GB" with error correction holds
# 24.1 billion bytes, one of "80 GB" 85 billion.
CARDS = (24, 48, 80, 141)
GIGABYTE = 10**9
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command.

    Args:
        arguments (`Sequence[str]`, *optional*):
            Words after the command; those of the process where they are not given.

    Returns:
        `int`: Exit status: 0, or 2 where the user's input was wrong.
    """
    parser = argparse.ArgumentParser(
        prog="prefscale", description="Preference data, scores and GPU memory at a glance."
    )
    parser.add_argument("--version", action="version", version=f"prefscale {version('prefscale')}")
    commands = parser.add_subparsers(dest="command", required=True)

    check = commands.add_parser("check", help="check every row of a set of preference pairs, and describe it")
    check.add_argument("data", help="hub name, folder, file (.jsonl, .jsonl.gz, .parquet) or pattern of files")
    check.add_argument("--split", help="split of a hub data set or folder")
    check.set_defaults(run=lambda args: _check(args.data, args.split))

    sandbox = commands.add_parser("sandbox", help="write preference pairs of the sandbox to a file")
    sandbox.add_argument("file", help="file to write (.jsonl)")
    sandbox.add_argument("--size", type=int, default=1000, help="number of pairs (1000)")
    sandbox.add_argument("--seed", type=int, default=0, help="seed (0)")
    sandbox.set_defaults(run=lambda args: sample_pairs(args.size, seed=args.seed).to_json(args.file))

    _add_explain(commands.add_parser("explain", help="show what every token and segment adds to a response's score"))
    _add_plan(commands.add_parser("plan", help="say what memory, tokens and hours a run needs, without any weights"))

    report = commands.add_parser(
        "report", help="write a page with the figures, plots and settings of a training run or a study"
    )
    report.add_argument("folder", help="output folder of a reward training, REINFORCE, the demonstration or a study")
    report.set_defaults(run=lambda args: print(_report(Path(args.folder))))

    args = parser.parse_args(arguments)
    try:
        args.run(args)
    except ValueError as error:
        print(f"prefscale {args.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _report(folder: Path) -> Path:
    return write_study_report(folder) if (folder / SETTINGS_FILE).is_file() else write_run_report(folder)


def _check(data: str, split: str | None) -> None:
    pairs = load_pairs(data, split)
    texts = {
        column: [cell if isinstance(cell, str) else "\n".join(m["content"] for m in cell) for cell in pairs[column]]
        for column in ("prompt", "chosen", "rejected")
    }
    lengths = {column: torch.tensor([len(text) for text in cells]).float() for column, cells in texts.items()}
    form = "plain text" if isinstance(pairs[0]["prompt"], str) else "messages"
    rows = [
        (name, f"{cells.mean():.0f}", f"{cells.median():.0f}", f"{cells.max():.0f}") for name, cells in lengths.items()
    ]
    print_table(
        f"{data}: {len(pairs)} pairs, {form}, all rows in order", ("characters", "mean", "median", "most"), rows
    )
    distinct = len(set(texts["prompt"]))
    repeated = len(pairs) - len(set(zip(*texts.values(), strict=True)))
    print(f"{distinct} distinct prompts, {repeated} repeated pairs; columns {pairs.column_names}")
    print_accuracy({"longer wins": pair_accuracy(lengths["chosen"], lengths["rejected"])}, "What a model must beat")


def _add_explain(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="folder or hub name of a multi-scale reward model or adapter")
    command.add_argument("--prompt", help="prompt")
    command.add_argument("--response", action="append", default=[], help="response; twice to compare two")
    command.add_argument(
        "--file", help="in place of a prompt and responses: set of preference pairs to take them from"
    )
    command.add_argument("--row", type=int, help="with --file: number of the pair, counted from 1")
    command.add_argument("--html", help="file to write as a page, too (.html)")
    command.set_defaults(run=_explain)


def _explain(args: argparse.Namespace) -> None:
    if args.file is not None:
        if args.prompt is not None or args.response:
            raise ValueError("`--file` brings its own prompt and responses. Leave out `--prompt` and `--response`.")
        pairs = load_pairs(args.file)
        if args.row is None or not 1 <= args.row <= len(pairs):
            raise ValueError(
                f"'{args.file}' has {len(pairs)} pairs, but `--row` is {args.row}. Give 1 to {len(pairs)}."
            )
        row, names = pairs[args.row - 1], ["chosen", "rejected"]
        reward = load_reward_function(args.model, tools=row.get("tools"), **(row.get("chat_template_kwargs") or {}))
        prompt, responses = row["prompt"], [row[name] for name in names]
    else:
        if args.prompt is None or len(args.response) not in (1, 2) or args.row is not None:
            found = f"`--prompt` {args.prompt is not None:d} times, `--response` {len(args.response)} times"
            raise ValueError(f"Found {found}. Give `--prompt` and one or two `--response`, or `--file` and `--row`.")
        names = ["response 1", "response 2"] if len(args.response) == 2 else ["response"]
        reward = load_reward_function(args.model)
        prompt, responses = args.prompt, args.response
        if reward.processing_class.chat_template is not None:
            prompt = [{"role": "user", "content": prompt}]
            responses = [[{"role": "assistant", "content": response}] for response in responses]
    explanations = explain(reward, prompt, responses)
    print_explanations(prompt, names, explanations)
    if args.html is not None:
        try:
            Path(args.html).write_text(render_html(args.model, prompt, names, explanations), encoding="utf-8")
        except OSError as error:
            raise ValueError(f"Cannot write '{args.html}' ({error.strerror}). Correct `--html`.") from None


def _add_plan(plan: argparse.ArgumentParser) -> None:
    plan.add_argument("model", help="hub name, or folder with a config.json")
    plan.add_argument("--trainer", choices=("reward", "reinforce"), default="reward", help="what is trained (reward)")
    plan.add_argument("--gpus", type=int, default=1, help="number of GPUs (1)")
    plan.add_argument("--zero", type=int, choices=range(4), default=0, help="ZeRO stage; 0: no DeepSpeed (0)")
    plan.add_argument("--offload", action="store_true", help="with --zero 3: weights and optimizer on the CPU")
    plan.add_argument("--lora-rank", type=int, default=0, help="rank of LoRA on all linear layers (none)")
    plan.add_argument("--load-in-4bit", action="store_true", help="with --lora-rank: base model in nf4")
    plan.add_argument("--double-quantisation", action="store_true", help="with --load-in-4bit: of its constants, too")
    plan.add_argument("--dtype", choices=_DTYPES, default="float32", help="type in which weights are loaded (float32)")
    plan.add_argument("--batch", type=int, default=8, help="rows of a GPU in one pass; a pair is two rows (8)")
    plan.add_argument("--length", type=int, default=1024, help="tokens of a row, prompt and completion (1024)")
    plan.add_argument(
        "--gradient-checkpointing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compute activations anew in the backward pass (yes, as in TRL)",
    )
    reinforce = plan.add_argument_group("with --trainer reinforce")
    reinforce.add_argument("--completion-length", type=int, default=512, help="tokens of a row that are sampled (512)")
    reinforce.add_argument("--num-generations", type=int, default=2, help="completions of a prompt (2)")
    reinforce.add_argument(
        "--gradient-accumulation-steps",
        type=int,
        default=1,
        help="passes of a step: TRL samples the rows of all of them at once (1)",
    )
    reinforce.add_argument("--beta", type=float, default=0.05, help="weight of the divergence; 0: no reference (0.05)")
    reinforce.add_argument("--reward-model", help="hub name or folder of the reward model (none)")
    reinforce.add_argument("--reward-dtype", choices=_DTYPES, default="float32", help="type of its weights (float32)")
    hours = plan.add_argument_group("tokens and hours")
    size = hours.add_mutually_exclusive_group()
    size.add_argument("--pairs", type=int, help="pairs of the reward model's data set")
    size.add_argument("--prompts", type=int, help="prompts of the policy's data set")
    hours.add_argument("--epochs", type=float, default=1.0, help="times that the data set is gone through (1)")
    hours.add_argument("--tokens-per-second", type=float, help="of one GPU, whole steps measured")
    plan.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> None:
    policy, four_bits = args.trainer == "reinforce", (args.load_in_4bit, args.double_quantisation)
    _check_plan(args, policy)
    dtype = _DTYPES[args.dtype]
    model = build_model(
        load_config(args.model),
        not policy,
        dtype,
        args.lora_rank,
        args.load_in_4bit,
        keep_adapter_dtype=args.zero == 3,
    )
    reward = (
        build_model(load_config(args.reward_model), True, _DTYPES[args.reward_dtype]) if args.reward_model else None
    )
    run = Run(
        rows=args.batch,
        length=args.length,
        stage=args.zero,
        gpus=args.gpus,
        offload=args.offload,
        gradient_checkpointing=args.gradient_checkpointing,
        completion_length=args.completion_length if policy else 0,
        generated_rows=args.batch * args.gradient_accumulation_steps if policy else 0,
        beta=args.beta if policy else 0.0,
    )
    plan = plan_memory(model, run, reward, *four_bits)
    parameters = list_parameters(model, *four_bits)
    held = {name.replace("_", " "): size for name, size in plan._asdict().items()}
    held["overhead"] = sum(plan.overhead)
    if not policy:
        held = {
            name: size for name, size in held.items() if name not in ("generation", "reward model", "reference model")
        }
    rows = [(name, f"{size / GIGABYTE:.2f}") for name, size in [*held.items(), ("total", plan.total)]]
    count, trained = (sum(p.numel for p in parameters if p.trainable or not only) for only in (False, True))
    print_table(
        f"{args.model}: {count / 1e6:,.1f} million parameters, {trained / 1e6:,.1f} million trained",
        ("on each GPU", "GB of 10⁹ bytes"),
        rows,
    )
    parts = dict(
        zip(("CUDA and NCCL (assumed)", "reduction buckets", "gathered weights", "step"), plan.overhead, strict=True)
    )
    print("overhead: " + ", ".join(f"{name} {size / GIGABYTE:.2f}" for name, size in parts.items() if size))
    if args.offload:
        print(f"on the CPU, for each GPU: {host_bytes(in_bfloat16(parameters), args.gpus) / GIGABYTE:.2f} GB")
    verdicts = [f"{card} GB: {_verdict(plan.total / (card * GIGABYTE))}" for card in CARDS]
    print("; ".join(verdicts))
    _print_hours(args, policy)


def _verdict(share: float) -> str:
    # A tenth is left for what is not counted: working memory of single operations, and fragmentation.
    return "fits" if share <= 0.9 else "tight" if share <= 1 else "too small"


def _print_hours(args: argparse.Namespace, policy: bool) -> None:
    size = args.prompts if policy else args.pairs
    if size is None:
        return
    tokens = size * (args.num_generations if policy else 2) * args.length * args.epochs
    print(f"{tokens / 1e6:,.1f} million tokens at most, all rows at their full length")
    if args.tokens_per_second:
        hours = tokens / args.tokens_per_second / args.gpus / 3600
        gpus = f"{args.gpus} GPU{'s' if args.gpus > 1 else ''}"
        print(f"{hours:,.1f} hours on {gpus} at {args.tokens_per_second:g} tokens a second on each")


def _check_plan(args: argparse.Namespace, policy: bool) -> None:
    if args.lora_rank < 0:
        raise ValueError(f"`--lora-rank` is {args.lora_rank}. Give a rank of 1 or more, or leave it out.")
    for name in ("completion_length", "num_generations", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"`--{name.replace('_', '-')}` is {getattr(args, name)}. It must be 1 or more.")
    if args.double_quantisation and not args.load_in_4bit:
        raise ValueError("`--double-quantisation` is of 4-bit constants. Add `--load-in-4bit`, or leave it out.")
    if not policy and args.batch % 2:
        raise ValueError(f"`--batch` is {args.batch} rows, but a pair is two. Give an even number.")
    if args.prompts is not None and not policy:
        raise ValueError("`--prompts` is of --trainer reinforce. A reward model learns from `--pairs`.")
    if args.pairs is not None and policy:
        raise ValueError("`--pairs` is of --trainer reward. A policy learns from `--prompts`.")
    if args.reward_model and not policy:
        raise ValueError("`--reward-model` scores a policy's completions. Add `--trainer reinforce`, or leave it out.")
    if args.tokens_per_second is not None and args.tokens_per_second <= 0:
        raise ValueError(f"`--tokens-per-second` is {args.tokens_per_second:g}. It must be above 0.")
