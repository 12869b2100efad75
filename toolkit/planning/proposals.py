"""The first settings that fit on a machine: which accelerate file, and which options of the trainer."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel

from .plan import MemoryPlan, Run, build_model, plan_memory

GIGABYTE = 10**9
RANK = 32  # of LoRA
# The least traffic first. Offloading is left out: it is slow, and asks for the machine's own memory.
FILES = {"multi_gpu": 0, "zero1": 1, "zero2": 2, "zero3": 3}


class Machine(NamedTuple):
    """GPUs of one machine."""

    gpus: int
    gigabytes: int  # of each

    def __str__(self) -> str:
        return f"{self.gpus} × {self.gigabytes} GB"


MACHINES = tuple(
    Machine(*sizes) for sizes in ((1, 24), (1, 48), (1, 80), (1, 141), (4, 48), (8, 24), (8, 80), (8, 141))
)


class Proposal(NamedTuple):
    """What fits."""

    file: str | None  # of deepspeed_configs/, none on one GPU
    options: dict[str, str]
    plan: MemoryPlan


class Proposals:
    """
    Finds settings for a model and machines.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Of the decoder that is trained.
        run ([`~toolkit.planning.plan.Run`]):
            What is asked for. Rows are halved where they do not fit; stage, GPUs and card are the machine's.
        reward_model ([`~transformers.PreTrainedModel`], *optional*):
            What scores a policy on the same GPUs, on the meta device.
    """

    def __init__(self, config: PreTrainedConfig, run: Run, reward_model: PreTrainedModel | None = None) -> None:
        self.run, self.reward_model, self.policy = run, reward_model, run.completion_length > 0
        reward = not self.policy
        # Without DeepSpeed's float32 copies, weights in bfloat16 lose small updates
        self._float32, self._bfloat16 = (build_model(config, reward, d) for d in (torch.float32, torch.bfloat16))
        self._lora, self._four_bits = (
            build_model(config, reward, torch.bfloat16, RANK, four_bits) for four_bits in (False, True)
        )

    def first(self, machine: Machine) -> Proposal | None:
        """The first that takes at most nine tenths of each GPU: all weights, then LoRA, then LoRA on 4 bits."""
        for model, stage, lora, options in self._ways(machine):
            rows = self.run.rows
            while rows >= (1 if self.policy else 2):
                run = self.run._replace(
                    rows=rows, stage=stage, gpus=machine.gpus, card=machine.gigabytes * GIGABYTE,
                    reward_on_policy_base=lora and self.run.reward_on_policy_base,
                )  # fmt: skip
                plan = plan_memory(model, run, self.reward_model, "load_in_4bit" in options)
                if plan.total <= 0.9 * run.card:
                    file = next(name for name, of in FILES.items() if of == stage) if machine.gpus > 1 else None
                    batch = rows if self.policy else rows // 2
                    return Proposal(file, {"per_device_train_batch_size": str(batch), **options}, plan)
                rows //= 2
        return None

    def _ways(self, machine: Machine) -> Iterator[tuple[PreTrainedModel | PeftModel, int, bool, dict[str, str]]]:
        stages = FILES.values() if machine.gpus > 1 else [0]
        for stage in stages:
            if stage:
                yield self._bfloat16, stage, False, {"dtype": "bfloat16"}
            else:
                yield self._float32, stage, False, {"dtype": "float32"}
        lora = {"dtype": "bfloat16", "use_peft": "true", "lora_r": str(RANK), "lora_target_modules": "all-linear"}
        for stage in (0, 3) if machine.gpus > 1 else (0,):
            yield self._lora, stage, True, lora
        yield self._four_bits, 0, True, {**lora, "load_in_4bit": "true"}
