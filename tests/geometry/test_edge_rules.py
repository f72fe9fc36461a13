"""Rows at which edges toggle columns, against the double precision of pycocotools' own loop."""

from typing import NamedTuple

import jax
import numpy as np

from seg_jax.geometry.edge_rules import COCO

HEIGHT, WIDTH, LONGEST = 400, 400, 84


def edges():
    """Returns ends x0, y0, x1, y1 in fifths: most where ties occur that float64 may lose."""
    rng = np.random.default_rng(0)
    # More factors 2 in the longer axis, and a start near 0: a sum has no more bits than its parts.
    ties = np.meshgrid(np.arange(4, LONGEST, 4), np.arange(2, 40), np.arange(14), indexing="ij")
    major, minor, start = (axis.ravel() for axis in ties)
    others = rng.integers(0, LONGEST, (3, 3000)) * [[1], [1], [5]]
    major, minor, start = (
        np.concatenate(each) for each in zip((major, minor, start), others, strict=True)
    )
    minor, along = np.minimum(minor, major), rng.integers(0, 300, len(major))
    right = np.stack([along, start, along + major, start + minor])
    flat = np.concatenate([right, right[[0, 3, 2, 1]]], 1)
    every = np.concatenate([flat, flat[[1, 0, 3, 2]]], 1)
    turned = rng.random(every.shape[1]) < 0.5
    return np.where(turned, every[[2, 3, 0, 1]], every).astype(np.int32)


class Walk(NamedTuple):
    """Every step of edges along their longer axis."""

    u: np.ndarray
    v: np.ndarray
    on: np.ndarray
    """False beyond the end of the edge."""
    lossy: np.ndarray
    """Edges of which float64 rounds a step otherwise than integers do."""


def walked(x0, y0, x1, y1):
    """Returns the steps that rleFrPoly of the COCO API takes, in double precision as in C."""
    dx, dy = np.abs(x1 - x0), np.abs(y1 - y0)
    flat = dx >= dy
    flip = np.where(flat, x0 > x1, y0 > y1)
    xs, xe = np.where(flip, x1, x0), np.where(flip, x0, x1)
    ys, ye = np.where(flip, y1, y0), np.where(flip, y0, y1)
    major, rise, start = (
        np.maximum(dx, dy),
        np.where(flat, ye - ys, xe - xs),
        np.where(flat, ys, xs),
    )
    major = np.maximum(major, 1)
    step = np.arange(LONGEST + 5)
    rounded = start[:, None] + (rise / major)[:, None] * step + 0.5
    rounded = np.trunc(rounded).astype(int)
    exact = start[:, None] + (2 * rise[:, None] * step + major[:, None]) // (2 * major[:, None])
    on = step <= np.maximum(dx, dy)[:, None]
    straight = step + np.where(flat, xs, ys)[:, None]
    u, v = (np.where(flat[:, None], *pair) for pair in ((straight, rounded), (rounded, straight)))
    return Walk(u, v, on, (on & (rounded != exact)).any(1))


def toggles(walk):
    """Returns edge, column and row of all toggles of edges."""
    u, v = walk.u, walk.v
    moved = (u[:, 1:] != u[:, :-1]) & walk.on[:, 1:]
    column = (np.minimum(u[:, 1:], u[:, :-1]) + 0.5) / 5 - 0.5
    row = np.ceil(np.clip((np.minimum(v[:, 1:], v[:, :-1]) + 0.5) / 5 - 0.5, 0, HEIGHT))
    moved &= (np.floor(column) == column) & (column >= 0) & (column <= WIDTH - 1)
    edge, at = np.nonzero(moved)
    return edge, column[edge, at].astype(np.int32), row[edge, at].astype(np.int32)


def test_rows_are_those_of_double_precision_ties_included():
    every = edges()
    lossy = every[:, walked(*every).lossy]
    flat = np.abs(lossy[2] - lossy[0]) >= np.abs(lossy[3] - lossy[1])
    # To move an edge along its longer axis rounds nothing anew; it brings ties to other columns.
    along = np.where(flat, np.array([1, 0, 1, 0])[:, None], np.array([0, 1, 0, 1])[:, None])
    ends = np.concatenate([*(lossy + k * along for k in range(5)), every[:, ::9]], 1)
    ends = ends.astype(np.int32)
    edge, column, row = toggles(walked(*ends))
    made, line = (make(*ends, WIDTH) for make in (COCO.edges, COCO.line))
    np.testing.assert_array_equal(made.count, np.bincount(edge, minlength=ends.shape[1]))
    first, end = np.asarray(line.first), np.asarray(line.end)
    np.testing.assert_array_equal(end - first, made.count)
    np.testing.assert_array_equal(first[end > first], made.first[end > first])
    of_each, of_line = (jax.tree.map(lambda leaf: leaf[edge], one) for one in (made, line))
    np.testing.assert_array_equal(COCO.row(of_each, column, HEIGHT), row)
    sure = np.asarray(of_line.sure)
    np.testing.assert_array_equal(np.asarray(of_line.row(column, HEIGHT))[sure], row[sure])
    assert 0.1 < sure.mean() < 0.9
    # Without what float64 loses they would not be.
    exact = of_each._replace(tie=np.full(len(edge), -1, np.int32))
    assert (np.asarray(COCO.row(exact, column, HEIGHT)) != row).sum() > 25


def test_every_coordinate_has_its_first_column_and_row():
    steps = np.arange(-6000, 5 * 5296 + 1, dtype=np.int32)
    wanted = np.maximum(np.ceil(((steps + 0.5) / 5) - 0.5), 0)  # The centre of pixel n: 5 n + 2.
    np.testing.assert_array_equal(COCO.column(steps), wanted)
    np.testing.assert_array_equal(COCO.top(steps), wanted)
