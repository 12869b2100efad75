"""The first hour on a GPU: what is checked and measured there, in cells that are kept one by one."""

import os
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from torch.profiler import profile
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import RewardConfig, RewardTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.utils import add_fused_lm_head

from ..arguments import SANDBOX, make_once
from ..data.markers import response_marker_ids
from ..data.packing import grouped_inputs
from ..data.tokens import encode_response, segment_boundary_ids
from ..planning.memory import CUDA_CONTEXT
from ..planning.plan import Run, build_model, load_config, plan_memory
from ..policy.config import ReinforceConfig
from ..policy.passes import response_log_probs
from ..policy.trainer import ReinforceTrainer
from ..reward.config import MultiScaleRewardConfig
from ..reward.head import MultiScaleSettings
from ..reward.loading import AutoModelForMultiScaleReward
from ..reward.losses import pairwise_logistic_loss
from ..reward.scorer import RewardFunction
from ..reward.trainer import MultiScaleRewardTrainer
from ..sandbox.models import new_decoder, train_tokenizer
from ..sandbox.rows import sample_pairs
from .benchmarks.common import Arm, benchmark_pairs, describe_machine
from .benchmarks.memory import training_peaks
from .benchmarks.policy import PolicyBenchmarkArguments, fitting_prompts, policy_rounds
from .benchmarks.reward import TrainingBenchmarkArguments, fitting_pairs, response_scale_model, train_rounds
from .benchmarks.rounds import Round
from .study.grid import Cell, Study, cell_name
from .study.lora import MODELS, LoraStudy, lora_cell
from .study.models import ranked_right

# Qwen3's, for models that are not given: their weights are random, their vocabulary is small
_LARGE = {"num_key_value_heads": 8, "head_dim": 128}
SHAPES: dict[str, dict[str, int]] = {
    "0.6B": {"hidden_size": 1024, "layers": 28, "num_attention_heads": 16, "intermediate_size": 3072, **_LARGE},
    "4B": {"hidden_size": 2560, "layers": 36, "num_attention_heads": 32, "intermediate_size": 9728, **_LARGE},
    "8B": {"hidden_size": 4096, "layers": 36, "num_attention_heads": 32, "intermediate_size": 12288, **_LARGE},
}
TINY: dict[str, dict[str, int]] = {"tiny": {"hidden_size": 64, "layers": 2}}
RANK = 16  # of LoRA
FLASH = "flash_attention_2"
STEP = {"gradient_accumulation_steps": 4}
REBALANCED = {"train_sampling_strategy": "batch_rebalance", **STEP}
WAYS = {"full": (torch.float32, 0), "LoRA": (torch.bfloat16, RANK)}


@dataclass
class GpuHour:
    """What is measured: the settings of the folder in which results are kept."""

    models: list[str] = field(default_factory=list)  # folders; random weights where there is none
    dataset_name: str = SANDBOX
    lora_data: str = ""  # folder of the tasks' files; without it no reward model is fine-tuned on them
    device: str = "cuda"
    quick: bool = False

    @property
    def names(self) -> dict[str, str]:
        """By the name of a model its folder, or nothing where it is to be made."""
        shapes = TINY if self.quick else SHAPES
        return {Path(folder).name: folder for folder in self.models} or dict.fromkeys(shapes, "")

    @property
    def kernels(self) -> list[str]:
        """Kinds of attention that can be had here."""
        if self.device == "cpu":
            return ["sdpa"]
        return ["sdpa", "flex_attention", *([FLASH] if find_spec("flash_attn") else [])]

    @property
    def dtype(self) -> str:
        """Type of matrix products: a CPU may take minutes over bfloat16."""
        return "float32" if self.device == "cpu" else "bfloat16"

    def sizes(self, kind: Any, **options: Any) -> Any:
        """Arguments of a benchmark: [`TrainingBenchmarkArguments`] or [`PolicyBenchmarkArguments`]."""
        sizes: dict[str, Any] = {"rounds": 2, "train_size": 64, "batch_size": 32, "max_length": 1024}
        if self.quick:
            sizes |= {"rounds": 1, "train_size": 8, "batch_size": 4}
        return kind(dataset_name=self.dataset_name, device=self.device, dtype=self.dtype, **{**sizes, **options})


def stages(study: Study) -> Iterator[tuple[float, list[Cell]]]:
    """What share of the time each stage may take, in no unit, and its cells: the sizes that fit, by `plan`."""
    hour: GpuHour = study.settings
    yield 1, [Cell("machine", machine, {}), Cell("numbers", numbers, {})]
    yield 1, [Cell(cell_name("kernels", kind), kernels, {"kind": kind}) for kind in hour.kernels]
    for name in hour.names:
        for way in fitting_ways(hour, name):
            yield 1, [Cell(cell_name("memory", name, way), memory, {"name": name, "way": way})]
    for i, name in enumerate(hour.names):
        if ways := fitting_ways(hour, name):
            given = {"name": name, "way": ways[0]}
            reward = [
                Cell(cell_name("reward", name, arm), reward_speed, {**given, "arm": arm}) for arm in reward_arms(hour)
            ]
            yield 4 + 4 * i, reward  # larger models take longer; sampling does not
            yield 4, [Cell(cell_name("policy", name, arm), policy_speed, {**given, "arm": arm}) for arm in POLICY_ARMS]
    if hour.lora_data:
        grid = [(task, model) for task in LoraStudy(hour.lora_data, "").tasks for model in MODELS]
        yield (
            12,
            [
                Cell(cell_name("lora", *names), lora, dict(zip(("task", "model"), names, strict=True)))
                for names in grid
            ],
        )


def run_stages(study: Study, minutes: float) -> list[str]:
    """
    Run every stage in a process of its own, which gets its share of what is left of the time.

    Args:
        study ([`~toolkit.experiments.study.grid.Study`]):
            Where results are kept; what is there is not run again.
        minutes (`float`):
            Time of all stages.

    Returns:
        `list[str]`: Cells that failed or had not ended when their time was up.
    """
    end, missing, planned = monotonic() + 60 * minutes, list[str](), list(stages(study))
    for i, (weight, cells) in enumerate(planned):
        if waiting := [cell for cell in cells if study.result(cell.name) is None]:
            seconds = max(0.0, end - monotonic()) * weight / sum(share for share, _ in planned[i:])
            print(f"{', '.join(cell.name for cell in waiting)}: {seconds:.0f} seconds at most", flush=True)
            process = get_context("spawn").Process(target=_run_cells, args=(study, waiting))
            process.start()
            process.join(seconds)
            process.kill()
            process.join()
        missing += [cell.name for cell in waiting if study.result(cell.name) is None]
    return missing


def _run_cells(study: Study, cells: list[Cell]) -> None:
    log = os.open(study.folder / f"{cells[0].name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    for cell in cells:
        try:
            study.keep(cell)
        except Exception:  # such as too little memory; the next has its turn
            print(f"Cell '{cell.name}' failed.", traceback.format_exc(), flush=True)
        if study.settings.device == "cuda":
            torch.cuda.empty_cache()


def fitting_ways(hour: GpuHour, name: str) -> list[str]:
    """Ways to train a reward model that `prefscale plan` says fit on this GPU; on the CPU all."""
    if hour.device == "cpu":
        return list(WAYS)
    folder, card = hour.names[name], torch.cuda.get_device_properties(0).total_memory
    config = load_config(folder) if folder else _new_decoder(name, "meta")[0].config
    return [way for way in WAYS if plan_memory(build_model(config, True, *WAYS[way]), Run()).total <= 0.9 * card]


def model_folder(folder: Path, hour: GpuHour, name: str) -> str:
    """Folder of a model, made where it was not given and is not there yet."""
    return hour.names[name] or make_once(folder / "models" / name, _save_decoder, hour, name)


def _new_decoder(name: str, device: str) -> tuple[Any, Any]:
    tokenizer = train_tokenizer((row["chosen"][0]["content"] for row in sample_pairs(200, seed=0)), 400)
    torch.manual_seed(0)
    with torch.device(device):
        return new_decoder(tokenizer, max_length=4096, **{**SHAPES, **TINY}[name]), tokenizer


def _save_decoder(folder: Path, hour: GpuHour, name: str) -> None:
    model, tokenizer = _new_decoder(name, hour.device)
    model.to(torch.float32 if hour.quick else torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# Cells: each is given the study's folder and settings, and returns what is kept of it


def machine(folder: Path, hour: GpuHour) -> dict[str, Any]:
    """What the figures are of."""
    about = describe_machine(hour.device, hour.dtype, torch.get_num_threads())
    memory = torch.cuda.get_device_properties(0).total_memory if hour.device == "cuda" else None
    return {**about, "memory": memory, "attention": hour.kernels}


def numbers(folder: Path, hour: GpuHour) -> dict[str, Any]:
    """Most that scores, losses and gradients in float32 differ by from the CPU's, relative to the largest of them."""
    base = make_once(folder / "models" / "numbers", _save_decoder, GpuHour(device="cpu", quick=True), "tiny")
    pairs, tokenizer = sample_pairs(8, seed=0), AutoTokenizer.from_pretrained(base)
    rows = [[encode_response(tokenizer, row["prompt"], row[side]) for side in ("chosen", "rejected")] for row in pairs]
    found: dict[str, float] = {}
    for kind in [kind for kind in hour.kernels if kind != FLASH]:  # which knows no float32
        for shared in (False, True):
            work = (_policy_numbers, _reward_numbers)
            for what, run in zip(("policy", "reward"), work, strict=True):
                here, there = (run(base, rows, tokenizer, shared, kind, device) for device in ("cpu", hour.device))
                name = f"{what}, {kind}, {'shared' if shared else 'unshared'}"
                gaps = [(a - b).abs().max() / a.abs().max() for a, b in zip(here, there, strict=True)]
                found[name] = float(torch.stack(gaps).max())
    return {"differences": found, "worst": max(found.values())}


def _reward_numbers(base: str, rows: Any, tokenizer: Any, shared: bool, kind: str, device: str) -> list[Tensor]:
    torch.manual_seed(0)  # of the head
    settings = MultiScaleSettings(context="gate")
    kind = "sdpa" if device == "cpu" else kind
    model: Any = AutoModelForMultiScaleReward.from_pretrained(base, settings, attn_implementation=kind)
    model.set_layout(response_marker_ids(tokenizer), segment_boundary_ids(tokenizer))
    groups = rows if shared else [[row] for pair in rows for row in pair]
    ids, starts = ([[getattr(row, of) for row in group] for group in groups] for of in ("input_ids", "response_start"))
    inputs = grouped_inputs(ids, starts, tokenizer.pad_token_id)
    scores = model.to(device)(**{key: value.to(device) for key, value in inputs.items()}, use_cache=False).logits[:, 0]
    loss = pairwise_logistic_loss(scores[::2], scores[1::2]).mean()
    return _with_gradients(model, scores, loss)


def _policy_numbers(base: str, rows: Any, tokenizer: Any, shared: bool, kind: str, device: str) -> list[Tensor]:
    kind = "sdpa" if device == "cpu" else kind
    model: Any = AutoModelForCausalLM.from_pretrained(base, attn_implementation=kind)
    model.to(device)
    add_fused_lm_head(model)
    flat = [row for pair in rows for row in pair]
    prompts = [list(row.input_ids[: row.response_start]) for row in flat]
    responses = [list(row.input_ids[row.response_start :]) for row in flat]
    width, pad = max(map(len, responses)), tokenizer.pad_token_id
    sizes = {"width": width, "batch_size": len(flat), "pad_token_id": pad, "share": shared}
    logps, _ = response_log_probs(model, prompts, responses, **sizes)
    return _with_gradients(model, logps, logps.sum(1).mean())


def _with_gradients(model: Any, values: Tensor, loss: Tensor) -> list[Tensor]:
    loss.backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return [tensor.detach().float().cpu() for tensor in (values, loss[None], gradients)]


def kernels(folder: Path, hour: GpuHour, kind: str) -> dict[str, Any]:
    """Names of the attention's operations in a pass of a reward model, of rows by themselves and of shared ones."""
    base = model_folder(folder, hour, next(iter(hour.names)))
    model: Any = AutoModelForMultiScaleReward.from_pretrained(
        base, MultiScaleSettings(), attn_implementation=kind, dtype=hour.dtype
    )
    row, found = list(range(5, 69)), {}
    for shared in (False, True)[: 1 if kind == FLASH else 2]:  # it takes no mask of pairs
        rows, starts = [[row, row]] * 2 if shared else [[row]] * 4, [[32] * 2] * 2 if shared else [[32]] * 4
        inputs = {key: value.to(hour.device) for key, value in grouped_inputs(rows, starts, 0).items()}
        with profile() as seen:
            model.to(hour.device)(**inputs, use_cache=False).logits.sum().backward()
        names = {event.key for event in seen.key_averages()}
        attention = re.compile("attention|attn|fmha|flash|flex", re.IGNORECASE)
        found["shared" if shared else "unshared"] = sorted(name[:80] for name in names if attention.search(name))
    return found


def memory(folder: Path, hour: GpuHour, name: str, way: str) -> dict[str, Any]:
    """What a step of a reward model holds, and what `plan` says of it, without the context that PyTorch counts not."""
    rows, length = (2, 64) if hour.quick else (8, 1024)
    run, (dtype, rank) = Run(rows, length, bf16=hour.device == "cuda"), WAYS[way]
    config = load_config(model_folder(folder, hour, name))
    empty = build_model(config, True, dtype, rank)
    model = build_model(config, True, dtype, rank).to_empty(device=hour.device)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.zero_()
    peaks = training_peaks(model, run, hour.device)
    planned = plan_memory(empty, run).total - CUDA_CONTEXT
    return {"planned": planned, "off_by": planned / max(peaks) - 1, **peaks._asdict()}


def lora(folder: Path, hour: GpuHour, task: str, model: str) -> dict[str, Any]:
    """
    The first cells of the LoRA grid on the smallest model: pairs of a task ranked right, by one of its rows.

    The learning rate is the middle one of the grid's for each row alike, one seed, the fewer pairs.
    """
    grid = LoraStudy(hour.lora_data, model_folder(folder, hour, next(iter(hour.names))))
    if hour.quick:
        grid = replace(grid, numbers=[16], rank=2, pairs_per_step=4, pairs_seen=16, test_pairs=8)
    rate, number = grid.rates[len(grid.rates) // 2], grid.numbers[0]
    began, found = monotonic(), lora_cell(folder, grid, task, model, number, grid.seeds[0], rate)
    right = ranked_right(found["gaps"]).mean().item()
    return {"ranked_right": right, "test_pairs": len(found["gaps"]), "seconds": monotonic() - began}


def reward_arms(hour: GpuHour) -> dict[str, Arm]:
    """TRL's reward training as it comes and with FlashAttention, and ours with every kind of attention."""
    theirs, ours = (RewardTrainer, RewardConfig), (MultiScaleRewardTrainer, MultiScaleRewardConfig)
    of_kind = {kind: {"model_init_kwargs": {"attn_implementation": kind}} for kind in hour.kernels[1:]}
    arms = {"TRL": Arm(*theirs, STEP)} | (
        {f"TRL, {FLASH}": Arm(*theirs, STEP | of_kind[FLASH])} if FLASH in of_kind else {}
    )
    arms |= {"ours": Arm(*ours, REBALANCED), "ours, unshared": Arm(*ours, REBALANCED | {"shared_prompts": False})}
    return arms | {f"ours, {kind}": Arm(*ours, REBALANCED | options) for kind, options in of_kind.items()}


POLICY_ARMS = {
    "TRL": Arm(RLOOTrainer, RLOOConfig, {}),
    "ours": Arm(ReinforceTrainer, ReinforceConfig, {}, RewardFunction),
    "ours, prefix baseline": Arm(ReinforceTrainer, ReinforceConfig, {"prefix_baseline": True}, RewardFunction),
}


def _trained(arm: Arm, way: str, task: str) -> Arm:
    """An arm that trains adapters on bfloat16 weights, where so many weights do not fit."""
    if way == "full":
        return arm
    lora = LoraConfig(task_type=task, r=RANK, target_modules="all-linear")
    options: dict[str, Any] = dict(arm.options)
    options["model_init_kwargs"] = {**options.get("model_init_kwargs", {}), "dtype": "bfloat16"}
    trainer: Any = arm.trainer
    trainer = partial(trainer, peft_config=lora)
    return arm._replace(trainer=trainer, options=options)


class Alone:
    """Turns of an arm that has no others beside it."""

    def __init__(self) -> None:
        self.rounds: list[Round] = []

    def wait(self) -> None:
        """It is its turn."""

    def report(self, measured: Round) -> None:
        """Keep what a round took."""
        self.rounds.append(measured)

    def figures(self) -> dict[str, float]:
        """Pairs or tokens and tokens run on a second, and the most bytes that were held."""
        seconds = sum(r.seconds for r in self.rounds)
        items, tokens = (sum(getattr(r, of) for r in self.rounds) / seconds for of in ("items", "padded_tokens"))
        peak = max(r.resting_bytes + r.peak_bytes for r in self.rounds)
        return {"items_per_second": items, "tokens_per_second": tokens, "peak_bytes": peak}


def reward_speed(folder: Path, hour: GpuHour, name: str, way: str, arm: str) -> dict[str, Any]:
    """Pairs and tokens a second of reward training."""
    model = model_folder(folder, hour, name)
    args = hour.sizes(
        TrainingBenchmarkArguments, activation_checkpointing=True, output_dir=str(folder / "runs"), warmup_steps=1
    )
    tokenizer, data = AutoTokenizer.from_pretrained(model), folder / "models" / f"pairs-{name}"
    pairs = make_once(data, lambda part: fitting_pairs(
        benchmark_pairs(args), tokenizer, args.max_length, args.train_size).save_to_disk(str(part)))  # fmt: skip
    turns: Any = Alone()
    train_rounds(turns, _trained(reward_arms(hour)[arm], way, "SEQ_CLS"), args, model, pairs)
    return {**turns.figures(), "beside": cell_name("reward", name, "TRL")}


def policy_speed(folder: Path, hour: GpuHour, name: str, way: str, arm: str) -> dict[str, Any]:
    """Sampled tokens a second of whole REINFORCE steps, on a reward model of the smallest size."""
    model, smallest = (model_folder(folder, hour, size) for size in (name, next(iter(hour.names))))
    quick = {"batch_size": 4, "num_generations": 2, "max_completion_length": 8, "steps": 1}
    sizes = quick if hour.quick else {"max_completion_length": 128, "steps": 1}
    args = hour.sizes(
        PolicyBenchmarkArguments, beta=0.05, activation_checkpointing=True, output_dir=str(folder / "runs"), **sizes
    )
    reward = response_scale_model(folder / "models" / "reward", smallest)
    count = (args.rounds + 1) * args.steps * args.batch_size // args.num_generations
    room = args.max_length - args.max_completion_length
    prompts = fitting_prompts(benchmark_pairs(args), AutoTokenizer.from_pretrained(model), room, count)
    turns: Any = Alone()
    policy_rounds(turns, _trained(POLICY_ARMS[arm], way, "CAUSAL_LM"), args, model, reward, prompts)
    return {**turns.figures(), "beside": cell_name("policy", name, "TRL")}
