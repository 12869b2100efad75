import json

import pytest
from datasets import Dataset

from toolkit.data.loading import named_tables
from toolkit.evaluation.pairs import PairReader, RankedList, ResponseSet

ROWS = [
    {"prompt": "p", "chosen": "good", "rejected": "bad", "subset": "one", "id": "x"},
    {"prompt": "p", "chosen": "better", "rejected": "bad", "subset": "two", "id": "y"},
    {"prompt": "q", "chosen": "yes", "rejected": "no", "subset": "one", "id": "z"},
]
SETS = [
    {"id": "7", "prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "b"], "num_correct": 1, "subset": "Focus"},
    {"id": "ref:1", "prompt": "r", "chosen": ["d"], "rejected": ["e"], "num_correct": 1, "subset": "Ties"},
    {"id": "tied:1", "prompt": "t", "chosen": ["f", "g"], "rejected": ["h"], "num_correct": 2, "subset": "Ties"},
]


def read(tmp_path, *files, size=None):
    """Rows of files, as the command reads them; each file is named after its place."""
    reader = PairReader(size)
    for number, rows in enumerate(files):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for name, table in named_tables(str(path)):
            reader.add(name, table)
    return reader.result()


def test_a_response_that_stands_in_several_pairs_is_scored_once(tmp_path):
    pairs = read(tmp_path, ROWS)
    assert pairs.responses == ["good", "bad", "better", "yes", "no"]
    assert pairs.prompts == ["p", "p", "p", "q", "q"]
    assert (pairs.chosen.tolist(), pairs.rejected.tolist()) == ([0, 2, 3], [1, 1, 4])
    assert pairs.prompt_numbers.tolist() == [0, 0, 1]
    assert pairs.lengths.tolist() == [4, 3, 6, 3, 2]
    assert pairs.ids == ["x", "y", "z"]


def test_pairs_are_told_by_what_their_file_says(tmp_path):
    other = [{"prompt": "w", "chosen": "yes", "rejected": "no", "annotator": 3}]
    pairs = read(tmp_path, ROWS, other)
    assert pairs.groups == {
        "file": ["0.jsonl"] * 3 + ["1.jsonl"],
        "subset": ["one", "two", "one", None],
        "annotator": [None, None, None, "3"],
    }
    assert pairs.ids[3] == 1  # the number in its file, which has no column `id`


def test_the_same_text_to_another_prompt_is_another_response(tmp_path):
    rows = [{"prompt": prompt, "chosen": "yes", "rejected": "no"} for prompt in ("p", "q")]
    assert len(read(tmp_path, rows).responses) == 4


def test_sets_of_responses_are_read_as_rewardbench_2_has_them(tmp_path):
    pairs = read(tmp_path, SETS)
    assert pairs.responses == ["a", "b", "c", "d", "e", "f", "g", "h"]
    assert pairs.sets == [
        ResponseSet([0, 1, 2, 1], 1, "Focus", "7"),
        ResponseSet([3, 4], 1, "Ties", "ref:1"),
        ResponseSet([5, 6, 7], 2, "Ties", "tied:1"),
    ]
    # each right one beside each wrong one
    sides = list(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True))
    assert sides == [(0, 1), (0, 2), (0, 1), (3, 4), (5, 7), (6, 7)]
    assert pairs.groups["subset"] == ["Focus"] * 3 + ["Ties"] * 3


def test_a_response_that_is_said_to_be_right_and_wrong_is_no_pair_with_itself(tmp_path):
    pairs = read(tmp_path, [{"prompt": "p", "chosen": ["a", "b"], "rejected": ["a", "c"], "id": "1"}])
    sides = zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)
    assert [pairs.responses[better] + pairs.responses[worse] for better, worse in sides] == ["ac", "ba", "bc"]


def test_responses_to_a_conversation_are_messages(tmp_path):
    prompt = [{"role": "user", "content": "p"}]
    pairs = read(tmp_path, [{"prompt": prompt, "chosen": ["a"], "rejected": ["b"], "id": "1"}])
    assert pairs.responses == [[{"role": "assistant", "content": text}] for text in "ab"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_correct": 2}, r"row 2, column 'num_correct': found a number: 2\. The row has 1"),
        ({"chosen": []}, r"row 2, column 'chosen': found a list: '\[\]'\. Write a list of texts"),
        ({"rejected": [" "]}, r"row 2, column 'rejected'.*none of them empty"),
        ({"prompt": ""}, r"row 2, column 'prompt'.*Write text or messages"),
        ({"id": "1"}, r"row 2, column 'id': found text: '1'\. In the subset of ties write 'ref:'"),
    ],
)
def test_a_set_that_is_wrong_is_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, [SETS[0], SETS[1] | change])


def ranked(prompt, *texts):
    """Every pair of a ranking, the best one first."""
    return [
        {"prompt": prompt, "chosen": better, "rejected": worse}
        for i, better in enumerate(texts)
        for worse in texts[i + 1 :]
    ]


def test_pairs_that_leave_no_doubt_which_response_is_best_make_a_set(tmp_path):
    tied = [{"prompt": "tied", "chosen": text, "rejected": "worst"} for text in ("one", "other")]
    pairs = read(tmp_path, [*ranked("p", "first", "second", "third"), *tied])
    found = [([pairs.responses[i] for i in each.responses], each.correct) for each in pairs.sets]
    assert found == [(["first", "second", "third"], 1), (["one", "other", "worst"], 2)]
    assert pairs.undecided == 0


def test_prompts_where_the_best_response_is_not_known_are_counted(tmp_path):
    circle = [("a", "b"), ("b", "c"), ("c", "a")]
    open_end = [("a", "b"), ("b", "c")]  # a and c were not compared
    rows = [
        {"prompt": prompt, "chosen": better, "rejected": worse}
        for prompt, sides in (("circle", circle), ("open", open_end))
        for better, worse in sides
    ]
    pairs = read(tmp_path, rows)
    assert (pairs.sets, pairs.undecided) == ([], 2)


def test_some_rows_are_drawn_alike_each_time(tmp_path):
    rows = [{"prompt": str(i), "chosen": "yes", "rejected": "no"} for i in range(50)]
    once, again = read(tmp_path, rows, size=10), read(tmp_path, rows, size=10)
    assert once.prompts == again.prompts
    assert len(once.chosen) == 10
    assert once.prompts != [str(i) for i in range(10) for _ in range(2)]


def test_what_the_template_is_given_stays_beside_a_response():
    reader = PairReader()
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "chat_template_kwargs": {"x": i}} for i in (1, 2)]
    reader.add("rows", Dataset.from_list(rows))
    assert reader.result().columns == {"chat_template_kwargs": [{"x": 1}, {"x": 1}, {"x": 2}, {"x": 2}]}


def test_ranked_lists_are_kept_whole_beside_their_pairs(tmp_path):
    rows = [
        {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [2, 1, 2], "id": "x"},
        {"prompt": "q", "responses": ["d", "e"], "ranks": [1, 2], "id": "y"},
        {"prompt": "p", "responses": ["c", "f"], "ranks": [1, 2], "id": "z"},
    ]
    pairs = read(tmp_path, rows)
    assert pairs.responses == ["b", "a", "c", "d", "e", "f"]
    assert pairs.lists == [
        RankedList([1, 0, 2], [1, 0, 1], 0, "x"),
        RankedList([3, 4], [0, 1], 1, "y"),
        RankedList([2, 5], [0, 1], 0, "z"),
    ]
    assert list(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)) == [(0, 1), (0, 2), (3, 4), (2, 5)]
    assert pairs.ids == ["x", "x", "y", "z"]
    assert len(read(tmp_path, rows, size=1).lists) == 1  # of rows, so that a list is drawn or not


def test_a_rejected_response_stands_at_the_prompt_that_it_answers(tmp_path):
    rows = [
        {"prompt": "p", "chosen": "yes", "rejected": "no", "rejected_prompt": "q"},
        {"prompt": "p", "chosen": "yes", "rejected": "never", "rejected_prompt": "q"},
        {"prompt": "p", "chosen": "yes", "rejected": "no"},
    ]
    pairs = read(tmp_path, rows)
    assert list(zip(pairs.prompts, pairs.responses, strict=True)) == [
        ("p", "yes"), ("q", "no"), ("q", "never"), ("p", "no")
    ]  # fmt: skip
    assert pairs.prompt_numbers.tolist() == [0, 0, 0]
    assert pairs.sets == []  # they are not responses to one prompt
