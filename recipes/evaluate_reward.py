"""Accuracy of a reward model on held-out pairs or lists: each scale and their mix, with intervals.

accelerate launch recipes/evaluate_reward.py --reward_model runs/reward --dataset_name pairs.jsonl
"""

from dataclasses import dataclass
from pathlib import Path

from toolkit import RewardFunction
from toolkit.arguments import DataArguments, held_out_pairs
from toolkit.data.files import check_json_name
from toolkit.pages.tables import accuracies_of, print_accuracy
from toolkit.reward.evaluation import evaluate_lists, evaluate_pairs
from toolkit.stats.rankings import summarize
from toolkit.training.command_line import run_recipe
from toolkit.training.options import check_counts, check_number, help_from_docstring
from toolkit.training.run_record import read_json, write_json


@help_from_docstring
@dataclass
class EvaluationArguments(DataArguments):
    """
    Arguments of this recipe, beside the data's.

    Args:
        reward_model (`str`, *optional*):
            Folder or hub name of a multi-scale reward model or adapter.
        output_file (`str`, *optional*):
            JSON file for the figures.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows of a forward pass.
        max_length (`int`, *optional*):
            Most tokens of a row; the model's context length by default.
    """

    reward_model: str = "runs/reward"
    output_file: str | None = None
    batch_size: int = 16
    max_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "batch_size")
        check_number("max_length", self.max_length, 2, whole=True)


def main(args: EvaluationArguments) -> None:
    if args.output_file:
        check_json_name(args.output_file)
        file = Path(args.output_file)
        if file.exists() and "length_correlation" not in read_json(file, dict, "Give another `output_file`."):
            raise ValueError(f"'{file}' exists and holds no figures of an evaluation. Give another `output_file`.")
    args.eval_dataset_name = args.eval_dataset_name or args.dataset_name  # a file is all held out
    rows = held_out_pairs(args, 0, whole_lists=True)
    reward = RewardFunction(args.reward_model, batch_size=args.batch_size, max_length=args.max_length)
    evaluate = evaluate_pairs if "chosen" in rows.column_names else evaluate_lists
    metrics = summarize(evaluate(reward, rows), reward.settings.scales)

    accuracies = accuracies_of(metrics, reward.settings.scales, prefix="")
    print_accuracy(accuracies)
    if args.output_file:
        figures = {name: accuracy._asdict() for name, accuracy in accuracies.items()}
        of_all = ("length_correlation", "lists", "kendall_tau", "top_1")
        figures |= {name: metrics[name] for name in of_all if name in metrics}
        write_json(Path(args.output_file), figures)


if __name__ == "__main__":
    run_recipe(main, EvaluationArguments)
