"""On a GPU that is pretended, in processes of their own: no tensor of one device meets one of another, and waits."""

import json

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from tests.helpers import ARCHITECTURES, ROOT, run_python
from tests.launch import backends
from tests.tiny import decoder_config
from toolkit import MultiScaleRewardConfig, MultiScaleRewardTrainer
from toolkit.sandbox.rows import sample_pairs, sandbox_tokenizer


@pytest.fixture(scope="module")
def work(tmp_path_factory, cpu_options):
    folder = tmp_path_factory.mktemp("pretend")
    backends.prepare(folder)
    for architecture in ARCHITECTURES:
        torch.manual_seed(0)
        config = decoder_config(sandbox_tokenizer(), architecture)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / architecture)
    config = MultiScaleRewardConfig(output_dir=str(folder / "adapter"), context="gate", max_steps=1, **cpu_options)
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear")
    trainer = MultiScaleRewardTrainer(str(folder / "base"), config, sample_pairs(8, seed=0), peft_config=lora)
    trainer.train()
    trainer.save_model()
    done = run_python("-m", "tests.launch.scripts.on_pretend_gpu", folder, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("part", ["reward_model", "reward_trainer", "reinforce", "shared_base", "judge"])
def test_no_devices_are_mixed(work, part):
    assert (work / f"{part}.txt").read_text() == ""


def test_a_step_waits_about_as_often_as_trls(work):
    done = run_python("-m", "tests.launch.scripts.count_waits", work, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    counts = {name: sum(sites.values()) for name, sites in found.items()}
    assert counts["RewardTrainer"] > 5  # they are counted
    assert counts["RLOOTrainer"] > 20
    for name, theirs in (
        ("shared", "RewardTrainer"), ("apart", "RewardTrainer"), ("REINFORCE", "RLOOTrainer"),
        ("prefix baseline", "RLOOTrainer"),
    ):  # fmt: skip
        assert counts[name] <= counts[theirs] + 5, found[name]
