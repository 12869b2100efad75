import pytest
from datasets import Dataset
from trl import RLOOConfig, RLOOTrainer

from tests.helpers import Alone
from toolkit import ReinforceConfig, ReinforceTrainer, RewardFunction
from toolkit.experiments.benchmarks.common import Arm
from toolkit.experiments.benchmarks.policy import PolicyBenchmarkArguments, fitting_prompts, policy_rounds
from toolkit.experiments.benchmarks.reward import response_scale_model


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_both_trainers_sample_the_same_and_their_parts_add_up(chat_pairs, tiny_folder, tmp_path, beta):
    reward = response_scale_model(tmp_path / "reward", tiny_folder())
    args = PolicyBenchmarkArguments(
        rounds=2,
        steps=2,
        batch_size=8,
        num_generations=4,
        max_completion_length=6,
        beta=beta,
        output_dir=str(tmp_path),
    )
    arms = [Arm(RLOOTrainer, RLOOConfig, {}), Arm(ReinforceTrainer, ReinforceConfig, {}, RewardFunction)]
    prompts, measured_by_arm = chat_pairs.select_columns("prompt"), []
    for arm in arms:
        turns = Alone()
        policy_rounds(turns, arm, args, tiny_folder(), reward, prompts)
        measured_by_arm.append(turns.rounds)
    theirs, ours = measured_by_arm
    assert len(theirs) == len(ours) == 2
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.values == other.values  # the same tokens at the same places
        assert 0 < mine.items == other.items <= 2 * 8 * 6
        assert mine.padded_tokens < other.padded_tokens
        for measured in (mine, other):
            assert sum(measured.parts) == pytest.approx(measured.seconds / 2)
            assert min(measured.parts) >= 0
    assert ours[0].values != ours[1].values


def test_prompts_that_fit_are_different_ones(chat_pairs, tokenizer):
    doubled = Dataset.from_list([row for row in chat_pairs for _ in range(2)])
    prompts = fitting_prompts(doubled, tokenizer, 60, 10)["prompt"]
    assert len({str(prompt) for prompt in prompts}) == 10
    with pytest.raises(ValueError, match="prompts have at most 3 tokens, and 10 are needed"):
        fitting_prompts(doubled, tokenizer, 3, 10)
