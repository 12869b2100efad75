"""Heads with several outputs: their laws in the model, and how their readers train, save, reload and score."""

import logging
import math

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from tests.helpers import PAIRS, logged
from tests.tiny import pad_rows, spread_head
from toolkit import (
    AutoModelForMultiScaleReward,
    MultiScaleRewardTrainer,
    MultiScaleSettings,
    ReinforceTrainer,
    RewardFunction,
)
from toolkit.data.batches import TASTE_COLUMNS
from toolkit.reward.export import export
from toolkit.reward.model import base_reward_model
from toolkit.reward.readers import read_gap
from toolkit.reward.reading import mixed_outputs

PEOPLE = ["Ann", 7, "Bo"]
READERS = [
    {"outputs": 3, "reader_weights": "annotator"},
    {"outputs": 2},  # attributes
    {"outputs": 3, "reader_weights": "prompt"},
    {"outputs": 2, "reader": "mixture", "reader_weights": "annotator"},
    {"outputs": 4, "reader": "skew", "reader_weights": "prompt"},
    {"outputs": 2, "reader": "gaussian"},
]
EVERY_READER = pytest.mark.parametrize("options", READERS, ids=lambda options: " ".join(map(str, options.values())))
LORA = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear")


@pytest.fixture(scope="module")
def labelled_pairs(chat_pairs):
    """Pairs with who labelled them, and two attributes, of which one is missing or equal now and then."""
    brief = [None if i % 4 == 0 else 3.0 - i % 3 for i in range(len(PAIRS))]
    attributes = [{"chosen": {"brief": 3.0, "true": 1}, "rejected": {"brief": each, "true": 2}} for each in brief]
    people = [str(PEOPLE[i % 3]) for i in range(len(PAIRS))]
    return chat_pairs.add_column("annotator", people).add_column("attributes", attributes)


@pytest.fixture
def train_on(reward_config, tiny_folder, labelled_pairs):
    def make(data=None, model=None, eval_dataset=None, peft_config=None, **options):
        data = labelled_pairs if data is None else data
        args = reward_config(**{"learning_rate": 1e-2, "weight_by_strength": False, **options})
        return MultiScaleRewardTrainer(model or tiny_folder(), args, data, eval_dataset, peft_config=peft_config)

    return make


def batch_of(trainer, count=4):
    return trainer.data_collator([trainer.train_dataset[i] for i in range(count)])


def read_rows(model, batch):
    with torch.no_grad():
        return model.eval()(**{key: value for key, value in batch.items() if key in ("annotator", *ROWS)})


ROWS = ("input_ids", "attention_mask", "response_start", "position_ids", "branch_ids", "token_index")


def test_one_output_has_the_parameters_that_it_had_before(reward_model):
    names = {name: list(parameter.shape) for name, parameter in reward_model().score.named_parameters()}
    own = {key: [1, 32] for key in ("weight", "token", "segment")}
    assert names == {**own, "gate": [3, 32], "gate_bias": [3]}


@pytest.mark.parametrize("length", [1, 4, 9])
def test_every_output_of_a_prefix_is_that_of_the_response_cut_there(several, tokenizer, length):
    model = several(outputs=2, reader_weights="annotator")
    prompt, response = (tokenizer(text)["input_ids"] for text in ("Who wrote Faust?", "Goethe. He was old, and wise."))
    whole = model(**pad_rows([prompt + response], [len(prompt)], 0, left=2))
    cut = model(**pad_rows([prompt + response[:length]], [len(prompt)], 0))
    for k, alone in enumerate(torch.eye(2)):
        read = model(**pad_rows([prompt + response], [len(prompt)], 0, left=2), mixed=alone)
        value = (read.prefix_values[0, 2 + len(prompt) + length - 1] * read.gate[0]).sum()
        torch.testing.assert_close(value, mixed_outputs(cut)[0, k], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(read.logits[:, 0], mixed_outputs(whole)[:, k], atol=1e-6, rtol=1e-6)


def test_a_score_is_what_the_annotators_weights_make_of_the_outputs(several, tokenizer):
    model, row = several(outputs=3, reader_weights="annotator"), tokenizer("Name three colours. Red.")["input_ids"]
    head = model.score
    read = model(**pad_rows([row] * 3, [3] * 3, 0), annotator=torch.tensor([0, 1, -1]))
    weights = torch.stack(
        [head.reader + head.reader_annotator[0], head.reader + head.reader_annotator[1], head.reader]
    )
    torch.testing.assert_close(read.weights, weights)
    torch.testing.assert_close(read.logits[:, 0], (mixed_outputs(read) * weights).sum(-1), atol=1e-6, rtol=1e-6)
    assert len(set(read.logits[:, 0].tolist())) == 3
    states = model.response_states(**pad_rows([row] * 3, [3] * 3, 0))[:, 0]
    before = model(states=states, annotator=torch.tensor([0, 1, -1]))
    torch.testing.assert_close(before.logits, read.logits, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(before.outputs, read.outputs, atol=1e-6, rtol=1e-6)


def test_a_new_reader_begins_alike_for_all(tiny_folder):
    settings = MultiScaleSettings(outputs=4, reader_weights="annotator", annotators=["Ann", "Bo"])
    head = AutoModelForMultiScaleReward.from_pretrained(tiny_folder(), settings).score
    assert head.reader.tolist() == [0.25] * 4
    assert head.reader_annotator.tolist() == [[0.0] * 4] * 2
    assert head.response.std() > 0.1


@pytest.mark.parametrize("lora", [False, True])
@EVERY_READER
def test_readers_reload_to_the_last_bit_and_stock_classes_read_all_peoples_weights(train_on, tmp_path, options, lora):
    trainer = train_on(peft_config=LORA if lora else None, **options)
    trainer.train()
    assert logged(trainer, "loss")[-1] != logged(trainer, "loss")[0]
    trainer.save_model(str(tmp_path / "saved"))
    loaded, batch = AutoModelForMultiScaleReward.from_pretrained(str(tmp_path / "saved")), batch_of(trainer)
    ours, theirs = read_rows(trainer.model, batch), read_rows(loaded, batch)
    for name in ("outputs", "logits", "scale_scores", "prefix_values"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert base_reward_model(loaded).settings == trainer.reward_model.settings
    if options.get("reader_weights") != "prompt":
        stock = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "saved"), num_labels=1)
        ids, start = (trainer.train_dataset[0][f"chosen_{what}"] for what in ("ids", "start"))
        with torch.no_grad():
            found = stock.eval()(input_ids=torch.tensor([ids])).logits[0, 0]
        known = read_rows(loaded, pad_rows([ids], [start], 0)).scale_scores[0, 2]
        torch.testing.assert_close(found, known, atol=1e-5, rtol=1e-5)


def test_weights_that_an_engine_gives_are_folded_too(train_on, tmp_path):
    trainer = train_on(**READERS[0])
    given = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    given["score.weight"].zero_()  # as under ZeRO-3, where it is nobody's to keep
    trainer._save(str(tmp_path / "saved"), given)
    saved, head = load_file(tmp_path / "saved" / "model.safetensors"), trainer.model.score
    torch.testing.assert_close(saved["score.weight"], head.reader.detach()[None] @ head.response.detach())
    assert saved["score.weight"].abs().sum() > 0


@EVERY_READER
def test_the_loss_of_a_pair_is_that_of_its_gap(train_on, options):
    args = {"label_smoothing_factor": 0.1, "scale_loss_weight": 0.3, **options}
    trainer = train_on(**args)
    spread_head(trainer.model)
    batch = {**batch_of(trainer), "margin": torch.tensor([0.0, 0.5, 1.0, -1.0])}
    _, scores = trainer.compute_loss(trainer.model.eval(), dict(batch), return_outputs=True)
    read, reader = read_rows(trainer.model, batch), options.get("reader", "linear")
    weights = None if read.weights is None else read.weights[:4]

    def loss(values, margin=0.0):
        gap = read_gap(*values.split(4), weights, reader) - margin
        return -0.9 * F.logsigmoid(gap) - 0.1 * F.logsigmoid(-gap)

    expected = loss(mixed_outputs(read), batch["margin"])
    expected = expected + 0.3 * sum(loss(each) for each in read.outputs.unbind(1))
    if read.taste is not None:  # the prior over the eight pairs of each annotator
        expected = expected + read.taste[:4].square().sum(-1) / 2 / 8
    if options == {
        "outputs": 2
    }:  # "brief" of the first and fourth pair says nothing, and "true" is the wrong way round
        chosen, rejected = mixed_outputs(read).split(4)
        brief, true = ((chosen - rejected) * torch.tensor([1.0, -1.0])).unbind(1)
        of_each = [-0.9 * F.logsigmoid(gap) - 0.1 * F.logsigmoid(-gap) for gap in (brief, true)]
        known = torch.tensor([0.0, 1.0, 1.0, 0.0])
        expected = expected + (known * of_each[0] + of_each[1]) / (1 + known)
    torch.testing.assert_close(scores.loss, expected, atol=1e-5, rtol=1e-5)


def test_gaps_of_attributes_are_read_in_every_form(train_on, labelled_pairs):
    forms = [
        {"chosen": {"brief": 3.0, "true": 1.0}, "rejected": {"brief": 1.0, "true": None}},
        {"brief": 2.0, "true": None},
        [{"brief": 3, "true": 1}, {"brief": 1}],
    ]
    for form in forms:
        rows = [{**row, "attributes": form} for row in labelled_pairs.to_list()]
        gaps = train_on(Dataset.from_list(rows), outputs=2).train_dataset[0][TASTE_COLUMNS[2]]
        assert gaps[0] == 2
        assert gaps[1] is None or math.isnan(gaps[1])


def test_annotators_keep_their_names_and_others_are_counted(train_on, labelled_pairs, caplog):
    caplog.set_level(logging.WARNING)
    others = labelled_pairs.remove_columns("annotator").add_column("annotator", ["Ann", "Cy", None] * 8)
    trainer = train_on(eval_dataset=others, **READERS[0])
    assert trainer.reward_model.settings.annotators == ["7", "Ann", "Bo"]
    assert [trainer.train_dataset[i][TASTE_COLUMNS[0]] for i in range(3)] == [1, 0, 2]
    assert trainer.train_dataset[0][TASTE_COLUMNS[1]] == 1 / 8
    assert [trainer.eval_dataset[i][TASTE_COLUMNS[0]] for i in range(3)] == [1, -1, -1]
    assert trainer.eval_dataset[0][TASTE_COLUMNS[1]] == 0
    assert "'eval': 16 of 24 rows have no annotator whom the model knows" in caplog.text


def test_a_frozen_decoder_trains_the_same_reader(train_on):
    runs = [train_on(freeze_decoder=frozen, learning_rate=0.0, **READERS[0]) for frozen in (True, False)]
    for trainer in runs:
        trainer.train()
    assert logged(runs[0], "loss") == pytest.approx(logged(runs[1], "loss"), abs=1e-5)


def test_lists_train_with_weights_of_annotators(train_on):
    rows = [
        {"prompt": q, "responses": [bad, good, "?"], "ranks": [2, 1, 3], "annotator": i % 2}
        for i, (q, good, bad) in enumerate(PAIRS)
    ]
    trainer = train_on(Dataset.from_list(rows), **READERS[0])
    trainer.train()
    assert trainer.reward_model.score.reader_annotator.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reader": "cubic"}, "`reader` is 'cubic'. Use one of"),
        ({"reader": "skew"}, "one output is read by"),
        ({"outputs": 3, "reader": "skew"}, "two outputs a plane"),
        ({"outputs": 4, "reader": "gaussian"}, "mean and log variance"),
        ({"outputs": 2, "reader": "gaussian", "reader_weights": "prompt"}, "has no weights"),
        ({"outputs": 2, "reader": "skew", "reader_weights": "annotator"}, "no weights of annotators"),
        ({"outputs": 2, "reader_weights": "prompt", "context": "head"}, "is for one output"),
        ({"outputs": 2, "reader": "mixture", "loss_type": "pointwise"}, "has no score of each"),
        ({"outputs": 2, "reader": "mixture", "center_rewards_coefficient": 0.1}, "has no score of each"),
        ({"outputs": 2, "group_by_prompt": True}, "for heads with one output"),
    ],
)
def test_what_does_not_go_together_is_refused(reward_config, options, message):
    with pytest.raises(ValueError, match=message):
        reward_config(**options)


def test_data_without_what_a_reader_needs_are_refused(train_on, labelled_pairs, chat_pairs):
    with pytest.raises(ValueError, match="needs a column 'annotator' in the training data"):
        train_on(labelled_pairs.remove_columns("annotator"), **READERS[0])
    with pytest.raises(ValueError, match="of pairs, and the column 'attributes' of the training data has none"):
        train_on(chat_pairs, outputs=2)
    wrong = labelled_pairs.remove_columns("attributes").add_column("attributes", [{"brief": "x", "true": 1}] * 24)
    with pytest.raises(ValueError, match=r"row 1, column 'attributes\.brief': found text: 'x'"):
        train_on(wrong, outputs=2)
    three = labelled_pairs.remove_columns("attributes").add_column("attributes", [{"a": 1, "b": 1, "c": 1}] * 24)
    with pytest.raises(ValueError, match=r"has \['a', 'b', 'c'\]. Set `outputs` to their number"):
        train_on(three, outputs=2)


def test_a_chosen_annotator_scores_and_one_who_is_not_known_is_said(several, tokenizer, caplog):
    model = several(outputs=3, reader_weights="annotator")
    ask = ([[{"role": "user", "content": "Name three colours."}]], [[{"role": "assistant", "content": "Red."}]])
    head, scores = model.score, {}
    for reader in (None, "Ann", "Bo", "Cy", [1.0, 0.0, 2.0]):
        (scores[str(reader)],) = RewardFunction(model, tokenizer, reader=reader).score(*ask)
    z = scores["None"].z
    assert all(torch.equal(score.z, z) for score in scores.values())
    for name, own in {"None": 0.0, "Ann": head.reader_annotator[0], "Bo": head.reader_annotator[1]}.items():
        assert scores[name].reward == pytest.approx((z @ (head.reader + own)).item(), abs=1e-5)
    assert scores["[1.0, 0.0, 2.0]"].reward == pytest.approx((z[0] + 2 * z[2]).item(), abs=1e-5)
    assert scores["Cy"].reward == scores["None"].reward
    assert "does not know the annotator 'Cy'" in caplog.text
    # which the values of prefixes end with, so that a policy learns from them
    for score in scores.values():
        assert score.prefix_values[-1].sum().item() == pytest.approx(score.reward, abs=1e-5)


def test_a_policy_learns_from_a_chosen_annotator(several, tokenizer, reinforce_config, tiny_folder, chat_pairs):
    model, seen = several(outputs=3, reader_weights="annotator"), []
    reward = RewardFunction(model, tokenizer, reader="Bo")
    score = reward.score_encoded
    reward.score_encoded = lambda rows: seen.extend(found := score(rows)) or found
    prompts = chat_pairs.select_columns(["prompt"])
    trainer = ReinforceTrainer(tiny_folder(), [reward], args=reinforce_config(max_steps=1), train_dataset=prompts)
    trainer.train()
    weights = model.score.reader + model.score.reader_annotator[1]
    rewards = [each.reward for each in seen]
    assert rewards == pytest.approx([(each.z @ weights).item() for each in seen], abs=1e-5)
    assert len(set(rewards)) > 1


def test_a_mix_of_attributes_scores(several, tokenizer):
    model = several(outputs=2, attributes=["brief", "true"])
    ask = ("Name three colours.", "Red.")
    (score,) = RewardFunction(model, tokenizer, reader={"true": 2.0}).score([ask[0]], [ask[1]])
    assert score.reward == pytest.approx(2 * score.z[1].item(), abs=1e-5)
    with pytest.raises(ValueError, match=r"names the attributes \['kind'\], and the model has \['brief', 'true'\]"):
        RewardFunction(model, tokenizer, reader={"kind": 1.0})
    with pytest.raises(ValueError, match="was not trained with weights of annotators"):
        RewardFunction(model, tokenizer, reader="Ann")
    with pytest.raises(ValueError, match="has 3 weights, and the model 2 outputs"):
        RewardFunction(model, tokenizer, reader=[1.0, 2.0, 3.0])


def test_exports_say_whose_weights_they_have(several, tokenizer, tmp_path):
    for name, options in {"people": READERS[0], "prompt": READERS[2]}.items():
        several(**options).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    exported = export(str(tmp_path / "people"), tmp_path / "stock", "stock")
    assert exported.off < 1e-5
    assert exported.notes[0] == "It is read by the weights of the linear reader of annotators who are not known."
    assert exported.notes[0] in (tmp_path / "stock" / "README.md").read_text()
    with pytest.raises(ValueError, match="its head has 3 outputs"):
        export(str(tmp_path / "people"), tmp_path / "pooled", "pooling")
    with pytest.raises(ValueError, match="its reader's weights hang on the prompt"):
        export(str(tmp_path / "prompt"), tmp_path / "other", "stock")
