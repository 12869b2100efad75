import math
import re

import numpy as np
import pytest
import torch

from tests.evaluation.made import pairs_of, scored_by
from toolkit.evaluation.command import score_lines
from toolkit.evaluation.figures import figures_of
from toolkit.evaluation.pairs import Scored
from toolkit.evaluation.report import all_tables
from toolkit.evaluation.scorers import RULE, longer_wins
from toolkit.evaluation.verdict import verdict


def rows_and_scores(count=300, prompts=90, seed=0):
    """Pairs, several a prompt, with scores of two models, some of them tied."""
    draw = np.random.default_rng(seed)
    rows, values = [], ({}, {})
    for i in range(count):
        prompt = f"prompt {draw.integers(prompts)}"
        texts = [f"{i} {side} " + "x" * int(draw.integers(1, 60)) for side in ("good", "bad")]
        rows.append({"prompt": prompt, "chosen": texts[0], "rejected": texts[1], "task": f"task {i % 3}"})
        for text, better in zip(texts, (1, 0), strict=True):
            quality = 0.8 * better + draw.normal() + 0.01 * len(text)
            values[0][text] = float(np.float32(quality))
            values[1][text] = float(np.round(2 * draw.normal() + better))
    pairs = pairs_of(rows)
    return rows, values, pairs


def numpy_figures(rows, values):
    """The figures anew, from rows and scores alone, without a function of the project."""
    gap = np.array([values[row["chosen"]] - values[row["rejected"]] for row in rows])
    right = (gap > 0) + (gap == 0) / 2
    names = {name: i for i, name in enumerate(dict.fromkeys(row["prompt"] for row in rows))}
    prompt = np.array([names[row["prompt"]] for row in rows])
    share, count, groups, z = right.mean(), len(gap), len(names), 1.959963984540054
    rest = right - share
    sums = np.bincount(prompt, rest)
    design = (groups / (groups - 1) * (sums**2).sum()) / (count / (count - 1) * (rest**2).sum())
    n = count / max(1, design)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    centre = share + z * z / (2 * n)
    said = 1 / (1 + np.exp(-np.abs(gap)))
    place = np.minimum(((said - 0.5) * 20).astype(int), 9)
    lengths = np.array([[len(row["chosen"]), len(row["rejected"])] for row in rows])
    ratio = np.log(lengths[:, 0]) - np.log(lengths[:, 1])
    slope = (gap * ratio).sum() / (ratio**2).sum()
    like = lengths.max(1) <= 1.2 * lengths.min(1)
    every = np.array([[values[row["chosen"]], values[row["rejected"]]] for row in rows])
    out = gap - slope * ratio
    return {
        "accuracy": share,
        "low": (centre - half) / (1 + z * z / n),
        "high": (centre + half) / (1 + z * z / n),
        "log_loss": np.logaddexp(0, -gap).mean(),
        "error": sum(abs(right[place == k].sum() - said[place == k].sum()) for k in range(10)) / count,
        "like": right[like].mean(),
        "out": ((out > 0) + (out == 0) / 2).mean(),
        "slope": slope,
        "correlation": np.corrcoef(every.ravel(), lengths.ravel())[0, 1],
    } | {f"task {i}": right[i::3].mean() for i in range(3)}


def test_all_figures_are_those_of_numpy():
    rows, values, pairs = rows_and_scores()
    found = figures_of([scored_by(each, pairs, f"model {i}") for i, each in enumerate(values)], pairs)
    assert (found.pairs, found.prompts) == (300, len({row["prompt"] for row in rows}))
    for model, each in zip(found.models.values(), values, strict=True):
        expected = numpy_figures(rows, each)
        length, calibration = model.length, model.calibration
        assert {
            "accuracy": model.accuracy.value,
            "low": model.accuracy.low,
            "high": model.accuracy.high,
            "log_loss": calibration.log_loss,
            "error": calibration.error,
            "like": length.like_length.value,
            "out": length.regressed_out.value,
            "slope": length.slope,
            "correlation": length.correlation,
            **{label: part.value for label, part in model.groups["task"].items()},
        } == pytest.approx(expected, rel=1e-12)


def test_differences_are_between_the_same_pairs():
    _, values, pairs = rows_and_scores()
    one, other = (scored_by(each, pairs, name) for each, name in zip(values, ("one", "other"), strict=True))
    found = figures_of([one, other, longer_wins(pairs)], pairs)
    names = [(each.first, each.second) for each in found.differences]
    assert names == [("one", "other"), ("one", "longer wins"), ("other", "longer wins")]
    for each in found.differences:
        shares = [found.models[name].accuracy.value for name in (each.first, each.second)]
        assert each.value == pytest.approx(shares[0] - shares[1])
        assert each.low < each.value < each.high
        assert each.p <= each.p_of_family <= 1


def test_a_score_does_not_differ_from_itself():
    _, values, pairs = rows_and_scores(60)
    found = figures_of([scored_by(values[0], pairs, name) for name in ("one", "two")], pairs)
    (same,) = found.differences
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_best_of_several_by_hand():
    rows = [
        {"prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "one", "id": "1"},
        {"prompt": "q", "chosen": ["e"], "rejected": ["f", "g", "h"], "subset": "two", "id": "2"},
        {"prompt": "r", "chosen": ["i", "j"], "rejected": ["k", "l"], "subset": "two", "id": "3"},
    ]
    pairs = pairs_of(rows)
    values = dict(zip("abcd", (3, 1, 1, 2), strict=True)) | dict(zip("efgh", (2, 2, 0, 1), strict=True))
    values |= dict(zip("ijkl", (0, 1, 2, 0), strict=True))
    (model,) = figures_of([scored_by(values, pairs)], pairs).models.values()
    assert model.best_of.value == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert model.best_of.chance == pytest.approx((1 / 4 + 1 / 4 + 1 / 2) / 3)
    assert model.best_of_subsets["two"].value == pytest.approx(1 / 4)
    assert (model.best_of_subsets["one"].sets, model.best_of.sets) == (1, 3)


def test_one_prompt_leaves_no_others_to_fit_a_temperature_on():
    rows = [{"prompt": "p", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(4)]
    pairs = pairs_of(rows)
    values = {row[side]: float(side == "chosen") for row in rows for side in ("chosen", "rejected")}
    (model,) = figures_of([scored_by(values, pairs)], pairs).models.values()
    assert model.calibration.temperature is model.calibration.scaled_error is None
    assert model.accuracy[:3] == pytest.approx((1.0, 0.2065, 1.0), abs=1e-4)  # Wilson's of one in one


def planted(right=0.8, length=0.0, sure=1.0, count=600):
    """Rows, and scores that rank a share right, by length or by quality alone, as sure as they should be or not."""
    draw = np.random.default_rng(1)
    rows, values = [], {}
    for i in range(count):
        sizes = [40, 60] if i % 2 else [60, 40]
        texts = [f"{i:03d} {side}".ljust(size, "x") for side, size in zip(("good", "bad "), sizes, strict=True)]
        rows.append({"prompt": f"prompt {i}", "chosen": texts[0], "rejected": texts[1]})
        gap = math.log(right / (1 - right)) * (1 if draw.random() < right else -1)
        if length:
            gap = length if sizes[0] > sizes[1] else -length
        values |= {texts[0]: sure * gap, texts[1]: 0.0}
    return rows, values


def test_the_verdict_on_a_good_calibrated_model():
    rows, values = planted()
    pairs = pairs_of(rows)
    figures = figures_of([scored_by(values, pairs, "mine"), longer_wins(pairs)], pairs)
    text = verdict(figures)
    assert text.startswith("On 600 pairs mine ranks 8")
    assert re.search(
        r"right: \d+\.\d points above \(\+.* to \+.*\) preferring the longer response\. It is calib", text
    )
    assert "; no pair has responses that are about as long." in text


def test_the_verdict_on_a_model_that_is_too_sure():
    rows, values = planted(sure=4.0)
    pairs = pairs_of(rows)
    figures = figures_of([scored_by(values, pairs, "mine"), longer_wins(pairs)], pairs)
    assert "It is too sure (its probabilities are off by" in verdict(figures)
    (model, _) = figures.models.values()
    assert model.calibration.temperature == pytest.approx(4, rel=0.1)
    assert model.calibration.scaled_error < model.calibration.error / 3


def test_the_verdict_on_a_model_that_goes_by_length():
    rows, values = planted(length=2.0)
    rows = [row for i, row in enumerate(rows) if i % 2 == 0 or i % 6 == 1]  # the longer response wins three in four
    pairs = pairs_of(rows)
    figures = figures_of([scored_by(values, pairs, "mine"), longer_wins(pairs)], pairs)
    assert figures.models["mine"].accuracy.value == pytest.approx(0.75)
    assert "right: not clearly apart (+0.0 points, +0.0 to +0.0) from preferring the longer response." in verdict(
        figures
    )


def test_two_models_that_are_alike_are_not_told_apart():
    rows, values = planted()
    pairs = pairs_of(rows)
    noise = torch.Generator().manual_seed(0)
    mine = scored_by(values, pairs, "mine")
    other = Scored(
        "other", mine.kind, mine.scores + 0.01 * torch.randn(len(mine.scores), generator=noise).double(), {}
    )
    figures = figures_of([mine, other, longer_wins(pairs)], pairs)
    assert re.search(
        "right: not clearly apart .* from (mine|other), the next best, and .* points above", verdict(figures)
    )
    assert figures.models["longer wins"].kind == RULE


def test_the_verdict_where_likely_lengths_leave_chance_alone():
    # half of the pairs are of like length, and ranked by a coin; on the others the longer one is right and wins
    rows, values = [], {}
    for i in range(400):
        texts = [f"{i:03d} good".ljust(90 if i % 2 else 50, "x"), f"{i:03d} bad".ljust(50, "x")]
        rows.append({"prompt": f"prompt {i}", "chosen": texts[0], "rejected": texts[1]})
        values |= {texts[0]: 1.0 if i % 2 else float(i % 4 == 0), texts[1]: 0.5}
    pairs = pairs_of(rows)
    figures = figures_of([scored_by(values, pairs, "mine"), longer_wins(pairs)], pairs)
    assert figures.models["mine"].accuracy.value == pytest.approx(0.75)
    assert figures.models["mine"].length.like_length[:1] == (0.5,)
    assert "length may explain" in verdict(figures)


def test_the_best_model_is_found_wherever_it_stands():
    rows, values = planted()
    pairs = pairs_of(rows)
    noise = torch.Generator().manual_seed(0)
    mine = scored_by(values, pairs, "mine")
    worse = Scored("worse", mine.kind, torch.randn(len(mine.scores), generator=noise).double(), {})
    text = verdict(figures_of([worse, mine, longer_wins(pairs)], pairs))
    assert text.startswith("On 600 pairs mine ranks 8")
    assert re.search(r"right: \d+\.\d points above \(\+\d.* to \+\d.*\) worse, the next best, and", text)


def test_figures_of_lists_by_hand():
    rows = [
        {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [1, 2, 3]},  # in order: 1, and the best is found
        {"prompt": "q", "responses": ["d", "e", "f"], "ranks": [1, 2, 3]},  # the two best swapped: 1/3
        {"prompt": "q", "responses": ["g", "h"], "ranks": [1, 2]},  # equal scores: 0, and half a best one
    ]
    values = {"a": 3, "b": 2, "c": 1, "d": 1, "e": 2, "f": 0, "g": 5, "h": 5}
    once, twice = (pairs_of(times * rows) for times in (1, 2))
    found = figures_of([scored_by(values, once)], once).models["model"].lists
    assert found.lists == 3
    assert found.kendall_tau.value == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert found.top_1.value == pytest.approx((1 + 0 + 0.5) / 3)
    # A bootstrap over two prompts draws one of them twice in half of its draws
    assert found.kendall_tau[1:] == pytest.approx((1 / 6, 1))
    # The same lists once more tell no more of other prompts
    assert figures_of([scored_by(values, twice)], twice).models["model"].lists == found._replace(lists=6)
    assert "Ranked lists" in all_tables(figures_of([scored_by(values, once)], once))
    pairs = pairs_of([{"prompt": "p", "chosen": "a", "rejected": "b"}])
    assert figures_of([scored_by(values, pairs)], pairs).models["model"].lists is None


def test_every_figure_of_lists_can_be_made_of_the_scores_file():
    rows = [{"prompt": "p", "responses": ["a", "b", "c"], "ranks": [2, 1, 2], "id": 7}]
    pairs = pairs_of(rows)
    line = score_lines([scored_by({"a": 3, "b": 2, "c": 1}, pairs)], pairs)[-1]
    assert line == {"id": 7, "prompt": 0, "ranks": [1, 0, 1], "scores": {"model": [3, 2, 1]}}
