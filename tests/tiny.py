"""Tiny tokenizers, decoders and batches. Nothing is downloaded."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

from tests.helpers import PAIRS

PAD, TURN_START, TURN_END, BOS = "<|pad|>", "<|im_start|>", "<|im_end|>", "<|begin|>"
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OTHER_SENTENCES = [
    "The quick brown fox jumps over the lazy dog, over and over again.",
    "Rivers rise in the mountains and run to the sea.",
    "She sells shells and shouts about the shape of ships.",
    "Nothing that is worth knowing can be taught in a morning.",
    "Thirty thieves thought they thrilled the throne throughout Thursday.",
]


def train_tokenizer(texts: list[str], vocab_size: int, bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE with every byte, a padding token of its own, and EOS at the end of a turn."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = [PAD, TURN_START, TURN_END, *([BOS] if bos else [])]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    if bos:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, bpe.token_to_id(BOS))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=TURN_END,
        bos_token=BOS if bos else None,
        additional_special_tokens=[TURN_START],
        chat_template=TEMPLATE,
    )


def corpus() -> list[str]:
    return [text for pair in PAIRS for text in pair] + ["user\n", "assistant\n", "system\n"]


def decoder_config(tokenizer, architecture: str, **options):
    """Configuration of a tiny decoder of an architecture, with more spread than usual, so that scores differ."""
    shared = {"vocab_size": len(tokenizer), "initializer_range": 0.2, "tie_word_embeddings": True}
    shared |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    shared |= {"bos_token_id": None}
    if architecture == "gpt2":
        return GPT2Config(**{**shared, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256, **options})
    shared |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shared |= {"max_position_embeddings": 256}
    if architecture == "gpt_neox":
        return GPTNeoXConfig(**{**shared, **options})
    if architecture == "llama":
        return LlamaConfig(**{**shared, "num_key_value_heads": 1, **options})
    return Qwen3Config(**{**shared, "num_key_value_heads": 1, "head_dim": 16, **options})


def spread_head(model, seed: int = 0):
    """Give every parameter of the head a value that shows in the score, the gate's included."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.score.parameters():
        if parameter.requires_grad:
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return model


def pad_rows(rows: list[list[int]], starts: list[int], pad_id: int, left: int = 0, right: int = 0):
    """Rows as a batch, with so many more padding tokens on either side than the longest row needs on its right."""
    width = left + max(map(len, rows)) + right
    input_ids = torch.full((len(rows), width), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for i, row in enumerate(rows):
        input_ids[i, left : left + len(row)] = torch.tensor(row)
        attention_mask[i, left : left + len(row)] = 1
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "response_start": torch.tensor(starts) + left,
    }
