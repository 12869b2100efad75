"""Train a multi-scale reward model on preference pairs, and evaluate it on held-out ones.

accelerate launch recipes/train_reward.py --config recipes/configs/sandbox_reward.yaml
"""

from trl import ModelConfig, get_peft_config, get_quantization_config

from toolkit import MultiScaleRewardConfig, MultiScaleRewardTrainer
from toolkit.arguments import RunArguments, checkpoint_to_resume, held_out_pairs, training_pairs, with_model_arguments
from toolkit.pages.tables import accuracies_of, interval_cells, print_accuracy, print_table
from toolkit.reward.rates import best_candidate, cross_validate, take_candidate
from toolkit.training.command_line import run_recipe
from toolkit.training.run_folder import claim_folder, delete_earlier_run
from toolkit.training.run_record import save_pair_examples, save_run
from toolkit.training.signals import SaveOnSignal


def main(script_args: RunArguments, training_args: MultiScaleRewardConfig, model_args: ModelConfig) -> None:
    claim_folder(training_args.output_dir, training_args.resume_from_checkpoint, script_args.overwrite_output_dir)
    model_args.lora_task_type = "SEQ_CLS"
    trainer = MultiScaleRewardTrainer(
        model=model_args.model_name_or_path,
        args=with_model_arguments(training_args, model_args),
        train_dataset=training_pairs(script_args, training_args.seed),
        eval_dataset=held_out_pairs(script_args, training_args.seed),
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    if training_args.learning_rates:
        choose(trainer, training_args.learning_rates)
    trainer.add_callback(SaveOnSignal(trainer))
    delete_earlier_run(training_args.output_dir, script_args.overwrite_output_dir)
    save_run(trainer, script_args, training_args, model_args)
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(training_args))
    trainer.save_model()

    predictions, _, metrics = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")
    trainer.log(metrics)
    trainer.save_metrics("eval", {**metrics, "num_processes": trainer.accelerator.num_processes})
    trainer.save_state()
    trainer.create_model_card()  # with what was found
    save_pair_examples(trainer, predictions)
    if trainer.accelerator.is_main_process:
        print_accuracy(accuracies_of(metrics, training_args.scales))
    trainer.end()


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


if __name__ == "__main__":
    run_recipe(main, RunArguments, MultiScaleRewardConfig, ModelConfig)
