"""Scores boxes and clicks by the masks that a model draws of them, on the device.

Axes here: `E` rows and columns of the frame.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Bool, Int, UInt8, UInt32

from seg_jax.geometry import overlap, saliency
from seg_jax.records import Array, Clicks, Verdict
from seg_jax.tasks.task import Judgement


class Truth(NamedTuple):
    """What an answer is judged by (device)."""

    words: UInt32[Array, "*n K E"]
    """The true mask in the frame, packed: bit j of word k is row 32 k + j."""
    view: UInt8[Array, "*n E E 3"]
    """The image, stretched to the frame: what a model draws on."""


def judge(
    answer: Clicks,
    verdict: Int[Array, "*n"],
    truth: Truth,
    *,
    masks: UInt32[Array, "*n K E"] | None,
    boxes: bool,
    thoughts: bool,
    released: bool,
) -> Judgement:
    """Returns `iou`, `structure` and `format` of each answer.

    iou and structure: of the mask that was drawn of the answer, 0 where a part of the answer is
    missing; nan where nobody draws. format: 1 if all parts are there and the whole answer follows
    the grammar.

    Measures: pixels of `intersection` and `union`, `drawn_structure` and `error`, the share of
    wrong pixels, of the mask as it was drawn, whatever is missing.

    Args:
      answer: what was read.
      verdict: of the reader.
      truth: one for each answer.
      masks: that a model drew of the answers; None: there is no such model.
      boxes: whether a box is a part of an answer.
      thoughts: whether a thought is.
      released: scores as the release does: in the place of S the share of the frame that is left
        free, and a format for whatever has all parts.

    Source: Seg-R1, arXiv 2506.22624, whose reward is 0.7 iou + 0.3 structure + format.
    """
    complete = _complete(answer, boxes=boxes, thoughts=thoughts)
    fits = complete if released else complete & (verdict == Verdict.OK)
    scores = {"format": fits.astype(jnp.float32)}
    if masks is None:
        unknown = jnp.full(complete.shape, jnp.nan, jnp.float32)
        return Judgement({"iou": unknown, "structure": unknown, **scores}, {}, verdict)
    edge = truth.words.shape[-1]
    size = jnp.array([edge, edge])
    shared, union = overlap.counts(masks, truth.words)
    iou = jnp.where(union > 0, shared / jnp.maximum(union, 1), 0.0)
    structure = saliency.structure(masks, truth.words, size, released=released)
    # Without its thought an answer is drawn and rewarded all the same.
    drawn = _complete(answer, boxes=boxes, thoughts=False)
    return Judgement(
        {
            "iou": jnp.where(drawn, iou, 0.0).astype(jnp.float32),
            "structure": jnp.where(drawn, jnp.clip(structure, 0.0, 1.0), 0.0),
            **scores,
        },
        {
            "intersection": shared,
            "union": union,
            "drawn_structure": structure,
            "error": saliency.absolute_error(masks, truth.words, size),
        },
        verdict,
    )


def _complete(answer: Clicks, *, boxes: bool, thoughts: bool) -> Bool[Array, "*n"]:
    """Returns which answers have clicks and, where these are parts too, a box and a thought."""
    there = jnp.any(answer.used, -1)
    if boxes:
        there &= jnp.any(answer.boxed, -1)
    return there & answer.thought if thoughts else there
