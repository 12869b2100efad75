"""Rewards of responses against each other."""

import pytest
import torch

from toolkit import ReinforceTrainer, RewardFunction
from toolkit.reward.group_reward import GroupRewardFunction
from toolkit.reward.readers import group_scores, read_gap

ASKED = ["Name three colours."] * 3 + ["Say hello."] * 2
SAID = ["Red.", "Red, green and blue.", "No.", "Hello.", "Hello, and good day."]


def test_a_circle_has_no_best_and_whoever_breaks_it_has():
    # Unit vectors a third of a turn apart: every one beats the next by sin 120°, 0.866 / 0.1 nats.
    angles = torch.tensor([0.0, 2 / 3, 4 / 3]) * torch.pi
    circle = torch.stack([angles.sin(), angles.cos()], dim=1) * 1e6  # beside which the fixed (0, 1) is nothing
    ones = torch.ones(1)
    torch.testing.assert_close(group_scores(circle, ones, "skew"), torch.zeros(3), atol=1e-4, rtol=0)
    two = circle[[0, 2]]  # the first wins against the third, or loses, and so does the other
    gap = read_gap(two[0], two[1], ones, "skew")
    torch.testing.assert_close(gap.abs(), torch.tensor(8.66), atol=0.01, rtol=0)
    torch.testing.assert_close(group_scores(two, ones, "skew"), torch.stack([gap, -gap]))


def test_of_a_linear_reader_it_is_the_score_less_the_mean_of_the_others():
    outputs, weights = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]]), torch.tensor([1.0, 0.5])
    # scores 1, 1, 3.5: less the means of the others, 2.25, 2.25 and 1
    torch.testing.assert_close(group_scores(outputs, weights, "linear"), torch.tensor([-1.25, -1.25, 2.5]))


@pytest.mark.parametrize("options", [{"reader": "skew", "outputs": 4}, {"reader": "gaussian", "outputs": 2}])
def test_rewards_are_mean_gaps_within_each_prompt_and_the_same_after_saving(several, tokenizer, tmp_path, options):
    model = several(**options)
    reward = GroupRewardFunction(model, tokenizer)
    alone = RewardFunction(model, tokenizer).score(ASKED, SAID)
    found = reward(ASKED, SAID)
    expected = []
    for i, mine in enumerate(alone):
        others = [its for j, its in enumerate(alone) if j != i and ASKED[j] == ASKED[i]]
        gaps = [read_gap(mine.z, its.z, mine.weights, options["reader"]).item() for its in others]
        expected.append(sum(gaps) / len(gaps))
    assert found == pytest.approx(expected, abs=1e-4)
    assert sum(found[3:]) == pytest.approx(0, abs=1e-4)
    model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    assert GroupRewardFunction(str(tmp_path / "reward"))(ASKED, SAID) == found


def test_an_empty_response_has_none_and_one_without_others_is_refused(several, tokenizer):
    reward = GroupRewardFunction(several(reader="skew", outputs=2), tokenizer)
    assert reward(ASKED[:3], [*SAID[:2], ""], completion_ids=None)[:2] != [None, None]
    with pytest.raises(ValueError, match=r"Response 3 of the batch has no other one to its prompt .* multiple of"):
        reward(ASKED[1:4], SAID[1:4])
    with pytest.raises(ValueError, match="has one output, which scores a response alone"):
        GroupRewardFunction(several(), tokenizer)


def test_a_policy_learns_from_it(several, tokenizer, reinforce_config, tiny_folder, chat_pairs):
    reward = GroupRewardFunction(several(reader="skew", outputs=4), tokenizer)
    prompts = chat_pairs.select_columns(["prompt"])
    trainer = ReinforceTrainer(tiny_folder(), [reward], args=reinforce_config(max_steps=1), train_dataset=prompts)
    trainer.train()
    assert abs(trainer.state.log_history[0]["reward"]) < 1e-4  # as much is won as lost
    assert trainer.state.log_history[0]["reward_std"] > 0
