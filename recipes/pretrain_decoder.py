"""Make a small decoder from scratch out of preference data: tokenizer, weights, supervised training on chosen answers.

    accelerate launch recipes/pretrain_decoder.py --config recipes/configs/hh_decoder.yaml --dataset_name "data/*.gz"

It stands in for a pretrained checkpoint where none can be downloaded; with one at hand, skip it.
"""

from dataclasses import dataclass

from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from toolkit.arguments import RunArguments, training_pairs
from toolkit.sandbox.models import new_decoder, train_tokenizer
from toolkit.training.command_line import run_recipe
from toolkit.training.options import check_counts, help_from_docstring
from toolkit.training.run_folder import claim_folder, delete_earlier_run


@help_from_docstring
@dataclass
class DecoderArguments(RunArguments):
    """
    Arguments of this recipe, beside the data's.

    Args:
        hidden_size (`int`, *optional*, defaults to `256`):
            Width of the decoder, a multiple of 32.
        layers (`int`, *optional*, defaults to `4`):
            Number of layers.
        vocab_size (`int`, *optional*, defaults to `4096`):
            Number of tokens.
        context_length (`int`, *optional*, defaults to `1024`):
            Longest context in tokens.
    """

    hidden_size: int = 256
    layers: int = 4
    vocab_size: int = 4096
    context_length: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "hidden_size", "layers", "vocab_size", "context_length")


def main(script_args: DecoderArguments, training_args: SFTConfig) -> None:
    claim_folder(training_args.output_dir, training_args.resume_from_checkpoint, script_args.overwrite_output_dir)
    pairs = training_pairs(script_args, training_args.seed)
    texts = (message["content"] for row in pairs for column in ("prompt", "chosen") for message in row[column])
    tokenizer = train_tokenizer(texts, script_args.vocab_size)
    set_seed(training_args.seed)
    model = new_decoder(tokenizer, script_args.hidden_size, script_args.layers, script_args.context_length)
    demonstrations = pairs.select_columns(["prompt", "chosen"]).rename_column("chosen", "completion")
    trainer = SFTTrainer(model=model, args=training_args, train_dataset=demonstrations, processing_class=tokenizer)
    delete_earlier_run(training_args.output_dir, script_args.overwrite_output_dir)
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    trainer.end()


if __name__ == "__main__":
    run_recipe(main, DecoderArguments, SFTConfig)
