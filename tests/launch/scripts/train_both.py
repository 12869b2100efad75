"""Train both trainers for a few steps and write what they log: `train_both.py work_folder base_folder`.

`base_folder` is a causal model with its tokenizer; `pairs.jsonl` in `work_folder` holds preference pairs. The batch
of all processes together is 4 rows, however many they are. Process k writes `result-<processes>-<k>.json`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset

from toolkit import (
    MultiScaleRewardConfig,
    MultiScaleRewardTrainer,
    ReinforceConfig,
    ReinforceTrainer,
    RewardFunction,
    ThoughtConfig,
    ThoughtTrainer,
)
from toolkit.data.formats import normalize_pairs
from toolkit.reward import states
from toolkit.reward.rates import cross_validate

PROCESSES, RANK = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("RANK", 0)))
SHARED = {"use_cpu": True, "bf16": False, "report_to": "none", "logging_steps": 1, "save_strategy": "no"}
SHARED |= {"activation_checkpointing": False, "per_device_train_batch_size": 4 // PROCESSES, "disable_tqdm": True}


def train_reward(folder: str, base: str, pairs: Dataset) -> dict[str, Any]:
    """Train, evaluate on seven pairs, save."""
    options = {"max_steps": 6, "learning_rate": 1e-3, "per_device_eval_batch_size": 2, **SHARED}
    config = MultiScaleRewardConfig(output_dir=folder, context="gate", **options)
    trainer = MultiScaleRewardTrainer(base, config, pairs, eval_dataset=pairs.select(range(7)))
    trainer.train()
    evaluation = trainer.evaluate()
    trainer.save_model(folder)
    trainer.accelerator.wait_for_everyone()
    return {
        "processes": trainer.accelerator.num_processes,
        "reward_log": trainer.state.log_history,
        "evaluation": evaluation,
        "weight": trainer.model.score.weight.detach().sum().item(),
    }


def train_frozen(folder: str, base: str, pairs: Dataset) -> dict[str, Any]:
    """Train a head on a frozen decoder, whose states the processes compute in turns; evaluate on seven pairs."""
    options = {
        "max_steps": 6,
        "learning_rate": 1e-2,
        "per_device_eval_batch_size": 2,
        "freeze_decoder": True,
        **SHARED,
    }
    config = MultiScaleRewardConfig(output_dir=folder, context="gate", **options)
    usual, states.SHARD_TOKENS = states.SHARD_TOKENS, 400
    trainer = MultiScaleRewardTrainer(base, config, pairs, eval_dataset=pairs.select(range(7)))
    states.SHARD_TOKENS = usual
    rates = cross_validate(trainer, [1e-3, 3e-2])
    trainer.train()
    return {
        "frozen_rates": list(rates.values()),
        "frozen_files": len(list(Path(folder).rglob("*.safetensors"))),
        "frozen_log": trainer.state.log_history,
        "frozen_evaluation": trainer.evaluate(),
    }


def train_lists(folder: str, base: str, pairs: Dataset) -> dict[str, Any]:
    """Train on lists of two and three, then on pairs by their prompts; evaluate on seven lists."""
    rows = [
        {
            "prompt": row["prompt"],
            "responses": [row["rejected"], row["chosen"], *others],
            "ranks": [1, 0, 1][: 2 + i % 2],
        }
        for i, row in enumerate(pairs)
        for others in ([pairs[i - 1]["chosen"]] if i % 2 else [],)
    ]
    lists, found = Dataset.from_list(rows), dict[str, Any]()
    options = {"max_steps": 4, "learning_rate": 1e-3, "per_device_eval_batch_size": 2, **SHARED}
    for name, data, own in (
        ("lists", lists, {"list_reach_warmup": 0.9, "loss_type": "log_sum_exp"}),
        ("by_prompt", normalize_pairs(lists, "lists"), {"group_by_prompt": True}),
    ):
        config = MultiScaleRewardConfig(output_dir=folder, **options, **own)
        trainer = MultiScaleRewardTrainer(base, config, data, eval_dataset=lists.select(range(7)))
        trainer.train()
        found |= {f"{name}_log": trainer.state.log_history, f"{name}_evaluation": trainer.evaluate()}
    return found


def train_policy(folder: str, base: str, reward: str, pairs: Dataset) -> dict[str, Any]:
    """Train, and go on once more from the first step's checkpoint."""
    options = {"max_steps": 3, "learning_rate": 1e-3, "num_generations": 1, "max_completion_length": 8, "beta": 0.05}
    options |= {"baseline": "moving_average", "prefix_baseline": True, "normalize_rewards": True}
    # One generation for two steps, and a save between them
    options |= {"steps_per_generation": 2, **SHARED, "save_strategy": "steps", "save_steps": 1}
    config, function = ReinforceConfig(output_dir=folder, **options), RewardFunction(reward)
    whole, resumed = (
        ReinforceTrainer(base, function, config, train_dataset=pairs.select_columns(["prompt"])) for _ in range(2)
    )
    whole.train()
    resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-1")
    parameters = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    return {
        "policy_processes": whole.accelerator.num_processes,
        "policy_log": whole.state.log_history,
        "policy_state": [whole._moving_average, whole._reward_moments, whole._prefix_baseline.fit.moment.tolist()],
        "policy_weight": whole.model.get_input_embeddings().weight.detach().double().sum().item(),
        "resumed_difference": max((a - b).abs().max().item() for a, b in parameters),
    }


def train_judge(folder: str, base: str, pairs: Dataset) -> dict[str, Any]:
    """Train a judge on thoughts without chance, which are the same however many processes sample them."""
    options = {"max_steps": 3, "learning_rate": 1e-3, "num_thoughts": 2, "max_completion_length": 8, "beta": 0.1}
    # The likeliest thought every time: what its two copies weigh differs by the answers, which are exchanged. With
    # `two_answers`, words of no text would have a gradient of rounding alone, of which Adam makes whole steps.
    options |= {"swap_answers": True, "generation_kwargs": {"do_sample": False}, **SHARED}
    trainer = ThoughtTrainer(base, ThoughtConfig(output_dir=folder, **options), pairs)
    trainer.train()
    return {"judge_processes": trainer.accelerator.num_processes, "judge_log": trainer.state.log_history}


def main(work: Path, base: str) -> None:
    pairs = load_dataset("json", data_files=str(work / "pairs.jsonl"), split="train", cache_dir=str(work / "cache"))
    reward, policy, frozen = (str(work / f"{name}-{PROCESSES}") for name in ("reward", "policy", "frozen"))
    result = train_reward(reward, base, pairs) | train_policy(policy, base, reward, pairs)
    result |= train_frozen(frozen, base, pairs) | train_lists(str(work / f"lists-{PROCESSES}"), base, pairs)
    result |= train_judge(str(work / f"judge-{PROCESSES}"), base, pairs)
    (work / f"result-{PROCESSES}-{RANK}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
