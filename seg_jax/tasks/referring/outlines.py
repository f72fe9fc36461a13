"""True answers for masks: points, boxes and outlines, simplified and written as text (host)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import numpy as np
from jaxtyping import Bool

from seg_jax.geometry import boxes, contour, polygon, simpleseg_tracing
from seg_jax.grammar import outline
from seg_jax.records import Kind, check_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutlineStyle:
    """How true answers are traced, simplified and written."""

    digits: int = 3
    """Decimals of a coordinate."""
    epsilon: float = 0.0025
    """Douglas-Peucker tolerance as a share of the ring's length: 0.99 IoU is kept by it. The
    paper's best is 0.005, shorter and coarser, and its configurations take that."""
    max_points: int = 64
    """Vertex budget of a true answer, all its rings together; the tolerance grows until it fits."""
    max_rings: int = 4
    """Rings of an answer that are read; in true answers the largest are kept."""
    min_area: float = 2.0
    """Rings enclosing fewer square pixels are left out of true answers."""
    tracing: Literal["exact", "released"] = "exact"
    """How true outlines are found: pixel borders, or as the data script does, with its vertices,
    its order and its losses (`geometry.simpleseg_tracing`); training refuses `min_area`, `holes`
    and `order` beside it, which are then not read."""
    holes: bool = True
    """Whether true outlines have rings for their holes."""
    order: Literal["clockwise", "counterclockwise", "shuffled"] = "clockwise"
    """Order of the vertices of every ring, as seen on the screen; the data script's is the
    second. Shuffled: another one for every question, for ablations: such a ring means nothing."""
    start: Literal["first", "random"] = "first"
    """Where a ring begins: at its topmost vertex (the data script's at whatever it found first),
    or at a random one for every question."""

    def __post_init__(self):
        check_least(self, "task", digits=1, max_points=3, max_rings=1, epsilon=0, min_area=0)
        if self.order == "shuffled" and self.start != "first":
            raise ValueError(
                f"task.start: expected 'first' beside a shuffled order, got {self.start!r}; do: "
                "leave it out"
            )

    def check_tracing(self) -> None:
        """Raises ValueError for an option that the tracing of the data script does not read."""
        for name in ("min_area", "holes", "order") if self.tracing == "released" else ():
            default = OutlineStyle.__dataclass_fields__[name].default
            if (value := getattr(self, name)) != default:
                raise ValueError(
                    f"task.{name}: expected {default} beside task.tracing released, which does not "
                    f"read it, got {value}; do: leave it out"
                )


def outline_text(
    mask: Bool[np.ndarray, "H W"],
    kind: Kind,
    style: OutlineStyle,
    *,
    rng: np.random.Generator | None = None,
) -> str:
    """Returns the true answer of the kind for a mask with pixels, in the grammar's text.

    Args:
      mask: to be pointed at, boxed or outlined.
      kind: of the answer.
      style: how outlines are written.
      rng: draws where rings start, or the order of their vertices, if the style has them at
        random; None: they are not.
    """
    if kind == Kind.POINT:
        return outline.write_point(central_point_unit(mask), digits=style.digits)
    if kind == Kind.BOX:
        return outline.write_box(box_unit(mask), digits=style.digits)
    shuffled = style.order == "shuffled"
    if rng is None or (style.start == "first" and not shuffled):
        x0, y0, x1, y1 = contour.box_px(mask).tolist()
        part = mask[y0:y1, x0:x1]
        write = _text_of_small if part.size <= _SMALL_PX else _text_of_large
        return write(part.tobytes(), part.shape, (y0, x0), mask.shape, style)
    rings = rings_unit(mask, style)
    if shuffled:
        return _rings_text(mask, [rng.permutation(ring) for ring in rings], style)
    rolled = [np.roll(ring, -int(rng.integers(len(ring))), axis=0) for ring in rings]
    return _rings_text(mask, rolled, style)


def _mask_text(
    part: bytes,
    size: tuple[int, int],
    corner: tuple[int, int],
    shape: tuple[int, int],
    style: OutlineStyle,
) -> str:
    """Returns the outline of a mask.

    Args:
      part: its pixels within its box.
      size: rows and columns of the box.
      corner: first row and column of the box.
      shape: of the mask.
      style: whose budgets hold.
    """
    mask = np.zeros(shape, bool)
    inside = tuple(slice(at, at + side) for at, side in zip(corner, size, strict=True))
    mask[inside] = np.frombuffer(part, bool).reshape(size)
    return _rings_text(mask, rings_unit(mask, style), style)


_SMALL_PX = 4096
# A finite set of small images comes back every epoch: at most 33 MB.
_text_of_small = functools.lru_cache(maxsize=8192)(_mask_text)
_text_of_large = functools.lru_cache(maxsize=32)(_mask_text)


def _rings_text(mask: Bool[np.ndarray, "H W"], rings: list[np.ndarray], style: OutlineStyle) -> str:
    """Returns the rings as text; the mask's box where its decimals leave no ring."""
    text = outline.write_mask(rings, digits=style.digits)
    if text != outline.NOTHING_THERE:
        return text
    box = outline.read(outline.write_box(box_unit(mask), digits=style.digits), Kind.BOX).box
    assert box is not None
    return outline.write_mask([boxes.corners(box)], digits=style.digits)


def rings_unit(mask: Bool[np.ndarray, "H W"], style: OutlineStyle) -> list[np.ndarray]:
    """Returns the simplified rings of a mask in unit coordinates, within the style's budgets."""
    if style.tracing == "released":
        return _as_released(mask, style)
    size = np.array([mask.shape[1], mask.shape[0]], np.float64)
    traced = _rings_traced(mask, style)[: _most_rings(style)]
    rings = _within_tolerance(traced, style)
    total = sum(len(ring) for ring in rings)
    if total > style.max_points:
        spare = style.max_points - 3 * len(rings)
        shares = [3 + spare * (len(ring) - 3) // (total - 3 * len(rings)) for ring in rings]
        rings = [
            polygon.simplify_to(ring, share) for ring, share in zip(traced, shares, strict=True)
        ]
    clockwise = style.order != "counterclockwise"
    return [polygon.canonical(ring, clockwise=clockwise) / size for ring in rings]


def _rings_traced(mask: Bool[np.ndarray, "H W"], style: OutlineStyle) -> list[np.ndarray]:
    """Returns the rings of a mask that are large enough, the largest first."""
    whole = mask if style.holes else contour.fill_holes(mask)
    return contour.trace(whole, min_area=style.min_area) or contour.trace(whole)


def _most_rings(style: OutlineStyle) -> int:
    return min(style.max_rings, style.max_points // 3)


def _within_tolerance(traced: list[np.ndarray], style: OutlineStyle) -> list[np.ndarray]:
    epsilons = [style.epsilon * polygon.arc_length(ring) for ring in traced]
    return polygon.simplify_each(traced, epsilons)


def losses(mask: Bool[np.ndarray, "H W"], style: OutlineStyle) -> tuple[str, ...]:
    """Returns what the outline of a mask lacks beside what its tolerance takes, in fixed phrases.

    Of outlines as the data script traces them nothing is told.
    """
    if style.tracing == "released":
        return ()
    found, traced = [], _rings_traced(mask, style)
    if not style.holes and (contour.fill_holes(mask) != mask).any():
        found.append("holes are filled: task.holes is off")
    every = contour.trace(mask if style.holes else contour.fill_holes(mask))
    if len(every) > len(traced):
        found.append("rings are left out that are smaller than task.min_area")
    if len(traced) > _most_rings(style):
        found.append("rings are left out beyond task.max_rings")
    kept = _within_tolerance(traced[: _most_rings(style)], style)
    if sum(map(len, kept)) > style.max_points:
        found.append("the outline is coarser than task.epsilon, to fit task.max_points")
    return tuple(found)


def _as_released(mask: Bool[np.ndarray, "H W"], style: OutlineStyle) -> list[np.ndarray]:
    """Returns the rings of a mask as the data script traces them, within the style's budgets."""
    epsilon, most = style.epsilon, min(style.max_rings, style.max_points // 3)
    while True:
        rings = simpleseg_tracing.trace(mask, epsilon_ratio=epsilon, decimals=style.digits)
        sound = [ring for ring in rings if len(ring) >= 3]
        largest = sorted(sound, key=lambda ring: -abs(polygon.signed_area(ring)))[:most]
        kept = [ring for ring in sound if any(ring is one for one in largest)]
        if sum(len(ring) for ring in kept) <= style.max_points:
            return kept
        epsilon = max(1.25 * epsilon, 1e-3)


def box_unit(mask: Bool[np.ndarray, "H W"]) -> tuple[float, float, float, float]:
    """Returns the tight half-open box x0 y0 x1 y1 of a mask in unit coordinates."""
    (height, width), (x0, y0, x1, y1) = mask.shape, contour.box_px(mask)
    return x0 / width, y0 / height, x1 / width, y1 / height


def central_point_unit(mask: Bool[np.ndarray, "H W"]) -> tuple[float, float]:
    """Returns the centre of the mask's pixel that is nearest to its centroid, unit x and y."""
    rows, columns = np.nonzero(mask)
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return (columns[nearest] + 0.5) / mask.shape[1], (rows[nearest] + 0.5) / mask.shape[0]


def interior_point_unit(
    mask: Bool[np.ndarray, "H W"], rng: np.random.Generator
) -> tuple[float, float]:
    """Returns the centre of a random pixel of the mask, off its border where it can, unit x, y."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    rows, columns = np.nonzero(inner if inner.any() else mask)
    pick = int(rng.integers(len(rows)))
    return (columns[pick] + 0.5) / mask.shape[1], (rows[pick] + 0.5) / mask.shape[0]
