from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModel, LlamaConfig

from toolkit.data import packing
from toolkit.data.kernels import in_one_row, on_cpu, sharing_pays

PROMPTS = [[1, 2, 3], [1, 2, 4], [5, 6]]


def decoder(implementation):
    return SimpleNamespace(config=LlamaConfig(hidden_size=4096, attn_implementation=implementation))


# Estimated for one pair of an 8B model on an H100, in ms, unshared with FlashAttention and shared with SDPA's mask:
# 24 and 21, 102 and 118, 102 and 91, 102 and 146
@pytest.mark.parametrize(
    ("prompt", "response", "pays"), [(256, 256, True), (1024, 1024, False), (1536, 512, True), (512, 1536, False)]
)
def test_prompts_are_shared_where_it_saves_time(prompt, response, pays):
    lengths = [prompt + 2 * response], [prompt], [2]
    assert sharing_pays(decoder("sdpa"), *lengths, "cuda") == pays
    for implementation, device in (("sdpa", "cpu"), ("eager", "cuda"), ("flex_attention", "cuda")):
        assert sharing_pays(decoder(implementation), *lengths, device)


def test_cost_by_hand():
    # A prompt of 10 tokens with two responses of 5 in a decoder of width w: 20 tokens and 400 pairs at 5.2 together,
    # 30 tokens and 2 * 15^2 / 2 causal pairs at 2 apart: 6 w * 20 + 2080 against 6 w * 30 + 450, even at w = 27.17
    for width, pays in ((26, False), (28, True)):
        config = LlamaConfig(hidden_size=width, num_attention_heads=1, attn_implementation="sdpa")
        assert sharing_pays(SimpleNamespace(config=config), [20], [10], [2], "cuda") == pays


def test_groups_are_taken_apart_where_sharing_does_not_pay(monkeypatch):
    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = AutoModel.from_config(config)
    assert packing.groups_to_share(model, PROMPTS, [2, 2, 1], 4) == [[2], [0, 1]]
    seen = []
    monkeypatch.setattr(packing, "sharing_pays", lambda model, *lengths: seen.append(lengths))
    assert packing.groups_to_share(model, PROMPTS, [2, 2, 1], 4) == [[0], [1], [2]]
    assert seen == [([2, 4], [1, 2], [1, 2], "cpu")]


def test_packed_rows_in_one():
    values = torch.arange(6).view(2, 3)
    assert in_one_row(decoder("sdpa"), values, 9) is values
    row = in_one_row(decoder("flex_attention"), values, 9)
    assert row.shape == (1, 256)  # two blocks
    assert row[0, :7].tolist() == [0, 1, 2, 3, 4, 5, 9]
    assert in_one_row(decoder("flex_attention"), torch.zeros(3, 100), 0).shape == (1, 384)


def test_what_is_on_the_cpu_is_not_copied():
    tensors = [torch.ones(2), torch.ones(1, requires_grad=True)]
    assert [found.data_ptr() for found in on_cpu(tensors)] == [tensor.data_ptr() for tensor in tensors]
    assert not any(found.requires_grad for found in on_cpu(tensors))
