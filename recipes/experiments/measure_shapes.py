"""Pairs across prompts, prompts that fit and lists by removal, beside plain pairs; docs/lists.md has the figures.

OMP_NUM_THREADS=1 python recipes/experiments/measure_shapes.py --output_dir runs/shapes  # after measure_lists.py
"""

import argparse
import random

from datasets import Dataset, concatenate_datasets

from toolkit import MultiScaleRewardConfig, MultiScaleRewardTrainer, sandbox
from toolkit.data.degrees import rank_by_removal, shared_weight, word_weights
from toolkit.sandbox.world import ROOM, gold_range, write_response

COMMON = {"use_cpu": True, "bf16": False, "activation_checkpointing": False, "report_to": "none", "disable_tqdm": True}
COMMON |= {"save_strategy": "no", "logging_steps": 50, "per_device_train_batch_size": 32, "learning_rate": 1e-3}
COMMON |= {"num_train_epochs": 2, "lr_scheduler_type": "cosine", "warmup_steps": 20, "weight_decay": 0.01}


def pair(better, worse):
    said = {"prompt": better[0], "chosen": better[1], "rejected_prompt": worse[0], "rejected": worse[1]}
    roles = ("user", "assistant", "user", "assistant")
    return {key: [{"role": role, "content": said[key]}] for key, role in zip(said, roles, strict=True)}


def answers(size, seed):
    rng, rows = random.Random(f"shapes {seed}"), sandbox.sample_prompts(size, seed)
    prompts = [row["prompt"][0]["content"] for row in rows]
    return [(prompt, write_response(prompt, (rng.random(), rng.random(), rng.random()), rng)) for prompt in prompts]


def crossed(size, seed):
    """Pairs across prompts: better is what reaches the larger part of its prompt's range of the gold reward."""

    def part(two):
        low, high = gold_range(two[0])
        return (sandbox.gold_reward(*two).total - low) / (high - low)

    drawn = answers(2 * size, seed)
    return Dataset.from_list([pair(*sorted(two, key=part)[::-1]) for two in zip(drawn[::2], drawn[1::2], strict=True)])


def fitting(size, seed):
    """One response beside two prompts that differ in how much room they give."""
    rows = []
    for prompt, response in answers(8 * size, seed):
        if cue := next((cue for cue in ROOM if prompt.endswith(cue)), None):
            other = prompt.removesuffix(cue) + next(each for each in ROOM if each != cue)
            gold = {(each, response): sandbox.gold_reward(each, response).total for each in (prompt, other)}
            rows += [pair(*sorted(gold, key=gold.get)[::-1])] if len(set(gold.values())) == 2 else []
    return Dataset.from_list(rows[:size])


def removed(size, seed, control):
    """Lists without labels: demonstrations, and themselves without 1 and 3 key sentences."""
    rows, found = sandbox.sample_demonstrations(4 * size, seed), []
    weights = word_weights(row["prompt"][0]["content"] for row in rows)
    for row in rows:
        prompt, response = (row[column][0]["content"] for column in ("prompt", "completion"))
        if made := rank_by_removal(response, shared_weight(prompt, weights), control=control):
            made["responses"] = [[{"role": "assistant", "content": text}] for text in made["responses"]]
            found.append({"prompt": row["prompt"], **made})
    return Dataset.from_list(found[:size])


def sets(rows, seed):
    """Training rows and options by name: `rows` plain pairs, alone or with as many of another shape."""
    pairs = sandbox.sample_pairs(2 * rows, seed).select_columns(["prompt", "chosen", "rejected"])
    plain, centre = pairs.select(range(rows)), {"centre_by_prompt": True}
    ways = {"pairs": (plain, {}), "twice the pairs": (pairs, {})}
    beside = plain.map(lambda row: {"rejected_prompt": row["prompt"]})
    both = [concatenate_datasets([beside, make(rows, seed).cast(beside.features)]) for make in (crossed, fitting)]
    ways |= {"crossed, centred": (both[0], centre), "fitting": (both[1], {})}
    lists = [{"prompt": r["prompt"], "responses": [r["chosen"], r["rejected"]], "ranks": [0, 1]} for r in plain]
    for name, control in {"removal": False, "removal, filler, too": True}.items():
        ways[name] = (concatenate_datasets([Dataset.from_list(lists), removed(rows, seed, control)]), {})
    ways |= {"crossed": (both[0], {}), "pairs, centred": (plain, centre)}
    return ways | {"fitting, centred": (both[1], centre)}


def main(args):
    held_out = sandbox.sample_pairs(1000, sandbox.HELD_OUT_SEED).remove_columns("strength")
    test = {make.__name__: make(500, sandbox.HELD_OUT_SEED) for make in (crossed, fitting)}
    test |= {"pairs": held_out, "cued": held_out.filter(lambda row: row["prompt"][0]["content"].endswith(tuple(ROOM)))}
    for seed in range(2):
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
    main(parser.parse_args())
