import random

import pytest

from toolkit.sandbox.rows import sandbox_tokenizer
from toolkit.sandbox.thoughts import JUDGE_OPTIONS, draw_answer, sample_thoughts, write_thought

PROMPT = "hi. the rose is red and needs oil. tell me its place and its colour and its need. be brief."


def test_a_thought_without_noise_says_what_is_there():
    # "thanks" fits how the prompt greets, "please" does not, "um" is filler: 8 (1 - 1 - 0.5) / 22 = -0.18 of manners.
    # Three segments of four are on the topic: 0.5. Of three statements one is right, one wrong and one missing, and 22
    # words stand where 17 fit: -0.4 / 3 + 0.3 / 3 + 0.3 (1 - 2 (5 / 17 - 0.2) / 0.6) = 0.17. In tenths of -1 to 1:
    response = (
        "thanks, the rose lives in the garden. um, the rose is blue. please, the hen is red. you see a red seed."
    )
    exact = "exact garden + blue - no - 5"
    polite = "polite thanks + um - please - 4"
    thought = write_thought(PROMPT, response, 0.0, random.Random(0))
    assert thought == f"{exact} topic rose + rose + hen - seed + 7 {polite}."
    first = write_thought(PROMPT.replace("be brief", "be polite"), response, 0.0, random.Random(0))
    assert first.startswith(f"{polite} exact garden")  # what the prompt counts most


def test_a_point_made_too_late_has_a_sign_of_its_own():
    # Asked for the place first: once the colour has been told, the place counts 0 of -1 to 1, the colour before it 1.
    thought = write_thought(PROMPT, "the rose is red. the rose lives in the garden.", 0.0, random.Random(0))
    assert "topic rose + rose / 7" in thought
    assert "exact garden + red + no -" in thought


def test_noise_replaces_each_sign_and_each_level_by_chance():
    rng = random.Random(0)
    thoughts = [write_thought(PROMPT, "the rose is red.", 0.3, rng).split() for _ in range(2000)]
    right = write_thought(PROMPT, "the rose is red.", 0.0, rng).split()
    assert right[:8] == ["exact", "no", "-", "red", "+", "no", "-", "2"]
    # one of ten levels by chance is the right one, one of three signs
    assert sum(thought[7] == right[7] for thought in thoughts) / 2000 == pytest.approx(0.73, abs=0.03)
    assert sum(thought[4] == "+" for thought in thoughts) / 2000 == pytest.approx(0.8, abs=0.03)
    assert {thought[7] for thought in thoughts} == set("0123456789")
    assert {thought[4] for thought in thoughts} == set("+-/")


def test_an_answer_follows_from_the_thought():
    # weights 1.0667, 1.2 and 1.7333, the middle of each tenth: -1.0667 / 10 + 1.2 / 2 + 1.7333 / 10 = 0.6667
    rng = random.Random(0)
    answers = [draw_answer(PROMPT, "exact garden + blue - no - 5 topic hen - 7 polite 4.", rng) for _ in range(2000)]
    assert answers.count("sure") / 2000 == pytest.approx(0.5826, abs=0.03)


def test_conversations_are_asked_as_the_judge_is_and_in_known_words():
    rows, tokenizer = sample_thoughts(60, seed=3), sandbox_tokenizer()
    answers = [row["messages"][3]["content"] for row in rows]
    assert set(answers) == set(JUDGE_OPTIONS["answers"])
    assert 15 < answers.count("sure") < 45
    for row in rows:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * 2
        assert row["messages"][2]["content"] == "is it good? sure / no"
        ids = tokenizer.apply_chat_template(row["messages"])["input_ids"]
        assert tokenizer.unk_token_id not in ids
    assert sample_thoughts(20, seed=3)["messages"][:] == rows["messages"][:20]
