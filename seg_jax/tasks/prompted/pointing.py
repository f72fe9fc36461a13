"""What boxes and clicks ask a model to draw, and what it draws of them in an image (host)."""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import UInt8

from seg_jax.grammar import clicks
from seg_jax.tasks.prompted import views
from seg_jax.tasks.task import Draw, Pointed

_BOX = re.compile(r"<bbox>\s*(\[\s*\d+\s*,\s*\d+\s*,\s*\d+\s*,\s*\d+\s*\])", re.ASCII)


def prompts(read: clicks.Reading, *, together: bool = False) -> list[Pointed]:
    """Returns the prompts of an answer: each box with the clicks within it, its edges included.

    Without a box all clicks are one prompt; without anything there is none.

    Args:
      read: the answer.
      together: the first box alone, with all clicks, as the release asks about ReasonSeg.
    """
    points, labels = read.points_unit, read.labels
    if not len(read.boxes_unit):
        return [Pointed(None, points, labels)] if len(points) else []
    if together:
        return [Pointed(read.boxes_unit[0], points, labels)]
    found = []
    for box in read.boxes_unit:
        low, high = box.reshape(2, 2)
        within = ((points >= low) & (points <= high)).all(1)
        found.append(Pointed(box, points[within], labels[within]))
    return found


def grey_map(
    image: UInt8[np.ndarray, "H W 3"], asked: list[Pointed], draw: Draw
) -> UInt8[np.ndarray, "H W"]:
    """Returns the union of what is drawn of prompts in an image at its own size: 0 and 255."""
    if not asked:
        return np.zeros(image.shape[:2], np.uint8)
    return 255 * draw(image, asked).astype(np.uint8)


def grey_map_as_released(
    image: UInt8[np.ndarray, "H W 3"], asked: list[Pointed], draw: Draw, *, frame: int
) -> UInt8[np.ndarray, "H W"]:
    """Returns the same as the release draws: in the frame, blue first, scaled to the image.

    A mask of 0 and 255 is scaled bilinearly, so that there are numbers between on its border.
    """
    view = np.ascontiguousarray(views.stretched(image, frame)[..., ::-1])
    return views.at_size(grey_map(view, asked, draw), (image.shape[1], image.shape[0]))


def only_first_box(text: str) -> str:
    """Returns an answer with its first box alone, which need not be closed.

    So the release reads answers about ReasonSeg.
    """
    first = _BOX.search(text)
    rest = text.replace("<bbox>", "< >")
    return rest if first is None else f"<bbox>{first[1]}</bbox> {rest}"
