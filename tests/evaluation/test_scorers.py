import math
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from toolkit import RewardFunction, ThoughtReward
from toolkit.evaluation.multi_scale import MIX
from toolkit.evaluation.pairs import PairReader
from toolkit.evaluation.scorers import (
    CAUSAL,
    JUDGE,
    MEAN,
    OURS,
    STOCK,
    SUM,
    kind_of,
    longer_wins,
    open_scorer,
    score,
)
from toolkit.generative.turns import JudgeSettings

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


def scorer(name, batch_size=4, max_length=None, plain_text=False):
    return open_scorer(str(name), kind_of(str(name)), batch_size, max_length, None, plain_text)


def scored(name, table, **options):
    """Scores of both sides of each pair, by name."""
    reader = PairReader()
    reader.add("pairs", table)
    pairs, kind = reader.result(), kind_of(str(name))
    found = score(str(name), "model", pairs, scorer(name, **options), kind, options.get("batch_size", 4))
    return {each.name: (each.scores[pairs.chosen], each.scores[pairs.rejected]) for each in found}


@pytest.fixture(scope="module")
def stock(tiny_folder, tmp_path_factory):
    """Folder of a stock reward model, whose tokenizer pads on the left."""
    folder = tmp_path_factory.mktemp("stock")
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_folder(), num_labels=1)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(folder)
    return folder


def text_of_row(tokenizer, row, side):
    return tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=False)


def test_a_stock_model_scores_as_it_does_alone(stock, chat_pairs):
    tokenizer, model = AutoTokenizer.from_pretrained(stock), AutoModelForSequenceClassification.from_pretrained(stock)
    chosen, _ = scored(stock, chat_pairs)["model"]
    for i in (0, 5, 11):
        ids = tokenizer(text_of_row(tokenizer, chat_pairs[i], "chosen"), add_special_tokens=False, return_tensors="pt")
        assert chosen[i].item() == pytest.approx(model(**ids).logits.item(), abs=1e-5)


def test_a_stock_model_scores_as_in_trls_trainer(stock, chat_pairs, plain_pairs, tmp_path):
    for table in (chat_pairs, plain_pairs):
        chosen, rejected = scored(stock, table, plain_text=True)["model"]
        options = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "max_length": None}
        # TRL's figures are means over batches: here there is one
        config = RewardConfig(str(tmp_path), per_device_eval_batch_size=64, activation_checkpointing=False, **options)
        trainer = RewardTrainer(str(stock), args=config, train_dataset=table, eval_dataset=table)
        figures = trainer.evaluate()
        assert (chosen - rejected).mean().item() == pytest.approx(figures["eval_margin"], abs=1e-5)
        assert (chosen > rejected).double().mean().item() == pytest.approx(figures["eval_accuracy"])


@pytest.mark.parametrize("kind", [OURS, STOCK, CAUSAL])
def test_neither_the_batch_nor_the_side_of_padding_changes_a_score(
    kind, stock, reward_folder, tiny_folder, chat_pairs
):
    folder = {OURS: reward_folder, STOCK: lambda: stock, CAUSAL: tiny_folder}[kind]()
    one = scored(folder, chat_pairs, batch_size=1)  # no padding at all
    for batch_size in (7, 64):
        for name, sides in scored(folder, chat_pairs, batch_size=batch_size).items():
            for side, alone in zip(sides, one[name], strict=True):
                torch.testing.assert_close(side, alone, atol=2e-5, rtol=1e-5)


def test_a_causal_model_gives_the_log_probability_of_the_response(tiny_folder, chat_pairs):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    model = AutoModelForCausalLM.from_pretrained(tiny_folder())
    found = scored(tiny_folder(), chat_pairs, batch_size=7)
    for i in (0, 5, 11):
        row = chat_pairs[i]
        opened = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text_of_row(tokenizer, row, "chosen"), add_special_tokens=False)["input_ids"]
        start = len(tokenizer(opened, add_special_tokens=False)["input_ids"])
        every = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        total = sum(every[t - 1, ids[t]].item() for t in range(start, len(ids)))
        assert found[f"model ({SUM})"][0][i].item() == pytest.approx(total, abs=1e-4)
        assert found[f"model ({MEAN})"][0][i].item() == pytest.approx(total / (len(ids) - start), abs=1e-5)


def test_our_models_have_their_scales_beside_the_mix(reward_folder, chat_pairs):
    reader = PairReader()
    reader.add("pairs", chat_pairs)
    pairs = reader.result()
    (found,) = score("ours", "ours", pairs, scorer(reward_folder()), OURS, 4)
    reward = RewardFunction(reward_folder(), batch_size=4)
    expected = reward.score(pairs.prompts, pairs.responses)
    torch.testing.assert_close(found.scores, torch.tensor([each.reward for each in expected]).double())
    assert list(found.scales) == ["token", "segment", "response"]
    torch.testing.assert_close(
        torch.stack(list(found.scales.values()), 1), torch.stack([each.scale_scores for each in expected]).double()
    )


def test_plain_text_is_a_message_for_a_model_with_a_template_unless_it_is_not(stock, caplog):
    messages = [[{"role": "user", "content": "Hello?"}], [{"role": "assistant", "content": "Hi."}]]
    (talk,) = scorer(stock)([messages[0]], [messages[1]], {})["score"]
    (text,) = scorer(stock)(["Hello?"], ["Hi."], {})["score"]
    (plain,) = scorer(stock, plain_text=True)(["Hello?"], ["Hi."], {})["score"]
    assert text == talk != plain


@pytest.mark.parametrize("task", ["SEQ_CLS", "CAUSAL_LM"])
def test_an_adapter_scores_as_the_model_that_was_saved(task, tiny_folder, chat_pairs, tmp_path, tokenizer):
    auto = AutoModelForSequenceClassification if task == "SEQ_CLS" else AutoModelForCausalLM
    torch.manual_seed(2)
    model = get_peft_model(
        auto.from_pretrained(tiny_folder(), **({"num_labels": 1} if task == "SEQ_CLS" else {})),
        LoraConfig(task_type=task, init_lora_weights=False, **LORA),
    ).eval()
    model.save_pretrained(tmp_path)
    row = chat_pairs[0]
    ids = tokenizer(text_of_row(tokenizer, row, "chosen"), add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        logits = model(**ids).logits
    if task == "SEQ_CLS":
        expected = logits.item()
    else:
        opened = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        start = len(tokenizer(opened, add_special_tokens=False)["input_ids"])
        of_tokens = logits[0, :-1].log_softmax(-1).gather(1, ids["input_ids"][0, 1:, None])
        expected = of_tokens[start - 1 :].sum().item()
    found = scorer(tmp_path)([row["prompt"]], [row["chosen"]], {})
    assert next(iter(found.values()))[0] == pytest.approx(expected, abs=1e-4)


def test_prompts_that_do_not_fit_lose_tokens_from_their_left(tiny_folder):
    long, short = "word " * 40 + "end of it?", "end of it?"
    cut = scorer(tiny_folder(), max_length=24, plain_text=True)([long], ["Yes."], {})[SUM][0]
    whole = scorer(tiny_folder(), plain_text=True)([long, short], ["Yes.", "Yes."], {})[SUM]
    assert cut not in whole
    with pytest.raises(ValueError, match="does not fit into `max_length=3`"):
        scorer(tiny_folder(), max_length=3)([long], ["Yes."], {})


def test_kinds_are_told_by_the_folder(stock, reward_folder, tiny_folder):
    assert (kind_of(str(stock)), kind_of(reward_folder()), kind_of(tiny_folder())) == (STOCK, OURS, CAUSAL)


def test_what_is_no_model_of_these_kinds_is_one_line(tiny_folder, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_folder(), num_labels=3)
    model.save_pretrained(tmp_path / "three")
    with pytest.raises(ValueError, match="is a classifier with 3 labels, and a reward model has one"):
        kind_of(str(tmp_path / "three"))
    model.model.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"has the architectures \['Qwen3Model'\].*Correct the name"):
        kind_of(str(tmp_path / "bare"))
    other = AutoModelForCausalLM.from_pretrained(tiny_folder())
    get_peft_model(other, LoraConfig(**LORA)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="is for the task None"):
        kind_of(str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match=r"There is no folder '\./absent' \(model\)"):
        kind_of("./absent")


def test_a_model_without_a_head_is_refused(tiny_folder, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_folder(), num_labels=1)
    state = {key: value for key, value in model.state_dict().items() if key != "score.weight"}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"lack score\.weight, which would be random"):
        scorer(tmp_path)


def test_a_score_that_is_no_number_is_named(chat_pairs):
    reader = PairReader()
    reader.add("pairs", chat_pairs)
    with pytest.raises(ValueError, match="Model 'name' gives score nan to a response"):
        score("name", "label", reader.result(), lambda prompts, *_: {"score": [math.nan] * len(prompts)}, STOCK, 4)


def test_the_longer_response_wins_by_its_characters(chat_pairs):
    reader = PairReader()
    reader.add("pairs", chat_pairs)
    pairs = reader.result()
    found = longer_wins(pairs)
    longer = [len(row["chosen"][0]["content"]) > len(row["rejected"][0]["content"]) for row in chat_pairs]
    assert (found.scores[pairs.chosen] > found.scores[pairs.rejected]).tolist() == longer


def test_our_models_are_opened_by_their_own_scorer(reward_folder):
    assert next(iter(scorer(reward_folder())(["Hello?"], ["Hi."], {}))) == MIX


def test_a_judge_scores_as_its_reward_function(tiny_folder, chat_pairs, tmp_path):
    folder = str(shutil.copytree(tiny_folder(), tmp_path / "judge"))
    JudgeSettings(num_thoughts=2, max_completion_length=6).save_settings(folder)
    assert kind_of(folder) == JUDGE
    few = chat_pairs.select(range(3))
    chosen, rejected = scored(folder, few)["model"]
    responses = [text for pair in few for text in (pair["chosen"], pair["rejected"])]
    prompts = [pair["prompt"] for pair in few for _ in range(2)]
    alone = ThoughtReward(folder, batch_size=4)(prompts, responses)  # whose thoughts follow from the texts of a call
    assert [*chosen.tolist(), *rejected.tolist()] == pytest.approx(alone[::2] + alone[1::2], abs=1e-6)
    assert len(set(alone)) == 6
    with pytest.raises(ValueError, match="reads whole texts with its own weights"):
        scorer(folder, max_length=100)
    JudgeSettings(protocol="pair").save_settings(folder)
    with pytest.raises(ValueError, match="ThoughtReward is for `protocol='point'`, not 'pair'"):
        scorer(folder)
