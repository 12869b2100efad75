"""Our reward trainer beside TRL's, on the same model, pairs, steps and seeds, scored on the same held-out pairs.

    accelerate launch recipes/experiments/compare_reward.py --config recipes/configs/hh_reward.yaml --dataset_name … \\
        --eval_dataset_name … --seeds 0 1 2

What is finished is kept in `output_dir`, so a run that was stopped goes on where it was.
"""

import json
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers.trainer_utils import SaveStrategy
from trl import ModelConfig, RewardTrainer, TrlParser

from toolkit import MultiScaleRewardConfig, MultiScaleRewardTrainer
from toolkit.arguments import DataArguments, held_out_pairs, training_pairs
from toolkit.pages.tables import accuracies_of, print_accuracy, print_table
from toolkit.stats.intervals import PairAccuracy
from toolkit.stats.metrics import pair_accuracy


@dataclass
class ComparisonArguments(DataArguments):
    """Arguments of this recipe, beside the data's."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds; each trains two models."})


def replace_seed(config: MultiScaleRewardConfig, seed: int) -> MultiScaleRewardConfig:
    """A copy of the options with another seed, which writes no checkpoints."""
    config = copy(config)
    config.seed, config.save_strategy = seed, SaveStrategy.NO
    return config


def trl_accuracy(trainer: RewardTrainer) -> dict[str, float]:
    """Accuracy of TRL's model over all held-out pairs, as our trainer counts it."""
    model, scores = trainer.model.eval(), {"chosen": [], "rejected": []}
    with torch.no_grad():
        for batch in tqdm(trainer.get_eval_dataloader(), desc="Scoring"):
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
            for side, part in zip(scores, logits.chunk(2), strict=True):
                scores[side].append(part)
    accuracy = pair_accuracy(*(torch.cat(parts) for parts in scores.values()))
    return accuracy._asdict()


def main(script_args: ComparisonArguments, config: MultiScaleRewardConfig, model_args: ModelConfig) -> None:
    train, test = training_pairs(script_args, seed=0), held_out_pairs(script_args, seed=0)
    folder, rows = Path(config.output_dir), []
    folder.mkdir(parents=True, exist_ok=True)
    for seed in script_args.seeds:
        result_file = folder / f"seed-{seed}.json"
        if not result_file.exists():
            options, data = replace_seed(config, seed), {"train_dataset": train, "eval_dataset": test}
            ours = MultiScaleRewardTrainer(model_args.model_name_or_path, options, **data)
            ours.train()
            stock = RewardTrainer(model_args.model_name_or_path, options, **data)
            stock.train()
            steps = (ours.state.global_step, stock.state.global_step)
            result = {"ours": ours.evaluate(), "trl": trl_accuracy(stock), "steps": steps}
            result_file.write_text(json.dumps(result, indent=1))
        result = json.loads(result_file.read_text())
        accuracies = accuracies_of(result["ours"], config.scales)
        accuracies["TRL's RewardTrainer"] = PairAccuracy(**result["trl"])
        print_accuracy(accuracies, f"Seed {seed}, steps of ours and TRL's {result['steps']}")
        mix, trl = accuracies["mix"].value, result["trl"]["value"]
        rows.append((str(seed), f"{100 * mix:.1f}", f"{100 * trl:.1f}", f"{100 * (mix - trl):+.1f}"))
    print_table("Ours (mix) and TRL's RewardTrainer, accuracy %", ("seed", "ours", "TRL", "difference"), rows)


if __name__ == "__main__":
    main(*TrlParser((ComparisonArguments, MultiScaleRewardConfig, ModelConfig)).parse_args_and_config())
