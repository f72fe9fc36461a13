"""Writes what a run learned as one HTML page that needs nothing beside itself (host)."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import itertools
import json
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup
from PIL import Image, features

from seg_jax import files
from seg_jax.data.exports import overlay
from seg_jax.evaluation import bootstrap
from seg_jax.evaluation.bootstrap import Interval
from seg_jax.records import Verdict
from seg_jax.report import charts, vector_overlay
from seg_jax.report.charts import Curve
from seg_jax.report.exhibits import Exhibit, Panel

Cell = Interval | str | float | int | np.number | None
"""Something in the table of results."""


@dataclasses.dataclass(frozen=True)
class Report:
    """All that a page shows; every part but the title may be missing."""

    title: str
    summary_rows: Sequence[Mapping[str, Cell]] = ()
    """Rows by column name; the first column names the row."""
    curves: Sequence[Curve] | None = ()
    """None: the page has no section for them."""
    exhibits: Sequence[Exhibit] = ()
    config: object = None
    """Whatever JSON can hold; other values are written as text."""
    versions: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """What ran: packages, device, seeds, commit."""
    notes: Sequence[str] = ()
    """Paragraphs under the title."""
    commands: Sequence[str] = ()
    """What to type to get the same."""
    shapes: bool = False
    """Whether outlines are shapes over plain images, for pages of many; else they are drawn in."""


# Of the images of all panels together, before base64 adds a third.
_BYTES = 1_100_000
_SIDE_PX = 384
_BYTES_OF_PLAIN, _SIDE_OF_PLAIN_PX, _SMALL_PX = 20_000, 480, 200
_LONGEST = 4000  # characters of an answer


def write(path: Path | str, report: Report) -> None:
    """Writes the page: whole, or not at all.

    Raises:
      OSError: see `files.write_bytes`.
    """
    files.write_text(Path(path), page(report))


def page(report: Report) -> str:
    """Returns the page as HTML that loads nothing and runs nothing; every text in it is escaped."""
    config = report.config
    if config is not None:
        config = json.dumps(config, indent=2, default=_plain, ensure_ascii=False)
    return (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            table=_table(report.summary_rows),
            level=bootstrap.level(),
            groups=_charts(report.curves or ()),
            exhibits=_gallery(report.exhibits, shapes=report.shapes),
            config=config,
            light=charts.LIGHT,
            dark=charts.DARK,
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    """Returns what fills the templates: values are escaped and made printable, Markup aside."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_fit,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _fit(value: Any) -> Any:
    """Returns a value of a template as text that a page may hold; HTML of our own stays."""
    return value if isinstance(value, Markup) else charts.printable(value)


class _CellView(NamedTuple):
    text: str
    bounds: str = ""
    """The ends of an interval."""
    wide: bool = False
    """Whether there is room for ends."""
    is_text: bool = False


class _RowView(NamedTuple):
    name: Cell
    cells: list[_CellView]


class _TableView(NamedTuple):
    columns: list[str]
    wide: set[str]
    """Columns with an interval."""
    rows: list[_RowView]


def _table(rows: Sequence[Mapping[str, Cell]]) -> _TableView:
    """Returns the table of results as its template shows it."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    wide = {name for row in rows for name in row if isinstance(row[name], Interval)}
    shown = []
    for row in rows if columns else ():
        cells = [_cell(row.get(name), name in wide) for name in columns[1:]]
        shown.append(_RowView(row.get(columns[0], ""), cells))
    return _TableView(columns, wide, shown)


def _cell(value: Cell, wide: bool) -> _CellView:
    """Returns one cell: an interval with its ends, a number, or a text."""
    if isinstance(value, Interval):
        bounds = f"{charts.number(value.low)} to {charts.number(value.high)}"
        return _CellView(charts.number(value.mean), bounds * math.isfinite(value.mean), wide)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return _CellView(f"{int(value):,}".replace("-", charts.MINUS), wide=wide)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return _CellView(charts.number(float(value)), wide=wide)
    return _CellView("", wide=wide) if value is None else _CellView(str(value), is_text=True)


def _charts(curves: Sequence[Curve]) -> dict[str, list[tuple[Curve, charts.Chart | None]]]:
    """Returns all curves with their drawings, group by group."""
    groups: dict[str, list[tuple[Curve, charts.Chart | None]]] = {}
    for curve in curves:
        groups.setdefault(curve.group, []).append((curve, charts.draw(curve)))
    return groups


class _PanelView(NamedTuple):
    caption: str
    colour: tuple[int, int, int]
    source: str
    """The image as a data URL."""
    width: int
    height: int
    alt: str
    iou: str | None
    share: str
    """Length of the bar in per cent."""
    verdict: str
    is_fault: bool
    text: str
    heading: str
    shapes: Markup | None = None
    """What stands over the image; None: it is drawn in."""


class _ExhibitView(NamedTuple):
    number: int
    question: str
    note: str
    panels: list[_PanelView]


def _gallery(exhibits: Sequence[Exhibit], *, shapes: bool) -> list[tuple[str, list[_ExhibitView]]]:
    """Returns exhibits, images inline, by the heading that those next to each other share."""
    captions = dict.fromkeys(panel.caption for item in exhibits for panel in item.panels)
    if not captions:
        return []
    colours = dict(zip(captions, itertools.cycle(overlay.COLOURS), strict=False))
    budget = min(_BYTES // sum(len(item.panels) for item in exhibits), 60_000)
    if shapes:  # Many images, to be looked at closely.
        budget = _BYTES_OF_PLAIN

    def views() -> Iterator[tuple[str, _ExhibitView]]:
        for number, item in enumerate(exhibits, 1):
            panels = [
                _panel(item, panel, colour=colours[panel.caption], budget=budget, shapes=shapes)
                for panel in item.panels
            ]
            yield item.group, _ExhibitView(number, item.question, item.note, panels)

    grouped = itertools.groupby(views(), key=lambda pair: pair[0])
    return [(group, [view for _, view in pairs]) for group, pairs in grouped]


def _panel(
    exhibit: Exhibit,
    panel: Panel,
    *,
    colour: tuple[int, int, int],
    budget: int,
    shapes: bool,
) -> _PanelView:
    """Returns one panel: the image, how good it is, what was answered."""
    image = exhibit.image if panel.image is None else panel.image
    marks: Mapping[str, Any] = {
        "points_unit": exhibit.points_unit,
        "boxes_unit": exhibit.boxes_unit,
        "colour": colour,
    }
    over = None
    if shapes:
        over = Markup(vector_overlay.shapes(image.shape[:2], panel.rings_unit, **marks))
        shown = overlay.resize(image, min(1.0, _SIDE_OF_PLAIN_PX / max(image.shape)))
    else:
        scale = _scale(max(image.shape))
        shown = overlay.draw(image, panel.rings_unit, **marks, scale=scale)
    alt, iou, verdict = [f"{panel.caption}: {exhibit.question}"], math.nan, ""
    if panel.iou is not None:
        iou = float(panel.iou)
        alt.append(f"IoU {charts.number(iou)}")
    if panel.verdict is not None:
        is_good = panel.verdict == Verdict.OK
        verdict = panel.verdict.name if is_good else panel.verdict.name.lower()
        alt.append(f"verdict {verdict}")
    text = panel.text
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} … and {len(text) - _LONGEST:,} more characters"
    return _PanelView(
        panel.caption,
        colour,
        _source(shown, budget, lossy=shapes and max(shown.shape) > _SMALL_PX),
        width=shown.shape[1],
        height=shown.shape[0],
        alt=", ".join(alt),
        iou=None if panel.iou is None else charts.number(iou),
        share=f"{100 * min(max(iou, 0.0), 1.0) if math.isfinite(iou) else 0:.1f}",
        verdict=verdict,
        is_fault=panel.verdict not in (None, Verdict.OK),
        text=text,
        heading=panel.heading,
        shapes=over,
    )


def _scale(longer: int) -> float | int:
    """Returns how much to enlarge (by whole factors) or reduce an image for the gallery."""
    return _SIDE_PX / longer if longer > _SIDE_PX else max(1, _SIDE_PX // longer)


def _source(image: UInt8[np.ndarray, "h w 3"], budget: int, *, lossy: bool = False) -> str:
    """Returns the image as a data URL: PNG, or `lossy` and where it is over the budget WebP."""
    full = Image.fromarray(image)
    photo = "webp" if features.check("webp") else "jpeg"
    for kind, quality in (("png", 0), (photo, 82), (photo, 65), (photo, 45))[lossy:]:
        buffer = io.BytesIO()
        full.save(buffer, kind, **({"quality": quality, "method": 2} if quality else {}))
        if buffer.tell() <= budget:
            break
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _plain(value: object) -> object:
    """Returns what JSON can hold in place of what it cannot."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return str(value)
