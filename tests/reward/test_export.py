import re
from functools import partial

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.tiny import pad_rows, spread_head
from toolkit import AutoModelForMultiScaleReward, MultiScaleSettings, RewardFunction
from toolkit.cli import export as command
from toolkit.cli.main import main
from toolkit.data.tokens import encode_response
from toolkit.reward.adapters import save_adapter_settings
from toolkit.reward.export import FORMS, export
from toolkit.reward.pooling import PooledHead, load_pooled_head, read_pooled
from toolkit.reward.record import add_tokenizer, write_record

ALL = ("token", "segment", "response")
HEADS = [
    (ALL, "none"),
    (ALL, "gate"),
    (ALL, "head"),
    (("response",), "none"),
    (("response",), "head"),
    (("token", "segment"), "gate"),
    (("segment",), "none"),
]
SIDES = pytest.mark.parametrize("side", ["left", "right"])


@pytest.fixture(scope="module")
def conversations(chat_pairs):
    pairs = chat_pairs.select(range(6))
    return pairs["prompt"], pairs["chosen"]


@pytest.fixture(scope="module")
def adapter_folder(reward_folder, tokenizer, tmp_path_factory):
    """Folder of an adapter on a reward model, whose matrices and head are spread."""
    made = {}

    def folder(scales=ALL, context="none"):
        if (scales, context) not in made:
            base, path = reward_folder("qwen3", scales, context), str(tmp_path_factory.mktemp("adapter"))
            model = AutoModelForMultiScaleReward.from_pretrained(base)
            model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear"))
            model.peft_config["default"].base_model_name_or_path = base
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.data = 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            spread_head(model.base_model.model, seed=1)
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
            save_adapter_settings(model.get_base_model().settings, path)
            write_record(model, path)
            add_tokenizer(path)
            made[scales, context] = path
        return made[scales, context]

    return folder


def batch_of(tokenizer, conversations, side):
    """The rows of training, padded on one side of each."""
    rows = [encode_response(tokenizer, *pair) for pair in zip(*conversations, strict=True)]
    batch = pad_rows([row.input_ids for row in rows], [row.response_start for row in rows], tokenizer.pad_token_id)
    if side == "left":
        for i, row in enumerate(rows):
            by = batch["input_ids"].size(1) - len(row.input_ids)
            for name in ("input_ids", "attention_mask"):
                batch[name][i] = batch[name][i].roll(by)
            batch["response_start"][i] += by
    return batch


def engine(folder, batch):
    """What an engine returns of every token: the stock decoder's last states, and the one linear map on each."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        decoder = getattr(model, model.base_model_prefix)
        states = decoder(batch["input_ids"], attention_mask=batch["attention_mask"], position_ids=positions)
        return states.last_hidden_state @ load_file(f"{folder}/model.safetensors")["score.weight"].T


@SIDES
@pytest.mark.parametrize(("scales", "context"), HEADS)
def test_a_client_makes_the_score_of_what_an_engine_returns(
    reward_folder, tokenizer, conversations, tmp_path, scales, context, side
):
    source = reward_folder("qwen3", scales, context)
    export(source, tmp_path / "pooling", "pooling")
    batch, head = batch_of(tokenizer, conversations, side), load_pooled_head(tmp_path / "pooling")
    logits = engine(tmp_path / "pooling", batch)
    found = read_pooled(logits, batch["input_ids"], head, batch["attention_mask"], batch["response_start"])
    expected = RewardFunction(source).score(*conversations)
    # Rounding is that of the largest terms, which conditioned scores are sums of
    largest = max(1.0, *(one.prefix_values.abs().max().item() for one in expected))
    close = partial(torch.testing.assert_close, atol=1e-5 * largest, rtol=0)
    close(found.logits[:, 0], torch.tensor([one.reward for one in expected]))
    for i, one in enumerate(expected):
        close(found.scale_scores[i], one.scale_scores)
        close(found.prefix_values[i][found.response_mask[i]] * found.gate[i], one.prefix_values)
    # The marker that was saved finds the responses, too
    by_marker = read_pooled(logits, batch["input_ids"], head, batch["attention_mask"])
    torch.testing.assert_close(by_marker.logits, found.logits)


def test_the_arithmetic_by_hand():
    """Three tokens of a response after one of the prompt; rows: token, segment, two of a gate, two of the state."""
    settings = MultiScaleSettings(scales=["token", "segment"], context="gate", segment_boundary_ids=[9])
    head = PooledHead({"token": 1, "segment": 1, "gate": 2, "state": 2}, [0.0, 0.0], settings)
    prompt = [7.0, 7.0, 5 * torch.log(torch.tensor(3.0)).item(), 0.0, 3.0, 4.0]  # of length 5: weights 3/4 and 1/4
    rest = [0.0] * 4
    rows = [prompt, [1.0, 2.0, *rest], [3.0, 4.0, *rest], [8.0, 6.0, *rest]]
    found = read_pooled(torch.tensor([rows]), torch.tensor([[5, 1, 9, 2]]), head, response_start=torch.tensor([1]))
    # tokens (1 + 3 + 8) / 3 = 4; segments end at the boundary and, open, at the end: (4 + 6) / 2 = 5
    torch.testing.assert_close(found.scale_scores, torch.tensor([[4.0, 5.0]]))
    torch.testing.assert_close(found.logits, torch.tensor([[0.75 * 4 + 0.25 * 5]]))


@SIDES
@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_a_stock_class_reads_the_response_scale(
    reward_folder, adapter_folder, tokenizer, conversations, tmp_path, kind, side
):
    source = reward_folder() if kind == "whole" else adapter_folder(ALL, "gate")
    found = export(source, tmp_path / "stock", "stock")
    assert "The response scale alone" in found.reads
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "stock").eval()
    assert model.config.num_labels == 1
    batch = batch_of(tokenizer, conversations, side)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        scores = model(batch["input_ids"], attention_mask=batch["attention_mask"], position_ids=positions).logits
    expected = torch.tensor([one.scale_scores[2] for one in RewardFunction(source).score(*conversations)])
    assert expected.std() > 0.01
    # Merging rounds the weights of an adapter
    torch.testing.assert_close(scores[:, 0], expected, **({"atol": 1e-6, "rtol": 0} if kind == "whole" else {}))


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2"])
def test_other_decoders_keep_their_own_names(reward_folder, tmp_path, architecture):
    source = reward_folder(architecture)
    for form in ("stock", "pooling"):
        assert export(source, tmp_path / form, form).off < 1e-5
        names = load_file(tmp_path / form / "model.safetensors").keys()
        stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / form)
        # Engines refuse names that their class has not
        assert names == stock.state_dict().keys()
        assert type(stock).__name__ == stock.config.architectures[0]


def test_a_merged_adapter_is_a_reward_model_of_its_own(adapter_folder, conversations, tmp_path):
    source = adapter_folder(ALL, "gate")
    export(source, tmp_path / "merged", "merged")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert main(["verify", str(tmp_path / "merged")]) == 0
    merged = RewardFunction(str(tmp_path / "merged"))
    expected = RewardFunction(source)(*conversations)
    torch.testing.assert_close(torch.tensor(merged(*conversations)), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_the_command_has_these_forms():
    assert tuple(command.FORMS) == FORMS


@pytest.mark.parametrize("form", FORMS)
def test_the_code_of_a_card_scores_as_the_model(adapter_folder, tmp_path, monkeypatch, capsys, form):
    source = adapter_folder(ALL, "none")
    export(source, tmp_path / "exported", form)
    text = (tmp_path / "exported" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(code, {})
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    one = RewardFunction(source).score([prompt], [[{"role": "assistant", "content": "It is Paris."}]])[0]
    expected = one.scale_scores[2].item() if form == "stock" else one.reward
    assert float(capsys.readouterr().out.strip(" []\n")) == pytest.approx(expected, abs=1e-5)
    assert source not in text
    assert str(tmp_path) not in text


def test_what_is_measured_is_said(reward_folder, chat_pairs, tmp_path, capsys):
    source, folder = reward_folder(), tmp_path / "stock"
    chat_pairs.to_json(tmp_path / "pairs.jsonl")
    words = ["--form", "stock", "--dataset_name", str(tmp_path / "pairs.jsonl")]
    assert main(["export", source, str(folder), *words]) == 0
    told = {one.metric_name: one.metric_value for one in ModelCard.load(folder / "README.md").data.eval_results}
    assert told.keys() == {"mix", "response", "longer wins"}
    sides = [RewardFunction(source).score(chat_pairs["prompt"], chat_pairs[side]) for side in ("chosen", "rejected")]
    right = sum(bool(good.scale_scores[2] > bad.scale_scores[2]) for good, bad in zip(*sides, strict=True))
    assert told["response"] == pytest.approx(right / len(chat_pairs), abs=1e-6)
    printed = capsys.readouterr().out
    assert f"response: {100 * right / len(chat_pairs):.1f}% (" in printed
    assert f"of {len(chat_pairs)} held-out pairs ranked right" in printed
    assert export(source, tmp_path / "not measured", "stock").results == []


def test_nothing_is_left_of_an_export_that_fails(reward_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("toolkit.reward.export.tolerance", lambda probes: -1.0)
    with pytest.raises(ValueError, match="would score otherwise"):
        export(reward_folder(), tmp_path / "stock", "stock")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("scales", "context", "found"),
    [(("token",), "none", r"score is of means \(token\)"), (ALL, "head", "conditioned on the prompt")],
)
def test_what_the_last_token_does_not_say_is_refused_to_stock_classes(reward_folder, tmp_path, scales, context, found):
    with pytest.raises(ValueError, match=f"{found}.*Use the form 'pooling'"):
        export(reward_folder("qwen3", scales, context), tmp_path / "stock", "stock")
    assert not (tmp_path / "stock").exists()


def test_a_tokenizer_that_pads_with_eos_is_said(reward_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(reward_folder())
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForMultiScaleReward.from_pretrained(reward_folder())
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    add_tokenizer(tmp_path / "source")
    assert "The padding token is EOS" in export(str(tmp_path / "source"), tmp_path / "stock", "stock").notes[0]


def test_logits_of_another_shape_are_refused(reward_folder, tmp_path):
    export(reward_folder(scales=ALL, context="none"), tmp_path / "pooling", "pooling")
    head = load_pooled_head(tmp_path / "pooling")
    with pytest.raises(
        ValueError, match=r"shape \(1, 3\), and \(1, 4, 3\)"
    ):  # as of an engine that pools the last token
        read_pooled(torch.zeros(1, 3), torch.zeros(1, 4, dtype=torch.long), head)
