"""Images agree with their masks, show true colours, change only where a thing changed."""

import dataclasses
import itertools
import time
import timeit

import numpy as np
import pytest

from seg_jax.scenes import draw, things, world
from seg_jax.scenes.things import Colour, Kind, Texture, Thing
from seg_jax.scenes.world import Ground, Pattern, World

GROUND = Ground(
    pattern=Pattern.PLAIN,
    first=(120, 130, 110),
    second=(150, 150, 150),
    period_unit=0.2,
    rotation=0.4,
    seed=3,
)


def thing(**changes):
    return Thing(
        **{"kind": Kind.CIRCLE, "colour": Colour.RED, "centre_unit": (0.5, 0.5), "size_unit": 0.5}
        | changes
    )


def scene(*drawn, **changes):
    return World(**{"height": 48, "width": 64, "ground": GROUND, "things": drawn} | changes)


def test_x_runs_right_y_runs_down_and_sizes_follow_the_shorter_side():
    image, masks = draw.render(scene(thing(centre_unit=(0.75, 0.25), size_unit=0.25)))
    rows, columns = np.nonzero(masks[0])
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((48, 12), abs=1e-9)
    assert masks.sum() == pytest.approx(np.pi * 6**2, rel=0.04)
    assert tuple(image[12, 48]) == things.RGB[Colour.RED]
    assert tuple(image[40, 5]) == GROUND.first


def test_a_positive_rotation_turns_clockwise_as_seen():
    up = thing(kind=Kind.SEMICIRCLE, size_unit=0.8)
    lit = {
        turn: draw.render(scene(dataclasses.replace(up, rotation=turn)))[1][0]
        for turn in (0.0, np.pi / 2)
    }
    assert np.nonzero(lit[0.0])[0].max() < 24
    assert np.nonzero(lit[np.pi / 2])[1].min() >= 32


def test_the_topmost_thing_owns_the_pixel():
    below, above = thing(), thing(colour=Colour.BLUE, size_unit=0.2)
    image, masks = draw.render(scene(below, above))
    assert not (masks[0] & masks[1]).any()
    assert tuple(image[24, 32]) == things.RGB[Colour.BLUE]
    hidden = draw.render(scene(above, below))[1]
    assert not hidden[0].any()
    np.testing.assert_array_equal(hidden[1], masks[0] | masks[1])


def test_things_may_reach_past_the_image_or_lie_outside():
    far = thing(centre_unit=(3.0, -2.0))
    cut = thing(centre_unit=(0.0, 1.0))
    _, masks = draw.render(scene(far, cut))
    assert not masks[0].any()
    assert masks[1].sum() == pytest.approx(np.pi * 12**2 / 4, rel=0.05)


@pytest.mark.parametrize("colour", Colour)
@pytest.mark.parametrize("shade", [-0.1, 0.0, 0.1])
def test_a_plain_thing_shows_its_colour_nearest(colour, shade):
    image, masks = draw.render(scene(thing(colour=colour, shade=shade)))
    seen = np.median(image[masks[0]], axis=0)
    far = {name: np.linalg.norm(seen - rgb) for name, rgb in things.RGB.items()}
    assert min(far, key=far.get) == colour


def test_textures_differ_and_keep_the_outline():
    drawn = {t: draw.render(scene(thing(texture=t, size_unit=0.9))) for t in Texture}
    images = {texture: image for texture, (image, _) in drawn.items()}
    for texture in Texture:
        np.testing.assert_array_equal(drawn[texture][1], drawn[Texture.PLAIN][1])
        for other in Texture:
            if other != texture:
                assert (images[texture] != images[other]).any(-1).mean() > 0.05
    inside = drawn[Texture.PLAIN][1][0]
    assert np.ptp(images[Texture.PLAIN][inside].astype(int)[:, 0]) < 60
    # Stripes run along the thing's own y axis.
    stripes = images[Texture.STRIPED][18:30, 25:39, 0].astype(float)
    assert stripes.std(1).mean() > 10 * stripes.std(0).mean()


def test_one_changed_attribute_changes_the_image_near_the_thing_only():
    made = world.make(world.standard(), 5)
    image, _ = draw.render(made)
    first = made.things[0]
    for change in (
        {"colour": Colour.CYAN if first.colour != Colour.CYAN else Colour.RED},
        {"kind": Kind.CIRCLE if first.kind != Kind.CIRCLE else Kind.STAR},
        {"size_unit": first.size_unit * 0.8},
    ):
        changed = dataclasses.replace(first, **change)
        other = dataclasses.replace(made, things=(changed, *made.things[1:]))
        difference = (draw.render(other)[0] != image).any(-1)
        reach = things.radius_px(first, height=made.height, width=made.width) + 1.5
        x, y = first.centre_unit[0] * made.width, first.centre_unit[1] * made.height
        rows, columns = np.nonzero(difference)
        assert len(rows)
        assert np.hypot(columns + 0.5 - x, rows + 0.5 - y).max() <= reach


def test_contrast_runs_from_camouflage_to_its_own_paint():
    ground = dataclasses.replace(GROUND, pattern=Pattern.NOISE)
    empty = draw.render(scene(ground=ground))[0].astype(float)
    gaps = []
    for contrast in (0.0, 0.5, 1.0):
        image, masks = draw.render(scene(thing(contrast=contrast), ground=ground))
        gaps.append(np.linalg.norm(image[masks[0]].mean(0) - empty.mean((0, 1))))
    assert gaps[0] < 15 < gaps[1] < gaps[2]


@pytest.mark.parametrize("pattern", Pattern)
def test_grounds_lie_between_their_tones_at_any_size(pattern):
    ground = dataclasses.replace(GROUND, pattern=pattern)
    for height, width in ((48, 64), (96, 128), (37, 16)):
        image, masks = draw.render(scene(ground=ground, height=height, width=width))
        assert masks.shape == (0, height, width)
        assert (image >= np.minimum(ground.first, ground.second) - 1).all()
        assert (image <= np.maximum(ground.first, ground.second) + 1).all()
        assert (np.ptp(image, axis=(0, 1)).max() > 10) == (pattern != Pattern.PLAIN)


def test_a_world_may_be_drawn_at_another_resolution():
    made = dataclasses.replace(world.make(world.standard(), 8), noise=0.0)
    small = draw.render(made)[1]
    large = draw.render(dataclasses.replace(made, height=288, width=288))[1]
    np.testing.assert_array_equal(large[:, 1::3, 1::3], small)


def test_noise_has_the_asked_spread_and_the_world_s_seed():
    calm = scene(thing(size_unit=0.2), height=96, width=96)
    noisy = dataclasses.replace(calm, noise=5.0, seed=4)
    difference = draw.render(noisy)[0].astype(float) - draw.render(calm)[0]
    assert difference.std() == pytest.approx(5.0, rel=0.05)
    assert abs(difference.mean()) < 0.2
    np.testing.assert_array_equal(draw.render(noisy)[0], draw.render(noisy)[0])
    assert (draw.render(dataclasses.replace(noisy, seed=5))[0] != draw.render(noisy)[0]).any()


def test_easy_scenes_are_quick():
    """A loose ratio to one pass of plain arithmetic over the image, several times to spare.

    Processor time of both, measured in turn: what else the machine does meets both or neither.
    """
    config = world.easy()
    world.make(config, 0)
    grid = np.random.default_rng(0).random((64, 64, 3))

    def seconds(function, number):
        return timeit.timeit(function, number=number, timer=time.process_time) / number

    def ratio():
        plain = seconds(lambda: np.arctan2(grid, 0.5), 400)
        seeds = itertools.count()
        return seconds(lambda: draw.render(world.make(config, next(seeds))), 20) / plain

    assert min(ratio() for _ in range(5)) < 120
