"""Of a case one attribute differs and nothing else; every text fits its own image and no other."""

import dataclasses
import itertools

import numpy as np
import pytest

from seg_jax.scenes import contrasts, draw, meaning, world
from seg_jax.scenes.contrasts import ALTERNATIVES, Config, Subset
from seg_jax.scenes.things import Colour, Kind

CASES = 120
"""Twenty of each subset."""
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CELLS = (
    "top left corner",
    "top edge",
    "top right corner",
    "left edge",
    "centre",
    "right edge",
    "bottom left corner",
    "bottom edge",
    "bottom right corner",
)


@pytest.fixture(scope="module")
def cases():
    return [contrasts.make(Config(), seed) for seed in range(CASES)]


def said(text: str, subset: Subset) -> int:
    """Returns which alternative a text names, read from its words."""

    def first(*groups):
        (found,) = [n for n, words in enumerate(groups) if any(word in text for word in words)]
        return found

    match subset:
        case Subset.ABSOLUTE_SIZE:
            return first(("large", "big"), ("medium", "mid-"), ("small", "little"))
        case Subset.RELATIVE_SIZE:
            return first(("smaller", "less big"), ("as large", "equal"), ("larger", "bigger"))
        case Subset.ABSOLUTE_SPATIAL:
            return first(*((f" {cell}",) for cell in CELLS))
        case Subset.RELATIVE_SPATIAL:
            return first(("left of",), ("right of",), ("above",), ("below", "beneath"))
        case Subset.EXISTENCE:
            return int("no " in text)
        case Subset.COUNT:
            return next(n for n, word in enumerate(NUMBERS) if word in text.split())


def shown(subset: Subset, things, subject, other) -> int | None:
    """Returns which alternative a world shows, by what it was drawn of."""
    (mine, *more) = [one for one in things if (one.kind, one.colour) == subject] or [None]
    if subset is Subset.COUNT:
        return len(more)
    if subset is Subset.EXISTENCE:
        return int(mine is None)
    x, y = mine.centre_unit
    if subset is Subset.ABSOLUTE_SIZE:
        return next(n for n, least in enumerate((0.7, 0.3, 0)) if mine.size_unit > least)
    if subset is Subset.ABSOLUTE_SPATIAL:
        return 3 * int(3 * y) + int(3 * x)
    (fixed,) = [one for one in things if (one.kind, one.colour) == other]
    if subset is Subset.RELATIVE_SIZE:
        return 1 + int(np.sign(round(mine.size_unit - fixed.size_unit, 6)))
    across, down = x - fixed.centre_unit[0], y - fixed.centre_unit[1]
    side = abs(down) > abs(across)
    return 2 * side + int((down if side else across) > 0)


def test_cases_have_the_published_numbers_of_alternatives(cases):
    for seed, case in enumerate(cases):
        assert case.subset is list(Subset)[seed % 6]
        assert len(case.images) == len(case.texts) == ALTERNATIVES[case.subset]
        assert case.images.dtype == np.uint8
        assert len(set(case.texts)) == len(case.texts)


def test_every_text_fits_its_image_by_what_was_drawn(cases):
    for case in cases:
        claim = case.claims[0]
        shows = [shown(case.subset, w.things, claim.subject, claim.other) for w in case.worlds]
        assert shows == [said(text, case.subset) for text in case.texts]
        assert shows == list(range(len(shows)))
        for text in case.texts:
            assert f"{claim.subject[1]} {claim.subject[0]}" in text
            assert claim.other is None or f"{claim.other[1]} {claim.other[0]}" in text


def check_truth(cases):
    """Fails unless what can be seen makes texts times images the identity."""
    for case in cases:
        seen = [meaning.facts(one, draw.render(one)[1]) for one in case.worlds]
        table = [[contrasts.holds(claim, facts) for facts in seen] for claim in case.claims]
        np.testing.assert_array_equal(table, np.eye(len(seen), dtype=bool))


def test_every_text_fits_its_image_and_no_other_by_what_is_seen(cases):
    check_truth(cases)


@pytest.mark.slow
def test_truth_is_the_identity_on_five_thousand_cases():
    check_truth(contrasts.make(Config(), seed) for seed in range(CASES, 5000))


def test_images_are_equal_but_for_what_was_replaced(cases):
    for case in cases:
        side = case.images.shape[1]
        inside = np.zeros((side, side), bool)
        for left, top, right, bottom in case.boxes_px.astype(int):
            inside[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2] = True
        assert (case.images == case.images[:1])[:, ~inside].all()
        for i, image in enumerate(case.images):
            for other in case.images[:i]:
                assert (image != other)[inside].any()
        first = case.worlds[0]
        for one in case.worlds:
            assert dataclasses.replace(one, things=first.things) == first
            np.testing.assert_array_equal(draw.render(one)[0], case.images[case.worlds.index(one)])


CHANGED = {
    Subset.ABSOLUTE_SIZE: {"size_unit"},
    Subset.RELATIVE_SIZE: {"size_unit"},
    Subset.ABSOLUTE_SPATIAL: {"centre_unit"},
    Subset.RELATIVE_SPATIAL: {"centre_unit"},
}


def test_only_one_attribute_of_one_thing_differs(cases):
    for case in cases:
        worlds = [one.things for one in case.worlds]
        if case.subset not in CHANGED:  # One image's things are among the other's.
            for less, more in itertools.pairwise(worlds):
                small, large = sorted((less, more), key=len)
                assert len(large) - len(small) == 1
                assert set(small) < set(large)
            continue
        differing = set()
        for parts in zip(*worlds, strict=True):
            for field in dataclasses.fields(parts[0]):
                if len({getattr(part, field.name) for part in parts}) > 1:
                    differing.add(((parts[0].kind, parts[0].colour), field.name))
        assert {name for _, name in differing} == CHANGED[case.subset]
        assert {look for look, _ in differing} == {case.claims[0].subject}


def test_words_do_not_give_the_answer_away(cases):
    """Texts of a case are worded alike: without the words that differ they are one text."""
    for case in cases:
        ways = [contrasts.wordings(claim) for claim in case.claims]
        places = {way.index(text) for way, text in zip(ways, case.texts, strict=True)}
        assert len(places) == 1
        assert len({len(way) for way in ways}) == 1
        every = [text for way in ways for text in way]
        assert len(set(every)) == len(every)


def test_a_case_depends_on_its_seed_alone():
    one, other = (contrasts.make(Config(), seed) for seed in (7, 7))
    np.testing.assert_array_equal(one.images, other.images)
    assert one.texts == other.texts
    only = Config(subsets=(Subset.COUNT,), side=40, kinds=(Kind.STAR, Kind.RING))
    counted = contrasts.make(only, 3)
    assert counted.images.shape == (9, 40, 40, 3)
    assert {thing.kind for one in counted.worlds for thing in one.things} <= {Kind.STAR, Kind.RING}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kinds": (Kind.STAR,)}, "kinds: expected at least 2"),
        ({"colours": (Colour.RED, Colour.RED)}, "colours: expected at least 2, each once"),
        ({"subsets": ()}, "subsets: expected at least 1"),
        ({"side": 16}, "side: expected 32 to 1024 pixels, got 16"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, told):
    with pytest.raises(ValueError, match=told):
        Config(**options)
    with pytest.raises(ValueError, match="expected a seed >= 0"):
        contrasts.make(Config(), -1)


def test_grounds_are_those_of_worlds():
    """What lies behind keeps clear of every colour that cases have."""
    case, config = contrasts.make(Config(), 11), Config()
    wanted = world.Config(
        height=64, width=64, count=(1, 1), kinds=config.kinds, colours=config.colours, noise=3.0
    )
    assert case.worlds[0].ground == world.make(wanted, 11).ground
