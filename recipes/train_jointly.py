"""The closed loop: in every round the policy answers, a judge labels pairs of its answers, the reward model trains on
with them, and REINFORCE goes on with the reward model. A run that was killed goes on where it stopped.

    accelerate launch recipes/train_jointly.py --config recipes/configs/sandbox_joint.yaml
"""

from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from datasets import load_from_disk

from toolkit import MultiScaleRewardConfig, ReinforceConfig, RewardFunction
from toolkit.arguments import (
    DataArguments,
    held_out_prompts,
    import_callable,
    make_once,
    training_pairs,
    training_prompts,
)
from toolkit.judges.closed_loop import label_stage, mix_with_earlier, train_policy_stage, train_reward_stage
from toolkit.pages.tables import print_accuracy
from toolkit.reward.evaluation import evaluate_pairs
from toolkit.stats.metrics import pair_accuracy
from toolkit.training.command_line import RecipeParser, check_path, run_recipe
from toolkit.training.options import check_counts
from toolkit.training.run_folder import claim_folder
from toolkit.training.run_record import write_json


@dataclass
class JointArguments(DataArguments):
    """Arguments of this recipe. The data are the pairs that the reward model began with."""

    policy: str = field(default="runs/demo/start", metadata={"help": "Policy to begin with."})
    reward_model: str = field(
        default="runs/demo/reward",
        metadata={"help": "Reward model to begin with, trained once; the later ones are compared with it."},
    )
    reward_config: str = field(
        default="recipes/configs/sandbox_joint_reward.yaml", metadata={"help": "YAML file of the reward trainer."}
    )
    reinforce_config: str = field(
        default="recipes/configs/sandbox_joint_reinforce.yaml",
        metadata={"help": "YAML file of the REINFORCE trainer."},
    )
    judge: str = field(
        default="toolkit.sandbox.gold_judge",
        metadata={"help": "Dotted path of a callable that scores answers, with TRL's signature of a reward function."},
    )
    rounds: int = field(default=3, metadata={"help": "Number of rounds."})
    pairs_per_round: int = field(default=1500, metadata={"help": "Prompts that are answered twice in a round."})
    max_new_tokens: int = field(default=48, metadata={"help": "Most tokens of an answer."})
    output_dir: str = field(default="runs/joint", metadata={"help": "Folder of the run; it holds one folder a round."})
    seed: int = field(default=0, metadata={"help": "Seed."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "rounds", "pairs_per_round", "max_new_tokens")


def main(args: JointArguments) -> None:
    # Read here too, so that a wrong option stops the run at its start; it also tells accelerate of the processes.
    RecipeParser(MultiScaleRewardConfig).parse_args_and_config(["--config", args.reward_config])
    RecipeParser(ReinforceConfig).parse_args_and_config(["--config", args.reinforce_config])
    check_path(args.policy, "policy")
    check_path(args.reward_model, "reward model")
    claim_folder(args.output_dir, resume_from_checkpoint=True)
    judge = import_callable(args.judge)
    all_prompts, test_prompts = training_prompts(args, args.seed), held_out_prompts(args, args.seed)
    policy, reward, earlier = args.policy, args.reward_model, [training_pairs(args, args.seed)]

    for number in range(1, args.rounds + 1):
        folder, seed = Path(args.output_dir, f"round-{number}"), args.seed + number
        prompts = all_prompts.shuffle(seed=seed).select(range(min(args.pairs_per_round, len(all_prompts))))
        labelling = (judge, seed, args.max_new_tokens)
        pairs = load_from_disk(make_once(folder / "pairs", label_stage, policy, prompts["prompt"], *labelling))
        test = load_from_disk(make_once(folder / "held_out", label_stage, policy, test_prompts["prompt"], *labelling))

        train = mix_with_earlier(pairs, earlier, seed)
        new_reward = make_once(folder / "reward", train_reward_stage, reward, args.reward_config, train)
        models = {"trained once": args.reward_model, "before this round": reward, "after this round": new_reward}
        scores = {name: evaluate_pairs(RewardFunction(model, batch_size=64), test) for name, model in models.items()}
        accuracies = {name: pair_accuracy(found.chosen, found.rejected) for name, found in scores.items()}
        if PartialState().is_main_process:
            write_json(folder / "accuracy.json", {name: a._asdict() for name, a in accuracies.items()})
            print_accuracy(accuracies, f"Round {number}: accuracy on pairs of the current policy's answers")

        reinforce = (args.reinforce_config, prompts, judge)
        policy = make_once(folder / "policy", train_policy_stage, policy, new_reward, *reinforce)
        reward, earlier = new_reward, [*earlier, pairs]
    PartialState().destroy_process_group()


if __name__ == "__main__":
    run_recipe(main, JointArguments)
