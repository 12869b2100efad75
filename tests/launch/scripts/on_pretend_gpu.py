"""
Run parts of the project on the pretended GPU, each of which fails where it mixes devices: `on_pretend_gpu.py FOLDER`.

The folder has a decoder of every architecture by its name, `base` (with the sandbox's tokenizer), a reward model
`reward` and a LoRA reward model `adapter` on that base. `<part>.txt` is what a part raised, and empty where it passed.
"""

import sys
import traceback
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path

import torch

from tests.launch.scripts.pretend_gpu import CUDA, Gpu, OnGpu, put_on_gpu

# isort: split
from accelerate import PartialState
from accelerate.state import AcceleratorState
from peft import LoraConfig

from tests.helpers import ARCHITECTURES
from tests.tiny import spread_head
from toolkit import (
    AutoModelForMultiScaleReward,
    MultiScaleRewardConfig,
    MultiScaleRewardTrainer,
    MultiScaleSettings,
    ReinforceConfig,
    ReinforceTrainer,
    RewardFunction,
    SharedBaseRewardFunction,
    ThoughtConfig,
    ThoughtReward,
    ThoughtTrainer,
)
from toolkit.data.kernels import on_cpu
from toolkit.data.packing import pack_rows
from toolkit.reward.losses import multi_scale_loss
from toolkit.sandbox.rows import sample_pairs, sample_prompts
from toolkit.sandbox.thoughts import JUDGE_OPTIONS

HEADS = (("gate", ["token", "segment", "response"]), ("head", ["token", "response"]), ("none", ["token"]))
ROWS, STARTS = [[[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 8, 12, 13]], [[5, 6, 20, 21, 22], [5, 6, 23, 24, 25, 26]]], [4, 2]


def batch_of(packed: bool) -> dict[str, torch.Tensor]:
    if packed:
        batch = pack_rows(ROWS, STARTS, 0)._asdict()
    else:
        rows = pack_rows([[row] for pair in ROWS for row in pair], [0] * 4, 0)
        batch = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask}
    return {**batch, "response_start": torch.tensor([start for start in STARTS for _ in range(2)])}


def refuses_a_mix() -> None:
    with Gpu():
        gpu, cpu = torch.ones(2, device="cuda"), torch.ones(2)
        assert isinstance(gpu + 1, OnGpu)
        assert gpu[torch.tensor([0])].tolist() == [1.0]
        for mix in (lambda: gpu + cpu, lambda: torch.where(gpu > 0, cpu, gpu), lambda: cpu[gpu.long()], gpu.numpy):
            try:
                mix()
            except (RuntimeError, TypeError):
                continue
            raise AssertionError("a mix of devices passed")


def comes_back_to_the_bit() -> None:
    given = [torch.arange(3), torch.tensor([True]), torch.tensor(2.5), torch.randn(2, 3).bfloat16(), torch.empty(0, 2)]
    found = on_cpu([OnGpu(tensor) for tensor in given])
    assert not any(isinstance(tensor, OnGpu) for tensor in found)
    for one, other in zip(found, given, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def cases() -> list[tuple]:
    """
    Every kind of attention with every type, packed and not, the heads in turn, so that each meets each of these; and
    every other architecture packed and not, under autocast and not.
    """
    found = []
    numbers = (torch.float32, False), (torch.float32, True), (torch.bfloat16, False)
    for i, (attention, packed, number) in enumerate(product(("sdpa", "eager"), (False, True), numbers)):
        found.append(("qwen3", HEADS[(i + i // 3) % 3], attention, packed, *number))
    for i, architecture in enumerate(other for other in ARCHITECTURES if other != "qwen3"):
        for packed in (False, True):
            found.append((architecture, HEADS[0], "sdpa", packed, torch.float32, (i + packed) % 2 == 1))
    return found


def reward_model(folder: str) -> None:
    """Heads, types, kinds of attention, packed and not: forward, backward, and states read before."""
    refuses_a_mix()
    comes_back_to_the_bit()
    for architecture, (context, scales), attention, packed, dtype, autocast in cases():
        settings = MultiScaleSettings(scales=scales, context=context, segment_boundary_ids=[7, 22])
        options = {"attn_implementation": attention, "dtype": dtype}
        model = AutoModelForMultiScaleReward.from_pretrained(f"{folder}/{architecture}", settings, **options)
        spread_head(model).eval()
        with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
            expected = model(**batch_of(packed), use_cache=False).logits.detach()
        put_on_gpu(model)
        with Gpu(), torch.autocast("cuda", dtype=torch.bfloat16) if autocast else nullcontext():
            batch = {key: value.to("cuda") for key, value in batch_of(packed).items()}
            output = model(**batch, use_cache=False)
            assert all(isinstance(value, OnGpu) for value in output.values())
            assert output.logits.dtype == torch.float32
            chosen, rejected = output.logits[:, 0].view(2, 2).unbind(1)
            by_scale = output.scale_scores.view(2, 2, -1).unbind(1)
            weight = torch.ones(2, device="cuda")
            loss = multi_scale_loss(chosen, rejected, *by_scale, weight=weight, margin=None, scale_weight=0.5)
            loss.total.mean().backward()
            again = model(states=model.response_states(**batch, use_cache=False)[:, 0])
        found = output.logits.detach().cpu()
        for other in (expected, again.logits.detach().cpu()):
            torch.testing.assert_close(found, other, msg=str((architecture, context, attention, packed, autocast)))


def moved_trainer(trainer):
    """A trainer that was made on the CPU, with all that it holds on the pretended GPU."""
    for state in (PartialState._shared_state, AcceleratorState._shared_state, trainer.accelerator.state.__dict__):
        state["device"] = CUDA
    trainer.args.__dict__["_setup_devices"] = CUDA
    put_on_gpu(trainer.model)
    if getattr(trainer, "ref_model", None) is not None:
        put_on_gpu(trainer.ref_model)
    return trainer


def forget_devices() -> None:
    PartialState._reset_state()
    AcceleratorState._reset_state()


def common(folder: str, **options) -> dict:
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1}
    quiet |= {"activation_checkpointing": False, "output_dir": f"{folder}/run", "use_cpu": True, "bf16": False}
    return {**quiet, "max_steps": 2, "per_device_train_batch_size": 4, **options}


def reward_trainer(folder: str) -> None:
    for way in ({}, {"shared_prompts": False}, {"bf16": True}, {"freeze_decoder": True}):
        options = common(folder, gradient_accumulation_steps=2, max_length=256)
        config = MultiScaleRewardConfig(**options | way)
        trainer = MultiScaleRewardTrainer(f"{folder}/base", config, sample_pairs(32, seed=0), sample_pairs(8, seed=1))
        with Gpu():
            moved_trainer(trainer).train()
            assert 0 < trainer.evaluate()["eval_loss"] < 100
        assert all(isinstance(parameter, OnGpu) for parameter in trainer.model.parameters())
        forget_devices()


def reinforce(folder: str, adapter: bool) -> None:
    """With all that a batch passes through: divergence, running statistics, the prefix baseline, several updates."""
    options = {"num_generations": 2, "max_completion_length": 8, "prefix_baseline": True, "normalize_rewards": True}
    config = ReinforceConfig(**common(folder, beta=0.02, num_iterations=2, normalize_advantages=True, **options))
    if adapter:
        function, lora = SharedBaseRewardFunction(f"{folder}/adapter"), LoraConfig(task_type="CAUSAL_LM", r=2)
        lora.target_modules = {"q_proj", "v_proj"}
    else:
        function, lora = RewardFunction(f"{folder}/reward"), None
        put_on_gpu(function.model)
    prompts = sample_prompts(8, seed=0)
    trainer = ReinforceTrainer(f"{folder}/base", function, config, train_dataset=prompts, peft_config=lora)
    with Gpu():
        moved_trainer(trainer).train()
    assert len([entry for entry in trainer.state.log_history if "grad_norm" in entry]) == 2
    forget_devices()


def judge(folder: str) -> None:
    """With all that a thought passes through, in training, in an evaluation, and as a reward."""
    options = {"num_thoughts": 2, "max_completion_length": 8, "beta": 0.02, "two_answers": True, "swap_answers": True}
    options |= {"label_smoothing_factor": 0.1, "per_device_eval_batch_size": 4, **JUDGE_OPTIONS}
    pairs, held_out = sample_pairs(8, seed=0), sample_pairs(2, seed=1)
    of_pairs = {"protocol": "pair", "judge_template": "{prompt} {first} {second}", "question": "{first} {second}"}
    for way in (of_pairs, {"num_iterations": 2}, {"crossed_weights": True}):
        config = ThoughtConfig(**common(folder, **options | way))
        trainer = ThoughtTrainer(f"{folder}/base", config, pairs, held_out)
        with Gpu():
            moved_trainer(trainer).train()
            assert trainer.evaluate()["eval_pair_loss"] > 0
        forget_devices()
    config.save_settings(f"{folder}/base")
    reward = ThoughtReward(f"{folder}/base")
    put_on_gpu(reward.model)
    with Gpu():  # without the seed, for which a real GPU would be asked
        found = reward._think([[5, 6, 7], [8, 9]], [reward._turns.ending(0, thought) for thought in (0, 1)])
    assert all(log_answer < 0 for _, log_answer in found)
    forget_devices()


PARTS = {
    "reward_model": reward_model,
    "reward_trainer": reward_trainer,
    "reinforce": partial(reinforce, adapter=False),
    "shared_base": partial(reinforce, adapter=True),
    "judge": judge,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for part, run in PARTS.items():
        said = Path(sys.argv[1], f"{part}.txt")
        try:
            run(sys.argv[1])
            said.write_text("")
        except Exception:
            said.write_text(traceback.format_exc())
            forget_devices()
