import pytest
import torch

from toolkit.data.positions import (
    find_response_start,
    group_rows,
    last_kept,
    positions_from,
    response_mask,
    running_sum,
    segment_ends,
)


def mask(*rows: str) -> torch.Tensor:
    """A mask drawn as text, a row a string, with `o` where it is True."""
    return torch.tensor([[sign == "o" for sign in row] for row in rows])


def test_last_kept_is_the_right_most_kept_token_on_either_side_of_the_padding():
    keep = mask("ooo..", "..ooo", "o....", ".o.o.", "ooooo")
    assert last_kept(keep).tolist() == [2, 4, 0, 3, 4]
    assert last_kept(keep.long()).tolist() == [2, 4, 0, 3, 4]


def test_last_kept_of_an_empty_row_is_its_last_token():
    assert last_kept(mask("....", "o...")).tolist() == [3, 0]


def test_last_kept_agrees_with_a_search_from_the_right():
    keep = torch.rand(50, 9, generator=torch.Generator().manual_seed(0)) < 0.3
    keep[:, 4] = True
    assert last_kept(keep).tolist() == [max(i for i, kept in enumerate(row) if kept) for row in keep.tolist()]


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9])
def test_deterministic_running_sums_are_the_others(length):
    values = torch.randn(3, length, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, length, dtype=torch.float64)
    plain = running_sum(values)
    torch.use_deterministic_algorithms(True)
    try:
        other = running_sum(values)
    finally:
        torch.use_deterministic_algorithms(False)
    assert "Cumsum" in plain.grad_fn.name()
    assert other is values or "Cumsum" not in other.grad_fn.name()
    torch.testing.assert_close(other, plain)
    gradients = [torch.autograd.grad((found * weights).sum(), values)[0] for found in (plain, other)]
    torch.testing.assert_close(*gradients)


def test_positions_count_from_the_first_real_token():
    positions = positions_from(mask("ooo..", "..ooo", "ooooo"))
    # padding on the right repeats the last position and padding on the left is 0; neither is ever read
    assert positions.tolist() == [[0, 1, 2, 2, 2], [0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert positions.dtype == torch.int64


def test_padding_on_the_left_moves_no_position():
    attention = mask("oooo", "oo..")
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.bool), attention], dim=1)
    torch.testing.assert_close(positions_from(padded)[:, 3:], positions_from(attention))


def test_response_mask_runs_from_the_start_to_the_last_real_token():
    attention = mask("ooooo.", ".ooooo", "oooooo")
    expected = mask("..ooo.", "....oo", "oooooo")
    torch.testing.assert_close(response_mask(torch.tensor([2, 4, 0]), attention), expected)
    torch.testing.assert_close(response_mask(torch.tensor([2, 4, 0]), attention.long()), expected)


def test_response_starts_after_the_last_marker():
    # the marker (7, 8) opens every assistant's turn; the response is the last turn
    ids = torch.tensor([[7, 8, 1, 7, 8, 2, 3, 0], [0, 0, 0, 5, 7, 8, 4, 4]])
    attention = mask("ooooooo.", "...ooooo")
    assert find_response_start(ids, attention, [7, 8]).tolist() == [5, 6]


def test_half_a_marker_is_no_marker():
    ids = torch.tensor([[7, 8, 1, 7, 2, 8]])
    assert find_response_start(ids, torch.ones_like(ids), [7, 8]).tolist() == [2]


def test_padding_on_the_left_moves_the_start_by_its_length():
    ids = torch.tensor([[5, 7, 8, 1, 2], [7, 8, 1, 1, 2]])
    start = find_response_start(ids, torch.ones_like(ids), [7, 8])
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], dim=1)
    torch.testing.assert_close(find_response_start(padded, (padded > 0).long(), [7, 8]), start + 3)


def test_rows_without_the_marker_are_named():
    ids = torch.tensor([[7, 8, 1, 2], [8, 7, 1, 2], [7, 8, 3, 3], [1, 2, 3, 7]])
    with pytest.raises(ValueError, match=r"Rows \[1, 3\] of the batch do not contain the response marker \[7, 8\]"):
        find_response_start(ids, torch.ones_like(ids), [7, 8])


def test_a_row_shorter_than_the_marker_lacks_it():
    with pytest.raises(ValueError, match=r"Rows \[0, 1\] of the batch do not contain the response marker"):
        find_response_start(torch.tensor([[7], [8]]), torch.ones(2, 1), [7, 8])


def test_nothing_after_the_marker_is_nothing_to_score():
    ids = torch.tensor([[1, 7, 8, 2], [1, 1, 7, 8], [1, 7, 8, 0]])
    with pytest.raises(ValueError, match=r"Rows \[1, 2\] of the batch have no token after the response marker"):
        find_response_start(ids, mask("oooo", "oooo", "ooo."), [7, 8])


def test_a_run_of_boundaries_ends_one_segment():
    boundary = mask("..o..ooo.", "o.o.o.o.o")
    torch.testing.assert_close(segment_ends(boundary, mask("ooooooooo", "ooooooooo")), mask("..o..o...", "o.o.o.o.o"))


def test_boundaries_of_the_prompt_end_no_segment():
    # the prompt's boundary stands right before the response, whose first token is a boundary too and counts
    boundary, response = mask("o.oo.o.", "o.oo.o."), mask("...oooo", "...oo..")
    torch.testing.assert_close(segment_ends(boundary, response), mask("...o.o.", "...o..."))


def test_a_response_without_boundaries_completes_no_segment():
    assert not segment_ends(mask("......"), mask("..oooo")).any()


def test_later_tokens_do_not_change_which_earlier_ones_end_a_segment():
    generator = torch.Generator().manual_seed(0)
    boundary, response = torch.rand(40, 8, generator=generator) < 0.5, torch.ones(40, 8, dtype=torch.bool)
    whole = segment_ends(boundary, response)
    for cut in range(1, 8):
        torch.testing.assert_close(segment_ends(boundary[:, :cut], response[:, :cut]), whole[:, :cut])


def test_segment_ends_leaves_its_arguments_alone():
    boundary, response = mask("o.oo.o."), mask("...oooo")
    segment_ends(boundary, response)
    torch.testing.assert_close(boundary, mask("o.oo.o."))
    torch.testing.assert_close(response, mask("...oooo"))


def test_rows_of_groups_by_hand():
    # Three groups of 2, 3 and 1 responses: first all first ones (rows 0 to 2), then the second ones (3, 4), then row 5
    assert group_rows(torch.tensor([2, 3, 1]), 3).tolist() == [[0, 3, -1], [1, 4, 5], [2, -1, -1]]


def test_pairs_are_groups_of_two():
    scores = torch.randn(10)
    pairs = scores[group_rows(torch.full((5,), 2), 2)]
    assert torch.equal(torch.stack(scores.chunk(2), dim=1), pairs)
