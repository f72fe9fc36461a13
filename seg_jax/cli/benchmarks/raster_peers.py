"""Masks and IoU of polygons as other libraries make them, each in the form that it likes best."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from seg_jax.cli.benchmarks.polygon_cases import Rings

_MODULES = {"cv2+numpy": "cv2"}
"""Modules of peers with another name."""

Score = Callable[[int], float]
"""Returns the IoU of a pair, by its number."""


class Pairs(NamedTuple):
    """Polygons to compare."""

    true: Rings
    answers: Rings
    height: int
    width: int


def find_module(peer: str) -> ModuleType | None:
    """Returns the module of a peer, or None if it is not installed."""
    with contextlib.suppress(ImportError):
        return importlib.import_module(_MODULES.get(peer, peer))
    return None


def _pycocotools(_, pairs: Pairs) -> Score:
    true, answers, height, width = pairs
    import numpy as np
    from pycocotools import mask

    flat = [[ring.astype(np.float64).ravel().tolist()] for ring in answers]
    truth = [
        mask.frPyObjects([ring.astype(np.float64).ravel().tolist()], height, width) for ring in true
    ]

    def score(i):
        values = np.asarray(mask.iou(mask.frPyObjects(flat[i], height, width), truth[i], [0]))
        return values[0, 0]

    return score


def _subpixels(rings):
    import numpy as np

    return [np.round(ring * 16).astype(np.int32)[None] for ring in rings]


def _painted(cv2, rings, size: tuple[int, int]):
    """Returns masks row by row in memory; those of pycocotools are not, and slow OpenCV down."""
    import numpy as np

    masks = np.zeros((len(rings), *size), np.uint8)
    for mask, ring in zip(masks, _subpixels(rings), strict=True):
        cv2.fillPoly(mask, ring, 1, 8, 4)
    return masks


def _opencv_numpy(cv2, pairs: Pairs) -> Score:
    true, answers, height, width = pairs
    import numpy as np

    cv2.setNumThreads(1)
    truth, rings = _painted(cv2, true, (height, width)).astype(bool), _subpixels(answers)

    def score(i):
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, rings[i], 1, 8, 4)
        mask = mask.astype(bool)
        union = np.logical_or(mask, truth[i]).sum()
        return np.logical_and(mask, truth[i]).sum() / max(union, 1)

    return score


def _opencv(cv2, pairs: Pairs) -> Score:
    true, answers, height, width = pairs
    import numpy as np

    cv2.setNumThreads(1)
    truth, rings = _painted(cv2, true, (height, width)), _subpixels(answers)
    areas = [cv2.countNonZero(mask) for mask in truth]
    mask, both = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)

    def score(i):
        mask[:] = 0
        cv2.fillPoly(mask, rings[i], 1, 8, 4)
        shared = cv2.countNonZero(cv2.bitwise_and(mask, truth[i], both))
        return shared / max(cv2.countNonZero(mask) + areas[i] - shared, 1)

    return score


def _scikit_image(_, pairs: Pairs) -> Score:
    true, answers, height, width = pairs
    import numpy as np
    from skimage.draw import polygon2mask

    rows = [ring[:, ::-1] - 0.5 for ring in answers]
    truth = [polygon2mask((height, width), ring[:, ::-1] - 0.5) for ring in true[: len(rows)]]

    def score(i):
        mask = polygon2mask((height, width), rows[i])
        union = np.logical_or(mask, truth[i]).sum()
        return np.logical_and(mask, truth[i]).sum() / max(union, 1)

    return score


def _shapely(shapely, pairs: Pairs) -> Score:
    true, answers = pairs.true, pairs.answers
    truth = [shapely.make_valid(shapely.Polygon(ring)) for ring in true]

    def score(i):
        shape = shapely.Polygon(answers[i])
        shape = shape if shape.is_valid else shapely.make_valid(shape)
        shared = shape.intersection(truth[i]).area
        return shared / max(shape.area + truth[i].area - shared, 1e-9)

    return score


PEERS: dict[str, Callable[[Any, Pairs], Score]] = {
    "pycocotools": _pycocotools,
    "cv2+numpy": _opencv_numpy,
    "cv2": _opencv,
    "skimage": _scikit_image,
    "shapely": _shapely,
}
