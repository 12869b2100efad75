"""
Runs whose truth is known: what a reward model's or a policy's training would have left, from a seeded program.

    python -m tests.pages.planted FOLDER [SEED]

writes the runs that `tests/pages/test_verdicts.py` judges, and a page for each.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from datasets import Dataset

from toolkit.stats.metrics import PairScores, summarize_pairs
from toolkit.training.run_record import save_pair_examples, write_json

SCALES = ["token", "segment", "response"]
PAIRS, LOGS, LOGGED = 800, 60, 256  # held out; logs of a training; pairs or responses in a log
REWARD_RUNS = ("good", "chance", "overfitted", "length hack", "collapsed gate", "mix below its scale")
JUDGE_RUNS = ("good", "no better", "forgets", "deaf", "cut off")
POLICY_RUNS = ("good", "hacked", "flat", "collapsed", "repeating", "far away")


class _Pairs:
    """Held-out pairs of which the better response is known up to the labels' noise."""

    def __init__(self, rng):
        quality = rng.normal(size=PAIRS)  # of the first response less that of the second
        first_wins = rng.random(PAIRS) < 1 / (1 + np.exp(-2.5 * quality))
        self.gap = np.where(first_wins, quality, -quality)  # of chosen less rejected
        self.lengths = np.exp(rng.normal(4, 0.4, size=(2, PAIRS))).astype(int) + 3
        swap = (self.lengths[0] < self.lengths[1]) & (rng.random(PAIRS) < 0.25)  # labels like length a little
        self.lengths[:, swap] = self.lengths[::-1, swap]
        self.noise = rng.normal(size=(3, PAIRS))  # of each scale, the same at every evaluation
        self.other = rng.normal(size=PAIRS)  # what an overfitted model has learnt besides

    def scores(self, kind, progress):
        """Scores at a share of the training: `PairScores`."""
        signal, noise, size = self.gap, 2 - 1.2 * progress, 1.5 * progress
        if kind == "chance":
            signal, noise = 0 * self.gap, 1.0
        if kind == "length hack":
            signal, noise = 2 * np.log(self.lengths[0] / self.lengths[1]), 0.02
        by_scale = size * (signal + noise * self.noise)
        if kind == "overfitted" and progress > 0.3:
            by_scale = by_scale + 12 * (progress - 0.3) * self.other
        if kind == "mix below its scale":
            by_scale = by_scale * np.array([0.3, 0.3, 1])[:, None] + np.array([3.0, 3.0, 0])[:, None] * self.noise
        weights = np.array([0.01, 0.01, 0.98] if kind == "collapsed gate" else [0.3, 0.3, 0.4])
        scales, mix = torch.tensor(by_scale.T, dtype=torch.float32), torch.tensor(weights @ by_scale)
        base, lengths = torch.tensor(self.other / 3), torch.tensor(self.lengths)
        return PairScores(
            chosen=(base + mix / 2).float(),
            rejected=(base - mix / 2).float(),
            scale_chosen=scales / 2,
            scale_rejected=-scales / 2,
            gate=torch.tensor(weights, dtype=torch.float32).expand(PAIRS, 3),
            chosen_length=lengths[0],
            rejected_length=lengths[1],
            loss=torch.nn.functional.softplus(-mix).float(),
            scale_losses=torch.nn.functional.softplus(-scales),
        )


def reward_run(folder: Path, kind: str, seed: int, scales: list[str] | None = None) -> Path:
    """A reward training: its log with six evaluations, held-out scores, and the model's settings."""
    rng, log = np.random.default_rng(seed), []
    pairs = _Pairs(np.random.default_rng(seed))
    found = pairs.scores(kind, 1.0)
    for i in range(1, LOGS + 1):
        progress, step = min(1.0, 1.5 * i / LOGS), 10 * i
        share = {"chance": 0.5, "overfitted": 0.5 + 0.5 * min(1, 2 * progress)}.get(kind, 0.5 + 0.26 * progress)
        if kind == "length hack":
            share = 0.5 + 0.1 * progress
        loss = 0.7 - 0.9 * (share - 0.5) + 0.03 * rng.normal()
        accuracy = rng.binomial(LOGGED, share) / LOGGED
        log.append({"step": step, "loss": loss, "accuracy": accuracy, "pairs": LOGGED, "epoch": i / LOGS})
        if i % (LOGS // 6) == 0:
            found = pairs.scores(kind, progress)
            evaluated = summarize_pairs(found, SCALES)
            log.append({f"eval_{key}": value for key, value in evaluated.items()} | {"step": step})
    rows = [{"prompt": f"Question {i // 2}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(PAIRS)]
    for i, row in enumerate(rows):
        row["task"], row["subset"] = ("qa", "code", "safety")[i % 3], f"part {i % 2}"
    trainer = SimpleNamespace(
        args=SimpleNamespace(output_dir=str(folder)),
        is_world_process_zero=lambda: True,
        eval_dataset=Dataset.from_list(rows),
        reward_model=SimpleNamespace(settings=SimpleNamespace(scales=SCALES)),
    )
    save_pair_examples(trainer, tuple(np.asarray(column) for column in found))
    write_json(folder / "trainer_state.json", {"global_step": log[-1]["step"], "log_history": log})
    context = "gate" if kind == "collapsed gate" else "none"
    write_json(folder / "config.json", {"multi_scale": {"scales": scales or SCALES, "context": context}})
    return folder


def policy_run(folder: Path, kind: str, seed: int) -> Path:
    """A policy training: its log, with a second reward that it is not trained on, and answers before and after."""
    rng, log = np.random.default_rng(seed), []
    for i in range(LOGS):
        progress, noise = i / (LOGS - 1), rng.normal(size=4) / np.sqrt(LOGGED)
        gain = 0 if kind == "flat" else 1.5 * progress
        gold = {"flat": 0, "hacked": 1.6 * progress - 2.4 * progress**2}.get(kind, 0.8 * progress)
        length = 40 * (1 + (2 * progress if kind == "hacked" else 0.1 * progress))
        entropy = 1.2 * (0.02 if kind == "collapsed" and i > LOGS / 2 else 1 - 0.3 * progress)
        row = {"step": i + 1, "loss": 0.1 * noise[3], "entropy": entropy + 0.01 * noise[0], "reward": gain + noise[0]}
        row |= {
            "reward_std": 1.0,
            "rewards/RewardFunction/mean": gain + noise[0],
            "rewards/gold_judge/mean": 1 + gold + noise[1],
        }
        row |= {
            "kl": (2.0 if kind == "far away" else 0.2) * progress,
            "completions/mean_length": length + 8 * noise[2],
        }
        log.append(row)
    write_json(folder / "trainer_state.json", {"global_step": LOGS, "log_history": log})
    words = [f"word{j}" for j in range(60)]
    cards = []
    for i in range(16):
        before, after = (" ".join(rng.choice(words, 40)) for _ in range(2))
        after = " ".join(["and so on"] * 12) if kind == "repeating" else after
        answers = [
            {"label": "before", "text": before, "numbers": {}},
            {"label": "after", "text": after, "numbers": {}},
        ]
        cards.append({"title": f"Prompt {i + 1}", "prompt": f"Question {i}", "responses": answers})
    write_json(folder / "before_after.json", cards)
    return folder


def judge_run(folder: Path, kind: str, seed: int) -> Path:
    """A judge's training: its log, in which the mean log-probability of the good answer falls, as it may."""
    rng, log = np.random.default_rng(seed), []
    for i in range(LOGS):
        progress, noise = i / (LOGS - 1), rng.normal(size=3) / np.sqrt(LOGGED)
        loss = {"no better": 0.72, "forgets": 0.55 + 0.1 * progress}.get(kind, 0.65 - 0.15 * progress)
        row = {"step": i + 1, "loss": 0.1 * noise[0], "reward": -1 - 3 * progress, "reward_std": 1.0}
        row |= {"pair_loss": loss + 0.3 * noise[1], "accuracy": 0.5 + 0.7 * (0.72 - loss) + noise[2]}
        row |= {"thoughts/effective": 3.999 if kind == "deaf" else 3.2, "answers/good": 0.4, "entropy": 0.5}
        row |= {"completions/clipped_ratio": 0.6 if kind == "cut off" else 0.01, "completions/mean_length": 30.0}
        log.append(row)
    write_json(folder / "trainer_state.json", {"global_step": LOGS, "log_history": log})
    options = {"ThoughtConfig": {"default": {}, "changed": {"num_thoughts": 4}}}
    run = {"trainer": "ThoughtTrainer", "command": "", "started": ["2026-01-01T00:00:00+00:00"], "versions": {}}
    run |= {"seed": seed, "data_seed": None, "options": options}
    write_json(folder / "run.json", run)
    return folder


def main(folder: str, seed: str = "0") -> None:
    from toolkit.pages.run_page import write_run_report

    for make, kinds in ((reward_run, REWARD_RUNS), (policy_run, POLICY_RUNS), (judge_run, JUDGE_RUNS)):
        for kind in kinds:
            run = make(Path(folder, f"{make.__name__}-{kind.replace(' ', '-')}"), kind, int(seed))
            print(write_run_report(run))


if __name__ == "__main__":
    main(*sys.argv[1:])
