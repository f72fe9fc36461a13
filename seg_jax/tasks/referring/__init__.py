"""Referring segmentation, the task of SimpleSeg: questions, true answers, scores and metrics."""

from seg_jax.tasks.referring import several
from seg_jax.tasks.referring.mixture import Mixture
from seg_jax.tasks.referring.outlines import (
    OutlineStyle,
    box_unit,
    central_point_unit,
    interior_point_unit,
    outline_text,
    rings_unit,
)
from seg_jax.tasks.referring.reading import DrawnAnswer, RegionPrediction, draw
from seg_jax.tasks.referring.referring import Referring, RegionExample
from seg_jax.tasks.referring.scores import Truth

__all__ = [
    "DrawnAnswer",
    "Mixture",
    "OutlineStyle",
    "Referring",
    "RegionExample",
    "RegionPrediction",
    "Truth",
    "box_unit",
    "central_point_unit",
    "draw",
    "interior_point_unit",
    "outline_text",
    "rings_unit",
    "several",
]
