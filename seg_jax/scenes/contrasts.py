"""Cases of images and texts that go together one to one: one attribute differs, nothing else.

A case is one drawn world several times over with one attribute replaced. Ground and noise are the
same arrays, so its images differ within the boxes of what was replaced and nowhere else.

Source: SPEC, Peng et al. 2023 (arXiv 2312.00081), section 3: its six subsets and their sizes. What
is pasted there by a diffusion model and a segmenter is drawn here.

Axes here: `A` alternatives of a case, `M` boxes.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from seg_jax.scenes import draw, meaning, sets, world
from seg_jax.scenes.meaning import Fact, Side
from seg_jax.scenes.things import Colour, Kind, Thing
from seg_jax.scenes.world import Pattern, World


class Subset(enum.StrEnum):
    """Which attribute differs; the values are the names of the published folders."""

    ABSOLUTE_SIZE = "absolute_size"
    RELATIVE_SIZE = "relative_size"
    ABSOLUTE_SPATIAL = "absolute_spatial"
    RELATIVE_SPATIAL = "relative_spatial"
    EXISTENCE = "existence"
    COUNT = "count"


ALTERNATIVES = {
    Subset.ABSOLUTE_SIZE: 3,
    Subset.RELATIVE_SIZE: 3,
    Subset.ABSOLUTE_SPATIAL: 9,
    Subset.RELATIVE_SPATIAL: 4,
    Subset.EXISTENCE: 2,
    Subset.COUNT: 9,
}
"""Images of a case, and texts: one over it is chance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What cases are drawn of."""

    side: int = 64
    """Rows and columns of the images."""
    kinds: tuple[Kind, ...] = (
        Kind.CIRCLE,
        Kind.SQUARE,
        Kind.TRIANGLE,
        Kind.STAR,
        Kind.CROSS,
        Kind.RING,
        Kind.DIAMOND,
        Kind.HEXAGON,
    )
    colours: tuple[Colour, ...] = (
        Colour.RED,
        Colour.GREEN,
        Colour.BLUE,
        Colour.YELLOW,
        Colour.PURPLE,
        Colour.ORANGE,
    )
    patterns: tuple[Pattern, ...] = tuple(Pattern)
    noise: float = 3.0
    """Standard deviation of the pixel noise, in 8-bit levels: the same in all images of a case."""
    subsets: tuple[Subset, ...] = tuple(Subset)
    """Drawn in turns."""

    def __post_init__(self):
        least = {"kinds": 2, "colours": 2, "subsets": 1}
        for name, count in least.items():
            if len(set(getattr(self, name))) < max(count, len(getattr(self, name))):
                raise ValueError(
                    f"contrasts.{name}: expected at least {count}, each once, got "
                    f"{getattr(self, name)}; do: name others"
                )
        if not 32 <= self.side <= 1024:
            raise ValueError(
                f"contrasts.side: expected 32 to 1024 pixels, got {self.side}; do: change it"
            )


Look = tuple[Kind, Colour]


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a text says of its image."""

    subset: Subset
    member: int
    """Which of the alternatives it names."""
    subject: Look
    other: Look | None = None
    """What the subject is compared with; None: with nothing."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Images and texts, the first with the first and so on (host)."""

    subset: Subset
    images: UInt8[np.ndarray, "A H W 3"]
    texts: tuple[str, ...]
    claims: tuple[Claim, ...]
    """What the texts say."""
    worlds: tuple[World, ...]
    boxes_px: Float[np.ndarray, "M 4"]
    """Boxes of whatever is not the same in all images."""


def make(config: Config, seed: int) -> Case:
    """Returns the case that this seed (any integer from 0) stands for.

    Of all pairs of a text and an image only those with the same number fit, judged by what can be
    seen: a layout where that fails is drawn anew.

    Raises:
      ValueError: no layout was found, which only too few pixels cause.
    """
    if seed < 0:
        raise ValueError(f"contrasts.make: expected a seed >= 0, got {seed}; do: count from 0")
    subset = config.subsets[seed % len(config.subsets)]
    behind = world.make(_grounds(config), seed)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, _STREAM])))
    for _ in range(_TRIES):
        layout = _LAYOUTS[subset](config, rng)
        worlds = tuple(dataclasses.replace(behind, things=things) for things in layout.things)
        claims = tuple(
            Claim(subset, member, layout.subject, layout.other) for member in range(len(worlds))
        )
        drawn = [draw.render(one) for one in worlds]
        seen = [meaning.facts(one, masks) for one, (_, masks) in zip(worlds, drawn, strict=True)]
        if all(
            holds(claim, facts) == (i == j)
            for i, claim in enumerate(claims)
            for j, facts in enumerate(seen)
        ):
            boxes = _changed_boxes(worlds, [masks for _, masks in drawn])
            images = np.stack([image for image, _ in drawn])
            texts = _texts(claims, rng)
            return Case(subset, images, texts, claims, worlds, boxes)
    raise ValueError(
        f"contrasts.make: expected a layout of {subset} in {config.side} pixels, got none in "
        f"{_TRIES}; do: raise side"
    )


def holds(claim: Claim, facts: dict[int, Fact]) -> bool:
    """Returns whether what a text claims is surely to be seen."""
    mine = [fact for fact in facts.values() if (fact.kind, fact.colour) == claim.subject]
    if claim.subset is Subset.COUNT:
        return len(mine) == claim.member + 1
    if claim.subset is Subset.EXISTENCE:
        return bool(mine) == (claim.member == 0)
    if len(mine) != 1:
        return False
    one = mine[0]
    if claim.subset is Subset.ABSOLUTE_SIZE:
        low, high = _EXTENTS[claim.member]
        return low <= one.extent_unit <= high
    if claim.subset is Subset.ABSOLUTE_SPATIAL:
        down, across = divmod(claim.member, 3)
        far = max(abs(one.x_unit - _CENTRES[across]), abs(one.y_unit - _CENTRES[down]))
        return far <= _WITHIN
    others = [fact for fact in facts.values() if (fact.kind, fact.colour) == claim.other]
    if len(others) != 1:
        return False
    if claim.subset is Subset.RELATIVE_SIZE:
        return _size_beside(one, others[0]) == claim.member
    return meaning.is_beside(_SIDES[claim.member], one, others[0])


_STREAM = 5
"""Number of the random stream that decides on layouts and words."""
_TRIES = 40
_EXTENTS = ((0.5, 1.0), (0.24, 0.46), (0.0, 0.22))
"""Least and most extents, over the image's side, of what is called large, medium and small."""
_CENTRES = (1 / 6, 1 / 2, 5 / 6)
_WITHIN = 0.1
"""Farthest that a thing's middle may be from that of its cell, in units, along either axis."""
_SIDES = (Side.LEFT, Side.RIGHT, Side.ABOVE, Side.BELOW)
_ALIKE = 1.2
"""Most ratio of visible areas between things said to be of equal size."""
_SMALLER, _EQUAL, _LARGER = range(3)


def _size_beside(one: Fact, other: Fact) -> int | None:
    """Returns how the size of one looks beside the other; None where that is not sure."""
    for member, (large, small) in ((_LARGER, (one, other)), (_SMALLER, (other, one))):
        if (
            large.area_unit >= meaning.LARGER * small.area_unit
            and large.extent_unit >= meaning.LONGER * small.extent_unit
        ):
            return member
    areas = sorted((one.area_unit, other.area_unit))
    return _EQUAL if areas[1] <= _ALIKE * areas[0] else None


class _Layout(NamedTuple):
    """The things of each image."""

    things: list[tuple[Thing, ...]]
    subject: Look
    other: Look | None = None


def _grounds(config: Config) -> world.Config:
    """Returns what grounds are drawn of: they keep clear of every colour."""
    return world.Config(
        height=config.side,
        width=config.side,
        count=(1, 1),
        kinds=config.kinds,
        colours=config.colours,
        patterns=config.patterns,
        noise=config.noise,
    )


def _every_look(config: Config) -> list[Look]:
    return [(kind, colour) for kind in config.kinds for colour in config.colours]


def _looks(config: Config, rng: np.random.Generator, count: int) -> list[Look]:
    """Returns different pairs of kind and colour."""
    every = _every_look(config)
    return [every[place] for place in rng.permutation(len(every))[:count]]


def _thing(
    rng: np.random.Generator, look: Look, size: float, at: tuple[float, float] = (0.5, 0.5)
) -> Thing:
    turn, form, shade = rng.random(3).tolist()
    return Thing(
        kind=look[0],
        colour=look[1],
        centre_unit=at,
        size_unit=size,
        rotation=0.6 * turn - 0.3,
        form=form,
        shade=0.2 * shade - 0.1,
    )


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(low + (high - low) * rng.random())


def _with_centre(thing: Thing, x: float, y: float) -> Thing:
    return dataclasses.replace(thing, centre_unit=(x, y))


def _cells(rng: np.random.Generator) -> list[tuple[float, float]]:
    """Returns the middles of nine cells, row by row, all moved alike."""
    x, y = (_uniform(rng, -0.03, 0.03) for _ in range(2))
    return [(across + x, down + y) for down in _CENTRES for across in _CENTRES]


def _absolute_size(config: Config, rng: np.random.Generator) -> _Layout:
    (look,) = _looks(config, rng, 1)
    at = (_uniform(rng, 0.44, 0.56), _uniform(rng, 0.44, 0.56))
    thing = _thing(rng, look, 0.5, at)
    sizes = (_uniform(rng, 0.72, 0.84), _uniform(rng, 0.36, 0.44), _uniform(rng, 0.16, 0.2))
    return _Layout([(dataclasses.replace(thing, size_unit=size),) for size in sizes], look)


def _relative_size(config: Config, rng: np.random.Generator) -> _Layout:
    look = _looks(config, rng, 1)[0]
    colours = [colour for colour in config.colours if colour != look[1]]
    other = (look[0], colours[int(rng.integers(len(colours)))])
    size = _uniform(rng, 0.22, 0.26)
    places = [
        (_uniform(rng, 0.22, 0.3), _uniform(rng, 0.3, 0.7)),
        (_uniform(rng, 0.7, 0.78), _uniform(rng, 0.3, 0.7)),
    ]
    if rng.random() < 0.5:
        places = [(y, x) for x, y in places]
    first, second = rng.permutation(2).tolist()
    thing = _thing(rng, look, size, places[first])
    fixed = dataclasses.replace(thing, colour=other[1], centre_unit=places[second])
    sizes = (size / 1.6, size, size * 1.5)
    changed = [dataclasses.replace(thing, size_unit=one) for one in sizes]
    return _Layout([(fixed, one) for one in changed], look, other)


def _absolute_spatial(config: Config, rng: np.random.Generator) -> _Layout:
    (look,) = _looks(config, rng, 1)
    thing = _thing(rng, look, _uniform(rng, 0.16, 0.24))
    return _Layout([(_with_centre(thing, *cell),) for cell in _cells(rng)], look)


def _relative_spatial(config: Config, rng: np.random.Generator) -> _Layout:
    look, other = _looks(config, rng, 2)
    x, y = (_uniform(rng, 0.46, 0.54) for _ in range(2))
    fixed = _thing(rng, other, _uniform(rng, 0.16, 0.22), (x, y))
    thing = _thing(rng, look, _uniform(rng, 0.16, 0.22))
    far = _uniform(rng, 0.26, 0.3)
    places = ((x - far, y), (x + far, y), (x, y - far), (x, y + far))
    return _Layout([(fixed, _with_centre(thing, *place)) for place in places], look, other)


def _existence(config: Config, rng: np.random.Generator) -> _Layout:
    looks = _looks(config, rng, int(rng.integers(2, 5)))
    cells, order = _cells(rng), rng.permutation(9)
    things = [
        _thing(rng, look, _uniform(rng, 0.18, 0.24), cells[place])
        for look, place in zip(looks, order, strict=False)
    ]
    return _Layout([tuple(things), tuple(things[1:])], looks[0])


def _count(config: Config, rng: np.random.Generator) -> _Layout:
    (look,) = _looks(config, rng, 1)
    thing, cells = _thing(rng, look, _uniform(rng, 0.14, 0.22)), _cells(rng)
    every = [_with_centre(thing, *cells[place]) for place in rng.permutation(9)]
    return _Layout([tuple(every[: count + 1]) for count in range(9)], look)


_LAYOUTS: dict[Subset, Callable[[Config, np.random.Generator], _Layout]] = {
    Subset.ABSOLUTE_SIZE: _absolute_size,
    Subset.RELATIVE_SIZE: _relative_size,
    Subset.ABSOLUTE_SPATIAL: _absolute_spatial,
    Subset.RELATIVE_SPATIAL: _relative_spatial,
    Subset.EXISTENCE: _existence,
    Subset.COUNT: _count,
}


def _changed_boxes(
    worlds: Sequence[World], masks: Sequence[np.ndarray]
) -> Float[np.ndarray, "M 4"]:
    """Returns the boxes of the things that are not in all worlds."""
    common = set(worlds[0].things).intersection(*(one.things for one in worlds[1:]))
    boxes = []
    for one, seen in zip(worlds, masks, strict=True):
        for thing, mask in zip(one.things, seen, strict=True):
            if thing not in common:
                rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
                boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return np.array(boxes, np.float64)


# Words.

_WORDS: dict[Subset, tuple[tuple[str, ...], ...]] = {
    Subset.ABSOLUTE_SIZE: (
        ("large", "medium-sized", "small"),
        ("big", "mid-sized", "little"),
    ),
    Subset.RELATIVE_SIZE: (
        ("smaller than", "as large as", "larger than"),
        ("less big than", "equal in size to", "bigger than"),
    ),
    Subset.ABSOLUTE_SPATIAL: (
        (
            "in the top left corner",
            "at the top edge",
            "in the top right corner",
            "at the left edge",
            "in the centre",
            "at the right edge",
            "in the bottom left corner",
            "at the bottom edge",
            "in the bottom right corner",
        ),
    ),
    Subset.RELATIVE_SPATIAL: (
        ("to the left of", "to the right of", "above", "below"),
        (
            "positioned on the left of",
            "positioned on the right of",
            "situated above",
            "placed beneath",
        ),
    ),
    Subset.EXISTENCE: (("there is {a}", "there is no {x}"), ("{a} is there", "no {x} is there")),
    Subset.COUNT: (("one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),),
}
_SENTENCES: dict[Subset, tuple[str, ...]] = {
    Subset.ABSOLUTE_SIZE: ("a {w} {x}", "the {x} is {w}", "there is a {w} {x}"),
    Subset.RELATIVE_SIZE: ("the {x} is {w} the {y}", "{a} that is {w} {b}"),
    Subset.ABSOLUTE_SPATIAL: ("{a} {w}", "the {x} is {w}", "there is {a} {w}"),
    Subset.RELATIVE_SPATIAL: ("{a} {w} {b}", "the {x} is {w} the {y}", "there is {a} {w} {b}"),
    Subset.EXISTENCE: ("{w}", "in the image {w}"),
    Subset.COUNT: ("{n}", "an image of {n}", "there {is} {n}"),
}
"""Texts of a case are worded alike: `{x}` and `{y}` are names, `{a}` and `{b}` the same with
an article, `{w}` the words that differ, `{n}` a number with its name."""


def wordings(claim: Claim) -> list[str]:
    """Returns every text that says a claim, in an order that is the same for all of a case."""
    x = _name(claim.subject)
    y = _name(claim.other) if claim.other is not None else ""
    found = []
    for words in _WORDS[claim.subset]:
        word = words[claim.member].format(x=x, a=_with_article(x))
        several = claim.member > 0
        number = f"{word} {_name(claim.subject, several=several)}"
        for sentence in _SENTENCES[claim.subset]:
            told = {"x": x, "y": y, "a": _with_article(x), "b": _with_article(y), "w": word}
            found.append(sentence.format(n=number, **told, **{"is": "are" if several else "is"}))
    return found


def name(look: Look) -> str:
    """Returns what a thing is called, with its article: "an orange star"."""
    return _with_article(_name(look))


def corpus(config: Config) -> list[str]:
    """Returns texts of all claims of every look, beside some other: what a tokenizer learns."""
    every = _every_look(config)
    claims = [
        Claim(subset, member, look, other)
        for subset in config.subsets
        for member in range(ALTERNATIVES[subset])
        for look, other in zip(every, [*every[1:], every[0]], strict=True)
    ]
    return [text for claim in claims for text in wordings(claim)] + [name(look) for look in every]


def _texts(claims: Sequence[Claim], rng: np.random.Generator) -> tuple[str, ...]:
    ways = [wordings(claim) for claim in claims]
    chosen = int(rng.integers(len(ways[0])))
    return tuple(way[chosen] for way in ways)


def _name(look: Look, *, several: bool = False) -> str:
    kind, colour = look
    return f"{colour} {sets.plural(kind) if several else kind}"


def _with_article(name: str) -> str:
    return f"{'an' if name[:1] in 'aeiou' else 'a'} {name}"
