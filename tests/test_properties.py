"""Laws that hold for whatever people have: rows, templates, segments, packing and fits, on generated examples."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolkit.data.packing import fill_batches, group_by_prefix, pack_rows, shared_prefix_length
from toolkit.data.positions import find_response_start, group_rows, response_mask, segment_ends
from toolkit.data.sampled import encode_sampled, prompt_parts
from toolkit.data.tokens import cut_prompt, encode_response, turn_parts
from toolkit.experiments.templates import TOKENIZERS, new_tokenizer, shipped_templates
from toolkit.policy.returns import batch_ridge_statistics, decay_and_add, leave_one_out_baseline, ridge_coefficients
from toolkit.reward.losses import pairwise_logistic_loss, strength_weights
from toolkit.reward.scales import prefix_mean
from toolkit.stats.metrics import pair_accuracy, wilson_interval

# The same examples in every run, so that a change that passed here passes elsewhere; no limit of time
LAWS = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
MISTRAL = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
# What tokenizers, templates and people stumble over, beside any text
PIECES = [
    "\n",
    "\n\n",
    " ",
    "  ",
    "\t",
    "a",
    "The sky",
    ".",
    "!",
    "é",
    "河",
    "👍🏽",
    "\u200b",
    "<",
    "think",
    "[",
    "{{",
    "0",
]
TEXTS = st.one_of(
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20),
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
)
WORDS = TEXTS.filter(lambda text: text.strip() != "")


@cache
def tokenizers():  # no fixture, whose long text Hypothesis would print
    templates = shipped_templates()
    sources = [templates["qwen3"], MISTRAL, templates["llama3"], templates["gptoss"]]
    return [new_tokenizer(kind, source) for kind, source in zip(TOKENIZERS, sources, strict=True)]


@settings(max_examples=900, **LAWS)
@given(prompt=TEXTS, response=WORDS, kind=st.integers(0, 3))
def test_rows_of_plain_text(prompt, response, kind):
    tokenizer = tokenizers()[kind]
    whole, cut_off = (encode_response(tokenizer, prompt, response, finished=flag) for flag in (True, False))
    # one that is finished goes on where one that was cut off stops, with EOS and nothing else
    added = whole.input_ids[len(cut_off.input_ids) :]
    assert whole.input_ids[: len(cut_off.input_ids)] == cut_off.input_ids
    assert set(added) == {tokenizer.eos_token_id}
    assert whole.response_start == cut_off.response_start
    assert tokenizer.eos_token_id not in cut_off.input_ids
    # ends are places in the response, in order, the last of them its end
    assert cut_off.ends == sorted(cut_off.ends)
    assert len(cut_off.ends) == len(cut_off.input_ids) - cut_off.response_start
    assert cut_off.ends[-1] == len(response)
    assert min(cut_off.ends) > 0
    if kind == 0:  # every byte is in the alphabet, so nothing is lost
        assert tokenizer.decode(cut_off.input_ids[1:], clean_up_tokenization_spaces=False) == prompt + response
        first = tokenizer.decode(cut_off.input_ids[1 : whole.response_start], clean_up_tokenization_spaces=False)
        assert prompt.startswith(first.rstrip("\ufffd"))


@settings(max_examples=600, **LAWS)
@given(question=WORDS, answer=WORDS, kind=st.integers(0, 3), cut=st.integers(0, 30))
def test_rows_of_sampled_conversations(question, answer, kind, cut):
    tokenizer, prompt = tokenizers()[kind], [{"role": "user", "content": question}]
    around = prompt_parts(tokenizer, prompt, {})
    row = encode_response(tokenizer, prompt, [{"role": "assistant", "content": answer}])
    turn = turn_parts(tokenizer, prompt)
    tail = len(tokenizer(turn.tail, add_special_tokens=False)["input_ids"])
    # a policy that goes on from its prompt to write the very row of training, to its end or to a point before it
    ids = row.input_ids[row.response_start : len(row.input_ids) - tail + 1]

    def sampled(ids, finished):
        text = [{"role": "assistant", "content": tokenizer.decode(ids, skip_special_tokens=True)}]
        return encode_sampled(tokenizer, prompt, around, text, ids, finished=finished)

    whole = sampled(ids, True)
    assert whole.row.input_ids == row.input_ids
    assert whole.row.response_start == row.response_start
    # what was cut off starts where what is whole does, and has no end
    part = sampled(ids[: max(1, min(cut, len(ids) - 1))], False)
    assert part.row.response_start == row.response_start
    assert part.row.input_ids[: row.response_start] == row.input_ids[: row.response_start]
    assert tokenizer.eos_token_id not in part.row.input_ids[row.response_start :]
    # where the ids are not those of the row, they follow the prompt as they are
    for found, given_ids in ((whole, ids[:-1]), (part, ids[: max(1, min(cut, len(ids) - 1))])):
        followed = found.followed or found.row
        begin = found.row.response_start + found.head_tokens
        assert followed.input_ids[begin : begin + len(given_ids)] == given_ids


@settings(max_examples=500, **LAWS)
@given(prompt=WORDS, sides=st.lists(WORDS, min_size=2, max_size=2), most=st.integers(2, 60))
def test_prompts_are_cut_alike_and_responses_never(prompt, sides, most):
    tokenizer = tokenizers()[0]
    rows = [encode_response(tokenizer, prompt, side) for side in sides]
    try:
        cut, lost = cut_prompt(tokenizer, rows, most)
    except ValueError:
        assert any(len(row.input_ids) - row.response_start + 2 > most for row in rows)
        return
    assert lost == max(0, max(len(row.input_ids) for row in rows) - most)
    for before, after in zip(rows, cut, strict=True):
        assert after.input_ids[after.response_start :] == before.input_ids[before.response_start :]
        assert after.input_ids[0] == before.input_ids[0]
        assert len(after.input_ids) == len(before.input_ids) - lost <= most


BITS = st.lists(st.booleans(), min_size=1, max_size=24)


@settings(max_examples=700, **LAWS)
@given(boundary=BITS, start=st.integers(0, 24), longer=BITS)
def test_segments_are_those_of_a_loop_and_do_not_look_ahead(boundary, start, longer):
    def ends(bits):
        mask = response_mask(torch.tensor([start]), torch.ones(1, len(bits), dtype=torch.long))
        return segment_ends(torch.tensor([bits]), mask)[0].tolist()

    expected, before = [], False
    for place, bit in enumerate(boundary):
        inside = bit and place >= start
        expected.append(inside and not before)
        before = inside
    assert ends(boundary) == expected
    assert ends(boundary + longer)[: len(boundary)] == expected


ROWS = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=8), min_size=1, max_size=6)


@settings(max_examples=500, **LAWS)
@given(groups=st.lists(ROWS, min_size=1, max_size=4), multiple=st.sampled_from([None, 1, 4, 8]), data=st.data())
def test_packed_rows_hold_every_row_and_nothing_sees_another_branch(groups, multiple, data):
    shared = [data.draw(st.integers(0, shared_prefix_length(group))) for group in groups]
    packed = pack_rows(groups, shared, 0, multiple)
    rows = [row for group in groups for row in group]
    flat, places = packed.input_ids.flatten(), packed.position_ids.flatten()
    branches = packed.branch_ids.flatten()
    for index, row in zip(packed.token_index, rows, strict=True):
        at = index[index >= 0]
        assert flat[at].tolist() == row
        assert places[at].tolist() == list(range(len(row)))
        assert len(set(branches[at].tolist()) - {0}) <= 1
        assert (index[len(row) :] == -1).all()
    assert packed.attention_mask.sum() == sum(
        n + sum(len(row) - n for row in group) for group, n in zip(groups, shared, strict=True)
    )
    assert packed.input_ids.size(1) % (multiple or 1) == 0


@settings(max_examples=400, **LAWS)
@given(rows=ROWS, most=st.integers(1, 5), tokens=st.one_of(st.none(), st.integers(1, 20)), data=st.data())
def test_groups_and_batches_take_every_row_once(rows, most, tokens, data):
    shared = [data.draw(st.integers(0, len(row))) for row in rows]
    groups = group_by_prefix(rows, shared, most)
    assert sorted(i for group in groups for i in group) == list(range(len(rows)))
    for group in groups:
        assert len({tuple(rows[i][: shared[i]]) for i in group}) == 1
        assert len(group) <= most
    lengths = [shared[g[0]] + sum(len(rows[i]) - shared[i] for i in g) for g in groups]
    batches = fill_batches(lengths, list(map(len, groups)), most, tokens)
    assert sorted(k for batch in batches for k in batch) == list(range(len(groups)))
    for batch in batches:
        assert sum(len(groups[k]) for k in batch) <= most
        assert tokens is None or len(batch) == 1 or len(batch) * max(lengths[k] for k in batch) <= tokens


@settings(max_examples=200, **LAWS)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_rows_of_groups_are_all_there_first_rows_first(sizes):
    found = group_rows(torch.tensor(sizes), max(sizes))
    assert [(row >= 0).sum().item() for row in found] == sizes
    order = [(place, group) for place in range(max(sizes)) for group, size in enumerate(sizes) if place < size]
    assert [found[group, place].item() for place, group in order] == list(range(sum(sizes)))


@settings(max_examples=300, **LAWS)
@given(
    rows=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=12), min_size=1, max_size=4),
    marker=st.lists(st.integers(0, 2), min_size=1, max_size=3),
)
def test_responses_start_after_the_last_marker(rows, marker):
    width = max(map(len, rows))
    ids = torch.tensor([row + [9] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    starts = []
    for row in rows:
        places = [i for i in range(len(row) - len(marker) + 1) if row[i : i + len(marker)] == marker]
        starts.append(places[-1] + len(marker) if places else None)
    if any(start is None or start == len(row) for start, row in zip(starts, rows, strict=True)):
        with pytest.raises(ValueError, match="Rows"):
            find_response_start(ids, mask, marker)
    else:
        assert find_response_start(ids, mask, marker).tolist() == starts


NUMBERS = st.floats(-50, 50, allow_nan=False, width=32)


@settings(max_examples=300, **LAWS)
@given(
    rows=st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=12),
    weights=st.lists(NUMBERS, min_size=3, max_size=3),
    penalty=st.floats(0.01, 10),
    decay=st.floats(0, 1),
)
def test_a_ridge_fit_is_that_of_all_rows_with_their_age(rows, weights, penalty, decay):
    features = torch.tensor(rows, dtype=torch.float64)
    targets = features @ torch.tensor(weights, dtype=torch.float64)
    half = len(rows) // 2
    first, second = (
        batch_ridge_statistics(features[part], targets[part]) for part in (slice(None, half), slice(half, None))
    )
    found = ridge_coefficients(decay_and_add(first, second, decay), penalty).double()
    age = np.array([decay] * half + [1.0] * (len(rows) - half))
    x, y = features.numpy(), targets.numpy()
    gram, moment = (x * age[:, None]).T @ x, (x * age[:, None]).T @ y
    left = gram @ found.numpy() + penalty * np.diag(gram) * found.numpy()  # the equation that a ridge fit solves
    np.testing.assert_allclose(left, moment, rtol=1e-6, atol=1e-6 * (1 + np.abs(moment).max()))
    assert (
        np.abs(found.numpy()[np.diag(gram) == 0]).max(initial=0) < 1e-9
    )  # a feature that was never there has no part


@settings(max_examples=200, **LAWS)
@given(values=st.lists(NUMBERS, min_size=2, max_size=8), groups=st.integers(1, 3), shift=NUMBERS)
def test_leave_one_out_is_the_mean_of_the_others(values, groups, shift):
    returns = torch.tensor(values * groups, dtype=torch.float64) + shift
    found = leave_one_out_baseline(returns, len(values))
    for i in range(len(returns)):
        group = i // len(values)
        others = [returns[j].item() for j in range(group * len(values), (group + 1) * len(values)) if j != i]
        assert found[i].item() == pytest.approx(sum(others) / len(others), abs=1e-9)


@settings(max_examples=200, **LAWS)
@given(good=st.lists(NUMBERS, min_size=1, max_size=6), gap=NUMBERS, smoothing=st.floats(0, 0.5))
def test_losses_of_pairs_go_by_the_difference(good, gap, smoothing):
    chosen = torch.tensor(good, dtype=torch.float64)
    loss = pairwise_logistic_loss(chosen, chosen - gap, label_smoothing=smoothing)
    expected = np.logaddexp(0, -gap) * (1 - smoothing) + np.logaddexp(0, gap) * smoothing
    np.testing.assert_allclose(loss.numpy(), np.full(len(good), expected), atol=1e-9)
    shifted = pairwise_logistic_loss(chosen + 7, chosen - gap + 7, label_smoothing=smoothing)
    torch.testing.assert_close(loss, shifted)


@settings(max_examples=200, **LAWS)
@given(strength=st.lists(st.floats(0, 1000), min_size=1, max_size=12).filter(lambda values: sum(values) > 1e-3))
def test_weights_of_strengths_have_mean_one_and_their_order(strength):
    weights = strength_weights(torch.tensor(strength, dtype=torch.float64))
    assert weights.mean().item() == pytest.approx(1)
    assert (weights >= 0).all()
    order = np.argsort(strength, kind="stable")
    assert (np.diff(weights.numpy()[order]) >= -1e-12).all()


@settings(max_examples=200, **LAWS)
@given(values=st.lists(NUMBERS, min_size=1, max_size=12), start=st.integers(0, 11))
def test_means_of_prefixes_are_those_of_a_loop(values, start):
    keep = torch.arange(len(values))[None] >= min(start, len(values) - 1)
    found = prefix_mean(torch.tensor([values], dtype=torch.float64), keep)[0]
    inside = []
    for place, value in enumerate(values):
        inside += [value] if keep[0, place] else []
        if inside:
            assert found[place].item() == pytest.approx(sum(inside) / len(inside), abs=1e-6)


@settings(max_examples=300, **LAWS)
@given(trials=st.integers(1, 500), data=st.data())
def test_intervals_of_shares_hold_the_share(trials, data):
    successes = data.draw(st.integers(0, trials))
    interval = wilson_interval(successes, trials)
    share = successes / trials
    assert 0 <= interval.low <= share + 1e-12
    assert share - 1e-12 <= interval.high <= 1
    scores = torch.tensor([1.0] * successes + [-1.0] * (trials - successes))
    assert pair_accuracy(scores, torch.zeros(trials)).value == pytest.approx(share)
