import random

import pytest

from toolkit.sandbox.rows import sandbox_tokenizer
from toolkit.sandbox.thoughts import JUDGE_OPTIONS, sample_thoughts, write_thought

PROMPT = "hi. the rose is red and needs oil. tell me its place and its colour and its need. be brief."


def test_a_thought_without_noise_says_what_is_there():
    # "thanks" fits how the prompt greets, "please" does not, "um" is filler; the rose is red and not blue, it is in
    # the garden, and of its need nothing is said. The hen is off the topic, the seed is not. 17 words fit: 5 for each
    # of three statements and 2 of a brief response.
    response = (
        "thanks, the rose lives in the garden. um, the rose is blue. please, the hen is red. you see a red seed."
    )
    found = write_thought(PROMPT, response, 0.0, random.Random(0))
    assert found == "polite 1 ugly 2. garden sure. red mistake. oil no. topic 3 / 4. write 22 / 17."


def test_noise_replaces_each_finding_by_chance():
    response, rng = "the rose is red.", random.Random(0)
    thoughts = [write_thought(PROMPT, response, 0.3, rng) for _ in range(2000)]
    # one of three by chance is the right one
    assert sum("red sure" in thought for thought in thoughts) / 2000 == pytest.approx(0.7 + 0.3 / 3, abs=0.03)
    assert {thought.split(".")[2] for thought in thoughts} == {" red sure", " red mistake", " red no"}


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
