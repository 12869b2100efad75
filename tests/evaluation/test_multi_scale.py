import json

import pytest
import torch
from datasets import Dataset

from tests.helpers import PAIRS
from toolkit import RewardFunction
from toolkit.data.tastes import attribute_gaps
from toolkit.evaluation.command import EvaluationArguments, main
from toolkit.evaluation.pairs import PairReader
from toolkit.evaluation.scorers import OURS, open_scorer, score
from toolkit.reward.readers import read_gap, weights_of

PEOPLE = ["Ann", "Bo", "Cy", None]


@pytest.fixture
def saved(several, tokenizer, tmp_path):
    """Folder of a model with several outputs."""

    def make(**options):
        several(**options).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    return make


@pytest.fixture
def rows(chat_pairs):
    grades = [
        {"chosen": {"brief": i % 3, "true": 1.0}, "rejected": {"brief": 1, "true": 2}} for i in range(len(PAIRS))
    ]
    people = [PEOPLE[i % 4] for i in range(len(PAIRS))]
    return chat_pairs.add_column("annotator", people).add_column("attributes", grades)


def scored(folder, rows):
    reader = PairReader()
    reader.add("pairs", rows)
    pairs = reader.result()
    return pairs, score(folder, "people", pairs, open_scorer(folder, OURS, 4, None, None, False), OURS, 4)


def test_each_pair_is_read_as_its_annotator_reads_it(saved, rows, caplog):
    folder = saved(outputs=3, reader_weights="annotator")
    pairs, (shared, own) = scored(folder, rows)
    assert (shared.name, own.name) == ("people", "people (reader)")
    assert set(shared.scales) == {"token", "segment", "response"}
    for who in PEOPLE:
        reward = RewardFunction(folder, reader=who if who in ("Ann", "Bo") else None)
        some = rows.filter(lambda row, who=who: row["annotator"] == who)
        sides = [torch.tensor(reward(some["prompt"], some[side])) for side in ("chosen", "rejected")]
        places = torch.tensor([label == who for label in pairs.groups["annotator"]])
        torch.testing.assert_close(own.gaps_of(pairs)[places], (sides[0] - sides[1]).double(), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(own.gaps, shared.gaps_of(pairs))
    assert "12 of 24 pairs have no annotator whom it knows" in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {"outputs": 2, "reader": "gaussian"},
        {"outputs": 4, "reader": "skew"},
        {"outputs": 4, "reader": "skew", "reader_weights": "prompt"},
        {"outputs": 3, "reader": "mixture", "reader_weights": "prompt"},
        {"outputs": 2, "reader": "mixture", "reader_weights": "annotator"},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_gaps_are_those_of_the_reader(saved, rows, options):
    folder = saved(**options)
    own = scored(folder, rows)[1][1]
    reward = RewardFunction(folder)
    chosen, rejected = (reward.score(rows["prompt"], rows[side]) for side in ("chosen", "rejected"))
    for i, (good, bad) in enumerate(zip(chosen, rejected, strict=True)):
        weights = good.weights
        if options.get("reader_weights") == "annotator":
            head, place = reward.model.score, {"Ann": 0, "Bo": 1}.get(rows[i]["annotator"])
            values = head.reader if place is None else head.reader + head.reader_annotator[place]
            weights = weights_of(values.detach(), "mixture", "annotator")
        gap = read_gap(good.z, bad.z, weights, options["reader"]).double()
        torch.testing.assert_close(own.gaps[i], gap, atol=1e-5, rtol=1e-5)


def test_a_reader_that_is_a_score_is_not_there_twice(saved, rows):
    assert len(scored(saved(outputs=2, attributes=["brief", "true"]), rows)[1]) == 1


def test_an_attribute_is_ranked_by_the_output_that_was_taught_it(saved, rows, tmp_path):
    folder = saved(outputs=2, attributes=["brief", "other"])
    Dataset.from_list(list(rows)).to_json(tmp_path / "rows.jsonl")
    files = {"output_file": "figures.json", "scores_file": "scores.jsonl", "page": "page"}
    main(
        EvaluationArguments(
            models=[folder],
            dataset_name=[str(tmp_path / "rows.jsonl")],
            **{option: str(tmp_path / name) for option, name in files.items()},
        )
    )
    figures = json.loads((tmp_path / "figures.json").read_text())["models"]
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    reward = RewardFunction(folder)
    said = [torch.tensor(reward(rows["prompt"], rows[side])) for side in ("chosen", "rejected")]
    z = [torch.stack([each.z for each in reward.score(rows["prompt"], rows[side])]) for side in ("chosen", "rejected")]
    gaps = {"brief": (z[0] - z[1])[:, 0], "true": said[0] - said[1]}
    for name, differ in (("brief", 16), ("true", 24)):
        more = torch.tensor([row[name] for row in (attribute_gaps(row["attributes"])[0] for row in rows)])
        right = (gaps[name] * more.sign())[more != 0] > 0
        found = figures["model"]["attributes"][name]
        assert (found["pairs"], found["value"]) == (differ, pytest.approx(right.double().mean().item()))
        assert figures["longer wins"]["attributes"][name]["pairs"] == differ
    assert lines[0]["attributes"] == {"brief": -1.0, "true": -1.0}
    assert lines[0]["scores"]["model: brief"]["chosen"] == pytest.approx(z[0][0, 0].item(), abs=1e-5)
    assert "by the output that was taught this attribute" in (tmp_path / "page" / "index.html").read_text()


def test_scores_files_have_the_gaps_of_readers(saved, rows, tmp_path):
    folder, rows = saved(outputs=2, reader="gaussian"), rows.add_column("subset", ["all"] * len(rows))
    Dataset.from_list(list(rows)).to_json(tmp_path / "rows.jsonl")
    out = {name: str(tmp_path / name) for name in ("page", "rewardbench_dir")}
    data = [str(tmp_path / "rows.jsonl")]
    main(EvaluationArguments(models=[folder], dataset_name=data, scores_file=str(tmp_path / "scores.jsonl"), **out))
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    own = scored(folder, rows)[1][1]
    assert [line["gaps"]["model (reader)"] for line in lines] == pytest.approx(own.gaps.tolist(), abs=1e-6)
    assert "model (reader)" not in lines[0]["scores"]
    assert len(list((tmp_path / "rewardbench_dir" / "eval-set").iterdir())) == 1
    assert not (tmp_path / "page" / "scores-2.png").exists()


@pytest.mark.parametrize(
    ("value", "gaps", "odd"),
    [
        ({"chosen": {"a": 3, "b": None}, "rejected": {"a": 1.5, "b": 2}}, {"a": 1.5}, []),
        ([{"a": 1}, {"a": 4, "c": 2}], {"a": -3.0}, []),
        ({"a": 2, "topic": "tea", "odd": float("nan")}, {"a": 2.0}, ["attributes.odd", "attributes.topic"]),
        ([{"a": 1, "is": True}, {"a": "2"}], {"a": -1.0}, ["attributes.is"]),  # text as in CSV files, as in training
        ([{"a": 1}, {"a": "two"}], {}, ["attributes.a"]),
        ([{"a": 1}, {"a": 2}, {"a": 3}], {}, ["attributes"]),
        ("true", {}, ["attributes"]),
        ({"chosen": None, "rejected": {"a": 2}}, {}, []),
        (None, {}, []),
    ],
)
def test_attributes_that_are_numbers_have_gaps(value, gaps, odd):
    found, no_numbers = attribute_gaps(value)
    assert (found, sorted(no_numbers)) == (gaps, odd)


def test_attributes_that_are_no_numbers_are_counted(caplog):
    pairs = PairReader()
    row = {"prompt": "p", "chosen": "c", "rejected": "r"}
    told = [{"a": 1.0, "b": "x"}, {"a": 2.0, "b": "y"}, {"a": 3.0, "b": None}]
    pairs.add("rows", Dataset.from_list([{**row, "prompt": f"p{i}", "attributes": a} for i, a in enumerate(told)]))
    assert pairs.result().attributes["a"].tolist() == [1.0, 2.0, 3.0]
    assert "Of 3 pairs these are no finite numbers, by which nothing is evaluated: `attributes.b` of 2." in caplog.text
