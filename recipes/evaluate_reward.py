"""Models side by side on held-out pairs: accuracy with intervals, calibration, what length explains, a page.

accelerate launch recipes/evaluate_reward.py --models runs/reward --dataset_name pairs.jsonl --page runs/evaluation
"""

from toolkit.evaluation.command import EvaluationArguments, main
from toolkit.training.command_line import run_recipe

if __name__ == "__main__":
    run_recipe(main, EvaluationArguments)
