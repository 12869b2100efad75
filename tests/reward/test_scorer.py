import copy
import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.helpers import logged
from toolkit import AutoModelForMultiScaleReward, MultiScaleRewardConfig, MultiScaleRewardTrainer, RewardFunction
from toolkit.data.tokens import encode_response
from toolkit.policy.prefix_baseline import align_by_offsets, settled_length

CHAT = [{"role": "user", "content": "Who wrote Faust?"}]
SCALE_METRICS = [f"reward_model/{name}" for name in ("token", "segment", "response")]
GATE_METRICS = [f"reward_model/gate/{name}" for name in ("token", "segment", "response")]


@pytest.fixture(scope="module")
def reward(reward_folder):
    return RewardFunction(reward_folder())


def answers(*texts: str) -> list[list[dict]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


@pytest.mark.parametrize("form", ["plain", "chat"])
def test_scores_are_those_of_training(request, reward, reward_folder, reward_config, form):
    pairs = request.getfixturevalue(f"{form}_pairs")
    seen = []

    def keep(prediction):
        seen.extend(prediction.predictions)
        return {}

    trainer = MultiScaleRewardTrainer(
        reward_folder(), reward_config(), pairs, eval_dataset=pairs, compute_metrics=keep
    )
    trainer.evaluate()
    for side, expected in zip(("chosen", "rejected"), seen, strict=False):
        scores = reward.score(list(pairs["prompt"]), list(pairs[side]))
        torch.testing.assert_close(torch.tensor([score.reward for score in scores]), torch.tensor(expected))
        by_scale = torch.stack([score.scale_scores for score in scores])
        torch.testing.assert_close(by_scale, torch.tensor(seen[2 if side == "chosen" else 3]))


@pytest.mark.parametrize(
    ("device", "options", "expected"),
    [
        ("cuda", None, torch.bfloat16),
        ("cuda", {"dtype": "float32"}, torch.float32),
        ("cpu", None, torch.float32),
        ("cpu", {"dtype": "bfloat16"}, torch.bfloat16),
    ],
)
def test_a_model_by_name_is_scored_in_bfloat16_on_a_gpu(reward_folder, monkeypatch, device, options, expected):
    load, moved = AutoModelForMultiScaleReward.from_pretrained, []

    def load_and_stay(*args, **kwargs):  # there need be no GPU
        model = load(*args, **kwargs)
        model.to = lambda device: moved.append(torch.device(device).type)
        return model

    monkeypatch.setattr(AutoModelForMultiScaleReward, "from_pretrained", load_and_stay)
    model = RewardFunction(reward_folder(), device=device, model_init_kwargs=options).model
    assert moved == [device]
    assert {parameter.dtype for parameter in model.model.parameters()} == {expected}
    assert {parameter.dtype for parameter in model.score.parameters()} == {torch.float32}


def sampled(tokenizer, text: str, finished: bool = True) -> list[int]:
    """What a policy samples for a text: its tokens, and EOS if it came to an end."""
    return tokenizer(text)["input_ids"] + ([tokenizer.eos_token_id] if finished else [])


@pytest.mark.parametrize("form", ["plain", "chat"])
@pytest.mark.parametrize("finished", [True, False])
def test_sampled_ids_score_as_the_text_that_they_spell(reward, tokenizer, form, finished):
    text = " A man wrote it. He was old"
    prompt, completion = ("Q: Who?\nA:", text) if form == "plain" else (CHAT, answers(text)[0])
    (from_ids,) = reward.score([prompt], [completion], completion_ids=[sampled(tokenizer, text, finished)])
    row = encode_response(tokenizer, prompt, completion if form == "chat" else text, finished=finished)
    ids = torch.tensor([row.input_ids])
    with torch.no_grad():
        expected = reward.model(ids, response_start=torch.tensor([row.response_start])).logits.item()
    assert from_ids.reward == pytest.approx(expected, abs=1e-5)
    assert from_ids.same_tokens
    if finished:
        (from_text,) = reward.score([prompt], [completion])
        assert from_text.reward == pytest.approx(expected, abs=1e-5)
        assert not from_text.same_tokens


def test_further_ids_end_a_response(reward_folder, tokenizer, caplog):
    # GLM-4's policies stop at the token that opens the user's turn, which its template does not write at their end
    stop, text = tokenizer.convert_tokens_to_ids("<|im_start|>"), "A man wrote it."
    ids = [*tokenizer(text)["input_ids"], stop]
    finished = RewardFunction(reward_folder())([CHAT], answers(text))[0]
    found = [
        RewardFunction(reward_folder(), stop_token_ids=ends)([CHAT], answers(text), [ids])[0] for ends in ([], [stop])
    ]
    assert found[1] == pytest.approx(finished, abs=1e-5)
    assert abs(found[0] - finished) > 1e-3  # cut off, which is said


def test_the_end_of_a_model_with_several_ends_a_response(reward_folder, tokenizer):
    stop, text = tokenizer.convert_tokens_to_ids("<|im_start|>"), "A man wrote it."
    model = AutoModelForMultiScaleReward.from_pretrained(reward_folder())
    model.config.eos_token_id = [tokenizer.eos_token_id, stop]
    ids = [*tokenizer(text)["input_ids"], stop]
    found = RewardFunction(model, tokenizer)([CHAT], answers(text), [ids])
    assert found[0] == pytest.approx(RewardFunction(reward_folder())([CHAT], answers(text))[0], abs=1e-5)


@pytest.fixture
def trained_on(reward_folder, tokenizer):
    """A reward function whose model remembers the form of its training rows."""

    def make(conversational):
        model = AutoModelForMultiScaleReward.from_pretrained(reward_folder())
        model.settings.conversational = conversational
        return RewardFunction(model, tokenizer)

    return make


def test_plain_text_is_read_as_messages_by_a_model_of_conversations(trained_on):
    question, answer = CHAT[0]["content"], "A man wrote it."
    expected = trained_on(True)([CHAT], answers(answer))
    assert trained_on(True)([question], [answer]) == pytest.approx(expected, abs=1e-6)
    assert trained_on(None)([question], [answer]) != pytest.approx(expected, abs=1e-3)  # a model from before
    encoded = trained_on(True).encode(question, answer)
    assert encoded == encode_response(trained_on(True).processing_class, CHAT, answers(answer)[0])


def test_messages_are_refused_by_a_model_of_plain_text(trained_on):
    with pytest.raises(ValueError, match=r"was trained on plain text, and the prompts are messages.*Give prompts"):
        trained_on(False)([CHAT], answers("A man wrote it."))


@pytest.mark.parametrize(
    ("prompt", "response", "found"),
    [
        (
            [{"role": "user", "content": "sky?"}],
            "blue",
            "A prompt is messages and its response is plain text. Give both",
        ),
        ([{"role": "user", "content": "sky?"}], None, "is messages and its response is null"),
        ("sky?", [{"role": "assistant", "content": "blue"}], "is plain text and its response is messages"),
        (7, "blue", "A prompt is a number: 7 and its response is plain text"),
    ],
)
def test_a_prompt_and_a_response_of_different_kinds_are_refused(reward, prompt, response, found):
    with pytest.raises(ValueError, match=found):
        reward(prompts=[prompt], completions=[response])


@pytest.mark.parametrize("form", ["plain", "chat"])
def test_a_model_remembers_the_form_of_its_training_rows(request, reward_folder, reward_config, tmp_path, form):
    pairs = request.getfixturevalue(f"{form}_pairs")
    trainer = MultiScaleRewardTrainer(reward_folder(), reward_config(max_steps=1), pairs)
    trainer.save_model(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["multi_scale"]
    assert saved["conversational"] == (form == "chat")
    assert bool(saved["response_marker_ids"]) == (form == "chat")


@pytest.mark.parametrize("form", ["plain", "chat"])
def test_a_finished_and_a_cut_off_response_differ(reward, tokenizer, form):
    text = " He wrote"
    prompt, completion = ("Q: Who?\nA:", text) if form == "plain" else (CHAT, answers(text)[0])
    ids = [sampled(tokenizer, text, finished) for finished in (True, False)]
    finished, cut_off = reward.score([prompt] * 2, [completion] * 2, completion_ids=ids)
    assert abs(finished.reward - cut_off.reward) > 1e-3
    assert [len(score.prefix_values) for score in (finished, cut_off)] == [
        len(ids[0]) + (form == "chat"),  # the template ends a turn with a newline after EOS
        len(ids[1]),
    ]


def test_a_score_does_not_hang_on_how_the_policy_cut_the_text(reward, tokenizer):
    # letter by letter, as no tokenizer would cut the text and no reward model has seen it
    text, prompt = " green", tokenizer("Q:")["input_ids"]
    letters = [tokenizer(letter)["input_ids"][0] for letter in text]
    assert letters != tokenizer(text)["input_ids"]
    ids = [*letters, tokenizer.eos_token_id]
    (found,) = reward.score(["Q:"], [text], completion_ids=[ids])
    assert found.reward == pytest.approx(reward(["Q:"], [text])[0], abs=1e-5)
    assert found.reward == pytest.approx(reward(["Q:"], [text], completion_ids=[ids])[0], abs=1e-5)
    # a baseline reads the values of the letters, none of which knows what follows
    with torch.no_grad():
        output = reward.model(torch.tensor([prompt + ids]), response_start=torch.tensor([len(prompt)]))
    expected = output.prefix_values[0, len(prompt) :] * output.gate[0]
    torch.testing.assert_close(found.prefix_values, expected)
    assert abs(found.reward - found.prefix_values[-1].sum().item()) > 1e-2
    assert found.same_tokens


def test_where_the_ids_are_those_of_the_text_nothing_is_run_twice(reward, tokenizer):
    ids = sampled(tokenizer, " A man wrote it.")
    row = reward._rows(["Q:"], [" A man wrote it."], [ids], {})[0]
    assert row.followed is None
    assert row.encoded.input_ids[row.encoded.response_start :] == ids


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_and_order_do_not_matter(reward, reward_folder, plain_pairs, batch_size):
    prompts, completions = list(plain_pairs["prompt"]), list(plain_pairs["chosen"])
    expected = torch.tensor(reward(prompts, completions))
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0)).tolist()
    other = RewardFunction(reward_folder(), batch_size=batch_size)
    found = other([prompts[i] for i in order], [completions[i] for i in order])
    torch.testing.assert_close(torch.tensor(found), expected[order])


@pytest.mark.parametrize("form", ["plain", "chat"])
@pytest.mark.parametrize("limits", [{}, {"batch_size": 3}, {"max_tokens_per_batch": 150}])
def test_responses_to_a_prompt_share_it(request, reward_folder, form, limits):
    pairs = request.getfixturevalue(f"{form}_pairs")
    prompts = [prompt for prompt in pairs["prompt"] for _ in range(4)]
    completions = [pairs["rejected"][(3 * i + k) % len(pairs)] for i in range(len(pairs)) for k in range(4)]
    alone = RewardFunction(reward_folder(), batch_size=1)
    together = RewardFunction(reward_folder(), **limits)
    seen = []
    together.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    for one, other in zip(together.score(prompts, completions), alone.score(prompts, completions), strict=True):
        assert one.reward == pytest.approx(other.reward, abs=1e-5)
        torch.testing.assert_close(one.prefix_values, other.prefix_values, atol=1e-5, rtol=1e-5)
    rows = sum(shape[0] for shape in seen)
    assert rows < len(prompts)
    if "max_tokens_per_batch" in limits:
        assert max(shape.numel() for shape in seen) <= 150


def test_scores_tell_what_the_reward_is_made_of(reward):
    prompts, completions = ["Q: Who?\nA:"], [" A man. He was old."]
    (score,) = reward.score(prompts, completions)
    assert (
        reward(prompts, completions)[0]
        == score.reward
        == pytest.approx((score.gate * score.scale_scores).sum().item(), abs=1e-6)
    )
    torch.testing.assert_close(score.prefix_values[-1], score.gate * score.scale_scores)
    assert score.token_scores.mean().item() == pytest.approx(score.scale_scores[0].item(), abs=1e-5)
    ended = score.segment_scores[score.segment_scores != 0]
    assert len(ended) == 2  # EOS follows the last full stop in one run
    assert ended.mean().item() == pytest.approx(score.scale_scores[1].item(), abs=1e-5)
    assert score.prompt_value[:2].tolist() == [0.0, 0.0]
    assert score.ends[-1] == len(" A man. He was old.") + len("<|im_end|>")


def test_long_prompts_lose_their_beginning_and_are_counted(reward_folder, tokenizer):
    short = RewardFunction(reward_folder(), max_length=24)
    text, prompt = " Yes.", "Many words stand here before the question. Is it so? "
    metrics = {}
    ids = [sampled(tokenizer, text)] * 2
    found, other = short([prompt, "Q:"], [text, text], completion_ids=ids, log_metric=metrics.__setitem__)
    row = tokenizer(prompt)["input_ids"] + ids[0]
    assert len(row) > 24
    with torch.no_grad():
        start = torch.tensor([24 - len(ids[0])])
        expected = short.model(torch.tensor([row[-24:]]), response_start=start).logits.item()
    assert found == pytest.approx(expected, abs=1e-5)
    assert other == pytest.approx(RewardFunction(reward_folder())(["Q:"], [text])[0], abs=1e-5)
    assert metrics["reward_model/shortened_prompts"] == 1.0


def test_rows_are_cut_to_the_context_length_of_the_model(reward_folder):
    # a GPT-2 has no position beyond its table, so an uncut row would raise
    folder = reward_folder("gpt2")
    function = RewardFunction(folder)
    assert function.max_length == 256
    (found,) = function(["word " * 300], [" Yes."])
    assert math.isfinite(found)


def test_a_response_longer_than_the_limit_is_an_error(reward_folder):
    with pytest.raises(ValueError, match=r"Response 2 of the batch: a response of \d+ tokens does not fit"):
        RewardFunction(reward_folder(), max_length=12)(
            ["Q:", "Q:"], [" A.", " never and never again, never and never"]
        )


def test_ids_of_another_tokenizer_are_an_error(reward, other_tokenizer):
    with pytest.raises(ValueError, match=r"The ids of a response do not decode to its text.*policy_processing_class"):
        reward(["Q:"], [" Through the throne."], completion_ids=[sampled(other_tokenizer, " Through the throne.")])


@pytest.mark.parametrize("form", ["plain", "chat"])
@pytest.mark.parametrize("finished", [True, False])
def test_text_of_another_policy_is_cut_anew(reward_folder, reward, tokenizer, other_tokenizer, form, finished):
    text = " The river runs. Two"
    prompt, completion = ("Q: Who?\nA:", text) if form == "plain" else (CHAT, answers(text)[0])
    function = RewardFunction(reward_folder(), policy_processing_class=other_tokenizer)
    (score,) = function.score([prompt], [completion], completion_ids=[sampled(other_tokenizer, text, finished)])
    own = sampled(tokenizer, text, finished)
    (expected,) = reward([prompt], [completion], completion_ids=[own])
    assert score.reward == pytest.approx(expected, abs=1e-5)
    assert not score.same_tokens
    characters, ends = 0, []
    for i in tokenizer(text)["input_ids"]:
        characters += len(tokenizer.decode([i]))
        ends.append(characters)
    assert score.ends[: len(ends)] == ends
    assert len(score.ends) == len(score.prefix_values)
    assert all(end > len(text) for end in score.ends[len(ends) :])


def test_what_the_template_writes_before_a_message_is_read_before_the_sampled_ids(reward_folder, thinking):
    reward, text = RewardFunction(reward_folder(), thinking), "A man wrote it. He was old"
    ids = sampled(thinking, text)
    (score,) = reward.score([CHAT], answers(text), completion_ids=[ids])
    assert score.same_tokens
    assert thinking.decode(encode_response(thinking, CHAT, answers(text)[0]).input_ids).count("</think>") == 1
    assert score.head_tokens == len(thinking("<think>\n\n</think>\n\n")["input_ids"])
    (from_text,) = reward([CHAT], answers(text))
    assert score.reward == pytest.approx(from_text, abs=1e-5)


def test_a_message_with_a_thought_of_its_own_gets_no_other(reward_folder, thinking):
    reward, text = RewardFunction(reward_folder(), thinking), "<think>\nWho else?\n</think>\n\nA man wrote it."
    (score,) = reward.score([CHAT], answers(text), completion_ids=[sampled(thinking, text)])
    assert (score.same_tokens, score.head_tokens) == (True, 0)
    assert score.reward == pytest.approx(reward([CHAT], answers(text))[0], abs=1e-5)


def test_no_value_is_known_of_a_message_that_the_template_writes_otherwise(reward_folder, thinking):
    # It leaves out a line break at the beginning, so that what is read ends earlier in the message than it seems
    reward, text = RewardFunction(reward_folder(), thinking), "\nA man wrote it. He was old"
    (score,) = reward.score([CHAT], answers(text))
    found = align_by_offsets(score, [settled_length(text[: t + 1]) for t in range(len(text))])
    torch.testing.assert_close(found, score.prompt_value.expand_as(found))
    # but of the ids that were sampled, which have a row of their own, while the score is that of training
    (from_ids,) = reward.score([CHAT], answers(text), completion_ids=[sampled(thinking, text)])
    assert from_ids.same_tokens
    assert from_ids.reward == pytest.approx(score.reward, abs=1e-5)
    assert len(from_ids.prefix_values) > len(score.prefix_values)


def test_values_are_known_of_a_message_whose_end_the_template_trims(reward_folder, tokenizer, other_tokenizer):
    other = copy.copy(tokenizer)
    other.chat_template = tokenizer.chat_template.replace("message['content']", "message['content'] | trim")
    assert other.chat_template != tokenizer.chat_template
    reward = RewardFunction(reward_folder(), other, policy_processing_class=other_tokenizer)
    known = []
    for text in ("The river runs.", "The river runs.\n"):
        (score,) = reward.score([CHAT], answers(text), completion_ids=[sampled(other_tokenizer, text)])
        assert not score.same_tokens
        known.append(align_by_offsets(score, [settled_length(text[: t + 1]) for t in range(15)]))
    torch.testing.assert_close(*known)
    assert len(known[0].unique(dim=0)) > 2


@pytest.mark.parametrize("as_text", [False, True])
def test_tools_and_options_of_a_row_reach_the_template(reward_folder, tokenizer, as_text):
    other = copy.copy(tokenizer)
    other.chat_template = "{{ tools[0].function.name if tools }}{{ tone }}" + tokenizer.chat_template
    reward, tool = RewardFunction(reward_folder(), other), {"type": "function", "function": {"name": "clock"}}
    columns = {
        "tools": [json.dumps([tool]) if as_text else [tool], None],
        # As `datasets` fills in what only the other row has
        "chat_template_kwargs": [{"tone": "kind", "mood": None}, {"tone": None, "mood": "good"}],
    }
    found = reward([CHAT, CHAT], answers("At noon.", "At noon."), **columns)
    alone = RewardFunction(reward_folder(), other, chat_template_kwargs={"tools": [tool], "tone": "kind"})
    assert found[0] == pytest.approx(alone([CHAT], answers("At noon."))[0], abs=1e-5)
    assert found[1] == pytest.approx(reward([CHAT], answers("At noon."))[0], abs=1e-5)
    assert found[0] != pytest.approx(found[1], abs=1e-4)


def test_an_empty_response_has_no_reward(reward, tokenizer):
    batch = (["Q:", "Q:"], ["", " A."], [[], sampled(tokenizer, " A.")])
    empty, score = reward.score(*batch)
    assert empty is None
    assert reward(*batch) == [None, score.reward]


def test_a_response_that_ends_at_once_is_scored(reward, tokenizer):
    assert isinstance(reward(["Q:"], [""], completion_ids=[[tokenizer.eos_token_id]])[0], float)


def test_each_scale_is_logged(reward):
    metrics = {}
    batch = (["Q:", "Q: And?"], [" A.", " B, b."])
    reward(*batch, log_metric=metrics.__setitem__)
    assert metrics.keys() == {*SCALE_METRICS, *GATE_METRICS, "reward_model/shortened_prompts"}
    means = torch.stack([score.scale_scores for score in reward.score(*batch)]).mean(0)
    assert [metrics[name] for name in SCALE_METRICS] == pytest.approx(means.tolist(), abs=1e-6)
    assert sum(metrics[name] for name in GATE_METRICS) == pytest.approx(1.0)


def test_model_is_left_in_the_mode_it_was_in(reward_folder):
    model = AutoModelForMultiScaleReward.from_pretrained(reward_folder())
    function = RewardFunction(model)
    model.train()
    function(["Q:"], [" A."])
    assert model.training
    model.eval()
    function(["Q:"], [" A."])
    assert not model.training


def test_a_model_with_an_adapter_is_taken(reward_model, reward, tokenizer):
    model = get_peft_model(reward_model(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear"))
    found = RewardFunction(model, tokenizer)(["Q:"], [" A."])
    assert found == pytest.approx(reward(["Q:"], [" A."]), abs=1e-5)  # a new adapter adds nothing


def test_a_model_in_four_bits_scores(reward_folder):
    folder = reward_folder("qwen3", hidden_size=64, head_dim=32)  # bitsandbytes packs 64 weights a row for the CPU
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    function = RewardFunction(folder, model_init_kwargs={"quantization_config": quantization})
    found = function(["Q: Who?\nA:"] * 2, [" A man.", " Nobody, never."])
    whole = RewardFunction(folder)(["Q: Who?\nA:"] * 2, [" A man.", " Nobody, never."])
    assert all(map(math.isfinite, found))
    assert found != whole


def test_a_stock_reward_model_is_refused(tiny_folder):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_folder(), num_labels=1)
    with pytest.raises(ValueError, match="Qwen3ForSequenceClassification is not a multi-scale reward model"):
        RewardFunction(model)


@pytest.fixture(scope="module")
def adapter_folder(tiny_folder, cpu_options, chat_pairs, tmp_path_factory):
    """A reward model trained with LoRA for two steps."""
    folder = str(tmp_path_factory.mktemp("adapter"))
    config = MultiScaleRewardConfig(output_dir=folder, context="gate", max_steps=2, learning_rate=1e-2, **cpu_options)
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear")
    trainer = MultiScaleRewardTrainer(tiny_folder(), config, chat_pairs, peft_config=lora)
    trainer.train()
    trainer.save_model(folder)
    return folder


@pytest.mark.parametrize(("trainer_class", "config_class"), [(RLOOTrainer, RLOOConfig), (GRPOTrainer, GRPOConfig)])
@pytest.mark.parametrize("form", ["callable", "folder", "adapter", "callable of adapter"])
def test_drops_into_trls_trainers(
    request,
    reinforce_config,
    tiny_folder,
    reward_folder,
    adapter_folder,
    chat_pairs,
    trainer_class,
    config_class,
    form,
):
    function = {
        "callable": lambda: RewardFunction(reward_folder()),
        "folder": reward_folder,
        "adapter": lambda: adapter_folder,
        "callable of adapter": lambda: RewardFunction(adapter_folder),
    }[form]()
    trainer = trainer_class(
        model=tiny_folder(),
        reward_funcs=function,
        args=reinforce_config(config_class, max_steps=2),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in chat_pairs["prompt"]]),
    )
    trainer.train()
    assert len(logged(trainer, "reward")) == 2
    assert all(math.isfinite(reward) and reward != 0 for reward in logged(trainer, "reward"))
    if form.startswith("callable"):
        assert all(len(logged(trainer, name)) == 2 for name in (*SCALE_METRICS, *GATE_METRICS))
        assert "rewards/RewardFunction/mean" in trainer.state.log_history[0]


def test_a_model_is_read_from_a_path(reward_folder, chat_pairs):
    prompts, responses = [chat_pairs[0]["prompt"]], [chat_pairs[0]["chosen"]]
    found, expected = (RewardFunction(of)(prompts, responses) for of in (Path(reward_folder()), reward_folder()))
    assert found == expected
