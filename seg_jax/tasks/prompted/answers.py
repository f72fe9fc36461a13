"""True answers: boxes and clicks of masks with a thought, and what can be drawn of them (host)."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from seg_jax.geometry import bitmask, contour
from seg_jax.geometry import boxes as box_geometry
from seg_jax.grammar import clicks as grammar
from seg_jax.tasks.prompted import clicker


def write(
    masks: Bool[np.ndarray, "M H W"],
    *,
    frame: int,
    clicks: int,
    boxes: int,
    meant: str,
    rng: np.random.Generator | None,
) -> str:
    """Returns a thought, a box for each mask, and clicks on and beside them.

    Args:
      masks: of the objects, each with pixels.
      frame: side of the frame that numbers are written in.
      clicks: at most so many, of each object at least one if there are as many boxes.
      boxes: at most so many; more masks than boxes are one object. 0: clicks alone, no thought.
      meant: what the objects are, for the thought; empty where unknown.
      rng: draws the clicks; None: the deepest places.
    """
    whole = np.asarray(masks.any(0))
    parts = list(masks) if len(masks) <= min(boxes, clicks) else [whole]
    each = [clicks // len(parts) + (n < clicks % len(parts)) for n in range(len(parts))]
    traced = [
        clicker.trace(part, clicks=count, rng=rng, meant=whole)
        for part, count in zip(parts, each, strict=True)
    ]
    return grammar.write(
        np.stack([one.box_unit for one in traced]) if boxes else (),
        np.concatenate([one.points_unit for one in traced]),
        np.concatenate([one.labels for one in traced]),
        frame=frame,
        thought=thought_about(meant, len(parts)) if boxes else "",
    )


def thought_about(meant: str, boxes: int) -> str:
    """Returns the words before an answer of so many boxes."""
    what = meant.replace("<", "") or ("the object" if boxes == 1 else "the objects")
    where = "a box around it" if boxes == 1 else f"{boxes} boxes around them"
    return f"What is meant is {what}: {where}, clicks on and beside."


EXAMPLE = grammar.write(
    [(0.1, 0.2, 0.8, 0.9), (0.3, 0.4, 0.6, 0.7)],
    [(0.3, 0.6), (0.2, 0.5)],
    [1, 0],
    frame=768,
    thought=thought_about("", 2),
)
"""A whole answer."""


def conversation_text(thought: str, answer: str) -> str:
    """Returns the text of a written conversation's answer; a thought has its tags once."""
    if not thought:
        return answer
    tagged = thought if "<think>" in thought else f"<think> {thought} </think>"
    return f"{tagged} {answer}"


def thought_of(text: str) -> str:
    """Returns the words of an answer's thought, which is known to be closed."""
    return text.partition("<think>")[2].partition("</think>")[0].strip()


def shown_rings(
    boxes_unit: Float[np.ndarray, "n 4"],
    points_unit: Float[np.ndarray, "m 2"],
    *,
    mask: Bool[np.ndarray, "H W"] | None = None,
) -> list[np.ndarray]:
    """Returns what is drawn of an answer: regions, lines of two vertices, points of one.

    Args:
      boxes_unit: of the answer.
      points_unit: its clicks.
      mask: that a model drew of it, which boxes only frame; None: they are regions themselves.
    """
    corners = list(box_geometry.corners(boxes_unit))
    if mask is None:
        return [*corners, *points_unit[:, None]]
    sides = [np.stack([ring[n], ring[(n + 1) % 4]]) for ring in corners for n in range(4)]
    return [*outlines(mask), *sides, *points_unit[:, None]]


def agreement(read: grammar.Reading, mask: Bool[np.ndarray, "H W"]) -> float:
    """Returns the share of clicks that lie on or beside a mask as their labels say, 0..1.

    If there are boxes, it is at most the share of the mask's pixels that lie in one of them.
    """
    size = np.array(mask.shape[::-1])
    column, row = np.clip((read.points_unit * size).astype(int), 0, size - 1).T
    shares = [float(np.mean(mask[row, column] == (read.labels == 1)))] if len(row) else []
    if len(read.boxes_unit):
        inside = np.zeros_like(mask)
        for x0, y0, x1, y1 in np.round(read.boxes_unit * np.tile(size, 2)).astype(int):
            inside[y0:y1, x0:x1] = True
        shares.append(float(inside[mask].mean()))
    return min(shares, default=0.0)


def mask_json(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """Returns plain values of a mask: its borders to the pixel, box, area and run lengths."""
    size, area = np.array(mask.shape[::-1]), int(mask.sum())
    rings = contour.trace(mask)
    rle = bitmask.to_rle(mask)
    rle["counts"] = rle["counts"].decode("ascii")
    box = contour.box_px(mask)
    return {
        "polygons_unit": [np.round(ring / size, 6).tolist() for ring in rings],
        "polygons_px": [ring.tolist() for ring in rings],
        "box_unit": np.round(box / np.tile(size, 2), 6).tolist() if area else None,
        "box_px": box.tolist() if area else None,
        "area_px": area,
        "rle": rle,
    }


def outlines(mask: Bool[np.ndarray, "H W"]) -> list[np.ndarray]:
    """Returns the borders of a mask, unit."""
    size = np.array([mask.shape[1], mask.shape[0]], np.float64)
    return [ring / size for ring in contour.trace(mask)]
