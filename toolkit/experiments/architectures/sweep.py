"""The sweep over architectures: every one tried, what was found kept as it goes, and its table."""

import json
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ...training.options import help_from_docstring
from .configs import architectures
from .trial import ASPECTS, try_architecture

# In a cell of the table; the reasons stand below it
SHORT = {"right": "right", "refused": "no", "wrong": "**wrong**", "": ""}


@help_from_docstring
@dataclass
class SweepArguments:
    """
    Arguments of the sweep over architectures.

    Args:
        output (`str`, *optional*, defaults to `"runs/architectures.json"`):
            File that the findings go to, one architecture after the other; those in it are not tried again.
        table (`str`, *optional*):
            Markdown file that the table goes to, too.
        only (`list[str]`, *optional*):
            Model types to try, such as `gpt_neo`; all of them where it is not given.
    """

    output: str = "runs/architectures.json"
    table: str | None = None
    only: list[str] = field(default_factory=list)


def sweep(output: Path, only: list[str]) -> dict[str, dict[str, str]]:
    """
    Try architectures, and write what is found after each.

    Args:
        output (`pathlib.Path`):
            JSON file; what it holds already is not tried again.
        only (`list[str]`):
            Model types; none for all of them.

    Returns:
        `dict[str, dict[str, str]]`: By architecture and aspect, "right", or "refused: " or "wrong: " with the reason.
    """
    found: dict[str, dict[str, str]] = json.loads(output.read_text()) if output.is_file() else {}
    output.parent.mkdir(parents=True, exist_ok=True)
    for name, kind, options in architectures():
        if name in found or (only and kind not in only):
            continue
        try:
            with tempfile.TemporaryDirectory() as folder:
                found[name] = try_architecture(kind, options, Path(folder))
        except Exception as error:  # of any kind, from the code of an architecture; the sweep goes on
            lines = str(error).splitlines() or [""]
            found[name] = {"model": f"wrong: {type(error).__name__}: {lines[0]}"}
        print(f"{name}: {summary(found[name])}", flush=True)
        output.write_text(json.dumps(found, indent=1) + "\n")
    return found


def summary(aspects: dict[str, str]) -> str:
    """
    What was found of an architecture, in one line.

    Args:
        aspects (`dict[str, str]`):
            Its findings.

    Returns:
        `str`: "right", or what is not.
    """
    others = [f"{aspect} {verdict}" for aspect, verdict in aspects.items() if verdict != "right"]
    return "; ".join(others) or "right"


def count(found: dict[str, dict[str, str]]) -> Counter[str]:
    """
    How many architectures are right, refused and wrong.

    Args:
        found (`dict[str, dict[str, str]]`):
            Findings of [`sweep`].

    Returns:
        `Counter[str]`: One that is wrong in any aspect is wrong; one that is not taken as a reward model is refused.
    """

    def verdict(aspects: dict[str, str]) -> str:
        words = [value.partition(":")[0] for value in aspects.values()]
        return "wrong" if "wrong" in words else aspects.get("model", "right").partition(":")[0]

    return Counter(map(verdict, found.values()))


def table(found: dict[str, dict[str, str]]) -> str:
    """
    The findings as Markdown.

    Args:
        found (`dict[str, dict[str, str]]`):
            Findings of [`sweep`].

    Returns:
        `str`: A table of the models that are taken, the reasons against sharing, and those that are refused.
    """
    taken = {name: aspects for name, aspects in found.items() if "model" not in aspects}
    lines = [f"| architecture | {' | '.join(ASPECTS)} |", "|---" * (len(ASPECTS) + 1) + "|"]
    for name, aspects in taken.items():
        words = [aspects.get(aspect, "").partition(":")[0] for aspect in ASPECTS]
        lines.append(f"| {name} | {' | '.join(SHORT[word] for word in words)} |")
    lines += ["", "Why not:", ""]
    for name, aspects in taken.items():
        lines += [f"- {name}, {aspect}: {_after(verdict)}" for aspect, verdict in aspects.items() if ":" in verdict]
    lines += ["", "Refused as reward models:", ""]
    reasons: dict[str, list[str]] = {}
    for name, aspects in found.items():
        if "model" in aspects:
            reasons.setdefault(_reason_of_a_kind(aspects["model"]), []).append(name)
    lines += [f"- {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    return "\n".join(lines) + "\n"


def _after(verdict: str) -> str:
    return verdict.partition(": ")[2]


def _reason_of_a_kind(verdict: str) -> str:
    """The reason without the name of the class, which stands before it."""
    head, _, rest = _after(verdict).partition(" has no linear head")
    return f"no linear head{rest}" if rest else head
