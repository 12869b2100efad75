import gzip
import json

import pytest
from datasets import Dataset, DatasetDict

from tests.data.published import assistant, user
from tests.helpers import ROOT
from toolkit.data.loading import load_pairs, load_prompts, load_table

SHARED = ROOT.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder ../shared/data is absent")

PLAIN = {"prompt": "2 + 2?", "chosen": "Four.", "rejected": "Five."}
SKY = "What color is the sky?"


@pytest.fixture(autouse=True)
def own_cache_and_no_network(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


TALK = {"prompt": [user(SKY)], "chosen": [assistant("Blue.")], "rejected": [assistant("Green.")]}


def write(path, *rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    with gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w") as file:
        file.write(text)
    return str(path)


# Files


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz", "pairs.json", "[odd] name*.jsonl"])
def test_json_files_load(tmp_path, name):
    path = write(tmp_path / name, PLAIN, PLAIN)
    assert list(load_table(path)) == list(load_table(path, split="train")) == list(load_pairs(path)) == [PLAIN, PLAIN]


def test_a_json_list_and_a_parquet_file_load(tmp_path):
    path = write(tmp_path / "pairs.json", json.dumps([PLAIN, PLAIN], indent=2))
    assert list(load_pairs(path)) == [PLAIN, PLAIN]
    Dataset.from_list([PLAIN, TALK | PLAIN]).to_parquet(tmp_path / "pairs.parquet")
    assert list(load_pairs(str(tmp_path / "pairs.parquet"))) == [PLAIN, PLAIN]


def test_whole_and_broken_numbers_mix_in_a_column(tmp_path):
    path = write(tmp_path / "pairs.jsonl", PLAIN | {"strength": 1}, PLAIN | {"strength": 0.5})
    assert load_pairs(path)["strength"][:] == [1.0, 0.5]


def test_a_pattern_joins_files_in_the_order_of_their_names(tmp_path, caplog):
    write(tmp_path / "b.jsonl.gz", PLAIN | {"prompt": "second", "strength": 2, "id": 1, "task": "t"})
    write(tmp_path / "a.jsonl", PLAIN | {"prompt": "first", "strength": 1.5, "id": "x", "task": "t"})
    expected = [
        PLAIN | {"prompt": "first", "strength": 1.5, "task": "t"},
        PLAIN | {"prompt": "second", "strength": 2.0, "task": "t"},
    ]
    assert list(load_table(str(tmp_path / "*.jsonl*"))) == list(load_pairs(str(tmp_path / "*.jsonl*"))) == expected
    assert "Dropped the columns ['id']" in caplog.text
    assert [row["prompt"] for row in load_prompts(str(tmp_path / "*.jsonl*"))] == ["first", "second"]


def test_a_fault_in_one_of_several_files_is_named_with_that_file(tmp_path):
    write(tmp_path / "a.jsonl", PLAIN, PLAIN)
    path = write(tmp_path / "b.jsonl", PLAIN, PLAIN | {"chosen": None})
    with pytest.raises(ValueError, match=f"Data set '{path}', row 2, column 'chosen': found null"):
        load_pairs(str(tmp_path / "*.jsonl"))


@pytest.mark.parametrize("load", [load_table, load_pairs])
@pytest.mark.parametrize(("column", "row"), [("prompt", TALK), ("strength", PLAIN | {"strength": 1})])
def test_files_that_differ_where_it_matters_are_named(tmp_path, load, column, row):
    first, second = write(tmp_path / "a.jsonl", PLAIN), write(tmp_path / "b.jsonl", row)
    with pytest.raises(ValueError, match=f"Files '{first}' and '{second}' differ in column '{column}'"):
        load(str(tmp_path / "*.jsonl"))


def test_files_of_conversational_and_wrapped_responses_join(tmp_path):
    write(tmp_path / "a.jsonl", TALK)
    write(tmp_path / "b.jsonl", {"prompt": [user(SKY)], "chosen": "Blue.", "rejected": "Green."})
    assert list(load_pairs(str(tmp_path / "*.jsonl"))) == [TALK, TALK]


def test_a_folder_of_files_has_splits(tmp_path):
    write(tmp_path / "train.jsonl", PLAIN, PLAIN)
    path = write(tmp_path / "test.jsonl", PLAIN, "", PLAIN | {"rejected": None})
    assert list(load_pairs(str(tmp_path), split="train")) == [PLAIN, PLAIN]
    with pytest.raises(ValueError, match=f"Data set '{path}', row 3, column 'rejected': found null"):
        load_pairs(str(tmp_path), split="test")
    with pytest.raises(ValueError, match=r"has the splits \['train', 'test'\], but no `split` is given"):
        load_pairs(str(tmp_path))
    with pytest.raises(ValueError, match=r"has the splits \['train', 'test'\], but the split is 'dev'"):
        load_pairs(str(tmp_path), split="dev")


def test_saved_data_sets_load(tmp_path):
    table = Dataset.from_list([PLAIN, PLAIN])
    table.save_to_disk(str(tmp_path / "one"))
    DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(str(tmp_path / "two"))
    assert list(load_pairs(str(tmp_path / "one"))) == [PLAIN, PLAIN]
    assert list(load_pairs(str(tmp_path / "two"), split="test")) == [PLAIN]
    with pytest.raises(ValueError, match=r"has the splits \['train', 'test'\], but the split is 'dev'"):
        load_pairs(str(tmp_path / "two"), split="dev")


def test_a_file_has_no_split_but_train(tmp_path):
    path = write(tmp_path / "pairs.jsonl", PLAIN)
    with pytest.raises(ValueError, match=r"pairs.jsonl' has the splits \['train'\], but the split is 'test'"):
        load_table(path, split="test")


def test_an_empty_list_an_empty_parquet_file_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"File '.*a.json' is empty"):
        load_table(write(tmp_path / "a.json", "[]"))
    Dataset.from_dict({"chosen": [], "rejected": []}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"File '.*a.parquet' is empty"):
        load_table(str(tmp_path / "a.parquet"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"Cannot load '.*folder'"):
        load_table(str(tmp_path / "folder"))


# Real data


@needs_shared
def test_the_counts_of_real_files_are_those_of_their_readme():
    table = load_pairs(str(SHARED / "hh_helpful_single_test.jsonl.gz"))
    assert len(table) == 3989
    assert table[0]["prompt"] == [user("What should I feed a puppy?")]
    assert table[0]["chosen"][0]["role"] == "assistant"
    assert table.column_names == ["prompt", "chosen", "rejected", "task", "source"]


@needs_shared
@pytest.mark.parametrize(
    ("name", "rows"), [("squality_by_worker", 883), ("usr_topicalchat", 717), ("hh_harmless_base_test", 2308)]
)
def test_real_files_of_each_form_load(name, rows):
    table = load_pairs(str(SHARED / f"{name}.jsonl.gz"))
    assert len(table) == rows
    assert len(load_prompts(str(SHARED / f"{name}.jsonl.gz"))) == rows


@needs_shared
def test_a_pattern_of_real_files_loads():
    assert len(load_pairs(str(SHARED / "hh_helpful_single_train_*.jsonl.gz"))) == 3993 + 3992
