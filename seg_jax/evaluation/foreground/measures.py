"""Measures of a grey map against a true mask, as papers on salient objects report them (host).

MAE, S, E and F come from one histogram of greys by true pixels and quarters of the image, whose
sums are exact; only weighted F goes over the pixels. All equal PySODMetrics within 1e-9.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Real, UInt8

LEVELS = 256
"""Thresholds of a map of 8 bits; the first one of a curve is the highest."""
F_BETA2 = 0.3
"""Weight of precision in F, of Achanta et al. 2009; that of weighted F is 1."""
_EPSILON = np.spacing(1)


class Measures(NamedTuple):
    """Numbers of one map; sets are summed up by means over images."""

    absolute_error: float
    """Mean of |map - truth| (MAE), in 0..1."""
    structure: float
    """S-measure, alpha 0.5, in 0..1."""
    weighted_f: float
    """Weighted F, beta 1, in 0..1."""
    f_adaptive: float
    """F at twice the map's mean."""
    e_adaptive: float
    """E at twice the map's mean."""
    f_curve: Float[np.ndarray, " 256"]
    """F at each threshold, from 255 down to 0; its mean is mean F. The max F of a set is the
    highest point of the mean of all its curves."""
    e_curve: Float[np.ndarray, " 256"]
    """E at each threshold, alike."""


def measure(
    grey: UInt8[np.ndarray, "H W"], truth: Bool[np.ndarray, "H W"], *, released: bool = False
) -> Measures:
    """Returns all measures of a map.

    The map is stretched to 0..1 unless it is constant, as all published code does.

    Args:
      grey: the map, 0 background to 255 foreground.
      truth: the true mask.
      released: whether S is 0 where a quarter of the image has no pixels, as Seg-R1's evaluator has
        it; here the quarter alone counts 0.

    Source: Perazzi et al. 2012 (MAE), Fan et al. 2017 (S), Fan et al. 2018 (E), Achanta et al. 2009
      (F), Margolin et al. 2014 (weighted F).
    Differs: PySODMetrics gives NaN for S where the truth's centroid lies in the last row or column,
      and 0 instead of 1 to a quarter in which truth and map are constant if numpy's mean of the map
      there is off by rounding.
    """
    scale = _scale(grey)
    row, column = _cut_place(truth)
    counts = _histogram(grey, truth, row, column)
    whole = counts.sum(0)
    threshold = min(2 * float(scale[grey].mean()), 1.0)
    over = whole[:, scale >= threshold].sum(1)
    # Thresholds cut the stretched map as it would be stored in 8 bits.
    stored = (scale * 255).astype(np.uint8)
    by_level = np.stack([np.bincount(stored, weights=one, minlength=LEVELS) for one in whole])
    curves = by_level[:, ::-1].cumsum(1)
    areas = whole.sum(1)
    return Measures(
        absolute_error=float((whole[0] @ scale + whole[1] @ (1 - scale)) / grey.size),
        structure=_structure(counts, scale, released=released),
        weighted_f=_weighted_f(scale[grey], truth),
        f_adaptive=float(_f(over, areas)),
        e_adaptive=float(_e(over, areas)),
        f_curve=_f(curves, areas),
        e_curve=_e(curves, areas),
    )


def _scale(grey: UInt8[np.ndarray, "H W"]) -> Float[np.ndarray, " 256"]:
    """Returns the value in 0..1 that each grey stands for."""
    scale = np.arange(LEVELS) / 255
    low, high = scale[int(grey.min())], scale[int(grey.max())]
    return scale if low == high else ((scale - low) / (high - low)).clip(0, 1)


def _cut_place(truth: Bool[np.ndarray, "H W"]) -> tuple[int, int]:
    """Returns the row and column after the truth's rounded centroid; any of an empty one."""
    rows, columns = truth.sum(1), truth.sum(0)
    count = max(int(rows.sum()), 1)
    means = (one @ np.arange(len(one)) / count for one in (rows, columns))
    row, column = (int(np.round(mean)) + 1 for mean in means)
    return row, column


def _histogram(
    grey: UInt8[np.ndarray, "H W"], truth: Bool[np.ndarray, "H W"], row: int, column: int
) -> Int[np.ndarray, "4 off_on 256"]:
    """Returns how often each grey stands in each quarter of the image, off and on the truth."""
    places = grey + np.uint16(LEVELS) * truth
    corners = (
        places[:row, :column],
        places[:row, column:],
        places[row:, :column],
        places[row:, column:],
    )
    counts = [np.bincount(one.ravel(), minlength=2 * LEVELS) for one in corners]
    return np.stack(counts).reshape(4, 2, LEVELS)


def _f(over: Real[np.ndarray, "off_on ..."], areas: Int[np.ndarray, " off_on"]) -> np.ndarray:
    """Returns F of the pixels over a threshold, off and on the truth; 0 where none is on it."""
    right, found = over[1], over.sum(0)
    precision = right / np.maximum(found, 1)
    recall = right / max(areas[1], 1)
    below = F_BETA2 * precision + recall
    return (1 + F_BETA2) * precision * recall / np.where(right == 0, 1, below)


def _e(over: Real[np.ndarray, "off_on ..."], areas: Int[np.ndarray, " off_on"]) -> np.ndarray:
    """Returns E of the pixels over a threshold, off and on the truth."""
    every = areas.sum()
    found = over.sum(0)
    if not areas[1]:
        return (every - found) / (every - 1 + _EPSILON)
    if areas[1] == every:
        return found / (every - 1 + _EPSILON)
    means = found / every, areas[1] / every
    total = 0.0
    for is_found in (False, True):
        for is_true in (False, True):
            mine, theirs = is_found - means[0], is_true - means[1]
            count = over[int(is_true)] if is_found else areas[int(is_true)] - over[int(is_true)]
            alignment = 2 * mine * theirs / (mine**2 + theirs**2 + _EPSILON)
            total = total + (alignment + 1) ** 2 / 4 * count
    return np.asarray(total / (every - 1 + _EPSILON))


def _structure(
    counts: Int[np.ndarray, "4 off_on 256"], scale: Float[np.ndarray, " 256"], *, released: bool
) -> float:
    """Returns the structure measure."""
    whole = counts.sum(0)
    areas = whole.sum(1)
    share = areas[1] / areas.sum()
    mean = float(whole.sum(0) @ scale / areas.sum())
    if not areas[1]:
        return 1 - mean
    if not areas[0]:
        return mean
    if released and not counts.sum((1, 2)).all():
        return 0.0
    objects = share * _likeness(whole[1], scale) + (1 - share) * _likeness(whole[0], 1 - scale)
    regions = sum(one.sum() / areas.sum() * _similarity(one, scale) for one in counts)
    return max(0.0, float(objects + regions) / 2)


def _likeness(count: Int[np.ndarray, " 256"], value: Float[np.ndarray, " 256"]) -> float:
    """Returns 2 m / (m^2 + 1 + s) of the mean m and deviation s of values."""
    total = count.sum()
    mean = count @ value / total
    spread = np.sqrt(count @ (value - mean) ** 2 / (total - 1)) if total > 1 else 0.0
    return 2 * mean / (mean**2 + 1 + spread + _EPSILON)


def _similarity(count: Int[np.ndarray, "off_on 256"], value: Float[np.ndarray, " 256"]) -> float:
    """Returns the similarity of map and truth in a quarter; 1 where both are constant."""
    every, true = count.sum(), count[1].sum()
    greys = count.sum(0)
    if not every:
        return 0.0
    constant = np.count_nonzero(greys) == 1
    if constant and true in (0, every):
        return 1.0
    mean, true_mean = greys @ value / every, true / every
    if constant or true in (0, every) or not mean:
        return 0.0
    parts = greys @ (value - mean) ** 2, true * (1 - true_mean)
    together = (1 - true_mean) * (count[1] @ (value - mean)) - true_mean * (
        count[0] @ (value - mean)
    )
    less = every - 1 + _EPSILON
    below = (mean**2 + true_mean**2) * (sum(parts) / less)
    return 4 * mean * true_mean * together / less / (below + _EPSILON)


_REACH = 3
"""The smoothing of weighted F reaches so many pixels: 7 x 7."""
_BELL = np.exp(-(np.arange(-_REACH, _REACH + 1) ** 2) / (2 * 5.0**2))


def _weighted_f(map_unit: Float[np.ndarray, "H W"], truth: Bool[np.ndarray, "H W"]) -> float:
    """Returns weighted F; 0 of an empty truth."""
    from scipy import ndimage

    if not truth.any():
        return 0.0
    # Where the map is right off the truth nothing counts: what lies beyond is cut off.
    window = _window((map_unit > 0) | truth)
    map_unit, truth = map_unit[window], truth[window]
    error = np.abs(map_unit - truth)
    transform: Any = ndimage.distance_transform_edt(~truth, return_indices=True)
    distance, nearest = transform
    spread = np.where(truth, error, error[nearest[0], nearest[1]])
    bell = _BELL / _BELL.sum()
    for axis in range(2):
        spread = ndimage.correlate1d(spread, bell, axis, mode="constant")
    on = np.minimum(spread, error)[truth]
    off = ((2 - 0.5 ** (distance / 5)) * error)[~truth].sum()
    right = truth.sum() - on.sum()
    recall, precision = 1 - on.mean(), right / (right + off + _EPSILON)
    return float(2 * recall * precision / (recall + precision + _EPSILON))


def _window(pixels: Bool[np.ndarray, "H W"]) -> tuple[slice, slice]:
    """Returns the rows and columns with pixels, and as many beside them as smoothing reaches."""
    sides = []
    for axis in (1, 0):
        where = np.flatnonzero(pixels.any(axis))
        sides.append(slice(max(0, int(where[0]) - _REACH), int(where[-1]) + 1 + _REACH))
    return sides[0], sides[1]
