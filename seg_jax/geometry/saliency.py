"""Measures of foreground masks against true ones: structure (S), enhanced alignment (E), error.

They work on packed masks, by counting bits, under jit and for any leading axes; those of grey maps,
on the host, are in `evaluation/foreground/measures.py`, and give the same numbers for maps of 0 and
255. Counts are exact; what is worked out of them is float32, within 1e-5.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float32, Int, Int32, UInt32

from seg_jax.geometry import bitmask
from seg_jax.records import Array

_EPSILON = np.float32(np.spacing(1))
"""What the published code adds to denominators."""


class _Counts(NamedTuple):
    """Pixels of the answer, of the truth, of both and of all, of images or of parts of them."""

    answer: Int32[Array, "*n"]
    truth: Int32[Array, "*n"]
    both: Int32[Array, "*n"]
    every: Int32[Array, "*n"]


def structure(
    words: UInt32[Array, "*n K W"],
    truth: UInt32[Array, "*m K W"],
    size: Int[Array, "*s 2"],
    *,
    alpha: float = 0.5,
    released: bool = False,
) -> Float32[Array, "*n"]:
    """Returns the structure measure S of masks, in 0..1.

    The share `alpha` of it compares the answer within the true object and beyond it, the rest the
    four rectangles into which the truth's rounded centroid cuts the image. Of an empty truth it is
    the share of the image that the answer leaves free, of a full one the share that it covers.

    Args:
      words: packed masks that answer.
      truth: packed true masks; leading axes broadcast against those of the answers.
      size: height and width of each image in pixels, broadcast alike; pixels beyond are dropped.
      alpha: share of the object's part, 0..1.
      released: whether it is 1 - the answer's share of the image instead, which the reward of
        Seg-R1 as released works out in the place of S.

    Raises:
      ValueError: the words are not packed masks of one canvas.

    Source: Fan et al. 2017, "Structure-measure", equations 1 to 9; the constants of its code.
    Differs: a rectangle without pixels, where the centroid lies in the last row or column, counts
      0; published code divides zero by zero there. A rectangle in which answer and truth are
      constant counts 1, also where rounding lets published code say 0.
    """
    bitmask.check(words, truth)
    frame = bitmask.frame(size, height=bitmask.WORD * words.shape[-2], width=words.shape[-1])
    words, truth = words & frame, truth & frame
    whole = _image_counts(words, truth, size)
    covered = _quotient(whole.answer, whole.every)
    if released:
        return 1 - covered
    objects, regions = _object_score(whole), _region_score(words, truth, size)
    score = jnp.maximum(alpha * objects + (1 - alpha) * regions, 0)
    full = whole.truth == whole.every
    return jnp.where(whole.truth == 0, 1 - covered, jnp.where(full, covered, score))


def enhanced(
    words: UInt32[Array, "*n K W"],
    truth: UInt32[Array, "*m K W"],
    size: Int[Array, "*s 2"],
) -> Float32[Array, "*n"]:
    """Returns the enhanced-alignment measure E of masks, from 0 to N / (N - 1) for N pixels.

    The E of papers is a mean over 256 thresholds of a grey map, the lowest of which covers all of
    the image: of a mask it is 255 / 256 of this and 1 / 256 of the E of a full mask.

    Args:
      words: as in `structure`.
      truth: as in `structure`.
      size: as in `structure`.

    Raises:
      ValueError: the words are not packed masks of one canvas.

    Source: Fan et al. 2018, "Enhanced-alignment Measure", equations 2 to 5, in closed form of the
      four counts.
    """
    bitmask.check(words, truth)
    frame = bitmask.frame(size, height=bitmask.WORD * words.shape[-2], width=words.shape[-1])
    whole = _image_counts(words & frame, truth & frame, size)
    answer, true, both, every = whole
    # Values less their means, on and off each mask: a count over all, so that nothing cancels.
    on, off = _quotient(every - answer, every), -_quotient(answer, every)
    true_on, true_off = _quotient(every - true, every), -_quotient(true, every)
    parts = (
        (both, on, true_on),
        (answer - both, on, true_off),
        (true - both, off, true_on),
        (every - answer - true + both, off, true_off),
    )
    total = sum(_aligned(mine, theirs) * count for count, mine, theirs in parts)
    total = jnp.where(true == 0, every - answer, jnp.where(true == every, answer, total))
    return total / ((every - 1).astype(jnp.float32) + _EPSILON)


def absolute_error(
    words: UInt32[Array, "*n K W"],
    truth: UInt32[Array, "*m K W"],
    size: Int[Array, "*s 2"],
) -> Float32[Array, "*n"]:
    """Returns the share of pixels in which masks differ from the true ones (MAE), in 0..1.

    Args:
      words: as in `structure`.
      truth: as in `structure`.
      size: as in `structure`.

    Raises:
      ValueError: the words are not packed masks of one canvas.
    """
    bitmask.check(words, truth)
    frame = bitmask.frame(size, height=bitmask.WORD * words.shape[-2], width=words.shape[-1])
    return _quotient(bitmask.area((words ^ truth) & frame), _pixels(size))


def _pixels(size: Int[Array, "*s 2"]) -> Int32[Array, "*s"]:
    return jnp.prod(jnp.asarray(size, jnp.int32), -1)


def _image_counts(words: Array, truth: Array, size: Array) -> _Counts:
    """Returns the counts of whole images."""
    area = bitmask.area
    return _Counts(area(words), area(truth), area(words & truth), _pixels(size))


def _quotient(above: Array, below: Array) -> Array:
    """Returns a quotient of counts, 0 where there are none."""
    return above.astype(jnp.float32) / jnp.maximum(below, 1).astype(jnp.float32)


def _aligned(mine: Array, theirs: Array) -> Array:
    """Returns how well two values less their means agree, in 0..1."""
    alignment = 2 * mine * theirs / (mine**2 + theirs**2 + _EPSILON)
    return (alignment + 1) ** 2 / 4


def _object_score(whole: _Counts) -> Array:
    """Returns the object's part of S: the answer on the object, and off it what it leaves free."""
    answer, true, both, every = whole
    free, beyond = every - answer - true + both, every - true
    on, off = _likeness(both, true), _likeness(free, beyond)
    share, rest = _quotient(true, every), _quotient(beyond, every)
    return share * on + rest * off


def _likeness(right: Array, of: Array) -> Array:
    """Returns 2 m / (m^2 + 1 + s) of the mean m and deviation s of `right` ones among `of`."""
    mean, rest = _quotient(right, of), _quotient(of - right, of)
    spread = jnp.where(of > 1, mean * rest * _quotient(of, of - 1), 0)
    return 2 * mean / (mean**2 + 1 + jnp.sqrt(spread))


def _region_score(words: Array, truth: Array, size: Array) -> Array:
    """Returns the regions' part of S: four rectangles by their share of the image."""
    row, column = _cut_place(truth)
    height, width = jnp.asarray(size, jnp.int32)[..., 0], jnp.asarray(size, jnp.int32)[..., 1]
    top = bitmask.frame(
        jnp.stack([row, jnp.full_like(row, words.shape[-1])], -1),
        height=bitmask.WORD * words.shape[-2],
        width=words.shape[-1],
    )
    left = jnp.arange(words.shape[-1]) < column[..., None]
    answer, true, both = (_corners(one, top, left) for one in (words, truth, words & truth))
    sides = ((row, height - row), (column, width - column))
    score = jnp.float32(0)
    for place in range(4):
        every = sides[0][place // 2] * sides[1][place % 2]
        part = _Counts(answer[place], true[place], both[place], every)
        score = score + _quotient(every, height * width) * _similarity(part)
    return score


def _corners(words: Array, top: Array, left: Array) -> tuple[Array, Array, Array, Array]:
    """Returns the pixels of masks at the top left, top right, bottom left and bottom right."""
    counts = lax.population_count(words).sum(-2, dtype=jnp.uint32).astype(jnp.int32)
    above = lax.population_count(words & top).sum(-2, dtype=jnp.uint32).astype(jnp.int32)
    below = counts - above
    return (
        jnp.where(left, above, 0).sum(-1),
        jnp.where(left, 0, above).sum(-1),
        jnp.where(left, below, 0).sum(-1),
        jnp.where(left, 0, below).sum(-1),
    )


def _similarity(part: _Counts) -> Array:
    """Returns the similarity of a rectangle: 4 x y s_xy / ((x^2 + y^2) (s_x + s_y)).

    A mask and what it leaves free vary together, so the smaller of both is counted: the covariance
    of two large masks would be a small difference of large numbers.
    """
    answer, true, both, every = part
    mostly, true_mostly = 2 * answer > every, 2 * true > every
    few, true_few = (
        jnp.where(most, every - one, one) for most, one in ((mostly, answer), (true_mostly, true))
    )
    shared = jnp.where(
        mostly,
        jnp.where(true_mostly, every - answer - true + both, true - both),
        jnp.where(true_mostly, answer - both, both),
    )
    # All three times n - 1, which cancels.
    covariance = shared.astype(jnp.float32) - _quotient(true_few, every) * few
    covariance = jnp.where(mostly == true_mostly, covariance, -covariance)
    variance = _quotient(every - few, every) * few
    true_variance = _quotient(every - true_few, every) * true_few
    mean, true_mean = _quotient(answer, every), _quotient(true, every)
    below = (mean**2 + true_mean**2) * (variance + true_variance)
    score = 4 * mean * true_mean * covariance / jnp.where(below > 0, below, 1)
    constant = (few == 0) & (true_few == 0) & (every > 0)
    return jnp.where(constant, 1, jnp.where(below > 0, score, 0))


def _cut_place(truth: Array) -> tuple[Array, Array]:
    """Returns the row and column after the rounded centroid of masks: where they are cut."""
    counts = lax.population_count(truth)
    total = counts.sum((-1, -2), dtype=jnp.uint32)
    columns = counts.sum(-2, dtype=jnp.uint32)
    high, low = jnp.divmod(jnp.arange(truth.shape[-1], dtype=jnp.uint32), 64)
    column = _rounded_mean((columns * high).sum(-1), (columns * low).sum(-1), 64, total)
    word = jnp.arange(truth.shape[-2], dtype=jnp.uint32)
    within = jnp.uint32(0)
    for bit, rows in enumerate(bitmask.ROWS_OF_BITS):
        with_bit = lax.population_count(truth & rows).sum((-1, -2), dtype=jnp.uint32)
        within = within + (with_bit << bit)
    row = _rounded_mean((counts.sum(-1, dtype=jnp.uint32) * word).sum(-1), within, 32, total)
    return row + 1, column + 1


def _rounded_mean(high: Array, low: Array, unit: int, count: Array) -> Array:
    """Returns (high * unit + low) / count rounded, halves to even; exact up to 4096 x 4096."""
    count = jnp.maximum(count, 1)
    whole, rest = jnp.divmod(high, count)
    more, rest = jnp.divmod(rest * unit + low, count)
    mean = whole * unit + more
    up = (2 * rest > count) | ((2 * rest == count) & (mean % 2 == 1))
    return (mean + up).astype(jnp.int32)
