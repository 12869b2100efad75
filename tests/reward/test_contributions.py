import pytest
import torch

from toolkit.data.positions import segment_ends
from toolkit.reward.contributions import score_contributions
from toolkit.reward.scales import mix, scale_prefix_values


def test_parts_by_hand():
    # a token of the prompt, then four of the response, whose two segments end on the second and the fourth
    found = score_contributions(
        token_scores=torch.tensor([[9.0, 1.0, -2.0, 3.0, 4.0]]),
        segment_scores=torch.tensor([[9.0, 8.0, 6.0, 7.0, -2.0]]),
        response_score=torch.tensor([10.0]),
        gate=torch.tensor([[0.5, 0.3, 0.2]]),
        response=torch.tensor([[False, True, True, True, True]]),
        segment_ends=torch.tensor([[False, False, True, False, True]]),
    )
    torch.testing.assert_close(found.token, torch.tensor([[0.0, 0.125, -0.25, 0.375, 0.5]]))
    torch.testing.assert_close(found.segment, torch.tensor([[0.0, 0.0, 0.9, 0.0, -0.3]]))
    torch.testing.assert_close(found.response, torch.tensor([2.0]))


@pytest.mark.parametrize("seed", range(5))
def test_parts_sum_to_the_score_of_the_prefix_values(seed):
    # rows that end on a boundary, so that the ends are the closed ones
    generator = torch.Generator().manual_seed(seed)
    token, segment, whole = torch.randn(3, 7, 12, generator=generator)
    gate = torch.randn(7, 3, generator=generator).softmax(1)
    response = torch.arange(12) >= torch.randint(0, 11, (7, 1), generator=generator)
    boundary = (torch.rand(7, 12, generator=generator) < 0.4) & response
    boundary[:, -1] = True
    ends = segment_ends(boundary, response)
    score = mix(scale_prefix_values(token, segment, whole, boundary, ends, response)[:, -1], gate)
    parts = score_contributions(token, segment, whole[:, -1], gate, response, ends)
    torch.testing.assert_close(parts.token.sum(1) + parts.segment.sum(1) + parts.response, score)
    assert not parts.token[~response].any()
    assert not parts.segment[~ends].any()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 3), (2, 3), (2,), (2, 3), (2, 3), (2, 1)], r"\(2, 1\), \(2, 3\)"),
        ([(2, 3), (2, 3), (2,), (1, 3), (2, 3), (2, 3)], r"2 rows, got \(1, 3\) and \(2,\)"),
        ([(2, 3), (2, 3), (2, 1), (2, 3), (2, 3), (2, 3)], r"2 rows, got \(2, 3\) and \(2, 1\)"),
    ],
)
def test_shapes_must_match(shapes, message):
    with pytest.raises(ValueError, match=message):
        score_contributions(*map(torch.zeros, shapes))
