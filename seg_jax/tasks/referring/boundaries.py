"""Scores the boundaries of outlined regions on the host, at the images' own resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np
from jaxtyping import Bool, Float

from seg_jax.geometry import overlap
from seg_jax.records import Kind
from seg_jax.tasks import masks as packed_masks
from seg_jax.tasks.referring import reading

_AT_ONCE = 64
"""Pairs of masks that are packed together."""


def ious(
    texts: Sequence[str],
    truths: Sequence[Bool[np.ndarray, "_ _"]],
    *,
    rule: Literal["coco", "center"],
) -> Float[np.ndarray, " n"]:
    """Returns the Boundary IoU of each outline that was answered with the true region, in 0..1.

    A boundary is what of a region lies within 2 % of the image's diagonal of its border; a thick
    region of a good IoU may have a poor one. Where nothing is meant it is 1 for an answer that says
    so, else 0. All rings of an answer count.

    Args:
      texts: of the answers.
      truths: the true regions, each of its image's size.
      rule: how an outline is filled.

    Source: Cheng et al. 2021, "Boundary IoU", equation 4, with its published dilation ratio.
    """
    height, width = np.max([truth.shape for truth in truths], 0)
    canvas = (-(-int(height) // 32) * 32, int(width))
    score = jax.jit(overlap.boundary_iou)
    found = np.empty(len(texts))
    for begin in range(0, len(texts), _AT_ONCE):
        # The last pair stands for those that are missing: one shape, one program.
        rows = [min(begin + row, len(texts) - 1) for row in range(_AT_ONCE)]
        drawn = [reading.draw(texts[r], Kind.MASK, truths[r].shape, rule=rule) for r in rows]
        answered = np.stack([packed_masks.pack(answer.mask, canvas) for answer in drawn])
        true = np.stack([packed_masks.pack(truths[row], canvas) for row in rows])
        sizes = np.array([truths[row].shape for row in rows], np.int32)
        some = np.asarray(score(answered, true, sizes), np.float64)
        absent = np.array([not truths[row].any() for row in rows])
        denied = np.array([answer.says_nothing for answer in drawn])
        found[rows] = np.where(absent, denied, some)
    return found
