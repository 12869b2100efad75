import pytest
import torch
from transformers import AutoModel, BloomConfig, Gemma2Config, MistralConfig, RecurrentGemmaConfig

from tests.tiny import pad_rows
from toolkit.data.packing import (
    branch_mask,
    fill_batches,
    first_rows_first,
    group_by_prefix,
    pack_rows,
    shared_prefix_length,
    why_not_shared,
)

CONTEXTS = [("gate", ("token", "segment", "response")), ("head", ("response",)), ("none", ("token",))]
# A pair, four responses to a prompt, two rows that share nothing, a row that begins another, and one alone.
GROUPS = [
    [[5, 6, 7, 8, 20, 21], [5, 6, 7, 8, 30, 31, 32]],
    [[9, 10, 11, 12, 40], [9, 10, 11, 12, 41, 42], [9, 10, 11, 12, 43, 44, 45], [9, 10, 11, 12, 46]],
    [[13, 14, 50], [15, 16, 17, 51]],
    [[18, 19, 22, 23], [18, 19, 22, 23, 24, 25]],
    [[26, 27, 28, 29, 33]],
]


def packed_inputs(groups, starts):
    packed = pack_rows(groups, [shared_prefix_length(group) for group in groups], 0)
    return {**packed._asdict(), "response_start": torch.tensor(starts)}


def test_packed_rows_by_hand():
    groups = [[[5, 6, 7], [5, 6, 8, 9]], [[3], [4, 4]]]
    assert [shared_prefix_length(group) for group in groups] == [2, 0]
    packed = pack_rows(groups, [2, 0], pad_token_id=1, pad_to_multiple_of=3)
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9, 1], [3, 4, 4, 1, 1, 1]]
    assert packed.attention_mask.tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 2, 3, 0], [0, 0, 1, 0, 0, 0]]
    assert packed.branch_ids.tolist() == [[0, 0, 1, 2, 2, -1], [1, 2, 2, -1, -1, -1]]
    assert packed.token_index.tolist() == [[0, 1, 2, -1], [0, 1, 3, 4], [6, -1, -1, -1], [7, 8, -1, -1]]


@pytest.mark.parametrize(
    ("rows", "shared"), [([[1, 2], [1, 2]], 2), ([[1, 2], [1, 2, 3]], 2), ([[2], [1]], 0), ([[1, 2, 3]], 3), ([[]], 0)]
)
def test_shared_prefix_by_hand(rows, shared):
    assert shared_prefix_length(rows) == shared


def test_groups_and_batches_by_hand():
    rows = [[1, 2, 3, 7], [4, 5], [1, 2, 3, 8, 9], [1, 2, 3], [1, 2, 3, 6, 6, 6, 6]]
    shared = [2, 1, 2, 2, 2]
    # Of one prompt the shortest first: 2 tokens of it and 1, 2, 3, 5 more, 13 of the 14 that are twice the longest.
    assert group_by_prefix(rows, shared, max_rows=4) == [[1], [3, 0, 2, 4]]
    assert group_by_prefix(rows, shared, max_rows=2) == [[1], [3, 0], [2, 4]]
    assert group_by_prefix([[1, 2], [1, 3], [1, 4, 5]], [0, 0, 0], max_rows=9) == [[0, 1], [2]]
    assert fill_batches([5, 9, 4, 20], [1, 2, 1, 1], max_size=4) == [[2, 0, 1], [3]]
    assert fill_batches([5, 9, 4, 20], [1, 2, 1, 1], max_size=4, max_tokens=18) == [[2, 0], [1], [3]]


def test_mask_by_hand(tiny_folder):
    model = AutoModel.from_pretrained(tiny_folder(), dtype=torch.float64)
    mask = branch_mask(model, torch.tensor([[0, 0, 1, 2, 2, -1]]))
    seen = [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0], [1, 1, 0, 1, 1, 0]]
    assert (mask == 0).int()[0, 0, :5].tolist() == seen
    assert mask.dtype == torch.float64
    assert mask[mask != 0].unique().tolist() == [-torch.inf]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gpt_neox", "gpt2"])
@pytest.mark.parametrize(("context", "scales"), CONTEXTS)
def test_packed_rows_score_as_rows_by_themselves(reward_model, architecture, context, scales, implementation):
    # In float64, as processors differ in how they round float32
    model = reward_model(architecture, scales, context, attn_implementation=implementation).double()
    rows = [row for group in GROUPS for row in group]
    starts = [3 if len(row) > 4 else 2 for row in rows]
    packed = model(**packed_inputs(GROUPS, starts))
    alone = model(**pad_rows(rows, starts, 0))
    assert packed.keys() == alone.keys()
    # Eager attention takes its softmax in float32 all the same
    bounds = {"atol": 1e-4, "rtol": 1e-4} if implementation == "eager" else {}
    for name, value in alone.items():
        torch.testing.assert_close(packed[name], value, **bounds, msg=lambda text, name=name: f"{name}: {text}")
    assert alone.logits.std() > 0.1


def test_gradients_are_those_of_rows_by_themselves(reward_model):
    rows = [row for group in GROUPS for row in group]
    starts = [2] * len(rows)
    weights = torch.linspace(-1, 1, len(rows))
    gradients = []
    for inputs in (packed_inputs(GROUPS, starts), pad_rows(rows, starts, 0)):
        model = reward_model().double()
        output = model(**inputs)
        (output.logits[:, 0] @ weights + (output.scale_scores.prod(1) * weights).sum()).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, atol=1e-5, rtol=1e-5)
    assert gradients[1]["model.layers.0.self_attn.q_proj.weight"].abs().max() > 1e-3


def test_packed_rows_in_bfloat16_under_autocast(reward_model):
    rows = [row for group in GROUPS for row in group]
    starts = [2] * len(rows)
    model = reward_model()
    exact = model(**pad_rows(rows, starts, 0)).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        packed = model(**packed_inputs(GROUPS, starts)).logits
    torch.testing.assert_close(packed, exact, atol=0.1, rtol=0.1)


SMALL = {"vocab_size": 16, "hidden_size": 16, "num_attention_heads": 2}
OTHERS = {
    "a window": (MistralConfig(sliding_window=8, num_hidden_layers=1, **SMALL), "slides over a window of 8"),
    "a window in some layers": (
        Gemma2Config(num_hidden_layers=2, **SMALL),
        "layers of the kinds ['sliding_attention']",
    ),
    "a recurrent state": (RecurrentGemmaConfig(num_hidden_layers=3, **SMALL), "recurrent layers"),
    "no positions": (BloomConfig(vocab_size=16, hidden_size=16, n_layer=1, n_head=2), "instead of `position_ids`"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_decoders_that_cannot_share_say_why(kind):
    config, reason = OTHERS[kind]
    assert reason in why_not_shared(AutoModel.from_config(config, attn_implementation="eager"))


def test_attention_without_such_masks_is_refused(tiny_folder):
    model = AutoModel.from_pretrained(tiny_folder("llama"))
    assert why_not_shared(model) is None
    model.config._attn_implementation = "flash_attention_2"  # which cannot be loaded without a GPU
    assert "'flash_attention_2' takes no mask" in why_not_shared(model)


def test_first_rows_come_first():
    # Groups of 2, 3 and 1 rows, which stand group by group as rows 0 1, 2 3 4 and 5
    assert first_rows_first([2, 3, 1]) == [0, 2, 5, 1, 3, 4]
