"""How hard the sandbox is: the ceiling of its labels, and what simple rules, plain training and a small policy reach.

    python recipes/calibrate_sandbox.py --output_dir runs/calibration

About 15 minutes of one core. What the figures are for is in docs/sandbox.md.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from toolkit import sandbox
from toolkit.metrics import mean_interval, pair_accuracy
from toolkit.report import print_accuracy, print_table
from toolkit.sandbox_world import parse_prompt, words_of

TEST_SEED = 10_000


def bag_of_words(pairs):
    """Word counts of the chosen less those of the rejected response, (P, V)."""
    index = {word: i for i, word in enumerate(sandbox.vocabulary())}
    counts = torch.zeros(len(pairs), len(index))
    for row, pair in enumerate(pairs):
        for side, sign in (("chosen", 1), ("rejected", -1)):
            for word in words_of(pair[side][0]["content"]):
                counts[row, index[word]] += sign
    return counts


def logistic_regression(features, penalty=1e-3):
    """Weights (V,) of a logistic regression whose every label is 1."""
    weights = torch.zeros(features.size(1), requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200)

    def closure():
        optimizer.zero_grad()
        loss = penalty * weights.square().sum() - torch.nn.functional.logsigmoid(features @ weights).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()


def place(prompt, texts):
    """Gold reward of responses as a place between the worst, 0, and the best, 1, that the sandbox writes."""
    low, high = sandbox.gold_range(prompt)
    return [(total - low) / (high - low) for total in sandbox.gold_judge([prompt] * len(texts), texts)]


@torch.no_grad()
def sample(model, tokenizer, prompt, samples):
    inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=48, num_return_sequences=samples)
    return tokenizer.batch_decode(written[:, inputs["input_ids"].size(1) :], skip_special_tokens=True)


@torch.no_grad()
def held_out_accuracy(trainer):
    model, sides = trainer.model.eval(), ([], [])
    for batch in trainer.get_eval_dataloader():
        scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
        for side, part in zip(sides, scores.chunk(2), strict=True):
            side.append(part)
    return pair_accuracy(*map(torch.cat, sides))


def main(args):
    torch.set_num_threads(args.threads)
    out, tokenizer = Path(args.output_dir), sandbox.sandbox_tokenizer()
    common = {
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no",
        "seed": args.seed, "warmup_steps": 20, "lr_scheduler_type": "cosine", "logging_steps": 50,
    }  # fmt: skip
    train, test = sandbox.sample_pairs(args.pairs, args.seed), sandbox.sample_pairs(args.test_pairs, TEST_SEED)
    gold = [torch.tensor(sandbox.gold_judge(test["prompt"], test[side])) for side in ("chosen", "rejected")]
    counts, none = bag_of_words(test), torch.zeros(len(test))
    accuracy = {
        "gold reward": pair_accuracy(*gold),
        "longer wins": pair_accuracy(counts.sum(1), none),
        "bag of words": pair_accuracy(counts @ logistic_regression(bag_of_words(train)), none),
    }

    config = SFTConfig(
        str(out / "sft"), per_device_train_batch_size=16, learning_rate=3e-3, num_train_epochs=1, **common
    )
    demonstrations = sandbox.sample_demonstrations(args.demonstrations, args.seed)
    sft = SFTTrainer(sandbox.sandbox_decoder(), config, train_dataset=demonstrations, processing_class=tokenizer)
    sft.train()
    sft.save_model()
    prompts = sandbox.sample_prompts(args.prompts, TEST_SEED)["prompt"]
    policy = torch.tensor([place(prompt, sample(sft.model.eval(), tokenizer, prompt, 64)) for prompt in prompts])
    polite = [" ".join(request.courtesy * 5).split() for request in map(parse_prompt, prompts)]
    hacks = [" ".join(words[: parse_prompt(p).aim]) + "." for p, words in zip(prompts, polite, strict=True)]
    token = [sandbox.gold_reward(p, hack).token for p, hack in zip(prompts, hacks, strict=True)]
    written = torch.tensor([place(d["prompt"], d["completion"][:1])[0] for d in demonstrations])
    means = {
        "demonstrations": written,
        "policy": policy.mean(1),
        "policy, best of 64": policy.max(1).values,
        "courtesy alone": torch.tensor([place(p, [hack])[0] for p, hack in zip(prompts, hacks, strict=True)]),
        "its token part": torch.tensor(token),
    }

    sandbox.sandbox_decoder().save_pretrained(out / "random")
    for start in ("sft", "random"):
        config = RewardConfig(
            str(out / f"reward-{start}"), per_device_train_batch_size=32, per_device_eval_batch_size=128,
            learning_rate=args.learning_rate, num_train_epochs=args.epochs, **common,
        )  # fmt: skip
        model = AutoModelForSequenceClassification.from_pretrained(out / start, num_labels=1)
        trainer = RewardTrainer(model, config, train_dataset=train, eval_dataset=test, processing_class=tokenizer)
        trainer.train()
        accuracy[f"plain training from {start}"] = held_out_accuracy(trainer)
