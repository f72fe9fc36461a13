"""Scores answers to referring against the truth, on the device."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Float, Int, UInt32

from seg_jax.geometry import bitmask, overlap, raster, snapping
from seg_jax.grammar import reader
from seg_jax.records import Array, Kind, Polygons, Verdict
from seg_jax.tasks.task import Judgement


class Truth(NamedTuple):
    """What an answer is judged by (device)."""

    words: UInt32[Array, "*n K W"]
    """The true mask, packed: bit j of word k is row 32 k + j; empty where nothing is meant."""
    size: Int[Array, "*n 2"]
    """Height and width of the image in pixels, at most 32 K and W."""
    kind: Int[Array, "*n"]
    """The `Kind` of answer that was asked for."""


def judge(
    answer: Polygons,
    verdict: Int[Array, "*n"],
    truth: Truth,
    *,
    rule: Literal["coco", "center"],
) -> Judgement:
    """Returns `iou`, `distance` and `format` of each answer by its kind.

    iou: mask IoU; IoU of the boxes; 1 for a point inside the region. distance: 1 minus half
    the squared distance of the centroids (of a point: to the true centroid), 0 without an
    answer. format: 1 if the whole answer follows the grammar.

    Where the true mask is empty iou and distance are 1 for an answer that says that there is
    nothing, and 0 for any other; where it is not, they are 0 for such an answer.

    Measures: pixels of `intersection` and `union` of mask answers, 0 for others; `centroid_error`,
    the distance of the centroids in units of the image's sides, nan without an answer.

    Args:
      answer: what was read, multiples of 10**-6.
      verdict: of the reader.
      truth: one for each answer.
      rule: how an outline is filled.

    Source: SimpleSeg's rewards (mask IoU, centroid MSE, format); the exact distance formula
    is unpublished, this is its bounded form.
    """
    height = truth.words.shape[-2] * 32
    width = truth.words.shape[-1]
    points_px = raster.to_pixels(answer.points_unit, truth.size)
    drawn = answer.used & (truth.kind == Kind.MASK)[..., None, None]
    outline = snapping.from_decimals(answer.points_unit, truth.size, rule)
    words = raster.fill(outline, drawn, height=height, width=width, rule=rule, rings="evenodd")
    intersection, union = overlap.counts(words, truth.words)
    by_kind = [
        _point_score(answer.points_unit, truth),
        _box_score(points_px, truth),
        jnp.where(union > 0, intersection / jnp.maximum(union, 1), 0.0),
    ]
    target, nothing = bitmask.area(truth.words) > 0, reader.says_nothing(answer, verdict)
    usable, denied = (verdict < Verdict.EMPTY) & target & ~nothing, nothing & ~target
    iou = jnp.where(usable, jnp.select([truth.kind == k for k in Kind], by_kind), denied)
    centre, has_centre = _centre_px(points_px, words, truth)
    scale = truth.size[..., ::-1].astype(jnp.float32)
    offset = (centre - bitmask.centroid_px(truth.words)) / scale
    squared = jnp.sum(jnp.square(offset), -1)
    placed = has_centre & usable
    is_mask = truth.kind == Kind.MASK
    return Judgement(
        scores={
            "iou": iou.astype(jnp.float32),
            "distance": jnp.where(placed, 1.0 - jnp.minimum(squared, 2.0) / 2.0, denied),
            "format": (verdict == Verdict.OK).astype(jnp.float32),
        },
        measures={
            "intersection": jnp.where(is_mask, intersection, 0),
            "union": jnp.where(is_mask, union, 0),
            "centroid_error": jnp.where(placed, jnp.sqrt(squared), jnp.nan),
        },
        verdict=verdict,
    )


def _point_score(points_unit: Float[Array, "*n R P 2"], truth: Truth) -> Float[Array, "*n"]:
    pixel = snapping.pixels_of_decimals(points_unit[..., :1, :1, :], truth.size)[..., 0, 0, :]
    column = jnp.minimum(pixel[..., 0], truth.size[..., 1] - 1)
    row = jnp.minimum(pixel[..., 1], truth.size[..., 0] - 1)
    at_row = jnp.take_along_axis(truth.words, (row // 32)[..., None, None], -2)[..., 0, :]
    word = jnp.take_along_axis(at_row, column[..., None], -1)[..., 0]
    return ((word >> (row % 32).astype(word.dtype)) & 1).astype(jnp.float32)


def _box_score(points_px: Float[Array, "*n R P 2"], truth: Truth) -> Float[Array, "*n"]:
    corners = points_px[..., 0, :2, :]
    box = jnp.concatenate([corners.min(-2), corners.max(-2)], -1)
    return overlap.box_iou(box, bitmask.box(truth.words).astype(jnp.float32))


def _centre_px(points_px, words, truth):
    """Returns the centre of each answer in pixels and whether it has one."""
    corners = points_px[..., 0, :2, :]
    by_kind = [corners[..., 0, :], corners.mean(-2), bitmask.centroid_px(words)]
    kind = truth.kind[..., None]
    centre = jnp.select([kind == k for k in Kind], by_kind)
    return centre, (truth.kind != Kind.MASK) | (bitmask.area(words) > 0)
