"""Train as a JSON file says, and write what was logged, held and scored: `train.py SPECS.json`.

The file has a list of trainings that follow each other, each with `trainer` (reward, reinforce or judge), `adapter`
(none, lora or qlora), `base` (folder of a causal model with its tokenizer), `pairs` (a JSON file), `reward` (folder of
a reward model, for reinforce), `share_base` (whether that is an adapter to be put on the policy's base), `options` (of
the trainer's configuration), `resume`, and `result`, into which process k writes `result-k.json` when it is done.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, parse_flag_from_env
from datasets import load_dataset
from peft import LoraConfig
from torch.distributed.tensor import DTensor
from transformers import BitsAndBytesConfig, TrainerCallback, set_seed

from toolkit import (
    MultiScaleRewardConfig,
    MultiScaleRewardTrainer,
    ReinforceConfig,
    ReinforceTrainer,
    RewardFunction,
    SharedBaseRewardFunction,
    ThoughtConfig,
    ThoughtTrainer,
)
from toolkit.sandbox.thoughts import JUDGE_OPTIONS
from toolkit.training.manifests import last_complete_checkpoint
from toolkit.training.signals import SaveOnSignal

LORA_RANK = 4


def divide_on_the_cpu() -> None:
    """
    Let accelerate use FSDP with processes on the CPU. It asks for several GPUs before it looks at its plugin, and
    would hold the whole model in every process without a word; of its own way through FSDP nothing is changed.
    """
    made = PartialState.__init__

    def on_gpus(self, *args, **kwargs):
        made(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = on_gpus


def nf4() -> BitsAndBytesConfig:
    # Stored as bfloat16, so that ZeRO-3 can divide the packed weights among the processes.
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=torch.bfloat16,
    )


class HeldBytes(TrainerCallback):
    """Bytes that this process holds at the end of a backward pass, by what they are, counted in the tensors."""

    def __init__(self) -> None:
        self.trainer, self.held = None, {}
        self.gradient_types: set[str] = set()  # of the buffers in which DeepSpeed adds gradients up

    def on_step_begin(self, args, state, control, **kwargs):
        engine = self.trainer.model_wrapped
        if hasattr(engine, "zero_optimization_stage") and not self.held:
            # DeepSpeed reduces and steps within the backward pass, before any other hook.
            self.held = {"weights": 0, "gradients": 0, "optimizer": 0}
            for owner, name in ((engine.optimizer, "reduce_gradients"), (engine, "step")):
                if hasattr(owner, name):
                    self.count_before(owner, name)

    def count_before(self, owner, name: str) -> None:
        method = getattr(owner, name)

        def count_and_call(*inputs, **options):
            self.count()
            return method(*inputs, **options)

        setattr(owner, name, count_and_call)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if not hasattr(self.trainer.model_wrapped, "zero_optimization_stage"):
            self.count()

    def count(self) -> None:
        engine = self.trainer.model_wrapped
        parameters, zero = list(engine.parameters()), getattr(engine, "optimizer", None)  # DeepSpeed's, around torch's
        gradients = []
        if zero is None:
            weights, masters, adam = parameters, [], self.trainer.optimizer
        elif engine.zero_optimization_stage() == 3:
            # Partitions, and those small ones that every process keeps whole.
            weights = [p.ds_tensor for p in parameters] + [p for p in parameters if p.ds_persist]
            masters, adam = zero.fp32_partitioned_groups_flat, zero.optimizer
            gradients = [zero.grad_partitions_flat_buffer]
        elif hasattr(zero, "fp32_groups_gradients_flat"):  # stage 1 in bfloat16 is another optimizer
            weights, masters, adam = parameters, zero.fp32_groups_flat_partition, zero.optimizer
            gradients = zero.fp32_groups_gradients_flat
        else:
            weights, masters, adam = parameters, zero.single_partition_of_fp32_groups, zero.optimizer
            gradients = [gradient for part in zero.averaged_gradients.values() for gradient in part or []]
        states = [value for state in adam.state.values() for value in state.values()]
        moments = [value for value in states if torch.is_tensor(value) and value.numel() > 1]
        now = {"weights": weights, "gradients": gradients, "optimizer": [*masters, *moments]}
        self.gradient_types |= {str(gradient.dtype) for gradient in gradients}
        now = {part: distinct_bytes(tensors) for part, tensors in now.items()}
        # Under DeepSpeed these are views into the buffers of reduction, which are not meant here.
        now["gradients"] += distinct_bytes([p.grad for p in parameters if p.grad is not None])
        self.held = {part: max(self.held.get(part, 0), size) for part, size in now.items()}


def distinct_bytes(tensors) -> int:
    tensors = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(storages.values())


def scores(trainer, kind: str, batch: dict[str, torch.Tensor]) -> list[float]:
    """What the trained model says of a fixed batch while it is still wrapped, and maybe partitioned."""
    model = trainer.model_wrapped
    model.eval()  # which returns nothing under DeepSpeed
    with torch.no_grad():
        if kind == "reward":
            return model(**batch, use_cache=False).logits[:, 0].tolist()
        ids, mask = batch["input_ids"], batch["attention_mask"]
        logps, *_ = trainer._get_per_token_logps_and_entropies(model, ids, mask, ids.size(1) - 1)
        return (logps * mask[:, 1:]).sum(1).tolist()


def main(spec: dict) -> None:
    torch.set_num_threads(1)
    set_seed(spec["options"]["seed"])  # a new head's weights, whatever was trained before
    kind, adapter = spec["trainer"], spec["adapter"]
    pairs = load_dataset("json", data_files=spec["pairs"], split="train", cache_dir=f"{spec['pairs']}.cache")
    peft_config = None
    if adapter != "none":
        task = "SEQ_CLS" if kind == "reward" else "CAUSAL_LM"
        peft_config = LoraConfig(task_type=task, r=LORA_RANK, target_modules="all-linear", lora_dropout=0.0)
    quantization = nf4() if adapter == "qlora" else None
    defaults = {"use_cpu": True, "bf16": False, "report_to": "none", "logging_steps": 1, "disable_tqdm": True}
    options = {**defaults, "save_strategy": "no", "activation_checkpointing": False, **spec["options"]}
    counter = HeldBytes()
    shared = {"peft_config": peft_config, "quantization_config": quantization, "callbacks": [counter]}
    if kind == "reward":
        config = MultiScaleRewardConfig(**{"context": "gate", **options})
        trainer = MultiScaleRewardTrainer(spec["base"], config, pairs, **shared)
    elif kind == "judge":
        config = ThoughtConfig(**JUDGE_OPTIONS, **options)
        trainer = ThoughtTrainer(spec["base"], config, pairs, **shared)
    else:
        config = ReinforceConfig(**options)
        prompts = pairs.select_columns(["prompt"])
        reward_class = SharedBaseRewardFunction if spec.get("share_base") else RewardFunction
        function = reward_class(spec["reward"], batch_size=2)
        trainer = ReinforceTrainer(spec["base"], function, config, train_dataset=prompts, **shared)
    counter.trainer = trainer
    trainer.add_callback(SaveOnSignal(trainer))
    checkpoint = last_complete_checkpoint(config.output_dir) if spec.get("resume") else None
    trainer.train(resume_from_checkpoint=checkpoint)
    batch = {key: torch.tensor(value) for key, value in json.loads(Path(spec["batch"]).read_text()).items()}
    if kind != "reward":
        del batch["response_start"]
    said = scores(trainer, kind, batch)
    trainer.save_model()
    trainer.accelerator.wait_for_everyone()
    result = {"processes": trainer.accelerator.num_processes, "log": trainer.state.log_history, "scores": said}
    result |= {"resumed_from": checkpoint, "held": counter.held}
    result["gradient_types"] = sorted(counter.gradient_types)
    if kind == "reinforce":
        partitioned = [p for p in function.model.parameters() if hasattr(p, "ds_tensor")]
        # A different number of rows on every process, and so of batches.
        some = pairs.select(range(1 + 2 * trainer.accelerator.process_index))
        result["uneven"] = function(list(some["prompt"]), list(some["chosen"]))
        result["reward_held"] = sum(p.ds_tensor.numel() for p in partitioned)
        result["reward_total"] = sum(getattr(p, "ds_numel", p.numel()) for p in function.model.parameters())
    rank = trainer.accelerator.process_index
    Path(f"{spec['result']}-{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        divide_on_the_cpu()
    for training in json.loads(Path(sys.argv[1]).read_text()):
        main(training)
