"""One HTML page that needs nothing beside it: text, tables, pictures, examples and settings, in sections."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import matplotlib
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ..stats.curves import trailing_mean
from ..stats.intervals import Interval
from ..training.run_record import write_text

_TEMPLATES = Path(__file__).with_name("templates")
# Colours that stay apart for colour-blind readers (Okabe and Ito, 2008). A scale has its own, others take their turn.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
COLOUR_OF = {
    "mix": "#0072B2",
    "token": "#56B4E9",
    "segment": "#009E73",
    "response": "#E69F00",
    "longer wins": "#777777",
}
_HELD_OUT = "held-out prompts"
_SIZE = (5.2, 3.3)  # inches; small, so that letters can be read where a telephone shows the picture
# What turns the order of the text around it, so that it reads as what it is not; and halves of characters, which no
# file can hold.
_UNSHOWN = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Nothing in a drawing but the drawing, so that the same figure gives the same page.
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


class Paragraph(NamedTuple):
    """A paragraph of plain text."""

    text: str


class Table(NamedTuple):
    """Cells as they are to be read, the first column to the left, the others to the right. No header: `("", "")`."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


class Picture(NamedTuple):
    """A picture, which is drawn in the page (SVG) and also written beside it (PNG)."""

    image: Figure
    name: str  # of its file, without `.png`; no two pictures of a page share it
    alt: str  # what it shows, for those who cannot see it
    caption: str = ""
    wide: bool = False  # over the whole width of the page, rather than one of two beside each other


class Response(NamedTuple):
    """A text and what is known of it."""

    label: str
    text: str
    numbers: Mapping[str, str] = {}


class Example(NamedTuple):
    """A prompt and responses to it."""

    title: str
    prompt: str
    responses: Sequence[Response]


class Examples(NamedTuple):
    """Examples, each a card."""

    cards: Sequence[Example]


class Settings(NamedTuple):
    """Names and values under a line of text, which folds them away and back."""

    summary: str
    values: Mapping[str, Any]
    unfolded: bool = False


class Verdicts(NamedTuple):
    """What follows from the figures: of each an outcome, a sentence, and the heading of the section that shows it, or
    nothing."""

    rows: Sequence[tuple[Literal["good", "bad", "open"], str, str]]


Block = Paragraph | Table | Picture | Examples | Settings | Verdicts


class Section(NamedTuple):
    """A heading and what stands under it, in order. Pictures that follow each other share rows."""

    heading: str
    blocks: Sequence[Block]


class Page(NamedTuple):
    """A page: its lead is the paragraph that says most, and its sections make the table of contents."""

    title: str
    lead: str
    sections: Sequence[Section]
    footer: str = ""


def write_page(page: Page, folder: str | Path) -> Path:
    """
    Write a page as `index.html`, and its pictures as PNG files beside it. The page holds its pictures itself.

    Args:
        page ([`Page`]):
            The page. All its text is shown as it is: markup in it is no markup.
        folder (`str` or `Path`):
            Where they go; made where it is absent.

    Returns:
        `Path`: The page.

    Raises:
        `ValueError`: If a table's row has not as many cells as its header, two pictures have one name, a name is no
            file name, or the folder is a symbolic link.
    """
    html = render_page(page)
    folder = Path(folder)
    if folder.is_symlink():
        raise ValueError(
            f"'{folder}' is a symbolic link to '{folder.readlink()}', where files would be written over. Remove the "
            "link."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for picture in _pictures(page):
        part = folder / f"{picture.name}.png.part"
        part.unlink(missing_ok=True)  # or a link by that name would be followed
        picture.image.savefig(part, format="png", dpi=160)
        part.replace(folder / f"{picture.name}.png")
    write_text(folder / "index.html", html)
    return folder / "index.html"


def render_page(page: Page) -> str:
    """A page as HTML. Arguments and errors as in [`write_page`]."""
    for section in page.sections:
        for block in section.blocks:
            if not isinstance(block, Table):
                continue
            for i, row in enumerate(block.rows):
                if len(row) != len(block.header):
                    raise ValueError(
                        f"Section '{section.heading}': row {i + 1} of a table has {len(row)} cells and its header "
                        f"{len(block.header)}. Give both the same."
                    )
    groups = [_groups(section) for section in page.sections]
    images = {picture.name: _drawing(picture.image) for picture in _pictures(page)}
    filters = {"kind": lambda block: type(block).__name__, "shown": shown}
    places = {section.heading: place for place, section in enumerate(page.sections, 1)}
    return render_template("page.html.jinja", filters, page=page, groups=groups, images=images, places=places)


def render_template(name: str, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """A template of this package as HTML: text in `values` is shown as it is, and a value that lacks is an error."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    html = environment.get_template(name).render(**values)
    return _UNSHOWN.sub(lambda found: f"[U+{ord(found[0]):04X}]", html)


def _groups(section: Section) -> list[list[Block]]:
    """Blocks in order, with pictures that follow each other together."""
    groups: list[list[Block]] = []
    for block in section.blocks:
        if isinstance(block, Picture) and groups and isinstance(groups[-1][0], Picture):
            groups[-1].append(block)
        else:
            groups.append([block])
    return groups


def _pictures(page: Page) -> list[Picture]:
    pictures = [block for section in page.sections for block in section.blocks if isinstance(block, Picture)]
    names = set[str]()
    for name in (picture.name for picture in pictures):
        if name in names:
            raise ValueError(f"Two pictures are named '{name}'. Give each a name of its own.")
        if not name or Path(name).name != name:
            raise ValueError(f"A picture is named '{name}', which is no file name. Leave out the slashes.")
        names.add(name)
    return pictures


def _drawing(figure: Figure) -> str:
    """A figure as SVG in a `data:` address: sharp at any size, with its letters as outlines, so no font is needed."""
    svg = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "page"}):
        figure.savefig(svg, format="svg", metadata=_NO_METADATA)
    return "data:image/svg+xml," + quote(" ".join(svg.getvalue().split()), safe=" !$'()*+,/:;=?@")


def shown(value: Any) -> str:
    """A setting as one would write it in a YAML file."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    return str(value)


def curve_picture(
    rows: Sequence[Mapping[str, Any]],
    title: str,
    keys: Mapping[str, str],
    unit: str,
    name: str,
    held_out: Mapping[int, Interval] | None = None,
    kept: int | None = None,
) -> Picture:
    """
    Figures by step. From ten points on a curve is a thin line, and the mean of each and those before it a thick one.

    Args:
        rows (`Sequence[Mapping[str, Any]]`):
            Logs, each with `step`. What is absent or no finite number is left out.
        title (`str`), unit (`str`), name (`str`):
            Title of the picture, unit of the figures, and name of the picture's file.
        keys (`Mapping[str, str]`):
            Key of each curve in a log, by the curve's label.
        held_out (`Mapping[int, Interval]`, *optional*):
            By step, the same figure on held-out prompts: points with bars.
        kept (`int`, *optional*):
            Step of the checkpoint that is kept: an upright line.

    Returns:
        [`Picture`]
    """
    figure, axes = picture_axes(title)
    curves = {label: found for label, key in keys.items() if (found := _points(rows, key))}
    longest = max(map(len, curves.values()), default=0)
    window = max(5, longest // 20) if longest >= 10 else 1
    ends = []
    for (label, points), other in zip(curves.items(), cycle(COLOURS), strict=False):
        steps, values = zip(*points, strict=True)
        colour, line = COLOUR_OF.get(label, other), "--" if label == "longer wins" else "-"
        if window == 1:
            axes.plot(steps, values, color=colour, linestyle=line, marker="o", markersize=4, label=label)
        else:
            smooth = trailing_mean(torch.tensor(values, dtype=torch.float64), window)
            axes.plot(steps, values, color=colour, alpha=0.4, linewidth=0.9)
            axes.plot(steps, smooth, color=colour, linestyle=line, label=label)
        ends.append(_from_to(label, values[0], values[-1]))
    caption = f"Thin: each log. Thick: the mean of {window} logs up to it." if window > 1 else "Each point is a log."
    if held_out:
        means, bars = [i.value for i in held_out.values()], _bars(*held_out.values())
        axes.errorbar(list(held_out), means, bars, fmt="o", capsize=4, color=COLOURS[1], label=_HELD_OUT)
        ends.append(_from_to(_HELD_OUT, means[0], means[-1]))
        caption += f" Bars: {_HELD_OUT}, with 95% intervals."
    if kept is not None:
        axes.axvline(kept, color="black", linewidth=0.9, linestyle=":")
        ends.append(f"the checkpoint that was kept is of step {kept:,}")
        caption += f" Dotted: step {kept:,}, whose checkpoint was kept."
    axes.set(xlabel="step", ylabel=unit)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(frameon=False, fontsize=9)
    return Picture(figure, name, f"{title} by step: {', '.join(ends)}.", caption)


def interval_picture(
    intervals: Mapping[str, Interval],
    title: str,
    unit: str,
    name: str,
    line: float | None = None,
    rule: tuple[str, Interval] | None = None,
) -> Picture:
    """
    Estimates with their 95% intervals, one under the other.

    Args:
        intervals (`Mapping[str, Interval]`):
            Each estimate by its name.
        title (`str`), unit (`str`), name (`str`):
            Title of the picture, unit of the estimates, and name of the picture's file.
        line (`float`, *optional*):
            Where a dotted line stands for chance.
        rule (`tuple[str, Interval]`, *optional*):
            Name and estimate of what is to be beaten: a dashed line, with its interval as a band.

    Returns:
        [`Picture`]
    """
    figure, axes = picture_axes(title)
    named = dict(intervals)
    for place, ((label, i), other) in enumerate(zip(named.items(), cycle(COLOURS), strict=False)):
        colour = COLOUR_OF.get(label, other)
        axes.errorbar(i.value, place, xerr=_bars(i), fmt="o", capsize=4, color=colour)
    caption = "Bars are 95% intervals."
    if rule is not None:
        named[rule[0]] = rule[1]
        axes.axvspan(rule[1].low, rule[1].high, color="#999999", alpha=0.2, linewidth=0)
        axes.axvline(rule[1].value, color="#777777", linestyle="--", linewidth=1.2)
        caption += f" Dashed: {rule[0]}, with its interval."
    if line is not None:
        axes.axvline(line, color="black", linewidth=0.8, linestyle=":")
        caption += " Dotted: chance."
    axes.set_yticks(range(len(intervals)), list(intervals))
    axes.set(ylim=(len(intervals) - 0.5, -0.5), xlabel=unit)
    values = ", ".join(
        f"{label} {number(i.value)} ({number(i.low)} to {number(i.high)})" for label, i in named.items()
    )
    return Picture(figure, name, f"{title}, {unit}: {values}.", caption)


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """Steps and values of a figure by rising step, without what is absent or no finite number."""
    found = [(row["step"], float(row[key])) for row in rows if isinstance(row.get(key), int | float)]
    return sorted(((step, value) for step, value in found if math.isfinite(value)), key=lambda point: point[0])


def _from_to(label: str, first: float, last: float) -> str:
    return f"{label} from {number(first)} to {number(last)}".strip()


def _bars(*intervals: Interval) -> list[list[float]]:
    """How far each interval reaches below its estimate, and how far above it."""
    return [[i.value - i.low for i in intervals], [i.high - i.value for i in intervals]]


def picture_axes(title: str) -> tuple[Figure, Any]:
    """A new figure of the size of a page's pictures, and its axes, with a title."""
    figure = Figure(figsize=_SIZE, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def number(value: Any) -> str:
    """A number for a reader: four digits, zeros included, or all of a whole one; a dash where there is none."""
    if not isinstance(value, int | float) or math.isnan(value):
        return "–"
    whole = abs(value) >= 10_000 or (math.isfinite(value) and value == int(value))
    return (f"{value:,.0f}" if whole else f"{value:#.4g}".rstrip(".")).replace("-", "−")


def duration(seconds: Any) -> str:
    """Seconds for a reader, in the unit that suits them; a dash where there are none."""
    if not isinstance(seconds, int | float) or math.isnan(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds / 60:.1f} min"
