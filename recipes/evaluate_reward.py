"""Models side by side on held-out pairs: accuracy with intervals, calibration, what length explains, a page.

    accelerate launch recipes/evaluate_reward.py runs/reward --dataset_name pairs.jsonl --page runs/evaluation

`prefscale evaluate` is the same without a clone.
"""

from toolkit.evaluation.command import run

if __name__ == "__main__":
    run()
