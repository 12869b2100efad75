"""What DWRL is compared with, and the table of cells."""

import json
from types import SimpleNamespace

import pytest
import torch

from toolkit.experiments.thoughts import Unweighted, Verdicts, print_arms, print_policies, ranked_right, read_cells


def test_without_the_pairs_weight_a_gap_is_pushed_alike_however_large():
    values = torch.tensor([[0.0, -1.0], [0.0, -9.0]], requires_grad=True)
    Unweighted._loss(None, [])(values).sum().backward()
    assert values.grad.tolist() == [[-1.0, 1.0], [-1.0, 1.0]]


@pytest.fixture(scope="module")
def weights_of():
    """Weights that the baseline gives to answers of these probabilities `(P, 2, N)`."""

    def weigh(omega: torch.Tensor):
        trainer = SimpleNamespace(args=SimpleNamespace(seed=0), _step=0, _log_answers=omega.log())
        return Verdicts._weights(trainer, None)

    return weigh


def test_verdicts_climb_towards_right_ones(weights_of):
    # With one parameter a side, the logit of the good answer, the expected push is up on the chosen response and down
    # on the other one; d log omega / d logit = 1 - omega
    omega = torch.tensor([0.4, 0.7])
    weights = weights_of(omega[None, :, None].expand(4000, 2, 8))
    push = (weights.answers.sum(2) * (1 - omega)).mean(0)
    assert push[0] > 0.1
    assert push[1] < -0.1
    torch.testing.assert_close(weights.thoughts.sum(2), torch.zeros(4000, 2))


def test_verdicts_that_are_always_right_teach_nothing(weights_of):
    weights = weights_of(torch.tensor([[[1.0] * 3, [1e-30] * 3]]))
    assert not weights.thoughts.any()
    assert not weights.answers.any()


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


def test_policies_are_put_together_by_the_arm_of_their_reward(tmp_path, capsys):
    for name, gain in {"multi-scale-1-0": 0.5, "multi-scale-2-0": 0.75, "dwrl-1-0": 0.25}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"gain": [gain, 0, 1]}))
    print_policies(tmp_path)
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if "multi-scale" in line)
    assert "0.62" in row
    assert "0.50, 0.75" in row
    assert "dwrl" in said
