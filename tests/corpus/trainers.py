"""What a reward model's training refuses when it begins: tokens, rows, layers and adapters that do not fit."""

import copy
from collections.abc import Callable
from typing import Any

from tests.corpus.bench import ON_A_CPU, Bench
from tests.corpus.cases import Accepted, Case, Refused
from tests.corpus.data_rows import PLAIN, TALKS
from tests.corpus.tokenizers import tokenize


def slow(bench: Bench) -> int:
    from transformers import PreTrainedTokenizer

    class Slow(PreTrainedTokenizer):
        vocab_size = 3

        def get_vocab(self) -> dict[str, int]:
            return {"a": 0, "b": 1, "c": 2}

        def _tokenize(self, text: str) -> list[str]:
            return list(text)

        def _convert_token_to_id(self, token: str) -> int:
            return self.get_vocab().get(token, 0)

        def _convert_id_to_token(self, index: int) -> str:
            return "abc"[index % 3]

    return tokenize(bench, Slow(eos_token="a", pad_token="b"), PLAIN)


def train(bench: Bench, tokenizer: Any, found: Any, **options: Any) -> Any:
    """The trainer's beginning."""
    from datasets import Dataset

    from toolkit import MultiScaleRewardTrainer

    kwargs = {name: options.pop(name) for name in ("peft_config", "data_collator") if name in options}
    config = bench.shop.reward_config(output_dir=bench.path("run"), **options)
    data = Dataset.from_list(found) if isinstance(found, list) else found
    trainer = MultiScaleRewardTrainer(bench.shop.causal(), config, data, processing_class=tokenizer, **kwargs)
    return len(trainer.train_dataset)


def begun(name: str, changes: dict[str, Any], found: Any, expected: Refused | Accepted, **options: Any) -> Case:
    return Case(f"trainer: {name}", lambda b: train(b, b.shop.tokenizer_with(**changes), found, **options), expected)


def a_token_more(bench: Bench) -> Any:
    other = copy.deepcopy(bench.shop.tokenizer)
    other.add_special_tokens({"pad_token": "<|blank|>"})
    return other


def streamed(bench: Bench) -> Any:
    return train(bench, bench.shop.tokenizer, bench.shop.chat_pairs.to_iterable_dataset())


def lora(**options: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"task_type": "SEQ_CLS", "r": 2, "target_modules": ["q_proj"], **options})


def prompts_of_its_own() -> Any:
    from peft import PrefixTuningConfig

    return PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)


def adapted(name: str, make: Callable[[], Any], expected: Refused | Accepted, **options: Any) -> Case:
    return Case(
        f"trainer: {name}", lambda b: train(b, b.shop.tokenizer, TALKS, peft_config=make(), **options), expected
    )


def one_layer(bench: Bench) -> Any:
    """What the recipes make of one name of a layer, which TRL takes for a pattern."""
    from toolkit.arguments import with_model_arguments

    words = ["--use_peft", "--lora_target_modules", "q_proj", "--model_name_or_path", bench.shop.causal()]
    _, training_args, model_args = bench.recipe("train_reward", *ON_A_CPU, *words)
    with_model_arguments(training_args, model_args)
    return model_args.lora_target_modules


BEGUN = [
    Case("trainer: LoRA on one layer", one_layer, Accepted(value=["q_proj"])),
    adapted(
        "LoRA by a pattern that nothing matches",
        lambda: lora(target_modules="q_proj"),
        Refused("`target_modules` names ['q_proj']", "Name some of"),
    ),
    adapted("LoRA by a pattern", lambda: lora(target_modules=".*q_proj"), Accepted(value=4)),
    begun(
        "no EOS, and plain text",
        {"eos_token": None},
        PLAIN,
        Refused("has no EOS token, with which", "Set `tokenizer.eos_token`"),
    ),
    begun(
        "neither EOS nor padding",
        {"eos_token": None, "pad_token": None},
        TALKS,
        Refused("has neither a padding token nor an EOS", "Set `tokenizer.pad_token`"),
    ),
    begun(
        "an EOS that nobody has",
        {},
        TALKS,
        Refused("`eos_token` ('<|nothing|>') is not found", "Ensure that"),
        eos_token="<|nothing|>",
    ),
    begun(
        "padding that nobody has",
        {},
        TALKS,
        Refused("`pad_token` ('<|nothing|>') is not found", "Ensure that"),
        pad_token="<|nothing|>",
    ),
    begun(
        "a template that is not there",
        {},
        TALKS,
        Refused("`chat_template_path` is 'nothing.jinja'", "Correct the path"),
        chat_template_path="nothing.jinja",
    ),
    Case(
        "trainer: a token without an embedding",
        lambda b: train(b, a_token_more(b), TALKS),
        Refused("`pad_token` '<|blank|>' has the id 400", "Take a token that the model has"),
    ),
    Case("trainer: rows that are streamed", streamed, Refused("is streamed", "load it whole")),
    Case(
        "trainer: a slow tokenizer",
        slow,
        Refused("Slow gives no character offsets", "Load the tokenizer's fast version"),
    ),
    begun("no rows", {}, [], Refused("is empty", "Give it at least one row")),
    begun(
        "fewer rows than a batch",
        {},
        TALKS[:2],
        Refused("leaves none of the 2 pairs", "Set it to False"),
        dataloader_drop_last=True,
    ),
    begun(
        "a collator of its own",
        {},
        TALKS,
        Refused("`data_collator` cannot be set", "Leave it out"),
        data_collator=print,
    ),
    begun(
        "more layers than the decoder has",
        {},
        TALKS,
        Refused("`num_hidden_layers` is 5, and the decoder has 2 layers", "Set at most as many"),
        num_hidden_layers=5,
    ),
    begun(
        "a frozen decoder and batches of tokens",
        {},
        TALKS,
        Refused("`freeze_decoder=True` does not go with `max_tokens_per_batch`", "Leave one of the two out"),
        freeze_decoder=True,
        max_tokens_per_batch=99,
    ),
    adapted(
        "LoRA of a causal model",
        lambda: lora(task_type="CAUSAL_LM"),
        Refused("the score head would be frozen", "Set `task_type='SEQ_CLS'`"),
    ),
    adapted("tokens before every row", prompts_of_its_own, Refused("of the kind PREFIX_TUNING", "Use LoRA")),
    adapted(
        "LoRA on a layer nobody has",
        lambda: lora(target_modules=["qproj"]),
        Refused("`target_modules` names ['qproj']", "Name some of ['down_proj'"),
    ),
    adapted(
        "LoRA on a layer that is misspelt",
        lambda: lora(target_modules=["q_proj", "vproj"]),
        Accepted("`target_modules` names ['vproj'], which", 4),
    ),
    adapted(
        "a frozen decoder and LoRA",
        lora,
        Refused("`freeze_decoder=True` does not go with an adapter", "Leave one of the two out"),
        freeze_decoder=True,
    ),
]


CASES = BEGUN
