"""A row's frequencies are those of its own length, whatever stands beside it and came before."""

import pytest
import torch
from transformers import AutoModel, LlamaConfig, Phi3Config, Qwen3Config

from toolkit.data.packing import why_not_shared
from toolkit.data.positions import positions_from
from toolkit.data.rotary import longest_fixed_row, settle_frequencies

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0}
LENGTHS = (40, 9, 25, 17)
CONFIGS = {
    "dynamic": LlamaConfig(
        max_position_embeddings=16, rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}, **SMALL
    ),
    "longrope": Phi3Config(
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 8,
            "long_factor": [4.0] * 8,
        },
        sliding_window=None,
        **SMALL,
    ),
}


def rows():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 64, (length,), generator=generator) for length in LENGTHS]


def new_model(kind):
    torch.manual_seed(0)
    return AutoModel.from_config(CONFIGS[kind]).eval()


@pytest.mark.parametrize("kind", CONFIGS)
def test_rows_of_a_batch_are_read_as_rows_alone(kind):
    with torch.no_grad():
        # a fresh model for each, as dynamic frequencies remember
        alone = [new_model(kind)(row[None]).last_hidden_state[0] for row in rows()]
        model = new_model(kind)
        settle_frequencies(model)
        settle_frequencies(model)  # once is enough
        mask = torch.stack([torch.arange(max(LENGTHS)) < length for length in LENGTHS]).long()
        ids = torch.nn.utils.rnn.pad_sequence(rows(), batch_first=True, padding_value=5)
        for order in (slice(None), [3, 1, 0, 2], [1]):
            inputs = {"attention_mask": mask[order], "position_ids": positions_from(mask)[order]}
            hidden = model(ids[order], **inputs).last_hidden_state
            for found, expected in zip(hidden, [alone[i] for i in torch.arange(4)[order]], strict=True):
                torch.testing.assert_close(found[: len(expected)], expected)
        # and the stock model reads them otherwise
        stock = new_model(kind)(ids, attention_mask=mask, position_ids=positions_from(mask)).last_hidden_state
        assert (stock[1, :9] - alone[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_said_of_them(kind):
    assert longest_fixed_row(CONFIGS[kind]) == 16
    assert "depend on the length of rows beyond 16 tokens" in why_not_shared(new_model(kind))


def test_fixed_frequencies_have_no_longest_row():
    assert longest_fixed_row(Qwen3Config()) is None
    model = AutoModel.from_config(Qwen3Config(head_dim=16, **SMALL))
    settle_frequencies(model)
    assert type(model.rotary_emb).__module__.startswith("transformers")
    assert type(model.rotary_emb).__mro__[1] is torch.nn.Module
