"""Writes what a run learned as one HTML page that needs nothing beside itself (host)."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, features

from seg_jax import files
from seg_jax.data.image_files import RgbImage, Rings
from seg_jax.evaluation.bootstrap import Interval
from seg_jax.records import Verdict
from seg_jax.report import charts, overlay
from seg_jax.report.charts import Curve, curves_from, safe

__all__ = ["Cell", "Curve", "Exhibit", "Panel", "Report", "curves_from", "page", "write"]

Cell = Interval | str | float | int | np.number | None
"""Something in the table of results."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """One answer to a question, or the truth."""

    caption: str
    """Whose answer: "truth", "after SFT". One caption has one colour throughout the page."""
    rings_unit: Rings
    """What to draw; a ring of one vertex is a point."""
    iou: float | int | np.number | None = None
    """With the truth, 0..1; None where there is nothing to compare."""
    verdict: Verdict | None = None
    text: str = ""
    """The answer as the model wrote it."""


@dataclasses.dataclass(frozen=True)
class Exhibit:
    """A held-out scene with its question and the answers, side by side."""

    image: RgbImage
    question: str
    panels: Sequence[Panel]
    points_unit: Sequence[tuple[float, float]] = ()
    """Points that the question names, drawn on every panel."""
    boxes_unit: Sequence[tuple[float, float, float, float]] = ()
    """Boxes x0 y0 x1 y1 that the question names, drawn on every panel."""
    group: str = ""
    """Heading that it stands under together with those of the same group that follow it."""
    note: str = ""
    """Small print behind the question."""


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
    """Whatever JSON can hold; the rest is written as text."""
    versions: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """What ran: packages, device, seeds, commit."""
    notes: Sequence[str] = ()
    """Paragraphs under the title."""
    commands: Sequence[str] = ()
    """What to type to get the same."""


# Of the images of all panels together, before base64 adds a third.
_BYTES = 1_100_000
_SIDE_PX = 384
_BLANK = "<small></small>"
_LONGEST = 4000  # characters of an answer
_COLOURS = (  # by caption: green, orange, sky blue, pink, yellow, vermilion (Okabe and Ito 2008)
    (0, 190, 140),
    (255, 160, 0),
    (70, 180, 255),
    (240, 120, 190),
    (240, 228, 66),
    (230, 90, 20),
)

_STYLE = """
:root{color-scheme:light dark;--ink:#1c1f23;--muted:#626a73;--line:#e3e6ea;--card:#fff;
--ground:#f6f7f8;--link:#0b62a8;--bad:#a63c00;--badge:#fdf0e7;--quiet:#cdd6df;
--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#b85a93;--c4:#b58900;--c5:#4aa3dc;--c6:#6b7280;
--c7:#8c564b}
@media(prefers-color-scheme:dark){:root{--ink:#e7e9ec;--muted:#9aa3ad;--line:#30353b;--card:#1b1f23;
--ground:#121518;--link:#7cc0f5;--bad:#ffb27d;--badge:#3a2516;--quiet:#3d4853;
--c0:#56b4e9;--c1:#f08a3c;--c2:#2cc497;--c3:#e39ac3;--c4:#e8cf4a;--c5:#2f86c4;--c6:#9aa3ad;
--c7:#c49a8c}}
*{box-sizing:border-box}html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
@media(prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--ground);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main,header{max-width:1180px;margin:0 auto;padding:0 20px}header{padding-top:40px}
h1{font-size:1.9rem;line-height:1.2;letter-spacing:-.02em;margin:0 0 .5rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;letter-spacing:-.01em;margin:3rem 0 1rem}
h3{font-size:1rem;margin:1.6rem 0 .7rem}h4{font-size:.95rem;margin:0}
h4 small,.none,.notes{color:var(--muted);font-weight:400}.notes{max-width:46rem;margin:.4rem 0}
a{color:var(--link)}nav{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;margin-top:1rem}
nav a{text-decoration:none}nav a:hover{text-decoration:underline}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.scroll{overflow-x:auto;padding:4px 0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums lining-nums}
th,td{padding:.5rem 16px;text-align:right;vertical-align:baseline;white-space:nowrap}
th{font-weight:500}thead th{color:var(--muted);font-size:.85rem;border-bottom:1px solid var(--line)}
th:first-child,td.text{text-align:left}tbody tr+tr>*{border-top:1px solid var(--line)}
td small,th small{display:inline-block;width:7.2rem;margin-left:.55rem;text-align:left}
td small{color:var(--muted)}td.text{white-space:normal}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(330px,100%),1fr));gap:14px}
.exhibits{display:grid;gap:14px}
.exhibit h3{margin:0 0 .8rem;font-weight:500;overflow-wrap:anywhere}
.exhibit h3 small{color:var(--muted);font-weight:400;margin-left:.6rem}
.exhibit h3 span{color:var(--muted);font-variant-numeric:tabular-nums;margin-right:.6rem}
.panels{display:grid;grid-template-columns:repeat(var(--n),minmax(0,1fr));gap:14px}
figure{margin:0;min-width:0;max-width:384px}
figure img{display:block;width:100%;height:auto;border-radius:6px}
figcaption{margin-top:.5rem;font-size:.88rem;line-height:1.45}
.head{display:flex;align-items:baseline;gap:.2rem .5rem;flex-wrap:wrap}
.head i{width:9px;height:9px;border-radius:50%;align-self:center;flex:none}
.head b{font-weight:600;margin-left:auto;font-variant-numeric:tabular-nums}
.head b small{font-weight:400;color:var(--muted)}
.bar{height:3px;border-radius:2px;background:var(--line);margin:.3rem 0 .35rem;overflow:hidden}
.bar i{display:block;height:100%}
.verdict{color:var(--muted);font-size:.8rem}
.fault{color:var(--bad);background:var(--badge);border-radius:4px;padding:.05rem .4rem}
summary{cursor:pointer;color:var(--muted);font-size:.8rem;width:fit-content}
pre{margin:.4rem 0 0;padding:10px 12px;background:var(--ground);border-radius:6px;overflow:auto;
max-height:26rem;font:12px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
figure pre{white-space:pre-wrap;overflow-wrap:anywhere;max-height:14rem}
.facts{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1.4rem;margin:0}
.facts dt{color:var(--muted)}.facts dd{margin:0;overflow-wrap:anywhere}
footer{height:60px}
@media(max-width:640px){.panels{grid-template-columns:repeat(min(2,var(--n)),minmax(0,1fr))}
main,header{padding:0 12px}header{padding-top:24px}.card{padding:12px}th,td{padding:.45rem 10px}
td small,th small{display:block;width:auto;margin:0;text-align:right}.scroll{padding:4px 0}}
@media print{body{background:#fff}.card,figure{break-inside:avoid}nav{display:none}}
"""


def write(path: Path | str, report: Report) -> None:
    """Writes the page: whole, or not at all.

    Raises:
      OSError: see `images.store`.
    """
    files.write_text(path, page(report))


def page(report: Report) -> str:
    """Returns the page as HTML that loads nothing and runs nothing; every text in it is escaped."""
    sections = {
        "Results": _table(report.summary_rows),
        **({} if report.curves is None else {"Curves": _curves(report.curves)}),
        "Gallery": _gallery(report.exhibits),
        "Configuration": _facts(report),
    }
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    notes = "".join(f'<p class="notes">{safe(note)}</p>' for note in report.notes)
    body = "".join(
        f'<section id="{name.lower()}" aria-labelledby="h-{name.lower()}">'
        f'<h2 id="h-{name.lower()}">{name}</h2>{content}</section>\n'
        for name, content in sections.items()
    )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{safe(report.title)}</title><style>{_STYLE}{charts.STYLE}</style></head>\n"
        f"<body><header><h1>{safe(report.title)}</h1>{notes}"
        f'<nav aria-label="Sections">{links}</nav></header>\n'
        f"<main>{body}</main><footer></footer></body></html>\n"
    )


def _none(text: str) -> str:
    return f'<p class="none">{text}</p>'


def _table(rows: Sequence[Mapping[str, Cell]]) -> str:
    """Returns the table of results."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not columns:
        return _none("No results.")
    wide = {name for row in rows for name in row if isinstance(row[name], Interval)}
    head = "".join(
        f'<th scope="col">{safe(name)}{_BLANK if name in wide else ""}</th>' for name in columns
    )
    body = "".join(
        f'<tr><th scope="row">{safe(row.get(columns[0], ""))}</th>'
        + "".join(_cell(row.get(name), name in wide) for name in columns[1:])
        + "</tr>"
        for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    hint = _none("Small numbers: 95 % bootstrap interval.") if wide else ""
    return f'<div class="card scroll">{table}</div>{hint}'


def _cell(value: Cell, wide: bool) -> str:
    """Returns one cell: numbers on the right, text on the left; wide ones have room for bounds."""
    blank = _BLANK if wide else ""
    if isinstance(value, Interval):
        bounds = f"{charts.number(value.low)} to {charts.number(value.high)}"
        small = f"<small>{bounds}</small>" if math.isfinite(value.mean) else blank
        return f"<td>{charts.number(value.mean)}{small}</td>"
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return f"<td>{int(value):,}{blank}</td>".replace("-", charts.MINUS)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return f"<td>{charts.number(float(value))}{blank}</td>"
    return f"<td>{blank}</td>" if value is None else f'<td class="text">{safe(value)}</td>'


def _curves(curves: Sequence[Curve]) -> str:
    """Returns all curves, group by group."""
    if not curves:
        return _none("No curves.")
    parts = []
    for group in dict.fromkeys(curve.group for curve in curves):
        parts.append(f"<h3>{safe(group)}</h3>" if group else "")
        parts.append('<div class="charts">')
        for curve in curves:
            if curve.group == group:
                unit = f" <small>{safe(curve.unit)}</small>" if curve.unit else ""
                head = f"<h4>{safe(curve.title)}{unit}</h4>"
                parts.append(f'<div class="card chart">{head}{charts.svg(curve)}</div>')
        parts.append("</div>")
    return "".join(parts)


def _gallery(exhibits: Sequence[Exhibit]) -> str:
    """Returns all exhibits, images inline."""
    captions = dict.fromkeys(panel.caption for item in exhibits for panel in item.panels)
    if not captions:
        return _none("No images.")
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(captions)}
    budget = _BYTES // sum(len(item.panels) for item in exhibits)
    parts, group = ['<div class="exhibits">'], ""
    for index, exhibit in enumerate(exhibits, 1):
        if exhibit.group != group:
            group = exhibit.group
            parts.append(f'</div><h3>{safe(group)}</h3><div class="exhibits">')
        panels = "".join(
            _figure(exhibit, panel, colour=colours[panel.caption], budget=min(budget, 60_000))
            for panel in exhibit.panels
        )
        note = f"<small>{safe(exhibit.note)}</small>" if exhibit.note else ""
        parts.append(
            f'<article class="card exhibit"><h3><span>{index}</span>'
            f"<bdi>{safe(exhibit.question)}</bdi>{note}</h3>"
            f'<div class="panels" style="--n:{max(1, len(exhibit.panels))}">{panels}</div>'
            "</article>\n"
        )
    return "".join([*parts, "</div>"])


def _figure(exhibit: Exhibit, panel: Panel, *, colour: tuple[int, int, int], budget: int) -> str:
    """Returns one panel: the image, how good it is, what was answered."""
    shown = overlay.draw(
        exhibit.image,
        panel.rings_unit,
        points_unit=exhibit.points_unit,
        boxes_unit=exhibit.boxes_unit,
        colour=colour,
        scale=_scale(max(exhibit.image.shape)),
    )
    height, width = shown.shape[:2]
    alt = [f"{panel.caption}: {exhibit.question}"]
    ink = f'style="background:rgb{colour}"'
    score = bar = verdict = answer = ""
    if panel.iou is not None:
        iou = float(panel.iou)
        alt.append(f"IoU {charts.number(iou)}")
        score = f"<b><small>IoU</small> {charts.number(iou)}</b>"
        share = 100 * min(max(iou, 0.0), 1.0) if math.isfinite(iou) else 0
        bar = f'<div class="bar"><i style="width:{share:.1f}%;background:rgb{colour}"></i></div>'
    if panel.verdict is not None:
        name = panel.verdict.name if panel.verdict == Verdict.OK else panel.verdict.name.lower()
        alt.append(f"verdict {name}")
        mark = "verdict" if panel.verdict == Verdict.OK else "verdict fault"
        verdict = f'<span class="{mark}">{name}</span>'
    if panel.text:
        cut = f" … and {len(panel.text) - _LONGEST:,} more characters"
        text = panel.text[:_LONGEST] + (cut if len(panel.text) > _LONGEST else "")
        answer = f"<details><summary>Answer</summary><pre>{safe(text)}</pre></details>"
    return (
        f'<figure><img width="{width}" height="{height}" loading="lazy" decoding="async"'
        f' alt="{safe(", ".join(alt))}" src="{_source(shown, budget)}"><figcaption>'
        f'<div class="head"><i {ink}></i><span>{safe(panel.caption)}</span>{score}</div>'
        f"{bar}{verdict}{answer}</figcaption></figure>"
    )


def _scale(longer: int) -> float | int:
    """Returns how much to enlarge (by whole factors) or reduce an image for the gallery."""
    return _SIDE_PX / longer if longer > _SIDE_PX else max(1, _SIDE_PX // longer)


def _source(image: UInt8[np.ndarray, "h w 3"], budget: int) -> str:
    """Returns the image as a data URL: PNG, or where that is over the budget a lossy coding."""
    full = Image.fromarray(image)
    lossy = "webp" if features.check("webp") else "jpeg"
    for kind, quality in (("png", 0), (lossy, 82), (lossy, 65), (lossy, 45)):
        buffer = io.BytesIO()
        full.save(buffer, kind, **({"quality": quality, "method": 2} if quality else {}))
        if buffer.tell() <= budget:
            break
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _facts(report: Report) -> str:
    """Returns versions, commands and the configuration."""
    parts = []
    if report.versions:
        facts = "".join(
            f"<dt>{safe(name)}</dt><dd>{safe(value)}</dd>"
            for name, value in report.versions.items()
        )
        parts.append(f'<dl class="card facts">{facts}</dl>')
    if report.commands:
        lines = "\n".join(safe(command) for command in report.commands)
        parts.append(f"<h3>Commands</h3><pre>{lines}</pre>")
    if report.config is not None:
        text = json.dumps(report.config, indent=2, default=_plain, ensure_ascii=False)
        whole = f"<summary>Whole configuration as JSON</summary><pre>{safe(text)}</pre>"
        parts.append(f"<h3>Settings</h3><details>{whole}</details>")
    return "".join(parts) or _none("Nothing recorded.")


def _plain(value: object) -> object:
    """Returns what JSON can hold in place of what it cannot."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return str(value)
