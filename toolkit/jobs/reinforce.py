"""Tune a policy by REINFORCE on a multi-scale reward model and on any other reward functions."""

import shlex
from dataclasses import dataclass, field
from typing import Any

from trl import ModelConfig, get_peft_config, get_quantization_config

from ..arguments import (
    RunArguments,
    checkpoint_to_resume,
    divided_prompts,
    import_callable,
    named_model,
    training_prompts,
    with_model_arguments,
)
from ..policy.before_after import BeforeAndAfter
from ..policy.config import ReinforceConfig
from ..policy.trainer import ReinforceTrainer
from ..reward.scorer import RewardFunction
from ..reward.shared_base import SharedBaseRewardFunction
from ..training.command_line import run_recipe
from ..training.options import check_counts, help_from_docstring
from ..training.run_folder import claim_folder, delete_earlier_run
from ..training.run_record import CompletionExamples, save_run
from ..training.signals import SaveOnSignal
from .defaults import reinforce_defaults


@help_from_docstring
@dataclass
class ReinforceArguments(RunArguments):
    """
    Arguments of REINFORCE, beside the data's.

    Args:
        reward_model (`str`, *optional*):
            Folder or hub name of a multi-scale reward model or adapter.
        reward_funcs (`list[str]`, *optional*):
            Further reward functions after it: dotted import paths such as `toolkit.sandbox.gold_judge`. With
            `reward_weights 1 0` the second one is logged and not trained on.
        reward_batch_size (`int`, *optional*, defaults to `16`):
            Rows of a forward pass of the reward model.
        reward_dtype (`str`, *optional*):
            Type of the reward model's weights, where the default of `RewardFunction` is not wanted.
        reward_on_policy_base (`bool`, *optional*, defaults to `False`):
            Whether the reward model is put on the policy's base, which saves a copy of the weights: for an adapter
            trained on that base, and a policy trained with `use_peft`. The weights then have the policy's type.
    """

    reward_model: str | None = None
    reward_funcs: list[str] = field(default_factory=list)
    reward_batch_size: int = 16
    reward_dtype: str | None = None
    reward_on_policy_base: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "reward_batch_size")


CLASSES = (ReinforceArguments, ReinforceConfig, ModelConfig)


def main(script_args: ReinforceArguments, training_args: ReinforceConfig, model_args: ModelConfig) -> None:
    """Tune and save a policy, and say what to look at next."""
    folder = str(training_args.output_dir)
    claim_folder(folder, training_args.resume_from_checkpoint, script_args.overwrite_output_dir)
    batch_size = script_args.reward_batch_size
    reward_funcs = [import_callable(path) for path in script_args.reward_funcs]
    if script_args.reward_model and script_args.reward_on_policy_base:
        reward_funcs.insert(0, SharedBaseRewardFunction(script_args.reward_model, batch_size=batch_size))
    elif script_args.reward_model:
        reward = RewardFunction(
            script_args.reward_model,
            batch_size=batch_size,
            model_init_kwargs={"dtype": script_args.reward_dtype} if script_args.reward_dtype else None,
        )
        reward_funcs.insert(0, reward)
    prompts, test = training_prompts(script_args, training_args.seed), None
    if training_args.eval_strategy != "no":
        prompts, test = divided_prompts(script_args, training_args.seed)
    trainer: Any = ReinforceTrainer(
        model=named_model(model_args),
        reward_funcs=reward_funcs,
        args=with_model_arguments(training_args, model_args),
        train_dataset=prompts,
        eval_dataset=test,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.add_callback(CompletionExamples(trainer))
    trainer.add_callback(BeforeAndAfter(trainer))
    trainer.add_callback(SaveOnSignal(trainer))
    delete_earlier_run(folder, script_args.overwrite_output_dir)
    save_run(trainer, script_args, training_args, model_args)
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(training_args))
    trainer.save_model()
    trainer.save_metrics(
        "train", {**trainer.state.log_history[-1], "num_processes": trainer.accelerator.num_processes}
    )
    trainer.save_state()
    if trainer.accelerator.is_main_process:
        word = shlex.quote(folder)
        print(f"The policy is in '{folder}'. `prefscale report {word}` writes a page about its training.")
    trainer.end()


def run() -> None:
    """Run the job with the options of the command line."""
    run_recipe(main, *CLASSES, defaults=reinforce_defaults)


if __name__ == "__main__":
    run()
