"""Level functions of things against polygons that shapely cuts exactly."""

import dataclasses
import math

import numpy as np
import pytest
import shapely
from shapely import affinity

from seg_jax.scenes import things
from seg_jax.scenes.things import Colour, Kind, Thing

HEIGHT, WIDTH = 50, 60


def ring(points):
    return shapely.Polygon(points)


def disc(radius, x=0.0, y=0.0):
    return shapely.Point(x, y).buffer(radius, quad_segs=200)


def regular(sides, first):
    angles = [first + 2 * math.pi * k / sides for k in range(sides)]
    return ring([(math.cos(a), math.sin(a)) for a in angles])


def bar(across, down):
    return shapely.box(-across, -down, across, down)


def outline(thing):
    """The thing as a shapely geometry with an enclosing circle of radius 1, upright."""

    def between(low, high):
        return low + thing.form * (high - low)

    half = math.sqrt(0.5)
    match thing.kind:
        case Kind.CIRCLE:
            return disc(1)
        case Kind.SQUARE:
            return bar(half, half)
        case Kind.TRIANGLE:
            return regular(3, -math.pi / 2)
        case Kind.PENTAGON:
            return regular(5, -math.pi / 2)
        case Kind.HEXAGON:
            return regular(6, 0)
        case Kind.STAR:
            turns = [(-math.pi / 2 + math.pi * k / 5, k) for k in range(10)]
            inner = between(0.38, 0.52)
            return ring(
                [
                    ((inner if k % 2 else 1) * math.cos(a), (inner if k % 2 else 1) * math.sin(a))
                    for a, k in turns
                ]
            )
        case Kind.CROSS:
            arm = between(0.28, 0.4)
            reach = math.sqrt(1 - arm**2)
            return bar(reach, arm) | bar(arm, reach)
        case Kind.RING:
            return disc(1) - disc(between(0.45, 0.62))
        case Kind.FRAME:
            hole = half * between(0.5, 0.65)
            return bar(half, half) - bar(hole, hole)
        case Kind.CRESCENT:
            return disc(1) - disc(0.82, x=between(0.42, 0.58))
        case Kind.ELLIPSE:
            return affinity.scale(disc(1), 1, between(0.45, 0.65), origin=(0, 0))
        case Kind.RECTANGLE:
            angle = math.atan(between(0.4, 0.6))
            return bar(math.cos(angle), math.sin(angle))
        case Kind.DIAMOND:
            short = between(0.5, 0.65)
            return ring([(1, 0), (0, short), (-1, 0), (0, -short)])
        case Kind.SEMICIRCLE:
            return disc(1) & shapely.box(-1, -1, 1, 0)
        case Kind.PAIR:
            small = between(0.36, 0.45)
            return disc(small, x=1 - small) | disc(small, x=small - 1)
        case Kind.BLOB:
            sizes = np.array(thing.wobble[:4]) + 0.2
            sizes *= between(0.25, 0.5) / sizes.sum()
            angle = np.linspace(0, 2 * np.pi, 3000, endpoint=False)[:, None]
            waves = np.cos(np.arange(2, 6) * angle + 2 * np.pi * np.array(thing.wobble[4:]))
            reach = (1 + waves @ sizes) / (1 + sizes.sum())
            return ring(np.c_[np.cos(angle[:, 0]) * reach, np.sin(angle[:, 0]) * reach])


def placed(thing):
    """The thing's outline in pixels of the image."""
    radius = 0.5 * thing.size_unit * min(HEIGHT, WIDTH)
    shape = affinity.scale(outline(thing), radius, radius, origin=(0, 0))
    shape = affinity.rotate(shape, thing.rotation, origin=(0, 0), use_radians=True)
    return affinity.translate(shape, thing.centre_unit[0] * WIDTH, thing.centre_unit[1] * HEIGHT)


def samples(kind):
    rng = np.random.default_rng(list(Kind).index(kind))
    for _ in range(4):
        yield Thing(
            kind=kind,
            colour=Colour.RED,
            centre_unit=tuple(rng.uniform(0.35, 0.65, 2).tolist()),
            size_unit=float(rng.uniform(0.3, 0.6)),
            rotation=float(rng.uniform(-math.pi, math.pi)),
            form=float(rng.random()),
            wobble=tuple(rng.random(8).tolist()),
        )


def centres(field):
    rows, columns = field.level_px.shape
    x, y = np.meshgrid(field.left + np.arange(columns) + 0.5, field.top + np.arange(rows) + 0.5)
    return x, y


@pytest.mark.parametrize("kind", Kind)
def test_the_level_is_negative_exactly_inside(kind):
    for thing in samples(kind):
        field = things.field(thing, height=HEIGHT, width=WIDTH)
        x, y = centres(field)
        shape = placed(thing)
        inside = shapely.contains_xy(shape, x, y)
        clear = shapely.distance(shape.boundary, shapely.points(x, y)) > 0.005
        assert clear.mean() > 0.97
        np.testing.assert_array_equal((field.level_px < 0)[clear], inside[clear])
        # The window holds the whole thing with a pixel to spare.
        assert not (field.level_px < 0)[[0, -1]].any()
        assert not (field.level_px < 0)[:, [0, -1]].any()


@pytest.mark.parametrize("kind", Kind)
def test_the_soft_edge_is_the_share_of_the_pixel(kind):
    for thing in samples(kind):
        field = things.field(thing, height=HEIGHT, width=WIDTH)
        x, y = centres(field)
        cells = shapely.box(x - 0.5, y - 0.5, x + 0.5, y + 0.5)
        share = shapely.area(shapely.intersection(cells, placed(thing)))
        error = np.clip(0.5 - field.level_px, 0, 1) - share
        edge = (share > 0) & (share < 1)
        assert np.abs(error[~edge]).max() < 0.25
        assert np.abs(error[edge]).mean() < 0.08
        assert abs(error.sum()) < 0.04 * share.sum()


def test_the_enclosing_circle_encloses_every_kind():
    for kind in Kind:
        for thing in samples(kind):
            shape = placed(dataclasses.replace(thing, rotation=0.0))
            middle = shapely.Point(thing.centre_unit[0] * WIDTH, thing.centre_unit[1] * HEIGHT)
            radius = things.radius_px(thing, height=HEIGHT, width=WIDTH)
            assert shape.hausdorff_distance(middle) <= radius + 1e-6
            if kind != Kind.BLOB:
                assert shape.hausdorff_distance(middle) >= radius - 1e-6


def test_words_belong_to_one_attribute_and_colours_are_far_apart():
    words = [*things.Kind, *things.Colour, *things.Texture]
    assert len({str(word) for word in words}) == len(words)
    palette = np.array([things.RGB[colour] for colour in Colour], float)
    apart = np.linalg.norm(palette[:, None] - palette, axis=-1) + 1000 * np.eye(len(palette))
    assert apart.min() > 80


@pytest.mark.parametrize("radius", [1e-6, 1.0, 1e6])
def test_the_middle_of_an_ellipse_is_as_deep_as_its_short_half_axis(radius):
    thing = Thing(kind=Kind.ELLIPSE, colour=Colour.RED, centre_unit=(0.5, 0.5), size_unit=0.2)
    near, middle = things.level(thing, np.array([1e-5, 0.0]) * radius, np.zeros(2), radius=radius)
    ends = things.level(thing, np.zeros(1), np.array([0.5 * radius]), radius=radius)
    assert middle < ends < 0
    assert near < 0
