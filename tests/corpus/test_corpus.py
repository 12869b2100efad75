"""Every case of the corpus of bad inputs has the outcome that it must have."""

import pytest

from tests.corpus import CLASSES
from tests.corpus.bench import Bench
from tests.corpus.cases import Accepted, Case, Disagreement, Refusal, Refused
from tests.corpus.outcomes import ACCEPTED, CLEAR, LOST, SILENT, UNCLEAR, perform
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


def fail(error):
    def act(bench):
        raise error

    return act


WRONG = Refused("`size` is 0", "Set it to 1")


@pytest.mark.parametrize(
    ("kind", "act", "expected"),
    [
        (CLEAR, fail(ValueError("`size` is 0. Set it to 1 or more.")), WRONG),
        (CLEAR, fail(Refusal(["`size` is 0. Set it to 1."], 2)), WRONG),
        (UNCLEAR, fail(Refusal(["`size` is 0. Set it to 1."], 1)), WRONG),
        (UNCLEAR, fail(Refusal(["`size` is 0. Set it to 1.", "Something else."], 2)), WRONG),
        (UNCLEAR, fail(ValueError("`size` is 0.\nSet it to 1.")), WRONG),
        (UNCLEAR, fail(ValueError("Set it to 1: `size` is 0.")), WRONG),
        (UNCLEAR, fail(KeyError("`size` is 0. Set it to 1.")), WRONG),
        (UNCLEAR, fail(TypeError("unsupported operand `size` is 0. Set it to 1")), WRONG),
        (UNCLEAR, fail(Disagreement("`check` refuses it")), Accepted()),
        (UNCLEAR, fail(ValueError("No.")), Accepted()),
        (SILENT, lambda bench: print("2 rows"), WRONG),
        (SILENT, lambda bench: print("2 rows"), Accepted("left out 1 of 3 rows")),
        (SILENT, lambda bench: 2, Accepted(value=3)),
        (ACCEPTED, lambda bench: print("left out 1 of 3 rows"), Accepted("left out…rows")),
        (LOST, lambda bench: bench.write("mine.txt", "other"), Accepted()),
        (LOST, lambda bench: (bench.folder / "mine.txt").rename(bench.folder / "yours.txt"), Accepted()),
    ],
)
def test_an_outcome_is_what_it_looks_like(tmp_path, kind, act, expected):
    case = Case("a case", act, expected, lambda bench: bench.write("mine.txt", "mine"))
    assert perform(case, Bench(tmp_path, None)).kind == kind


def test_every_refusal_must_say_what_was_found_and_what_to_do():
    expected = {name: case.expected for name, case in ALL.items() if isinstance(case.expected, Refused)}
    assert [name for name, refused in expected.items() if not (refused.found and refused.remedy)] == []


def test_names_are_not_used_twice():
    assert len(ALL) == sum(map(len, CLASSES.values())) >= 250


def test_few_outcomes_are_not_clear():
    assert sum(bool(case.unclear) for case in ALL.values()) <= 0.05 * len(ALL)
