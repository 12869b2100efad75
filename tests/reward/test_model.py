import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import linear
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    BitsAndBytesConfig,
)

from tests.helpers import ARCHITECTURES
from tests.tiny import pad_rows, spread_head
from toolkit import AutoModelForMultiScaleReward, MultiScaleSettings
from toolkit.data.tokens import encode_response
from toolkit.reward.adapters import save_adapter_settings
from toolkit.reward.scales import SCALES

ARCHITECTURE = pytest.mark.parametrize("architecture", ARCHITECTURES)
ALL = list(SCALES)


@pytest.fixture(scope="module")
def rows(tokenizer, chat_pairs):
    """Token ids of a few conversations, and where their responses start; every other one was cut off in mid-word."""
    encoded = []
    for i, pair in enumerate(chat_pairs.select(range(6))):
        text = pair["chosen"][0]["content"]
        response = [{"role": "assistant", "content": text if i % 2 else text[:-2]}]
        encoded.append(encode_response(tokenizer, pair["prompt"], response, finished=i % 2 == 1))
    return [row.input_ids for row in encoded], [row.response_start for row in encoded]


@pytest.fixture(scope="module")
def batch(rows, tokenizer):
    return pad_rows(*rows, tokenizer.pad_token_id)


def score(model, batch):
    with torch.no_grad():
        return model(**batch)


def by_hand(model, ids: list[int], start: int) -> dict:
    """Everything that the model says of one row, from the formulas, with loops; no padding, no other row."""
    head, scales = model.score, model.settings.scales
    boundaries = set(model.settings.segment_boundary_ids)
    with torch.no_grad():
        hidden = getattr(model, model.base_model_prefix)(torch.tensor([ids])).last_hidden_state[0]
        read = {"response": head.weight, "token": getattr(head, "token", None), "segment": getattr(head, "segment", 0)}
        q, s, r = ([float(read[scale] @ h) for h in hidden] if scale in scales else None for scale in SCALES)
        if model.settings.context == "head":
            for t, h in enumerate(hidden):
                r[t] += float((head.context_prompt @ hidden[start - 1]) @ (head.context_response @ h))
        if model.settings.context == "gate":
            prompt = hidden[start - 1]
            if model.settings.unit_prompt:
                prompt = prompt / (prompt @ prompt) ** 0.5
            gate = torch.softmax(head.gate @ prompt + head.gate_bias, 0)
        else:
            gate = torch.full((len(scales),), 1 / len(scales))
    prefixes, segments, ended, tokens = [], [], [0.0] * len(ids), [0.0] * len(ids)
    for t in range(start, len(ids)):
        in_run = t > start and ids[t - 1] in boundaries
        if ids[t] in boundaries and not in_run and s:
            segments.append(s[t])
            ended[t] = s[t]
        read_here = segments if ids[t] in boundaries else [*segments, s[t] if s else 0.0]
        values = {"segment": sum(read_here) / len(read_here) if read_here else 0.0, "response": r and r[t]}
        values["token"] = sum(q[start : t + 1]) / (t + 1 - start) if q else 0.0
        prefixes.append([values[scale] for scale in scales])
        tokens[t] = q[t] if q else 0.0
    if ids[-1] not in boundaries and s:
        ended[-1] = s[-1]
    return {
        "gate": gate,
        "scale_scores": torch.tensor(prefixes[-1]),
        "score": sum(float(g) * value for g, value in zip(gate, prefixes[-1], strict=True)),
        "prefix_values": torch.tensor([[0.0] * len(scales)] * start + prefixes),
        "prompt_value": torch.tensor([r[start - 1] if scale == "response" else 0.0 for scale in scales]),
        "token_scores": torch.tensor(tokens),
        "segment_scores": torch.tensor(ended),
    }


@ARCHITECTURE
@pytest.mark.parametrize("context", ["none", "gate", "head"])
def test_every_figure_follows_from_the_formulas(reward_model, rows, batch, architecture, context):
    model = reward_model(architecture, ALL, context)
    output = score(model, batch)
    for i, (ids, start) in enumerate(zip(*rows, strict=True)):
        expected = by_hand(model, ids, start)
        torch.testing.assert_close(output.logits[i, 0], torch.tensor(expected.pop("score")), atol=1e-5, rtol=1e-5)
        for name, value in expected.items():
            found = (
                output[name][i] if name in ("gate", "scale_scores", "prompt_value") else output[name][i, : len(ids)]
            )
            torch.testing.assert_close(
                found, value, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


@ARCHITECTURE
@pytest.mark.parametrize("cut_after", ["word", "first boundary", "run of boundaries"])
def test_a_prefix_value_is_the_score_of_the_row_cut_there(reward_model, tokenizer, architecture, cut_after):
    model = reward_model(architecture)
    pair = ([{"role": "user", "content": "Go on."}], [{"role": "assistant", "content": "One.\n\nTwo, and"}])
    row = encode_response(tokenizer, *pair, finished=False)
    boundary = [i in model.settings.segment_boundary_ids for i in row.input_ids]
    start = row.response_start
    first = next(t for t in range(start, len(boundary)) if boundary[t])
    assert boundary[first + 1]
    assert not boundary[-1]
    last = {"word": len(boundary) - 2, "first boundary": first, "run of boundaries": first + 1}[cut_after]
    whole = score(model, pad_rows([row.input_ids], [start], tokenizer.pad_token_id))
    cut = score(model, pad_rows([row.input_ids[: last + 1]], [start], tokenizer.pad_token_id))
    torch.testing.assert_close(cut.scale_scores, whole.prefix_values[:, last])
    torch.testing.assert_close(cut.logits[:, 0], (whole.prefix_values[:, last] * whole.gate).sum(1))


@ARCHITECTURE
def test_order_padding_and_batch_size_do_not_change_scores(reward_model, rows, batch, tokenizer, architecture):
    model, pad_id = reward_model(architecture), tokenizer.pad_token_id
    expected = score(model, batch)
    lengths = [len(row) for row in rows[0]]
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    torch.testing.assert_close(score(model, {k: v[order] for k, v in batch.items()}).logits, expected.logits[order])
    for left, right in [(0, 7), (5, 0), (3, 4)]:
        padded = score(model, pad_rows(*rows, pad_id, left, right))
        torch.testing.assert_close(padded.logits, expected.logits)
        torch.testing.assert_close(padded.gate, expected.gate)
        for i, length in enumerate(lengths):
            found, value = padded.prefix_values[i, left : left + length], expected.prefix_values[i, :length]
            torch.testing.assert_close(found, value)
        assert not padded.prefix_values[:, :left].any()
    for i, (ids, start) in enumerate(zip(*rows, strict=True)):
        torch.testing.assert_close(score(model, pad_rows([ids], [start], pad_id)).logits[0], expected.logits[i])


def test_rows_padded_on_the_left_of_each_score_the_same(reward_model, rows, batch, tokenizer):
    # as a generating pipeline pads: every row ends in the last column
    width = batch["input_ids"].size(1)
    shifted = {key: value.clone() for key, value in batch.items()}
    for i, ids in enumerate(rows[0]):
        by = width - len(ids)
        shifted["input_ids"][i] = batch["input_ids"][i].roll(by)
        shifted["attention_mask"][i] = batch["attention_mask"][i].roll(by)
        shifted["response_start"][i] += by
    model = reward_model()
    torch.testing.assert_close(score(model, shifted).logits, score(model, batch).logits)


def test_what_stands_under_the_padding_does_not_matter(reward_model, batch, tokenizer):
    model = reward_model()
    other = {**batch, "input_ids": torch.where(batch["attention_mask"].bool(), batch["input_ids"], 100)}
    torch.testing.assert_close(score(model, other).logits, score(model, batch).logits)


def test_score_is_the_gate_weighted_sum_of_the_scales(reward_model, batch):
    output = score(reward_model(), batch)
    assert output.gate.std(0).min() > 1e-3  # the prompts differ, and so do their gates
    torch.testing.assert_close(output.gate.sum(1), torch.ones(6))
    torch.testing.assert_close(output.logits[:, 0], (output.gate * output.scale_scores).sum(1))


def test_a_new_gate_is_even_and_a_new_conditioned_head_is_the_plain_one(tiny_folder, batch):
    load = AutoModelForMultiScaleReward.from_pretrained
    torch.manual_seed(1)
    output = score(load(tiny_folder(), MultiScaleSettings(scales=ALL, context="gate")).eval(), batch)
    torch.testing.assert_close(output.gate, torch.full((6, 3), 1 / 3))
    assert output.scale_scores.abs().min() > 0
    conditioned = load(tiny_folder(), MultiScaleSettings(scales=["response"], context="head")).eval()
    plain = load(tiny_folder(), MultiScaleSettings(scales=["response"], context="none")).eval()
    plain.score.weight.data.copy_(conditioned.score.weight)
    assert conditioned.score.context_prompt.abs().min() > 0  # else no gradient would ever reach the other half
    torch.testing.assert_close(score(conditioned, batch).logits, score(plain, batch).logits)


def test_gates_do_not_depend_on_the_size_of_hidden_states(reward_model):
    head, hidden = reward_model().score, torch.randn(6, 9, 32)
    context = torch.tensor([0, 1, 2, 3, 4, 5])
    gate = head(hidden, context).gate
    assert gate.std(0).min() > 1e-3  # prompts differ
    torch.testing.assert_close(head(100 * hidden, context).gate, gate)
    head.unit_prompt = False
    assert not torch.allclose(head(100 * hidden, context).gate, head(hidden, context).gate)


def test_a_checkpoint_of_before_reads_the_prompt_as_it_is(reward_model, batch, tmp_path):
    load = AutoModelForMultiScaleReward.from_pretrained
    model = reward_model()
    model.save_pretrained(tmp_path)
    assert load(str(tmp_path)).settings.unit_prompt
    config = json.loads((tmp_path / "config.json").read_text())
    del config["multi_scale"]["unit_prompt"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "prefscale.json").unlink()
    before = load(str(tmp_path)).eval()
    assert not torch.equal(score(before, batch).logits, score(model, batch).logits)
    model.score.unit_prompt = False
    assert torch.equal(score(before, batch).logits, score(model, batch).logits)


@pytest.mark.parametrize("context", ["none", "gate", "head"])
@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_states_read_before_have_the_scores_of_their_rows(reward_model, batch, architecture, context):
    model = reward_model(architecture, context=context)
    with torch.no_grad():
        states = model.response_states(**batch)[:, 0]
        found, expected = model(states=states), model(**batch)
    assert states.shape == (6, 4, 32)
    for name in ("logits", "scale_scores", "gate"):
        torch.testing.assert_close(found[name], expected[name])


def test_gate_reads_the_prompt_and_nothing_else(reward_model, rows, tokenizer):
    model, (ids, starts) = reward_model(), rows
    prompt = ids[0][: starts[0]]
    responses = [tokenizer("Yes.")["input_ids"], tokenizer("No, never, not at all!\nNo.")["input_ids"]]
    same_prompt = [prompt + response for response in responses]
    gate = score(model, pad_rows(same_prompt, [starts[0]] * 2, tokenizer.pad_token_id)).gate
    torch.testing.assert_close(gate[0], gate[1])
    other = ids[1][: starts[1]] + responses[0]
    assert not torch.allclose(score(model, pad_rows([other], [starts[1]], tokenizer.pad_token_id)).gate, gate[:1])


def test_conditioned_part_is_bilinear(reward_model, tokenizer):
    # it is <P h_c, C h_t>, so doubling C doubles what it adds
    model = reward_model("qwen3", ["response"], "head")
    ids = tokenizer("<|im_start|>user\nHm?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n")["input_ids"]
    batch = pad_rows([ids], [len(ids) - 4], tokenizer.pad_token_id)
    with_context = score(model, batch).logits
    model.score.context_response.data *= 2
    doubled = score(model, batch).logits
    model.score.context_response.data *= 0
    without = score(model, batch).logits
    assert abs(with_context - without).item() > 1e-3
    torch.testing.assert_close(doubled - without, 2 * (with_context - without))


@pytest.mark.parametrize(
    "scales", [["token"], ["segment"], ["response"], ["token", "response"], ["response", "token"]]
)
def test_a_scale_left_out_has_no_parameter_and_no_say(reward_model, rows, batch, scales):
    model = reward_model("qwen3", scales, "none")
    names = {name for name, _ in model.score.named_parameters()}
    assert names == {"weight"} | ({"token", "segment"} & set(scales))
    output = score(model, batch)
    assert output.scale_scores.shape == (6, len(scales))
    for i, (ids, start) in enumerate(zip(*rows, strict=True)):
        expected = by_hand(model, ids, start)
        torch.testing.assert_close(output.scale_scores[i], expected["scale_scores"], atol=1e-5, rtol=1e-5)
    if "response" not in scales:
        assert not model.score.weight.requires_grad
        assert not model.score.weight.any()
        assert not output.prompt_value.any()


def test_an_unused_response_head_stays_frozen_at_zero_when_reloaded(reward_folder):
    model = AutoModelForMultiScaleReward.from_pretrained(reward_folder("qwen3", ["token", "segment"]))
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["score.weight"]
    assert not model.score.weight.any()


@ARCHITECTURE
def test_begins_from_a_classification_checkpoint_with_its_head(tiny_folder, batch, tmp_path, architecture):
    stock = AutoModelForSequenceClassification.from_pretrained(tiny_folder(architecture), num_labels=1).eval()
    stock.score.weight.data.normal_(generator=torch.Generator().manual_seed(2))
    stock.save_pretrained(tmp_path)
    settings = MultiScaleSettings(scales=["response"], context="none")
    model = AutoModelForMultiScaleReward.from_pretrained(str(tmp_path), settings).eval()
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, stock(**inputs).logits)


@ARCHITECTURE
def test_config_names_the_stock_architecture(reward_folder, tiny_folder, architecture):
    saved = json.loads(Path(reward_folder(architecture), "config.json").read_text())
    stock = AutoModelForSequenceClassification.from_pretrained(tiny_folder(architecture), num_labels=1)
    assert saved["architectures"] == [type(stock).__name__]
    assert saved["multi_scale"]["scales"] == ALL
    assert saved["multi_scale"]["response_marker_ids"]


def test_response_without_a_marker_is_an_error(reward_model, batch, tokenizer):
    model = reward_model()
    ids = torch.tensor([tokenizer("There is no turn here.")["input_ids"]])
    with pytest.raises(ValueError, match=r"Rows \[0\] of the batch do not contain the response marker"):
        model(input_ids=ids)
    model.set_layout([], model.settings.segment_boundary_ids)
    with pytest.raises(ValueError, match="Pass `response_start`"):
        model(input_ids=ids)


def test_plain_response_model_needs_no_marker(reward_model, batch):
    model = reward_model("qwen3", ["response"], "none")
    model.set_layout([], [])
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    torch.testing.assert_close(score(model, inputs).logits, score(model, batch).logits)


def test_without_a_mask_every_token_is_real(reward_model, rows):
    model, ids = reward_model(), torch.tensor([rows[0][0]])
    start = torch.tensor([rows[1][0]])
    masked = score(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "response_start": start})
    torch.testing.assert_close(score(model, {"input_ids": ids, "response_start": start}).logits, masked.logits)


def test_a_folder_without_settings_is_refused(tiny_folder):
    with pytest.raises(ValueError, match=r"is not a multi-scale reward model: its config.json has no `multi_scale`"):
        AutoModelForMultiScaleReward.from_pretrained(tiny_folder())


def test_an_encoder_is_refused(tmp_path):
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50
    )
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no linear head called `score`.*Use a causal model such as Qwen3"):
        AutoModelForMultiScaleReward.from_pretrained(str(tmp_path), MultiScaleSettings(context="gate"))


def test_an_architecture_without_a_classification_class_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "multi_scale": None}))
    with pytest.raises(ValueError, match="no sequence classification class for CLIPConfig"):
        AutoModelForMultiScaleReward.from_pretrained(str(tmp_path), MultiScaleSettings(context="gate"))


@pytest.mark.parametrize(
    ("scales", "context", "message"),
    [
        (["token", "word"], "none", r"Name one or more of \['token', 'segment', 'response'\]"),
        ([], "none", "Name one or more"),
        (["token", "token"], "none", "each once"),
        (["token"], "sometimes", r"`context` is 'sometimes'. Use one of \['none', 'gate', 'head'\]"),
        (["response"], "gate", "weighs scales, but there is only"),
        (["token"], "head", "Add 'response'"),
    ],
)
def test_settings_refuse_what_does_not_go_together(scales, context, message):
    with pytest.raises(ValueError, match=message):
        MultiScaleSettings(scales=scales, context=context)


def test_settings_given_anew_replace_all_but_scales_and_context(reward_folder):
    load = AutoModelForMultiScaleReward.from_pretrained
    with pytest.raises(
        ValueError, match=r"was saved with `scales=\['token', 'segment', 'response'\]`.*Ask for the same"
    ):
        load(reward_folder(), MultiScaleSettings(scales=["response"], context="none"))
    model = load(reward_folder(), MultiScaleSettings(context="gate", stop_token_ids=[7]))
    assert model.settings == model.settings.from_saved(model.config.multi_scale)
    assert (model.settings.scales, model.settings.stop_token_ids) == (ALL, [7])


def test_head_stays_in_float32_in_a_bfloat16_model(reward_folder, batch):
    model = AutoModelForMultiScaleReward.from_pretrained(reward_folder(), dtype=torch.bfloat16).eval()
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.score.parameters()} == {torch.float32}
    logits = score(model, batch).logits
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())  # more than an eight-bit mantissa holds


def test_head_stays_in_float32_under_autocast(reward_model, batch):
    model = reward_model()
    with torch.autocast("cpu", torch.bfloat16):
        output = score(model, batch)
    assert output.logits.dtype == torch.float32
    assert not torch.equal(output.logits, output.logits.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        hidden = model.model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    rows = torch.arange(6)
    last = batch["attention_mask"].sum(1) - 1
    torch.testing.assert_close(output.scale_scores[:, 2:], linear(hidden.float(), model.score.weight)[rows, last])


def test_eager_attention_and_sdpa_agree(reward_folder, batch):
    load = AutoModelForMultiScaleReward.from_pretrained
    eager, sdpa = (load(reward_folder(), attn_implementation=name).eval() for name in ("eager", "sdpa"))
    torch.testing.assert_close(score(eager, batch).logits, score(sdpa, batch).logits)


def test_four_bit_leaves_the_head_alone(reward_folder, reward_model, batch):
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    # bitsandbytes packs its blocks of 64 weights for the CPU row by row
    wide = {"hidden_size": 64, "head_dim": 32}
    folder = reward_folder("qwen3", **wide)
    model = AutoModelForMultiScaleReward.from_pretrained(folder, quantization_config=quantization).eval()
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    assert {parameter.dtype for parameter in model.score.parameters()} == {torch.float32}
    original = reward_model("qwen3", **wide)
    for name, parameter in model.score.named_parameters():
        torch.testing.assert_close(parameter, original.score.get_parameter(name))
    assert quantization.llm_int8_skip_modules is None  # the caller's own object is left as it was
    output = score(model, batch)
    assert output.logits.isfinite().all()
    assert not torch.equal(output.logits, score(original, batch).logits)


def test_gradient_reaches_every_part_of_the_head(reward_model, batch):
    for context in ("gate", "head"):
        model = reward_model("qwen3", ALL, context)
        model(**batch).logits.sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_a_causal_model_gives_the_backbone(tiny_folder, batch):
    causal = AutoModelForCausalLM.from_pretrained(tiny_folder())
    settings = MultiScaleSettings(context="gate")
    model = AutoModelForMultiScaleReward.from_pretrained(tiny_folder(), settings)
    for (name, mine), (_, theirs) in zip(model.model.named_parameters(), causal.model.named_parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    assert AutoConfig.from_pretrained(tiny_folder()).to_dict().get("multi_scale") is None


def test_spread_heads_are_the_same_for_the_same_seed(reward_model):
    # what the other tests rely on when they build a model twice
    first, second = reward_model().score.state_dict(), spread_head(reward_model()).score.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("scales", [["token", "segment", "response"], ["segment", "response"], ["response"]])
def test_the_coarse_scales_gradient_into_the_decoder_is_scaled_and_nothing_else(reward_model, batch, scales):
    weights = torch.linspace(-1, 1, len(scales) * len(batch["input_ids"])).view(-1, len(scales))

    def gradients(factor, kept):
        model = reward_model("qwen3", scales, "none")
        model.score.coarse_gradient = factor
        output = model(**batch)
        (output.scale_scores * weights)[:, kept].sum().backward()
        embeddings = model.model.embed_tokens.weight.grad
        return output.scale_scores, embeddings, {name: p.grad for name, p in model.score.named_parameters()}

    every = list(range(len(scales)))
    scores, plain, plain_head = gradients(1.0, every)
    scaled_scores, scaled, scaled_head = gradients(0.1, every)
    assert torch.equal(scores, scaled_scores)
    # The scales' gradients add up, so what is scaled is all but that of the finest one, the first
    finest = gradients(1.0, [0])[1]
    torch.testing.assert_close(scaled, finest + 0.1 * (plain - finest))
    for name, gradient in plain_head.items():
        assert torch.equal(gradient, scaled_head[name]), name


def test_the_response_scales_context_is_among_the_coarse_gradient(reward_model, batch):
    model = reward_model("qwen3", ["token", "response"], "head")
    model.score.coarse_gradient = 0.0
    model(**batch).scale_scores[:, 1].sum().backward()
    assert not model.model.embed_tokens.weight.grad.any()
    assert model.score.context_prompt.grad.any()


def test_an_adapter_of_the_hub_is_fetched_and_loaded(reward_model, tiny_folder, batch, tmp_path, monkeypatch):
    """Out of the hub's own cache on disk, which is all that is asked without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--someone--reward-lora"
    snapshot = folder / "snapshots" / ("0" * 40)
    model = get_peft_model(
        AutoModelForMultiScaleReward.from_pretrained(tiny_folder(), MultiScaleSettings(context="gate")),
        LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear"),
    )
    spread_head(model.base_model.model)
    model.peft_config["default"].base_model_name_or_path = tiny_folder()
    model.save_pretrained(snapshot)
    save_adapter_settings(MultiScaleSettings(context="gate"), str(snapshot))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    loaded = AutoModelForMultiScaleReward.from_pretrained(
        "someone/reward-lora", cache_dir=str(tmp_path), revision="main"
    )
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**batch).logits, model.eval()(**batch).logits)
