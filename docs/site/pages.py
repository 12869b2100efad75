"""What the site shows beside `docs/`: the README and its like, a reference page a package, and links that fit both.

A hook of MkDocs. Links in the Markdown files are those that work in the repository; here they are turned to the page
that a file has become, to a module's place in the reference, or to a copy of the file.
"""

import ast
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "recipes/README.md": "recipes.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
# Studies of the project itself, and the command line, whose reference is `prefscale --help`, have no page.
WITHOUT_REFERENCE = ("experiments", "cli")
# Pages that name code below `toolkit`, such as `data.loading.load_pairs`, which is linked and so must exist.
NAMING = ("architecture.md", "contributing.md")
LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)#\s]+)")


def on_files(files: Any, config: Any) -> Any:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for name in _packages():
        files.append(File.generated(config, f"reference/{name}.md", content=_reference(name)))
    files.append(File.generated(config, "reference/index.md", content=_reference_index()))
    files.append(File.generated(config, "style.css", abs_src_path=str(ROOT / "docs/site/style.css")))
    for source in _linked_files(files):
        files.append(File.generated(config, f"files/{source}.txt", abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    here = page.file.src_uri
    if here in NAMING:
        markdown = re.sub(rf"`((?:{'|'.join(_packages())})(?:\.\w+)+)`", r"[`\1`][toolkit.\1]", markdown)
    return LINK.sub(partial(_site_link, here), markdown) if not here.startswith("reference/") else markdown


def _site_link(here: str, match: re.Match[str]) -> str:
    source = _resolve(here, match[2])
    if source is None:
        return match[0]
    if source in PAGES:
        target = PAGES[source]
    elif source.startswith("docs/"):
        target = source.removeprefix("docs/")
    elif module := _module(source):
        package = module.split(".")[1]
        return f"{match[1]}{os.path.relpath(f'reference/{package}.md', os.path.dirname(here))}#{module}"
    else:
        target = f"files/{source}.txt"
    return match[1] + os.path.relpath(target, os.path.dirname(here))


def _resolve(here: str, link: str) -> str | None:
    """Path in the repository of what a page links to; `None` where there is no such file."""
    source = next((source for source, page in PAGES.items() if page == here), f"docs/{here}")
    path = os.path.normpath(os.path.join(os.path.dirname(source), link))
    return path if (ROOT / path).is_file() else None


def _module(source: str) -> str | None:
    """Name of a module that has its place in the reference."""
    parts = Path(source).with_suffix("").parts
    shown = source.endswith(".py") and parts[0] == "toolkit" and parts[1] in _packages()
    return ".".join(parts).removesuffix(".__init__") if shown else None


def _linked_files(files: Any) -> list[str]:
    """Files of the repository that a page links to and the site does not have otherwise."""
    found = set()
    for file in files.documentation_pages():
        for link in LINK.finditer(file.content_string):
            source = _resolve(file.src_uri, link[2])
            if source and source not in PAGES and not source.startswith("docs/") and not _module(source):
                found.add(source)
    return sorted(found)


def _packages() -> list[str]:
    inside = [path for path in (ROOT / "toolkit").iterdir() if (path / "__init__.py").is_file()]
    names = [path.name for path in inside] + ["arguments"]
    return [name for name in names if name not in WITHOUT_REFERENCE]


def _reference(name: str) -> str:
    path = ROOT / "toolkit" / name
    if not path.is_dir():
        return f"# toolkit.{name}\n\n::: toolkit.{name}\n"
    files = sorted(path.glob("[!_]*.py"))
    lines = [f"# toolkit.{name}", "", _summary(path / "__init__.py"), ""]
    lines += [f"[`{file.stem}`][toolkit.{name}.{file.stem}]\n:   {_summary(file)}\n" for file in files]
    return "\n".join(lines + [f"::: toolkit.{name}.{file.stem}\n" for file in files])


def _reference_index() -> str:
    """The public names of the package and its packages, each with the first sentence that is said of it."""
    lines = ["# Public names", "", "What `from toolkit import …` gives:", ""]
    said = dict(_definitions())
    for name in _public_names():
        home, sentence = said[name]
        lines += [f"[`{name}`][{home}]", f":   {sentence}", ""]
    lines += ["The packages, of which these are the names most used:", ""]
    for name in sorted(_packages()):
        path = ROOT / "toolkit" / name
        lines += [f"[`toolkit.{name}`]({name}.md)"]
        lines += [f":   {_summary(path / '__init__.py' if path.is_dir() else path.with_suffix('.py'))}", ""]
    return "\n".join(lines)


def _public_names() -> list[str]:
    tree = ast.parse((ROOT / "toolkit/__init__.py").read_text())
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    return next(ast.literal_eval(node.value) for node in assigned if ast.unparse(node.targets[0]) == "__all__")


def _definitions() -> Any:
    """Name of everything that a module defines, with its path and what is said of it."""
    for file in sorted((ROOT / "toolkit").rglob("[!_]*.py")):
        module, text = ".".join(file.relative_to(ROOT).with_suffix("").parts), file.read_text()
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                yield node.name, (f"{module}.{node.name}", _first_sentence(ast.get_docstring(node) or ""))
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                name = ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])
                above = text.splitlines()[node.lineno - 2]
                yield name, (f"{module}.{name}", above.removeprefix("# ") if above.startswith("# ") else "")


def _summary(file: Path) -> str:
    return _first_sentence(ast.get_docstring(ast.parse(file.read_text())) or "")


def _first_sentence(docstring: str) -> str:
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence = re.split(r"(?<=\.)\s", paragraph)[0]
    return re.sub(r"\[`(?:~[\w.]+\.)?([\w.]+)`\]", r"`\1`", sentence)
