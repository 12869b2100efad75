"""What a decoder allows is what a small copy of it shows."""

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    Gemma3TextConfig,
    GPTNeoConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)
from transformers.modeling_outputs import BaseModelOutputWithPast

from toolkit.data.packing import why_not_shared
from toolkit.data.probes import VOCABULARY, NotTried, small_config, why_no_decoder


def weightless(config, **options):
    """A model of full size, without memory for its weights."""
    with torch.device("meta"):
        return AutoModel.from_config(config, **options)


class CustomConfig(PreTrainedConfig):
    """Of code that comes with a checkpoint: names of its own, and a window that its attention counts in places."""

    model_type = "custom"
    vocab_size: int = 99
    width: int = 32
    local_span: int = 4096


class CustomModel(PreTrainedModel):
    config_class = CustomConfig
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.embed, self.places = torch.nn.Embedding(99, config.width), torch.nn.Embedding(99, config.width)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None):
        hidden, index = self.embed(input_ids), torch.arange(input_ids.size(1))
        position_ids = index[None] if position_ids is None else position_ids
        near = (index[:, None] >= index) & (index[:, None] - index < self.config.local_span)
        mask = torch.zeros(near.shape).masked_fill(~near, -torch.inf)
        if attention_mask is not None:  # of two axes, or of four
            mask = mask + (attention_mask if attention_mask.dim() == 4 else (1.0 - attention_mask[:, None]) * -1e9)
        weights = (hidden @ hidden.mT / 8 + mask.reshape(-1, *near.shape)).softmax(-1)
        return BaseModelOutputWithPast(last_hidden_state=weights @ hidden + self.places(position_ids))


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        (Gemma3TextConfig(), {"sliding_attention", "full_attention"}),
        # the first 28 layers have none
        (Qwen2Config(use_sliding_window=True, max_window_layers=28), {"sliding_attention", "full_attention"}),
        (LlamaConfig(num_hidden_layers=80), None),
    ],
)
def test_a_small_copy_has_layers_of_every_kind_and_short_windows(config, kinds):
    small = small_config(config)
    assert small.num_hidden_layers <= 8
    assert small.vocab_size == VOCABULARY
    assert small.hidden_size // small.num_attention_heads == config.hidden_size // config.num_attention_heads
    if kinds is not None:
        assert set(small.layer_types) == kinds
        assert len(small.layer_types) == small.num_hidden_layers
        assert small.sliding_window == 8
        assert config.sliding_window > 500, "the model's own configuration stays as it was"


@pytest.mark.parametrize(
    ("config", "shared"),
    [
        (LlamaConfig(hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8), True),
        (MistralConfig(sliding_window=None, num_hidden_layers=2), True),
        (MistralConfig(sliding_window=4096, num_hidden_layers=2), False),
        (Qwen2Config(use_sliding_window=True, max_window_layers=28), False),
        (GPTNeoConfig(num_layers=2, attention_types=[[["global", "local"], 1]], window_size=256), False),
        (GPTNeoConfig(num_layers=2, attention_types=[[["global"], 2]]), True),
    ],
    ids=lambda value: value.model_type if isinstance(value, PreTrainedConfig) else "",
)
def test_prompts_are_shared_where_a_small_copy_shows_that_they_may_be(config, shared):
    state = torch.random.get_rng_state()
    assert (why_not_shared(weightless(config)) is None) == shared
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_is_on_around_the_caller_changes_nothing(monkeypatch):
    # a width of its own, so that nothing is known of it from before
    config = {"hidden_size": 96, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2}
    monkeypatch.setattr(torch, "manual_seed", None)  # which seeds GPUs as well
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert why_not_shared(weightless(LlamaConfig(**config))) is None


def test_attention_that_wants_a_gpu_is_tried_as_eager():
    model = weightless(LlamaConfig(num_hidden_layers=2))
    model.config._attn_implementation = "flash_attention_2"
    assert why_no_decoder(model) is None
    assert "'flash_attention_2' takes no mask" in why_not_shared(model)


def test_custom_code_is_tried_too():
    assert "hidden states of a packed row are others" in why_not_shared(CustomModel(CustomConfig()))


def test_a_model_that_cannot_be_made_small_shares_nothing():
    model = CustomModel(CustomConfig())
    model.config.width = 2**20  # a width by a name of its own
    reason = why_not_shared(model)
    assert isinstance(reason, str)
    assert "could not be tried on a small copy (ValueError: a copy with few and narrow layers still has" in reason
    assert isinstance(why_no_decoder(model), NotTried)


@pytest.mark.parametrize(
    "config",
    [BertConfig(num_hidden_layers=2), Gemma3TextConfig(use_bidirectional_attention=True, num_hidden_layers=6)],
    ids=["encoder", "decoder that looks both ways"],
)
def test_what_looks_ahead_is_no_decoder(config):
    assert "depends on those after it" in why_no_decoder(weightless(config))


def test_a_decoder_is_one():
    assert why_no_decoder(weightless(LlamaConfig())) is None
    # within the length for which its frequencies are fixed
    assert why_no_decoder(weightless(LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0}))) is None
