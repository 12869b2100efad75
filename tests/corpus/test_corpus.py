"""Every case of the corpus of bad inputs has the outcome that it must have."""

import pytest

from tests.corpus import CLASSES
from tests.corpus.bench import Bench
from tests.corpus.outcomes import ACCEPTED, CLEAR, UNCLEAR, perform
from tests.corpus.shop import Shop

ALL = {f"{kind}: {case.name}": case for kind, cases in CLASSES.items() for case in cases}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Shop(tmp_path_factory.mktemp("shop"))


@pytest.mark.parametrize("name", ALL)
def test_outcome(name, shop, tmp_path):
    outcome = perform(ALL[name], Bench(tmp_path, shop))
    assert outcome.kind in ([UNCLEAR] if ALL[name].unclear else [CLEAR, ACCEPTED]), outcome.told


def test_names_are_not_used_twice():
    assert len(ALL) == sum(map(len, CLASSES.values())) >= 250


def test_few_outcomes_are_not_clear():
    assert sum(bool(case.unclear) for case in ALL.values()) <= 0.05 * len(ALL)
