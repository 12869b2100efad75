"""Pairs of the closed loop's rounds."""

from datasets import Dataset

from toolkit.judges.closed_loop import mix_with_earlier


def pairs(name: str, count: int, **columns: list[float]) -> Dataset:
    texts = {column: [f"{name} {column} {i}" for i in range(count)] for column in ("prompt", "chosen", "rejected")}
    return Dataset.from_dict({**texts, **columns})


def test_earlier_pairs_without_strength_weigh_as_the_new_ones_do_on_average():
    first, second = pairs("first", 3), pairs("second", 2, strength=[5.0, 7.0])
    mixed = mix_with_earlier(pairs("new", 9, strength=[1.0, 2.0, 3.0] * 3), [first, second], seed=0)
    assert mixed.column_names == ["prompt", "chosen", "rejected", "strength"]
    assert mixed["strength"][:9] == [1.0, 2.0, 3.0] * 3
    found = dict(zip(mixed["prompt"][9:], mixed["strength"][9:], strict=True))
    assert found == {f"first prompt {i}": 2.0 for i in range(3)} | {"second prompt 0": 5.0, "second prompt 1": 7.0}


def test_there_are_as_many_earlier_pairs_as_new_ones():
    mixed = mix_with_earlier(pairs("new", 2, strength=[1.0, 2.0]), [pairs("first", 5, strength=[1.0] * 5)], seed=0)
    assert [prompt.split()[0] for prompt in mixed["prompt"]] == ["new", "new", "first", "first"]
