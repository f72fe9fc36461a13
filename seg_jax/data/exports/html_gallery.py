"""Writes answers as pages to look at: every picture with its outlines, and what the model wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from seg_jax.data import image_files
from seg_jax.data.exports import html_figure, svg
from seg_jax.data.exports.answers import Picture
from seg_jax.data.findings import Findings

PICTURES = 60
"""Pictures of a page, some megabytes: a page takes whole shards until it has so many."""
_STYLE = """
:root{color-scheme:light dark}
body{max-width:1280px;margin:0 auto;padding:16px;font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.4em}
nav a{margin-right:1em}
.seg-jax{display:grid;gap:20px;grid-template-columns:repeat(auto-fill,minmax(280px,1fr))}
td,th{text-align:left;padding:.1em 1em .1em 0;vertical-align:top}
td,th{min-width:8em;overflow-wrap:anywhere}
"""


def file_name(page: int) -> str:
    """Returns the name of a page, from 0, in the folder of the gallery."""
    return "index.html" if page == 0 else f"page-{page + 1:04d}.html"


def page(
    pictures: Iterable[Picture],
    failed: Sequence[Mapping[str, Any]],
    *,
    number: int,
    count: int,
    findings: Findings,
) -> str:
    """Returns a page that loads nothing and runs nothing; every text in it is escaped.

    Args:
      pictures: with their answers; what cannot be read any more stands without its image.
      failed: lines of failed.jsonl.
      number: of the page, from 0.
      count: of all pages.
      findings: are told of pictures that cannot be read.
    """
    figures, verdicts, shown = [], Counter[str](), 0
    for one in pictures:
        try:
            image = image_files.read(one.path)
        except image_files.Unreadable as error:
            findings.add_error("picture of the gallery left out", error)
            image = None
        figures.append(html_figure.figure(image, one.answers, title=one.key))
        verdicts.update(answer.verdict.name.lower() for answer in one.answers)
        shown += 1
    told = ", ".join(f"{many:,} {name}" for name, many in sorted(verdicts.items()))
    way = _ways(number, count)
    return "\n".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>Answers</title><style>{_STYLE}{html_figure.STYLE}</style></head><body>",
            f"<h1>Answers</h1><p>{shown:,} pictures, {verdicts.total():,} answers: {told}.</p>",
            way,
            f'<div class="seg-jax">{"".join(figures)}</div>',
            _table(failed),
            way,
            "</body></html>\n",
        )
    )


def _ways(number: int, count: int) -> str:
    """Returns the ways to other pages, if there are any."""
    if count == 1:
        return ""
    places = {"First": 0, "Previous": number - 1, "Next": number + 1, "Last": count - 1}
    links = [
        f'<a href="{file_name(place)}">{name}</a>'
        for name, place in places.items()
        if 0 <= place < count and place != number
    ]
    return f"<nav>{''.join(links)} page {number + 1} of {count}</nav>"


def _table(failed: Sequence[Mapping[str, Any]]) -> str:
    """Returns what could not be answered, if there is anything."""
    if not failed:
        return ""
    rows = []
    for one in failed:
        asked = ", ".join(str(value) for value in one["asked"].values())
        cells = (one["image"], asked, f"{one['fault']}; do: {one['do']}")
        rows.append(f"<tr>{''.join(f'<td>{svg.text(cell)}</td>' for cell in cells)}</tr>")
    head = "<tr><th>picture</th><th>asked</th><th>why</th></tr>"
    return f"<h2>Not answered</h2><table>{head}{''.join(rows)}</table>"
