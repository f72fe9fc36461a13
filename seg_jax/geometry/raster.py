"""Fills rings into packed masks, bit for bit the same on every device and for every precision."""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Float32, Int, Int32, Shaped, UInt32

from seg_jax.geometry import bitmask, cpu_fill, edge_rules, snapping
from seg_jax.geometry.batching import vmap_as_leading_axis
from seg_jax.geometry.cpu_fill import Shapes
from seg_jax.geometry.edge_rules import REACH_PX as REACH_PX  # Callers know it by `raster`.
from seg_jax.geometry.edge_rules import Rule
from seg_jax.geometry.snapping import Snapped
from seg_jax.kernels import fill as tiles
from seg_jax.records import Array

MAX_SIDE = 4096
"""Largest height and width of a canvas."""
_RULES = {"coco": edge_rules.COCO, "center": edge_rules.CENTER}
_UNROLLED = 8
"""Edges that are toggled in one pass over the words, where a pass costs memory traffic."""


def to_pixels(
    points_unit: Float[Array, "*n R P 2"], size: Int[Array, "*n 2"]
) -> Float32[Array, "*n R P 2"]:
    """Returns unit points in the pixels of their images: the float32 product, nothing else.

    Args:
      points_unit: x then y as fractions of width and height.
      size: height and width of each image in pixels.
    """
    scale = size[..., None, None, ::-1].astype(jnp.float32)
    product = points_unit.astype(jnp.float32) * scale
    # Without this a compiler may fuse the product into what follows, and skip its rounding.
    return lax.reduce_precision(product, exponent_bits=8, mantissa_bits=23)


def fill(
    points_px: Float[Array, "*n R P 2"] | Snapped,
    used: Bool[Array, "*n R P"],
    *,
    height: int,
    width: int,
    rule: Literal["coco", "center"] = "coco",
    rings: Literal["union", "evenodd"] = "union",
) -> UInt32[Array, "*n K {width}"]:
    """Returns the packed masks of filled rings: bit j of word k is row 32 k + j.

    Each ring alone is filled by the even-odd rule. Vertices that are not finite count as unused; a
    ring with fewer than three used vertices is empty. Pixels off the canvas are dropped, so the
    mask of a smaller canvas is the corner of that of a larger one; bits below the last row are 0.

    Args:
      points_px: ring vertices, x then y; (0, 0) is the outer corner of the first pixel. Exact
        within `REACH_PX`; vertices beyond are pulled to it. float32 anywhere; float64 as numpy
        arrays outside of jit and vmap, which would make it float32 in silence (with
        `jax_enable_x64` anywhere); for float64 and decimals inside, what `snapping` gives for
        this rule.
      used: False for padding; used vertices come first, or fills take a little longer.
      height: rows of the canvas, 1 to `MAX_SIDE`.
      width: columns of the canvas, 1 to `MAX_SIDE`.
      rule: "coco" gives the masks of pycocotools (`frPyObjects`, as built for x86-64; builds that
        contract multiply-adds, such as for arm64, differ from it in rare pixels). "center" gives
        the pixels whose centre lies inside, after vertices are rounded to 1/256 px; a centre on an
        edge belongs to the shape right of it or, on a level one, below it, so shapes that share an
        edge neither overlap nor leave a gap.
      rings: "union" of the rings as pycocotools merges them, or "evenodd" across them, under which
        a ring within a ring is a hole.

    Raises:
      ValueError: when traced, for a canvas out of range, an unknown rule, or arrays of other types
        or shapes.

    Source: rleFrPoly of the COCO API, Lin et al. 2014, restated in integers; crossing-number test,
      Shimrat 1962.
    """
    _check(height, width, rule, rings)
    snapped = _exact(points_px, used, rule)
    return _fill(snapped, used, height=height, width=width, rule=rule, rings=rings)


@functools.partial(jax.jit, static_argnames=("height", "width", "rule", "rings"))
def _fill(points_px, used, *, height, width, rule, rings):
    """Returns `fill` of points that jit leaves as they are."""

    def words(points, used):
        if used.size == 0:
            return jnp.zeros((*points.shape[:-3], -(-height // bitmask.WORD), width), jnp.uint32)
        shapes = _shapes(points, used, rings)

        def on_cpu(shapes):
            return cpu_fill.fill(shapes, _RULES[rule], height=height, width=width)

        def elsewhere(shapes):
            return _dense(shapes, _RULES[rule], height, width)

        def on_tpu(shapes):
            edges, rows = _edges(shapes, _RULES[rule], height, width)
            if not tiles.fits(edges, height=height, width=width):
                return elsewhere(shapes)
            return tiles.fill(edges, *rows, height=height, width=width)

        flat = lax.platform_dependent(shapes, cpu=on_cpu, tpu=on_tpu, default=elsewhere)
        return flat.reshape(*points.shape[:-3], *flat.shape[1:])

    return vmap_as_leading_axis(words)(_steps(points_px, rule), used)


def fill_counts(
    points_px: Float[Array, "*n R P 2"] | Snapped,
    used: Bool[Array, "*n R P"],
    words: UInt32[Array, "*m K W"],
    *,
    height: int,
    width: int,
    rule: Literal["coco", "center"] = "coco",
    rings: Literal["union", "evenodd"] = "union",
) -> tuple[Int32[Array, "*n"], Int32[Array, "*n"]]:
    """Returns the area of filled rings in pixels, and of what they share with packed masks.

    The same as counting `fill`, without writing the masks to memory.

    Args:
      points_px: as in `fill`.
      used: as in `fill`.
      words: packed masks whose leading axes broadcast against those of the points: answers to one
        question share its mask.
      height: as in `fill`.
      width: as in `fill`.
      rule: as in `fill`.
      rings: as in `fill`.

    Raises:
      ValueError: as in `fill`, or the words are of another canvas.
    """
    _check(height, width, rule, rings)
    snapped = _exact(points_px, used, rule)
    depth = -(-height // bitmask.WORD)
    bitmask.check(words)
    if words.shape[-2:] != (depth, width):
        raise ValueError(
            f"raster.fill_counts: expected words of {depth}x{width} for a canvas of "
            f"{height}x{width}, got {words.shape[-2]}x{words.shape[-1]}; do: pack the masks on "
            "this canvas"
        )
    return _fill_counts(snapped, used, words, height=height, width=width, rule=rule, rings=rings)


@functools.partial(jax.jit, static_argnames=("height", "width", "rule", "rings"))
def _fill_counts(points_px, used, words, *, height, width, rule, rings):
    """Returns `fill_counts` of points that jit leaves as they are."""
    depth = words.shape[-2]

    def count(points, used, words):
        lead = points.shape[:-3]
        if used.size == 0:
            return jnp.zeros(lead, jnp.int32), jnp.zeros(lead, jnp.int32)
        masks = int(np.prod(words.shape[:-2]))
        which = jnp.arange(masks, dtype=jnp.int32).reshape(words.shape[:-2])
        which = jnp.broadcast_to(which, lead).reshape(-1)
        words = words.reshape(masks, depth, width)
        shapes = _shapes(points, used, rings)

        def on_cpu(shapes, words, which):
            return cpu_fill.counts(shapes, _RULES[rule], words=words, which=which, height=height)

        def elsewhere(shapes, words, which):
            filled = _dense(shapes, _RULES[rule], height, width)
            return bitmask.area(filled), bitmask.area(filled & words[which])

        def on_tpu(shapes, words, which):
            edges, rows = _edges(shapes, _RULES[rule], height, width)
            if not tiles.fits(edges, height=height, width=width):
                return elsewhere(shapes, words, which)
            return tiles.counts(edges, *rows, words=words, which=which, height=height)

        found = lax.platform_dependent(
            shapes, words, which, cpu=on_cpu, tpu=on_tpu, default=elsewhere
        )
        return tuple(total.reshape(lead) for total in found)

    return vmap_as_leading_axis(count)(_steps(points_px, rule), used, words)


def _check(height, width, rule, rings):
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError(
            f"raster: expected a canvas of 1x1 to {MAX_SIDE}x{MAX_SIDE}, got {height}x{width}; do: "
            "fill at a smaller size"
        )
    if rule not in _RULES or rings not in ("union", "evenodd"):
        raise ValueError(
            f"raster: expected rule coco or center and rings union or evenodd, got {rule} and "
            f"{rings}; do: pick one of each"
        )


def _exact(points, used, rule: Literal["coco", "center"]):
    """Returns points that jit leaves as they are, after a look at their types and shapes.

    Raises:
      ValueError: they are neither float32, float64 nor snapped, or do not go with `used`.
    """
    given = points.steps if isinstance(points, Snapped) else points
    kinds = ("int32",) if given is not points else ("float32", "float64")
    types = [str(getattr(each, "dtype", type(each).__name__)) for each in (given, used)]
    shapes = [each.shape if hasattr(each, "dtype") else () for each in (given, used)]
    if types[0] not in kinds or types[1] != "bool" or shapes[0] != (*shapes[1], 2):
        raise ValueError(
            "raster: expected float32 or float64 points [.., R, P, 2] beside bool used [.., R, P], "
            f"got {types[0]} {list(shapes[0])} and {types[1]} {list(shapes[1])}; do: make them "
            "from lists of rings with polygon.pad"
        )
    if used.ndim < 2:
        raise ValueError(
            f"raster: expected rings [.., R, P], got {list(used.shape)}; do: put an axis in front"
        )
    if isinstance(points, np.ndarray) and points.dtype == np.float64:
        return snapping.from_float(points, rule)
    return points


def _steps(points, rule: Literal["coco", "center"]) -> Int32[Array, "*n R P 2"]:
    """Returns vertices in grid steps of a rule."""
    if isinstance(points, Snapped):
        return points.steps
    return snapping.from_float(lax.stop_gradient(points), rule).steps


def move_used_first(
    points: Shaped[Array, "*n R P 2"], used: Bool[Array, "*n R P"]
) -> tuple[Shaped[Array, "*n R P 2"], Bool[Array, "*n R P"]]:
    """Returns rings with their used and known vertices first, in their order, and zeros after.

    Floats are known where they are finite, grid steps where they are not `snapping.UNKNOWN`.
    """
    if jnp.issubdtype(points.dtype, jnp.integer):
        used = used & (points[..., 0] != snapping.UNKNOWN)
    else:
        used = used & jnp.isfinite(points).all(-1)
    points = jnp.where(used[..., None], points, 0)

    def move(points, used):
        order = jnp.argsort(~used, axis=-1, stable=True)
        return (
            jnp.take_along_axis(points, order[..., None], axis=-2),
            jnp.take_along_axis(used, order, axis=-1),
        )

    ready = (used[..., :-1] >= used[..., 1:]).all()
    return lax.cond(ready, lambda *rings: rings, move, points, used)


def _shapes(steps, used, rings) -> Shapes:
    """Returns rings in grid steps as shapes; those with too few vertices are empty."""
    steps, used = move_used_first(steps, used)
    count = used.sum(-1, dtype=jnp.int32)
    count = jnp.where(count >= 3, count, 0)
    items = int(np.prod(used.shape[:-2]))
    groups = used.shape[-2] if rings == "union" else 1
    parts = used.shape[-2] // max(groups, 1)
    shape = (items, groups, parts, used.shape[-1])
    return Shapes(
        steps[..., 0].reshape(shape), steps[..., 1].reshape(shape), count.reshape(shape[:-1])
    )


def _dense(shapes: Shapes, rule: Rule, height: int, width: int) -> UInt32[Array, "N K {width}"]:
    """Returns the parity of all toggles at or above each pixel; every edge meets every column."""
    rows = 32 * -(-height // 32)
    column = jnp.arange(width, dtype=jnp.int32)
    top = 32 * jnp.arange(rows // 32, dtype=jnp.int32)[:, None]
    full = jnp.uint32(0xFFFFFFFF)
    toggles = edge_rules.toggle(rule)
    used, ends = _ends(shapes)
    edges = rule.edges(*ends, width)
    edges = edges._replace(count=jnp.where(used, edges.count, 0))
    edges = jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[:2], -1), edges)

    def add(words, several):
        for number in range(_UNROLLED):
            edge = jax.tree.map(lambda leaf: leaf[number, ..., None], several)  # noqa: B023
            on, row = toggles(edge, column, height)
            row = jnp.where(on, row, rows)[..., None, :]
            # Shifting by 32 or more leaves nothing: words above the toggle stay as they are.
            shift = jnp.maximum(row - top, 0).astype(jnp.uint32)
            words = words ^ lax.shift_left(*jnp.broadcast_arrays(full, shift))
        return words, None

    def group_edges(leaf):
        leaf = jnp.moveaxis(leaf, -1, 0)
        padding = [(0, -leaf.shape[0] % _UNROLLED)] + [(0, 0)] * (leaf.ndim - 1)
        return jnp.pad(leaf, padding).reshape(-1, _UNROLLED, *leaf.shape[1:])

    start = jnp.zeros((*shapes.x.shape[:2], rows // 32, width), jnp.uint32)
    words = lax.scan(add, start, jax.tree.map(group_edges, edges))[0]
    return lax.reduce(words, np.uint32(0), lax.bitwise_or, (1,))


def _ends(shapes: Shapes):
    """Returns which vertices begin an edge, and the ends x0, y0, x1, y1 of the edges."""
    index, length = jnp.arange(shapes.x.shape[-1]), shapes.count[..., None]
    x1, y1 = (
        jnp.where(index == length - 1, v[..., :1], jnp.roll(v, -1, axis=-1))
        for v in (shapes.x, shapes.y)
    )
    return index < length, (shapes.x, shapes.y, x1, y1)


def _edges(shapes: Shapes, rule: Rule, height: int, width: int):
    """Returns the edges of shapes for the kernel, and the functions for their rows."""
    used, ends = _ends(shapes)
    line, edge = rule.line(*ends, width), rule.edges(*ends, width)
    flat = lambda leaf: leaf.reshape(*leaf.shape[:2], -1)  # noqa: E731
    inverse = 1.0 / line.over.astype(jnp.float32)
    # The rows do not depend on the columns that an edge toggles.
    leaves, build = jax.tree.flatten(edge._replace(first=None, count=None))
    types = [leaf.dtype for leaf in leaves]

    def straight(fields, column):
        slope, base, over, inverse = fields
        inverse = lax.bitcast_convert_type(inverse, jnp.float32)
        return edge_rules.straight_row((slope, base, over, inverse), column, height=height)

    def exact(fields, column):
        edge = jax.tree.unflatten(build, map(_from_int32, fields, types))
        return rule.row(edge, column, height)

    # Of the centre rule no edge is sure.
    fields = () if rule is edge_rules.CENTER else (line.slope, line.base, line.over, inverse)
    edges = tiles.Edges(
        first=flat(line.first),
        end=flat(jnp.where(used, line.end, 0)),
        sure=flat(line.sure),
        straight=tuple(flat(_to_int32(v)) for v in fields),
        exact=tuple(flat(_to_int32(leaf)) for leaf in leaves),
    )
    return edges, (straight, exact)


def _to_int32(array):
    if array.dtype == jnp.float32:
        return lax.bitcast_convert_type(array, jnp.int32)
    return array.astype(jnp.int32)


def _from_int32(array, dtype):
    if dtype == jnp.float32:
        return lax.bitcast_convert_type(array, dtype)
    return array != 0 if dtype == jnp.bool_ else array
