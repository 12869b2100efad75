"""`prefscale plan`: what memory, tokens and hours a run needs, without any weights."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..planning.plan import MemoryPlan, Run

# What vendors call a card. Each holds at least that many decimal gigabytes: one of "24 GB" with error correction holds
# 24.1 billion bytes, one of "80 GB" 85 billion.
CARDS = (24, 48, 80, 141)
GIGABYTE = 10**9
DTYPES = ("float32", "bfloat16")


def add_plan(command: argparse.ArgumentParser) -> None:
    """Add what the command takes, and what it does."""
    command.add_argument("model", help="hub name, or folder with a config.json")
    command.add_argument(
        "--trainer", choices=("reward", "reinforce"), default="reward", help="what is trained (reward)"
    )
    command.add_argument("--gpus", type=int, default=1, help="number of GPUs (1)")
    command.add_argument("--zero", type=int, choices=range(4), default=0, help="ZeRO stage; 0: no DeepSpeed (0)")
    command.add_argument("--offload", action="store_true", help="with --zero 3: weights and optimizer on the CPU")
    command.add_argument("--lora-rank", type=int, default=0, help="rank of LoRA on all linear layers (none)")
    command.add_argument("--load-in-4bit", action="store_true", help="with --lora-rank: base model in nf4")
    command.add_argument(
        "--double-quantisation", action="store_true", help="with --load-in-4bit: of its constants, too"
    )
    command.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="type in which weights are loaded (float32)"
    )
    command.add_argument("--batch", type=int, default=8, help="rows of a GPU in one pass; a pair is two rows (8)")
    command.add_argument("--length", type=int, default=1024, help="tokens of a row, prompt and completion (1024)")
    command.add_argument(
        "--gradient-checkpointing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compute activations anew in the backward pass (yes, as in TRL)",
    )
    reinforce = command.add_argument_group("with --trainer reinforce")
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
    reinforce.add_argument("--reward-dtype", choices=DTYPES, default="bfloat16", help="type of its weights (bfloat16)")
    hours = command.add_argument_group("tokens and hours")
    size = hours.add_mutually_exclusive_group()
    size.add_argument("--pairs", type=int, help="pairs of the reward model's data set")
    size.add_argument("--prompts", type=int, help="prompts of the policy's data set")
    hours.add_argument("--epochs", type=float, default=1.0, help="times that the data set is gone through (1)")
    hours.add_argument("--tokens-per-second", type=float, help="of one GPU, whole steps measured")
    command.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> None:
    policy = args.trainer == "reinforce"
    _check_plan(args, policy)
    _print_memory(args, policy)
    _print_hours(args, policy)


def _print_memory(args: argparse.Namespace, policy: bool) -> None:
    import torch

    from ..planning.memory import host_bytes, in_bfloat16
    from ..planning.plan import build_model, list_parameters, load_config, plan_memory

    four_bits = (args.load_in_4bit, args.double_quantisation)
    model = build_model(
        load_config(args.model),
        not policy,
        getattr(torch, args.dtype),
        args.lora_rank,
        args.load_in_4bit,
        keep_adapter_dtype=args.zero == 3,
    )
    reward = None
    if args.reward_model:
        reward = build_model(load_config(args.reward_model), True, getattr(torch, args.reward_dtype))
    plan = plan_memory(model, _run(args, policy), reward, *four_bits)
    parameters = list_parameters(model, *four_bits)
    count, trained = (sum(p.numel for p in parameters if p.trainable or not only) for only in (False, True))
    title = f"{args.model}: {count / 1e6:,.1f} million parameters, {trained / 1e6:,.1f} million trained"
    _print_parts(title, plan, policy)
    if args.offload:
        print(f"on the CPU, for each GPU: {host_bytes(in_bfloat16(parameters), args.gpus) / GIGABYTE:.2f} GB")
    print("; ".join(f"{card} GB: {_verdict(plan.total / (card * GIGABYTE))}" for card in CARDS))


def _run(args: argparse.Namespace, policy: bool) -> "Run":
    from ..planning.plan import Run

    return Run(
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


def _print_parts(title: str, plan: "MemoryPlan", policy: bool) -> None:
    from ..pages.tables import print_table

    held = {name.replace("_", " "): size for name, size in plan._asdict().items()} | {"overhead": sum(plan.overhead)}
    of_policies = () if policy else ("generation", "reward model", "reference model")
    shown = [(name, size) for name, size in held.items() if name not in of_policies]
    rows: list[tuple[str, ...]] = [(name, f"{size / GIGABYTE:.2f}") for name, size in [*shown, ("total", plan.total)]]
    print_table(title, ("on each GPU", "GB of 10⁹ bytes"), rows)
    names = ("CUDA and NCCL (assumed)", "reduction buckets", "gathered weights", "step")
    parts = zip(names, plan.overhead, strict=True)
    print("overhead: " + ", ".join(f"{name} {size / GIGABYTE:.2f}" for name, size in parts if size))


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
    _check_numbers(args)
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


def _check_numbers(args: argparse.Namespace) -> None:
    from ..training.options import check_number

    if args.lora_rank < 0:
        raise ValueError(f"`--lora-rank` is {args.lora_rank}. Give a rank of 1 or more, or leave it out.")
    counts = ("batch", "length", "gpus", "pairs", "prompts", "completion_length", "num_generations")
    for name in (*counts, "gradient_accumulation_steps"):
        check_number(f"--{name.replace('_', '-')}", getattr(args, name), 1, whole=True)
    for name in ("epochs", "tokens_per_second"):
        check_number(f"--{name.replace('_', '-')}", getattr(args, name), above=0)
    check_number("--beta", args.beta, 0)
