import random
from itertools import pairwise

import pytest
import torch

from toolkit.data.batches import (
    BESIDE_THE_ROWS,
    TASTE_COLUMNS,
    EpochLengthGroupedSampler,
    MultiScaleCollator,
    StateTable,
    TokenBudgetSampler,
    longest_first,
)


@pytest.fixture
def lengths():
    generator = random.Random(0)
    return [int(generator.lognormvariate(5, 0.7)) + 5 for _ in range(301)]


def pair(prompt, chosen, rejected, **columns):
    ids = {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}
    starts = {"chosen_start": len(prompt), "rejected_start": len(prompt)}
    return {**ids, **starts, "shared_tokens": len(prompt), **columns}


def test_collators_by_hand():
    pairs = [pair([1, 2], [3], [4, 5], margin=0.5, weight=2.0), pair([6], [7], [8], margin=0, weight=1.0)]
    batch = MultiScaleCollator(pad_token_id=0)(pairs)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 0], [6, 7, 0, 0], [1, 2, 4, 5], [6, 8, 0, 0]]
    shared = MultiScaleCollator(pad_token_id=0, shared_prompts=True)(pairs)
    assert shared["input_ids"].tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]]
    # All chosen, then all rejected: the same rows as in the plain batch.
    assert shared["token_index"].tolist() == [[0, 1, 2, -1], [5, 6, -1, -1], [0, 1, 3, 4], [5, 7, -1, -1]]
    for found in (batch, shared):
        assert found["response_start"].tolist() == [2, 1, 2, 1]
        assert found["response_tokens"].tolist() == [1, 1, 2, 1]
        assert found["group_sizes"].tolist() == [2, 2]
        assert found["margin"].tolist() == [0.5, 0.0]
        assert found["weight"].tolist() == [2.0, 1.0]


@pytest.mark.parametrize("shared", [False, True])
def test_a_batch_of_states_by_hand(shared):
    table = StateTable(torch.arange(5 * 4 * 2.0).view(5, 4, 2), ("chosen_row", "rejected_row"), {})
    pairs = [
        pair([1, 2], [3], [4, 5], margin=0.5, weight=2.0, chosen_row=3, rejected_row=0),
        pair([6], [7], [8], margin=0, weight=1.0, chosen_row=1, rejected_row=3),
    ]
    collator = MultiScaleCollator(pad_token_id=0, shared_prompts=shared, table=table)
    batch, tokens = collator(pairs), MultiScaleCollator(pad_token_id=0, shared_prompts=shared)(pairs)
    beside = set(BESIDE_THE_ROWS) - {"ranks", "pairs", *TASTE_COLUMNS}
    assert batch.keys() == {"states", *beside}
    assert torch.equal(batch["states"], table.states[[3, 1, 0, 3]])  # all chosen, then all rejected
    for name in beside:
        assert torch.equal(batch[name], tokens[name]), name
    assert batch["pair_tokens"].tolist() == ([5, 3] if shared else [7, 4])
    assert batch["pair_tokens"].sum() == tokens["attention_mask"].sum()
    # Pairs without the columns are tokens
    for each in pairs:
        del each["chosen_row"], each["rejected_row"]
    assert collator(pairs).keys() == tokens.keys()


def test_batches_of_lists_by_hand():
    lists = [
        {
            "response_ids": [[1, 2, 3], [1, 2, 4, 5], [1, 2, 6]],
            "response_starts": [2, 2, 2],
            "response_ranks": [0, 1, 1],
        },
        {"response_ids": [[6, 7], [6, 8]], "response_starts": [1, 1], "response_ranks": [0, 1]},
    ]
    for example, shared in zip(lists, (2, 1), strict=True):
        example |= {"shared_tokens": shared, "weight": float(shared)}
    batch = MultiScaleCollator(pad_token_id=0, pad_to_multiple_of=8)(lists)
    rows = [[1, 2, 3], [6, 7], [1, 2, 4, 5], [6, 8], [1, 2, 6]]  # the first of each, the second of each, the third
    assert batch["input_ids"].tolist() == [row + [0] * (8 - len(row)) for row in rows]
    assert batch["attention_mask"].tolist() == [[1] * len(row) + [0] * (8 - len(row)) for row in rows]
    shared = MultiScaleCollator(pad_token_id=0, shared_prompts=True, longest=4)(lists)
    assert shared["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6], [6, 7, 8, 0, 0, 0]]
    read = [[shared["input_ids"].flatten()[i].item() for i in row if i >= 0] for row in shared["token_index"]]
    assert read == rows
    table = StateTable(torch.arange(5 * 4 * 2.0).view(5, 4, 2), ("chosen_row", "rejected_row"), {}, "rows")
    places = [example | {"rows": rows} for example, rows in zip(lists, ([4, 0, 1], [3, 2]), strict=True)]
    states = MultiScaleCollator(pad_token_id=0, table=table)(places)
    assert torch.equal(states["states"], table.states[[4, 3, 0, 2, 1]])
    for found in (batch, shared):
        assert found["response_start"].tolist() == [2, 1, 2, 1, 2]
    for found in (batch, shared, states):
        assert found["response_tokens"].tolist() == [1, 1, 2, 1, 1]
        assert found["group_sizes"].tolist() == [3, 2]
        assert found["weight"].tolist() == [2.0, 1.0]
    assert batch["ranks"].tolist() == [[0, 1, 1], [0, 1, -1]]
    assert shared["ranks"].tolist() == [[0, 1, 1, -1], [0, 1, -1, -1]]
    assert batch["pair_tokens"].tolist() == [10, 4]
    assert shared["pair_tokens"].tolist() == [6, 3]


def test_batches_of_pairs_by_their_prompts_by_hand():
    two = {"response_ids": [[1, 2], [1, 3]], "response_starts": [1, 1], "response_pairs": [[1, 0]], "weight": [1.0]}
    rows = [
        {
            "response_ids": [[4, 5], [4, 6], [4, 7]],
            "response_starts": [1, 1, 1],
            "response_pairs": [[0, 2], [1, 2], [2, 0]],
            "weight": [2.0, 3.0, 4.0],
        },
        two,
    ]
    batch = MultiScaleCollator(pad_token_id=0)([row | {"shared_tokens": 1} for row in rows])
    read = [[batch["input_ids"][row].tolist() for row in pair] for pair in batch["pairs"]]
    assert read == [[[4, 5], [4, 7]], [[4, 6], [4, 7]], [[4, 7], [4, 5]], [[1, 3], [1, 2]]]
    assert batch["weight"].tolist() == [2, 3, 4, 1]
    assert batch["group_sizes"].tolist() == [3, 2]
    assert "ranks" not in batch


def test_order_of_an_epoch_is_its_own_and_random(lengths):
    sampler = EpochLengthGroupedSampler(8, lengths, seed=3)
    first = list(sampler)
    torch.rand(5)  # what others draw does not matter
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(301))
    assert first != second

    def padded(order):
        return sum(8 * max(lengths[i] for i in order[k : k + 8]) for k in range(0, 296, 8))

    assert padded(first) < 0.75 * padded(range(301))
    assert max(lengths) in [lengths[i] for i in first[:8]]
    # Neither falling nor rising: about half of the batches are longer than the one before.
    longest = [max(lengths[i] for i in first[k : k + 8]) for k in range(8, 296, 8)]
    assert 10 < sum(b > a for a, b in pairwise(longest)) < 26
    assert sorted(EpochLengthGroupedSampler(8, lengths[:5], seed=3)) == list(range(5))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_batches_keep_to_their_tokens(lengths, processes):
    samplers = [TokenBudgetSampler(lengths, 2500, 0, processes, rank) for rank in range(processes)]
    epochs = []
    for epoch in range(2):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        batches = [list(sampler) for sampler in samplers]
        assert {len(own) for own in batches} == {len(samplers[0])}
        for together in zip(*batches, strict=True):
            assert len({len(batch) for batch in together}) == 1
            assert all(len(batch) * max(lengths[i] for i in batch) <= 2500 for batch in together)
        seen = [i for own in batches for batch in own for i in batch]
        assert set(seen) == set(range(301))
        assert len(seen) - 301 < processes
        assert max(lengths) in [lengths[i] for own in batches for i in own[0]]  # the longest first
        epochs.append(batches)
    assert epochs[0] != epochs[1]
    filled = [len(batch) * max(lengths[i] for i in batch) for batch in epochs[0][0]]
    assert sum(filled) / len(filled) > 0.8 * 2500


def test_a_row_over_the_budget_is_named():
    with pytest.raises(ValueError, match=r"Row 2 alone has 90 tokens, more than `max_tokens_per_batch=64`"):
        TokenBudgetSampler([10, 90], 64, 0, 1, 0)


def test_longest_first_by_hand():
    assert longest_first([3, 9, 3, 5]) == [1, 3, 0, 2]
