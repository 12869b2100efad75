import math

import pytest

from toolkit.data.degrees import rank_by_removal, shared_weight, word_weights
from toolkit.sandbox.rows import sample_demonstrations
from toolkit.sandbox.world import gold_reward

RESPONSE = "Well. A is b. C is d!\nOh my. E is f. "
KEY = {"A": 1.0, "C": 3.0, "E": 2.0}


def key(sentence):
    return KEY.get(sentence[0], 0.0)


def test_sentences_go_by_their_weight_and_filler_is_the_control():
    found = rank_by_removal(RESPONSE, key)
    assert found == {
        "responses": [RESPONSE.strip(), "A is b. C is d!\nE is f.", "Well. A is b. Oh my. E is f.", "Well. Oh my."],
        "ranks": [0, 0, 1, 2],
    }
    two = rank_by_removal(RESPONSE, key, degrees=(1, 2), control=False)
    assert two["responses"][1:] == ["Well. A is b. Oh my. E is f.", "Well. A is b. Oh my."]
    assert two["ranks"] == [0, 1, 2]


def test_a_response_with_too_little_to_remove_makes_no_list():
    assert rank_by_removal("Well. A is b. C is d.", key) is None
    assert rank_by_removal("A is b. C is d. E is f.", key) is None  # nothing would be left
    assert rank_by_removal("A is b. C is d. E is f. E is f.", key)["ranks"] == [0, 1, 2]  # without filler no control


def test_weights_of_words_by_hand():
    weights = word_weights(["The sky is blue.", "The sea is blue", "the snow"])
    assert weights == pytest.approx(
        {"the": 0, "is": math.log(1.5), "blue": math.log(1.5)} | dict.fromkeys(("sky", "sea", "snow"), math.log(3))
    )
    weigh = shared_weight("Sky and the SEA?", weights)
    assert weigh("the sky, the sky and the sea") == pytest.approx(2 * math.log(3))  # each word once
    assert weigh("blue snow") == 0


def test_a_made_list_says_less_and_less_of_what_was_asked():
    rows = sample_demonstrations(300, seed=5)
    weights = word_weights(row["prompt"][0]["content"] for row in rows)
    falls, shorter_is_better = [], 0
    for row in rows:
        prompt, response = (row[column][0]["content"] for column in ("prompt", "completion"))
        if found := rank_by_removal(response, shared_weight(prompt, weights)):
            whole, *_, less, least = (gold_reward(prompt, text).response for text in found["responses"])
            falls.append(whole > less > least)
            _, *control, other, _ = found["responses"]
            shorter_is_better += any(len(text) < len(other) for text in control)
    assert len(falls) > 50
    assert sum(falls) / len(falls) > 0.9
    assert shorter_is_better > 5  # lists in which preferring the longer response is wrong
