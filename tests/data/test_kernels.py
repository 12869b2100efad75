from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModel, LlamaConfig

from toolkit.data import packing
from toolkit.data.kernels import in_one_row, on_cpu, sharing_pays

PROMPTS = [[1, 2, 3], [1, 2, 4], [5, 6]]


def decoder(implementation, width=64):
    config = LlamaConfig(hidden_size=width, num_attention_heads=1, attn_implementation=implementation)
    return SimpleNamespace(config=config)


# Measured on one core, docs/scaling.md: width, tokens of a prompt and of a response, and how much faster sharing was
MEASURED = [
    (256, 64, 64, 1.28), (256, 128, 128, 1.31), (256, 256, 256, 1.19), (256, 512, 512, 0.98), (256, 1024, 1024, 0.71),
    (256, 0, 129, 0.95), (256, 43, 128, 1.02), (256, 384, 128, 1.44), (256, 1152, 128, 1.44), (64, 128, 128, 1.25),
    (128, 128, 128, 1.19), (384, 128, 128, 1.28),
]  # fmt: skip
# Reckoned of an 8B model on an H100, in ms: apart with FlashAttention over together with a mask
RECKONED = [(4096, 256, 256, 24 / 21), (4096, 1024, 1024, 102 / 118), (4096, 1536, 512, 102 / 91)]
RECKONED.append((4096, 512, 1536, 102 / 146))


@pytest.mark.parametrize(("device", "points"), [("cpu", MEASURED), ("cuda", RECKONED)])
def test_prompts_are_shared_where_it_saves_time(device, points):
    for width, prompt, response, gain in points:
        lengths = [prompt + 2 * response], [prompt], [2]
        assert sharing_pays(decoder("sdpa", width), *lengths, device) == (gain > 1), (width, prompt, response)
        assert sharing_pays(decoder("flex_attention", width), *lengths, device)


def test_cost_by_hand():
    # A prompt of 100 tokens with two responses of 100 in a decoder of width w: 300 tokens and 300^2 pairs at 5.2
    # together, 400 tokens and 2 * 200^2 / 2 causal pairs at 2 apart. 6 (w + 300) * 100 tokens cost as much as the
    # 468,000 - 80,000 of the pairs at w = 346.7
    for width, pays in ((346, False), (348, True)):
        assert sharing_pays(decoder("sdpa", width), [300], [100], [2], "cuda") == pays


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
    row = in_one_row(values, 9)
    assert row.shape == (1, 256)  # two blocks
    assert row[0, :7].tolist() == [0, 1, 2, 3, 4, 5, 9]
    assert in_one_row(torch.zeros(3, 100), 0).shape == (1, 384)


def test_what_is_on_the_cpu_is_not_copied():
    tensors = [torch.ones(2), torch.ones(1, requires_grad=True)]
    assert [found.data_ptr() for found in on_cpu(tensors)] == [tensor.data_ptr() for tensor in tensors]
    assert not any(found.requires_grad for found in on_cpu(tensors))
