import math
import re
from dataclasses import dataclass, fields

import pytest
from trl import TrlParser

from toolkit.training.options import check_number, help_from_docstring


@dataclass
class Base:
    inherited: int = 0


def test_help_is_the_docstrings_text(capsys):
    @help_from_docstring
    @dataclass
    class Options(Base):
        """
        Options.

        Args:
            share (`float`, *optional*, defaults to `0.5`):
                A share, over
                100% of nothing.
        """

        share: float = 0.5

    assert {field.name: dict(field.metadata) for field in fields(Options)} == {
        "inherited": {},
        "share": {"help": "A share, over 100%% of nothing."},
    }
    with pytest.raises(SystemExit):
        TrlParser(Options).parse_args_and_config(["--help"])
    assert "A share, over 100% of nothing." in " ".join(capsys.readouterr().out.split())


def test_an_option_without_a_text_is_named():
    with pytest.raises(TypeError, match=r"only documented or only declared: \['size'\]"):

        @help_from_docstring
        @dataclass
        class Options:
            """Options without a text."""

            size: int = 1


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (math.nan, (), "`size` is nan. It must be a finite number."),
        (0, (1,), "`size` is 0. It must be a finite number of at least 1."),
        (2.5, (0, 0.5), "`size` is 2.5. It must lie between 0 and 0.5."),
    ],
)
def test_a_number_out_of_its_range_is_named(value, bounds, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_number("size", value, *bounds)


@pytest.mark.parametrize("value", [None, 0, 0.5])
def test_a_number_in_its_range_passes(value):
    check_number("size", value, 0, 0.5)
