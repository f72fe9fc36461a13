"""The records of a gallery: questions about images with the answers to show side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from seg_jax.data.image_files import RgbImage, Rings
from seg_jax.records import Verdict


@dataclasses.dataclass(frozen=True)
class Panel:
    """One answer to a question, or the truth."""

    caption: str
    """Whose answer: "truth", "after SFT". One caption has one colour throughout the page."""
    rings_unit: Rings
    """What to draw; a ring of one vertex is a point."""
    iou: float | int | np.number | None = None
    """IoU with the truth, 0..1; None where there is nothing to compare."""
    verdict: Verdict | None = None
    text: str = ""
    """The answer as the model wrote it."""
    image: RgbImage | None = None
    """What it is drawn over; None: the image of its exhibit."""
    heading: str = "Answer"
    """Heading of the text."""


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
