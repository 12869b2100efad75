import pytest
import torch

from toolkit.data.positions import last_kept, segment_ends
from toolkit.reward.scales import SCALES, mix, prefix_mean, scale_gradient, scale_prefix_values, segment_prefix_mean


def score_of(token: list[float], segment: list[float], response: list[float], boundary: list[bool]) -> list[float]:
    """Score of one whole response at each scale, told as a story: read it token by token, close segments."""
    closed, is_open, previous = [], False, False
    for value, is_boundary in zip(segment, boundary, strict=True):
        is_open = not is_boundary
        if is_boundary and not previous:
            closed.append(value)
        previous = is_boundary
    if is_open:
        closed.append(segment[-1])  # the response stops here, and so does its last segment
    return [sum(token) / len(token), sum(closed) / len(closed), response[-1]]


def random_batch(rows: int, tokens: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Token, segment and response scores, boundaries, ends and the mask of responses that fill their rows."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, rows, tokens, generator=generator, dtype=torch.float64)
    boundary = torch.rand(rows, tokens, generator=generator) < 0.4
    response = torch.ones(rows, tokens, dtype=torch.bool)
    return (*scores, boundary, segment_ends(boundary, response), response)


def test_prefix_mean_by_hand():
    values = torch.tensor([[9.0, 2.0, 4.0, 9.0, 6.0, 9.0]])
    keep = torch.tensor([[False, True, True, False, True, False]])
    # 0 before anything is kept; then 2, (2 + 4) / 2, the same while nothing is added, (2 + 4 + 6) / 3
    torch.testing.assert_close(prefix_mean(values, keep), torch.tensor([[0.0, 2.0, 3.0, 3.0, 4.0, 4.0]]))


def test_prefix_values_of_a_response_by_hand():
    # prompt of one token, then "Yes . <newline> It is . <end>", then one token of padding
    token = torch.tensor([[8.0, 1.0, 3.0, 2.0, 6.0, 3.0, 3.0, 10.0, 8.0]])
    segment = torch.tensor([[8.0, 5.0, 1.0, 7.0, 4.0, 6.0, 3.0, 9.0, 8.0]])
    whole = torch.tensor([[8.0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 8.0]])
    boundary = torch.tensor([[False, False, True, True, False, False, True, True, False]])
    response = torch.tensor([[False, True, True, True, True, True, True, True, False]])
    ends = segment_ends(boundary, response)
    values = scale_prefix_values(token, segment, whole, boundary, ends, response)

    by_token = [0.0, 1.0, 4 / 2, 6 / 3, 12 / 4, 15 / 5, 18 / 6, 28 / 7, 0.0]
    # open at 5; closed at 1, and the newline adds nothing; 1 with 4 open, 1 with 6 open, 1 and 3 closed, twice
    by_segment = [0.0, 5.0, 1.0, 1.0, (1 + 4) / 2, (1 + 6) / 2, (1 + 3) / 2, (1 + 3) / 2, 0.0]
    by_response = [0.0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 0.0]
    torch.testing.assert_close(values[0].T, torch.tensor([by_token, by_segment, by_response]))
    torch.testing.assert_close(segment_prefix_mean(segment, boundary, ends, response)[0], torch.tensor(by_segment))


def test_the_scales_stand_in_the_order_of_their_names():
    assert SCALES == ("token", "segment", "response")


@pytest.mark.parametrize("tokens", [1, 2, 7, 12])
def test_the_value_of_a_prefix_is_the_score_of_the_response_cut_there(tokens):
    *scores, boundary, ends, response = random_batch(30, tokens)
    values = scale_prefix_values(*scores, boundary, ends, response)
    for row in range(30):
        for cut in range(1, tokens + 1):
            expected = score_of(*(part[row, :cut].tolist() for part in (*scores, boundary)))
            torch.testing.assert_close(values[row, cut - 1], torch.tensor(expected, dtype=torch.float64))


def test_masking_what_follows_is_the_same_as_cutting():
    *scores, boundary, ends, response = random_batch(30, 9)
    whole = scale_prefix_values(*scores, boundary, ends, response)
    for cut in range(1, 10):
        shorter = response & (torch.arange(9) < cut)
        seen = boundary & shorter
        values = scale_prefix_values(*scores, seen, segment_ends(seen, shorter), shorter)
        torch.testing.assert_close(values[torch.arange(30), last_kept(shorter)], whole[:, cut - 1])
        assert not values[:, cut:].any()


def test_later_tokens_never_change_an_earlier_value():
    first, second = random_batch(30, 9, seed=0), random_batch(30, 9, seed=1)
    before = scale_prefix_values(*first)
    for cut in range(1, 9):
        *scores, boundary = (
            torch.cat([a[:, :cut], b[:, cut:]], 1) for a, b in zip(first[:4], second[:4], strict=True)
        )
        after = scale_prefix_values(*scores, boundary, segment_ends(boundary, first[5]), first[5])
        assert torch.equal(after[:, :cut], before[:, :cut])


@pytest.mark.parametrize(("left", "right"), [(3, 0), (0, 3), (2, 4)])
def test_prompt_and_padding_change_nothing(left, right):
    *scores, boundary, ends, response = random_batch(30, 7)
    expected = scale_prefix_values(*scores, boundary, ends, response)

    def surround(part, fill):
        return torch.nn.functional.pad(part, (left, right), value=fill)

    outside = [surround(part, 50.0) for part in scores]
    here = surround(response, False)
    boundary = surround(boundary, True) & here
    values = scale_prefix_values(*outside, boundary, segment_ends(boundary, here), here)
    torch.testing.assert_close(values[:, left : left + 7], expected)
    assert not values[:, :left].any()
    assert not values[:, left + 7 :].any()


def test_shifting_every_score_shifts_every_value():
    # each scale is a mean of its scores, so a constant passes through
    *scores, boundary, ends, response = random_batch(10, 7)
    values = scale_prefix_values(*scores, boundary, ends, response)
    shifted = scale_prefix_values(*(part + 2.0 for part in scores), boundary, ends, response)
    torch.testing.assert_close(shifted, values + 2.0)


def test_mix_by_hand():
    gate = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    values = torch.tensor([[2.0, 4.0, 8.0], [3.0, 5.0, 7.0]])
    torch.testing.assert_close(mix(values, gate), torch.tensor([4.0, 5.0]))  # 1 + 1 + 2, and 5


def test_mix_of_prefixes_is_the_mix_of_each_prefix():
    generator = torch.Generator().manual_seed(0)
    values, gate = torch.randn(4, 6, 3, generator=generator), torch.rand(4, 3, generator=generator)
    torch.testing.assert_close(mix(values, gate), torch.stack([mix(values[:, t], gate) for t in range(6)], dim=1))


def test_a_scaled_gradient_leaves_the_values_as_they_are():
    values = torch.randn(3, 5, requires_grad=True)
    scaled = scale_gradient(values, 0.1)
    assert torch.equal(scaled, values)
    (scaled * torch.arange(5)).sum().backward()
    torch.testing.assert_close(values.grad, 0.1 * torch.arange(5.0).expand(3, 5))
    assert scale_gradient(values, 1.0) is values
