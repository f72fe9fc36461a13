"""Writes answers as LabelMe's files: a JSON a picture, which it names where it lies.

An outline is a polygon, or polygons of one group, where these fill the mask to the pixel; one with
holes is LabelMe's mask.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seg_jax.data.exports.answers import Answer, Files, Picture
from seg_jax.geometry import contour

_VERSION = "5.5.0"


def of_picture(picture: Picture, folder: Path) -> Files:
    """Yields the file of a picture.

    Args:
      picture: with its answers.
      folder: where the export lies: the file leads from there to the picture.
    """
    name = f"{picture.name}.json"

    def text() -> bytes:
        shapes = [
            shape
            for place, one in enumerate(picture.answers)
            for shape in _shapes(one, group=place + 1)
        ]
        height, width = picture.size
        value = {
            "version": _VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": way_to(picture, (folder / name).parent),
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        return (json.dumps(value, indent=1) + "\n").encode()

    yield name, text


def way_to(picture: Picture, folder: Path) -> str:
    """Returns the relative path from a folder of an export to a picture."""
    return Path(os.path.relpath(picture.path.absolute(), folder.absolute())).as_posix()


def _shapes(answer: Answer, *, group: int) -> Iterator[dict[str, Any]]:
    about = {"label": answer.label, "flags": {}, "description": "", "mask": None}
    if answer.is_mask:
        rings = answer.polygons_that_fill()
        if rings is None:
            yield about | {"group_id": None, "shape_type": "mask"} | _mask(answer.mask)
            return
        for ring in rings:
            points = np.reshape(ring, (-1, 2)).tolist()
            number = group if len(rings) > 1 else None
            yield about | {"group_id": number, "shape_type": "polygon", "points": points}
    elif answer.kind in ("box", "point") and answer.rings_px:
        kind = "rectangle" if answer.kind == "box" else "point"
        points = answer.rings_px[0].tolist()
        yield about | {"group_id": None, "shape_type": kind, "points": points}


def _mask(mask: np.ndarray) -> dict[str, Any]:
    """Returns a mask as LabelMe has it: a PNG of the box between two pixels, both included."""
    x0, y0, x1, y1 = contour.box_px(mask).tolist()
    buffer = io.BytesIO()
    Image.fromarray(mask[y0:y1, x0:x1]).save(buffer, "PNG")
    png = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"points": [[x0, y0], [x1 - 1, y1 - 1]], "mask": png}
