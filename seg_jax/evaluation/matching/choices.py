"""Choices: one text for an image among several, one image for a text, and how a model scored them.

Source: SPEC, Peng et al. 2023 (arXiv 2312.00081), section 4: both directions, accuracy.

Axes here: `A` alternatives of a choice.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float, Shaped
from msgspec import Meta

from seg_jax import files, schemas

Direction = Literal["image_to_text", "text_to_image"]
DIRECTIONS: tuple[Direction, ...] = ("image_to_text", "text_to_image")
"""An image with texts to choose from; a text with images to choose from."""
MOST = 10_000
"""Alternatives of a choice; published ones have up to nine."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scored:
    """A choice and how a model scored its alternatives."""

    subset: str
    """Which attribute differs."""
    direction: Direction
    case: str
    """Names the case: choices of one are not independent of each other."""
    query: str
    """The text, or what names the image."""
    label: int
    """Number of the alternative that fits."""
    scores: tuple[float, ...]
    """The highest is chosen, the first of equal ones; what is no number is never chosen."""

    @property
    def choice(self) -> int | None:
        """Number of the alternative that the model takes; None: it scored none."""
        known = [-math.inf if math.isnan(score) else score for score in self.scores]
        return None if max(known) == -math.inf else known.index(max(known))

    @property
    def right(self) -> bool:
        """Whether that is the one that fits."""
        return self.choice == self.label

    def as_json(self) -> dict[str, Any]:
        """Returns the record of a line of a file; scores that are no numbers are null."""
        scores = [score if math.isfinite(score) else None for score in self.scores]
        return dataclasses.asdict(self) | {"scores": scores}


def of_case(
    similarities: Shaped[np.ndarray, "A A"], texts: Sequence[str], *, subset: str, case: str
) -> list[Scored]:
    """Returns both directions of a case whose texts and images go together in order.

    Args:
      similarities: of each image (row) with each text (column).
      texts: of the case.
      subset: which attribute differs.
      case: its name; an image is called by it and its number.
    """
    table: Float[np.ndarray, "A A"] = np.asarray(similarities, np.float64)
    common = {"subset": subset, "case": case}
    found = []
    for label, (text, row, column) in enumerate(zip(texts, table, table.T, strict=True)):
        image, both = f"{case}/{label}", {"label": label} | common
        found.append(_scored("image_to_text", image, row, **both))
        found.append(_scored("text_to_image", text, column, **both))
    return found


def _scored(direction: Direction, query: str, scores: np.ndarray, **common) -> Scored:
    return Scored(direction=direction, query=query, scores=tuple(scores.tolist()), **common)


class _Line(schemas.Record, frozen=True):
    """A line of a file of scores."""

    subset: schemas.Text
    direction: Direction
    case: schemas.Text
    query: schemas.Text
    label: Annotated[int, Meta(ge=0)]
    scores: Annotated[tuple[schemas.Finite | None, ...], Meta(min_length=2, max_length=MOST)]


def parse(line: str, *, where: str) -> Scored:
    """Returns the choice in a line of a file of scores.

    Raises:
      ValueError: it is none.
    """
    advice = "give the scores.jsonl that an evaluation wrote"
    value = files.parse_json(line, where=where, advice=advice)
    told = schemas.check(value, _Line, where=where, advice=advice)
    if told.label >= len(told.scores):
        raise ValueError(
            f"{where}: expected a label below {len(told.scores)}, got {told.label}; do: {advice}"
        )
    scores = tuple(math.nan if score is None else score for score in told.scores)
    return Scored(
        subset=told.subset,
        direction=told.direction,
        case=told.case,
        query=told.query,
        label=told.label,
        scores=scores,
    )
