import json
from types import SimpleNamespace

import pytest
import torch

from tests.pages.planted import PAIRS, judge_run, policy_run, reward_run
from toolkit.pages.policy_verdicts import repeated, untrained_rewards
from toolkit.pages.reward_verdicts import _training_fell, overfitting, paired_interval
from toolkit.pages.run_files import read_run
from toolkit.pages.run_page import verdicts_of

# What a planted fault must be called, and what must not be said of the run besides
FAULTS = {
    (reward_run, "chance"): "which chance explains",
    (reward_run, "overfitted"): "Overfitted: the held-out loss rose",
    (reward_run, "length hack"): "It reads length",
    (reward_run, "collapsed gate"): "The gate has collapsed",
    (reward_run, "mix below its scale"): "The mix is below its response scale",
    (policy_run, "hacked"): "Reward hacking: gold_judge",
    (policy_run, "flat"): "Nothing was learnt",
    (policy_run, "collapsed"): "The entropy collapsed",
    (policy_run, "repeating"): "It repeats itself",
    (policy_run, "far away"): "It left the reference behind",
    (judge_run, "no better"): "It ranks no better than chance",
    (judge_run, "forgets"): "It ranks worse",
    (judge_run, "deaf"): "The answers do not listen to the thoughts: 4.00 of 4",
    (judge_run, "cut off"): "60% of the thoughts were cut off",
}
# A model that knows nothing is no better than length, either, nor is one that has forgotten
ALSO = {"chance": 2, "overfitted": 2}


def bad(record):
    return [verdict.text for verdict in verdicts_of(record) if verdict.outcome == "bad"]


@pytest.mark.parametrize(("make", "kind"), FAULTS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_planted_fault_is_named_and_no_other(tmp_path, make, kind):
    found = bad(read_run(make(tmp_path, kind, seed=0)))
    assert len(found) == ALSO.get(kind, 1)
    assert any(FAULTS[make, kind] in text for text in found)


@pytest.mark.parametrize("make", [reward_run, policy_run, judge_run])
def test_no_good_run_is_called_bad(tmp_path, make):
    for seed in range(20):
        verdicts = verdicts_of(read_run(make(tmp_path / str(seed), "good", seed)))
        assert len(verdicts) >= 3
        assert {verdict.outcome for verdict in verdicts} == {"good"}, seed


def test_growing_responses_are_told_with_the_hacking(tmp_path):
    (text,) = bad(read_run(policy_run(tmp_path, "hacked", seed=1)))
    assert "Responses grew from" in text


def rewritten(folder, change):
    state = json.loads((folder / "trainer_state.json").read_text())
    change(state)
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return read_run(folder)


def test_a_best_checkpoint_that_was_kept_is_no_overfitting(tmp_path):
    folder = reward_run(tmp_path, "overfitted", seed=0)
    (folder / "run.json").write_text(
        json.dumps(
            {
                "started": ["now"],
                "command": "",
                "versions": {},
                "options": {"Config": {"changed": {"load_best_model_at_end": True}, "default": {}}},
            }
        )
    )

    def keep_best(state):
        evaluations = [row for row in state["log_history"] if "eval_loss" in row]
        best = min(evaluations, key=lambda row: row["eval_loss"])
        state["best_global_step"] = best["step"]
        last = {"step": state["global_step"]}
        state["log_history"] += [{**last, "train_runtime": 1.0}, {**best, **last}]

    record = rewritten(folder, keep_best)
    best = record.evaluations[-1]
    assert best["step"] == record.kept == 100  # not the last step, at which it was logged
    assert f"The best checkpoint, of step {best['step']}, was kept" in overfitting(record).text


def test_without_pair_by_pair_losses_a_rise_must_be_steady(tmp_path):
    folder = reward_run(tmp_path, "good", seed=0)
    (folder / "held_out.json").unlink()

    def set_losses(losses):
        def change(state):
            rows = [row for row in state["log_history"] if "eval_loss" in row]
            for row, loss in zip(rows, losses, strict=True):
                row["eval_loss"] = loss

        return rewritten(folder, change)

    assert overfitting(set_losses([0.70, 0.50, 0.55, 0.60, 0.65, 0.70])).outcome == "bad"
    assert overfitting(set_losses([0.70, 0.50, 0.55, 0.54, 0.56, 0.55])).outcome == "good"


def test_what_is_trained_on_is_known_by_the_weights_and_else_by_the_sum(tmp_path):
    record = read_run(policy_run(tmp_path, "good", seed=0))
    assert set(untrained_rewards(record)) == {"gold_judge"}
    options = {"Config": {"changed": {"reward_weights": [0.0, 1.0]}, "default": {}}}
    assert set(untrained_rewards(record._replace(run={"options": options}))) == {"RewardFunction"}
    summed = [{**row, "reward": row["reward"] + row["rewards/gold_judge/mean"]} for row in record.log]
    assert untrained_rewards(record._replace(log=summed)) == {}


def test_repetition_by_hand():
    assert repeated("a b c a b c") == 0.25  # abc, bca, cab, abc
    assert repeated("a b") == 0.0


def test_pairs_of_one_prompt_count_together():
    # four prompts of two equal outcomes tell as much as four pairs: the half-width is that of n = 4
    values = torch.tensor([1.0, 1, 0, 0, 1, 1, 0, 0])
    interval = paired_interval(values, torch.arange(8) // 2, 0.95)
    z, deviation = 1.959964, (4 / 3 * 0.25) ** 0.5  # of the four prompts' means, by the unbiased variance
    assert interval.high - interval.value == pytest.approx(z * deviation / 2, rel=1e-5)


def test_scores_of_a_planted_run_are_read_back_to_the_last_bit(tmp_path):
    folder = reward_run(tmp_path, "good", seed=3)
    record, figures = read_run(folder), read_run(folder).evaluation
    scores = record.held_out.scores
    assert len(record.held_out.rows) == PAIRS
    assert int(record.held_out.prompts.max()) + 1 == PAIRS // 2
    assert (scores["chosen"] - scores["rejected"]).mean().item() == pytest.approx(figures["eval_margin"], rel=1e-5)
    assert scores["chosen"].float().max().item() <= figures["eval_max_reward"]
    assert set(record.held_out.groups) == {"task", "subset"}


def test_a_run_without_a_logged_loss_is_not_said_to_overfit():
    log = [{"step": step, "eval_loss": loss} for step, loss in ((1, 0.6), (2, 0.7))]
    assert not _training_fell(SimpleNamespace(training=[], log=log), 1, 2)
