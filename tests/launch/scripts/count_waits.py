"""
How often a step of a trainer waits for the pretended GPU, ours and TRL's: `count_waits.py FOLDER`, with `base` and
`reward` as for `on_pretend_gpu.py`. Prints a JSON of waits by trainer and line. What the loop of `generate` waits for
is left out: it is the same in both, and as long as the responses.
"""

import json
import sys

import torch

from tests.launch.scripts.pretend_gpu import Gpu, put_on_gpu, waits

# isort: split
from transformers import TrainerCallback
from trl import RewardConfig, RewardTrainer, RLOOConfig, RLOOTrainer

from tests.launch.scripts.on_pretend_gpu import common, forget_devices, moved_trainer
from toolkit import MultiScaleRewardConfig, MultiScaleRewardTrainer, ReinforceConfig, ReinforceTrainer, RewardFunction
from toolkit.sandbox.rows import sample_pairs, sample_prompts

torch.inference_mode = torch.no_grad  # the pretended tensors are none of inference
STEPS = 2
POLICY = {"num_generations": 2, "max_completion_length": 8, "beta": 0.02}


class AfterTheFirstStep(TrainerCallback):
    """Leaves out what is only done once."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            waits.clear()


def counted(trainer) -> dict[str, float]:
    trainer.add_callback(AfterTheFirstStep())
    with Gpu():
        moved_trainer(trainer).train()
    forget_devices()
    return {site: count / STEPS for site, count in waits.most_common()}


def main(folder: str) -> None:
    torch.set_num_threads(1)
    options = common(folder, max_steps=1 + STEPS, logging_steps=100, per_device_train_batch_size=8)
    base, pairs, prompts = f"{folder}/base", sample_pairs(64, seed=0), sample_prompts(64, seed=0)
    found = {}
    for name, own in (("shared", {}), ("apart", {"shared_prompts": False})):
        found[name] = counted(MultiScaleRewardTrainer(base, MultiScaleRewardConfig(**options, **own), pairs))
    found["RewardTrainer"] = counted(RewardTrainer(base, RewardConfig(**options), train_dataset=pairs))
    for name, own in (("REINFORCE", {}), ("prefix baseline", {"prefix_baseline": True})):
        function = RewardFunction(f"{folder}/reward")
        put_on_gpu(function.model)
        config = ReinforceConfig(**options, **POLICY, **own)
        found[name] = counted(ReinforceTrainer(base, function, config, train_dataset=prompts))
    trainer = RLOOTrainer(base, f"{folder}/reward", RLOOConfig(**options, **POLICY), train_dataset=prompts)
    put_on_gpu(trainer.reward_funcs[0])
    found["RLOOTrainer"] = counted(trainer)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
