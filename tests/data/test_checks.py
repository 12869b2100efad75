import math
import random

import numpy as np
import pytest

from toolkit.data.checks import (
    CONTRADICTED,
    EMPTY_PROMPTS,
    NEARLY_REPEATED,
    ODD_CHARACTERS,
    REPEATED,
    SHARED_PROMPTS,
    PairCounts,
    Place,
    find_contradictions,
    find_repeats,
    find_shared,
    histogram,
    odd_characters,
)

CONTROLS, ZERO_WIDTH, BIDI, REPLACED, SURROGATES, DECODED = ODD_CHARACTERS


def pair(prompt="p", chosen="good", rejected="bad", **columns):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **columns}


def talk(prompt="p", chosen="good", rejected="bad"):
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {side: [{"role": roles[side], "content": text}] for side, text in pair(prompt, chosen, rejected).items()}


def counted(*pairs, near=False, others=None):
    counts = PairCounts(near)
    for row, each in enumerate(pairs, start=1):
        counts.add(Place("a.jsonl", row), each)
    counts.finish(others)
    return counts


def rows_of(counts, kind):
    """Number of rows of a kind, and the row numbers of the first."""
    found = counts.kinds[kind]
    return found.rows, [tuple(place.row for place in places) for places in found.first]


# Repeats, contradictions and shared prompts


@pytest.mark.parametrize("make", [pair, talk])
def test_a_repeated_pair_is_named_with_the_first_one(make):
    counts = counted(make(), make("q"), make(), make(), make("q"))
    assert rows_of(counts, REPEATED) == (3, [(3, 1), (4, 1), (5, 2)])
    assert CONTRADICTED not in counts.kinds


@pytest.mark.parametrize("make", [pair, talk])
def test_a_pair_labelled_both_ways_is_named_with_its_opposite(make):
    counts = counted(make(), make("q", "a", "b"), make("p", "bad", "good"), make("q", "a", "c"))
    assert rows_of(counts, CONTRADICTED) == (2, [(1, 3), (3, 1)])
    assert REPEATED not in counts.kinds


def test_only_the_first_three_are_named_and_all_are_counted():
    counts = counted(*[pair()] * 10)
    assert rows_of(counts, REPEATED) == (9, [(2, 1), (3, 1), (4, 1)])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pair("ab", "c", "d"), pair("a", "bc", "d")),
        (pair("a", "b", "cd"), pair("a", "bc", "d")),
        (pair("p"), talk("p")),
        (talk("p"), talk("p") | {"prompt": [{"role": "system", "content": "p"}]}),
        (
            talk() | {"prompt": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
            talk() | {"prompt": [{"role": "user", "content": "auserb"}]},
        ),
    ],
)
def test_what_is_divided_otherwise_is_no_repeat(one, other):
    counts = counted(one, other)
    assert REPEATED not in counts.kinds
    assert CONTRADICTED not in counts.kinds


def test_near_repeats_differ_in_case_punctuation_and_white_space():
    rows = [
        pair("How far?", "Not far."),
        pair("how  far", "not far!\n"),
        pair("How far?", "Not fair."),
        pair("How far?", "Not far."),
    ]
    counts = counted(*rows, near=True)
    assert rows_of(counts, NEARLY_REPEATED) == (1, [(2, 1)])
    assert rows_of(counts, REPEATED) == (1, [(4, 1)])  # which is no near repeat
    assert NEARLY_REPEATED not in counted(*rows).kinds


def test_prompts_of_other_files_are_found_whatever_their_form():
    others = PairCounts()
    others.add_prompt(Place("b.jsonl", 7), " What? \n")
    others.add_prompt(Place("c.jsonl", 2), "Who?")
    counts = counted(pair("Why?"), pair("What?"), talk("Who?"), pair("What?", "x"), others=others)
    assert counts.kinds[SHARED_PROMPTS].first == [
        (Place("a.jsonl", 2), Place("b.jsonl", 7)),
        (Place("a.jsonl", 3), Place("c.jsonl", 2)),
        (Place("a.jsonl", 4), Place("b.jsonl", 7)),
    ]
    assert counts.distinct_prompts() == 3


def test_rows_are_named_by_the_file_they_are_in():
    counts = PairCounts()
    for name in ("a", "b"):
        for row in (4, 9):
            counts.add(Place(name, row), pair())
    assert [counts.place(index) for index in range(4)] == [("a", 4), ("a", 9), ("b", 4), ("b", 9)]


@pytest.mark.parametrize("seed", range(20))
def test_keys_are_matched_as_a_search_through_all_of_them_does(seed):
    random.seed(seed)
    size = random.randrange(30)
    keys = [random.randrange(2**64) if random.random() < 0.3 else random.randrange(12) for _ in range(size)]
    others = [random.randrange(8) for _ in range(random.randrange(10))]

    def first(key, among):
        return next((place for place, each in enumerate(among) if each == key), None)

    def expected(wanted, among):
        return [[row, first(key, among)] for row, key in enumerate(wanted) if first(key, among) is not None]

    arrays = np.array(keys, dtype=np.uint64), np.array(others, dtype=np.uint64)
    assert find_repeats(arrays[0]).tolist() == [each for each in expected(keys, keys) if each[0] != each[1]]
    assert find_contradictions(arrays[0]).tolist() == expected([key ^ 1 for key in keys], keys)
    assert find_shared(*arrays).tolist() == expected(keys, others)


# Odd characters


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("plain text\r\n\twith lines", []),
        ("Grüße, naïve café, SÃO PAULO, â la carte", []),
        ("नमस्ते क्‍ष", []),  # a joiner that belongs there
        ("👨‍👩‍👧 a family", []),
        ("שלום العربية 中文，好", []),
        ("no\u00a0break", []),
        ("a\x00b", [CONTROLS]),
        ("a\x1b[31mb", [CONTROLS]),
        ("\x7f", [CONTROLS]),
        ("é\x85", [CONTROLS]),
        ("a\u200bb", [ZERO_WIDTH]),
        ("\ufeffa", [ZERO_WIDTH]),
        ("a\u200db", [ZERO_WIDTH]),
        ("soft\u00adhyphen", [ZERO_WIDTH]),
        ("\u202eevil", [BIDI]),
        ("\u2066a\u2069", [BIDI]),
        ("caf\ufffd", [REPLACED]),
        ("half \ud83d", [SURROGATES]),
        ("cafÃ© and itâ€™s", [DECODED]),
        ("Â£5", [DECODED]),
        ("ðŸ˜€", [DECODED]),
        ("it’s a\u200bb", [ZERO_WIDTH]),
        ("\x00\u200b\ufffd", [CONTROLS, ZERO_WIDTH, REPLACED]),
    ],
)
def test_odd_characters_are_told_from_other_writing(text, kinds):
    assert odd_characters(text, text.encode(errors="surrogatepass")) == kinds


@pytest.mark.parametrize("original", ["é", "’", "“", "”", "–", "…", "ü", "ñ", "£", "😀", "à", "•"])
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_text_decoded_as_another_encoding_is_found(original, encoding):
    raw = f"x {original} y".encode()
    text = raw.decode(encoding, errors="replace").replace("\ufffd", "")
    assert DECODED in odd_characters(text, text.encode())


@pytest.mark.parametrize("side", ["prompt", "chosen", "rejected"])
@pytest.mark.parametrize("make", [pair, talk])
def test_odd_characters_are_found_on_every_side_and_once_a_row(make, side):
    counts = counted(make(), make(**{side: "a\u200bb\u200bc"}), make(**{side: "tab\tand\nline"}))
    assert {kind: rows_of(counts, kind) for kind in counts.kinds} == {ZERO_WIDTH: (1, [(2,)])}


def test_a_control_character_in_plain_ascii_is_found_in_messages():
    assert rows_of(counted(talk(), talk(chosen="bell\x07")), CONTROLS) == (1, [(2,)])


# Numbers


def test_lengths_count_characters_and_ties_are_half():
    counts = counted(pair("ab", "long", "b"), pair("", "a", "long"), pair("x", "same", "even"), pair("x", "aa", "a"))
    assert {side: list(lengths) for side, lengths in counts.lengths.items()} == {
        "prompt": [2, 0, 1, 1],
        "chosen": [4, 1, 4, 2],
        "rejected": [1, 4, 4, 1],
    }
    longer = counts.longer_wins()
    assert (longer.value, longer.ties, longer.pairs) == (2.5 / 4, 1, 4)
    assert rows_of(counts, EMPTY_PROMPTS) == (1, [(2,)])


def test_messages_are_as_long_as_their_lines():
    turns = [
        {"role": "user", "content": "abc"},
        {"role": "assistant", "content": "d"},
        {"role": "user", "content": "ef"},
    ]
    counts = counted(talk() | {"prompt": turns})
    assert list(counts.lengths["prompt"]) == [len("abc\nd\nef")]
    assert counts.roles == {"user": 2, "assistant": 3}


def test_strengths_margins_and_annotators_are_kept_where_they_are():
    rows = [
        pair(strength=0.5, margin=1.0, worker_id=3),
        pair(strength=0.0, margin=2.0, worker_id=3),
        pair(Annotator="x"),
    ]
    counts = counted(*rows)
    assert {column: list(values) for column, values in counts.numbers.items()} == {
        "strength": [0.5, 0.0],
        "margin": [1.0, 2.0],
    }
    assert {column: len(set(hashes)) for column, hashes in counts.annotators.items()} == {
        "worker_id": 1,
        "Annotator": 1,
    }
    assert len(counts.annotators["worker_id"]) == 2


def test_a_set_of_nothing_can_be_finished():
    counts = counted()
    assert counts.kinds == {}
    assert math.isnan(counts.longer_wins().value)


def test_a_histogram_is_as_high_as_the_most_frequent_part():
    assert histogram([0, 0, 0, 0, 1, 1, 3], bins=3) == "█▄▂"
    assert histogram([0, 2], bins=4) == "█  █"
    assert len(histogram([5.0])) == 20


def test_memory_does_not_grow_with_the_texts():
    short, long = (counted(*[pair(str(i), "x" * size) for i in range(50)]) for size in (1, 10_000))

    def held(counts):
        arrays = [counts._rows, counts._prompts, counts._pairs, *counts.lengths.values(), *counts.numbers.values()]
        return sum(len(array) * array.itemsize for array in arrays)

    assert held(short) == held(long) <= 50 * 64
