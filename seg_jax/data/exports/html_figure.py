"""A picture with its answers as HTML that loads nothing, for notebooks and galleries."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image

from seg_jax.data.exports import svg
from seg_jax.data.exports.answers import Answer
from seg_jax.data.image_files import RgbImage
from seg_jax.records import Verdict

SIDE_PX = 640
"""Longer side of pictures: larger ones are reduced."""
_PNG_PX = 160
"""Pictures up to this are kept as they are, and enlarged without blurring."""
_LONGEST = 2000
"""Characters of an answer that are shown."""
STYLE = """
.seg-jax figure{margin:0;font:14px/1.4 system-ui,sans-serif}
.seg-jax svg{display:block;width:100%;height:auto;max-height:80vh;background:#8882}
.seg-jax svg.small image{image-rendering:pixelated}
.seg-jax figcaption{padding:.4em 0;overflow-wrap:anywhere}
.seg-jax ol{list-style:none;margin:.3em 0 0;padding:0}
.seg-jax li{margin:.15em 0}
.seg-jax .ink{display:inline-block;width:.8em;height:.8em;margin-right:.4em;border-radius:2px}
.seg-jax .fault{color:#b3261e;font-weight:600}
.seg-jax summary{cursor:pointer}
.seg-jax code{overflow-wrap:anywhere;white-space:pre-wrap}
"""
"""Its style, once a page."""


def figure(image: RgbImage | None, answers: Sequence[Answer], *, title: str) -> str:
    """Returns the picture with outlines over it and its answers below; every text is escaped.

    Args:
      image: the picture; None where it is gone, and its answers stand alone.
      answers: at least one, all of this picture.
      title: what stands above the answers; may be empty.
    """
    shown = ""
    if image is not None:
        kind = ' class="small"' if max(image.shape) <= _PNG_PX else ""
        drawing = svg.drawing(answers, image.shape[:2], source=source(image))
        shown = drawing.replace("<svg ", f"<svg{kind} ", 1)
    rows = "\n".join(_row(one, svg.colour(place)) for place, one in enumerate(answers))
    head = f"{svg.text(title)}\n" if title else ""
    return f"<figure>{shown}<figcaption>{head}<ol>\n{rows}\n</ol></figcaption></figure>\n"


def source(image: RgbImage) -> str:
    """Returns a picture as a data URI, reduced to `SIDE_PX`."""
    full, buffer = Image.fromarray(image), io.BytesIO()
    full.thumbnail((SIDE_PX, SIDE_PX))
    is_small = max(image.shape) <= _PNG_PX
    full.save(buffer, **({"format": "PNG"} if is_small else {"format": "JPEG", "quality": 85}))
    kind = "png" if is_small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _row(answer: Answer, colour: str) -> str:
    """Returns the line of an answer: what it is called, its score, and the model's own words."""
    told = [f"score {answer.score:.3f}"]
    if answer.is_mask:
        told.append(f"{answer.area_px:,} pixels")
    elif answer.told.get("says_nothing"):
        told.append("there is nothing")
    if answer.verdict is not Verdict.OK:
        told.append(f'<span class="fault">{svg.text(answer.verdict.name.lower())}</span>')
    text = answer.text
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} … and {len(text) - _LONGEST:,} more characters"
    return (
        f'<li><details><summary><span class="ink" style="background:{colour}"></span>'
        f"{svg.text(answer.label)} · {', '.join(told)}</summary><code>{svg.text(text)}</code>"
        "</details></li>"
    )
