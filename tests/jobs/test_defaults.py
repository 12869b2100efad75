"""Options that nobody gave, where TRL's would not run or would leave out what is wanted."""

import pytest
from trl import RewardConfig

from toolkit import MultiScaleRewardConfig
from toolkit.jobs.defaults import KEEPING_BEST, reinforce_defaults, reward_defaults
from toolkit.training.command_line import RecipeParser


def parse(*words):
    return RecipeParser(MultiScaleRewardConfig, reward_defaults).parse_args_and_config(list(words))[0]


@pytest.fixture
def with_gpu(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)


def test_on_a_cpu_it_runs_without_an_option():
    args = parse()
    assert (args.use_cpu, args.bf16, args.output_dir) == (True, False, "runs/reward")
    assert args.activation_checkpointing == RewardConfig.gradient_checkpointing
    assert (args.eval_strategy, args.save_strategy, args.load_best_model_at_end) == ("steps", "steps", True)


def test_the_cpu_by_name_is_the_same_cpu():
    assert parse("--use_cpu", "true").bf16 is False
    assert parse("--use_cpu", "true", "--bf16", "true").bf16 is True


def test_what_is_given_stays(tmp_path):
    (tmp_path / "run.yaml").write_text("save_strategy: 'no'\nbf16: true\n")
    args = parse("--config", str(tmp_path / "run.yaml"), "--output-dir", "mine")
    assert (args.bf16, args.output_dir, args.save_strategy) == (True, "mine", "no")
    # one option about when to save, and all of them are the user's
    plain = RewardConfig("x", use_cpu=True, bf16=False, activation_checkpointing=True)
    assert {name: getattr(args, name) for name in KEEPING_BEST if name != "save_strategy"} == {
        name: getattr(plain, name) for name in KEEPING_BEST if name != "save_strategy"
    }


def test_a_gpu_keeps_what_trl_has(with_gpu):
    assert "bf16" not in reward_defaults([])
    assert reinforce_defaults(["gradient_checkpointing"]) == {"output_dir": "runs/policy"}
