"""The closed loop: in every round the policy answers, a judge labels pairs of its answers, the reward model trains on
with them, and REINFORCE goes on with the reward model. A run that was killed goes on where it stopped.

    accelerate launch recipes/train_jointly.py --config recipes/configs/sandbox_joint.yaml

`prefscale joint` is the same without a clone.
"""

from toolkit.jobs.joint import run

if __name__ == "__main__":
    run()
