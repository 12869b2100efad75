"""Draws architecture.svg: the packages as rooms, with an arrow down for every import that no other arrow implies.

Where the rooms lie is set here; the arrows are read from the code. `make docs` draws it anew.
"""

import ast
from html import escape
from pathlib import Path
from typing import NamedTuple

TOOLKIT = Path(__file__).parents[1] / "toolkit"
PICTURE = Path(__file__).with_suffix(".svg")

COLUMN, STOREY, GAP, STAIRS, MARGIN = 108, 48, 10, 18, 8


class Room(NamedTuple):
    """A package: the columns it takes, from left to right, the storeys, from top to bottom, and what it is for."""

    columns: tuple[int, int]  # first and last
    storeys: tuple[int, int]
    colour: str
    role: tuple[str, ...]  # a line each


USE, LOOP, MODELS, GROUND = "#e9f1fb", "#eef7ea", "#fdf1df", "#f3eef9"
ROOMS = {
    "cli": Room((0, 4), (0, 0), USE, ("the command prefscale, a file a command",)),
    "experiments": Room((0, 3), (1, 1), USE, ("the study and the benchmarks; only cli imports it",)),
    "jobs": Room((0, 1), (2, 2), USE, ("what prefscale and the recipes run",)),
    "evaluation": Room((0, 1), (3, 3), USE, ("models side by side on held-out pairs",)),
    "arguments": Room((0, 0), (4, 4), USE, ("what jobs share",)),
    "sandbox": Room((0, 0), (5, 5), LOOP, ("a world with a", "known reward")),
    "pages": Room((1, 2), (4, 4), USE, ("tables, pictures, HTML pages",)),
    "generative": Room((2, 2), (5, 5), LOOP, ("a judge that thinks",)),
    "judges": Room((0, 2), (6, 6), LOOP, ("which of two is better; the closed loop",)),
    "policy": Room((0, 2), (7, 7), MODELS, ("REINFORCE: baselines, credit, losses",)),
    "planning": Room((3, 3), (7, 7), USE, ("what a run will", "hold in memory")),
    "serving": Room((4, 4), (7, 7), MODELS, ("a reward model in", "another process")),
    "reward": Room((0, 4), (8, 8), MODELS, ("the model of three scales, its trainer, its scorer",)),
    "training": Room((0, 4), (9, 9), GROUND, ("checkpoints, exact resume, the run's record",)),
    "data": Room((0, 4), (10, 10), GROUND, ("from a file to a batch of token ids",)),
    "stats": Room((0, 4), (11, 11), GROUND, ("metrics with intervals; learning curves",)),
}


def imports() -> dict[str, set[str]]:
    """Packages that each package imports."""
    found: dict[str, set[str]] = {name: set() for name in ROOMS}
    for path in TOOLKIT.rglob("*.py"):
        module = path.relative_to(TOOLKIT).with_suffix("").parts
        if module == ("__init__",):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                package = (*module[: len(module) - node.level], *(node.module or "").split("."))[0]
                found[module[0]] |= {package} - {module[0]}
    return found


def arrows(found: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Imports that do not follow from two others."""

    def below(name: str) -> set[str]:
        return found[name].union(*map(below, found[name]))

    return [
        (upper, lower)
        for upper, named in found.items()
        for lower in sorted(named)
        if not any(lower in below(other) for other in named)
    ]


def left(column: int) -> float:
    return MARGIN + column * (COLUMN + GAP)


def top(storey: int) -> float:
    return MARGIN + storey * (STOREY + STAIRS)


def draw_room(name: str, room: Room) -> str:
    x, y = left(room.columns[0]), top(room.storeys[0])
    width, height = left(room.columns[1]) + COLUMN - x, top(room.storeys[1]) + STOREY - y
    middle, first = x + width / 2, y + height / 2 - 6 * len(room.role) + 4
    lines = [f'<text x="{middle}" y="{first}" class="name">{name}</text>']
    lines += [f'<text x="{middle}" y="{first + 12 * i}">{escape(line)}</text>' for i, line in enumerate(room.role, 1)]
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="{room.colour}"/>' + "".join(lines)


def draw_arrow(upper: str, lower: str) -> str:
    a, b = ROOMS[upper], ROOMS[lower]
    first, last = max(a.columns[0], b.columns[0]), min(a.columns[1], b.columns[1])
    if first > last or a.storeys[1] >= b.storeys[0]:
        raise ValueError(f"'{upper}' imports '{lower}', but does not lie above it. Place the rooms anew.")
    x = (left(first) + left(last) + COLUMN) / 2
    start, end = top(a.storeys[1]) + STOREY, top(b.storeys[0])
    return f'<path d="M{x} {start}V{end - 5}" class="line"/><path d="M{x - 4} {end - 7}h8l-4 7z" class="head"/>'


def draw() -> str:
    right, bottom = (max(room[side][1] for room in ROOMS.values()) for side in (0, 1))
    width, height = left(right) + COLUMN + MARGIN, top(bottom) + STOREY + MARGIN
    parts = [draw_arrow(*arrow) for arrow in arrows(imports())]
    parts += [draw_room(name, room) for name, room in ROOMS.items()]
    style = (
        "text{font:9.5px sans-serif;fill:#333;text-anchor:middle}.name{font:bold 12px monospace;fill:#111}"
        "rect{stroke:#8892a0;stroke-width:.8}.line{stroke:#555;fill:none}.head{fill:#555}"
    )
    title = "The packages of toolkit; arrows point from a package to what it imports"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{1.5 * width:g}" '
        f'height="{1.5 * height:g}" role="img"><title>{title}</title><style>{style}</style>'
        f'<rect width="{width}" height="{height}" fill="#fff" style="stroke:none"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(draw())
