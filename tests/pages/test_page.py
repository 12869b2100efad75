import os
import re
from html.parser import HTMLParser
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from toolkit.pages.page import (
    Example,
    Examples,
    Page,
    Paragraph,
    Picture,
    Response,
    Section,
    Settings,
    Table,
    Verdicts,
    curve_picture,
    duration,
    interval_picture,
    number,
    shown,
    write_page,
)
from toolkit.stats.intervals import Interval

EMPTY = {"meta", "link", "img", "br"}
SVG = "{http://www.w3.org/2000/svg}"


class Read(HTMLParser):
    """Elements of a page: its attributes, and the text inside elements of each name, in order."""

    def __init__(self, text):
        super().__init__()
        self.attributes, self.texts, self.open = [], {}, []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append((tag, []))

    def handle_endtag(self, tag):
        name, parts = self.open.pop()
        assert name == tag, f"<{name}> is closed by </{tag}>"
        self.texts.setdefault(tag, []).append("".join(parts))

    def handle_data(self, data):
        for _, parts in self.open:
            parts.append(data)

    def values(self, tag, attribute):
        return [attributes.get(attribute) for name, attributes in self.attributes if name == tag]


def read(path):
    return Read(path.read_text(encoding="utf-8"))


def assert_stands_alone(page):
    """No attribute and no style names anything outside the page, and nothing in it runs."""
    tags = {tag for tag, _ in page.attributes}
    assert not tags & {"script", "iframe", "object", "embed", "base", "form", "video", "audio"}
    for tag, attributes in page.attributes:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), f"<{tag} {name}={value[:60]}>"
    styles = "".join(page.texts["style"]) + "".join(attributes.get("style", "") for _, attributes in page.attributes)
    assert "url(" not in styles
    assert "@import" not in styles
    anchors = {attributes["id"] for _, attributes in page.attributes if "id" in attributes}
    assert {value[1:] for value in page.values("a", "href")} <= anchors


def drawings(page):
    """Every picture of a page, as the root of its SVG."""
    return [
        ElementTree.fromstring(unquote(src.removeprefix("data:image/svg+xml,"))) for src in page.values("img", "src")
    ]


def figure():
    drawn = Figure(figsize=(2, 1))
    drawn.subplots().plot([0, 1], gid="line")
    return drawn


def page_of(*blocks):
    return Page("A page", "It says this.", [Section("One", blocks), Section("Two", [])])


def test_every_block_is_on_the_page_in_order(tmp_path):
    blocks = [
        Paragraph("First words."),
        Table(("scale", "accuracy"), [("token", "61.0"), ("segment", "62.5")], "By scale"),
        Picture(figure(), "curve", "A line that rises.", "It rises."),
        Examples([Example("Step 1", "say\n  hello", [Response("one", "hello  you", {"reward": "1.5"})])]),
        Settings("Two options", {"seed": 0, "scales": ["token", None]}, unfolded=True),
    ]
    page = read(write_page(page_of(*blocks), tmp_path))
    assert page.texts["h1"] == page.texts["title"] == ["A page"]
    assert page.texts["h2"] == page.texts["a"] == ["One", "Two"]
    assert [text.split() for text in page.texts["tr"]] == [["scaleaccuracy"], ["token61.0"], ["segment62.5"]]
    assert page.texts["th"] == ["scale", "accuracy", "token", "segment"]
    assert page.texts["td"] == ["61.0", "62.5"]
    assert page.texts["caption"] == ["By scale"]
    assert page.texts["pre"] == ["\nsay\n  hello", "\nhello  you"]  # a browser drops the first line break
    assert page.texts["dt"] == ["reward", "seed", "scales"]
    assert page.texts["dd"] == ["1.5", "0", "[token, null]"]
    assert page.values("details", "open") == [None]  # there, without a value
    assert ("details", {"open": None}) in page.attributes
    assert page.values("img", "alt") == ["A line that rises."]
    text = " ".join(page.texts["main"][0].split())
    places = [text.index(words) for words in ("First words.", "By scale", "It rises.", "Step 1", "Two options")]
    assert places == sorted(places)
    assert_stands_alone(page)


def test_pictures_are_in_the_page_and_beside_it(tmp_path):
    both = page_of(Picture(figure(), "one", "a line"), Picture(figure(), "two", "a line"))
    path = write_page(both, tmp_path / "first")
    page = read(path)
    for drawing in drawings(page):
        assert (drawing.tag, drawing.get("viewBox")) == (f"{SVG}svg", "0 0 144 72")  # points: 2 by 1 inches
        line = drawing.find(f".//{SVG}g[@id='line']/{SVG}path")
        (_, x0, y0), (_, x1, y1) = re.findall(r"([ML]) ([0-9.]+) ([0-9.]+)", line.get("d"))
        assert float(x0) < float(x1)
        assert float(y0) > float(y1)  # it rises: places are counted from the top
        links = [value for part in drawing.iter() for name, value in part.items() if name.endswith("href")]
        assert links
        assert all(link.startswith("#") for link in links)
    assert [imread(path.parent / f"{name}.png").shape for name in ("one", "two")] == [(160, 320, 4)] * 2
    assert sorted(file.name for file in path.parent.iterdir()) == ["index.html", "one.png", "two.png"]
    assert page.values("div", "class").count("pictures") == 1  # they follow each other, so they share rows
    again = page_of(Picture(figure(), "one", "a line"), Picture(figure(), "two", "a line"))
    assert write_page(again, tmp_path / "second").read_text() == path.read_text()


def test_markup_in_text_is_text(tmp_path):
    evil = "<script>alert('&amp;')</script>"
    blocks = [
        Paragraph(evil),
        Table((evil, "b"), [("x", evil)], evil),
        Picture(figure(), "curve", f'"{evil}', evil),
        Examples([Example(evil, evil, [Response(evil, evil, {evil: evil})])]),
        Settings(evil, {evil: [evil]}),
    ]
    page = read(write_page(Page(evil, evil, [Section(evil, blocks), Section(evil, [])], evil), tmp_path))
    assert_stands_alone(page)
    for tag in ("title", "h1", "h2", "p", "caption", "td", "figcaption", "h3", "dt", "summary", "footer"):
        assert evil in page.texts[tag], tag
    assert page.texts["pre"] == [f"\n{evil}"] * 2
    assert page.values("img", "alt") == [f'"{evil}']


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([Table(("a", "b"), [("1", "2"), ("3",)])], "Section 'One': row 2 of a table has 1 cells and its header 2"),
        ([Picture(figure(), "same", ""), Picture(figure(), "same", "")], "Two pictures are named 'same'"),
        ([Picture(figure(), "../up", "")], "named '../up', which is no file name"),
    ],
)
def test_what_cannot_be_shown_is_an_error_and_nothing_is_written(tmp_path, blocks, message):
    with pytest.raises(ValueError, match=message):
        write_page(page_of(*blocks), tmp_path / "page")
    assert not (tmp_path / "page").exists()


def lines_of(picture):
    return [line.get_xydata().tolist() for line in picture.image.axes[0].lines]


def test_few_logs_are_points_and_many_have_a_trailing_mean():
    rows = [{"step": 10 * i, "loss": float(i)} for i in range(1, 4)]
    few = curve_picture(rows, "Loss", {"": "loss"}, "nats", "loss")
    assert lines_of(few) == [[[10, 1], [20, 2], [30, 3]]]
    assert few.alt == "Loss by step: from 1 to 3."
    many = curve_picture([{"step": i, "loss": float(i)} for i in range(1, 13)], "Loss", {"": "loss"}, "nats", "loss")
    each, smooth = lines_of(many)
    assert each[-1] == [12, 12]
    assert smooth[-1] == [12, 10]  # the mean of 8 to 12
    assert smooth[0] == [1, 1]


def test_what_is_no_number_is_left_out_of_a_curve():
    rows = [{"step": 1, "loss": float("nan")}, {"step": 2}, {"step": 3, "loss": None}, {"step": 4, "loss": 2.5}]
    assert lines_of(curve_picture(rows, "Loss", {"": "loss"}, "nats", "loss")) == [[[4, 2.5]]]


def test_what_was_evaluated_last_stands_at_its_step_and_the_kept_one_is_marked():
    rows = [{"step": 1, "x": 1.0}, {"step": 2, "x": 3.0}, {"step": 1, "x": 1.0}]
    picture = curve_picture(rows, "Accuracy", {"": "x"}, "share", "x", kept=1)
    line, mark = lines_of(picture)
    assert line == [[1, 1], [1, 1], [2, 3]]
    assert mark == [[1, 0], [1, 1]]  # upright, over the whole height
    assert picture.alt == "Accuracy by step: from 1 to 3, the checkpoint that was kept is of step 1."


def test_verdicts_link_to_what_shows_them(tmp_path):
    rows = [("bad", "It is <b>low</b>.", "Two"), ("open", "Not known.", "")]
    page = read(write_page(page_of(Verdicts(rows)), tmp_path))
    assert [text.strip().split("\n") for text in page.texts["li"][-2:]] == [
        ["✗ problem", "It is <b>low</b>. Two"],
        ["? open", "Not known."],
    ]
    assert page.values("a", "href") == ["#section-1", "#section-2", "#section-2"]


def test_held_out_estimates_stand_at_their_steps():
    rows = [{"step": 1, "reward": 1.0}, {"step": 2, "reward": 3.0}]
    held_out = {0: Interval(0.5, 0.25, 0.75), 2: Interval(2.0, 1.0, 4.0)}
    picture = curve_picture(rows, "Reward", {"training": "reward"}, "mean", "reward", held_out)
    (bars,) = picture.image.axes[0].collections
    assert [segment.tolist() for segment in bars.get_segments()] == [[[0, 0.25], [0, 0.75]], [[2, 1], [2, 4]]]
    assert picture.alt == "Reward by step: training from 1 to 3, held-out prompts from 0.5000 to 2."
    assert picture.caption == "Each point is a log. Bars: held-out prompts, with 95% intervals."


def test_intervals_are_drawn_where_they_are():
    picture = interval_picture(
        {"mix": Interval(60.0, 55.0, 64.0)}, "Accuracy", "%", "held-out", 50.0, ("longer wins", Interval(51, 48, 54))
    )
    axes = picture.image.axes[0]
    (bar,) = axes.collections  # of the error bar
    assert bar.get_segments()[0].tolist() == [[55, 0], [64, 0]]
    assert {line.get_xdata()[0] for line in axes.lines} >= {50.0, 51, 60.0}
    assert picture.alt == "Accuracy, %: mix 60 (55 to 64), longer wins 51 (48 to 54)."


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.68, "0.6800"),
        (-1.5, "−1.500"),
        (3.0, "3"),
        (1234567, "1,234,567"),
        (1234.5, "1234"),
        (12345.6, "12,346"),
        (0.00001234, "1.234e−05"),
        (float("nan"), "–"),
        (float("inf"), "inf"),
        (None, "–"),
        ("text", "–"),
    ],
)
def test_numbers_for_a_reader(value, text):
    assert number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(2.345, "2.35 s"), (90, "1.5 min"), (9000, "2.5 h"), (None, "–")])
def test_times_for_a_reader(seconds, text):
    assert duration(seconds) == text


def test_settings_read_as_in_a_yaml_file():
    assert shown({"a": [1, "b"], "c": None, "d": True}) == "{a: [1, b], c: null, d: true}"


def test_a_report_is_not_written_through_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "report").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"report' is a symbolic link to '.*elsewhere', where files would be"):
        write_page(Page("title", "lead", []), tmp_path / "report")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_links_inside_a_report_are_replaced(tmp_path):
    (tmp_path / "kept").write_text("mine")
    report = tmp_path / "report"
    report.mkdir()
    names = ("index.html", f"index.html.{os.getpid()}.part", "curve.png", "curve.png.part")
    for name in names:
        (report / name).symlink_to(tmp_path / "kept")
    picture = curve_picture([{"step": 1, "x": 1.0}], "title", {"x": "x"}, "unit", "curve")
    write_page(Page("title", "lead", [Section("one", [picture])]), report)
    assert (tmp_path / "kept").read_text() == "mine"
    assert {path.name: path.is_symlink() for path in report.iterdir()} == {"index.html": False, "curve.png": False}


@pytest.mark.parametrize("character", [0x202A, 0x202E, 0x2066, 0x2069, 0xD83D])
def test_what_turns_the_order_of_text_and_half_characters_are_shown_as_numbers(tmp_path, character):
    file = write_page(Page("title", f"good {chr(character)}dab", []), tmp_path)
    text = file.read_text(encoding="utf-8")
    assert f"good [U+{character:04X}]dab" in text
    assert chr(character) not in text
