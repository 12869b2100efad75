import json

import pytest

from toolkit.cli.main import main


def test_sandbox_does_not_write_over_a_file(tmp_path, capsys):
    path = tmp_path / "sandbox.jsonl"
    path.write_text("mine")
    assert main(["sandbox", str(path), "--size", "2"]) == 2
    assert "sandbox.jsonl' exists. Give another name" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["sandbox.jsonl"]
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.parquet", "pairs"])
def test_sandbox_does_not_write_json_by_another_name(tmp_path, capsys, name):
    assert main(["sandbox", str(tmp_path / name)]) == 2
    assert "would hold JSON. Give it a name that ends in .jsonl" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"), [(["plan", "x", "--trai", "reward"], "--trai"), (["check", "x", "--nea"], "--nea")]
)
def test_options_are_not_abbreviated(capsys, words, said):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert f"unrecognized arguments: {said}" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["sandbox", str(tmp_path / "file" / "pairs.jsonl"), "--size", "2"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_sandbox_writes_pairs_that_pass_the_check(tmp_path, capsys):
    path = str(tmp_path / "sandbox.jsonl")
    assert main(["sandbox", path, "--size", "12"]) == 0
    assert main(["check", path]) == 0
    assert "12 rows, 12 usable pairs" in capsys.readouterr().out


def test_no_command_is_an_error():
    with pytest.raises(SystemExit):
        main([])


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


def test_plan_of_a_policy(decoder_folder, capsys):
    options = ["--trainer", "reinforce", "--reward-model", decoder_folder, "--zero", "3", "--offload", "--gpus", "4"]
    assert main(["plan", decoder_folder, *options, "--prompts", "100"]) == 0
    printed = capsys.readouterr().out
    assert {"generation", "reward model", "reference model"} <= set(table_of(printed))
    assert "on the CPU, for each GPU" in printed
    assert "0.2 million tokens" in printed  # 100 prompts, two completions of each, 1024 tokens a row
    assert "hours" not in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--load-in-4bit"], "--lora-rank"),
        (["--offload"], "--zero 3"),
        (["--offload", "--zero", "2"], "the stage is 2"),
        (["--batch", "3"], "a pair is two"),
        (["--gpus", "0"], "`gpus` is 0"),
        (["--prompts", "5"], "--pairs"),
        (["--trainer", "reinforce", "--pairs", "5"], "--prompts"),
        (["--reward-model", "somewhere"], "--trainer reinforce"),
        (["--trainer", "reinforce", "--length", "512"], "512 tokens leave nothing"),
        (["--pairs", "5", "--tokens-per-second", "0"], "above 0"),
        (["--double-quantisation"], "--load-in-4bit"),
        (["--lora-rank", "-1"], "`--lora-rank` is -1"),
        (["--trainer", "reinforce", "--completion-length", "0"], "`--completion-length` is 0"),
    ],
)
def test_a_plan_that_does_not_add_up_is_one_line(decoder_folder, capsys, options, message):
    assert main(["plan", decoder_folder, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "no configuration that can be read"),
        ("{", "no configuration that can be read"),
        ('{"model_type": "nothing-known"}', "no configuration that can be read"),
        ('{"model_type": "t5"}', "is not a decoder"),
        ('{"model_type": "mixtral"}', "mixture of experts"),
    ],
)
def test_a_model_that_cannot_be_planned_is_one_line(tmp_path, capsys, config, message):
    if config:
        (tmp_path / "config.json").write_text(config)
    assert main(["plan", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(tmp_path) in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("name", ["./nope", "no/such/folder", "/no/such/folder"])
def test_a_model_that_is_not_there_is_one_line(capsys, name):
    assert main(["plan", name]) == 2
    error = capsys.readouterr().err
    assert f"'{name}' has no configuration that can be read" in error
    assert len(error.splitlines()) == 1
