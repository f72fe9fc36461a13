"""Phrases read back from their text by a second, blunt implementation of what they mean."""

import dataclasses
import re

import numpy as np
import pytest

from seg_jax.scenes import draw, meaning, phrases, world
from seg_jax.scenes.meaning import Expression, Fact, Order, Place, Side
from seg_jax.scenes.things import Colour, Kind, Texture
from seg_jax.scenes.world import HeldOut

PRESETS = (world.easy, world.standard, world.hard, world.varied)

COLOURS = ["red", "green", "blue", "yellow", "purple", "orange"]
COLOURS += ["cyan", "pink", "brown", "white", "black"]
TEXTURES = ["plain", "striped", "dotted", "checkered"]
NOUNS = sorted([*map(str, Kind), "object", "thing"], key=len, reverse=True)
FIRSTS = {
    "leftmost": "x",
    "rightmost": "-x",
    "topmost": "y",
    "highest": "y",
    "bottommost": "-y",
    "lowest": "-y",
    "largest": "-area",
    "biggest": "-area",
    "smallest": "area",
}
NUMBERS = {"first": 0, "second": 1, "third": 2}
REGIONS = "top left|top right|bottom left|bottom right|left|right|top|bottom|centre|middle"
LINKS = r"to the left of|left of|to the right of|right of|above|over|below|under"


class Scene:
    """The image as a reader of phrases sees it: no margins, everything from pixels."""

    def __init__(self, made, masks):
        self.looks = [(str(t.kind), str(t.colour), str(t.texture)) for t in made.things]
        height, width = masks.shape[1:]
        self.values = []
        for mask in masks:
            points = np.argwhere(mask) + 0.5
            y, x = points.mean(0) / (height, width)
            self.values.append({"x": x, "y": y, "area": len(points)})

    def value(self, index, key):
        return -self.values[index][key[1:]] if key[0] == "-" else self.values[index][key]

    def read(self, text):
        """Returns the things that a phrase means."""
        text = text.removeprefix("the ")
        if found := re.fullmatch(rf"(.*?) ({LINKS}) (the .*)", text):
            return self.relation(*found.groups())
        if found := re.fullmatch(
            r"(first|second|third) (.*) from the (left|right|top|bottom)", text
        ):
            number, core, edge = found.groups()
            key = {"left": "x", "right": "-x", "top": "y", "bottom": "-y"}[edge]
            return self.ranked(core, key, NUMBERS[number])
        if found := re.fullmatch(r"(?:(second|third) )?(\w+(?:most|est)) (.*)", text):
            number, word, core = found.groups()
            return self.ranked(core, FIRSTS[word], NUMBERS[number] if number else 0)
        if found := re.fullmatch(
            rf"(.*?) (?:on|at|in|near) the ({REGIONS})(?: side| corner)?", text
        ):
            core, region = found.groups()
            return {i for i in self.core(core) if self.within(i, region)}
        return self.core(text)

    def core(self, text):
        head, _, tail = text.partition(" that is ")
        noun = next(noun for noun in NOUNS if head.endswith(noun))
        words = head.removesuffix(noun).split() + tail.replace(" and ", " ").split()
        assert set(words) <= {*COLOURS, *TEXTURES}, text
        kinds = {str(kind) for kind in Kind} if noun in ("object", "thing") else {noun}
        return {
            index
            for index, look in enumerate(self.looks)
            if look[0] in kinds and all(word in look[1:] for word in words)
        }

    def ranked(self, core, key, number):
        line = sorted(self.core(core), key=lambda index: self.value(index, key))
        assert len(line) > 1, "a rank among one thing says nothing"
        return {line[number]}

    def within(self, index, region):
        x, y = self.values[index]["x"], self.values[index]["y"]
        if region in ("centre", "middle"):
            return abs(x - 0.5) < 0.18 and abs(y - 0.5) < 0.18
        sides = {"left": x < 0.5, "right": x > 0.5, "top": y < 0.5, "bottom": y > 0.5}
        return all(sides[word] for word in region.split())

    def relation(self, core, link, inner):
        anchors = self.read(inner)
        assert len(anchors) == 1, inner
        (anchor,) = anchors
        key = {"left": "x", "right": "-x", "above": "y", "over": "y"}
        key = next((key[word] for word in link.split() if word in key), "-y")
        return {
            index
            for index in self.core(core) - anchors
            if self.value(index, key) < self.value(anchor, key)
        }


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "style",
    [phrases.Style(), phrases.rich(), dataclasses.replace(phrases.rich(), full=True)],
    ids=["plain", "rich", "full"],
)
def test_a_phrase_means_its_thing_and_no_other(preset, style):
    style = dataclasses.replace(style, wordings=8)
    told = 0
    for seed in range(25):
        made = world.make(preset(), seed)
        masks = draw.render(made)[1]
        scene = Scene(made, masks)
        for index, ways in enumerate(phrases.describe(made, masks, style=style)):
            assert len(set(ways)) == len(ways)
            assert ways or not made_distinct(made)
            told += len(ways)
            for way in ways:
                assert scene.read(way) == {index}, (seed, way)
    assert told > 300


def made_distinct(made):
    return len({(one.kind, one.colour) for one in made.things}) == len(made.things)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_name_that_fits_one_thing_is_left_out(preset):
    for seed in range(40):
        made = world.make(preset(), seed)
        masks = draw.render(made)[1]
        scene = Scene(made, masks)
        for index, ways in enumerate(phrases.describe(made, masks)):
            kind, colour, _ = scene.looks[index]
            for way in (f"the {kind}", f"the {colour} object", f"the {colour} {kind}"):
                assert (way in ways) == (scene.read(way) == {index})


def test_every_family_of_expressions_is_used():
    used = set()
    for seed in range(30):
        made = world.make(world.hard(), seed)
        facts = meaning.facts(made, draw.render(made)[1])
        for found in phrases.expressions(facts, phrases.rich()).values():
            for expression in found:
                used |= {expression.rank, expression.place, (expression.beside or [None])[0]}
    assert set(Place) <= used
    assert set(Side) <= used
    assert {(order, place) for order in Order for place in (1, 2, 3)} <= used


def fact(**changes):
    return Fact(
        **{
            "kind": Kind.STAR,
            "colour": Colour.RED,
            "texture": Texture.PLAIN,
            "x_unit": 0.5,
            "y_unit": 0.5,
            "area_unit": 0.05,
            "extent_unit": 0.25,
        }
        | changes
    )


def test_borderline_cases_name_nothing():
    star = Expression(kind=Kind.STAR)
    left = dataclasses.replace(star, place=Place.LEFT)
    first = dataclasses.replace(star, rank=(Order.LEFT, 1))
    large = dataclasses.replace(star, rank=(Order.LARGE, 1))
    clear = {0: fact(x_unit=0.2, area_unit=0.1, extent_unit=0.4), 1: fact(x_unit=0.8)}
    close = {0: fact(x_unit=0.39, area_unit=0.06), 1: fact(x_unit=0.43)}
    for expression in (left, first, large):
        assert meaning.fits_only(expression, 0, clear)
        assert not meaning.fits_only(expression, 1, clear)
        assert not meaning.fits_only(expression, 0, close)
        assert meaning.matches(expression, clear) == {0}
        assert meaning.matches(expression, close, lenient=True) == {0, 1}


def test_a_relation_needs_one_certain_anchor():
    inner = Expression(kind=Kind.RING)
    seen = {0: fact(x_unit=0.2), 1: fact(kind=Kind.RING, x_unit=0.6)}
    for side, fits in ((Side.LEFT, True), (Side.RIGHT, False), (Side.ABOVE, False)):
        asked = Expression(beside=(side, inner))
        assert meaning.fits_only(asked, 0, seen) == fits
    two = {**seen, 2: fact(kind=Kind.RING, x_unit=0.8)}
    assert meaning.matches(Expression(beside=(Side.LEFT, inner)), two) == set()
    diagonal = {0: fact(x_unit=0.3, y_unit=0.2), 1: fact(kind=Kind.RING, x_unit=0.5)}
    assert not meaning.fits_only(Expression(beside=(Side.LEFT, inner)), 0, diagonal)


def test_hidden_things_are_neither_named_nor_counted():
    made = world.make(world.easy(), 0)
    twin = dataclasses.replace(made.things[1], size_unit=0.05)
    made = dataclasses.replace(made, things=(twin, *made.things))
    masks = draw.render(made)[1]
    assert not masks[0].any()
    told = phrases.describe(made, masks)
    assert told[0] == ()
    assert f"the {made.things[2].kind}" in told[2]


def test_limits_keep_the_simplest_or_draw_some():
    made = world.make(world.standard(), 2)
    masks = draw.render(made)[1]
    every = phrases.describe(made, masks, style=phrases.rich())
    assert phrases.describe(made, masks, style=phrases.rich(), limit=5) == tuple(
        ways[:5] for ways in every
    )
    drawn = [
        phrases.describe(
            made, masks, style=phrases.rich(), limit=5, rng=np.random.default_rng(seed)
        )
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    for some, ways in zip(drawn[0], every, strict=True):
        assert len(some) == 5
        assert set(some) <= set(ways)


def test_the_easy_phrases_are_those_one_expects():
    for seed in range(50):
        made = world.make(world.easy(), seed)
        for thing, ways in zip(
            made.things, phrases.describe(made, draw.render(made)[1]), strict=True
        ):
            assert f"the {thing.colour} {thing.kind}" in ways
            assert ways[0] in (f"the {thing.kind}", f"the {thing.colour} object") or (
                len(ways) == 2
            )


def test_full_names_leave_out_the_short_ones():
    style = phrases.Style(full=True)
    for seed in range(20):
        made = world.make(world.easy(), seed)
        told = phrases.describe(made, draw.render(made)[1], style=style)
        for thing, ways in zip(made.things, told, strict=True):
            assert ways == (f"the {thing.colour} {thing.kind}", f"{thing.colour} {thing.kind}")


def test_the_corpus_is_drawn_from_the_vocabulary():
    told = phrases.corpus(np.random.default_rng(0), 2500)
    assert len(told) == 2500
    assert told[:200] == phrases.corpus(np.random.default_rng(0), 200)
    words = {word for way in told for word in way.split()}
    assert words <= set(phrases.vocabulary())
    assert len(words) > 0.95 * len(phrases.vocabulary())
    assert "the" in words
    assert {*COLOURS, *TEXTURES, "pair", "of", "discs"} <= set(phrases.vocabulary())


def test_the_corpus_obeys_the_config():
    config = dataclasses.replace(
        world.easy(), held_out=((Kind.STAR, Colour.RED),), mode=HeldOut.EXCLUDE
    )
    told = phrases.corpus(np.random.default_rng(0), 1500, config=config, style=phrases.Style())
    assert "the red star" not in told
    assert {"the red circle", "the blue star"} <= set(told)


def test_wrong_calls_say_what_to_do():
    made = world.make(world.easy(), 0)
    masks = draw.render(made)[1]
    with pytest.raises(ValueError, match=r"expected .*, got .*; do: "):
        phrases.describe(made, masks[:1])
    with pytest.raises(ValueError, match=r"expected .*, got .*; do: "):
        phrases.describe(made, masks, limit=0)
    with pytest.raises(ValueError, match=r"expected .*, got .*; do: "):
        phrases.wordings(Expression(rank=(Order.LEFT, 9)))
