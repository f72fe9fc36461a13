"""Worlds keep their promises: determinism, visibility, held-out combinations, errors."""

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from seg_jax.scenes import draw, things, world
from seg_jax.scenes.things import Colour, Kind, Texture
from seg_jax.scenes.world import HeldOut, Pattern

PRESETS = (world.easy, world.standard, world.hard, world.varied)
SEEDS = 300

HELD_OUT = ((Kind.STAR, Colour.RED), (Kind.RING, Colour.BLUE), (Colour.GREEN, Kind.CROSS))


def digest(config, seeds):
    parts = hashlib.sha256()
    for seed in seeds:
        made = world.make(config, seed)
        image, masks = draw.render(made)
        parts.update(repr(made).encode() + image.tobytes() + masks.tobytes())
    return parts.hexdigest()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_world_depends_on_its_seed_alone(preset):
    config = preset()
    forward = [world.make(config, seed) for seed in range(12)]
    backward = [world.make(preset(), seed) for seed in reversed(range(12))]
    assert forward == backward[::-1]
    assert len({repr(made) for made in forward}) == 12


def test_another_process_makes_the_same_worlds():
    code = (
        "import sys; sys.path[:] = sys.argv[1:]\n"
        "from tests.scenes.test_world import *\n"
        "print(digest(world.hard(), [7, 3]), digest(world.easy(), [2**50 + 5]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parents[2]), *sys.path],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "17"},
    )
    mine = [digest(world.hard(), [7, 3]), digest(world.easy(), [2**50 + 5])]
    assert done.stdout.split() == mine


def whole_area(made, thing):
    """Pixels of the thing were it alone on a ground that it cannot leave."""
    x, y = thing.centre_unit
    alone = dataclasses.replace(
        thing, centre_unit=((1 + x) / 3, (1 + y) / 3), size_unit=thing.size_unit / 3
    )
    wide = dataclasses.replace(
        made, things=(alone,), height=3 * made.height, width=3 * made.width, noise=0.0
    )
    return draw.render(wide)[1].sum()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_keep_the_rules_of_visibility(preset):
    config = preset()
    for seed in range(SEEDS):
        made = world.make(config, seed)
        image, masks = draw.render(dataclasses.replace(made, noise=0.0))
        assert image.shape == (made.height, made.width, 3)
        if config.aspect is None:
            assert (made.height, made.width) == (config.height, config.width)
        assert image.dtype == np.uint8
        assert config.count[0] <= len(made.things) <= config.count[1]
        assert masks.sum(0).max() == 1
        areas = masks.sum((1, 2))
        assert areas.min() >= config.least_pixels
        if config.distinct:
            assert len({(one.kind, one.colour) for one in made.things}) == len(made.things)
        if seed % 12 == 0:
            for thing, area in zip(made.things, areas, strict=True):
                assert area >= config.least_visible * whole_area(made, thing) - 1


def test_things_of_one_colour_never_touch():
    for seed in range(60):
        made = world.make(world.hard(), seed)
        masks = draw.render(made)[1]
        for colour in {thing.colour for thing in made.things}:
            same = [
                m for m, thing in zip(masks, made.things, strict=True) if thing.colour == colour
            ]
            for one in range(len(same)):
                for other in same[:one]:
                    assert not (same[one][1:] & other[:-1]).any()
                    assert not (same[one][:-1] & other[1:]).any()
                    assert not (same[one][:, 1:] & other[:, :-1]).any()
                    assert not (same[one][:, :-1] & other[:, 1:]).any()


def test_without_occlusion_every_thing_is_whole():
    config = dataclasses.replace(world.standard(), least_visible=1.0)
    for seed in range(60):
        made = world.make(config, seed)
        masks = draw.render(made)[1]
        alone = [
            draw.render(dataclasses.replace(made, things=(thing,), noise=0.0))[1][0]
            for thing in made.things
        ]
        np.testing.assert_array_equal(masks, np.stack(alone))


@pytest.mark.parametrize("preset", PRESETS)
def test_held_out_combinations_never_or_always_appear(preset):
    rare = (*HELD_OUT, (Kind.SQUARE, Texture.PLAIN, Colour.YELLOW))

    def bears(made):
        looks = [{one.kind, one.colour, one.texture} for one in made.things]
        return any(set(pair) <= look for pair in rare for look in looks)

    for mode, least, most in (
        (HeldOut.EXCLUDE, 0, 0),
        (HeldOut.REQUIRE, 150, 150),
        (HeldOut.ANY, 1, 149),
    ):
        config = dataclasses.replace(preset(), held_out=rare, mode=mode)
        made = [world.make(config, seed) for seed in range(150)]
        assert least <= sum(map(bears, made)) <= most
        for one in made[:50]:
            assert bears(one) == any(world.is_held_out(config, thing) for thing in one.things)
            # The parts of the combinations stay in use.
        kinds = {thing.kind for one in made for thing in one.things}
        assert {Kind.STAR, Kind.RING, Kind.CROSS} <= kinds


def test_the_required_combination_may_stand_anywhere_in_the_order():
    config = dataclasses.replace(world.easy(), held_out=HELD_OUT, mode=HeldOut.REQUIRE)
    first = [world.is_held_out(config, world.make(config, s).things[0]) for s in range(200)]
    assert 60 < sum(first) < 160


def test_worlds_use_all_that_the_config_offers():
    made = [world.make(world.hard(), seed) for seed in range(100)]
    looks = [thing for one in made for thing in one.things]
    assert {thing.kind for thing in looks} == set(Kind)
    assert {thing.colour for thing in looks} == set(Colour)
    assert {thing.texture for thing in looks} == set(Texture)
    assert {one.ground.pattern for one in made} == set(Pattern)
    assert {len(one.things) for one in made} == set(range(4, 9))


def test_varied_worlds_have_every_shape_and_size():
    config = dataclasses.replace(world.varied(), count=(1, 2))
    made = [world.make(config, seed) for seed in range(400)]
    sides = np.array([(one.height, one.width) for one in made])
    shapes = sides[:, 1] / sides[:, 0]
    scales = np.sqrt(sides.prod(1)) / 96
    assert 0.32 < shapes.min() < 0.37
    assert 2.7 < shapes.max() < 3.1
    assert abs(np.median(np.log(shapes))) < 0.15
    assert 0.69 < scales.min() < 0.72
    assert 1.28 < scales.max() < 1.31
    assert abs(np.corrcoef(np.log(shapes), scales)[0, 1]) < 0.15
    assert 0.4 < np.mean([one.noise == 0 for one in made]) < 0.6
    sizes = [thing.size_unit for one in made for thing in one.things]
    assert min(sizes) < 0.15
    assert max(sizes) > 0.65
    vivid = [thing.vivid for one in made for thing in one.things]
    assert min(vivid) < 0.1
    assert max(vivid) > 0.9
    grounds = np.array([one.ground.first for one in made])
    assert 0.02 < (grounds == 0).all(1).mean() < 0.5
    assert 0.02 < (grounds == 255).all(1).mean() < 0.5


def test_any_ground_keeps_clear_of_the_colours_in_its_own_world():
    config = world.varied()
    for seed in range(200):
        made = world.make(config, seed)
        for thing in made.things:
            base, other = things.tones(thing.colour, thing.shade, thing.vivid)
            for tone in (made.ground.first, made.ground.second):
                assert np.linalg.norm(base - tone) >= config.clearance
                if thing.texture != Texture.PLAIN:
                    assert np.linalg.norm(other - tone) >= 0.6 * config.clearance


def test_a_vivid_thing_has_the_pure_colour_of_its_name():
    made = world.make(dataclasses.replace(world.easy(), shade=0.0, kinds=(Kind.CIRCLE,)), 1)
    thing = dataclasses.replace(made.things[0], vivid=1.0, shade=0.0)
    image, masks = draw.render(dataclasses.replace(made, things=(thing,)))
    values, counts = np.unique(image[masks[0]], axis=0, return_counts=True)
    assert tuple(values[counts.argmax()].tolist()) == things.PURE_RGB[thing.colour]


def test_the_ground_keeps_clear_of_the_colours():
    for preset in (world.easy, world.standard, world.hard):
        config = preset()
        first, second = np.array([things.tones(colour) for colour in config.colours]).swapaxes(0, 1)
        for seed in range(40):
            ground = world.make(config, seed).ground
            for tone in (ground.first, ground.second):
                assert np.linalg.norm(first - tone, axis=-1).min() >= config.clearance
                if len(config.textures) > 1:
                    assert np.linalg.norm(second - tone, axis=-1).min() >= 0.6 * config.clearance
            apart = np.linalg.norm(np.subtract(ground.first, ground.second))
            assert config.ground_contrast[0] <= apart <= config.ground_contrast[1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": (3, 2)},
        {"count": (0, 2)},
        {"height": 8},
        {"size_unit": (0.0, 0.5)},
        {"scale": (0.0, 1.0)},
        {"scale": (0.1, 1.0)},
        {"scale": (2.0, 1.0)},
        {"aspect": (3.0, 0.3)},
        {"aspect": (0.0, 1.0)},
        {"aspect": (0.01, 1.0)},
        {"vivid": 1.5},
        {"quiet": -0.1},
        {"size_unit": (0.5, 0.3)},
        {"kinds": ()},
        {"textures": ()},
        {"least_visible": 1.5},
        {"overhang": -0.1},
        {"noise": -1.0},
        {"held_out": ((),)},
        {"mode": HeldOut.REQUIRE},
        {"mode": HeldOut.REQUIRE, "held_out": ((Kind.BLOB, Colour.RED),)},
        {"held_out": tuple((kind,) for kind in Kind)},
        {"kinds": (Kind.STAR,), "colours": (Colour.RED,)},
    ],
)
def test_wrong_configs_say_what_to_do(wrong):
    with pytest.raises(ValueError, match=r"expected .*, got .*; do: "):
        dataclasses.replace(world.easy(), **wrong)


def test_impossible_worlds_say_what_to_do():
    crowded = dataclasses.replace(world.easy(), count=(9, 9), size_unit=(0.5, 0.6))
    with pytest.raises(ValueError, match=r"expected .*, got .*; do: lower count"):
        world.make(crowded, 0)
    with pytest.raises(ValueError, match=r"expected .*, got .*; do: lower clearance"):
        world.make(dataclasses.replace(world.easy(), clearance=400.0), 0)
    with pytest.raises(ValueError, match=r"expected .*, got -1; do: "):
        world.make(world.easy(), -1)
