"""Heads on the features of an encoder are the multi-scale score of its hidden states."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from toolkit.data.positions import segment_ends
from toolkit.experiments.study.encoder import encoder_name, encoder_stages, read_head, response_features, train_head
from toolkit.experiments.study.grid import Study
from toolkit.experiments.study.real import RealStudy
from toolkit.reward.head import MultiScaleHead, MultiScaleSettings
from toolkit.reward.scales import mix, scale_prefix_values

WORDS = ["why", "what", "is", "it", "and", "not", "so", "no", "yes", ".", "?"]
PROMPTS = ["why ?", "so", "what is it and what is it not ?"]
RESPONSES = ["no . yes . so it is", "it is .", "not"]


@pytest.fixture(scope="module")
def encoder():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    return BertModel(config, add_pooling_layer=False).eval(), tokenizer


@pytest.mark.parametrize("context", ["gate", "none"])
def test_features_carry_all_that_the_score_needs(encoder, context):
    model, tokenizer = encoder
    features, cut = response_features(model, tokenizer, PROMPTS, RESPONSES, batch_size=2)
    assert (features.shape, cut) == ((3, 4, 16), 0)
    head = MultiScaleHead(16, MultiScaleSettings(context=context))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    scores, by_scale = read_head(head, features)
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        batch = tokenizer(prompt, response, return_tensors="pt")
        hidden = model(**batch).last_hidden_state
        is_response = batch["token_type_ids"] == 1
        boundary = torch.tensor([[word in (".", "?", "[SEP]") for word in batch.tokens()]]) & is_response
        found = head(hidden, is_response.int().argmax(1) - 1)
        values = scale_prefix_values(
            found.token, found.segment, found.response, boundary, segment_ends(boundary, is_response), is_response
        )
        torch.testing.assert_close(by_scale[i], values[0, -1])
        torch.testing.assert_close(scores[i], mix(values[:, -1], found.gate)[0])


def test_rows_that_are_too_long_are_cut_and_counted(encoder):
    model, tokenizer = encoder
    features, cut = response_features(model, tokenizer, ["what " * 30, "so"], ["it is .", "no"])
    assert cut == 1
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("model", ["unbiased", "simple contrast", "weighted", "context-aware", "multi-scale", "token"])
def test_a_head_learns_what_the_features_tell(model):
    torch.manual_seed(0)
    chosen, rejected = torch.randn(2048, 4, 8), torch.randn(2048, 4, 8)
    chosen[:, 1:, 0] += 2  # at every scale, on average
    rejected[:, 0] = chosen[:, 0]  # the prompt's end is the same
    head = train_head(model, chosen[:1024], rejected[:1024], torch.ones(1024), rate=1e-2, epochs=3, seed=0)
    right = (read_head(head, chosen[1024:])[0] > read_head(head, rejected[1024:])[0]).double().mean()
    assert right > 0.8  # the best single number, a difference of 2 with standard deviation sqrt(2), tells 0.92


def test_pairs_without_strength_teach_nothing_to_a_weighted_head():
    torch.manual_seed(0)
    chosen, rejected = torch.randn(64, 4, 8), torch.randn(64, 4, 8)
    strength = torch.tensor([1.0, 0.0] * 32)
    other = torch.where(strength[:, None, None] > 0, chosen, -chosen)
    heads = [train_head("weighted", side, rejected, strength, rate=1e-2, epochs=2, seed=0) for side in (chosen, other)]
    assert torch.equal(heads[0].weight, heads[1].weight)
    plain = [
        train_head("simple contrast", side, rejected, strength, rate=1e-2, epochs=2, seed=0)
        for side in (chosen, other)
    ]
    assert not torch.equal(plain[0].weight, plain[1].weight)


def test_what_would_be_the_same_head_again_is_not_trained(tmp_path):
    study = Study(tmp_path, RealStudy("data", seeds=[1], tasks=["dialogue", "code"], encoder="encoder"))
    _, heads = encoder_stages(study)
    models = {
        task: {c.arguments["model"] for c in heads if c.arguments["task"] == task} for task in ("dialogue", "code")
    }
    assert models["code"] == {"unbiased", "simple contrast", "weighted", "context-aware", "multi-scale"}
    assert models["dialogue"] == models["code"] - {"weighted"}  # no pair has a strength there
    assert len(heads) == 9
    assert {encoder_name("weighted", task, 1) for task in ("dialogue", "code")} <= {cell.name for cell in heads}
