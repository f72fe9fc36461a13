"""Shows the best, median, worst and failed answers of a protocol as one page (host)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from seg_jax.evaluation.bootstrap import Interval
from seg_jax.evaluation.referring import judging, text4seg
from seg_jax.evaluation.referring.judging import Row
from seg_jax.evaluation.referring.protocols import Protocol, Question
from seg_jax.evaluation.referring.scoring import TITLES
from seg_jax.geometry import boxes, contour, polygon
from seg_jax.records import Kind, Verdict
from seg_jax.report.exhibits import Exhibit, Panel
from seg_jax.report.html_page import Cell
from seg_jax.tasks.referring import draw

_STAIRS_PX = 0.75  # stairs of one pixel are half a diagonal off their line
FAULTS = {
    "semantic": "Failed: the wrong object",
    "geometric": "Failed: the right object, a poor outline",
    "format": "Failed: cannot be read",
}


def groups(rows: Sequence[Row], *, each: int) -> dict[str, list[Row]]:
    """Returns up to `each` rows for each part of the gallery, no answer about an object twice.

    First the best, the median and the worst (of those that can be read) by IoU, then failures by
    their fault, the first in the order of the source.
    """
    ranked = sorted(rows, key=lambda row: -row.iou)
    readable = [row for row in ranked if row.fault != "format"]
    middle = sorted(ranked, key=lambda row: abs(row.iou - ranked[len(ranked) // 2].iou))
    wanted: dict[str, Iterable[Row]] = {
        "Best": ranked,
        "Median": middle,
        "Worst": readable[::-1],
    }
    wanted |= {title: [r for r in rows if r.fault == name] for name, title in FAULTS.items()}
    shown: set[tuple] = set()
    found: dict[str, list[Row]] = {}
    for title, candidates in wanted.items():
        for row in candidates:
            at = (row.index, row.which, row.kind, row.text)
            if at not in shown and len(found.setdefault(title, [])) < each:
                shown.add(at)
                found[title].append(row)
    return {title: chosen for title, chosen in found.items() if chosen}


def exhibits(
    chosen: Mapping[str, Sequence[Row]],
    protocol: Protocol,
    question: Callable[[Row], Question],
    *,
    pointed: judging.Draw | None = None,
) -> tuple[Exhibit, ...]:
    """Returns rows with their images, truth beside answer.

    Args:
      chosen: by the heading that they stand under.
      protocol: that they were judged by.
      question: finds the question of a row again.
      pointed: draws what an answer of boxes and clicks points at; None: answers are outlines.
    """
    return tuple(
        _exhibit(title, row, protocol, question(row), pointed)
        for title, rows in chosen.items()
        for row in rows
    )


def _exhibit(
    title: str, row: Row, protocol: Protocol, asked: Question, pointed: judging.Draw | None
) -> Exhibit:
    kind, (height, width) = Kind[row.kind.upper()], asked.truth.shape
    if pointed is not None:
        truth, rings = asked.truth, pointed(asked, row.text).rings_unit
    elif protocol.released:
        truth, rings = text4seg.truth(asked.sample, row.which), text4seg.polygons(row.text)
    else:
        truth, rings = asked.truth, draw(row.text, kind, (height, width)).rings_unit
    true_rings = outlines(truth)
    if kind == Kind.BOX:
        size = np.array([width, height])
        rings = [boxes.corners(ring.reshape(-1)[:4]) for ring in rings]
        true_rings = (
            [boxes.corners(contour.box_px(truth) / np.tile(size, 2))] if truth.any() else []
        )
    answer = Panel(
        "answer", rings, iou=row.iou, verdict=Verdict[row.verdict], text=row.text or "(nothing)"
    )
    panels = [Panel("truth", true_rings), answer]
    if asked.sample.ignored is not None and asked.sample.ignored[row.which].any():
        panels.append(Panel("ignored", outlines(asked.sample.ignored[row.which])))
    clue = np.zeros(0) if isinstance(asked.clue, str) else np.asarray(asked.clue)
    places: Any = {clue.size: [tuple(clue.tolist())]}
    return Exhibit(
        asked.sample.image,
        row.question,
        panels,
        points_unit=places.get(2, ()),
        boxes_unit=places.get(4, ()),
        group=title,
        note=f"{row.key}, mask {row.which}",
    )


def outlines(mask: Bool[np.ndarray, "H W"]) -> list[np.ndarray]:
    """Returns the outline of a mask in unit coordinates, to the pixel but without its stairs."""
    rings = contour.trace(mask)
    smooth = polygon.simplify_each(rings, [_STAIRS_PX] * len(rings))
    return [ring / np.array(mask.shape[::-1]) for ring in smooth]


def table(summary: Mapping[str, Any], protocol: Protocol) -> list[dict[str, Cell]]:
    """Returns the table of results: numbers first, then the faults with what they cost."""
    rows: list[dict[str, Cell]] = []
    for name in protocol.metrics:
        value = summary[name]
        cell = "not asked" if value is None else Interval(**value)
        rows.append({"number": TITLES[name], "value": cell})
    for kind, faults in summary["faults"].items():
        for fault, found in faults.items():
            words = f"{kind} answers: {_NAMES[fault]}"
            rows.append({"number": words, "answers": found["count"], "IoU lost": found["lost"]})
    return rows


_NAMES = {
    "none": "hits, IoU above 0.5",
    "format": "cannot be read",
    "semantic": "wrong object",
    "geometric": "right object, poor outline",
}
