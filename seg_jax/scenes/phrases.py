"""Phrases that provably fit one thing of a drawn world, in several wordings.

A phrase is used for a thing only if its expression surely fits that thing and possibly fits no
other (`meaning.fits_only`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool

from seg_jax.scenes import draw, meaning
from seg_jax.scenes import world as worlds
from seg_jax.scenes.meaning import Expression, Fact, Order, Place, Side
from seg_jax.scenes.things import Colour, Kind, Texture
from seg_jax.scenes.world import Config, World


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """Which families of expressions are used, beside kind and colour, in how many wordings."""

    full: bool = False
    """Always "the red star", though "the star" or "the red object" may fit it alone."""
    texture: bool = False
    """Texture, as in "the striped star"."""
    rank: bool = False
    """Position in a line-up, as in "the largest star", "the second star from the left"."""
    place: bool = False
    """Region of the image, as in "the star in the top left corner"."""
    beside: bool = False
    """Relation to another thing, as in "the star left of the blue ring"."""
    several: bool = False
    """Also of several things at once, as in "the red stars", "both circles", "all objects"."""
    absent: int = 0
    """Number of expressions for what is not in the scene, most of them near misses."""
    wordings: int = 2
    """Most wordings of one expression, the simplest first."""

    def __post_init__(self):
        if self.absent < 0:
            raise ValueError(
                f"style.absent: expected >= 0 expressions, got {self.absent}; do: raise it"
            )
        if self.wordings < 1:
            raise ValueError(f"style.wordings: expected >= 1, got {self.wordings}; do: raise it")

    @property
    def has_groups(self) -> bool:
        """Whether there are expressions of anything but a single thing."""
        return self.several or self.absent > 0


def rich() -> Style:
    """Returns the style with every family of expressions in up to four wordings."""
    return Style(texture=True, rank=True, place=True, beside=True, wordings=4)


def describe(
    world: World,
    masks: Bool[np.ndarray, "M H W"],
    *,
    style: Style | None = None,
    limit: int | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[tuple[str, ...], ...]:
    """Returns for each thing the phrases that fit it and no other, the simplest first.

    Args:
      world: what was drawn.
      masks: visible masks of its things, from `draw.render`.
      style: which phrases; `Style()`, kind and colour only, if None.
      limit: most phrases per thing.
      rng: draws the phrases that stay under the limit; None keeps the simplest.

    A thing that no phrase of the style fits alone, or that is out of sight, has none.
    """
    style = style or Style()
    if limit is not None and limit < 1:
        raise ValueError(
            f"phrases.describe: expected a limit of at least 1 phrase, got {limit}; do: pass None "
            "or 1"
        )
    if len(masks) != len(world.things):
        raise ValueError(
            f"phrases.describe: expected one mask for each of {len(world.things)} things, got "
            f"{len(masks)}; do: pass the masks that draw.render gave for this world"
        )
    found = expressions(meaning.facts(world, masks), style)
    return tuple(
        _limited_wordings(found.get(index, []), style, limit, rng)
        for index in range(len(world.things))
    )


def expressions(facts: dict[int, Fact], style: Style) -> dict[int, list[Expression]]:
    """Returns for each thing the style's expressions that fit it and no other, simplest first."""
    names = {
        index: [
            expression
            for expression in _attribute_names(fact, style)
            if meaning.matches(expression, facts) == {index}
        ]
        for index, fact in facts.items()
    }
    if not (style.rank or style.place or style.beside):
        return names
    return {
        index: names[index]
        + [
            expression
            for expression in _candidates(index, facts, names, style)
            if meaning.fits_only(expression, index, facts)
        ]
        for index in facts
    }


@functools.lru_cache(maxsize=65536)
def wordings(expression: Expression, most: int = 8) -> tuple[str, ...]:
    """Returns at most so many ways to say the expression, the simplest first."""
    nouns = [str(expression.kind)] if expression.kind else ["object", "thing"]
    adjectives = attributes(expression)
    cores = [" ".join([*adjectives, noun]) for noun in nouns]
    if expression.rank:
        ways = [way for core in cores for way in _rank_wordings(*expression.rank, core)]
    elif expression.place:
        ways = [f"{core} {tail}" for tail in _PLACES[expression.place] for core in cores]
    elif expression.beside:
        side, inner = expression.beside
        ways = [f"{core} {link} {wordings(inner, 1)[0]}" for link in _SIDES[side] for core in cores]
    else:
        ways = cores + [
            f"{noun} that is {' and '.join(adjectives)}" for noun in nouns if adjectives
        ]
    both = itertools.chain.from_iterable((f"the {way}", way) for way in ways)
    return tuple(itertools.islice(both, most))


def attributes(expression: Expression) -> list[str]:
    """Returns the adjectives of an expression: the words before the noun."""
    return [str(word) for word in (expression.texture, expression.colour) if word]


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Returns every word that any phrase may hold, sorted."""
    ring = Expression(kind=Kind.RING)
    expressions_of_all_kinds = [
        *(Expression(kind=kind) for kind in Kind),
        *(Expression(colour=colour, texture=texture) for colour in Colour for texture in Texture),
        *(Expression(rank=(order, place)) for order in Order for place in range(1, _MAX_RANK + 1)),
        *(Expression(place=place) for place in Place),
        *(Expression(beside=(side, ring)) for side in Side),
    ]
    ways = itertools.chain.from_iterable(
        wordings(expression, 1000) for expression in expressions_of_all_kinds
    )
    return tuple(sorted({word for way in ways for word in way.split()}))


def corpus(
    rng: np.random.Generator,
    count: int,
    *,
    config: Config | None = None,
    style: Style | None = None,
) -> list[str]:
    """Returns so many phrases of random worlds, for training a tokenizer.

    Args:
      rng: picks the worlds and, in each, up to eight phrases per thing.
      count: phrases to return.
      config: of the worlds; `worlds.standard()` if None.
      style: of the phrases; `rich()` if None.
    """
    config, style = config or worlds.standard(), style or rich()
    ways: list[str] = []
    while len(ways) < count:
        made = worlds.make(config, int(rng.integers(2**32)))
        masks = draw.render(dataclasses.replace(made, noise=0.0))[1]
        for phrases in describe(made, masks, style=style, limit=8, rng=rng):
            ways.extend(phrases)
    return ways[:count]


_MAX_RANK = 3
"""Positions in a line-up beyond this one are not put into words."""

_SUPERLATIVES = {
    Order.LEFT: ("leftmost",),
    Order.RIGHT: ("rightmost",),
    Order.TOP: ("topmost", "highest"),
    Order.BOTTOM: ("bottommost", "lowest"),
    Order.LARGE: ("largest", "biggest"),
    Order.SMALL: ("smallest",),
}
_ORDINALS = ("first", "second", "third")
_PLACES = {
    Place.LEFT: ("on the left", "on the left side"),
    Place.RIGHT: ("on the right", "on the right side"),
    Place.TOP: ("at the top", "near the top"),
    Place.BOTTOM: ("at the bottom", "near the bottom"),
    Place.CENTRE: ("in the centre", "in the middle"),
    Place.TOP_LEFT: ("in the top left corner", "at the top left"),
    Place.TOP_RIGHT: ("in the top right corner", "at the top right"),
    Place.BOTTOM_LEFT: ("in the bottom left corner", "at the bottom left"),
    Place.BOTTOM_RIGHT: ("in the bottom right corner", "at the bottom right"),
}
_SIDES = {
    Side.LEFT: ("left of", "to the left of"),
    Side.RIGHT: ("right of", "to the right of"),
    Side.ABOVE: ("above", "over"),
    Side.BELOW: ("below", "under"),
}


def _rank_wordings(order: Order, place: int, core: str) -> list[str]:
    """Returns ways to say that something stands at this place (from 1) of a line-up."""
    if not 1 <= place <= _MAX_RANK:
        raise ValueError(
            f"phrases: expected a rank in 1..{_MAX_RANK}, got {place}; do: add its ordinal"
        )
    ordinal = _ORDINALS[place - 1]
    lead = "" if place == 1 else f"{ordinal} "
    ways = [f"{lead}{word} {core}" for word in _SUPERLATIVES[order]]
    if order in (Order.LARGE, Order.SMALL):
        return ways
    counted = f"{ordinal} {core} from the {order}"
    return [*ways, counted] if place == 1 else [counted, *ways]


def _limited_wordings(found: list[Expression], style: Style, limit, rng) -> tuple[str, ...]:
    """Returns the wordings of the expressions, within the limit."""
    ways = [way for expression in found for way in wordings(expression, style.wordings)]
    if limit is None or len(ways) <= limit:
        return tuple(ways)
    if rng is None:
        return tuple(ways[:limit])
    return tuple(ways[place] for place in sorted(rng.permutation(len(ways))[:limit].tolist()))


def _attribute_names(fact: Fact, style: Style) -> tuple[Expression, ...]:
    ways = attribute_expressions(fact.kind, fact.colour, fact.texture if style.texture else None)
    return ways[-1:] if style.full else ways


@functools.lru_cache(maxsize=4096)
def attribute_expressions(
    kind: Kind, colour: Colour, texture: Texture | None
) -> tuple[Expression, ...]:
    """Returns the expressions of attributes alone, fewest words first and all of them last."""
    plain = (
        Expression(kind=kind),
        Expression(colour=colour),
        Expression(kind=kind, colour=colour),
    )
    if texture is None:
        return plain
    return (
        *plain,
        Expression(texture=texture),
        Expression(kind=kind, texture=texture),
        Expression(kind=kind, colour=colour, texture=texture),
    )


def _candidates(
    index: int, facts: dict[int, Fact], names: dict[int, list[Expression]], style: Style
) -> Iterator[Expression]:
    """Yields the vague expressions that surely fit the thing; others may fit them too."""
    mine = facts[index]
    bases = ((None, None), (mine.kind, None), (None, mine.colour), (mine.kind, mine.colour))
    bases = bases[-1:] if style.full else bases
    if style.rank:
        for kind, colour in bases:
            for rank in _certain_ranks(index, facts, _expression(kind, colour)):
                yield _expression(kind, colour, rank=rank)
    if style.place:
        places = [place for place in Place if meaning.is_at_place(place, mine)]
        for (kind, colour), place in itertools.product(bases, places):
            yield _expression(kind, colour, place=place)
    if style.beside:
        sides = [
            (side, names[other][0])
            for other, fact in facts.items()
            if other != index and names[other]
            for side in Side
            if meaning.is_beside(side, mine, fact)
        ]
        for (kind, colour), side in itertools.product(bases, sides):
            yield _expression(kind, colour, beside=side)


@functools.lru_cache(maxsize=65536)
def _expression(kind, colour, rank=None, place=None, beside=None) -> Expression:
    """Returns an expression, made once."""
    return Expression(kind=kind, colour=colour, rank=rank, place=place, beside=beside)


def _certain_ranks(
    index: int, facts: dict[int, Fact], base: Expression
) -> Iterator[tuple[Order, int]]:
    """Yields the ranks that the thing surely holds among those that the base fits."""
    among = sorted(meaning.matches(base, facts))
    if len(among) < 2:
        return
    for order in Order:
        place = meaning.rank_of(order, index, among=among, facts=facts)
        if place is not None and place <= min(_MAX_RANK, (len(among) + 1) // 2):
            yield order, place
