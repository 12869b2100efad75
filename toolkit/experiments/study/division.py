"""Division of preference pairs by what repeats in them: the same way every time, in whatever order they come.

Every choice is the order of a hash of the text concerned, of what is chosen, and of [`DIVISION_SEED`].
"""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ...data.messages import Messages, texts_of

DIVISION_SEED = 17
FEWEST_CLUSTERS = 300  # with fewer, every pair is tested once in one of several folds
OUTER_FOLDS, INNER_FOLDS = 5, 5
MOST_PAIRS = (
    1_000  # for training, half as many for testing, a tenth of seen ones; in all where there are several folds
)


class Pair(NamedTuple):
    """A pair as it is divided."""

    prompt: Messages  # as a model reads them
    chosen: str
    rejected: str
    strength: float
    keys: tuple[str, ...]  # normalised; pairs that have one in common are of one cluster
    in_test_file: bool = False


class Part(NamedTuple):
    """A training and a test half, as numbers of pairs."""

    train: list[int]
    inner: list[int]  # of each training pair, the number of its development fold
    test: list[int]
    seen: list[bool]  # of each test pair, whether a text of it occurs in the training half: scored apart


class Division(NamedTuple):
    """Pairs in an order of their own, the cluster of each, how they are divided, and what went on the way."""

    pairs: list[Pair]
    clusters: list[str]
    parts: list[Part]
    left_out: dict[str, int]


def digest(*texts: str) -> str:
    """SHA-256 of texts and the seed, in hexadecimal figures."""
    return hashlib.sha256("\0".join([str(DIVISION_SEED), *texts]).encode("utf-8", "surrogatepass")).hexdigest()


def identity(pair: Pair) -> str:
    """Digest of a pair's three texts."""
    return digest("pair", said(pair.prompt), pair.chosen, pair.rejected)


def said(prompt: Messages) -> str:
    """What all messages of a prompt say."""
    return "\n".join(texts_of(prompt))


def normal(text: str) -> str:
    """A text's letters and figures alone, as small letters; a text that has none, without the space around it."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold()) or text.strip()


def settle(pairs: Iterable[Pair]) -> tuple[list[Pair], dict[str, int]]:
    """
    One pair of all that have the same texts but for white space, in the order of their identities.

    Args:
        pairs (`Iterable[Pair]`):
            Pairs, of which several may be judgements of the same two responses to the same prompt.

    Returns:
        `tuple[list[Pair], dict[str, int]]`: Pairs as most of their judgements have them, with the mean strength of
            those that agree, and the numbers of what was left out: `"repeated"`, judgements beyond the first of a pair
            that stays, and `"undecided"`, judgements of pairs with as many one way as the other. If one of them is of
            a test file, so is the pair.
    """
    judgements = defaultdict[Hashable, list[Pair]](list)
    for pair in pairs:
        texts = [" ".join(text.split()) for text in (said(pair.prompt), pair.chosen, pair.rejected)]
        judgements[texts[0], frozenset(texts[1:])].append(pair)
    kept, left_out = [], {"repeated": 0, "undecided": 0}
    for same in judgements.values():
        ways = defaultdict[str, list[Pair]](list)
        for pair in same:
            ways[" ".join(pair.chosen.split())].append(pair)
        most = max(ways.values(), key=len)
        if 2 * len(most) <= len(same):
            left_out["undecided"] += len(same)
            continue
        left_out["repeated"] += len(same) - 1
        strength = sum(sorted(pair.strength for pair in most)) / len(most)
        keys = tuple(sorted({key for pair in same for key in pair.keys}))
        in_test_file = any(pair.in_test_file for pair in same)
        first = min(most, key=identity)
        kept.append(first._replace(strength=strength, keys=keys, in_test_file=in_test_file))
    return sorted(kept, key=identity), left_out


def cluster_names(keys: Sequence[Sequence[str]]) -> list[str]:
    """The cluster of each pair, from its keys: the first in the alphabet of all keys that are linked with them."""
    leader: dict[str, str] = {}

    def find(key: str) -> str:
        while leader.setdefault(key, key) != key:
            leader[key] = key = leader[leader[key]]
        return key

    for first, *others in keys:
        for other in others:
            low, high = sorted([find(first), find(other)])
            leader[high] = low
    return [find(first) for first, *_ in keys]


def deal(sizes: Mapping[str, int], folds: int, purpose: str) -> dict[str, int]:
    """
    The fold of each cluster: in the order of their hashes, each goes to the fold that has the fewest pairs so far.

    Args:
        sizes (`Mapping[str, int]`):
            Number of pairs of each cluster.
        folds (`int`):
            Number of folds.
        purpose (`str`):
            What the folds are for; each purpose has a division of its own.

    Returns:
        `dict[str, int]`
    """
    held = [0] * folds
    fold_of = {}
    for cluster in sorted(sizes, key=lambda name: digest(purpose, name)):
        fold_of[cluster] = fold = held.index(min(held))
        held[fold] += sizes[cluster]
    return fold_of


def draw(pairs: Sequence[Pair], clusters: Sequence[str], numbers: Iterable[int], purpose: str) -> list[int]:
    """
    An order of pairs, every beginning of which is a sample: a pair of each cluster, then a second one of each, ….

    Args:
        pairs (`Sequence[Pair]`):
            All pairs.
        clusters (`Sequence[str]`):
            Their clusters.
        numbers (`Iterable[int]`):
            Numbers of the pairs that are drawn from.
        purpose (`str`):
            What is drawn; each purpose has an order of its own.

    Returns:
        `list[int]`: All of `numbers`. Clusters stand in the order of their hashes, and so do the pairs of each.
    """
    drawn, place = Counter[str](), {}
    for number in sorted(numbers, key=lambda i: digest(purpose, identity(pairs[i]))):
        place[number] = drawn[clusters[number]], digest(purpose, clusters[number])
        drawn[clusters[number]] += 1
    return sorted(place, key=lambda number: place[number])


def seen_in(train: Iterable[Pair], pairs: Iterable[Pair]) -> list[bool]:
    """Of each pair, whether one of its texts, normalised, is one of a training pair's."""
    known = {text for pair in train for text in _texts(pair)}
    return [not known.isdisjoint(_texts(pair)) for pair in pairs]


def _texts(pair: Pair) -> list[str]:
    return [normal(text) for text in (said(pair.prompt), pair.chosen, pair.rejected)]


def divide(judgements: Iterable[Pair], most: int = MOST_PAIRS) -> Division:
    """
    Divide the pairs of a task by their clusters.

    Where a file is for testing, its pairs are the test half, and pairs of its clusters leave the training half.
    Otherwise the clusters are divided into halves, or, if they are fewer than [`FEWEST_CLUSTERS`], into
    [`OUTER_FOLDS`], each of which is the test half once.

    Args:
        judgements (`Iterable[Pair]`):
            Pairs as files have them, repetitions included.
        most (`int`, *optional*, defaults to 1,000):
            Most pairs of a training half; a test half has at most half as many, and a tenth of it are seen ones
            beside them. Where there are several folds, most pairs in all.

    Returns:
        `Division`: The pairs that are used, in the order of their identities.
    """
    pairs, left_out = settle(judgements)
    clusters = cluster_names([pair.keys for pair in pairs])
    sizes, numbers = Counter(clusters), range(len(pairs))
    if any(pair.in_test_file for pair in pairs):
        tested = {clusters[i] for i in numbers if pairs[i].in_test_file}
        test = [i for i in numbers if pairs[i].in_test_file]
        train = [i for i in numbers if clusters[i] not in tested]
        left_out["of a test cluster"] = len(pairs) - len(test) - len(train)
        parts = [_part(pairs, clusters, train, test, most)]
    elif len(sizes) >= FEWEST_CLUSTERS:
        half = deal(sizes, 2, "halves")
        sides = [[i for i in numbers if half[clusters[i]] == side] for side in (0, 1)]
        parts = [_part(pairs, clusters, sides[0], sides[1], most)]
    else:
        drawn = sorted(draw(pairs, clusters, numbers, "pairs")[:most])
        fold = deal(Counter(clusters[i] for i in drawn), OUTER_FOLDS, "outer folds")
        parts = []
        for k in range(OUTER_FOLDS):
            train, test = ([i for i in drawn if (fold[clusters[i]] == k) is tests] for tests in (False, True))
            parts.append(_part(pairs, clusters, train, test, most))
    used = sorted({i for part in parts for i in (*part.train, *part.test)})
    left_out["beyond the most"] = len(pairs) - len(used) - left_out.get("of a test cluster", 0)
    place = {number: i for i, number in enumerate(used)}
    parts = [p._replace(train=[place[i] for i in p.train], test=[place[i] for i in p.test]) for p in parts]
    return Division([pairs[i] for i in used], [clusters[i] for i in used], parts, left_out)


def _part(
    pairs: Sequence[Pair], clusters: Sequence[str], train: Iterable[int], test: Sequence[int], most: int
) -> Part:
    """The halves, each with no more pairs than it may have."""
    train = sorted(draw(pairs, clusters, train, "training pairs")[:most])
    fold = deal(Counter(clusters[i] for i in train), INNER_FOLDS, "inner folds")
    seen = dict(zip(test, seen_in((pairs[i] for i in train), (pairs[i] for i in test)), strict=True))
    kept = [
        number
        for apart, number_of in ((False, most // 2), (True, most // 10))
        for number in draw(pairs, clusters, [i for i in test if seen[i] is apart], "test pairs")[:number_of]
    ]
    test = sorted(kept)
    return Part(train, [fold[clusters[i]] for i in train], test, [seen[i] for i in test])


def fingerprint(division: Division) -> str:
    """A hash of what is in which half and fold, and of the pairs' clusters and texts."""
    lines = [
        f"{number} {role} {identity(division.pairs[i])} {digest('cluster', division.clusters[i])}"
        for number, part in enumerate(division.parts)
        for roles in (
            [(i, f"train {fold}") for i, fold in zip(part.train, part.inner, strict=True)],
            [(i, f"test {'seen' if seen else 'new'}") for i, seen in zip(part.test, part.seen, strict=True)],
        )
        for i, role in roles
    ]
    return digest(*sorted(lines))
