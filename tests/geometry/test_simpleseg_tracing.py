"""The released tracing against OpenCV, and how much of a mask it keeps against ours."""

import functools
import inspect

import cv2
import jax
import numpy as np
import pytest
from pycocotools import mask as coco

from seg_jax.geometry import bitmask, contour, overlap, polygon, raster, simpleseg_tracing
from seg_jax.tasks.referring import Referring, rings_unit

# What the OpenCV at hand measures to.
VERSION = tuple(int(part) for part in cv2.__version__.split(".")[:2])
DISTANCE = "segment" if VERSION >= (4, 13) else "line"


def find_polygons(mask, ratio, decimals=3):
    """Returns what the script writes, by OpenCV."""
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    near = [cv2.approxPolyDP(c, ratio * cv2.arcLength(c, True), True) for c in found]
    size = np.array(mask.shape[::-1])
    return [np.round(c.reshape(-1, 2) / size, decimals) for c in near]


def same(got, expected):
    return len(got) == len(expected) and all(map(np.array_equal, got, expected))


def random_mask(kind, rng):
    """Returns a small mask: noise, smooth blobs, rough blobs, or ellipses, filled and not."""
    height, width = (int(side) for side in rng.integers(1, 60, 2))
    noise = rng.random((height, width)).astype(np.float32)
    if kind == "noise":
        return noise < rng.random()
    if kind == "ellipses":
        canvas = np.zeros((height, width), np.uint8)
        for _ in range(4):
            middle = int(rng.integers(width)), int(rng.integers(height))
            axes, tilt = rng.integers(1, 30, 2).tolist(), int(rng.integers(180))
            width_px = 1 if rng.random() < 0.3 else -1
            cv2.ellipse(canvas, middle, axes, tilt, 0, 360, int(rng.integers(2)), width_px)
        return canvas > 0
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.0 if kind == "smooth" else 1.0)
    return smooth > np.float32(0.5 + rng.normal() * 0.05)


@pytest.mark.parametrize("kind", ["noise", "smooth", "rough", "ellipses"])
def test_it_is_opencv_to_the_bit(kind):
    rng = np.random.default_rng(0)
    holes = few = many = 0
    for _ in range(100):
        mask = random_mask(kind, rng)
        ratio = float(rng.choice([0, 0.001, 0.005, 0.02, 0.1, 0.5]))
        got = simpleseg_tracing.trace(mask, epsilon_ratio=ratio, distance=DISTANCE)
        assert same(got, find_polygons(mask, ratio))
        holes += any(not polygon.is_clockwise(ring) for ring in contour.trace(mask))
        few += any(len(ring) < 3 for ring in got)
        many += len(got) > 1
    assert min(holes, few, many) >= 15


def test_length_is_opencvs():
    rng = np.random.default_rng(1)
    for _ in range(200):
        points = rng.integers(0, 4000, (int(rng.integers(1, 40)), 2))
        assert simpleseg_tracing._arc_length(points) == cv2.arcLength(points.astype(np.int32), True)


def nearest(points, begin, end, *, segments):
    """Returns the squared distance of points from a line or a segment, times its length squared."""
    (ax, ay), (bx, by) = begin, end
    dx, dy = bx - ax, by - ay
    square = dx * dx + dy * dy
    for x, y in points:
        along = (x - ax) * dx + (y - ay) * dy
        if segments and along < 0:
            yield ((x - ax) ** 2 + (y - ay) ** 2) * square
        elif segments and along > square:
            yield ((x - bx) ** 2 + (y - by) ** 2) * square
        else:
            yield ((y - ay) * dx - (x - ax) * dy) ** 2


def peucker(points, square, *, segments):
    """Returns an open line simplified, without its last point (slow and obvious)."""
    (ax, ay), (bx, by) = points[0], points[-1]
    if len(points) > 2:
        away = list(nearest(points[1:-1], points[0], points[-1], segments=segments))
        if max(away) > square * ((bx - ax) ** 2 + (by - ay) ** 2):
            split = 1 + away.index(max(away))
            left = peucker(points[: split + 1], square, segments=segments)
            return left + peucker(points[split:], square, segments=segments)
    return points[:1]


@pytest.mark.parametrize("distance", ["line", "segment"])
def test_either_distance_is_douglas_peucker(distance):
    """Taking OpenCV's last pass as given: the test above holds it."""
    rng = np.random.default_rng(2)
    kinds = ["noise", "rough", "ellipses"]
    total = 0
    for index in range(120):
        mask = random_mask(kinds[index % 3], rng)
        for border in simpleseg_tracing._outer_borders(mask):
            square = (0.01 * simpleseg_tracing._arc_length(border)) ** 2
            got = simpleseg_tracing._approx_poly(border, 0.01, distance == "segment")
            start = far = 0
            for _ in range(3):
                start = (start + far) % len(border)
                rolled = np.roll(border, -start, 0)
                far = int(np.argmax(np.hypot(*(rolled - rolled[0]).T)))
            if ((rolled[far] - rolled[0]) ** 2).sum() <= square:
                assert got.tolist() == rolled[:1].tolist()
                continue
            closed = [*rolled.tolist(), rolled[0].tolist()]
            halves = closed[: far + 1], closed[far:]
            segments = distance == "segment"
            kept = [p for half in halves for p in peucker(half, square, segments=segments)]
            assert got.tolist() == simpleseg_tracing._drop_straight(kept, square)
            total += 1
    assert total > 300


def test_line_and_segment_differ_where_a_border_bends_back():
    """The hook's tip lies near the line through the chord's ends, but far from the chord."""
    piece = np.array([[0, 0], [30, 1], [10, 0]])
    assert simpleseg_tracing._farthest(piece, 4.0, False) == 0
    assert simpleseg_tracing._farthest(piece, 4.0, True) == 1


def test_flaws_are_kept():
    mask = np.zeros((10, 20), bool)
    mask[1:6, 2:9] = True
    mask[2:5, 3:8] = False  # hole, dropped
    mask[3, 5] = True  # island in it, dropped
    mask[8, 12] = True  # one point
    mask[0, 12:16] = True  # two points
    got = [ring.tolist() for ring in simpleseg_tracing.trace(mask)]
    assert got == [
        [[0.6, 0.8]],
        [[0.1, 0.1], [0.1, 0.5], [0.4, 0.5], [0.4, 0.1]],
        [[0.6, 0.0], [0.75, 0.0]],
    ]
    assert same(got, [ring.tolist() for ring in find_polygons(mask, 0.001)])
    assert simpleseg_tracing.trace(np.zeros((4, 4), bool)) == []
    thirds = np.zeros((3, 3), bool)
    thirds[1, 1] = True
    assert simpleseg_tracing.trace(thirds, decimals=2)[0].tolist() == [[0.33, 0.33]]


def test_settings_are_checked():
    mask = np.ones((4, 4), bool)
    for ratio in (-0.1, np.nan):
        with pytest.raises(ValueError, match=f"expected epsilon_ratio >= 0, got {ratio}"):
            simpleseg_tracing.trace(mask, epsilon_ratio=ratio)
    bare = inspect.unwrap(simpleseg_tracing.trace)  # without the type checker, as users call it
    with pytest.raises(ValueError, match="expected distance line or segment, got edge"):
        bare(mask, distance="edge")
    with pytest.raises(ValueError, match=r"expected a bool mask .* got bool \[0, 4\]"):
        simpleseg_tracing.trace(mask[:0])


# What tracings keep of a mask is printed by
# `pytest tests/geometry/test_simpleseg_tracing.py -k keeps -s`.

HEIGHT, WIDTH = 240, 320
ROOM, FEW = (4, 1024), (1, 1024)  # rings and points; a union compiles anew for every ring
MASKS = 40


def blob(rng, middle, radius):
    """Returns a mask with a wavy outline around a middle."""
    y, x = np.indices((HEIGHT, WIDTH)) + 0.5
    dx, dy = x - middle[0], y - middle[1]
    angle, edge = np.arctan2(dy, dx), 1.0
    for waves in range(2, 9):
        edge = edge + rng.normal() * 0.25 / waves * np.cos(waves * angle + rng.random() * 6.3)
    return np.hypot(dx, dy) < radius * edge


def scene(rng, *, holes):
    """Returns the one blob of an image, with one to three holes or with none."""
    radius = rng.uniform(25, 75)
    middle = rng.uniform((90, 90), (WIDTH - 90, HEIGHT - 90))
    mask = blob(rng, middle, radius)
    for angle in np.arange(rng.integers(1, 4)) * 2.1 + rng.random() * 6.3 if holes else ():
        offset = 0.45 * radius * np.array([np.cos(angle), np.sin(angle)])
        mask &= ~blob(rng, middle + offset, rng.uniform(0.12, 0.3) * radius)
    return mask


def ours(mask, epsilon):
    """Returns the rings of at least nine pixels, as text with three decimals would hold them."""
    rings = [polygon.simplify(ring, epsilon) for ring in contour.trace(mask, min_area=9)]
    return [np.round(polygon.canonical(ring) / (WIDTH, HEIGHT), 3) for ring in rings[: ROOM[0]]]


@functools.partial(jax.jit, static_argnames=("rule", "rings"))
def compared(masks, points, used, *, rule, rings):
    words = raster.fill(points, used, height=HEIGHT, width=WIDTH, rule=rule, rings=rings)
    return overlap.iou(words, bitmask.pack(masks))


def kept(masks, rings, *, rule, across):
    """Returns the mean IoU of masks with their rings filled, and the mean number of points."""
    count = len(masks)
    room = ROOM if across == "evenodd" else FEW
    assert across == "evenodd" or max(map(len, rings)) <= FEW[0]
    points = np.zeros((MASKS, *room, 2), np.float32)  # One shape, lest each test compiles.
    used = np.zeros(points.shape[:3], bool)
    for row, flags, shape in zip(points[:count], used[:count], rings, strict=True):
        for index, ring in enumerate(shape[: room[0]]):
            row[index, : len(ring)], flags[index, : len(ring)] = ring * (WIDTH, HEIGHT), True
    padded = np.zeros((MASKS, HEIGHT, WIDTH), bool)
    padded[:count] = masks
    iou = np.asarray(compared(padded, points, used, rule=rule, rings=across))[:count]
    return float(np.mean(iou)), float(np.mean(used.sum((1, 2))[:count]))


def painted(masks, rings):
    """Returns the mean IoU where OpenCV fills with borders: what suits indices of pixels best."""
    ious = []
    for mask, shape in zip(masks, rings, strict=True):
        canvas = np.zeros(mask.shape, np.uint8)
        for ring in shape:
            cv2.fillPoly(canvas, [np.round(ring * (WIDTH, HEIGHT)).astype(np.int32)], 1)
        ious.append((mask & (canvas > 0)).sum() / (mask | (canvas > 0)).sum())
    return float(np.mean(ious))


def rationed(mask, most):
    """Returns our rings with at most so many points in all, dealt out by what an epsilon keeps."""
    traced = contour.trace(mask, min_area=9)[: ROOM[0]]
    for epsilon in np.geomspace(0.6, 20, 30):
        counts = np.array([len(polygon.simplify(ring, epsilon)) for ring in traced])
        if counts.sum() <= most:
            break
    shares = np.maximum(3, counts * most // counts.sum())
    rings = [polygon.simplify_to(ring, int(n)) for ring, n in zip(traced, shares, strict=True)]
    return [np.round(polygon.canonical(ring) / (WIDTH, HEIGHT), 3) for ring in rings]


@pytest.mark.parametrize("holes", [False, True], ids=["whole", "holed"])
def test_ours_keeps_more_of_a_mask_than_the_released_tracing(holes):
    rng = np.random.default_rng(7)
    masks = [scene(rng, holes=holes) for _ in range(MASKS)]
    center = {"rule": "center", "across": "evenodd"}
    table, rows = {}, []
    exact = [[*contour.trace(mask)] for mask in masks]
    exact = [[ring / (WIDTH, HEIGHT) for ring in rings] for rings in exact]
    table["ours 0 px, not rounded"] = kept(masks, exact, **center)
    for epsilon in (0, 0.5, 1, 2):
        table[f"ours {epsilon} px"] = kept(masks, [ours(m, epsilon) for m in masks], **center)
    for ratio in (0.001, 0.005):
        found = [simpleseg_tracing.trace(mask, epsilon_ratio=ratio) for mask in masks]
        equal = [rationed(m, sum(map(len, r))) for m, r in zip(masks, found, strict=True)]
        theirs = kept(masks, found, rule="coco", across="union")  # as its own decoder fills
        borders = painted(masks, found), theirs[1]
        mine = kept(masks, equal, **center)
        table[f"released {ratio}"] = theirs
        table[f"released {ratio}, borders painted"] = borders
        table[f"ours, as many points as released {ratio}"] = mine
        rows.append((mine, theirs, borders))
    print(f"\n{len(masks)} {'holed' if holes else 'whole'} blobs of {HEIGHT}x{WIDTH}")
    for name, (iou, points) in table.items():
        print(f"{name:40} IoU {iou:.4f} points {points:6.1f}")
    assert table["ours 0 px, not rounded"][0] == 1
    assert len(exact[0]) > 1 or not holes
    for mine, theirs, borders in rows:
        assert mine[1] <= theirs[1]
        assert mine[0] > theirs[0] + (0.04 if holes else 0.01)
        # Painted borders make up for the indices of pixels, yet not for holes.
        assert mine[0] > borders[0] + (0.02 if holes else -0.005)
    ious = [table[f"ours {epsilon} px"][0] for epsilon in (0, 0.5, 1, 2)]
    assert ious == sorted(ious, reverse=True)


def test_the_default_keeps_more_by_fewer_points_than_any_released_outline():
    rng = np.random.default_rng(9)
    masks = [scene(rng, holes=False) for _ in range(20)]
    iou, points = kept(
        masks, [rings_unit(mask, Referring()) for mask in masks], rule="center", across="evenodd"
    )
    found = [simpleseg_tracing.trace(mask, epsilon_ratio=0.001) for mask in masks]
    theirs, more = kept(masks, found, rule="coco", across="union")
    print(f"\nours IoU {iou:.4f} points {points:.1f}; released IoU {theirs:.4f} points {more:.1f}")
    assert iou >= 0.99 > theirs
    assert points <= 0.6 * more


def test_the_decoder_of_the_comparison_is_that_of_the_release():
    """Its README fills each polygon by pycocotools and takes the union."""
    rng = np.random.default_rng(8)
    mask = scene(rng, holes=True)
    found = simpleseg_tracing.trace(mask)
    flat = [(ring * (WIDTH, HEIGHT)).ravel().tolist() for ring in found]
    drawn = coco.decode(coco.merge(coco.frPyObjects(flat, HEIGHT, WIDTH))).astype(bool)
    iou = (drawn & mask).sum() / (drawn | mask).sum()
    got, _ = kept([mask], [found], rule="coco", across="union")
    np.testing.assert_allclose(got, iou, atol=2e-4)  # float32 vertices
