"""Fills against pycocotools bit for bit, and against slow integers.

All of one canvas go through one program, which is compiled as users do.
`-k twenty_thousand` fills so many shapes under either rule; other tests add to it.
"""

import functools

import compilation
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shapely
import skimage.draw
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from seg_jax.geometry import bitmask, overlap, raster

SIZES = [(96, 128), (37, 53)]
POINTS = 12


def coco_mask(rings, height, width):
    """Returns what pycocotools draws for a list of rings in pixels."""
    flat = [np.asarray(ring, np.float64).ravel().tolist() for ring in rings if len(ring) >= 3]
    if not flat:
        return np.zeros((height, width), bool)
    return coco.decode(coco.merge(coco.frPyObjects(flat, height, width))).astype(bool)


def center_mask(ring, height, width):
    """Returns the pixels whose centre lies in a ring of 1/256 px integers, one by one."""
    ring = np.asarray(ring, np.int64)
    x = 256 * np.arange(width, dtype=np.int64) + 128
    y = (256 * np.arange(height, dtype=np.int64) + 128)[:, None]
    inside = np.zeros((height, width), bool)
    for begin, end in zip(ring, np.roll(ring, -1, 0), strict=True):
        (x0, y0), (x1, y1) = sorted([tuple(begin), tuple(end)])
        below = y0 * (x1 - x0) + (x - x0) * (y1 - y0) <= y * (x1 - x0)
        inside ^= below & (x0 <= x) & (x < x1)
    return inside


def draw(kind, rng, count, height, width):
    """Returns count rings of one kind as float32 pixels [count, POINTS, 2] and their lengths."""
    shape = (count, POINTS, 2)
    scale = np.array([width, height])
    lengths = rng.integers(3, POINTS + 1, count)
    points = rng.random(shape) * scale
    if kind == "integers":
        points = np.round(points)
    elif kind == "tenths":
        points = np.round(points, 1)
    elif kind == "fifths":
        points = np.round(points * 5) / 5
    elif kind == "halves":
        points = np.round(points * 2) / 2
    elif kind == "unit":
        points = np.float32(np.round(points / scale, 3)) * np.float32(scale)
    elif kind == "outside":
        points = (rng.random(shape) * 5 - 2) * scale
        points = np.where(rng.random((count, 1, 1)) < 0.5, np.round(points), points)
    elif kind == "spiky":
        angle = np.arange(POINTS) * 2 * np.pi / POINTS + rng.random((count, 1))
        radius = rng.random((count, POINTS)) * 0.7 * min(height, width)
        points = radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1) + scale / 2
    elif kind == "tiny":
        points = rng.random((count, 1, 2)) * scale + rng.random(shape) * rng.choice([0.3, 1.5, 3])
    elif kind == "collinear":
        points[:, :, 1] = points[:, :1, 1] + (points[:, :, 0] - 3) * rng.integers(-2, 3, (count, 1))
        points = np.round(points)
    elif kind == "repeated":
        points = np.round(points / 8) * 8
        points[:, 1::2] = points[:, ::2]
    elif kind == "ties":  # N t / D = h + 1/2 happens often at odd slopes over even runs
        points = np.round(points / 2) * 2 + rng.choice([0, 0.2, 0.4, 0.6, 0.8], shape)
    return points.astype(np.float32), lengths


KINDS = ["floats", "integers", "tenths", "fifths", "halves", "unit", "outside", "spiky"]
KINDS += ["tiny", "collinear", "repeated", "ties"]


@functools.partial(
    jax.jit,
    static_argnames=("height", "width", "rule", "rings"),
    compiler_options=compilation.as_users(),
)
def filled(points, used, size, *, height, width, rule="coco", rings="union"):
    """Returns masks, whether other devices differ, parts within images, and IoU of each two."""
    words = raster.fill(points, used, height=height, width=width, rule=rule, rings=rings)
    shapes = raster._shapes(raster._steps(points, rule), used, rings)
    elsewhere = raster._dense(shapes, raster._RULES[rule], height, width)
    framed = words & bitmask.frame(size, height=height, width=width)
    return words, (words != elsewhere).any(), framed, overlap.iou(framed[::2], framed[1::2])


def packed(points, lengths, height, width, size=None, **options):
    """Returns packed masks, their parts within images of some sizes, and the IoU of each two.

    Of rings [n?, R, P, 2] the first `lengths` vertices are used, which may be flags. All calls are
    padded to one shape, lest each one compiles.
    """
    rings, count = points.shape[-3:-1]
    items = int(np.prod(points.shape[:-3]))
    shape = (4, 1, POINTS) if height == raster.MAX_SIDE else (600, 3, POINTS)
    padded = np.full((*shape, 2), np.nan, np.float32)
    padded[:items, :rings, :count] = points.reshape(items, rings, count, 2)
    flags = np.asarray(lengths)
    if flags.dtype != bool:
        flags = np.arange(count) < flags[..., None]
    used = np.zeros(shape, bool)
    used[:items, :rings, :count] = flags.reshape(items, rings, count)
    sizes = np.full((shape[0], 2), (height, width), np.int32)
    sizes[:items] = (height, width) if size is None else size
    found = filled(padded, used, sizes, height=height, width=width, **options)
    words, differ, framed, iou = map(np.asarray, found)
    assert not differ
    assert words.shape == (len(padded), -(-height // 32), width)
    assert words.dtype == np.uint32
    assert height % 32 == 0 or not np.any(words[..., -1, :] >> np.uint32(height % 32))
    return words[:items], framed[:items], iou[: items // 2]


def fill(points, lengths, height, width, **options):
    """Returns bool masks of rings [n?, R, P, 2] of which the first `lengths` vertices are used."""
    words = packed(points, lengths, height, width, **options)[0]
    return unpack(words, height).reshape(*points.shape[:-3], height, width)


def unpack(words, height):
    """Returns the first rows of packed masks (numpy)."""
    columns = np.ascontiguousarray(np.asarray(words, "<u4").swapaxes(-1, -2))
    bits = np.unpackbits(columns.view(np.uint8), axis=-1, count=height, bitorder="little")
    return np.ascontiguousarray(bits.swapaxes(-1, -2)).view(bool)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_coco_rule_is_pycocotools(kind, size):
    points, lengths = draw(kind, np.random.default_rng(7), 500, *size)
    got = fill(points[:, None], lengths[:, None], *size)
    for ring, length, mask in zip(points, lengths, got, strict=True):
        # As text every ring would take longer than its fill: only the first that fails is told.
        assert np.array_equal(mask, coco_mask([ring[:length]], *size)), ring[:length]


def test_coco_rule_is_pycocotools_on_the_largest_canvas():
    rng = np.random.default_rng(3)
    points = rng.random((3, POINTS, 2)) * raster.MAX_SIDE
    points[1] = np.round(rng.uniform(*raster.REACH_PX, (POINTS, 2)))
    points[2] = np.round(points[2] / 4096) * 4096 + rng.integers(0, 3, (POINTS, 2))
    points = points.astype(np.float32)
    masks = fill(points[:, None], np.full((3, 1), POINTS), 4096, 4096)
    for ring, mask in zip(points, masks, strict=True):
        assert np.array_equal(mask, coco_mask([ring], 4096, 4096)), ring


def draw_long(kind, rng, count, points, height, width):
    """Returns shapes of many vertices and of all sizes, as float32 pixels [count, points, 2]."""
    side = min(height, width)
    angle = np.arange(points) * 2 * np.pi / points + rng.random((count, 1))
    radius = side * 2.0 ** rng.uniform(-7, -0.8, (count, 1))
    centre = rng.random((count, 1, 2)) * [width, height]
    if kind == "blob":
        waves = np.arange(1, 8)
        phase = rng.random((count, 7, 1)) * 7
        bumps = np.cos(waves[:, None] * angle[:, None] + phase) / waves[:, None]
        radius = radius * np.clip(1 + 0.35 * (rng.normal(size=(count, 7, 1)) * bumps).sum(1), 0, 3)
    elif kind == "star":
        radius = radius * np.where(np.arange(points) % 2, rng.uniform(0.1, 0.7, (count, 1)), 1)
    else:  # A thin stroke, there and back.
        middle = np.abs(np.arange(points) - points / 2) / points * 8 * radius
        offset = np.sign(np.arange(points) - points / 2)[None, :, None] * rng.random((count, 1, 2))
        way = np.stack([np.cos(angle[:, :1]), np.sin(angle[:, :1])], -1)
        return np.float32(centre + middle[..., None] * way + offset)
    ring = radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1) + centre
    return np.float32(ring)


@pytest.mark.parametrize(
    ("size", "points"), [((512, 512), 256), ((300, 1023), 33), ((1300, 40), 256)]
)
@pytest.mark.parametrize("kind", ["blob", "star", "thin"])
def test_long_outlines_of_all_sizes_are_pycocotools(kind, points, size):
    rng = np.random.default_rng(41)
    rings = draw_long(kind, rng, 40, points, *size)
    used = np.ones(rings.shape[:-1], bool)
    words = raster.fill(rings[:, None], used[:, None], height=size[0], width=size[1])
    for ring, mask in zip(rings, unpack(words, size[0]), strict=True):
        np.testing.assert_array_equal(mask, coco_mask([ring], *size))


vertices = st.lists(
    st.tuples(st.integers(-60, 320), st.integers(-60, 240)), min_size=3, max_size=POINTS
)


# The ring that fails is told; to shrink all the others beside it would take minutes.
@settings(max_examples=15, deadline=None, phases=[Phase.generate])
@given(st.lists(vertices, min_size=10, max_size=20))
def test_coco_rule_is_pycocotools_on_its_own_grid(shapes):
    """Many at once, as all fills of a canvas are of one shape."""
    rings = [np.float32(np.array(shape) / 5) for shape in shapes]
    points = np.zeros((len(rings), 1, POINTS, 2), np.float32)
    for place, ring in zip(points[:, 0], rings, strict=True):
        place[: len(ring)] = ring
    got = fill(points, [len(ring) for ring in rings], *SIZES[1])
    for ring, mask in zip(rings, got, strict=True):
        assert np.array_equal(mask, coco_mask([ring], *SIZES[1])), ring


def test_union_merges_rings_and_evenodd_cuts_holes():
    rng = np.random.default_rng(5)
    points, lengths = draw("floats", rng, 600, *SIZES[1])
    points, lengths = points.reshape(200, 3, POINTS, 2), lengths.reshape(200, 3)
    lengths[rng.random((200, 3)) < 0.2] = 0
    union = fill(points, lengths, *SIZES[1], rings="union")
    evenodd = fill(points, lengths, *SIZES[1], rings="evenodd")
    for item in range(200):
        rings = [r[:n] for r, n in zip(points[item], lengths[item], strict=True)]
        np.testing.assert_array_equal(union[item], coco_mask(rings, *SIZES[1]))
        odd = np.logical_xor.reduce([coco_mask([r], *SIZES[1]) for r in rings])
        np.testing.assert_array_equal(evenodd[item], odd)


@pytest.mark.parametrize("rings", ["union", "evenodd"])
@pytest.mark.parametrize("kind", KINDS)
def test_center_rule_is_the_crossing_number(kind, rings):
    points, lengths = draw(kind, np.random.default_rng(11), 200, *SIZES[1])
    points, lengths = points.reshape(100, 2, POINTS, 2), lengths.reshape(100, 2)
    got = fill(points, lengths, *SIZES[1], rule="center", rings=rings)
    join = np.logical_or if rings == "union" else np.logical_xor
    snapped = np.floor(points.astype(np.float64) * 256 + 0.5)
    for rings_, length, mask in zip(snapped, lengths, got, strict=True):
        a, b = (center_mask(r[:n], *SIZES[1]) for r, n in zip(rings_, length, strict=True))
        np.testing.assert_array_equal(mask, join(a, b))


@pytest.mark.parametrize("kind", KINDS)
def test_center_rule_is_scikit_image_where_no_centre_is_near_an_edge(kind):
    points, lengths = draw(kind, np.random.default_rng(43), 100, *SIZES[1])
    points = np.float32(np.round(points * 256) / 256)  # so that snapping moves nothing
    got = fill(points[:, None], lengths[:, None], *SIZES[1], rule="center")
    y, x = np.mgrid[:37, :53] + 0.5
    pixels = shapely.points(x, y)
    for ring, length, mask in zip(points, lengths, got, strict=True):
        edges = shapely.LinearRing(ring[:length])
        clear = shapely.distance(edges, pixels) > 1e-9
        expected = skimage.draw.polygon2mask(SIZES[1], ring[:length, ::-1] - 0.5)
        np.testing.assert_array_equal(mask[clear], expected[clear])


def test_center_rule_on_the_largest_canvas():
    rng = np.random.default_rng(13)
    points = rng.uniform(*raster.REACH_PX, (2, POINTS, 2)).astype(np.float32)
    points[1] = rng.integers(0, 2, (POINTS, 2)) * 4095 + rng.random((POINTS, 2)) * 1.5
    masks = fill(points[:, None], np.full((2, 1), POINTS), 4096, 4096, rule="center")
    for ring, mask in zip(points, masks, strict=True):
        snapped = np.floor(ring.astype(np.float64) * 256 + 0.5)
        assert np.array_equal(mask, center_mask(snapped, 4096, 4096)), ring


def test_center_rule_agrees_with_shapely_away_from_edges():
    rng = np.random.default_rng(17)
    points, lengths = draw("spiky", rng, 30, *SIZES[1])
    got = fill(points[:, None], lengths[:, None], *SIZES[1], rule="center")
    x, y = np.meshgrid(np.arange(53) + 0.5, np.arange(37) + 0.5)
    for ring, length, mask in zip(points, lengths, got, strict=True):
        shape = shapely.Polygon(ring[:length])
        if not shape.is_valid:
            continue
        clear = shapely.distance(shape.exterior, shapely.points(x, y)) > 0.01
        np.testing.assert_array_equal(mask[clear], shapely.contains_xy(shape, x, y)[clear])


def test_center_rule_shares_no_pixel_between_neighbours():
    rng = np.random.default_rng(19)
    points, _ = draw("fifths", rng, 600, *SIZES[1])
    hub = np.round(rng.random((600, 2)) * SIZES[1][::-1]).astype(np.float32)
    # A closed path splits into fans from any point: their parities add up to the whole.
    ends = np.pad(points, ((0, 0), (0, 1), (0, 0)), mode="wrap")
    fans = [np.insert(ends[:, at : at + 5], 0, hub, axis=1) for at in (0, 4, 8)]
    fans = np.stack(fans, axis=1)
    parts = fill(fans, np.full((600, 3), 6), *SIZES[1], rule="center", rings="evenodd")
    whole = fill(points[:, None], np.full((600, 1), POINTS), *SIZES[1], rule="center")
    np.testing.assert_array_equal(parts, whole)
    # Pixels exactly on the line between two squares belong to the lower, the right one.
    square = np.array([[0.5, 0.5], [4.5, 0.5], [4.5, 4.5], [0.5, 4.5]], np.float32)
    mask = fill(square[None], [4], *SIZES[1], rule="center")
    expected = np.zeros(SIZES[1], bool)
    expected[:4, :4] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("rule", ["coco", "center"])
def test_broken_vertices_count_as_unused_and_leave_others_alone(rule):
    points, _ = draw("floats", np.random.default_rng(23), 6, *SIZES[1])
    lengths = np.array([12, 2, 0, 12, 12, 12])
    whole = points.copy()
    points[3, 4, 0], points[4, 5, 1], points[4, 11, 0] = np.nan, np.inf, -np.inf
    points[1, 2:], points[2] = np.nan, np.inf
    points[5, 9:], lengths[5] = np.nan, 9
    got = fill(points[:, None], lengths[:, None], *SIZES[1], rule=rule)
    assert got.any((1, 2)).tolist() == [True, False, False, True, True, True]
    for item, gone in ((3, [4]), (4, [5, 11]), (5, [9, 10, 11]), (0, [])):
        ring = np.delete(whole[item], gone, axis=0)
        expected = fill(ring[None], [len(ring)], *SIZES[1], rule=rule)
        np.testing.assert_array_equal(got[item], expected)
    together = fill(points[[0, 3, 5]], lengths[[0, 3, 5]], *SIZES[1], rule=rule)
    np.testing.assert_array_equal(together, got[0] | got[3] | got[5])
    used = np.random.default_rng(24).random((6, POINTS)) < 0.7  # in any place
    scattered = fill(whole[:, None], used[:, None], *SIZES[1], rule=rule)
    for ring, flags, mask in zip(whole, used, scattered, strict=True):
        expected = fill(ring[flags][None], [flags.sum()], *SIZES[1], rule=rule)
        np.testing.assert_array_equal(mask, expected)
    shapes = [(2, 0, POINTS), (2, 1, 0), (0, 1, POINTS)]
    nothing = [(np.zeros((*shape, 2), np.float32), np.zeros(shape, bool)) for shape in shapes]
    fills = jax.jit(
        lambda all_: [raster.fill(*one, height=37, width=53, rule=rule) for one in all_]
    )
    assert not any(np.any(words) for words in fills(nothing))


@pytest.mark.parametrize("rule", ["coco", "center"])
def test_far_vertices_are_pulled_to_reach(rule):
    far = np.array([[-1e9, 10], [3e38, -7], [60, 1e7]], np.float32)
    near = np.clip(far, *raster.REACH_PX)
    np.testing.assert_array_equal(
        fill(far[None], [3], *SIZES[1], rule=rule), fill(near[None], [3], *SIZES[1], rule=rule)
    )


def test_batching_and_cropping_change_nothing():
    """What vmap does, `batching.batched`, knows of no rule; crops of both have their oracles."""
    points, lengths = draw("outside", np.random.default_rng(29), 24, 64, 64)
    used = np.arange(POINTS) < lengths[:, None]
    base = fill(points[:, None], lengths[:, None], *SIZES[0])
    np.testing.assert_array_equal(
        fill(points[:, None], lengths[:, None], *SIZES[1]), base[:, :37, :53]
    )
    mapped = jax.vmap(functools.partial(raster.fill, height=96, width=128))(
        points.reshape(2, 3, 4, 1, POINTS, 2), used.reshape(2, 3, 4, 1, POINTS)
    )
    np.testing.assert_array_equal(unpack(mapped, 96).reshape(base.shape), base)


def test_to_pixels_is_one_rounded_product_also_inside_jit():
    rng = np.random.default_rng(37)
    unit = np.float32(np.round(rng.random((400, 1, POINTS, 2)), 3))
    size = rng.integers(20, 65, (400, 2)).astype(np.int32)
    used = np.ones(unit.shape[:-1], bool)
    expected = unit * size[:, None, None, ::-1].astype(np.float32)
    np.testing.assert_array_equal(raster.to_pixels(unit, size), expected)

    @functools.partial(jax.jit, compiler_options=compilation.as_users())
    def route(unit, size, used):
        return raster.fill(raster.to_pixels(unit, size), used, height=64, width=64)

    got = unpack(route(unit, size, used), 64)
    for ring, (height, width), mask in zip(expected[:, 0], size, got, strict=True):
        np.testing.assert_array_equal(mask[:height, :width], coco_mask([ring], height, width))


def test_fill_lowers_from_shapes():
    points = jax.ShapeDtypeStruct((3, 2, 8, 2), jnp.float32)
    used = jax.ShapeDtypeStruct((3, 2, 8), jnp.bool_)
    fill_40x50 = functools.partial(raster.fill, height=40, width=50)
    lowered = jax.jit(fill_40x50).lower(points, used)
    assert lowered.out_info.shape == (3, 2, 50)


def test_wrong_input_is_refused(untyped):
    points, used = np.zeros((1, 3, 2), np.float32), np.ones((1, 3), bool)
    for wrong in (points.astype(int), points[..., 0], points[:, :2], points[0]):
        with pytest.raises(
            ValueError, match="expected float32 or float64 points .* make them .* polygon.pad"
        ):
            raster.fill(wrong, used, height=8, width=8)
    for wrong in ((points.tolist(), used), (points, used.tolist())):
        with pytest.raises(ValueError, match=r"got .*list \[\].* polygon.pad"):
            raster.fill(*wrong, height=8, width=8)
    with pytest.raises(ValueError, match="and int64"):
        raster.fill_counts(points, used.astype(int), np.zeros((1, 8), np.uint32), height=8, width=8)
    with pytest.raises(ValueError, match=r"expected rings \[.., R, P\], got \[3\]"):
        raster.fill(points[0], used[0], height=8, width=8)
    with pytest.raises(ValueError, match="4096x4096, got 0x8"):
        raster.fill(points, used, height=0, width=8)
    with pytest.raises(ValueError, match="4096x4096, got 4097x8"):
        raster.fill(points, used, height=4097, width=8)
    with pytest.raises(ValueError, match="xor"):
        raster.fill(points, used, height=8, width=8, rings="xor")


@pytest.mark.parametrize("rule", ["coco", "center"])
@pytest.mark.parametrize("rings", ["union", "evenodd"])
def test_shared_counts_what_fill_draws(rule, rings):
    rng = np.random.default_rng(47)
    points, lengths = draw("floats", rng, 120, 37, 260)
    points[:60] = points[:60] / 4  # small and large windows
    points, used = points.reshape(20, 3, 2, POINTS, 2), np.arange(POINTS) < lengths[:, None]
    used = used.reshape(20, 3, 2, POINTS)
    truth = rng.integers(0, 2**32, (20, 1, 2, 260), dtype=np.uint32)
    truth[:, :, 1] &= 31  # rows 32 to 36
    options = {"height": 37, "width": 260, "rule": rule, "rings": rings}
    drawn = np.zeros((20, 3, 37, 260), bool)
    for item in np.ndindex(20, 3):
        for ring, flags in zip(points[item], used[item], strict=True):
            if rule == "coco":
                mask = coco_mask([ring[flags]], 37, 260)
            else:
                snapped = np.floor(ring[flags].astype(np.float64) * 256 + 0.5)
                mask = center_mask(snapped, 37, 260)
            drawn[item] = drawn[item] | mask if rings == "union" else drawn[item] ^ mask
    masks = unpack(truth, 37)
    shared = functools.partial(raster.fill_counts, **options)
    wide = np.broadcast_to(truth, (20, 3, 2, 260))

    @jax.jit
    def counted(points, used, truth, wide):
        found = [shared(points, used, truth)]
        if (rule, rings) == ("coco", "evenodd"):
            # What vmap does, `batching.batched`, knows of neither; a union would compile longer.
            found.append(jax.vmap(shared)(points, used, wide))
            found.append(jax.vmap(shared, in_axes=(0, 0, None))(points, used, wide[0]))
        return found

    found = counted(points, used, truth, wide)
    for (area, common), others in zip(found, [masks, masks, masks[:1]], strict=False):
        np.testing.assert_array_equal(area, drawn.sum((2, 3)))
        np.testing.assert_array_equal(common, (drawn & others).sum((2, 3)))


def test_shared_is_the_iou_of_pycocotools():
    size = 1024, 700
    rng = np.random.default_rng(53)
    kinds = [draw_long(kind, rng, 40, 64, *size) for kind in ("blob", "star", "thin")]
    rings = np.concatenate(kinds)[:, None]
    moved = rings + np.float32(rng.normal(size=(120, 1, 1, 2)) * 4)
    used = np.ones(rings.shape[:-1], bool)
    options = {"height": size[0], "width": size[1]}

    @jax.jit
    def counted(rings, moved, used):
        truth = raster.fill(rings, used, **options)
        area, shared = raster.fill_counts(moved, used, truth, **options)
        counts = overlap.polygon_counts(moved, used, truth, **options)
        return shared, area + bitmask.area(truth) - shared, counts

    shared, union, counts = jax.tree.map(np.asarray, counted(rings, moved, used))
    for i in range(120):
        a, b = (
            coco.merge(coco.frPyObjects([r[0].astype(np.float64).ravel().tolist()], *size))
            for r in (moved[i], rings[i])
        )
        expected = coco.iou([a], [b], [0])[0, 0]
        assert np.float32(shared[i]) / np.float32(max(union[i], 1)) == np.float32(expected)
    np.testing.assert_array_equal(counts.intersection, shared)
    np.testing.assert_array_equal(counts.union, union)


def test_shared_wants_words_of_its_canvas():
    points, used = np.zeros((1, 3, 2), np.float32), np.ones((1, 3), bool)
    with pytest.raises(ValueError, match="expected words of 2x64 .* got 1x64"):
        raster.fill_counts(points, used, np.zeros((1, 64), np.uint32), height=64, width=64)


def test_gradients_pass_by_the_fill():
    points, used = np.random.default_rng(5).random((3, 1, 5, 2)) * 60, np.ones((3, 1, 5), bool)

    def loss(points):
        words = raster.fill(points, used, height=64, width=64)
        return bitmask.area(words).sum() * 0.0 + points.sum()

    slope = jax.jit(jax.grad(loss))(np.float32(points))
    np.testing.assert_array_equal(slope, np.ones(points.shape))


def ragged(kind, seed, canvas, count=1700):
    """Returns shapes of one to three rings and their images' sizes, equal for each two."""
    rng = np.random.default_rng(seed)
    points, lengths = draw(kind, rng, 3 * count, *canvas)
    used = (np.arange(POINTS) < lengths[:, None]).reshape(count, 3, POINTS)
    used[:, 1] &= rng.random((count, 1)) < 0.6
    used[:, 2] &= rng.random((count, 1)) < 0.4
    size = rng.integers(np.floor_divide(canvas, 2), np.add(canvas, 1), (count // 2, 2))
    return points.reshape(count, 3, POINTS, 2), used, np.repeat(size, 2, 0)


def framed(points, used, size, canvas, **options):
    """Returns the packed masks within their images, and IoU of each two."""
    cuts = [slice(start, start + 600) for start in range(0, len(points), 600)]
    parts = [packed(points[c], used[c], *canvas, size[c], **options)[1:] for c in cuts]
    return map(np.concatenate, zip(*parts, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_thousand_shapes_of_pycocotools(kind):
    """Parts, sizes of images and IoU included; compared as run lengths."""
    points, used, size = ragged(kind, 61, SIZES[0])
    words, iou = framed(points, used, size, SIZES[0])
    expected = []
    for item, flags, (height, width) in zip(points.astype(float), used, size, strict=True):
        rings = [ring[f].ravel().tolist() for ring, f in zip(item, flags, strict=True) if f.any()]
        expected.append(coco.merge(coco.frPyObjects(rings, height, width)))
    got = bitmask.unpack_rle(words, size)
    wrong = [i for i, (a, b) in enumerate(zip(got, expected, strict=True)) if a != b]
    assert wrong == []
    theirs = [coco.iou([a], [b], [0])[0, 0] for a, b in zip(got[::2], got[1::2], strict=True)]
    covered = (words[::2] | words[1::2]).any((1, 2))
    np.testing.assert_array_equal(iou[covered], np.float32(theirs)[covered])


def center_masks(points, used, height, width):
    """Returns `center_mask` of rings [n, P, 2], the first vertices of which are used, at once."""
    ring = np.floor(points.astype(np.float64) * 256 + 0.5).astype(np.int64)
    last = used & ~np.pad(used[:, 1:], ((0, 0), (0, 1)))
    after = np.where(last[..., None], ring[:, :1], np.roll(ring, -1, 1))
    x = 256 * np.arange(width, dtype=np.int64) + 128
    y = (256 * np.arange(height, dtype=np.int64) + 128)[:, None]
    inside = np.zeros((len(ring), height, width), bool)
    for edge in range(ring.shape[1]):
        a, b = ring[:, edge], after[:, edge]
        swap = (a[:, 0] > b[:, 0])[:, None]
        (x0, y0), (x1, y1) = (
            v.T[..., None, None] for v in (np.where(swap, b, a), np.where(swap, a, b))
        )
        below = y0 * (x1 - x0) + (x - x0) * (y1 - y0) <= y * (x1 - x0)
        inside ^= below & (x0 <= x) & (x < x1) & used[:, edge, None, None]
    return inside


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_thousand_shapes_of_pixel_centres(kind):
    """Parts, sizes of images, holes and IoU included."""
    points, used, size = ragged(kind, 67, SIZES[1])
    # Of two hundred rings the masks fit a cache.
    parts = (
        np.split(leaf, 25) for leaf in (points.reshape(-1, POINTS, 2), used.reshape(-1, POINTS))
    )
    masks = [center_masks(*part, *SIZES[1]) for part in zip(*parts, strict=True)]
    masks = np.concatenate(masks).reshape(-1, 3, *SIZES[1])
    row, column = np.indices(SIZES[1])
    inside = (row < size[:, :1, None]) & (column < size[:, 1:, None])
    for rings, join in (("union", np.logical_or), ("evenodd", np.logical_xor)):
        words, iou = framed(points, used, size, SIZES[1], rule="center", rings=rings)
        expected = join.reduce(masks, axis=1) & inside
        np.testing.assert_array_equal(unpack(words, 37), expected)
        a, b = expected[::2], expected[1::2]
        union = (a | b).sum((1, 2))
        ratio = (a & b).sum((1, 2)).astype(np.float32) / np.maximum(union, 1).astype(np.float32)
        np.testing.assert_array_equal(iou, np.where(union, ratio, 1))
