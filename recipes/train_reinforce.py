"""Tune a policy by REINFORCE on a multi-scale reward model and on any other reward functions.

    accelerate launch recipes/train_reinforce.py --config recipes/configs/sandbox_reinforce.yaml

`prefscale reinforce` is the same without a clone.
"""

from toolkit.jobs.reinforce import run

if __name__ == "__main__":
    run()
