"""`prefscale plan`: what memory, tokens and hours a run needs, without any weights."""

import argparse
from typing import TYPE_CHECKING, Any

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
    command.add_argument("--length", type=int, help="tokens of a row, prompt and completion (1024)")
    command.add_argument(
        "--prompt-length",
        type=int,
        default=0,
        help="tokens of the longest prompt, which several rows of a pass may share; with --trainer reinforce the rest "
        "of --length (0: a pair shares nothing)",
    )
    command.add_argument("--card", type=float, default=80, help="GB of a GPU, of which vLLM takes its share (80)")
    command.add_argument("--save-total-limit", type=int, default=2, help="checkpoints that are kept (2)")
    command.add_argument(
        "--propose",
        nargs="*",
        metavar="8x80",
        help="print the first file and options that fit on so many GPUs x GB; on eight such machines by default",
    )
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
    reinforce.add_argument(
        "--reward-model", help="hub name or folder of the reward model (none, or one that `prefscale serve` has)"
    )
    reinforce.add_argument(
        "--reward-on-policy-base",
        action="store_true",
        help="with --lora-rank: the reward model is an adapter on the policy's base",
    )
    reinforce.add_argument("--vllm", choices=("colocate", "server"), help="vLLM samples: on these GPUs, or on others")
    reinforce.add_argument("--vllm-share", type=float, default=0.3, help="of a GPU, with --vllm colocate (0.3)")
    reinforce.add_argument("--vllm-sleeps", action="store_true", help="it gives its memory back during training")
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
    if args.propose is not None:
        _print_proposals(args, policy)
        return
    _print_memory(args, policy)
    _print_hours(args, policy)


def _print_memory(args: argparse.Namespace, policy: bool) -> None:
    import torch

    from ..planning.memory import host_bytes, in_bfloat16
    from ..planning.plan import build_model, checkpoint_bytes, list_parameters, load_config, plan_memory

    four_bits = (args.load_in_4bit, args.double_quantisation)
    model = build_model(
        load_config(args.model),
        not policy,
        getattr(torch, args.dtype),
        args.lora_rank,
        args.load_in_4bit,
        keep_adapter_dtype=args.zero == 3,
    )
    run, reward = _run(args, policy), _reward_model(args)
    plan = plan_memory(model, run, reward, *four_bits)
    parameters = list_parameters(model, *four_bits)
    count, trained = (sum(p.numel for p in parameters if p.trainable or not only) for only in (False, True))
    title = f"{args.model}: {count / 1e6:,.1f} million parameters, {trained / 1e6:,.1f} million trained"
    _print_parts(title, plan, policy)
    if args.offload:
        print(f"on the CPU, for each GPU: {host_bytes(in_bfloat16(parameters), args.gpus) / GIGABYTE:.2f} GB")
    size = checkpoint_bytes(model, run) / GIGABYTE
    most, limit = size * (args.save_total_limit + 1), args.save_total_limit
    print(f"on the disk: {size:.2f} GB a checkpoint, {most:.2f} GB while `save_total_limit: {limit}` has one too many")
    totals = {card: plan_memory(model, run._replace(card=card * GIGABYTE), reward, *four_bits).total for card in CARDS}
    print("; ".join(f"{card} GB: {_verdict(total / (card * GIGABYTE))}" for card, total in totals.items()))


def _reward_model(args: argparse.Namespace) -> Any:
    import torch

    from ..planning.plan import build_model, load_config

    if not args.reward_model:
        return None
    rank = args.lora_rank if args.reward_on_policy_base else 0
    return build_model(load_config(args.reward_model), True, getattr(torch, args.reward_dtype), rank)


def _print_proposals(args: argparse.Namespace, policy: bool) -> None:
    from ..pages.tables import print_table
    from ..planning.plan import load_config
    from ..planning.proposals import MACHINES, Machine, Proposals

    machines = []
    for text in args.propose:
        gpus, cross, size = text.partition("x")
        if not (cross and gpus.isdigit() and size.isdigit() and int(gpus) and int(size)):
            raise ValueError(f"`--propose` is '{text}'. Give GPUs x GB, such as 8x80.")
        machines.append(Machine(int(gpus), int(size)))
    proposals, rows = Proposals(load_config(args.model), _run(args, policy), _reward_model(args)), []
    for machine in machines or MACHINES:
        found = proposals.first(machine)
        if found is None:
            rows.append((str(machine), "nothing fits", "", ""))
        else:
            options = " ".join(f"--{name} {value}" for name, value in found.options.items())
            rows.append((str(machine), found.file or "none", options, f"{found.plan.total / GIGABYTE:.1f}"))
    print_table(f"First settings that fit for {args.model}", ("", "accelerate file", "options", "GB"), rows)


def _run(args: argparse.Namespace, policy: bool) -> "Run":
    from ..planning.plan import Run

    return Run(
        rows=args.batch,
        length=args.length,
        prompt_length=args.length - args.completion_length if policy else args.prompt_length,
        rows_per_prompt=args.num_generations if policy else 2,
        card=int(args.card * GIGABYTE),
        vllm_share={None: None, "server": 0.0, "colocate": args.vllm_share}[args.vllm],
        vllm_sleeps=args.vllm_sleeps,
        reward_on_policy_base=args.reward_on_policy_base,
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
    of_policies = () if policy else ("generation", "vllm", "reward model", "reference model")
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
    if policy and args.prompt_length:
        both = args.prompt_length + args.completion_length
        if args.length not in (None, both):
            raise ValueError(f"`--length` is {args.length}, and prompt and completion are {both}. Leave it out.")
        args.length = both
    args.length = 1024 if args.length is None else args.length
    if args.double_quantisation and not args.load_in_4bit:
        raise ValueError("`--double-quantisation` is of 4-bit constants. Add `--load-in-4bit`, or leave it out.")
    if not policy and args.batch % 2:
        raise ValueError(f"`--batch` is {args.batch} rows, but a pair is two. Give an even number.")
    if args.prompts is not None and not policy:
        raise ValueError("`--prompts` is of --trainer reinforce. A reward model learns from `--pairs`.")
    if args.pairs is not None and policy:
        raise ValueError("`--pairs` is of --trainer reward. A policy learns from `--prompts`.")
    if args.vllm_sleeps and args.vllm != "colocate":
        raise ValueError("`--vllm-sleeps` is of `--vllm colocate`. Add it, or leave it out.")
    if args.reward_on_policy_base and not args.reward_model:
        raise ValueError("`--reward-on-policy-base` is of `--reward-model`. Name it, or leave it out.")
    if args.reward_model and not policy:
        raise ValueError("`--reward-model` scores a policy's completions. Add `--trainer reinforce`, or leave it out.")


def _check_numbers(args: argparse.Namespace) -> None:
    from ..training.options import check_number

    if args.lora_rank < 0:
        raise ValueError(f"`--lora-rank` is {args.lora_rank}. Give a rank of 1 or more, or leave it out.")
    counts = ("batch", "length", "gpus", "pairs", "prompts", "completion_length", "num_generations")
    for name in (*counts, "gradient_accumulation_steps", "save_total_limit"):
        check_number(f"--{name.replace('_', '-')}", getattr(args, name), 1, whole=True)
    check_number("--prompt-length", args.prompt_length, 0, whole=True)
    for name in ("epochs", "tokens_per_second", "card", "vllm_share"):
        check_number(f"--{name.replace('_', '-')}", getattr(args, name), above=0)
    check_number("--beta", args.beta, 0)
