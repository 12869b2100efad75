"""What trained thoughts are worth in the sandbox: arms from one cold start, and models without thoughts on its pairs.

Every cell is a file in the output folder with its accuracy on held-out pairs; what is there is not run again."""

import argparse
import json
import time
from pathlib import Path

import torch
from trl import SFTConfig, SFTTrainer

from toolkit import PREFERENCE_MODELS, MultiScaleRewardConfig, MultiScaleRewardTrainer, RewardFunction, sandbox
from toolkit.generative.config import ThoughtConfig
from toolkit.generative.reward import ThoughtReward
from toolkit.generative.trainer import ThoughtTrainer
from toolkit.generative.turns import JudgeSettings
from toolkit.generative.weights import ThoughtWeights
from toolkit.sandbox.thoughts import JUDGE_OPTIONS, sample_thoughts
from toolkit.stats.metrics import pair_accuracy

LEFT_OUT = ("num_tokens", "epoch", "learning_rate", "step_time", "advantage_std", "reward_std")


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
        scale = omega.size(-1) * (rewards.std(-1, keepdim=True) + 1e-4)
        advantages = (rewards - rewards.mean(-1, keepdim=True)) / scale
        other = -omega / (1 - omega).clamp(min=1e-6)  # slope of log(1 - omega), of the other answer, by log omega
        return ThoughtWeights(advantages, advantages * torch.where(good > 0, 1.0, other))


SCALAR = ("simple contrast", "multi-scale")
ARMS = {"dwrl": ThoughtTrainer, "verdicts": Verdicts, "unweighted": Unweighted, "frozen": ThoughtTrainer}


def train(args, arm: str, start: str, folder: str, seed: int) -> list[dict]:
    shared = {"use_cpu": True, "bf16": False, "activation_checkpointing": False, "report_to": "none", "seed": seed}
    shared |= {"save_strategy": "no", "warmup_steps": 10, "logging_steps": 10, "disable_tqdm": True}
    pairs = sandbox.sample_pairs(args.pairs * args.steps, seed)
    asked = {"num_thoughts": args.num_thoughts, "max_completion_length": 30, **JUDGE_OPTIONS}
    if arm == "start":
        shared |= {"max_steps": args.sft_steps, "learning_rate": 2e-3, "lr_scheduler_type": "cosine"}
        config = SFTConfig(folder, per_device_train_batch_size=32, assistant_only_loss=True, **shared)
        rows, decoder = sample_thoughts(args.thoughts, 1000 + seed, args.noise), sandbox.sandbox_decoder(seed=seed)
        trainer = SFTTrainer(decoder, config, train_dataset=rows, processing_class=sandbox.sandbox_tokenizer())
    elif arm in SCALAR:
        shared |= {"num_train_epochs": 2, "learning_rate": 1e-3, "lr_scheduler_type": "cosine"}
        config = MultiScaleRewardConfig(folder, per_device_train_batch_size=32, **shared, **PREFERENCE_MODELS[arm])
        trainer = MultiScaleRewardTrainer(start, config, pairs)
    else:
        asked |= {"train_thoughts": arm != "frozen", "learning_rate": args.learning_rate, "max_steps": args.steps}
        config = ThoughtConfig(
            folder, per_device_train_batch_size=2 * args.num_thoughts * args.pairs, **asked, **shared
        )
        trainer = ARMS[arm](start, config, pairs)
    trainer.train()
    trainer.save_model()
    if arm == "start":
        JudgeSettings(**asked).save_settings(folder)
    return [{key: row[key] for key in row if key not in LEFT_OUT} for row in trainer.state.log_history]


def run(args, arm: str, seed: int) -> None:
    out, began = Path(args.output_dir), time.process_time()
    folder = str(out / f"{arm}-{seed}".replace(" ", "_"))
    if (cell := Path(folder + ".json")).exists():
        return
    log = train(args, arm, str(out / f"start-{seed}"), folder, seed)
    judge = RewardFunction(folder) if arm in SCALAR else ThoughtReward(folder, num_thoughts=8)
    test = sandbox.sample_pairs(args.test_size, sandbox.HELD_OUT_SEED)
    chosen, rejected = (torch.tensor(judge(list(test["prompt"]), list(test[side]))) for side in ("chosen", "rejected"))
    right = ((chosen > rejected).float() + (chosen == rejected).float() / 2).tolist()
    found = {"accuracy": pair_accuracy(chosen, rejected)._asdict(), "cpu_seconds": time.process_time() - began}
    found["log_loss"] = torch.nn.functional.softplus(rejected - chosen).mean().item()
    cell.write_text(json.dumps({**found, "options": vars(args), "right": right, "log": log}) + "\n")
    print(arm, seed, found, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    options = {"sft_steps": 600, "thoughts": 6000, "noise": 0.3, "pairs": 16, "steps": 120, "num_thoughts": 4}
    options |= {"learning_rate": 3e-4, "test_size": 400, "seeds": 3, "output_dir": "runs/thoughts"}
    for option, value in options.items():
        parser.add_argument(f"--{option}", type=type(value), default=value)
    for number in range((given := parser.parse_args()).seeds):
        for name in ("start", *SCALAR, *ARMS):
            run(given, name, number)
