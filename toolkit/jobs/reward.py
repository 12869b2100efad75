"""Train a multi-scale reward model on preference pairs or ranked lists, and evaluate it on held-out ones."""

import shlex
from pathlib import Path
from typing import Any

from transformers import IntervalStrategy
from trl import ModelConfig, get_peft_config, get_quantization_config

from ..arguments import RunArguments, checkpoint_to_resume, divided_pairs, named_model, with_model_arguments
from ..pages.tables import accuracies_of, interval_cells, print_accuracy, print_table
from ..reward.config import MultiScaleRewardConfig
from ..reward.rates import best_candidate, cross_validate, take_candidate
from ..reward.trainer import MultiScaleRewardTrainer
from ..training.command_line import run_recipe
from ..training.run_folder import claim_folder, delete_earlier_run
from ..training.run_record import save_pair_examples, save_run
from ..training.signals import SaveOnSignal
from .defaults import reward_defaults

CLASSES = (RunArguments, MultiScaleRewardConfig, ModelConfig)


def main(script_args: RunArguments, training_args: MultiScaleRewardConfig, model_args: ModelConfig) -> None:
    """Train, save and evaluate a reward model, and say what to look at next."""
    folder = str(training_args.output_dir)
    claim_folder(folder, training_args.resume_from_checkpoint, script_args.overwrite_output_dir)
    model_args.lora_task_type = "SEQ_CLS"
    train, test = divided_pairs(script_args, training_args.seed, whole_lists=True)
    if test is None:  # and nothing by which the best checkpoint could be known
        training_args.eval_strategy, training_args.load_best_model_at_end = IntervalStrategy.NO, False
    trainer: Any = MultiScaleRewardTrainer(
        model=named_model(model_args),
        args=with_model_arguments(training_args, model_args),
        train_dataset=train,
        eval_dataset=test,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    if training_args.learning_rates:
        choose(trainer, training_args.learning_rates)
    trainer.add_callback(SaveOnSignal(trainer))
    delete_earlier_run(folder, script_args.overwrite_output_dir)
    save_run(trainer, script_args, training_args, model_args)
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(training_args))
    trainer.save_model()
    if test is None:
        trainer.save_state()
    else:
        evaluate(trainer)
    if trainer.accelerator.is_main_process:
        if test is None:
            print("Nothing was held out: these are the last weights, and what they rank right is not known.")
        word = shlex.quote(folder)
        print(f"The reward model is in '{folder}'. `prefscale report {word}` writes a page about its training,")
        print(f"`prefscale explain {word} --file FILE --row 1` shows what it reads in the first pair of a file.")
    trainer.end()


def evaluate(trainer: Any) -> None:
    """Rank the held-out pairs, keep what was found, and print it."""
    predictions, _, metrics = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")
    trainer.log(metrics)
    trainer.save_metrics("eval", {**metrics, "num_processes": trainer.accelerator.num_processes})
    trainer.save_state()
    trainer.create_model_card()  # with what was found
    save_pair_examples(trainer, predictions)
    if trainer.accelerator.is_main_process:
        print_accuracy(accuracies_of(metrics, trainer.args.scales))
        if "eval_lists" in metrics:
            print(f"Kendall's tau of the lists is {metrics['eval_kendall_tau']:.3f}, and of", end=" ")
            print(f"{metrics['eval_top_1']:.1%} the best has the highest score.")
        if best := trainer.state.best_model_checkpoint:
            print(f"Kept is {Path(best).name}, the one that did best on these pairs.")


def choose(trainer: MultiScaleRewardTrainer, rates: list[float]) -> None:
    """Print how many held-out training pairs each layer and learning rate ranks right, and take the best."""
    found = cross_validate(trainer, rates)
    best = best_candidate(found)
    if trainer.accelerator.is_main_process:
        rows = [(f"{n}", f"{rate:g}", *interval_cells(share, 1, 100)) for (n, rate), share in found.items()]
        headers = ("layers", "learning rate", "accuracy %", "95% interval")
        print_table("Cross-validation over prompts", headers, rows)
        print(f"Training after layer {best.num_hidden_layers} with a learning rate of {best.learning_rate:g}.")
    take_candidate(trainer, best)


def run() -> None:
    """Run the job with the options of the command line."""
    run_recipe(main, *CLASSES, defaults=reward_defaults)


if __name__ == "__main__":
    run()
