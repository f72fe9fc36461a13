"""The stages of an annotation as protocols, what they hand on, and how they fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, UInt8

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1."""


class Detection(NamedTuple):
    """An object that a detector has found."""

    box_px: Box
    label: str
    """One of those asked for."""
    score: float
    """0..1."""


class Segment(NamedTuple):
    """A mask that a segmenter has drawn for a box."""

    mask: Bool[np.ndarray, "H W"]
    quality: float
    """The IoU with the truth that the segmenter itself expects, 0..1 where it is calibrated."""
    stability: float
    """IoU of the masks at a threshold somewhat higher and somewhat lower, 0..1."""


class Ask(NamedTuple):
    """A question for the description of one object."""

    view: UInt8[np.ndarray, "h w 3"]
    """The image as the describer is to see it."""
    question: str


class Answer(NamedTuple):
    """What a describer wrote: text of a model, not to be trusted."""

    text: str
    finished: bool = True
    """Whether it came to an end by itself."""


class Detector(Protocol):
    """Finds objects by their names."""

    def detect(
        self, image: UInt8[np.ndarray, "H W 3"], labels: Sequence[str]
    ) -> Sequence[Detection]:
        """Returns what it finds, good and bad: filters choose."""
        ...


class Segmenter(Protocol):
    """Draws the masks of objects that boxes tell."""

    def segment(
        self, image: UInt8[np.ndarray, "H W 3"], boxes_px: Float[np.ndarray, "M 4"]
    ) -> Sequence[Segment]:
        """Returns a mask of the image's size for each box, in order."""
        ...


class Describer(Protocol):
    """Describes objects in words."""

    def describe(self, asks: Sequence[Ask]) -> Sequence[Answer]:
        """Returns an answer to each question about one image, in order.

        Raises:
          Failed: nothing can be said about this image; `transient` if perhaps later.
        """
        ...


class Model(NamedTuple):
    """Which model a stage is, for the records."""

    name: str
    revision: str = ""
    """Tells its weights from any others."""


class Models(NamedTuple):
    """Which models the stages are."""

    detector: Model
    segmenter: Model
    describer: Model | None
    """None: objects are called by their labels."""


class Stages(NamedTuple):
    """The models at work, loaded."""

    detector: Detector
    segmenter: Segmenter
    describer: Describer | None


class Failed(Exception):
    """A stage that cannot do this image; the text is the reason, in one line."""

    def __init__(self, reason: str, *, transient: bool = False):
        super().__init__(" ".join(reason.split())[:300])
        self.transient = transient
        """Whether it may go well another time."""


class Unusable(ValueError):
    """A stage that can do no image at all, as it was set up; the text says what to do."""
