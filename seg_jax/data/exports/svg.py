"""Writes answers as SVG: outlines, boxes and points over the picture, in its pixels."""

from __future__ import annotations

import html
import os
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from seg_jax.data.exports import labelme_json
from seg_jax.data.exports.answers import Answer, Files, Picture
from seg_jax.data.exports.overlay import COLOURS

_UNSEEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML cannot hold."""


def of_picture(picture: Picture, folder: Path) -> Files:
    """Yields the drawing of a picture, which it leads to from the folder of the export."""
    name = f"{picture.name}.svg"

    def text() -> bytes:
        way = labelme_json.way_to(picture, (folder / name).parent)
        address = urllib.parse.quote(os.fsencode(way), safe="/")  # Of names that are no UTF-8 too.
        return drawing(picture.answers, picture.size, source=address).encode()

    yield name, text


def drawing(answers: Sequence[Answer], size: tuple[int, int], *, source: str) -> str:
    """Returns a drawing of answers over a picture; every text in it is escaped.

    Args:
      answers: each has a colour, its label and score as a title.
      size: height and width of the picture.
      source: address of the picture, relative or a data URI.
    """
    height, width = size
    line = max(1.0, max(size) / 400)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">',
        f'<image href="{text(source)}" width="{width}" height="{height}"/>',
        f'<g fill-opacity="0.35" fill-rule="evenodd" stroke-width="{line:g}" '
        'stroke-linejoin="round">',
        *(_shape(one, colour(place), line) for place, one in enumerate(answers)),
        "</g>",
        "</svg>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def colour(place: int) -> str:
    """Returns the colour of an answer by its place, as CSS has it."""
    red, green, blue = COLOURS[place % len(COLOURS)]
    return f"#{red:02x}{green:02x}{blue:02x}"


def _shape(answer: Answer, colour: str, line: float) -> str:
    """Returns the element of an answer; nothing where nothing can be drawn."""
    rings = answer.rings_px
    if not rings:
        return ""
    title = f"<title>{text(answer.label)} {answer.score:.3f}</title>"
    ink = f'fill="{colour}" stroke="{colour}"'
    if answer.kind == "box":
        (x0, y0), (x1, y1) = rings[0].tolist()
        size = f'width="{x1 - x0:.10g}" height="{y1 - y0:.10g}"'
        return f'<rect x="{x0:.10g}" y="{y0:.10g}" {size} {ink}>{title}</rect>'
    if answer.kind == "point":
        x, y = rings[0][0].tolist()
        return f'<circle cx="{x:.10g}" cy="{y:.10g}" r="{3 * line:g}" {ink}>{title}</circle>'
    way = "".join(
        "M" + "L".join(f"{x:.10g} {y:.10g}" for x, y in ring.tolist()) + "Z" for ring in rings
    )
    return f'<path d="{way}" {ink}>{title}</path>'


def text(value: str) -> str:
    """Returns a text that XML and HTML can hold, escaped."""
    return html.escape(_UNSEEN.sub("\N{REPLACEMENT CHARACTER}", value))
