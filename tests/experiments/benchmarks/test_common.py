"""The arithmetic of the benchmarks by hand, and what their arms run on."""

import math
from dataclasses import fields

import pytest
import torch
from trl import RewardConfig, RewardTrainer

from tests.helpers import Alone
from toolkit.experiments.benchmarks.common import (
    BenchmarkArguments,
    largest_difference,
    model_flops,
    speed_ratios,
    summarize_arms,
)
from toolkit.experiments.benchmarks.reward import (
    ScoringBenchmarkArguments,
    TrainingBenchmarkArguments,
    fitting_pairs,
    response_scale_model,
    score_with_ours,
    score_with_trl,
    scoring_rows,
)
from toolkit.experiments.benchmarks.rounds import Meter, Round, turn_order, visible_squares
from toolkit.planning.memory import Decoder
from toolkit.planning.plan import build_model, decoder_shape

DECODER = Decoder(
    layers=2, hidden=8, heads=3, kv_heads=3, head_dim=4, intermediate=16, vocabulary=5, linear_weights=100
)


def round_of(seconds, items=10, real=6, padded=8, squares=20):
    return Round(seconds, items, real, padded, squares, resting_bytes=1e6, peak_bytes=2e6)


def test_arms_go_forwards_and_backwards_in_turn():
    assert turn_order(["a", "b", "c"], 3) == [["a", "b", "c"], ["c", "b", "a"], ["a", "b", "c"]]


def test_ratios_are_of_speed_and_of_the_same_round():
    # 2 / 1, 6 / 2 and 4 / 4 seconds for the same ten pairs: twice, three times and once as fast
    spread = speed_ratios([round_of(1), round_of(2), round_of(4)], [round_of(2), round_of(6), round_of(4)])
    assert spread == (2.0, 1.0, 3.0)


def test_arms_with_unequal_rounds_are_not_compared():
    with pytest.raises(ValueError, match="zip"):
        speed_ratios([round_of(1)], [round_of(1), round_of(1)])


def test_a_plain_row_visits_the_square_of_its_length_and_padding_nothing():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    assert visible_squares(mask - 1).tolist() == [9, 16]


def test_branches_see_the_shared_tokens_and_themselves_alone():
    # Three shared tokens, branches of two and one: 3² + (2 · 3 · 2 + 2²) + (2 · 3 · 1 + 1²) = 32, of 6² = 36.
    branch_ids = torch.tensor([[0, 0, 0, 1, 1, 2, -1]])
    assert visible_squares(branch_ids).tolist() == [32]
    # the two whole rows visit 5² + 4² and share 3²
    assert 32 == 5**2 + 4**2 - 3**2


def test_operations_are_those_of_linear_maps_and_of_attention():
    # forward: 2 · (2 layers · 100 weights) · 6 tokens + 2 · (2 layers · 12 channels) · 20; backward twice that again
    assert model_flops(DECODER, tokens=6, squares=20, backward=False) == 2400 + 960
    assert model_flops(DECODER, tokens=6, squares=20, backward=True) == 3 * 3360


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gpt2"])
def test_the_decoders_weights_are_those_that_multiply(decoder_config, architecture):
    model = build_model(decoder_config(architecture), reward=False)
    matrices = [p.numel() for p in model.base_model.parameters() if p.ndim == 2]
    embeddings = [m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    shape = decoder_shape(model)
    assert shape.layers * shape.linear_weights == sum(matrices) - sum(embeddings)


def test_figures_of_an_arm_are_over_all_its_rounds():
    results = {"TRL": [round_of(2), round_of(6)], "ours": [round_of(1), round_of(3, padded=7)]}
    figures = summarize_arms(results, DECODER, rate=10_080.0, backward=True)
    ours = figures["ours"]
    assert figures["TRL"]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert ours["ratio"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert ours["per_second"] == 5.0  # 20 pairs in 4 seconds
    assert (ours["real_tokens"], ours["padded_tokens"]) == (12, 15)
    # two rounds of 10,080 operations in four seconds are half of 10,080 a second
    assert ours["matmul_share"] == 0.5


def test_largest_difference_hides_neither_nan_nor_a_missing_step():
    assert largest_difference((1.0, 2.0, 3.0), (1.0, 2.5, 2.75)) == 0.5
    assert math.isnan(largest_difference((math.nan, 1.0), (1.0, 1.0)))
    with pytest.raises(ValueError, match="zip"):
        largest_difference((1.0,), (1.0, 2.0))


def test_meter_counts_what_the_model_is_run_on():
    class Model(torch.nn.Module):
        def forward(self, attention_mask, branch_ids=None):
            self.buffer = torch.ones(10_000_000)  # 40 MB

    model = Model()
    meter = Meter(model, "cpu")
    model(attention_mask=torch.ones(1, 1, dtype=torch.long))  # before the round: not counted
    del model.buffer
    meter.start()
    model(attention_mask=torch.tensor([[1, 1, 0]]))
    model(attention_mask=torch.tensor([[1, 1, 1]]), branch_ids=torch.tensor([[0, 1, 2]]))
    measured = meter.stop(4, [0.5])
    # squares: 2², then 1 + 2 · (2 + 1)
    assert (measured.items, measured.real_tokens, measured.padded_tokens, measured.squares) == (4, 5, 6, 4 + 7)
    assert measured.values == (0.5,)
    assert measured.seconds > 0
    assert math.isnan(measured.peak_bytes) or 39e6 < measured.peak_bytes < 100e6


def test_pairs_that_fit_are_all_that_trl_trains_on(chat_pairs, tokenizer, tiny_folder, reward_config):
    longest = max(fitting_pairs(chat_pairs, tokenizer, 1000, len(chat_pairs))["length"])
    with pytest.raises(ValueError, match=rf"of 24 pairs fit into `max_length={longest - 1}`, and `train_size` is 24"):
        fitting_pairs(chat_pairs, tokenizer, longest - 1, 24)
    fitting = fitting_pairs(chat_pairs, tokenizer, longest - 1, 20)
    config = reward_config(RewardConfig, max_length=longest - 1)
    trained = RewardTrainer(tiny_folder(), config, train_dataset=fitting).train_dataset
    lengths = [max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in trained]
    assert lengths == list(fitting["length"])


@pytest.mark.parametrize("form", ["plain_pairs", "chat_pairs"])
def test_rows_to_score_are_finished_and_fit(request, tokenizer, form):
    rows = scoring_rows(request.getfixturevalue(form), tokenizer, 100, prompts=5, seed=0)
    assert len(rows) == 20
    for i, row in enumerate(rows):
        assert row.prompt == rows[i - i % 4].prompt
        *ids, end = row.completion_ids
        assert end == tokenizer.eos_token_id
        assert tokenizer.decode(ids) == row.completion[0]["content"]
    assert len({len(row.completion_ids) for row in rows}) > 5
    with pytest.raises(ValueError, match="prompts are at most half of `max_length=100`, and 25 are asked for"):
        scoring_rows(request.getfixturevalue(form), tokenizer, 100, prompts=25, seed=0)


@pytest.mark.parametrize(
    "arguments", [BenchmarkArguments, TrainingBenchmarkArguments, ScoringBenchmarkArguments], ids=lambda c: c.__name__
)
def test_every_option_says_what_it_is(arguments):
    assert all(field.metadata["help"] for field in fields(arguments) if field.name in arguments.__annotations__)


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"`device` is 'tpu'\. Use 'cpu' or 'cuda'"):
        BenchmarkArguments(device="tpu")
    with pytest.raises(ValueError, match="`threads` is 0 and `rounds` 5"):
        BenchmarkArguments(threads=0)


def test_both_ways_of_scoring_give_the_same_scores(chat_pairs, tokenizer, tiny_folder, tmp_path):
    rows = scoring_rows(chat_pairs, tokenizer, 100, prompts=5, seed=0)
    model = response_scale_model(tmp_path / "reward", tiny_folder())
    args = ScoringBenchmarkArguments(rounds=2, max_length=100, output_dir=str(tmp_path))
    theirs, ours = Alone(), Alone()
    score_with_trl(theirs, args, model, rows, call_size=8)
    score_with_ours(ours, args, model, rows, call_size=20)
    assert [r.items for r in theirs.rounds + ours.rounds] == [20] * 4
    assert len(set(theirs.rounds[0].values)) > 15
    assert ours.rounds[1].values == pytest.approx(theirs.rounds[0].values, abs=1e-5)
    assert ours.rounds[0].real_tokens <= theirs.rounds[0].real_tokens == theirs.rounds[1].real_tokens
    assert ours.rounds[0].padded_tokens < theirs.rounds[0].padded_tokens
