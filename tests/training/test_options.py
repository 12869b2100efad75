from dataclasses import dataclass, fields

import pytest
from trl import TrlParser

from toolkit.training.options import help_from_docstring


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
