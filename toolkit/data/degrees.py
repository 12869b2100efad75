"""Ranked lists without a label: a response, and itself with what it says of its prompt removed in steps."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

# A sentence with the white space after it, or a line
_SENTENCE = re.compile(r".+?(?:[.!?。！？…]+[\"'”’»)\]]*(?:\s+|$)|\n+|$)", re.DOTALL)


def words_of(text: str) -> set[str]:
    """The distinct words and numbers of a text, in lower case."""
    return set(re.findall(r"\w+", text.lower()))


def word_weights(texts: Iterable[str]) -> dict[str, float]:
    """
    Inverse document frequency of every word, the logarithm of the number of texts over that of those that have it.

    Spärck Jones (1972), "A statistical interpretation of term specificity", Journal of Documentation 28.
    """
    documents = [words_of(text) for text in texts]
    found = Counter(word for words in documents for word in words)
    return {word: math.log(len(documents) / count) for word, count in found.items()}


def shared_weight(prompt: str, weights: dict[str, float]) -> Callable[[str], float]:
    """How much a sentence says of a prompt: the weights of the words that it has from there, added up."""
    asked = words_of(prompt)
    return lambda sentence: sum(weights.get(word, 0.0) for word in words_of(sentence) & asked)


def rank_by_removal(
    response: str, key: Callable[[str], float], degrees: Sequence[int] = (1, 3), control: bool = True
) -> dict[str, list[Any]] | None:
    """
    A response above itself without some key sentences, above itself without more of them.

    After the self-supervised degrees of https://huggingface.co/papers/2409.17791, as a ranking in place of classes.
    What is ranked lower is shorter, too. The control is as short and not worse, so that length alone does not tell.

    Args:
        response (`str`):
            The whole response, taken for the best.
        key (`Callable`):
            How much a sentence matters, such as [`shared_weight`]. A sentence with more than 0 is a key sentence, the
            others are filler.
        degrees (`Sequence[int]`, *optional*, defaults to `(1, 3)`):
            Numbers of key sentences to remove, growing; those that matter most go first.
        control (`bool`, *optional*, defaults to `True`):
            Whether the response without as much filler as key sentences, where it has some, is tied with the whole.

    Returns:
        `dict[str, list]` or `None`: `responses` and their `ranks`, from 0 for the best; `None` where the response has
        too few key sentences, or nothing else.
    """
    sentences = _SENTENCE.findall(response)
    order = sorted(range(len(sentences)), key=lambda place: -key(sentences[place]))
    asked = [place for place in order if key(sentences[place]) > 0]
    filler = order[len(asked) :][-degrees[-1] :]
    if len(asked) < degrees[-1] or len(sentences) <= degrees[-1]:
        return None
    removed = [[], *([filler] if control and filler else []), *(asked[:degree] for degree in degrees)]
    kept = [[text for place, text in enumerate(sentences) if place not in places] for places in removed]
    ranks = [0] * (len(removed) - len(degrees)) + list(range(1, len(degrees) + 1))
    return {"responses": ["".join(parts).strip() for parts in kept], "ranks": ranks}
