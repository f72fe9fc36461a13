"""The page: well-formed, self-contained, deaf to what models write."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from seg_jax.data.exports import overlay
from seg_jax.evaluation.bootstrap import Interval
from seg_jax.records import Verdict
from seg_jax.report import html_page
from seg_jax.report.charts import Curve
from seg_jax.report.exhibits import Exhibit, Panel
from seg_jax.report.html_page import Report

SQUARE = np.array([[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]])
HOSTILE = (
    "</pre></script><script>alert('1')</script><img src=x onerror=alert(1)>\"'&amp;\0\ud800\u202e"
)
NAN = float("nan")


class Reader(HTMLParser):
    """Checks that tags nest; keeps them and the text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)

    def named(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def scene(seed=0, height=24, width=32):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return values.astype(np.uint8)


def full(text="the red star"):
    panels = [
        Panel(text, [SQUARE]),
        Panel(text + " after SFT", [SQUARE * 0.9, SQUARE[:3]], 0.5, Verdict.TRUNCATED, text),
        Panel("nothing", [], NAN, Verdict.EMPTY, text),
        Panel("point", [SQUARE[:1]], np.float32(1.0), Verdict.OK, "[0.25, 0.25]"),
    ]
    steps = list(range(100))
    curves = [
        Curve(text, text, {text: (steps, [0.5] * 100), "x": ([], [])}, group=text),
        Curve(text, "", {text: ([1, 2], [1.0, None])}, stacked=True),
    ]
    rows = [
        {"measure": text, text: Interval(0.5, 0.4, 0.6), "b": 3},
        {"measure": "c", text: np.float32(0.25), "b": None, "d": text},
        {"measure": "e", text: Interval(NAN, NAN, NAN), "b": NAN},
    ]
    exhibit = Exhibit(scene(), text, panels, [(0.5, 0.5)], [(0.1, 0.1, 0.9, 0.9)])
    return Report(
        text, rows, curves, [exhibit], {text: [text]}, {text: text}, [text], commands=[text]
    )


def test_a_whole_page_is_well_formed(tmp_path):
    html_page.write(tmp_path / "report.html", full())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    reader = Reader(page)
    text = " ".join(reader.text)
    for wanted in ("the red star", "0.500", "0.400 to 0.600", "truncated", "empty", "Answer"):
        assert wanted in text
    assert "nan" not in text.lower()
    assert [tag["id"] for tag in reader.named("section")] == [
        "results",
        "curves",
        "gallery",
        "configuration",
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_images_are_inline_and_described():
    shown = Reader(html_page.page(full())).named("img")
    assert len(shown) == 4
    for image in shown:
        kind, data = re.fullmatch(r"data:image/(\w+);base64,(.*)", image["src"]).groups()
        opened = Image.open(io.BytesIO(base64.b64decode(data)))
        assert opened.format.lower() == kind
        assert opened.size == (int(image["width"]), int(image["height"])) == (384, 288)
    assert shown[1]["alt"] == ("the red star after SFT: the red star, IoU 0.500, verdict truncated")


def test_nothing_is_loaded_and_nothing_runs():
    page = html_page.page(full())
    assert "http" not in page.replace("http-equiv", "")
    assert set(re.findall(r"url\(.", page)) <= {"url(#"}  # Shapes within the page.
    assert "@import" not in page
    reader = Reader(page)
    assert {tag for tag, _ in reader.tags}.isdisjoint(
        {"script", "link", "iframe", "object", "base"}
    )
    for _, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/"))
    assert "default-src 'none'" in reader.named("meta")[1]["content"]


def test_hostile_text_stays_text():
    page = html_page.page(full(HOSTILE))
    page.encode("utf-8")
    assert "\0" not in page
    assert "\u202e" not in page
    reader = Reader(page)
    assert not reader.named("script")
    assert len(reader.named("img")) == 4
    shown = "".join(reader.text)
    assert shown.count("<script>alert('1')</script>") >= 12


def test_the_escaping_is_not_luck():
    page = html_page.page(Report('<a href="x">\'&', notes=['<a href="x">\'&']))
    for tag in ("title", "h1", 'p class="notes"'):
        assert f"<{tag}>&lt;a href=&#34;x&#34;&gt;&#39;&amp;</" in page


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Report)][1:])
def test_each_part_may_be_missing(name):
    whole = full()
    default = getattr(Report(""), name)
    Reader(html_page.page(dataclasses.replace(whole, **{name: default})))


def test_an_almost_empty_page_says_so():
    text = " ".join(Reader(html_page.page(Report("t"))).text)
    for wanted in ("No results.", "No curves.", "No images.", "Nothing recorded."):
        assert wanted in text
    Reader(html_page.page(Report("t", exhibits=[Exhibit(scene(), "q", [])], summary_rows=[{}])))


def test_long_answers_are_cut():
    panel = Panel("a", [], 0.0, Verdict.MALFORMED, "x" * 100_000)
    page = html_page.page(Report("t", exhibits=[Exhibit(scene(), "q", [panel])]))
    assert "and 96,000 more characters" in page


def test_configurations_of_dataclasses():
    page = html_page.page(Report("t", config={"interval": Interval(0.0, 1.0, 2.0), "path": object}))
    assert "&#34;low&#34;: 1.0" in page


@pytest.mark.parametrize(("height", "width"), [(128, 128), (480, 640)])
def test_a_full_gallery_stays_small(height, width):
    """Noise, which no coding likes."""
    noise = np.random.default_rng(0).normal(0, 8, (height, width, 3))
    image = np.clip(120 + noise, 0, 255).astype(np.uint8)
    panels = [Panel(name, [SQUARE], 0.5, Verdict.OK, "[0.1, 0.2]" * 20) for name in "abcd"]
    exhibits = [Exhibit(image, "q", panels)]
    page = html_page.page(Report("t", exhibits=exhibits))
    markup = len(re.sub('base64,[^"]*', "", page))
    shown = overlay.draw(image, [SQUARE], scale=html_page._scale(width))
    source = len(html_page._source(shown, html_page._BYTES // 96))
    assert 24 * markup + 96 * source < 1.8 * 2**20


def test_exhibits_stand_under_their_groups():
    panels = [Panel("truth", [SQUARE])]
    shown = [Exhibit(scene(), "q", panels, group=g, note=HOSTILE) for g in ("a", "a", HOSTILE)]
    page = html_page.page(Report("t", curves=None, exhibits=shown))
    read = Reader(page)
    assert (page.count("<h3>a</h3>"), page.count("<article")) == (1, 3)
    assert not read.named("script")
    assert "Curves" not in " ".join(read.text)
