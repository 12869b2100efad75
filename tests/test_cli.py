import json

import pytest

from toolkit.cli import main


def test_check_describes_good_pairs(tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": "p", "chosen": "longer", "rejected": "short"},
        {"prompt": "p", "chosen": "a", "rejected": "bcd"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["check", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "2 pairs, plain text" in printed
    assert "1 distinct prompts, 0 repeated pairs" in printed
    assert "50.0" in printed


def test_check_names_file_row_and_column(tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "", "rejected": "b"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["check", str(path)]) == 2
    error = capsys.readouterr().err
    assert "pairs.jsonl" in error
    assert "row 2, column 'chosen'" in error


def test_sandbox_writes_pairs_that_pass_the_check(tmp_path, capsys):
    path = str(tmp_path / "sandbox.jsonl")
    assert main(["sandbox", path, "--size", "12"]) == 0
    assert main(["check", path]) == 0
    assert "12 pairs, messages" in capsys.readouterr().out


def test_no_command_is_an_error():
    with pytest.raises(SystemExit):
        main([])
