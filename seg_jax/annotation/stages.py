"""The stages of an annotation as protocols, with their results and failures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1."""


class Detection(NamedTuple):
    """An object that a detector has found."""

    box_px: Box
    label: str
    """One of the labels that were looked for."""
    score: float
    """0..1."""


class Segment(NamedTuple):
    """A mask that a segmenter has drawn for a box."""

    mask: Bool[np.ndarray, "H W"]
    quality: float
    """The IoU with the truth that the segmenter itself expects, 0..1 where it is calibrated."""
    stability: float
    """IoU of the masks at a threshold somewhat higher and somewhat lower, 0..1."""


class Question(NamedTuple):
    """A question for the description of one object."""

    view: UInt8[np.ndarray, "h w 3"]
    """The image as the describer sees it."""
    text: str


class Answer(NamedTuple):
    """What a describer wrote: a model's text, which is not to be trusted."""

    text: str
    finished: bool = True
    """Whether the text came to an end by itself."""


class Detector(Protocol):
    """Finds objects by their names."""

    def detect(
        self, image: UInt8[np.ndarray, "H W 3"], labels: Sequence[str]
    ) -> Sequence[Detection]:
        """Returns all detections, good and bad: filters choose among them."""
        ...


@runtime_checkable
class Segmenter(Protocol):
    """Draws the masks of objects that boxes show."""

    def segment(
        self, image: UInt8[np.ndarray, "H W 3"], boxes_px: Float[np.ndarray, "M 4"]
    ) -> Sequence[Segment]:
        """Returns a mask of the image's size for each box, in order."""
        ...


class Describer(Protocol):
    """Describes objects in words."""

    def describe(self, questions: Sequence[Question]) -> Sequence[Answer]:
        """Returns an answer to each question about one image, in order.

        Raises:
          Failed: there is no answer about this image; `transient` if there may be one later.
        """
        ...


class Model(NamedTuple):
    """Which model a stage uses, for the records."""

    name: str
    revision: str = ""
    """Digest or name of its weights."""


class Models(NamedTuple):
    """Which models the stages use."""

    detector: Model
    segmenter: Model
    describer: Model | None
    """None: objects are named by their labels."""


class Stages(NamedTuple):
    """The loaded models."""

    detector: Detector
    segmenter: Segmenter
    describer: Describer | None


class Failed(Exception):
    """A stage cannot process this image; the text is the reason, in one line."""

    def __init__(self, reason: str, *, transient: bool = False):
        super().__init__(" ".join(reason.split())[:300])
        self.transient = transient
        """Whether another try may succeed."""


class Unusable(ValueError):
    """A stage can process no image at all as it is set up; the text says what to do."""
