"""
Against the package `rewardbench` 0.1.4. What it gave on the same scores came from its functions, in an environment of
its own: for pairs the share of `chosen > rejected` as in `rewardbench.rewardbench`, and
`utils.calculate_scores_per_section(EXAMPLE_COUNTS, SUBSET_MAPPING, …)`; for sets
`utils.reroll_and_score_dataset(rows, sizes)`, the mean of its `results`, and `utils.process_single_model(rows)` for
ties.
"""

import json

import pytest

from tests.evaluation.made import pairs_of, scored_by
from toolkit.evaluation.rewardbench import result_files, section_results, subset_results, write_results

PAIRS = {
    "alpacaeval-easy": [(2.0, 1.0), (1.0, 1.0), (0.5, 1.5)],
    "mt-bench-easy": [(1.0, 0.0)],
    "mt-bench-hard": [(1.0, 0.0), (0.0, 1.0)],
    "donotanswer": [(3.0, 1.0), (3.0, 2.0), (1.0, 2.0), (2.0, 0.0)],
    "math-prm": [(1.0, 0.0), (0.0, 0.5)],
    "hep-python": [(1.0, 0.5), (2.0, 0.5), (0.0, 0.5)],
}
OF_PAIRS = {
    "alpacaeval-easy": 0.3333333333333333,
    "donotanswer": 0.75,
    "hep-python": 0.6666666666666666,
    "math-prm": 0.5,
    "mt-bench-easy": 1.0,
    "mt-bench-hard": 0.5,
}
OF_SECTIONS = {"Chat": 0.47916666666666663, "Chat Hard": 0.5, "Safety": 0.75, "Reasoning": 0.5238095238095238}
SETS = [
    ("Factuality", "1", 1, [3.0, 1.0, 2.0, 0.0]),
    ("Factuality", "2", 1, [2.0, 2.0, 1.0, 2.0]),
    ("Factuality", "3", 1, [0.0, 1.0, 0.5, 2.0]),
    ("Math", "4", 1, [1.0, 1.0, 0.0, -1.0]),
    ("Math", "5", 1, [4.0, 3.0, 2.0, 1.0]),
    ("Ties", "ref:0", 1, [3.0, 1.0, 2.0]),
    ("Ties", "tied:0", 3, [5.0, 4.0, 4.5, 1.0, 2.0]),
    ("Ties", "ref:1", 1, [1.0, 1.5]),
    ("Ties", "tied:1", 2, [2.0, 1.0, 1.5, 0.0]),
    ("Ties", "ref:2", 1, [2.5, 1.0]),
    ("Ties", "tied:2", 2, [3.0, 3.0, 1.0]),
]
OF_SETS = {"Factuality": 0.4444444444444444, "Math": 0.75, "Ties": 0.5954742587317756}


def pair_file():
    """Rows of RewardBench, and the score of each response by its text."""
    rows, values = [], {}
    for subset, sides in PAIRS.items():
        for i, (chosen, rejected) in enumerate(sides):
            texts = {"chosen": f"good {subset} {i}", "rejected": f"bad {subset} {i}"}
            values |= {texts["chosen"]: chosen, texts["rejected"]: rejected}
            row = {"prompt": f"prompt {subset} {i}"} | texts
            rows.append(row | {"subset": subset, "id": len(rows)})
    return rows, values


def set_file():
    """Rows of RewardBench 2, and the score of each response by its text."""
    rows, values = [], {}
    for subset, id, correct, scores in SETS:
        texts = [f"{id} {i}" for i in range(len(scores))]
        values |= dict(zip(texts, scores, strict=True))
        row = {"id": id, "prompt": f"prompt {id}", "chosen": texts[:correct], "rejected": texts[correct:]}
        rows.append(row | {"num_correct": correct, "total_completions": len(scores), "subset": subset})
    return rows, values


def test_results_of_pairs_are_those_of_the_package():
    rows, values = pair_file()
    pairs = pairs_of(rows)
    results = subset_results(scored_by(values, pairs), pairs)
    assert results == OF_PAIRS  # the tie of the first subset is lost
    assert section_results(results) == pytest.approx(OF_SECTIONS, rel=1e-15)


def test_results_of_sets_are_those_of_the_package():
    rows, values = set_file()
    pairs = pairs_of(rows)
    assert subset_results(scored_by(values, pairs), pairs) == pytest.approx(OF_SETS, rel=1e-15)


def test_the_files_have_the_packages_form(tmp_path):
    rows, values = pair_file()
    pairs = pairs_of(rows)
    scored = scored_by(values, pairs)
    write_results(tmp_path, scored, pairs)
    results, scores = (json.loads(file.read_text()) for file in result_files(tmp_path, scored))
    assert results == OF_PAIRS | {"model": "model", "model_type": "Seq. Classifier", "chat_template": None}
    assert scores["scores_chosen"][:3] == [2.0, 1.0, 0.5]
    assert scores["results"][:4] == [1, 0, 0, 1]
    assert scores["text_rejected"][0][1] == {"role": "assistant", "content": "bad alpacaeval-easy 0"}
    assert scores["id"] == list(range(len(rows)))
    rows, values = set_file()
    pairs = pairs_of(rows)
    write_results(tmp_path / "two", scored_by(values, pairs), pairs)
    results, scores = (json.loads(file.read_text()) for file in result_files(tmp_path / "two", scored))
    assert results["Ties"] == pytest.approx(OF_SETS["Ties"])
    assert scores["scores"] == [each[3] for each in SETS]
    assert scores["results"] == [1, 1 / 3, 0, 1 / 2, 1, *[None] * 6]
    assert scores["num_correct"] == [each[2] for each in SETS]


def test_rows_without_a_subset_have_no_results():
    pairs = pairs_of([{"prompt": "p", "chosen": "a", "rejected": "b"}])
    with pytest.raises(ValueError, match="needs the column 'subset' in every row"):
        subset_results(scored_by({"a": 1.0, "b": 0.0}, pairs), pairs)
