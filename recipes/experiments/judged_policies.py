"""REINFORCE in the sandbox on judges that think and on scalar reward models, and what the gold reward says of it.

Every policy begins as the decoder of `make demo`. A file a reward holds the gold reward of held-out prompts before and
after; what is there is not run again:

    python recipes/experiments/judged_policies.py --rewards runs/thoughts/dwrl-0 runs/thoughts/multi-scale-0
"""

import argparse
import json
import time
from pathlib import Path

from transformers import AutoModelForCausalLM

from toolkit import ReinforceConfig, ReinforceTrainer, RewardFunction, ThoughtReward, compare_policies, sandbox
from toolkit.experiments.thoughts import print_policies
from toolkit.generative.turns import is_judge


def run(args, source: str) -> None:
    folder, began = Path(args.output_dir, f"{Path(source).name}-{args.seed}"), time.process_time()
    if (cell := Path(f"{folder}.json")).exists():
        return
    config = ReinforceConfig(
        str(folder), max_steps=args.steps, per_device_train_batch_size=32, num_generations=4, baseline="leave_one_out",
        normalize_rewards=True, beta=0.05, max_completion_length=48, learning_rate=2e-4, seed=args.seed, use_cpu=True,
        bf16=False, activation_checkpointing=False, report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    reward = ThoughtReward(source) if is_judge(source) else RewardFunction(source, batch_size=64)
    prompts = sandbox.sample_prompts(8 * args.steps, args.seed, args.tasks)
    trainer = ReinforceTrainer(args.model, reward, config, train_dataset=prompts)
    trainer.train()
    trainer.save_model()
    held_out = list(sandbox.sample_prompts(args.test_size, sandbox.HELD_OUT_SEED, args.tasks)["prompt"])
    policies = AutoModelForCausalLM.from_pretrained(args.model), trainer.model
    found = compare_policies(
        *policies, trainer.processing_class, held_out, sandbox.gold_judge, max_new_tokens=48, seed=args.seed
    )._asdict()
    found |= {"options": vars(args), "log": trainer.state.log_history, "cpu_seconds": time.process_time() - began}
    cell.write_text(json.dumps(found) + "\n")
    print(source, *(f"{name} {found[name]}" for name in ("before", "after", "gain", "cpu_seconds")), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = {"model": "runs/demo/start", "steps": 60, "test_size": 400, "seed": 0}
    options |= {"output_dir": "runs/thoughts/policies"}
    for option, value in options.items():
        parser.add_argument(f"--{option}", type=type(value), default=value)
    rewards = ["runs/thoughts/dwrl-0", "runs/thoughts/multi-scale-0"]
    parser.add_argument("--rewards", nargs="+", default=rewards, help="folders of judges and of reward models")
    parser.add_argument("--tasks", nargs="+", default=["question_answering"])
    for name in (given := parser.parse_args()).rewards:
        run(given, name)
    print_policies(given.output_dir)
