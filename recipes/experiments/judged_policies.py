"""REINFORCE in the sandbox on judges that think and on scalar reward models, and what the gold reward says of it.

Every policy begins as one decoder that was fine-tuned on demonstrations. A file a reward and seed holds the gold
reward of held-out prompts before and after; what is there is not run again:

    python recipes/experiments/judged_policies.py --rewards runs/thoughts/dwrl-0 runs/thoughts/multi-scale-0
"""

import argparse
import json
import time
from pathlib import Path

from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from toolkit import ReinforceConfig, ReinforceTrainer, RewardFunction, ThoughtReward, compare_policies, sandbox
from toolkit.arguments import make_once
from toolkit.generative.turns import is_judge

SHARED = {"use_cpu": True, "bf16": False, "activation_checkpointing": False, "report_to": "none", "disable_tqdm": True}
SHARED |= {"save_strategy": "no", "warmup_steps": 10, "logging_steps": 10}


def learn_to_answer(folder: Path, args, seed: int) -> None:
    config = SFTConfig(
        str(folder), max_steps=args.sft_steps, per_device_train_batch_size=32, learning_rate=2e-3, seed=seed, **SHARED
    )
    rows = sandbox.sample_demonstrations(10 * args.sft_steps, seed, args.tasks)
    decoder, tokenizer = sandbox.sandbox_decoder(layers=args.layers, seed=seed), sandbox.sandbox_tokenizer()
    trainer = SFTTrainer(decoder, config, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()


def run(args, source: str, seed: int) -> None:
    folder = Path(args.output_dir, f"{Path(source).name}-policy-{seed}")
    if (cell := folder.with_suffix(".json")).exists():
        return
    start = make_once(Path(args.output_dir, f"demonstrations-{seed}"), learn_to_answer, args, seed)
    began = time.process_time()
    reward = ThoughtReward(source) if is_judge(source) else RewardFunction(source, batch_size=64)
    config = ReinforceConfig(
        str(folder), max_steps=args.steps, per_device_train_batch_size=32, num_generations=4, baseline="leave_one_out",
        normalize_rewards=True, beta=0.05, max_completion_length=48, learning_rate=2e-4, seed=seed, **SHARED,
    )  # fmt: skip
    prompts = sandbox.sample_prompts(8 * args.steps, seed, args.tasks)
    trainer = ReinforceTrainer(start, reward, config, train_dataset=prompts)
    trainer.train()
    trainer.save_model()
    held_out = list(sandbox.sample_prompts(args.test_size, sandbox.HELD_OUT_SEED, args.tasks)["prompt"])
    before = AutoModelForCausalLM.from_pretrained(start)
    found = compare_policies(
        before, trainer.model, trainer.processing_class, held_out, sandbox.gold_judge, max_new_tokens=48, seed=seed
    )
    log = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    seconds = time.process_time() - began
    cell.write_text(json.dumps({**found._asdict(), "reward": log, "cpu_seconds": seconds, "options": vars(args)}))
    print(source, seed, found.before, found.after, found.gain, f"{seconds:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = {"sft_steps": 450, "layers": 2, "steps": 60, "test_size": 400, "output_dir": "runs/thoughts/policies"}
    for option, value in options.items():
        parser.add_argument(f"--{option}", type=type(value), default=value)
    parser.add_argument("--rewards", nargs="+", required=True, help="folders of judges and of reward models")
    parser.add_argument("--tasks", nargs="+", default=["question_answering"], choices=sandbox.TASKS)
    parser.add_argument("--seed", type=int, default=0)
    for name in (given := parser.parse_args()).rewards:
        run(given, name, given.seed)
