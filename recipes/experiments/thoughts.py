"""What trained thoughts are worth in the sandbox: arms from one cold start, and models without thoughts on its pairs.

Every cell is a file in the output folder with its accuracy on held-out pairs; what is there is not run again. The
table is of all seeds that are there."""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from trl import SFTConfig, SFTTrainer

import toolkit
from toolkit import sandbox
from toolkit.experiments.thoughts import JUDGES, print_arms, read_cells
from toolkit.generative.turns import JudgeSettings
from toolkit.sandbox.thoughts import JUDGE_OPTIONS, sample_thoughts, write_thought
from toolkit.stats.metrics import pair_accuracy

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
    print_arms(read_cells(given.output_dir))
