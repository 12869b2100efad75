"""Docstrings in Hugging Face's form as Markdown, for the reference: an extension of griffe, which reads the code.

Arguments become a definition list, errors a list, and a cross-reference such as ``[`RewardFunction`]`` a link to the
one object of that name, looked for in the class, then in the module, then in the package. The comments beside a named
tuple's fields become their list, and the comment above a constant or a type its docstring.
"""

import re
from collections import defaultdict
from functools import partial
from textwrap import dedent, indent
from typing import Any

import griffe

logger = griffe.get_logger("docs.docstrings")

SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Example):\n((?: +.*\n|\n)+)", re.MULTILINE)
ITEM = re.compile(r"^(\w+(?:, \w+)*)(?: \((.*?)\))?:[ \n]", re.MULTILINE)
ERROR = re.compile(r"^(?=`\w+`:)", re.MULTILINE)
REFERENCE = re.compile(r"\[`(~?)([\w.]+)`\]")
TITLES = {"Args": "Arguments"}


class Docstrings(griffe.Extension):
    """Rewrites every docstring of the package once all its modules are read."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        objects = list(_walk(pkg))
        homes = defaultdict(list)
        for found in objects:
            homes[found.name].append(found.path)
        for found in objects:
            if found.is_class and found.docstring is not None:
                found.docstring.value += _fields(found)
            elif found.is_attribute and found.docstring is None and found.parent.is_module and found.name[0].isupper():
                found.docstring = griffe.Docstring(_comment_above(found), parent=found)
        for found in objects:
            if found.docstring is not None:
                found.docstring.value = _markdown(found, pkg, homes)


def _walk(found: griffe.Object) -> Any:
    yield found
    for member in found.members.values():
        if not member.is_alias:
            yield from _walk(member)


def _fields(found: griffe.Class) -> str:
    """The commented fields of a class as a section of its docstring."""
    section = ""
    for field in found.attributes.values():
        if field.inherited:
            continue
        line = found.lines_collection[found.filepath][field.endlineno - 1]
        comment = re.search(r"\S  # (.+)$", line)
        if comment and not field.name.startswith("_"):
            section += f"    {field.name} (`{field.annotation}`):\n        {comment[1]}\n"
    return f"\n\nAttributes:\n{section}" if section else ""


def _comment_above(found: griffe.Attribute) -> str:
    lines: list[str] = []
    for line in reversed(found.lines_collection[found.filepath][: found.lineno - 1]):
        if not line.startswith("# "):
            break
        lines.insert(0, line.removeprefix("# "))
    return " ".join(lines)


def _markdown(found: griffe.Object, pkg: griffe.Module, homes: dict[str, list[str]]) -> str:
    text = SECTION.sub(partial(_section, found), found.docstring.value + "\n")
    return REFERENCE.sub(partial(_link, found, pkg, homes), text)


def _section(found: griffe.Object, match: re.Match[str]) -> str:
    name, body = match[1], dedent(match[2]).strip() + "\n"
    if name in ("Args", "Attributes"):
        body = _definitions(found, name, body)
    elif name == "Raises":
        body = "\n".join("- " + indent(error.strip(), "  ").strip() for error in ERROR.split(body) if error.strip())
    elif name == "Example":
        body = f"```python\n{body}```"
    return f"\n**{TITLES.get(name, name)}**\n\n{body}\n\n"


def _definitions(found: griffe.Object, section: str, body: str) -> str:
    before, *items = ITEM.split(body)
    names = [name for several in items[::3] for name in several.split(", ")]
    if before.strip():
        logger.warning(f"{found.path}: {section} begins with {before.strip()!r} rather than a name.")
    if found.is_function and (unknown := set(names) - {parameter.name for parameter in found.parameters}):
        logger.warning(f"{found.path}: the docstring has {sorted(unknown)}, which the signature has not.")
    return "\n".join(
        f"**`{name}`**" + (f" ({kind})" if kind else "") + f"\n:   {indent(dedent(said).strip(), '    ').strip()}\n"
        for name, kind, said in zip(items[::3], items[1::3], items[2::3], strict=True)
    )


def _link(found: griffe.Object, pkg: griffe.Module, homes: dict[str, list[str]], match: re.Match[str]) -> str:
    path = match[2]
    shown = path.rpartition(".")[2] if match[1] else path
    if path.startswith(("trl.", "transformers.", "peft.", "datasets.", "torch.")):
        return f"`{shown}`"
    target = path if path.startswith(pkg.path + ".") else _home(found, path, homes)
    if target is not None and target.count(".") == 1:  # a public name, whose home is a module
        target = _home(found, target.rpartition(".")[2], homes) or target
    if target is None:
        if not path.isupper():  # griffe passes over constants that are assigned several at once
            logger.warning(f"{found.path}: {match[0]} is no name of the package, or one of several.")
        return f"`{shown}`"
    return f"[`{shown}`][{target}]"


def _home(found: griffe.Object, path: str, homes: dict[str, list[str]]) -> str | None:
    """Where the object of that name is defined."""
    first, _, rest = path.partition(".")
    for scope in (found, found.parent, found.module):
        if scope is not None and first in scope.members and not scope.members[first].is_alias:
            return f"{scope.path}.{path}"
    places = homes[first]
    return None if len(places) != 1 else places[0] + ("." + rest if rest else "")
