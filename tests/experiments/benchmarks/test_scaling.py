"""The benchmark of growing cost: its pairs and its floor by hand, and a tiny run."""

import json
from dataclasses import fields
from functools import cache

import pytest
import torch

from tests.helpers import load_recipe
from toolkit.data.batches import MultiScaleCollator
from toolkit.data.packing import shared_prefix_length
from toolkit.experiments.benchmarks.rounds import Round
from toolkit.experiments.benchmarks.scaling import (
    SHARED,
    UNSHARED,
    VOCABULARY,
    Point,
    ScalingArguments,
    measure_point,
    new_reward_model,
    summarize_point,
    sweeps_of,
    synthetic_pairs,
    train_step,
)
from toolkit.planning.memory import Decoder
from toolkit.sandbox.models import train_tokenizer


@pytest.mark.parametrize(
    ("response", "share", "prompt"),
    # 12 / (4 + 12) is three quarters; nine tenths of 80 are 72; without a share the gate still needs a token to read
    [(4, 0.75, 12), (8, 0.9, 72), (8, 0.5, 8), (8, 0.0, 1)],
)
def test_a_prompt_has_its_share_of_the_row(response, share, prompt):
    for pair in synthetic_pairs(Point(response, share, "32x1"), pairs=50, seed=0):
        sides = [pair["chosen_ids"], pair["rejected_ids"]]
        assert [len(side) for side in sides] == [prompt + response] * 2
        assert pair["chosen_start"] == pair["rejected_start"] == pair["shared_tokens"] == prompt
        assert shared_prefix_length(sides) == prompt  # in 50 pairs of 256 tokens two would else begin alike by chance
        assert min(map(min, sides)) >= 3  # neither padding nor the beginning or the end of a turn
        assert max(map(max, sides)) < VOCABULARY


def test_a_seed_gives_the_same_pairs_and_another_seed_others():
    point = Point(4, 0.5, "32x1")
    assert synthetic_pairs(point, 2, seed=0) == synthetic_pairs(point, 2, seed=0) != synthetic_pairs(point, 2, seed=1)


def test_a_sweep_varies_one_thing():
    args = ScalingArguments(response_lengths=[4, 8], prompt_shares=[0.1], sizes=["32x1"], base_size="64x2")
    assert sweeps_of(args) == {
        "response_length": [Point(4, 0.5, "64x2"), Point(8, 0.5, "64x2")],
        "prompt_share": [Point(128, 0.1, "64x2")],
        "size": [Point(128, 0.5, "32x1")],
    }


def test_the_operations_of_a_point_are_those_by_hand():
    # Four tokens of prompt, four of each response. One layer: four maps of 32 x 32 and three of 32 x 96 are 13,312
    # weights, and attention has 32 channels.
    args = ScalingArguments(pairs=1, repeats=1)
    decoder, rounds = measure_point(Point(4, 0.5, "32x1"), args)
    summary = summarize_point(rounds, decoder, rate=1e9)
    # two rows of 8: 16 tokens, 2 · 8² = 128 squares; forward 2 · (13,312 · 16 + 32 · 128), and backward twice that
    assert (summary["layouts"][UNSHARED]["tokens"], summary["layouts"][UNSHARED]["flops"]) == (16, 3 * 434_176)
    # shared: 12 tokens, 4² + 2 · (2 · 4 · 4 + 4²) = 112 squares; forward 2 · (13,312 · 12 + 32 · 112)
    assert (summary["layouts"][SHARED]["tokens"], summary["layouts"][SHARED]["flops"]) == (12, 3 * 326_656)
    assert summary["flops_gain"] == 434_176 / 326_656


def test_figures_of_a_point_are_medians_and_ratios_of_the_same_repeat():
    def round_of(seconds, tokens, squares, peak):
        return Round(seconds, 2, tokens, tokens, squares, resting_bytes=1e9, peak_bytes=peak)

    decoder = Decoder(
        layers=1, hidden=8, heads=1, kv_heads=1, head_dim=10, intermediate=16, vocabulary=5, linear_weights=100
    )
    # 6 · (100 · 16 + 10 · 40) = 12,000 operations, and 6 · (100 · 12 + 10 · 30) = 9,000
    rounds = {
        UNSHARED: [round_of(seconds, 16, 40, peak) for seconds, peak in [(6, 40e6), (8, 60e6), (20, 50e6)]],
        SHARED: [round_of(seconds, 12, 30, 25e6) for seconds in (6, 4, 5)],
    }
    summary = summarize_point(rounds, decoder, rate=3000.0)
    unshared, shared = summary["layouts"][UNSHARED], summary["layouts"][SHARED]
    assert unshared["seconds"] == {"median": 8, "low": 6, "high": 20}
    assert (unshared["floor_seconds"], unshared["floor_ratio"]) == (4.0, 2.0)
    assert (shared["floor_seconds"], shared["floor_ratio"]) == (3.0, 5 / 3)
    assert unshared["peak_bytes"] == {"median": 50e6, "low": 40e6, "high": 60e6}
    assert summary["time_gain"] == {"median": 2.0, "low": 1.0, "high": 4.0}
    assert (summary["memory_gain"], summary["flops_gain"]) == (2.0, 12 / 9)


def test_a_step_leaves_nothing_behind_and_gives_the_loss_of_either_layout():
    tokenizer = train_tokenizer([], VOCABULARY)
    model = new_reward_model(tokenizer, "32x1", seed=0)
    torch.nn.init.normal_(model.score.token)  # a new head's scores are too alike to tell layouts apart
    pairs = synthetic_pairs(Point(6, 0.5, "32x1"), 3, seed=0)
    collators = [MultiScaleCollator(tokenizer.pad_token_id, shared_prompts=shared) for shared in (False, True)]
    losses = [train_step(model, collator, pairs, "cpu", "float32") for collator in collators]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert abs(losses[0] - 0.693147) > 0.01  # not the ln 2 of even pairs
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"device": "tpu"}, r"`device` is 'tpu'\. Use 'cpu' or 'cuda'"),
        ({"repeats": 0}, r"`repeats` is 0\. It must be at least 1"),
        ({"prompt_shares": [0.5, 1.0]}, r"share of a row is 1\.0\. It must be at least 0 and below 1"),
        ({"sizes": ["100x4"]}, "'100x4' is no size"),
        ({"base_size": "64x0"}, "'64x0' is no size"),
        ({"base_size": "64"}, "'64' is no size"),
    ],
)
def test_points_that_make_no_sense_are_refused(argument, message):
    with pytest.raises(ValueError, match=message):
        ScalingArguments(**argument)


def test_every_option_says_what_it_is():
    assert all(field.metadata["help"] for field in fields(ScalingArguments))


def test_the_recipe_measures_draws_and_prints_every_point(tmp_path, capsys, monkeypatch):
    recipe = load_recipe("experiments/benchmark_scaling")
    monkeypatch.setattr(recipe, "matmul_rate", cache(recipe.matmul_rate))  # the same at every point
    lists = {"response_lengths": [4, 8], "prompt_shares": [0.0, 0.5], "sizes": ["32x1", "64x1"]}
    base = {"base_response_length": 8, "base_size": "32x1"}
    recipe.main(ScalingArguments(**lists, **base, pairs=2, repeats=2, output_dir=str(tmp_path)))
    results = json.loads((tmp_path / "scaling.json").read_text())
    assert [[point[sweep] for point in points] for sweep, points in results["sweeps"].items()] == list(lists.values())
    assert results["sweeps"]["response_length"][1] == results["sweeps"]["size"][0]  # the base point, measured once
    for point in (point for points in results["sweeps"].values() for point in points):
        rows = 2 * 2 * (point["prompt_length"] + point["response_length"])
        assert point["layouts"][UNSHARED]["tokens"] == rows
        assert point["layouts"][SHARED]["tokens"] == rows - 2 * point["prompt_length"]
        assert all(layout["floor_ratio"] > 1 for layout in point["layouts"].values())  # no step beats its floor
    assert results["difference"] < recipe.TOLERANCE
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(text in printed for text in ["By tokens of a response", "By decoder", "32x1", "A step of 2 pairs, cpu"])
