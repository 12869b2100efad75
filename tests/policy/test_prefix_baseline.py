"""The settled text after each token, decoded in one pass, against decoding every beginning anew."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import corpus
from toolkit.policy.prefix_baseline import WINDOW, settled_length, settled_lengths

TEXTS = [
    "One. Two numbers  and more, then\n\nnew lines \n and   spaces.\tTabs " * 8,
    "日本語のテキスト。😀😀 ünïcödé and the 😀 moon, 384,000 km away " * 6,
    "x" * 90 + " y " * 40,
    " " * 90 + "end here now",
]


@pytest.fixture(scope="module")
def with_bytes():
    """As Llama's first ones: a sign for the space, which a text's first word loses, and bytes for what is unknown."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*corpus(), "abcdefghijklmnopqrstuvwxyz .,"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def anew(ids: list[int], decode) -> list[int]:
    return [settled_length(decode(ids[: t + 1], skip_special_tokens=True)) for t in range(len(ids))]


@pytest.mark.parametrize("kind", ["tokenizer", "with_bytes"])
def test_settled_lengths_are_those_of_every_beginning_decoded_anew(kind, request):
    tokenizer, generator = request.getfixturevalue(kind), random.Random(0)
    rows = [[generator.randrange(len(tokenizer)) for _ in range(150)] for _ in range(8)]
    rows += [tokenizer(text, add_special_tokens=False)["input_ids"][:300] for text in TEXTS]
    rows.append([generator.choice(rows[k % 12]) for k in range(200)])
    rows.append([id for row in rows[8:10] for id in (*row[:70], tokenizer.eos_token_id)])
    for row in rows:
        assert settled_lengths(row, tokenizer.decode) == anew(row, tokenizer.decode)


def test_time_grows_with_the_number_of_tokens_alone(tokenizer):
    decoded = 0

    def decode(ids, **options):
        nonlocal decoded
        decoded += len(ids)
        return tokenizer.decode(ids, **options)

    ids = tokenizer(TEXTS[0] * 4)["input_ids"]
    settled_lengths(ids, decode)
    assert len(ids) > 500
    assert decoded < 3 * WINDOW * len(ids)
