"""What trained thoughts are worth in the sandbox: arms from one cold start, and models without thoughts on its pairs.

Every cell is a file in the output folder with its accuracy on held-out pairs; what is there is not run again."""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from trl import SFTConfig, SFTTrainer

import toolkit
from toolkit import ThoughtTrainer, sandbox
from toolkit.generative.turns import JudgeSettings
from toolkit.generative.weights import ThoughtWeights
from toolkit.sandbox.thoughts import JUDGE_OPTIONS, sample_thoughts, write_thought
from toolkit.stats.metrics import pair_accuracy


class Unweighted(ThoughtTrainer):
    """Without the pair's weight: the gap of the utilities is pushed alike however large it is."""

    def _loss(self, inputs):
        return lambda values: values[:, 1] - values[:, 0]


class Verdicts(ThoughtTrainer):
    """Drawn verdicts: the i-th on both responses are compared, rewarded, and normalised in the group as GRPO does."""

    def _weights(self, loss):
        omega, chance = self._log_answers.exp(), torch.Generator().manual_seed((self.args.seed << 31) + self._step)
        good = (torch.rand(omega.shape, generator=chance) < omega).float()
        rewards = ((1 + good[:, :1] - good[:, 1:]) / 2).expand_as(good)
        spread, mean = torch.std_mean(rewards, -1, keepdim=True)
        advantages = (rewards - mean) / (spread + 1e-4) / omega.size(-1)
        other = -omega / (1 - omega).clamp(min=1e-6)  # slope of log(1 - omega), of the other answer, by log omega
        return ThoughtWeights(advantages, advantages * torch.where(good > 0, 1.0, other))


JUDGES = {"dwrl": ThoughtTrainer, "verdicts": Verdicts, "unweighted": Unweighted, "frozen": ThoughtTrainer}
SHARED = {"use_cpu": True, "bf16": False, "activation_checkpointing": False, "report_to": "none", "disable_tqdm": True}
SHARED |= {"save_strategy": "no", "lr_scheduler_type": "cosine", "warmup_steps": 10, "logging_steps": 10}


def train(args, arm: str, start: str, folder: str, seed: int) -> list[dict]:
    shared = {**SHARED, "output_dir": folder, "seed": seed, "per_device_train_batch_size": 16}
    pairs = sandbox.sample_pairs(args.pairs * args.steps, seed, args.tasks)
    asked = {"num_thoughts": args.num_thoughts, "max_completion_length": 40, **JUDGE_OPTIONS}
    if arm == "start":
        shared |= {"max_steps": args.sft_steps, "learning_rate": 1e-3, "assistant_only_loss": True}
        rows = sample_thoughts(16 * args.sft_steps, 1000 + seed, args.noise, args.tasks)
        trainer = SFTTrainer(args.model, SFTConfig(**shared), train_dataset=rows)
    elif arm in toolkit.PREFERENCE_MODELS:
        shared |= {"num_train_epochs": 2, "learning_rate": 1e-3, **toolkit.PREFERENCE_MODELS[arm]}
        trainer = toolkit.MultiScaleRewardTrainer(start, toolkit.MultiScaleRewardConfig(**shared), pairs)
    else:
        asked |= {"train_thoughts": arm != "frozen", "learning_rate": args.learning_rate, "max_steps": args.steps}
        shared |= {"per_device_train_batch_size": 2 * args.num_thoughts * args.pairs, **asked}
        trainer = JUDGES[arm](start, toolkit.ThoughtConfig(**shared), pairs)
    trainer.train()
    trainer.save_model()
    if arm == "start":
        JudgeSettings(**asked).save_settings(folder)
    return trainer.state.log_history


def run(args, arm: str, seed: int) -> None:
    folder, began = f"{args.output_dir}/{arm.replace(' ', '_')}-{seed}", time.process_time()
    if (cell := Path(folder + ".json")).exists():
        return
    log = train(args, arm, f"{args.output_dir}/start-{seed}", folder, seed)
    judge = toolkit.RewardFunction(folder) if arm in toolkit.PREFERENCE_MODELS else toolkit.ThoughtReward(folder)
    test, found = sandbox.sample_pairs(args.test_size, args.test_seed, args.tasks), {}
    for side in ("chosen", "rejected"):
        asked = list(test["prompt"]), list(test[side])
        found[side] = judge(*asked)
        if arm == "start":  # after thoughts that the parser writes without a mistake: what its answers can reach
            thoughts = [write_thought(*row, 0.0, random.Random()) for row in zip(*asked, strict=True)]
            found[f"parsed {side}"] = [said.utility for said in judge.judge(*asked, thoughts=thoughts)]
    for name in ("", "parsed ")[: len(found) // 2]:
        accuracy = pair_accuracy(*(torch.tensor(found[name + side]) for side in ("chosen", "rejected")))
        found[name + "accuracy"] = accuracy._asdict()
        print(arm, seed, name, accuracy, flush=True)
    found |= {"options": vars(args), "log": log, "cpu_seconds": time.process_time() - began}
    cell.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    options = {"model": "runs/demo/start", "sft_steps": 1000, "noise": 0.2, "pairs": 16, "steps": 100}
    options |= {"num_thoughts": 4, "learning_rate": 1e-4, "test_size": 1000, "test_seed": sandbox.HELD_OUT_SEED}
    options |= {"seed": 0, "output_dir": "runs/thoughts"}
    for option, value in options.items():
        parser.add_argument(f"--{option}", type=type(value), default=value)
    parser.add_argument("--tasks", nargs="+", default=["question_answering"])
    parser.add_argument("--arms", nargs="+", default=["start", "simple contrast", "multi-scale", *JUDGES])
    for name in (given := parser.parse_args()).arms:
        run(given, name, given.seed)
