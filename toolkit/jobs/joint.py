"""The closed loop: in every round the policy answers, a judge labels pairs of its answers, the reward model trains on
with them, and REINFORCE goes on with the reward model. A run that was killed goes on where it stopped."""

from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from datasets import load_from_disk

from ..arguments import (
    DataArguments,
    held_out_prompts,
    import_callable,
    make_once,
    training_pairs,
    training_prompts,
)
from ..judges.closed_loop import label_stage, mix_with_earlier, train_policy_stage, train_reward_stage
from ..pages.tables import print_accuracy
from ..policy.config import ReinforceConfig
from ..reward.config import MultiScaleRewardConfig
from ..reward.evaluation import evaluate_pairs
from ..reward.scorer import RewardFunction
from ..stats.metrics import pair_accuracy
from ..training.command_line import RecipeParser, check_path, run_recipe
from ..training.options import check_counts, help_from_docstring
from ..training.run_folder import claim_folder
from ..training.run_record import write_json


@help_from_docstring
@dataclass
class JointArguments(DataArguments):
    """
    Arguments of the closed loop. The data are the pairs that the reward model began with.

    Args:
        policy (`str`):
            Policy to begin with.
        reward_model (`str`):
            Reward model to begin with, trained once; the later ones are compared with it.
        reward_config (`str`):
            YAML file of the reward trainer.
        reinforce_config (`str`):
            YAML file of the REINFORCE trainer.
        judge (`str`):
            Dotted path of a callable that scores answers, with TRL's signature of a reward function.
        rounds (`int`, *optional*, defaults to `3`):
            Number of rounds.
        pairs_per_round (`int`, *optional*, defaults to `1500`):
            Prompts that are answered twice in a round.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Most tokens of an answer.
        output_dir (`str`, *optional*, defaults to `"runs/joint"`):
            Folder of the run; it holds one folder a round.
        seed (`int`, *optional*, defaults to `0`):
            Seed.
    """

    policy: str = ""
    reward_model: str = ""
    reward_config: str = ""
    reinforce_config: str = ""
    judge: str = ""
    rounds: int = 3
    pairs_per_round: int = 1500
    max_new_tokens: int = 256
    output_dir: str = "runs/joint"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "rounds", "pairs_per_round", "max_new_tokens")


def main(args: JointArguments) -> None:
    """Run the rounds that have not ended, and print what each brought."""
    needed = ("policy", "reward_model", "reward_config", "reinforce_config", "judge")
    if missing := [name for name in needed if not getattr(args, name)]:
        raise ValueError(f"{missing} are not set. Give each, as `sandbox_joint.yaml` does.")
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


def run() -> None:
    """Run the job with the options of the command line."""
    run_recipe(main, JointArguments)


if __name__ == "__main__":
    run()
