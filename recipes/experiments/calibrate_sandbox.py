"""How hard the sandbox is; docs/sandbox.md says what the figures are for.

python recipes/experiments/calibrate_sandbox.py --output_dir runs/calibration
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from toolkit import sandbox
from toolkit.pages.tables import print_accuracy, print_table
from toolkit.policy.sampling import sample_responses
from toolkit.sandbox.rows import vocabulary
from toolkit.sandbox.world import parse_prompt, words_of
from toolkit.stats.metrics import logistic_regression, mean_interval, pair_accuracy

TEST_SEED, SIDES = 10_000, ("chosen", "rejected")


def bag_of_words(pairs):
    """Word counts of the chosen less those of the rejected response, (P, V)."""
    sides, words = ([words_of(row[0]["content"]) for row in pairs[side]] for side in SIDES), vocabulary()
    return torch.tensor([[c.count(w) - r.count(w) for w in words] for c, r in zip(*sides, strict=True)]).double()


def place(prompts, answers):
    """Gold rewards (N,) from 0, the worst that the sandbox writes for a prompt, to 1, the best."""
    low, high = torch.tensor([sandbox.gold_range(prompt) for prompt in prompts]).T
    return (torch.tensor(sandbox.gold_judge(prompts, answers)) - low) / (high - low)


@torch.no_grad()
def scores(model, tokenizer, prompts, answers):
    """Scores (N,) of answers, each read where the template ends, as in training."""
    rows = [[*prompt, {"role": "assistant", "content": a}] for prompt, a in zip(prompts, answers, strict=True)]
    texts = tokenizer.apply_chat_template(rows, tokenize=False)
    batches = [texts[i : i + 256] for i in range(0, len(texts), 256)]
    inputs = (tokenizer(batch, return_tensors="pt", padding=True, padding_side="right") for batch in batches)
    return torch.cat([model.eval()(**batch).logits[:, 0] for batch in inputs])


def main(args):
    torch.set_num_threads(1)
    out, tokenizer = Path(args.output_dir), sandbox.sandbox_tokenizer()
    common = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "seed": args.seed}
    common |= {"save_strategy": "no", "warmup_steps": 20, "lr_scheduler_type": "cosine", "num_train_epochs": 2}
    train, test = sandbox.sample_pairs(args.pairs, args.seed), sandbox.sample_pairs(4000, TEST_SEED)
    sides = [[row[0]["content"] for row in test[side]] for side in SIDES]
    counts, none = bag_of_words(test), torch.zeros(len(test)).double()
    accuracy = {
        "gold reward": pair_accuracy(*(torch.tensor(sandbox.gold_judge(test["prompt"], side)) for side in sides)),
        "longer wins": pair_accuracy(counts.sum(1), none),
        "bag of words": pair_accuracy(counts @ logistic_regression(bag_of_words(train), 1e-3), none),
    }
    config = SFTConfig(str(out / "sft"), per_device_train_batch_size=16, learning_rate=3e-3, max_steps=500, **common)
    demonstrations = sandbox.sample_demonstrations(8000, args.seed)
    sft = SFTTrainer(sandbox.sandbox_decoder(), config, train_dataset=demonstrations, processing_class=tokenizer)
    sft.train()
    sft.save_model()
    prompts = list(sandbox.sample_prompts(100, TEST_SEED)["prompt"])
    repeated = [prompt for prompt in prompts for _ in range(64)]
    written = sample_responses(sft.model, tokenizer, repeated, max_new_tokens=48, seed=args.seed)
    policy = place(repeated, written).view(-1, 64)
    figures = {"policy": policy.mean(1), "policy, best of 64": policy.max(1).values}
    figures["demonstrations"] = place(list(demonstrations["prompt"]), demonstrations["completion"])
    config = RewardConfig(str(out / "reward"), per_device_train_batch_size=32, learning_rate=5e-4, **common)
    model = AutoModelForSequenceClassification.from_pretrained(out / "sft", num_labels=1)
    RewardTrainer(model, config, train_dataset=train, processing_class=tokenizer).train()
    accuracy["plain training"] = pair_accuracy(*(scores(model, tokenizer, test["prompt"], side) for side in sides))
    # The hack: twelve courtesies in place of the policy's response, or after it
    courtesy = [" ".join(parse_prompt(prompt).courtesy * 2) + "." for prompt in prompts]
    both = [" ".join(texts) for texts in zip(written[::64], courtesy, strict=True)]
    for name, texts in (("policy's first", written[::64]), ("that and courtesy", both), ("courtesy alone", courtesy)):
        figures[name], figures[f"score of {name}"] = place(prompts, texts), scores(model, tokenizer, prompts, texts)
    print_accuracy(accuracy, "Held-out pairs ranked right")
    figures = {name: mean_interval(values) for name, values in figures.items()}
    rows = [(name, f"{m.value:.3f}", f"{m.low:.3f} to {m.high:.3f}") for name, m in figures.items()]
    print_table("Gold reward (0 worst, 1 best) and scores of plain training", ("of", "mean", "95% interval"), rows)
    record = vars(args) | {name: value._asdict() for name, value in (accuracy | figures).items()}
    (out / "calibration.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in {"output_dir": "runs/calibration", "pairs": 10_000, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    main(parser.parse_args())
