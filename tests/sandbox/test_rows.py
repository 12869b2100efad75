import random
from itertools import pairwise

import pytest
import torch
from transformers import AutoTokenizer

from toolkit.sandbox.rows import (
    gold_judge,
    sample_demonstrations,
    sample_pairs,
    sample_prompts,
    sandbox_decoder,
    sandbox_tokenizer,
)
from toolkit.sandbox.world import (
    SCALE,
    TASKS,
    gold_range,
    gold_reward,
    parse_prompt,
    words_of,
    write_prompt,
    write_response,
)

PROMPT = "hi. my boat is lost and i feel sad. what now?"


@pytest.fixture(scope="module")
def pairs():
    return sample_pairs(4000, seed=5)


def texts_of(row):
    return [row[side][0]["content"] for side in ("prompt", "chosen", "rejected")]


# Data sets


@pytest.mark.parametrize("sample", [sample_prompts, sample_demonstrations, sample_pairs])
def test_a_small_data_set_begins_a_larger_one_and_another_seed_is_another(sample):
    large = sample(40, seed=3)
    assert sample(15, seed=3).to_list() == large.to_list()[:15]
    prompts = {row["prompt"][0]["content"] for row in large}
    assert len(prompts & {row["prompt"][0]["content"] for row in sample(40, seed=4)}) <= 1


def test_tasks_can_be_chosen_and_all_four_come_by_default():
    assert set(sample_prompts(100, seed=0)["task"]) == set(TASKS)
    assert set(sample_pairs(20, seed=0, tasks=["code"])["task"]) == {"code"}


def test_pairs_differ_and_chosen_and_rejected_are_messages(pairs):
    for row in pairs.select(range(200)):
        _, chosen, rejected = texts_of(row)
        assert chosen != rejected
        assert [m["role"] for side in ("prompt", "chosen", "rejected") for m in row[side]] == [
            "user", "assistant", "assistant",
        ]  # fmt: skip


def test_an_equal_response_is_written_again(monkeypatch):
    texts = iter(["a", "a", "a", "b"])
    monkeypatch.setattr("toolkit.sandbox.rows._write_varied", lambda prompt, rng: next(texts))
    assert set(texts_of(sample_pairs(1, seed=0)[0])[1:]) == {"a", "b"}


def test_gold_reward_ranks_85_to_92_percent_of_the_labels_right(pairs):
    chosen = gold_judge(pairs["prompt"], pairs["chosen"])
    rejected = gold_judge(pairs["prompt"], pairs["rejected"])
    assert 0.85 < sum(a > b for a, b in zip(chosen, rejected, strict=True)) / len(pairs) < 0.92


def test_strength_is_the_margin_of_five_votes_and_grows_with_the_gap(pairs):
    gaps = {0.2: [], 0.6: [], 1.0: []}  # 3 to 2, 4 to 1, 5 to 0
    for row in pairs:
        prompt, chosen, rejected = texts_of(row)
        gap = gold_reward(prompt, chosen).total - gold_reward(prompt, rejected).total
        gaps[row["strength"]].append(gap)
    means = [sum(values) / len(values) for values in gaps.values()]
    assert all(second > first + 0.5 for first, second in pairwise(means))


# Gold reward, worked by hand


def check_gold(prompt, response, parts, task_weights):
    gold = gold_reward(prompt, response)
    assert gold[1:4] == pytest.approx(parts)
    weights = [SCALE * weight / sum(task_weights) for weight in task_weights]
    assert gold.weights == pytest.approx(weights)
    assert gold.total == pytest.approx(sum(w * p for w, p in zip(weights, parts, strict=True)))


def test_gold_of_an_answer_with_a_wrong_place():
    # 11 words, one fitting courtesy: 8/11. Both sentences name the fox: 1. One of two points right: correctness 0,
    # completeness 1. Asked for are 2 * 5 + 7 = 17 words; 6/17 off is 6/17 - 0.2 beyond what is free, of 0.6.
    length = 1 - 2 * (6 / 17 - 0.2) / 0.6
    check_gold(
        "hi. the fox is red and needs oil. tell me its colour and its place. be polite.",
        "hello, the fox is red. the fox lives in the farm.",
        (8 / 11, 1.0, 0.3 + 0.3 * length),
        (4 * 0.8, 0.9, 1.3),
    )


def test_gold_of_a_summary_out_of_order():
    # 17 words, "please" fits "good day": 8/17. The second sentence comes too late (0), the third is off topic (-1),
    # the fourth repeats the second (-1): mean of 1, 0, -1, -1. All said and right, and 17 is within a fifth of 15.
    check_gold(
        "good day. summarize this: the cow was old. the hen was wet.",
        "the hen was wet, please. the cow was old. the fox was dry. the cow was old.",
        (8 / 17, -0.25, 1.0),
        (0.7, 1.4, 0.9),
    )


def test_gold_of_a_rude_reply_without_advice():
    # "kindly" does not fit "hi" (-1), "fool" is forbidden (-1.5): 8 * -2.5 / 10 is below -1. One sentence of two is on
    # the topic. One of two points made, and right: correctness and completeness 0. 10 of 2 * 6 + 2 = 14 words.
    length = 1 - 2 * (4 / 14 - 0.2) / 0.6
    check_gold(
        PROMPT + " be exact. be brief.",
        "kindly, i am sorry about the boat. what a fool!",
        (-1.0, 0.0, 0.3 * length),
        (1.4, 0.8, 4 * 0.8),
    )


def test_gold_of_a_function_without_its_check():
    # "-" and names are words: 5 + 4 + 2 = 11, one fitting courtesy. Two lines of three use x or y. Of three points one
    # is right, two are made: correctness -1/3, completeness 1/3. 11 of 3 * 4 + 12 / 2 = 18 words.
    length = 1 - 2 * (7 / 18 - 0.2) / 0.6
    check_gold(
        "good day. write a function speed of x and y. it checks x and adds them. go step by step. give details.",
        "def speed(x, y): # certainly\n return x - y\n print(z)",
        (8 / 11, 1 / 3, 0.4 * -1 / 3 + 0.3 / 3 + 0.3 * length),
        (0.8, 4 * 1.1, 1.1),
    )


def test_cues_and_tasks_move_the_weights_and_their_sum_stays():
    weights = [gold_reward(PROMPT + cue, "").weights for cue in ("", " be polite.", " stay on topic.", " be exact.")]
    assert [max(range(3), key=w.__getitem__) for w in weights[1:]] == [0, 1, 2]
    assert [sum(w) for w in weights] == pytest.approx([SCALE] * 4)


def test_cues_of_length_move_the_aim():
    aims = [parse_prompt(PROMPT + cue).aim for cue in (" be brief.", "", " give details.")]
    assert aims == [14, 19, 24]  # 6 words for each of two points, and 2, 7 or 12


def test_the_range_holds_every_response_and_its_best_response_is_perfect():
    rng = random.Random(0)
    for _ in range(1000):
        prompt = write_prompt(rng.choice(TASKS), rng)
        low, high = gold_range(prompt)
        assert (low, high) == pytest.approx((-SCALE, SCALE))
        total = gold_reward(prompt, write_response(prompt, (rng.random(), rng.random(), rng.random()), rng)).total
        assert low - 1e-9 <= total <= high + 1e-9


@pytest.mark.parametrize("part", [0, 1, 2])
def test_each_knob_raises_its_own_part(part):
    rng = random.Random(0)
    means = []
    for level in (0.0, 0.5, 1.0):
        quality = tuple(level if i == part else 0.5 for i in range(3))
        prompts = [write_prompt(rng.choice(TASKS), rng) for _ in range(300)]
        golds = [gold_reward(prompt, write_response(prompt, quality, rng)) for prompt in prompts]
        means.append(sum(gold[1 + part] for gold in golds) / 300)
    assert all(second > first + 0.2 for first, second in pairwise(means))


@pytest.mark.parametrize(
    "response", ["", " ", "...", "\n\n", "ß 猫 🐈 <|im_end|>", "thefox  is", "def (", "{value}", []]
)
def test_any_response_has_a_gold_reward(response):
    low, high = gold_range(PROMPT)
    assert low - 1e-9 <= gold_reward(PROMPT, response).total <= high + 1e-9


@pytest.mark.parametrize(
    "prompt",
    [
        "what is the capital of france?", "", "hi. the fox is purple and needs oil. tell me its colour.",
        "hi. summarize this: the fox was old. so there.", "hi. my boat is fine and i feel sad. what now?",
        "the fox is red and needs oil. tell me its colour and its place.", [{"role": "assistant", "content": PROMPT}],
    ],
)  # fmt: skip
def test_a_foreign_prompt_is_refused(prompt):
    with pytest.raises(ValueError, match="is not from the sandbox"):
        gold_reward(prompt, "hello.")


def test_messages_and_text_get_the_same_reward():
    prompt = [{"role": "system", "content": "hello"}, {"role": "user", "content": PROMPT}]
    text = "i am sorry about the boat."
    judged = gold_judge([prompt, PROMPT], [[{"role": "assistant", "content": text}], text], completion_ids=[[1], [1]])
    assert judged[0] == judged[1] == gold_reward(PROMPT, text).total


def test_stuffing_courtesy_pleases_a_proxy_and_costs_gold(pairs):
    # The proxy counts courtesies that fit, which is what a reward model learns from pairs without flattery in them
    proxies, golds = [], []
    for row in pairs.select(range(300)):
        prompt, chosen, _ = texts_of(row)
        request = parse_prompt(prompt)
        flattery = " ".join(request.courtesy * 2) + "."
        texts = chosen, f"{chosen} {flattery}", flattery
        proxies.append([sum(word in request.courtesy for word in words_of(text)) for text in texts])
        golds.append([gold_reward(prompt, text).total for text in texts])
    assert all(stuffed > honest for honest, stuffed, _ in proxies)
    honest, stuffed, flattery = torch.tensor(golds).mean(0)
    assert honest > stuffed + 0.2 * 2 * SCALE > flattery + 0.4 * 2 * SCALE  # a fifth of the range each


@pytest.mark.parametrize(("word", "token"), [("hello", 0.5), ("kindly", -0.5), ("um", -0.25), ("fool", -0.75)])
def test_marks_of_words(word, token):
    # One word in 16 counts: eight times its mark, 1, -1, -0.5 or -1.5, over 16. "hello" fits "hi", "kindly" does not
    assert gold_reward(PROMPT, f"{word} " + "boat " * 15).token == pytest.approx(token)


def test_flattery_turns_the_token_part_around():
    # Of 8 words 1, 2, 3 and 4 are courtesies, eight times their mean mark is 1, 2, 3 and 4
    texts = [" ".join(["hello"] * count + ["boat"] * (8 - count)) for count in (1, 2, 3, 4)]
    assert [gold_reward(PROMPT, text).token for text in texts] == [1.0, 1.0, 0.0, -1.0]


# Labels


# Tokenizer and decoder


def test_every_text_is_encoded_without_loss_and_offsets_point_at_it(pairs):
    tokenizer = sandbox_tokenizer()
    for text in (text for row in pairs for text in texts_of(row)):
        encoded = tokenizer(text, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
        assert [text[start:end] for start, end in offsets] == [tokenizer.decode([token]) for token in ids]
        assert len(ids) <= 48


def test_template_marks_the_turns_and_the_assistants_tokens():
    tokenizer = sandbox_tokenizer()
    messages = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "i am sorry.\nsure."}]
    text = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True) == text
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert tokenizer.decode(encoded["input_ids"]) == text + "i am sorry.\nsure.<|im_end|>\n"
    masks = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    assert tokenizer.decode([token for token, mask in masks if mask]) == "i am sorry.\nsure.<|im_end|>"


def test_tokenizer_is_small_has_its_special_tokens_and_survives_saving(tmp_path):
    tokenizer = sandbox_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == len(tokenizer) < 800
    assert (loaded.pad_token, loaded.eos_token, loaded.unk_token) == ("<|pad|>", "<|im_end|>", "<|unk|>")
    assert loaded.chat_template == tokenizer.chat_template
    text = f"<|im_start|>user\n{PROMPT}<|im_end|>\nzebra"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded(text)["input_ids"][-1] == loaded.unk_token_id


def test_decoder_fits_the_tokenizer_and_its_seed_leaves_chance_alone():
    tokenizer = sandbox_tokenizer()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, again, other = sandbox_decoder(32, 1), sandbox_decoder(32, 1), sandbox_decoder(32, 1, seed=1)
    assert torch.rand(1) == expected
    weights = [model.model.embed_tokens.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert weights[0].shape == (len(tokenizer), 32)
    assert first.lm_head.weight is weights[0]
    for config in (first.config, first.generation_config):
        assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
