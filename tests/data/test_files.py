import gzip
import json

import pytest
from datasets import Dataset, DatasetDict

from toolkit.data.files import row_number, stream_rows
from toolkit.data.loading import load_pairs, load_table

ROWS = [
    {"prompt": "2 + 2?", "chosen": "Four.", "rejected": "Fünf.\nNo?"},
    {"prompt": "1?", "chosen": "1", "rejected": "2"},
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TABLE = 'prompt,chosen,rejected\n2 + 2?,Four.,"Fünf.\nNo?"\n1?,1,2\n'


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(path, text, encoding="utf-8"):
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


@pytest.mark.parametrize(
    ("name", "text", "numbers"),
    [
        ("a.jsonl", LINES, [1, 2]),
        ("a.ndjson", "\n" + LINES, [2, 3]),
        ("a.jsonl.gz", LINES, [1, 2]),
        ("a.ndjson.gz", LINES, [1, 2]),
        ("a.json", LINES, [1, 2]),
        ("a.json.gz", json.dumps(ROWS, indent=1), [1, 2]),
        ("a.csv", TABLE, [2, 4]),
        ("a.csv", TABLE.replace("\n", "\r\n").replace("Fünf.\r\n", "Fünf.\n"), [2, 4]),
        ("a.csv.gz", TABLE.replace("\n1?", "\n\n1?"), [2, 5]),
        ("a.tsv", TABLE.replace(",", "\t"), [2, 4]),
        ("a.tsv.gz", TABLE.replace(",", "\t"), [2, 4]),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "byte order mark"])
def test_text_files_are_read_and_their_rows_numbered_as_an_editor_does(tmp_path, name, text, numbers, mark):
    path = write(tmp_path / name, mark + text)
    assert list(stream_rows(path)) == list(zip(numbers, ROWS, strict=True))
    assert list(load_pairs(path)) == ROWS
    assert [row_number(path, index) for index in range(2)] == numbers


def test_arrow_and_parquet_files_and_saved_folders_are_read(tmp_path):
    table = Dataset.from_list(ROWS)
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(str(tmp_path / "saved"), num_shards=2)
    DatasetDict({"train": table}).save_to_disk(str(tmp_path / "splits"))
    arrow = str(tmp_path / "saved" / "data-00000-of-00002.arrow")
    for path in (str(tmp_path / "a.parquet"), str(tmp_path / "saved")):
        assert list(stream_rows(path)) == [(1, ROWS[0]), (2, ROWS[1])]
        assert list(load_pairs(path)) == ROWS
    assert list(load_pairs(str(tmp_path / "splits"))) == ROWS
    assert list(stream_rows(arrow)) == [(1, ROWS[0])]
    assert list(load_table(arrow)) == ROWS[:1]


@pytest.mark.parametrize("name", ["a.ndjson", "a.json.gz", "a.csv", "a.tsv", "a.csv.gz"])
def test_a_folder_may_hold_files_of_every_kind(tmp_path, name):
    text = LINES if "json" in name else TABLE.replace(",", "\t" if "tsv" in name else ",")
    write(tmp_path / name, text)
    assert list(load_pairs(str(tmp_path))) == ROWS


def test_all_cells_of_a_csv_file_are_text_but_strengths_are_numbers(tmp_path):
    path = write(tmp_path / "a.csv", "prompt,chosen,rejected,strength,id\n1?,4,None,2.5,007\n2?,NA,2020-01-01,1e1,8\n")
    assert list(load_pairs(path)) == [
        {"prompt": "1?", "chosen": "4", "rejected": "None", "strength": 2.5, "id": "007"},
        {"prompt": "2?", "chosen": "NA", "rejected": "2020-01-01", "strength": 10.0, "id": "8"},
    ]


def test_text_that_looks_like_dates_stays_text(tmp_path):
    rows = [{"prompt": "When?", "chosen": "2020-01-01", "rejected": "2021-01-01 10:00:00", "id": 7}] * 2
    rows[1] = rows[1] | {"note": "late"}
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert list(load_pairs(path)) == [rows[0] | {"note": None}, rows[1]]


def test_messages_in_cells_are_read_as_json(tmp_path):
    prompt = json.dumps([{"role": "user", "content": "Sky?"}]).replace('"', '""')
    path = write(tmp_path / "a.csv", f'prompt,chosen,rejected\n"{prompt}",Blue.,Red.\n')
    assert load_pairs(path)[0]["prompt"] == [{"role": "user", "content": "Sky?"}]
    path = write(tmp_path / "b.csv", "prompt,chosen,rejected\n\"[{'role': 'user', 'content': 'Sky?'}]\",Blue.,Red.\n")
    with pytest.raises(ValueError, match=r"b.csv', row 2, column 'prompt': found messages as Python prints them"):
        load_pairs(path)


def test_whole_surrogate_pairs_are_one_character(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"prompt": "\\ud83d\\ude00", "chosen": "a", "rejected": "b"}\n')
    assert load_pairs(path)[0]["prompt"] == next(stream_rows(path))[1]["prompt"] == "\U0001f600"
