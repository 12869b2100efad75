import json
from types import SimpleNamespace

import pytest
from accelerate import PartialState
from trl import ModelConfig

from toolkit import MultiScaleRewardConfig
from toolkit.arguments import (
    DataArguments,
    checkpoint_to_resume,
    divided_pairs,
    divided_prompts,
    held_out_pairs,
    held_out_prompts,
    import_callable,
    make_once,
    named_model,
    training_pairs,
    training_prompts,
    with_model_arguments,
)
from toolkit.sandbox.rows import gold_judge
from toolkit.training.manifests import write_manifest


def write_pairs(path, count, first=0):
    numbers = range(first, first + count)
    rows = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_sandbox_gives_as_many_rows_as_asked_for_and_other_ones_to_hold_out():
    args = DataArguments(dataset_name="sandbox", train_size=8, eval_size=5)
    train, test = training_pairs(args, seed=0), held_out_pairs(args, seed=0)
    assert (len(train), len(test)) == (8, 5)
    assert train.column_names == test.column_names == ["prompt", "chosen", "rejected", "strength", "task"]
    assert not {str(row) for row in train["prompt"]} & {str(row) for row in test["prompt"]}


def test_files_are_read_whole_and_cut_to_size(tmp_path):
    train, test = write_pairs(tmp_path / "train.jsonl", 9), write_pairs(tmp_path / "test.jsonl", 4)
    args = DataArguments(dataset_name=train, eval_dataset_name=test, train_size=6)
    assert (len(training_pairs(args, seed=0)), len(held_out_pairs(args, seed=0))) == (6, 4)
    assert held_out_prompts(args, seed=0)["prompt"][:] == ["p0", "p1", "p2", "p3"]
    first, again, other = (training_pairs(args, seed)["prompt"][:] for seed in (0, 0, 1))
    assert first == again != other  # drawn, and by the seed
    assert len(set(first)) == 6


@pytest.mark.parametrize(("load", "columns"), [(divided_pairs, 3), (divided_prompts, 1)])
def test_a_file_alone_is_divided_by_prompt_and_that_is_said(tmp_path, load, columns, caplog):
    PartialState()  # that says which process warns
    args = DataArguments(dataset_name=write_pairs(tmp_path / "train.jsonl", 41))
    train, test = load(args, seed=0)
    assert (len(train), len(test)) == (36, 5)  # a tenth, and what is over
    assert len(train.column_names) == columns
    assert not set(train["prompt"]) & set(test["prompt"])
    assert "Held out 5 of the 41 rows" in caplog.text
    args.eval_size, args.train_size = 11, 7
    assert [len(part) for part in load(args, seed=0)] == [7, 11]
    # all of it to train on, where nothing is to be held out
    args.train_size = None
    assert len(training_pairs(args, seed=0)) == len(training_prompts(args, seed=0)) == 41


def test_what_has_held_out_rows_is_not_divided(tmp_path, caplog):
    folder = tmp_path / "data"
    folder.mkdir()
    write_pairs(folder / "train.jsonl", 9), write_pairs(folder / "test.jsonl", 4)
    beside = DataArguments(
        dataset_name=str(folder / "train.jsonl"), eval_dataset_name=str(folder / "test.jsonl"), eval_size=3
    )
    for args, sizes in ((DataArguments(dataset_name=str(folder)), [9, 4]), (beside, [9, 3])):
        assert [len(part) for part in divided_pairs(args, seed=0)] == sizes
    assert "3 of the 3 held-out rows have a prompt that is trained on, too" in caplog.text
    caplog.clear()
    sandbox = DataArguments(dataset_name="sandbox", train_size=8, eval_size=5)
    assert [len(part) for part in divided_pairs(sandbox, seed=0)] == [8, 5]
    write_pairs(folder / "other.jsonl", 4, first=100)
    beside.eval_dataset_name = str(folder / "other.jsonl")
    divided_pairs(beside, seed=0)
    assert not caplog.text


def test_no_data_set_is_an_error():
    for rows in (training_pairs, held_out_pairs):
        with pytest.raises(ValueError, match="`dataset_name` is not set"):
            rows(DataArguments(), seed=0)


def test_a_dotted_path_names_a_function():
    assert import_callable("toolkit.sandbox.gold_judge") is gold_judge


@pytest.mark.parametrize(
    "path", ["toolkit.sandbox.rows.nothing", "no_such_module.f", "gold_judge", "toolkit.sandbox.rows.TASKS"]
)
def test_what_is_no_function_is_refused(path):
    with pytest.raises(ValueError, match=path):
        import_callable(path)


def test_model_arguments_reach_the_trainer_and_the_config_wins(tmp_path):
    config = MultiScaleRewardConfig(
        str(tmp_path),
        model_init_kwargs={"dtype": "float32"},
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        report_to="none",
    )
    config = with_model_arguments(config, ModelConfig(dtype="bfloat16", attn_implementation="eager"))
    assert config.model_init_kwargs == {"revision": "main", "attn_implementation": "eager", "dtype": "float32"}


def test_a_finished_folder_is_not_made_again(tmp_path):
    calls = []
    for _ in range(2):
        make_once(tmp_path / "a", lambda part: calls.append((part / "file").write_text("x")))
    assert calls == [1]
    assert (tmp_path / "a" / "file").read_text() == "x"


def test_what_a_killed_run_left_is_not_taken_for_a_result(tmp_path):
    def die(part):
        (part / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_once(tmp_path / "a", die)
    assert not (tmp_path / "a").exists()
    make_once(tmp_path / "a", lambda part: (part / "whole").write_text("y"))
    assert (tmp_path / "a" / "whole").read_text() == "y"


def test_true_is_the_last_complete_checkpoint_or_the_beginning(tmp_path):
    def resumed(value):
        return checkpoint_to_resume(SimpleNamespace(output_dir=str(tmp_path), resume_from_checkpoint=value))

    assert resumed("true") is None  # nothing is there yet
    for step in (1, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
    write_manifest(tmp_path / "checkpoint-1")
    # from a YAML file it comes as a boolean, from the command line as a word
    for value in (True, "true", "True"):
        assert resumed(value) == str(tmp_path / "checkpoint-1")
    assert resumed(False) is resumed("false") is resumed(None) is None
    assert resumed("elsewhere/checkpoint-7") == "elsewhere/checkpoint-7"


def test_without_a_model_there_is_one_line():
    assert named_model(ModelConfig(model_name_or_path="a/b")) == "a/b"
    with pytest.raises(ValueError, match="`model_name_or_path` is not set"):
        named_model(ModelConfig())


def test_a_stream_is_refused():
    with pytest.raises(ValueError, match="`dataset_streaming` is on, and every row is checked"):
        DataArguments(dataset_name="pairs.jsonl", dataset_streaming=True)


def test_nothing_is_held_out_where_nothing_is_asked_for(plain_pairs, tmp_path):
    plain_pairs.to_json(tmp_path / "pairs.jsonl")
    train, test = divided_pairs(DataArguments(dataset_name=str(tmp_path / "pairs.jsonl"), eval_size=0), seed=1)
    assert (train["prompt"][:], test) == (plain_pairs["prompt"][:], None)
    args = DataArguments(dataset_name="sandbox", train_size=8, eval_size=0)
    train, test = divided_pairs(args, seed=1)
    assert (len(train), test) == (8, None)
    with pytest.raises(ValueError, match="`eval_size` is 0, and held-out rows are needed here"):
        held_out_pairs(args, seed=1)
