"""What DWRL is compared with, and the table of cells."""

import json
from types import SimpleNamespace

import pytest
import torch

from toolkit.experiments.thoughts import Unweighted, Verdicts, print_arms, ranked_right, read_cells


def test_without_the_pairs_weight_a_gap_is_pushed_alike_however_large():
    values = torch.tensor([[0.0, -1.0], [0.0, -9.0]], requires_grad=True)
    Unweighted._loss(None, [])(values).sum().backward()
    assert values.grad.tolist() == [[-1.0, 1.0], [-1.0, 1.0]]


@pytest.mark.parametrize(("omega", "thoughts"), [([[1.0, 1.0], [0.0, 0.0]], 0.0), ([[1.0, 0.0], [0.5, 0.5]], None)])
def test_verdicts_that_agree_with_the_label_are_pushed_and_the_others_held_down(omega, thoughts):
    log_answers = torch.tensor(omega)[None].log()  # one pair, two thoughts a response
    judge = SimpleNamespace(_log_answers=log_answers, args=SimpleNamespace(seed=0), _step=0)
    found = Verdicts._weights(judge, None)
    if thoughts == 0.0:  # all say what the label says: there is nothing to compare
        assert found.thoughts.tolist() == [[[0.0, 0.0], [0.0, 0.0]]]
        assert found.answers.abs().max() == 0
    else:  # the first thought on the chosen response says yes and the second no, whatever is said of the other
        first, second = found.thoughts[0, 0].tolist()
        assert first >= 0 >= second
        assert first == pytest.approx(-second)


def test_the_table_is_of_the_seeds_that_are_there(tmp_path, capsys):
    gaps = {"start-1": [1, -1, -1, 0], "start-2": [1, 1, -1, -1], "simple_contrast-1": [1, 1, 1, -1]}
    for name, own in gaps.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"chosen": own, "rejected": [0, 0, 0, 0]}))
    cells = read_cells(tmp_path)
    assert ranked_right(cells["start"][1]).tolist() == [1.0, 0.0, 0.0, 0.5]
    print_arms(cells, beside=("start",))
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if "simple contrast" in line)
    assert "75.0" in row
    assert "37.5" in row  # 75 less 37.5 of the same seed, and not less the 43.75 of both
    assert "43.8" in said
