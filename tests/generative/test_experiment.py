"""What the sandbox's experiment has of its own: the verdicts that its baseline is rewarded for."""

from types import SimpleNamespace

import pytest
import torch

from tests.helpers import load_recipe


@pytest.fixture(scope="module")
def weights_of():
    """Weights that the baseline gives to answers of these probabilities `(P, 2, N)`."""
    verdicts = load_recipe("experiments/thoughts").Verdicts

    def weigh(omega: torch.Tensor):
        trainer = SimpleNamespace(args=SimpleNamespace(seed=0), _step=0, _log_answers=omega.log())
        return verdicts._weights(trainer, None)

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
