"""Train a judge that thinks before it says how good a response is, from preference pairs; docs/judge.md.

    accelerate launch recipes/train_judge.py --config recipes/configs/sandbox_judge.yaml

Where the model does not think well enough yet, it first learns from conversations with a judge (`cold_start`).
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer
from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config, get_quantization_config

from toolkit import ThoughtConfig, ThoughtTrainer
from toolkit.arguments import (
    SANDBOX,
    RunArguments,
    checkpoint_to_resume,
    divided_pairs,
    make_once,
    named_model,
    training_pairs,
    with_model_arguments,
)
from toolkit.data.loading import load_table
from toolkit.jobs.defaults import reinforce_defaults
from toolkit.sandbox.thoughts import sample_thoughts
from toolkit.training.command_line import run_recipe
from toolkit.training.options import check_counts, help_from_docstring
from toolkit.training.run_folder import claim_folder, delete_earlier_run
from toolkit.training.run_record import CompletionExamples, save_run
from toolkit.training.signals import SaveOnSignal


@help_from_docstring
@dataclass
class JudgeArguments(RunArguments):
    """
    Arguments of this recipe, beside the data's.

    Args:
        cold_start (`str`, *optional*):
            Conversations to learn from first, in a column `messages`: what the judge is asked, a thought, the question
            and an answer, as `judge_template` and `question` write them. A hub name, a folder, a file, or `sandbox`.
        cold_start_steps (`int`, *optional*, defaults to `500`):
            Steps of it, of 32 conversations for each process.
        cold_start_learning_rate (`float`, *optional*, defaults to `1e-05`):
            Learning rate of it.
    """

    cold_start: str | None = None
    cold_start_steps: int = 500
    cold_start_learning_rate: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "cold_start_steps")


def start_cold(folder: Path, model: str, args: JudgeArguments, training_args: ThoughtConfig) -> None:
    """Fine-tune all weights of `model` on conversations with a judge; of the sandbox ten for each step."""
    size, source = 10 * args.cold_start_steps, args.cold_start
    data = sample_thoughts(size, training_args.seed) if source == SANDBOX else load_table(source)
    same = ("use_cpu", "bf16", "seed", "activation_checkpointing", "model_init_kwargs", "logging_steps", "report_to")
    config = SFTConfig(
        str(folder), max_steps=args.cold_start_steps, per_device_train_batch_size=8, gradient_accumulation_steps=4,
        learning_rate=args.cold_start_learning_rate, assistant_only_loss=True, save_strategy="no",
        **{name: getattr(training_args, name) for name in same},
    )  # fmt: skip
    trainer = SFTTrainer(model, config, train_dataset=data, processing_class=AutoTokenizer.from_pretrained(model))
    trainer.train()
    trainer.save_model()


def main(script_args: JudgeArguments, training_args: ThoughtConfig, model_args: ModelConfig) -> None:
    folder, model = str(training_args.output_dir), named_model(model_args)
    claim_folder(folder, training_args.resume_from_checkpoint, script_args.overwrite_output_dir)
    training_args, test = with_model_arguments(training_args, model_args), None
    pairs = training_pairs(script_args, training_args.seed, lists := training_args.list_size > 2)
    if training_args.eval_strategy != "no":
        pairs, test = divided_pairs(script_args, training_args.seed, lists)
    delete_earlier_run(folder, script_args.overwrite_output_dir)
    if script_args.cold_start:
        if script_args.overwrite_output_dir:
            shutil.rmtree(f"{folder}_start", ignore_errors=True)
        model = make_once(Path(f"{folder}_start"), start_cold, model, script_args, training_args)
    loaded = {"quantization_config": get_quantization_config(model_args), "peft_config": get_peft_config(model_args)}
    trainer = ThoughtTrainer(model, training_args, pairs, test, **loaded)
    trainer.add_callback(CompletionExamples(trainer))  # thoughts of the first step and the last, in examples.json
    trainer.add_callback(SaveOnSignal(trainer))
    save_run(trainer, script_args, training_args, model_args)
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(training_args))
    trainer.save_model()
    trainer.save_state()
    trainer.end()


if __name__ == "__main__":
    run_recipe(main, JudgeArguments, ThoughtConfig, ModelConfig, defaults=reinforce_defaults)
