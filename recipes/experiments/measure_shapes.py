"""Pairs across prompts, prompts that fit and lists by removal, beside plain pairs; docs/lists.md has the figures.

python recipes/experiments/measure_lists.py --output_dir runs/lists  # makes the decoder
python recipes/experiments/measure_shapes.py --decoder runs/lists/decoder --output_dir runs/shapes
"""

import argparse
import random

import torch
from datasets import Dataset, concatenate_datasets

from toolkit import MultiScaleRewardConfig, MultiScaleRewardTrainer, sandbox
from toolkit.data.degrees import rank_by_removal, shared_weight, word_weights
from toolkit.sandbox.world import ROOM, gold_range, write_response

COMMON = {"use_cpu": True, "bf16": False, "activation_checkpointing": False, "report_to": "none", "disable_tqdm": True}
COMMON |= {"save_strategy": "no", "logging_steps": 50, "per_device_train_batch_size": 32, "learning_rate": 1e-3}
COMMON |= {"num_train_epochs": 2, "lr_scheduler_type": "cosine", "warmup_steps": 20, "weight_decay": 0.01}


def said(role, text):
    return [{"role": role, "content": text}]


def answers(size, seed):
    """Prompts, each with a response of any quality."""
    rng = random.Random(f"shapes {seed}")
    for row in sandbox.sample_prompts(size, seed):
        prompt = row["prompt"][0]["content"]
        yield prompt, write_response(prompt, (rng.random(), rng.random(), rng.random()), rng)


def crossed(size, seed):
    """Pairs across prompts: better is what reaches the larger part of its prompt's range of the gold reward."""
    drawn, rows = list(answers(2 * size, seed)), []
    for two in zip(drawn[::2], drawn[1::2], strict=True):
        part = {}
        for prompt, response in two:
            low, high = gold_range(prompt)
            part[prompt, response] = (sandbox.gold_reward(prompt, response).total - low) / (high - low)
        rows.append(pair(*sorted(two, key=part.get, reverse=True)))
    return Dataset.from_list(rows)


def fitting(size, seed):
    """One response beside two prompts that differ in how much room they give."""
    rows = []
    for prompt, response in answers(8 * size, seed):
        if cue := next((cue for cue in ROOM if prompt.endswith(cue)), None):
            other = prompt.removesuffix(cue) + next(each for each in ROOM if each != cue)
            gold = {(each, response): sandbox.gold_reward(each, response).total for each in (prompt, other)}
            rows += [pair(*sorted(gold, key=gold.get, reverse=True))] if len(set(gold.values())) == 2 else []
    return Dataset.from_list(rows[:size])


def pair(better, worse):
    sides = {"chosen": said("assistant", better[1]), "rejected": said("assistant", worse[1])}
    return {"prompt": said("user", better[0]), **sides, "rejected_prompt": said("user", worse[0])}


def removed(size, seed, control):
    """Lists without labels: demonstrations, and themselves without 1 and 3 key sentences."""
    rows, found = sandbox.sample_demonstrations(4 * size, seed), []
    weights = word_weights(row["prompt"][0]["content"] for row in rows)
    for row in rows:
        key = shared_weight(row["prompt"][0]["content"], weights)
        if made := rank_by_removal(row["completion"][0]["content"], key, control=control):
            responses = [said("assistant", text) for text in made["responses"]]
            found.append({"prompt": row["prompt"], "responses": responses, "ranks": made["ranks"]})
    return Dataset.from_list(found[:size])


def as_lists(pairs):
    rows = [{"prompt": r["prompt"], "responses": [r["chosen"], r["rejected"]], "ranks": [0, 1]} for r in pairs]
    return Dataset.from_list(rows)


def sets(rows, seed):
    """Training rows and options by name: `rows` plain pairs, alone or with as many of another shape."""
    pairs = sandbox.sample_pairs(2 * rows, seed).select_columns(["prompt", "chosen", "rejected"])
    plain, centre = pairs.select(range(rows)), {"centre_by_prompt": True}
    ways = {"pairs": (plain, {}), "twice the pairs": (pairs, {}), "pairs, centred": (plain, centre)}
    beside = plain.map(lambda row: {"rejected_prompt": row["prompt"]})
    for name, others in {"crossed": crossed(rows, seed), "fitting": fitting(rows, seed)}.items():
        both = concatenate_datasets([beside, others.cast(beside.features)])
        ways |= {name: (both, {}), f"{name}, centred": (both, centre)}
    for name, control in {"removal": False, "removal, filler, too": True}.items():
        ways[name] = (concatenate_datasets([as_lists(plain), removed(rows, seed, control)]), {})
    return ways


def main(args):
    torch.set_num_threads(1)
    held_out = sandbox.sample_pairs(1000, sandbox.HELD_OUT_SEED).remove_columns("strength")
    cued = held_out.filter(lambda row: row["prompt"][0]["content"].endswith(tuple(ROOM)))
    crossed_out, fits_out = (make(500, sandbox.HELD_OUT_SEED) for make in (crossed, fitting))
    test = {"pairs": held_out, "cued": cued, "crossed": crossed_out, "fitting": fits_out}
    for seed in range(args.seeds):
        for name, (rows, options) in sets(args.rows, seed).items():
            config = MultiScaleRewardConfig(args.output_dir, seed=seed, weight_by_strength=False, **options, **COMMON)
            trainer = MultiScaleRewardTrainer(args.decoder, config, rows, test)
            trainer.train()
            found = trainer.evaluate()
            told = {each: round(100 * found[f"eval_{each}_accuracy"], 1) for each in test}
            print(seed, name, len(rows), told, round(found["eval_pairs_length_correlation"], 3), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--decoder", default="runs/lists/decoder")
    parser.add_argument("--output_dir", default="runs/shapes")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=2)
    main(parser.parse_args())
