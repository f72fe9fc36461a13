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
    """A region of the picture; the value follows "on the", "at the" or "in the"."""

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
    """Predicates that must all hold; None asks nothing. At most one of rank, place, beside."""

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
    """Of the visible centroid."""
    y_unit: float
    """Of the visible centroid."""
    area_unit: float
    """Visible share of the picture."""
    extent_unit: float
    """Longer side of the visible mask's box over the picture's shorter side."""


APART = 0.12
"""Least distance in the picture's unit between things said to lie left, right, above or below."""
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
    extents = np.maximum(_spans(rows), _spans(columns)).tolist()
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
        order, position = expression.rank
        return frozenset(i for i in base if _ranks(order, position, i, base, facts, lenient))
    if expression.place:
        return frozenset(i for i in base if lies(expression.place, facts[i], lenient))
    if expression.beside:
        side, inner = expression.beside
        anchors = matches(inner, facts, lenient=True)
        if len(anchors) != 1 or anchors != matches(inner, facts):
            return frozenset(base) if lenient else frozenset()
        (anchor,) = anchors
        return frozenset(
            i for i in base if i != anchor and is_beside(side, facts[i], facts[anchor], lenient)
        )
    return frozenset(base)


def fits_only(expression: Expression, index: int, facts: dict[int, Fact]) -> bool:
    """Returns whether the expression surely fits this thing and no other thing possibly."""
    only = frozenset((index,))
    return matches(expression, facts) == only == matches(expression, facts, lenient=True)


def position(order: Order, index: int, among: list[int], facts: dict[int, Fact]) -> int | None:
    """Returns the thing's certain position, from 1, in the line-up of `among`; else None."""
    mine = facts[index]
    before = sum(_ahead(order, facts[other], mine) for other in among)
    after = sum(_ahead(order, mine, facts[other]) for other in among)
    return before + 1 if before + after == len(among) - 1 else None


def _spans(counts: np.ndarray) -> np.ndarray:
    """Returns the distance from the first to the last nonzero entry of each row."""
    hit = counts > 0
    return hit.shape[1] - hit.argmax(1) - hit[:, ::-1].argmax(1)


def _ahead(order: Order, one: Fact, other: Fact) -> bool:
    """Returns whether one surely comes before the other in the line-up."""
    match order:
        case Order.LEFT:
            return other.x_unit - one.x_unit >= APART / 2
        case Order.RIGHT:
            return one.x_unit - other.x_unit >= APART / 2
        case Order.TOP:
            return other.y_unit - one.y_unit >= APART / 2
        case Order.BOTTOM:
            return one.y_unit - other.y_unit >= APART / 2
        case Order.SMALL:
            one, other = other, one
    return (
        one.area_unit >= LARGER * other.area_unit and one.extent_unit >= LONGER * other.extent_unit
    )


def _ranks(order: Order, position: int, index: int, base, facts, lenient: bool = False) -> bool:
    """Returns whether the thing stands at this position of the line-up of base."""
    mine = facts[index]
    before = sum(_ahead(order, facts[i], mine) for i in base)
    after = sum(_ahead(order, mine, facts[i]) for i in base)
    if lenient:
        return before < position <= len(base) - after
    return before == position - 1 and after == len(base) - position


def lies(place: Place, fact: Fact, lenient: bool = False) -> bool:
    """Returns whether the thing surely (or possibly) lies in the region."""
    x, y = fact.x_unit, fact.y_unit
    if place == Place.CENTRE:
        return max(abs(x - 0.5), abs(y - 0.5)) <= (0.25 if lenient else 0.1)
    edge = 0.55 if lenient else 0.4
    within = {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}
    return all(within[word] <= edge for word in place.split())


def is_beside(side: Side, one: Fact, other: Fact, lenient: bool = False) -> bool:
    """Returns whether one surely (or possibly) lies on this side of the other."""
    right, down = one.x_unit - other.x_unit, one.y_unit - other.y_unit
    along, across = {
        Side.LEFT: (-right, down),
        Side.RIGHT: (right, down),
        Side.ABOVE: (-down, right),
        Side.BELOW: (down, right),
    }[side]
    if lenient:
        return along > 0
    return along >= APART and along >= abs(across)
