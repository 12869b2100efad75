"""Both trainers under plain data parallelism and every stage of ZeRO, on CPU processes:
`python -m tests.launch.backends`.

Prints a table that compares each with the reference at the same global batch, says what each process held, and loads
what each has saved into a plain process. Results go into `--work` as they come; what is there is not run again.
"""

import argparse
import itertools
import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.helpers import ROOT
from tests.launch.scripts.train import LORA_RANK, nf4
from toolkit import AutoModelForMultiScaleReward, MultiScaleSettings
from toolkit.data.markers import response_marker_ids
from toolkit.data.tokens import encode_response, segment_boundary_ids
from toolkit.pages.tables import print_table
from toolkit.planning.memory import ModelStates, in_bfloat16, model_states
from toolkit.planning.plan import build_model, list_parameters, load_config
from toolkit.reward.adapters import restore_adapter_dtype
from toolkit.sandbox.rows import sample_pairs, sample_prompts, sandbox_decoder, sandbox_tokenizer
from toolkit.sandbox.world import write_response

SCRIPT, FORKED = (Path(__file__).parent / "scripts" / name for name in ("train.py", "forked.py"))
STAGES = ("ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2")
STEPS, ROWS = 12, 4  # of each run, and of the batch of all processes together
LABEL = {"none": "full", "lora": "LoRA", "qlora": "QLoRA"}
VARIANTS = {
    "checkpointing": {"activation_checkpointing": True},
    "partitioned generation": {"ds3_gather_for_generation": False},
    "accumulation": {"per_device_train_batch_size": ROWS // 4, "gradient_accumulation_steps": 2},
}

# With `use_cpu`, MULTI_GPU is what starts several processes with gloo; DeepSpeed starts them without it.
LAUNCH = """\
compute_environment: LOCAL_MACHINE
distributed_type: {kind}
{more}
num_machines: 1
machine_rank: 0
num_processes: {processes}
main_process_port: {port}
main_training_function: main
rdzv_backend: static
same_network: true
"""


def prepare(work: Path) -> None:
    """A decoder, a reward model, pairs and a batch to score, all small and from the sandbox."""
    if (work / "batch.json").exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = sandbox_tokenizer()
    sandbox_decoder(hidden_size=64, layers=2, heads=2).save_pretrained(work / "base")
    tokenizer.save_pretrained(work / "base")
    torch.manual_seed(0)
    reward = AutoModelForMultiScaleReward.from_pretrained(str(work / "base"), MultiScaleSettings(context="gate"))
    reward.set_layout(response_marker_ids(tokenizer), segment_boundary_ids(tokenizer))
    for parameter in reward.score.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    reward.save_pretrained(work / "reward")
    tokenizer.save_pretrained(work / "reward")
    pairs = sample_pairs(48, seed=0)
    pairs.to_json(work / "pairs.jsonl")
    pairs.select(range(20)).to_json(work / "few_pairs.jsonl")
    ranked_lists(24).to_json(work / "lists.jsonl")
    pairs.add_column("annotator", ["Ann", "Bob", "Ann", None] * 12).to_json(work / "people.jsonl")
    rows = [encode_response(tokenizer, pair["prompt"], pair["chosen"]) for pair in pairs.select(range(4))]
    ids = [torch.tensor(row.input_ids) for row in rows]
    batch = {
        "input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id),
        "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "response_start": torch.tensor([row.response_start for row in rows]),
    }
    (work / "batch.json").write_text(json.dumps({key: value.tolist() for key, value in batch.items()}))


def ranked_lists(count: int) -> Dataset:
    """Lists of two to four responses to the sandbox's prompts, of which the last two may be tied."""
    rng, rows = random.Random(0), []
    for number, row in enumerate(sample_prompts(count, seed=0)):
        prompt, ranks = row["prompt"][0]["content"], [1, 3, 2, 3][: 2 + number % 3]
        texts = [write_response(prompt, (each / 3, each / 3, each / 3), rng) for each in range(len(ranks))]
        responses = [[{"role": "assistant", "content": text}] for text in texts]
        rows.append({"prompt": row["prompt"], "responses": responses, "ranks": ranks})
    return Dataset.from_list(rows)


def launcher(work: Path, stage: str, processes: int) -> list[str]:
    """Words that start a script with so many CPU processes under a stage."""
    if processes == 1:
        return [sys.executable]
    if stage == "fsdp2":
        kind, more = "FSDP", fsdp_options()
    elif stage == "ddp":
        kind, more = "MULTI_GPU", "use_cpu: true\nmixed_precision: 'no'"
    else:
        config = json.loads((ROOT / "deepspeed_configs" / f"{stage}.json").read_text())
        zero = config["zero_optimization"]
        if stage.startswith("zero3"):
            zero["stage3_param_persistence_threshold"] = 0  # or all of a small model stays whole
        if "offload_optimizer" in zero:
            config["zero_force_ds_cpu_optimizer"] = False  # torch's Adam, so that nothing is compiled
        (work / f"{stage}.json").write_text(json.dumps(config))
        init = str(stage.startswith("zero3")).lower()
        kind = "DEEPSPEED"
        more = f"deepspeed_config:\n  deepspeed_config_file: {work / stage}.json\n  zero3_init_flag: {init}"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    file = work / f"{stage}-{processes}.yaml"
    file.write_text(LAUNCH.format(kind=kind, more=more, processes=processes, port=port))
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]


def fsdp_options() -> str:
    """What deepspeed_configs/fsdp2.yaml has that no other file has, on the CPU."""
    config = yaml.safe_load((ROOT / "deepspeed_configs" / "fsdp2.yaml").read_text())
    return yaml.safe_dump({name: config[name] for name in ("fsdp_config", "mixed_precision")} | {"use_cpu": True})


def specification(work: Path, name: str, trainer: str, adapter: str, processes: int, **options) -> dict:
    """What `scripts/train.py` reads."""
    shared = {
        "output_dir": str(work / name),
        "per_device_train_batch_size": ROWS // processes,
        "max_steps": STEPS,
        "learning_rate": 1e-4,
        "seed": 0,
    }
    if trainer == "reinforce":
        shared |= {"num_generations": 1, "baseline": "moving_average", "normalize_rewards": True, "beta": 0.05}
        shared |= {"prefix_baseline": True, "max_completion_length": 16}
    if trainer == "judge":
        shared |= {"num_thoughts": 2, "beta": 0.05, "max_completion_length": 8}
    if adapter == "qlora":
        shared |= {"model_init_kwargs": {"dtype": "bfloat16"}}
    return {
        "trainer": trainer,
        "adapter": adapter,
        "base": str(work / "base"),
        "reward": str(work / "reward"),
        "pairs": str(work / "pairs.jsonl"),
        "batch": str(work / "batch.json"),
        "result": str(work / f"{name}.result"),
        "options": {**shared, **options},
    }


def start(work: Path, stage: str, processes: int, name: str, *specs: dict) -> subprocess.Popen:
    """Start one launch of trainings that follow each other; what it prints goes to `<name>.log`."""
    (work / f"{name}.spec").write_text(json.dumps(specs))
    return begin(work, name, [*launcher(work, stage, processes), str(SCRIPT), str(work / f"{name}.spec")])


def start_forked(work: Path, processes: int, name: str, specs: dict[str, list[dict]]) -> subprocess.Popen:
    """Start launches of several stages, one after the other, whose processes import nothing."""
    launches = []
    for stage, trainings in specs.items():
        (work / f"{stage}.spec").write_text(json.dumps(trainings))
        config = launcher(work, stage, processes)[-1]
        launches.append({"config": config, "script": str(SCRIPT), "arguments": [str(work / f"{stage}.spec")]})
    (work / f"{name}.launches").write_text(json.dumps(launches))
    return begin(work, name, [sys.executable, str(FORKED), str(work / f"{name}.launches")])


def begin(work: Path, name: str, command: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    # DeepSpeed compiles an operator at its first start, with the ninja that is installed beside it.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    with (work / f"{name}.log").open("w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def run(
    work: Path, stage: str, processes: int, trainer: str, adapter: str, variant: str = "", **options
) -> list[dict]:
    """Results of every process of one run; from its files where it has been run before."""
    name = name_of(stage, processes, trainer, adapter, variant)
    if not all((work / f"{name}.result-{rank}.json").is_file() for rank in range(processes)):
        spec = specification(work, name, trainer, adapter, processes, **options)
        start(work, stage, processes, name, spec).wait()
    return results_of(work, name, processes, name)


def results_of(work: Path, name: str, processes: int, launched: str) -> list[dict]:
    """What every process of a training has written, out of the launch that it was part of."""
    files = [work / f"{name}.result-{rank}.json" for rank in range(processes)]
    # By its files, not its exit code: a process now and then aborts when it leaves, after all is done.
    if not all(file.is_file() for file in files):
        raise RuntimeError(f"{name} wrote no result:\n{(work / f'{launched}.log').read_text()[-3000:]}")
    results = [json.loads(file.read_text()) for file in files]
    assert [result["processes"] for result in results] == [processes] * processes
    return results


def name_of(stage: str, processes: int, trainer: str, adapter: str, variant: str = "") -> str:
    return "-".join([trainer, adapter, stage, str(processes), *variant.split()])


def reloaded_scores(work: Path, name: str, trainer: str, adapter: str) -> list[float]:
    """What a plain process says of the saved folder, as `scripts/train.py` says it of the model in training."""
    batch = {key: torch.tensor(value) for key, value in json.loads((work / "batch.json").read_text()).items()}
    folder, four_bits = str(work / name), {}
    if adapter == "qlora":
        four_bits = {"quantization_config": nf4(), "dtype": torch.bfloat16}
    with torch.no_grad():
        if trainer == "reward":
            return (
                AutoModelForMultiScaleReward.from_pretrained(folder, **four_bits).eval()(**batch).logits[:, 0].tolist()
            )
        if adapter == "none":
            model = AutoModelForCausalLM.from_pretrained(folder)
        else:
            base = AutoModelForCausalLM.from_pretrained(str(work / "base"), **four_bits)
            model = restore_adapter_dtype(PeftModel.from_pretrained(base, folder), folder)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        logps = model.eval()(ids, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)
        return (logps.gather(2, ids[:, 1:, None])[..., 0] * mask[:, 1:]).sum(1).tolist()


def series(result: dict, key: str) -> torch.Tensor:
    return torch.tensor([entry[key] for entry in result["log"] if key in entry])


def worst_difference(first: dict, second: dict, trainer: str, steps: int = STEPS) -> float:
    """Of losses (reward) and gradient norms, the largest relative difference over all steps."""
    keys = ("loss", "grad_norm") if trainer == "reward" else ("grad_norm", "reward", "kl")
    worst = 0.0
    for key in keys:
        a, b = series(first, key), series(second, key)
        assert len(a) == len(b) == steps, (key, len(a), len(b))
        worst = max(worst, ((a - b).abs() / b.abs().clamp(min=1)).max().item())
    return worst


def difference_of(first: list[float], second: list[float]) -> float:
    a, b = torch.tensor(first), torch.tensor(second)
    return ((a - b).abs() / b.abs().clamp(min=1)).max().item()


def planned_states(
    work: Path, trainer: str, adapter: str, stage: str, processes: int, bf16: bool = False
) -> ModelStates:
    """What `prefscale plan` says that each process holds; all in one memory here, with or without offload."""
    config = load_config(str(work / "base"))
    model = build_model(config, trainer == "reward", lora_rank=0 if adapter == "none" else LORA_RANK)
    parameters = in_bfloat16(list_parameters(model)) if bf16 else list_parameters(model)
    if stage == "fsdp2":  # all that plain training holds, in pieces
        return ModelStates(*(part // processes for part in model_states(parameters)))
    return model_states(parameters, 0 if stage == "ddp" else int(stage[4]), processes, float32_gradients=True)


def compare_stages(work: Path, processes: list[int]) -> float:
    """Every stage against the reference at the same global batch; returns the worst difference."""
    rows, worst = [], 0.0
    for trainer, adapter, count in itertools.product(("reward", "reinforce"), ("none", "lora"), processes):
        # Every process samples with its own seed, so that a policy's reference needs as many of them.
        reference = run(work, "ddp", 1 if trainer == "reward" else count, trainer, adapter)[0]
        for stage in STAGES:
            results = run(work, stage, count, trainer, adapter)
            difference = worst_difference(results[0], reference, trainer)
            name = name_of(stage, count, trainer, adapter)
            reload = difference_of(reloaded_scores(work, name, trainer, adapter), results[0]["scores"])
            plan = planned_states(work, trainer, adapter, stage, count)
            held = {part: max(result["held"][part] for result in results) for part in plan._fields}
            kib = [f"{held[part] / 1024:.0f} ({held[part] / getattr(plan, part):.3f})" for part in plan._fields]
            kib.append(f"{max(r.get('reward_held', 0) for r in results) * 4 / 1024:.0f}")
            rows.append((trainer, LABEL[adapter], stage, str(count), f"{difference:.1e}", *kib, f"{reload:.1e}"))
            worst = max(worst, difference, reload)
            print(*rows[-1], flush=True)
    held = ("weights KiB", "gradients KiB", "optimizer KiB", "reward model KiB")
    header = ("trainer", "trained", "stage", "processes", "difference", *held, "reload")
    print_table(
        f"{STEPS} steps against the reference; bytes of the fullest process (and their ratio to what `prefscale plan` "
        "says); the saved model in a plain process",
        header,
        rows,
    )
    return worst


def compare_variants(work: Path) -> float:
    """Gradient checkpointing, accumulation and generation from partitioned weights, against the same run without."""
    rows, worst, trainers = [], 0.0, ("reward", "reinforce")
    cases = [
        *itertools.product(["checkpointing"], ("ddp", "zero2", "zero3"), trainers, LABEL),
        *itertools.product(["partitioned generation"], ["zero3"], ["reinforce"], LABEL),
        *itertools.product(["accumulation"], ("zero1", "zero2", "zero3"), trainers, ["none"]),
    ]
    for variant, stage, trainer, adapter in cases:
        without = run(work, stage, 2, trainer, adapter)[0]
        result = run(work, stage, 2, trainer, adapter, variant, **VARIANTS[variant])[0]
        difference = worst_difference(result, without, trainer)
        rows.append((trainer, LABEL[adapter], stage, variant, f"{difference:.1e}"))
        worst = max(worst, difference)
        print(*rows[-1], flush=True)
    print_table(
        "Two processes, against the same without", ("trainer", "trained", "stage", "variant", "difference"), rows
    )
    return worst


def show_four_bits(work: Path) -> float:
    """LoRA on whole weights and on weights in nf4, side by side; they differ by what 4 bits lose."""
    worst = 0.0
    for trainer, key in (("reward", "loss"), ("reinforce", "reward")):
        rows = []
        for adapter, (stage, count) in itertools.product(("lora", "qlora"), (("ddp", 1), ("zero3", 2))):
            result, name = run(work, stage, count, trainer, adapter)[0], name_of(stage, count, trainer, adapter)
            reload = difference_of(reloaded_scores(work, name, trainer, adapter), result["scores"])
            values = [f"{value:.3f}" for value in series(result, key)]
            rows.append((f"{LABEL[adapter]}, {stage}, {count}", *values, f"{reload:.0e}"))
            worst = max(worst, reload)
        print_table(f"{trainer}: {key}", ("run", *map(str, range(1, STEPS + 1)), "reload"), rows)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/backends"), help="folder for models and results")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    args = parser.parse_args()
    work = args.work.resolve()
    prepare(work)
    worst = max(compare_stages(work, args.processes), compare_variants(work), show_four_bits(work))
    print(f"worst difference {worst:.1e}")
    sys.exit(worst > 1e-5)


if __name__ == "__main__":
    main()
