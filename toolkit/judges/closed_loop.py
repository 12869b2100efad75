"""The closed loop by stages: the policy answers, a judge labels, the reward model and the policy move on."""

import json
from pathlib import Path
from statistics import mean

from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from datasets import Dataset, concatenate_datasets
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations import unset_hf_deepspeed_config
from trl import TrlParser

from ..data.messages import Messages
from ..policy.config import ReinforceConfig
from ..policy.sampling import sample_responses
from ..policy.trainer import ReinforceTrainer
from ..reward.config import MultiScaleRewardConfig
from ..reward.scorer import RewardFunction
from ..reward.trainer import MultiScaleRewardTrainer
from ..training.checkpoints import last_complete_checkpoint
from .labels import Judge, label_pairs

logger = get_logger(__name__)


def label_stage(
    folder: Path,
    policy: str,
    prompts: list[str] | list[Messages],
    judge: Judge,
    seed: int,
    max_new_tokens: int,
) -> None:
    """
    Let the policy answer every prompt twice, let a judge label the pairs, and save them into `folder`. The prompts are
    divided among the processes, each of which holds a whole policy.

    Args:
        folder (`Path`):
            Where the pairs go, as a data set with a `strength`.
        policy (`str`):
            Folder or hub name of the policy.
        prompts (`list[str]` or `list[list[dict[str, str]]]`):
            Prompts.
        judge (`Callable`):
            Scores answers, with the signature of a TRL reward function.
        seed (`int`):
            Seed of the answers and of the labels.
        max_new_tokens (`int`):
            Most tokens of an answer.
    """
    state = PartialState()
    model = AutoModelForCausalLM.from_pretrained(policy).to(state.device)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    with state.split_between_processes([prompt for prompt in prompts for _ in range(2)]) as share:
        own_seed = seed + 1000 * state.process_index
        answers = sample_responses(model, tokenizer, share, max_new_tokens=max_new_tokens, seed=own_seed)
    answers = gather_object(answers)
    if not state.is_main_process:
        return
    if not isinstance(prompts[0], str):
        answers = [[{"role": "assistant", "content": answer}] for answer in answers]
    labelled = label_pairs(prompts, answers[::2], answers[1::2], judge, seed)
    logger.warning(f"{folder}: {len(labelled.pairs)} pairs; {labelled.skipped} prompts gave no two different answers.")
    labelled.pairs.save_to_disk(folder)


def mix_with_earlier(pairs: Dataset, earlier: list[Dataset], seed: int) -> Dataset:
    """
    The new pairs and as many earlier ones, so that the reward model does not forget what it has seen. Earlier ones
    without `strength` get the mean of the new ones'.

    Args:
        pairs ([`~datasets.Dataset`]):
            Pairs of this round.
        earlier (`list[datasets.Dataset]`):
            Pairs of all rounds before, the first of them those that the reward model began with.
        seed (`int`):
            Seed of the choice.

    Returns:
        `datasets.Dataset`
    """
    columns = ["prompt", "chosen", "rejected", "strength"]
    even = mean(pairs["strength"])
    known = (
        part if "strength" in part.column_names else part.add_column("strength", [even] * len(part))
        for part in earlier
    )
    features = pairs.select_columns(columns).features
    old = concatenate_datasets([part.select_columns(columns).cast(features) for part in known])
    old = old.shuffle(seed=seed).select(range(min(len(pairs), len(old))))
    return concatenate_datasets([pairs.select_columns(columns), old])


def train_reward_stage(folder: Path, model: str, config_file: str, train: Dataset) -> None:
    """
    Train a reward model on from `model` and save it into `folder`, from the stage's own last checkpoint if it has one.

    Args:
        folder (`Path`):
            Where the model goes.
        model (`str`):
            Folder or hub name to begin from.
        config_file (`str`):
            YAML file with the fields of [`MultiScaleRewardConfig`].
        train ([`~datasets.Dataset`]):
            Pairs.
    """
    output_dir = str(folder / "checkpoints")
    arguments = ["--config", config_file, "--output_dir", output_dir]
    (config,) = TrlParser(MultiScaleRewardConfig).parse_args_and_config(arguments)
    trainer = MultiScaleRewardTrainer(model=model, args=config, train_dataset=train)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(output_dir))
    trainer.save_model(str(folder))
    unset_hf_deepspeed_config()  # or under ZeRO-3 what other stages load would be in pieces, without a trainer


def train_policy_stage(
    folder: Path, policy: str, reward: str, config_file: str, prompts: Dataset, judge: Judge
) -> None:
    """
    Tune a policy on from `policy` and save it into `folder` with its log, from the stage's own last checkpoint if it
    has one. The judge's score is logged with weight 0: the policy is not trained on it.

    Args:
        folder (`Path`):
            Where the policy goes.
        policy (`str`):
            Folder or hub name to begin from; also the reference of the divergence.
        reward (`str`):
            Folder of the reward model.
        config_file (`str`):
            YAML file with the fields of [`ReinforceConfig`].
        prompts ([`~datasets.Dataset`]):
            Prompts.
        judge (`Callable`):
            Scores answers for the log.
    """
    output_dir = str(folder / "checkpoints")
    arguments = ["--config", config_file, "--output_dir", output_dir, "--reward_weights", "1", "0"]
    (config,) = TrlParser(ReinforceConfig).parse_args_and_config(arguments)
    trainer = ReinforceTrainer(
        model=policy, reward_funcs=[RewardFunction(reward), judge], args=config, train_dataset=prompts
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(output_dir))
    trainer.save_model(str(folder))
    if trainer.accelerator.is_main_process:
        (folder / "log.json").write_text(json.dumps(trainer.state.log_history))
    unset_hf_deepspeed_config()
