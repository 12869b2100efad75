"""Files of preference pairs that are none: other formats and encodings, damage, and names that lead nowhere."""

import gzip
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

from tests.corpus.bench import Bench
from tests.corpus.cases import Accepted, Case, Refused

ROWS = [
    {"prompt": "Where does the Nile end?", "chosen": "In the Mediterranean.", "rejected": "In the desert."},
    {"prompt": "Who painted Guernica?", "chosen": "Picasso did.", "rejected": "Some painter."},
    {"prompt": "What is 3 times 4?", "chosen": "Twelve, as 3 + 3 + 3 + 3.", "rejected": "Seven."},
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
COMMAS = "prompt,chosen,rejected\n" + "".join(",".join(f'"{v}"' for v in row.values()) + "\n" for row in ROWS)
NOT_JSON = "Write one object a line, or one list"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def parquet(rows: list[Any]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def arrow(rows: list[Any]) -> bytes:
    import pyarrow as pa

    table, sink = pa.Table.from_pylist(rows), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


def flipped(packed: bytes) -> bytes:
    """One bit of the packed bytes is another."""
    changed = bytearray(packed)
    changed[len(changed) // 2] ^= 4
    return bytes(changed)


def file(
    name: str, content: Any, expected: Refused | Accepted, called: str = "pairs.jsonl", words: tuple[str, ...] = ()
) -> Case:
    """A file, whose content a function makes where that takes an import."""

    def given(bench: Bench) -> None:
        bench.write(called, content() if callable(content) else content)

    return Case(name, lambda bench: bench.check(called, *words), expected, given)


def place(name: str, given: Any, asked: str, expected: Refused | Accepted, words: tuple[str, ...] = ()) -> Case:
    """A name, and what is or is not there."""
    return Case(name, lambda bench: bench.check(asked, *words), expected, given)


TAKEN = Accepted(value=len(ROWS))
TEXTS = [
    file("nothing in it", "", Refused("is empty", "Write at least one row", 1)),
    file("blank lines alone", "\n\n  \n", Refused("is empty", "Write at least one row", 1)),
    file("a byte order mark alone", b"\xef\xbb\xbf", Refused("is empty", "Write at least one row", 1)),
    file("a byte order mark before its rows", "\ufeff" + LINES, TAKEN),
    file("carriage returns at the ends of lines", LINES.replace("\n", "\r\n"), TAKEN),
    file("no line end after the last row", LINES.rstrip(), TAKEN),
    file("an object over several lines", "\n".join(json.dumps(row, indent=2) for row in ROWS), TAKEN),
    file("one list", json.dumps(ROWS, indent=1), TAKEN, "pairs.json"),
    file("UTF-16 as Windows writes it", LINES.encode("utf-16"), Refused("is UTF-16", "Save it as UTF-8", 1)),
    file(
        "UTF-16 of the other order",
        b"\xfe\xff" + LINES.encode("utf-16-be"),
        Refused("is UTF-16", "Save it as UTF-8", 1),
    ),
    file(
        "Latin-1 in the third row",
        LINES.replace("Twelve", "Zwölf").encode("latin-1").replace(b"\\u00f6", b"\xf6"),
        Refused("line 3: byte 0xf6 is not UTF-8", "Save the file as UTF-8", 1),
    ),
    file(
        "Windows-1252 quotes",
        LINES.replace("Picasso", "@Picasso@").encode().replace(b"@", b"\x93"),
        Refused("line 2: byte 0x93 is not UTF-8", "Save the file as UTF-8", 1),
    ),
    file("cut off in its last row", LINES[:-25], Refused("row 3, character…not valid JSON", NOT_JSON, 1)),
    file("a comma after the last value", LINES.replace("}", ",}"), Refused("row 1…not valid JSON", NOT_JSON, 1)),
    file(
        "Python's own notation",
        "".join(f"{row}\n" for row in ROWS),
        Refused("row 1, character 2: not valid JSON", NOT_JSON, 1),
    ),
    file("a comment before the rows", "// pairs\n" + LINES, Refused("row 1, character 1: not", NOT_JSON, 1)),
    file("two objects in one line", LINES.replace("\n", " "), Refused("row 1, character…Extra data", NOT_JSON, 1)),
    file("a web page", "<!DOCTYPE html>\n<html></html>\n", Refused("row 1, character 1: not", NOT_JSON, 1)),
    file(
        "a pointer of Git LFS",
        POINTER,
        Refused("is a pointer of Git LFS", "Fetch the file itself with `git lfs pull`", 1),
    ),
    file("zeros of a disk that lost its blocks", b"\0" * 512, Refused("row 1, character 1: not", NOT_JSON, 1)),
    file(
        "a picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", Refused("line 1: byte 0x89 is not", "Save the file as UTF-8", 1)
    ),
    file(
        "brackets nested a hundred thousand deep",
        '{"a":' * 100_000,
        Refused("row 1: found brackets nested too deeply", "Remove the value", 1),
    ),
    file(
        "a number of ten thousand digits",
        LINES + json.dumps(ROWS[0])[:-1] + ', "id": ' + "7" * 10_000 + "}\n",
        Refused("row 4: found a number of thousands of digits", "Remove it", 1),
    ),
    file(
        "a key that stands twice in its second row",
        LINES.replace('"chosen": "Picasso', '"prompt": "", "chosen": "Picasso'),
        Refused("row 2: found the key 'prompt' twice", "Remove one", 1),
    ),
    file(
        "half of an emoji",
        LINES.replace("Some painter", "\\ud83d"),
        Refused("row 2, column 'rejected': found half of a surrogate pair", "Write the whole character", 1),
    ),
    file("text as a row", LINES + '"Seven."\n', Refused("row 4: found text: 'Seven.'", "Write an object", 1)),
    file("null as a row", "null\n" + LINES, Refused("row 1: found null", "Write an object", 1)),
    file(
        "a number in one list of rows",
        json.dumps([*ROWS[:2], 7]),
        Refused("row 3: found a number: 7", "Write an object", 1),
        "pairs.json",
    ),
    file(
        "a table by columns, as pandas writes it",
        json.dumps({key: {str(i): row[key] for i, row in enumerate(ROWS)} for key in ROWS[0]}),
        Refused("row 1, column 'prompt': found an object", "Write text or a list of {role, content} messages", 1),
        "pairs.json",
    ),
    file(
        "rows under a key of one object",
        json.dumps({"data": ROWS}),
        Refused("has no column ['chosen', 'rejected']; it has ['data']", "It needs `chosen` and `rejected`", 1),
        "pairs.json",
    ),
]
PACKED = [
    file("packed and named so", gzip.compress(LINES.encode()), TAKEN, "pairs.jsonl.gz"),
    file("packed, not named so", gzip.compress(LINES.encode()), Refused("is packed", "Let its name end in '.gz'", 1)),
    file("named packed, and is not", LINES, Refused("is damaged after line 0", "Fetch it anew", 1), "pairs.jsonl.gz"),
    file(
        "packed and cut short",
        gzip.compress(LINES.encode())[:-20],
        Refused("is damaged after line", "Fetch it anew", 1),
        "pairs.jsonl.gz",
    ),
    file(
        "packed, with another bit",
        flipped(gzip.compress(LINES.encode() * 50)),
        Refused("is damaged after line", "Fetch it anew", 1),
        "pairs.jsonl.gz",
    ),
    file("a CSV file packed", gzip.compress(COMMAS.encode()), TAKEN, "pairs.csv.gz"),
    file("Parquet packed", b"PAR1", Refused("is none of", "Convert it", 1), "pairs.parquet.gz"),
    file("packed by zstd", b"\x28\xb5\x2f\xfd", Refused("is none of", "Convert it", 1), "pairs.jsonl.zst"),
    file("an archive", b"PK\x03\x04", Refused("is none of", "Convert it", 1), "pairs.zip"),
    file("a spreadsheet", b"PK\x03\x04", Refused("is none of", "Convert it", 1), "pairs.xlsx"),
    file("plain text", LINES, Refused("is none of", "Convert it, or correct the path", 1), "pairs.txt"),
    file("no ending", LINES, Refused("is none of", "Convert it, or correct the path", 1), "pairs"),
]
TABLES = [
    file("a CSV file", COMMAS, TAKEN, "pairs.csv"),
    file("a CSV file with a byte order mark", "\ufeff" + COMMAS, TAKEN, "pairs.csv"),
    file("a CSV file with lines inside a cell", COMMAS.replace("as 3", "as\n3"), TAKEN, "pairs.csv"),
    file(
        "semicolons between cells",
        COMMAS.replace(",", ";"),
        Refused("first line names one column, 'prompt;chosen;rejected'", "Separate by commas", 1),
        "pairs.csv",
    ),
    file(
        "commas in a TSV file",
        COMMAS.replace('"', ""),
        Refused("first line names one column, 'prompt,chosen,rejected'", "Separate by", 1),
        "pairs.tsv",
    ),
    file(
        "tabs in a TSV file",
        COMMAS.replace('","', '"\t"').replace("t,c", "t\tc").replace("n,r", "n\tr"),
        TAKEN,
        "p.tsv",
    ),
    file(
        "a comma in a cell without quotes",
        COMMAS + "Who?,Me, I think.,You.\n",
        Refused("row 5: found 4 fields where the first line names 3 columns", "Quote fields", 1),
        "pairs.csv",
    ),
    file(
        "a cell too few",
        COMMAS + '"Who?","Me."\n',
        Refused("row 5: found 2 fields where the first line names 3 columns", "Quote fields", 1),
        "pairs.csv",
    ),
    file(
        "a quote that is not closed",
        COMMAS + '"Who?,Me.,You.\n',
        Refused("record of line 5: not valid CSV", "Close its quotes", 1),
        "pairs.csv",
    ),
    file(
        "a column that stands twice",
        COMMAS.replace("prompt", "chosen", 1),
        Refused("first line names ['chosen'] twice", "Rename one", 1),
        "pairs.csv",
    ),
    file("a line of names alone", "prompt,chosen,rejected\n", Refused("is empty", "Write at least", 1), "pairs.csv"),
    file(
        "no line of names",
        COMMAS.partition("\n")[2],
        Refused("has no column ['chosen', 'rejected']; it has ['Where does", "It needs", 1),
        "pairs.csv",
    ),
    file(
        "names with capitals",
        COMMAS.replace("prompt,chosen,rejected", "Prompt,Chosen,Rejected"),
        Refused("has no column ['chosen', 'rejected']; it has ['Prompt', 'Chosen', 'Rejected']", "It needs", 1),
        "pairs.csv",
    ),
    file(
        "names with a space before them",
        COMMAS.replace("prompt,chosen,rejected", "prompt, chosen, rejected"),
        Refused("has no column ['chosen', 'rejected']; it has ['prompt', ' chosen', ' rejected']", "It needs", 1),
        "pairs.csv",
    ),
    file("a Parquet file", lambda: parquet(ROWS), TAKEN, "pairs.parquet"),
    file(
        "text by the name of Parquet", LINES, Refused("is not readable parquet", "Fetch it anew", 1), "pairs.parquet"
    ),
    file(
        "a pointer by the name of Parquet",
        POINTER,
        Refused("is a pointer of Git LFS", "Fetch the file itself", 1),
        "pairs.parquet",
    ),
    file(
        "Parquet cut short",
        lambda: parquet(ROWS)[:-9],
        Refused("is not readable parquet", "Fetch it anew", 1),
        "pairs.parquet",
    ),
    file("an empty Parquet file", b"", Refused("is not readable parquet", "Fetch it anew", 1), "pairs.parquet"),
    file(
        "Parquet without rows",
        lambda: parquet_of_none(),
        Refused("is empty", "Write at least one row", 1),
        "pairs.parquet",
    ),
    file("an Arrow file", lambda: arrow(ROWS), TAKEN, "pairs.arrow"),
    file("text by the name of Arrow", LINES, Refused("is not readable arrow", "Fetch it anew", 1), "pairs.arrow"),
    file(
        "Arrow cut short",
        lambda: arrow(ROWS)[:-200],
        Refused("is not readable arrow", "Fetch it anew", 1),
        "pairs.arrow",
    ),
]


def parquet_of_none() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS).slice(0, 0), sink)
    return sink.getvalue()


def save_to_disk(bench: Bench, splits: bool = False) -> None:
    from datasets import Dataset, DatasetDict

    table = Dataset.from_list(ROWS)
    (DatasetDict(train=table, test=table) if splits else table).save_to_disk(bench.path("saved"))


def saved_without_its_rows(bench: Bench) -> None:
    save_to_disk(bench)
    next(Path(bench.path("saved")).glob("*.arrow")).unlink()


def saved_with_damaged_state(bench: Bench) -> None:
    save_to_disk(bench)
    Path(bench.path("saved"), "state.json").write_text('{"_data_files": [')


def two_files(bench: Bench, second: str, name: str = "b.jsonl") -> None:
    bench.write("a.jsonl", LINES)
    bench.write(name, second)


NOWHERE = Refused("There is no file or folder", "Correct the path", 1)
PLACES = [
    place("a file that is not there", lambda bench: None, "absent.jsonl", NOWHERE),
    place("a pattern that matches nothing", lambda bench: None, "*.jsonl", NOWHERE),
    place("a link to a file that has gone", lambda b: (b.folder / "p.jsonl").symlink_to("gone"), "p.jsonl", NOWHERE),
    place(
        "a folder without files",
        lambda bench: (bench.folder / "data").mkdir(),
        "data",
        Refused("Cannot load", "Correct the name, or fetch the data anew", 1),
    ),
    place(
        "a folder with other files alone",
        lambda bench: bench.write("data/README.md", "# Pairs"),
        "data",
        Refused("Cannot load…data' (split", "Correct the name", 1),
    ),
    place("a data set that was saved", save_to_disk, "saved", TAKEN),
    place(
        "a saved data set whose rows are gone",
        saved_without_its_rows,
        "saved",
        Refused("Cannot load", "Correct the name, or fetch the data anew", 1),
    ),
    place(
        "a saved data set whose state is damaged",
        saved_with_damaged_state,
        "saved",
        Refused("Cannot load…one of its JSON files is damaged", "Correct the name, or fetch the data anew", 1),
    ),
    place(
        "a saved data set with two splits",
        partial(save_to_disk, splits=True),
        "saved",
        Refused("has the splits ['train', 'test'], but no `split` is given", "Choose one of them", 1),
    ),
    place(
        "two files of unlike forms",
        partial(
            two_files,
            second=json.dumps(
                {key: [{"role": "user" if key == "prompt" else "assistant", "content": key}] for key in ROWS[0]}
            ),
        ),
        "*.jsonl",
        Refused("Files…differ", "Bring them to one form", 1),
    ),
    place(
        "two files of which one has strengths",
        partial(two_files, second="".join(json.dumps(row | {"strength": 2}) + "\n" for row in ROWS)),
        "*.jsonl",
        Refused("iles…strength", "Bring them to one form", 1),
    ),
    place(
        "two files of which one is empty",
        partial(two_files, second=""),
        "*.jsonl",
        Refused("b.jsonl' is empty", "Write", 1),
    ),
    place("two files alike", partial(two_files, second=LINES), "*.jsonl", Accepted("repeated pairs", 2 * len(ROWS))),
    Case(
        "a data set of the hub that is not there",
        lambda bench: bench.check("nobody/no-such-pairs", of_hub=True),
        Refused("Cannot load 'nobody/no-such-pairs'", "Correct the name", 1),
    ),
    Case(
        "a split that a file has not",
        lambda bench: bench.check("pairs.jsonl", "--split", "test", load=False),
        Refused("has the splits ['train'], but the split is 'test'", "Choose one of them", 1),
        lambda bench: bench.write("pairs.jsonl", LINES),
    ),
    Case(
        "other files that are damaged",
        lambda bench: bench.check("pairs.jsonl", "--against", bench.write("other.jsonl", "{"), load=False),
        Refused("other.jsonl', row 1, character 2: not valid JSON", NOT_JSON),
        lambda bench: bench.write("pairs.jsonl", LINES),
    ),
]

CASES = TEXTS + PACKED + TABLES + PLACES
