"""Ranked lists against the same labels as pairs: lists a second, tokens, and accuracy; docs/lists.md has the figures.

python recipes/experiments/measure_lists.py --output_dir runs/lists

What is measured is not measured again: each way and seed has a file. `--speed` measures nothing but the speed.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from toolkit import MultiScaleRewardConfig, MultiScaleRewardTrainer, sandbox
from toolkit.data.formats import normalize_pairs
from toolkit.sandbox.world import write_response

RESPONSES, LISTS_A_STEP = 4, 8
COMMON = {"use_cpu": True, "bf16": False, "activation_checkpointing": False, "report_to": "none"}
COMMON |= {"save_strategy": "no", "logging_steps": 50, "disable_tqdm": True}
WAYS = {
    "pairs": {},
    "lists, pairwise": {},
    "lists, reach growing over half": {"list_reach_warmup": 0.5},
    "lists, Plackett-Luce": {"loss_type": "plackett_luce"},
    "lists, log-sum-exp": {"loss_type": "log_sum_exp"},
}


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
    options |= {"lr_scheduler_type": "cosine", "warmup_steps": 20, "num_train_epochs": 2, "weight_decay": 0.01}
    options |= {"per_device_train_batch_size": batch, "learning_rate": 1e-3, "seed": seed, **COMMON}
    config = MultiScaleRewardConfig(str(out / "run"), **options)
    return MultiScaleRewardTrainer(str(out / "decoder"), config, rows, test)


def speeds(trainers, rounds=12):
    """Lists a second of processor time and tokens a list, each trainer's steps in turn with the others'."""
    spent, tokens = dict.fromkeys(trainers, 0.0), dict.fromkeys(trainers, 0)
    loaders = {name: iter(trainer.get_train_dataloader()) for name, trainer in trainers.items()}
    optimizers = {name: torch.optim.AdamW(trainer.model.parameters(), 1e-5) for name, trainer in trainers.items()}
    for turn in range(rounds + 2):
        for name, trainer in trainers.items():
            batch, start = next(loaders[name]), time.process_time()
            trainer.compute_loss(trainer.model.train(), batch).backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            if turn >= 2:  # after what the first steps set up
                spent[name] += time.process_time() - start
                tokens[name] += batch["pair_tokens"].sum().item()
    lists = rounds * LISTS_A_STEP
    return {name: {"lists/s": lists / spent[name], "tokens/list": tokens[name] / lists} for name in trainers}


def start(out):
    if not (out / "decoder" / "model.safetensors").is_file():
        options = {"max_steps": 400, "per_device_train_batch_size": 16, "learning_rate": 3e-3}
        config, tokenizer = SFTConfig(str(out / "decoder"), **options, **COMMON), sandbox.sandbox_tokenizer()
        data = sandbox.sample_demonstrations(6400, 0)
        sft = SFTTrainer(sandbox.sandbox_decoder(), config, train_dataset=data, processing_class=tokenizer)
        sft.train()
        sft.save_model()


def main(args):
    torch.set_num_threads(1)
    start(out := Path(args.output_dir))
    cells, test = {name: [] for name in WAYS}, sample_lists(500, sandbox.HELD_OUT_SEED)
    for seed in range(args.seeds):
        lists = sample_lists(args.lists, seed)
        rows = {"pairs": normalize_pairs(lists, "lists"), "lists": lists}
        if args.speed:
            return print(speeds({name: trainer_of(out, data, None, 0) for name, data in rows.items()}))
        for name, options in WAYS.items():
            if not (cell := out / f"{name} {seed}.json").is_file():
                trainer = trainer_of(out, rows[name.split(",")[0]], test, seed, **options)
                trainer.train()
                cell.write_text(json.dumps(trainer.evaluate()))
            cells[name].append(json.loads(cell.read_text()))
    for key in ("accuracy", "kendall_tau", "top_1"):
        found = {name: torch.tensor([cell[f"eval_{key}"] for cell in own]).double() for name, own in cells.items()}
        for name, values in found.items():
            both = values, values - found["pairs"]
            print(key, name, *(f"{each.mean():.4f} ± {each.std() / len(each) ** 0.5:.4f}" for each in both), sep="; ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/lists")
    parser.add_argument("--lists", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--speed", action="store_true")
    main(parser.parse_args())
