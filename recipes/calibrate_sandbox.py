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
def scores(model, tokenizer, prompts, texts):
    """Scores (N,) of responses, each read where the template ends, as in training."""
    rows = [[*prompt, {"role": "assistant", "content": text}] for prompt, text in zip(prompts, texts, strict=True)]
    options = {"return_tensors": "pt", "return_dict": True, "padding": True, "padding_side": "right"}
    batches = [tokenizer.apply_chat_template(rows[i : i + 256], **options) for i in range(0, len(rows), 256)]
    return torch.cat([model(**batch).logits[:, 0] for batch in batches])


def main(args):
    torch.set_num_threads(1)
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

    config = SFTConfig(str(out / "sft"), per_device_train_batch_size=16, learning_rate=3e-3, max_steps=500, **common)
    demonstrations = sandbox.sample_demonstrations(8000, args.seed)
    sft = SFTTrainer(sandbox.sandbox_decoder(), config, train_dataset=demonstrations, processing_class=tokenizer)
    sft.train()
    sft.save_model()
    prompts = sandbox.sample_prompts(args.prompts, TEST_SEED)["prompt"]
    written = [sample(sft.model.eval(), tokenizer, prompt, 64) for prompt in prompts]
    policy = torch.tensor([place(prompt, texts) for prompt, texts in zip(prompts, written, strict=True)])
    answers = {"policy": [texts[0] for texts in written]}
    answers["courtesy alone"] = [" ".join(parse_prompt(prompt).courtesy * 2) + "." for prompt in prompts]
    answers["policy and courtesy"] = [" ".join(pair) for pair in zip(*answers.values(), strict=True)]
    figures = {
        "demonstrations": [place(row["prompt"], [row["completion"]])[0] for row in demonstrations],
        "policy": policy.mean(1),
        "policy, best of 64": policy.max(1).values,
    }
    for name in ("courtesy alone", "policy and courtesy"):
        figures[name] = [place(p, [text])[0] for p, text in zip(prompts, answers[name], strict=True)]

    sandbox.sandbox_decoder().save_pretrained(out / "random")
    for start in ("sft", "random"):
        config = RewardConfig(
            str(out / f"reward-{start}"), per_device_train_batch_size=32, num_train_epochs=args.epochs,
            learning_rate=1e-3, **common,
        )  # fmt: skip
        model = AutoModelForSequenceClassification.from_pretrained(out / start, num_labels=1)
        RewardTrainer(model, config, train_dataset=train, processing_class=tokenizer).train()
        sides = [[row[0]["content"] for row in test[side]] for side in ("chosen", "rejected")]
        ranked = [scores(model.eval(), tokenizer, test["prompt"], side) for side in sides]
        accuracy[f"plain training from {start}"] = pair_accuracy(*ranked)
        for name, texts in answers.items():
            figures[f"score from {start} of {name}"] = scores(model, tokenizer, prompts, texts)

    figures = {name: mean_interval(torch.as_tensor(values)) for name, values in figures.items()}
    print_accuracy(accuracy, "Held-out pairs ranked right")
    rows = [(name, f"{m.value:.3f}", f"{m.low:.3f} to {m.high:.3f}") for name, m in figures.items()]
    print_table("Gold reward (0 worst, 1 best) and scores of plain training", ("of", "mean", "95% interval"), rows)
    record = {"options": vars(args)} | {name: value._asdict() for name, value in (accuracy | figures).items()}
    (out / "calibration.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/calibration")
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--test_pairs", type=int, default=4_000)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
