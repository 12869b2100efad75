import json
from collections import Counter

import pytest
from datasets import Dataset

from toolkit.data.held_out import hold_out


def rows_of(*counts):
    """So many rows of each prompt, one prompt after the other in turns."""
    prompts = [f"p{i}" for turn in range(max(counts)) for i, count in enumerate(counts) if turn < count]
    return Dataset.from_dict({"prompt": prompts, "row": list(range(len(prompts)))})


def test_no_prompt_is_on_both_sides_and_every_row_on_one():
    rows = rows_of(*[3] * 20, *[1] * 40)
    train, test = hold_out(rows, 20, seed=1)
    assert not set(train["prompt"]) & set(test["prompt"])
    assert sorted([*train["row"], *test["row"]]) == list(range(100))
    assert list(train["row"]) == sorted(train["row"])  # in their order
    assert 20 <= len(test) <= 22  # up to what the last prompt brings
    again, other = (hold_out(rows, 20, seed=seed)[1]["row"][:] for seed in (1, 2))
    assert test["row"][:] == again != other


def test_prompts_of_messages_are_told_apart():
    prompts = [[{"role": "user", "content": f"q{i % 6}"}] for i in range(12)]
    train, test = hold_out(Dataset.from_list([{"prompt": prompt} for prompt in prompts]), 4, seed=0)
    sides = [Counter(json.dumps(prompt) for prompt in part["prompt"]) for part in (train, test)]
    assert [sorted(side.values()) for side in sides] == [[2] * 4, [2] * 2]


def test_each_prompt_is_held_out_as_often():
    # 3 of 12 prompts with one row each: over 400 seeds each is held out 100 times, standard deviation 8.7
    found = Counter(name for seed in range(400) for name in hold_out(rows_of(*[1] * 12), 3, seed)[1]["prompt"])
    assert sum(found.values()) == 1200
    assert all(abs(count - 100) < 40 for count in found.values())


@pytest.mark.parametrize(("counts", "size"), [((3, 2), 4), ((2, 2), 3), ((1, 1, 1), 3)])
def test_where_nothing_would_be_left_it_says_so(counts, size):
    with pytest.raises(ValueError, match=f"{sum(counts)} rows of {len(counts)} different prompts"):
        hold_out(rows_of(*counts), size, seed=0)


def test_rows_of_one_prompt_cannot_be_divided():
    with pytest.raises(ValueError, match="All 3 rows are of one prompt, by which they cannot be divided"):
        hold_out(Dataset.from_list([{"prompt": "Sky?", "id": i} for i in range(3)]), 1, 0)
