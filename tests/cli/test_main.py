import json

import pytest

from toolkit.cli.main import main


def test_sandbox_writes_pairs_that_pass_the_check(tmp_path, capsys):
    path = str(tmp_path / "sandbox.jsonl")
    assert main(["sandbox", path, "--size", "12"]) == 0
    assert main(["check", path]) == 0
    assert "12 rows, 12 usable pairs" in capsys.readouterr().out


@pytest.fixture(scope="module")
def decoder_folder(tmp_path_factory):
    """A folder with a configuration and nothing else."""
    folder = tmp_path_factory.mktemp("decoder")
    config = {
        "model_type": "qwen3",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 128,
        "vocab_size": 300,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def table_of(printed):
    """First and last cell of each row of the printed table."""
    rows = [line.strip("│ ").split("│") for line in printed.splitlines() if line.startswith("│")]
    return {row[0].strip(): float(row[-1]) for row in rows}


def test_plan_of_a_reward_model(decoder_folder, capsys):
    options = ["--batch", "4", "--length", "128", "--pairs", "1000", "--epochs", "2", "--tokens-per-second", "1000"]
    assert main(["plan", decoder_folder, *options]) == 0
    printed = capsys.readouterr().out
    table = table_of(printed)
    assert list(table) == ["weights", "gradients", "optimizer", "activations", "overhead", "total"]
    assert table["total"] == pytest.approx(sum(table.values()) - table["total"], abs=0.03)
    assert "24 GB: fits; 48 GB: fits" in printed
    # 1000 pairs of two rows of 128 tokens, twice
    assert "0.5 million tokens" in printed
    assert "0.1 hours on 1 GPU at 1000 tokens a second" in printed


def test_plan_of_a_policy_with_vllm_and_its_checkpoints(decoder_folder, capsys):
    options = [
        "--trainer",
        "reinforce",
        "--prompt-length",
        "96",
        "--completion-length",
        "32",
        "--save-total-limit",
        "3",
    ]
    assert main(["plan", decoder_folder, *options, "--vllm", "colocate", "--card", "10"]) == 0
    printed = capsys.readouterr().out
    assert table_of(printed)["vllm"] == 3.0
    assert "while `save_total_limit: 3` has one too many" in printed
    assert main(["plan", decoder_folder, *options, "--length", "64"]) == 2
    assert "prompt and completion are 128. Leave it out." in capsys.readouterr().err
    assert main(["plan", decoder_folder, *options, "--vllm-sleeps"]) == 2
    assert main(["plan", decoder_folder, *options, "--reward-on-policy-base"]) == 2


def test_plan_proposes_settings(decoder_folder, capsys):
    assert main(["plan", decoder_folder, "--propose"]) == 0
    assert capsys.readouterr().out.count(" × ") == 8
    assert main(["plan", decoder_folder, "--propose", "2x24"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "2 × 24 GB" in line]
    assert "multi_gpu" in row
    assert "--per_device_train_batch_size 4 --dtype float32" in row
    assert main(["plan", decoder_folder, "--propose", "eight"]) == 2
    assert "Give GPUs x GB, such as 8x80." in capsys.readouterr().err


def test_plan_of_a_policy(decoder_folder, capsys):
    options = ["--trainer", "reinforce", "--reward-model", decoder_folder, "--zero", "3", "--offload", "--gpus", "4"]
    assert main(["plan", decoder_folder, *options, "--prompts", "100"]) == 0
    printed = capsys.readouterr().out
    assert {"generation", "reward model", "reference model"} <= set(table_of(printed))
    assert "on the CPU, for each GPU" in printed
    assert "0.2 million tokens" in printed  # 100 prompts, two completions of each, 1024 tokens a row
    assert "hours" not in printed
