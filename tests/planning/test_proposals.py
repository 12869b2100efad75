"""What fits on a machine, and what checkpoints take on its disk."""

import pytest
from peft import LoraConfig

from tests.planning.test_plan import config_of
from toolkit import MultiScaleRewardConfig, MultiScaleRewardTrainer
from toolkit.planning.plan import Run, build_model, checkpoint_bytes, load_config
from toolkit.planning.proposals import Machine, Proposals


@pytest.mark.parametrize("rank", [0, 4])
def test_a_checkpoint_takes_what_the_plan_says(tiny_folder, chat_pairs, tmp_path, cpu_options, rank):
    options = {"max_steps": 1, **cpu_options, "save_strategy": "steps", "save_steps": 1}
    config = MultiScaleRewardConfig(output_dir=str(tmp_path), **options)
    lora = LoraConfig(task_type="SEQ_CLS", r=rank, target_modules="all-linear") if rank else None
    MultiScaleRewardTrainer(tiny_folder(), config, chat_pairs, peft_config=lora).train()
    folder, planned = tmp_path / "checkpoint-1", build_model(load_config(tiny_folder()), True, lora_rank=rank)
    files = [folder / name for name in ("adapter_model.safetensors" if rank else "model.safetensors", "optimizer.pt")]
    # Beside the tensors stand names, and what torch writes around each of weights, moments and counts of steps
    tensors = 4 * sum(parameter.requires_grad for parameter in planned.parameters())
    assert sum(file.stat().st_size for file in files) == pytest.approx(
        checkpoint_bytes(planned, Run()), abs=500 * tensors
    )


def test_a_checkpoint_of_zero_3_has_fourteen_bytes_a_weight():
    model = build_model(config_of("qwen3"), True)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert checkpoint_bytes(model, Run(stage=3, gpus=8)) == 14 * count


def test_the_first_settings_that_fit_are_those_of_least_traffic_and_all_weights():
    config = config_of("qwen3", hidden=2048, layers=24)  # 1.1 billion weights
    proposals = Proposals(config, Run(rows=8, length=512))
    sizes = ((1, 80), (1, 16), (1, 4), (8, 16), (8, 8), (8, 6), (8, 1))
    found = {machine: proposals.first(Machine(*machine)) for machine in sizes}
    files = [None, None, None, "zero1", "zero2", "multi_gpu", None]
    assert [proposal and proposal.file for proposal in found.values()] == files
    assert found[1, 80].options == {"per_device_train_batch_size": "4", "dtype": "float32"}
    assert found[8, 8].options == {"per_device_train_batch_size": "2", "dtype": "bfloat16"}
    assert all("use_peft" in found[machine].options for machine in ((1, 16), (8, 6)))
    assert found[1, 4].options["load_in_4bit"] == "true"
    assert found[8, 1] is None
    for (_, gigabytes), proposal in found.items():
        assert proposal is None or proposal.plan.total <= 0.9e9 * gigabytes
