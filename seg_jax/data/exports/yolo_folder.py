"""Writes answers as a folder of YOLO's segmentation: data.yaml, images, outlines in labels.

A line holds one ring: parts and holes are joined by bridges that fill nothing. Vertices lie on the
fifths of a pixel to which the COCO API rounds them anyway, so that `seg-jax build yolo`, and any
other reader that fills as that API does, has the same masks to the pixel.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from seg_jax.data.exports import stored_pictures
from seg_jax.data.exports.answers import Category, Files, Picture
from seg_jax.geometry import keyholes
from seg_jax.records import Ring

_FIFTHS, _DECIMALS = 5, 8


def of_picture(picture: Picture) -> Files:
    """Yields the picture and its labels, a line a mask."""
    yield from stored_pictures.of_picture(picture, "images/predicted")
    yield f"labels/predicted/{picture.name}.txt", lambda: _labels(picture).encode()


def of_all(categories: Sequence[Category]) -> Files:
    """Yields data.yaml; both splits that YOLO asks for are of all pictures."""

    def text() -> bytes:
        names = "".join(
            f"  {number}: {json.dumps(one.name, ensure_ascii=False)}\n"
            for number, one in enumerate(categories)
        )
        split = "images/predicted"
        return f"train: {split}\nval: {split}\nnames:\n{names}".encode()

    yield "data.yaml", text


def _labels(picture: Picture) -> str:
    size = np.array(picture.size[::-1], np.float64)
    lines = []
    for one in picture.answers:
        if one.is_mask:
            ring = on_fifths(keyholes.join_rings(one.rings_px)) / size
            numbers = [f"{x:.{_DECIMALS}f}".rstrip("0").rstrip(".") for x in ring.ravel()]
            lines.append(" ".join([str(one.category), *numbers]) + "\n")
    return "".join(lines)


def on_fifths(ring_px: Ring) -> Ring:
    """Returns vertices on the grid of the COCO API, in the middle of what it rounds to each."""
    return np.trunc(_FIFTHS * ring_px + 0.5) / _FIFTHS
