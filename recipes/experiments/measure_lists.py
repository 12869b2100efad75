"""Ranked lists against the same labels as pairs: lists a second, tokens, and accuracy; docs/lists.md has the figures.

python recipes/experiments/measure_lists.py --output_dir runs/lists

What is measured is not measured again: each way and seed has a file. `--speed` measures nothing but the speed.
"""

import argparse
import json
import math
import random
from pathlib import Path

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from toolkit import MultiScaleRewardConfig, MultiScaleRewardTrainer, sandbox
from toolkit.arguments import make_once
from toolkit.data.formats import normalize_pairs
from toolkit.experiments.benchmarks.lists import list_speeds
from toolkit.sandbox.world import write_response

RESPONSES, LISTS_A_STEP = 4, 8
COMMON = {"use_cpu": True, "bf16": False, "activation_checkpointing": False, "report_to": "none"}
COMMON |= {"save_strategy": "no", "logging_steps": 50, "disable_tqdm": True}
WAYS = {"pairs": {}, "lists, pairwise": {}, "lists, reach growing over half": {"list_reach_warmup": 0.5}}
WAYS |= {"lists, Plackett-Luce": {"loss_type": "plackett_luce"}, "lists, log-sum-exp": {"loss_type": "log_sum_exp"}}
WAYS |= {"lists, four a step": {"per_device_train_batch_size": 4}, "lists, six epochs": {"num_train_epochs": 6}}


def sample_lists(size, seed):
    """Lists of responses of any quality, ranked by Plackett-Luce of the gold reward: it and Gumbel noise."""
    rng, rows = random.Random(f"lists {seed}"), []
    for row in sandbox.sample_prompts(size, seed):
        prompt, texts = row["prompt"][0]["content"], set()
        while len(texts) < RESPONSES:
            texts.add(write_response(prompt, (rng.random(), rng.random(), rng.random()), rng))
        texts = rng.sample(sorted(texts), RESPONSES)
        scores = [sandbox.gold_reward(prompt, text).total - math.log(rng.expovariate(1)) for text in texts]
        responses = [[{"role": "assistant", "content": text}] for text in texts]
        rows.append({"prompt": row["prompt"], "responses": responses, "scores": scores})
    return Dataset.from_list(rows)


def trainer_of(out, rows, test, seed, **options):
    pairs = "chosen" in rows.column_names
    batch = LISTS_A_STEP * (RESPONSES * (RESPONSES - 1) // 2 if pairs else 1)
    usual = {"lr_scheduler_type": "cosine", "warmup_steps": 20, "num_train_epochs": 2, "weight_decay": 0.01}
    usual |= {"per_device_train_batch_size": batch, "learning_rate": 1e-3, "seed": seed, **COMMON}
    config = MultiScaleRewardConfig(str(out / "run"), **{**usual, **options})
    return MultiScaleRewardTrainer(str(out / "decoder"), config, rows, test)


def start(folder):
    options = {"max_steps": 400, "per_device_train_batch_size": 16, "learning_rate": 3e-3}
    config, data = SFTConfig(str(folder), **options, **COMMON), sandbox.sample_demonstrations(6400, 0)
    decoder, tokenizer = sandbox.sandbox_decoder(), sandbox.sandbox_tokenizer()
    trainer = SFTTrainer(decoder, config, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()


def main(args):
    torch.set_num_threads(1)
    out = Path(args.output_dir)
    make_once(out / "decoder", start)
    cells, test = {name: [] for name in WAYS}, sample_lists(500, sandbox.HELD_OUT_SEED)
    for seed in range(args.seeds):
        lists = sample_lists(args.lists, seed)
        rows = {"pairs": normalize_pairs(lists, "lists"), "lists": lists}
        if args.speed:
            trainers = {name: trainer_of(out, data, None, 0) for name, data in rows.items()}
            return print(list_speeds(trainers, LISTS_A_STEP))
        for name, options in WAYS.items():
            if not (cell := out / f"{name}, {args.lists} of seed {seed}.json").is_file():
                trainer = trainer_of(out, rows[name.split(",")[0]], test, seed, **options)
                trainer.train()
                cell.write_text(json.dumps(trainer.evaluate()))
            cells[name].append(json.loads(cell.read_text()))
    for key in ("accuracy", "kendall_tau", "top_1"):
        found = {name: torch.tensor([cell[f"eval_{key}"] for cell in own]).double() for name, own in cells.items()}
        for name, own in found.items():
            both = (f"{each.mean():.4f} ± {each.std() / len(each) ** 0.5:.4f}" for each in (own, own - found["pairs"]))
            print(key, name, *both, sep="; ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, value in {"output_dir": "runs/lists", "lists": 800, "seeds": 3}.items():
        parser.add_argument(f"--{option}", type=type(value), default=value)
    parser.add_argument("--speed", action="store_true")
    main(parser.parse_args())
