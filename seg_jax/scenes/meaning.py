"""The meaning of referring expressions: predicates judged on what can be seen of a world.

Attributes are sharp. Rank, place and relation are vague, so they have two readings: the things
that an expression surely fits and the things that it possibly fits. An expression names a thing
for certain only if both readings are just that thing.
"""

from __future__ import annotations

import dataclasses
import enum

import numpy as np
from jaxtyping import Bool

from seg_jax.scenes.things import Colour, Kind, Texture
from seg_jax.scenes.world import World


class Order(enum.StrEnum):
    """A line-up in which a thing may be the first, the second and so on."""

    LEFT = "left"
    RIGHT = "right"
    TOP = "top"
    BOTTOM = "bottom"
    LARGE = "large"
    SMALL = "small"


class Place(enum.StrEnum):
    """A region of the image; the value follows "on the", "at the" or "in the"."""

    LEFT = "left"
    RIGHT = "right"
    TOP = "top"
    BOTTOM = "bottom"
    CENTRE = "centre"
    TOP_LEFT = "top left"
    TOP_RIGHT = "top right"
    BOTTOM_LEFT = "bottom left"
    BOTTOM_RIGHT = "bottom right"


class Side(enum.StrEnum):
    """Where a thing lies as seen from another."""

    LEFT = "left"
    RIGHT = "right"
    ABOVE = "above"
    BELOW = "below"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expression:
    """Predicates that must all hold; None sets no condition. At most one of rank, place, beside."""

    kind: Kind | None = None
    colour: Colour | None = None
    texture: Texture | None = None
    rank: tuple[Order, int] | None = None
    """Line-up among the things of these attributes, and the position in it, from 1."""
    place: Place | None = None
    beside: tuple[Side, Expression] | None = None
    """Side on which the thing lies of the one thing that the inner expression fits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fact:
    """What can be seen of one thing."""

    kind: Kind
    colour: Colour
    texture: Texture
    x_unit: float
    """x of the visible centroid."""
    y_unit: float
    """y of the visible centroid."""
    area_unit: float
    """Visible share of the image."""
    extent_unit: float
    """Longer side of the visible mask's box over the image's shorter side."""


APART = 0.12
"""Least distance in the image's unit between things said to lie left, right, above or below."""
GAP = 0.06
"""Least distance in the image's unit between neighbours in a line-up from one edge."""
LARGER = 1.5
"""Least ratio of visible areas between things said to differ in size."""
LONGER = 1.15
"""Least ratio of visible extents between things said to differ in size."""


def facts(world: World, masks: Bool[np.ndarray, "M H W"]) -> dict[int, Fact]:
    """Returns what can be seen of each thing, by index; things out of sight are left out."""
    _, height, width = masks.shape
    rows, columns = masks.sum(2), masks.sum(1)
    areas = rows.sum(1).tolist()
    ys = (rows @ np.arange(0.5, height)).tolist()
    xs = (columns @ np.arange(0.5, width)).tolist()
    extents = np.maximum(_nonzero_spans(rows), _nonzero_spans(columns)).tolist()
    return {
        index: Fact(
            kind=thing.kind,
            colour=thing.colour,
            texture=thing.texture,
            x_unit=xs[index] / areas[index] / width,
            y_unit=ys[index] / areas[index] / height,
            area_unit=areas[index] / (height * width),
            extent_unit=extents[index] / min(height, width),
        )
        for index, thing in enumerate(world.things)
        if areas[index]
    }


def matches(
    expression: Expression, facts: dict[int, Fact], *, lenient: bool = False
) -> frozenset[int]:
    """Returns the things that the expression surely fits or, leniently, possibly fits."""
    base = [
        index
        for index, fact in facts.items()
        if (expression.kind is None or fact.kind == expression.kind)
        and (expression.colour is None or fact.colour == expression.colour)
        and (expression.texture is None or fact.texture == expression.texture)
    ]
    if expression.rank:
        rank = expression.rank
        return frozenset(i for i in base if _has_rank(rank, i, base, facts, lenient=lenient))
    if expression.place:
        return frozenset(
            i for i in base if is_at_place(expression.place, facts[i], lenient=lenient)
        )
    if expression.beside:
        side, inner = expression.beside
        anchors = matches(inner, facts, lenient=True)
        if len(anchors) != 1 or anchors != matches(inner, facts):
            return frozenset(base) if lenient else frozenset()
        anchor = facts[min(anchors)]
        return frozenset(
            i
            for i in base
            if i not in anchors and is_beside(side, facts[i], anchor, lenient=lenient)
        )
    return frozenset(base)


def fits_only(expression: Expression, index: int, facts: dict[int, Fact]) -> bool:
    """Returns whether the expression surely fits this thing and no other thing possibly."""
    possible = matches(expression, facts, lenient=True)
    return len(possible) == 1 and index in possible and index in matches(expression, facts)


def rank_of(order: Order, index: int, *, among: list[int], facts: dict[int, Fact]) -> int | None:
    """Returns the thing's certain position, from 1, in the line-up of `among`; else None."""
    before, after = _before_and_after(order, index, among, facts)
    return before + 1 if before + after == len(among) - 1 else None


def _nonzero_spans(counts: np.ndarray) -> np.ndarray:
    """Returns the distance from the first to the last nonzero entry of each row."""
    hit = counts > 0
    return hit.shape[1] - hit.argmax(1) - hit[:, ::-1].argmax(1)


def _before_and_after(order: Order, index: int, among: list[int], facts) -> tuple[int, int]:
    """Returns how many things surely come before and surely come after in the line-up."""
    mine = facts[index]
    if order in (Order.LARGE, Order.SMALL):
        less = sum(_is_larger(facts[other], mine) for other in among)
        more = sum(_is_larger(mine, facts[other]) for other in among)
        return (less, more) if order == Order.LARGE else (more, less)
    if order in (Order.LEFT, Order.RIGHT):
        ahead = [facts[other].x_unit - mine.x_unit for other in among]
    else:
        ahead = [facts[other].y_unit - mine.y_unit for other in among]
    less = sum(gap <= -GAP for gap in ahead)
    more = sum(gap >= GAP for gap in ahead)
    return (less, more) if order in (Order.LEFT, Order.TOP) else (more, less)


def _is_larger(one: Fact, other: Fact) -> bool:
    """Returns whether one surely looks larger than the other."""
    return (
        one.area_unit >= LARGER * other.area_unit and one.extent_unit >= LONGER * other.extent_unit
    )


def _has_rank(
    rank: tuple[Order, int], index: int, base: list[int], facts, *, lenient: bool
) -> bool:
    """Returns whether the thing surely (or possibly) holds this rank among base."""
    before, after = _before_and_after(rank[0], index, base, facts)
    if lenient:
        return before < rank[1] <= len(base) - after
    return before == rank[1] - 1 and after == len(base) - rank[1]


def is_at_place(place: Place, fact: Fact, *, lenient: bool = False) -> bool:
    """Returns whether the thing surely (or possibly) lies in the region."""
    x, y = fact.x_unit, fact.y_unit
    if place == Place.CENTRE:
        return max(abs(x - 0.5), abs(y - 0.5)) <= (0.25 if lenient else 0.1)
    edge = 0.55 if lenient else 0.4
    across, down = _EDGES[place]
    return (across is None or abs(x - across) <= edge) and (down is None or abs(y - down) <= edge)


_EDGES = {
    Place.LEFT: (0, None),
    Place.RIGHT: (1, None),
    Place.TOP: (None, 0),
    Place.BOTTOM: (None, 1),
    Place.TOP_LEFT: (0, 0),
    Place.TOP_RIGHT: (1, 0),
    Place.BOTTOM_LEFT: (0, 1),
    Place.BOTTOM_RIGHT: (1, 1),
}
"""Which edge of the image a place lies near: x, y, in units; None: neither."""


def is_beside(side: Side, one: Fact, other: Fact, *, lenient: bool = False) -> bool:
    """Returns whether one surely (or possibly) lies on this side of the other."""
    along, across = one.x_unit - other.x_unit, one.y_unit - other.y_unit
    if side in (Side.ABOVE, Side.BELOW):
        along, across = across, along
    if side in (Side.LEFT, Side.ABOVE):
        along = -along
    return along > 0 if lenient else along >= APART and along >= abs(across)
