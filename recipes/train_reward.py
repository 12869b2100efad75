"""Train a multi-scale reward model on preference pairs, and evaluate it on held-out ones.

    accelerate launch recipes/train_reward.py --config recipes/configs/sandbox_reward.yaml

`prefscale reward` is the same without a clone.
"""

from toolkit.jobs.reward import run

if __name__ == "__main__":
    run()
