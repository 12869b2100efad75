"""Train both trainers for a few steps and write what they log: `train_both.py work_folder base_folder`.

`base_folder` is a causal model with its tokenizer; `pairs.jsonl` in `work_folder` holds preference pairs. The batch
of all processes together is 4 rows, however many they are. Process k writes `result-<processes>-<k>.json`.
"""

import json
import os
import sys
from pathlib import Path

import torch
from datasets import load_dataset

from toolkit import (
    MultiScaleRewardConfig,
    MultiScaleRewardTrainer,
    ReinforceConfig,
    ReinforceTrainer,
    RewardFunction,
)

torch.set_num_threads(1)
work, base = Path(sys.argv[1]), sys.argv[2]
processes, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("RANK", 0)))
pairs = load_dataset("json", data_files=str(work / "pairs.jsonl"), split="train", cache_dir=str(work / "cache"))
shared = {"use_cpu": True, "bf16": False, "report_to": "none", "logging_steps": 1, "save_strategy": "no"}
shared |= {"activation_checkpointing": False, "per_device_train_batch_size": 4 // processes, "disable_tqdm": True}

reward_config = MultiScaleRewardConfig(
    output_dir=str(work / f"reward-{processes}"),
    max_steps=6,
    learning_rate=1e-3,
    per_device_eval_batch_size=2,
    **shared,
)
trainer = MultiScaleRewardTrainer(base, reward_config, pairs, eval_dataset=pairs.select(range(7)))
trainer.train()
evaluation = trainer.evaluate()
reward_log = trainer.state.log_history
weight = trainer.model.score.weight.detach().sum().item()
trainer.save_model(str(work / f"reward-{processes}"))
trainer.accelerator.wait_for_everyone()

reinforce_config = ReinforceConfig(
    output_dir=str(work / f"policy-{processes}"),
    max_steps=3,
    learning_rate=1e-3,
    num_generations=1,
    max_completion_length=8,
    baseline="moving_average",
    prefix_baseline=True,
    normalize_rewards=True,
    beta=0.05,
    # One generation for two steps, and a save between them.
    steps_per_generation=2,
    **{**shared, "save_strategy": "steps"},
    save_steps=1,
)
function = RewardFunction(str(work / f"reward-{processes}"))
policy = ReinforceTrainer(base, function, reinforce_config, train_dataset=pairs.select_columns(["prompt"]))
policy.train()
resumed = ReinforceTrainer(base, function, reinforce_config, train_dataset=pairs.select_columns(["prompt"]))
resumed.train(resume_from_checkpoint=f"{reinforce_config.output_dir}/checkpoint-1")
result = {
    "processes": trainer.accelerator.num_processes,
    "policy_processes": policy.accelerator.num_processes,
    "reward_log": reward_log,
    "evaluation": evaluation,
    "weight": weight,
    "policy_log": policy.state.log_history,
    "policy_state": [policy._moving_average, policy._reward_moments, policy._prefix_baseline.fit.moment.tolist()],
    "policy_weight": policy.model.get_input_embeddings().weight.detach().double().sum().item(),
    "resumed_difference": max(
        (a - b).abs().max().item() for a, b in zip(policy.model.parameters(), resumed.model.parameters(), strict=True)
    ),
}
(work / f"result-{processes}-{rank}.json").write_text(json.dumps(result))
