"""The closed loop by stages: the policy answers, a judge labels, the reward model and the policy move on."""

from pathlib import Path
from statistics import mean
from typing import TypeVar

from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from datasets import Dataset, concatenate_datasets
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from ..data.messages import Messages, text_of
from ..policy.config import ReinforceConfig
from ..policy.sampling import sample_responses
from ..policy.trainer import ReinforceTrainer
from ..reward.config import MultiScaleRewardConfig
from ..reward.scorer import RewardFunction
from ..reward.trainer import MultiScaleRewardTrainer
from ..training.command_line import RecipeParser
from ..training.manifests import last_complete_checkpoint
from ..training.run_record import write_json
from .labels import Judge, label_pairs

logger = get_logger(__name__)

Config = TypeVar("Config", MultiScaleRewardConfig, ReinforceConfig)


def label_stage(
    folder: Path,
    policy: str,
    prompts: list[str] | list[Messages],
    judge: Judge,
    seed: int,
    max_new_tokens: int,
) -> None:
    """
    Let the policy answer every prompt twice and a judge label the pairs, which `folder` then holds with a `strength`.

    The prompts are divided among the processes, each of which holds a whole policy. The judge has the signature of a
    TRL reward function; the seed is that of the answers and of the labels.
    """
    state = PartialState()
    model = AutoModelForCausalLM.from_pretrained(policy).to(state.device)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    with state.split_between_processes([prompt for prompt in prompts for _ in range(2)]) as share:
        own_seed = seed + 1000 * state.process_index
        texts = sample_responses(model, tokenizer, share, max_new_tokens=max_new_tokens, seed=own_seed)
    answers: list[str | Messages] = gather_object(texts)
    if not state.is_main_process:
        return
    if not isinstance(prompts[0], str):
        answers = [[{"role": "assistant", "content": text_of(answer)}] for answer in answers]
    labelled = label_pairs(prompts, answers[::2], answers[1::2], judge, seed)
    logger.warning(f"{folder}: {len(labelled.pairs)} pairs; {labelled.skipped} prompts gave no two different answers.")
    labelled.pairs.save_to_disk(folder)


def mix_with_earlier(pairs: Dataset, earlier: list[Dataset], seed: int) -> Dataset:
    """
    The new pairs and as many earlier ones, so that the reward model does not forget what it has seen.

    `earlier` holds the pairs of every round before, and first those that the reward model began with. Where they have
    no `strength`, they get the mean of the new ones'.
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
    """Train a reward model on from `model`, with the options of a YAML file, and save it into `folder`."""
    config = _stage_config(MultiScaleRewardConfig, folder, config_file)
    _train_and_save(MultiScaleRewardTrainer(model=model, args=config, train_dataset=train), folder)


def train_policy_stage(
    folder: Path, policy: str, reward: str, config_file: str, prompts: Dataset, judge: Judge
) -> None:
    """
    Tune a policy on from `policy`, the reference of the divergence, and save it into `folder` with its log.

    The judge's score is logged with weight 0: the policy is not trained on it.
    """
    config = _stage_config(ReinforceConfig, folder, config_file, "--reward_weights", "1", "0")
    trainer = ReinforceTrainer(
        model=policy, reward_funcs=[RewardFunction(reward), judge], args=config, train_dataset=prompts
    )
    _train_and_save(trainer, folder)
    if trainer.accelerator.is_main_process:
        write_json(folder / "log.json", trainer.state.log_history)


def _stage_config(config_class: type[Config], folder: Path, config_file: str, *options: str) -> Config:
    arguments = ["--config", config_file, "--output_dir", str(folder / "checkpoints"), *options]
    config: Config = RecipeParser(config_class).parse_args_and_config(arguments)[0]
    return config


def _train_and_save(trainer: Trainer, folder: Path) -> None:
    """Train, from the stage's own last checkpoint if it has one."""
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder / "checkpoints"))
    trainer.save_model(str(folder))
    unset_hf_deepspeed_config()  # or under ZeRO-3 what other stages load would be in pieces, without a trainer
