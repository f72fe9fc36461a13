"""Holds every filter to what it says, and the choice among doubles to a slow one."""

import dataclasses

import numpy as np
import pytest

from seg_jax.annotation import filters
from seg_jax.annotation.filters import Filters
from seg_jax.annotation.stages import Detection, Segment

LOOSE = Filters(min_score=0.0, min_box=0.0, max_box=1.0, max_box_iou=1.0, min_mask=0.0)
LOOSE = dataclasses.replace(
    LOOSE, min_quality=0.0, min_stability=0.0, max_outside=1.0, max_mask_iou=1.0
)


def seen(box, score=0.5, label="cup"):
    return Detection(tuple(map(float, box)), label, score)


def chosen(found, **changes):
    kept, dropped = filters.choose_detections(
        found, dataclasses.replace(LOOSE, **changes), height=100, width=200
    )
    return [one.box_px for one in kept], dict(dropped)


BOX = (10.0, 10.0, 30.0, 50.0)  # 800 of 20,000 pixels.


@pytest.mark.parametrize(
    ("changes", "dropped"),
    [
        ({"min_score": 0.5}, {}),
        ({"min_score": 0.51}, {"score": 1}),
        ({"min_box": 0.04}, {}),
        ({"min_box": 0.0401}, {"box_area": 1}),
        ({"max_box": 0.04}, {}),
        ({"max_box": 0.0399}, {"box_area": 1}),
    ],
)
def test_a_box_is_dropped_for_its_score_and_area(changes, dropped):
    boxes, found = chosen([seen(BOX)], **changes)
    assert found == dropped
    assert boxes == ([] if dropped else [BOX])


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_dropped(odd):
    broken = [seen((odd, 0, 5, 5)), seen(BOX, float(odd)), seen(BOX)]
    assert chosen(broken) == ([BOX], {"not_finite": 2})


def test_boxes_are_cut_to_the_image():
    boxes, dropped = chosen([seen((-5, -5, 20, 300)), seen((300, 0, 400, 50)), seen((9, 9, 9, 20))])
    assert boxes == [(0.0, 0.0, 20.0, 100.0)]
    assert dropped == {"box_area": 2}


def test_of_doubles_the_best_stays_whatever_the_order():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (40, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (40, 2))], 1)
    found = [seen(box, round(float(s), 2)) for box, s in zip(boxes, rng.random(40), strict=True)]
    first, dropped = chosen(found, max_box_iou=0.3)
    assert 5 < len(first) < 40
    assert dropped == {"same_box": 40 - len(first)}
    for _ in range(3):
        rng.shuffle(found)
        assert chosen(found, max_box_iou=0.3)[0] == first

    def iou(a, b):
        w, h = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
        areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
        return w * h / (sum(areas) - w * h)

    slow = []
    for one in sorted(found, key=lambda one: (-one.score, one.box_px[1])):
        if all(iou(one.box_px, other) <= 0.3 for other in slow):
            slow.append(one.box_px)
    assert slow == first


def test_no_more_than_so_many_objects_are_kept():
    found = [seen((x, 0, x + 5, 5), 0.5 + x / 1000) for x in range(0, 50, 10)]
    boxes, dropped = chosen(found, max_objects=2)
    assert [box[0] for box in boxes] == [40.0, 30.0]
    assert dropped == {"too_many": 3}


def drawn(y0, x0, y1, x1, quality=0.9, stability=0.9):
    mask = np.zeros((100, 200), bool)
    mask[y0:y1, x0:x1] = True
    return Segment(mask, quality, stability)


@pytest.mark.parametrize(
    ("segment", "changes", "reason"),
    [
        (drawn(10, 10, 50, 30), {"max_outside": 0.0}, None),
        (drawn(0, 0, 0, 0), {}, "mask_area"),
        (drawn(10, 10, 20, 20), {"min_mask": 0.005}, None),
        (drawn(10, 10, 20, 20), {"min_mask": 0.0051}, "mask_area"),
        (drawn(10, 10, 50, 30, quality=0.79), {"min_quality": 0.8}, "quality"),
        (drawn(10, 10, 50, 30, quality=float("nan")), {}, "quality"),
        (drawn(10, 10, 50, 30, stability=0.79), {"min_stability": 0.8}, "stability"),
        (drawn(10, 10, 50, 40), {"max_outside": 0.34}, None),
        (drawn(10, 10, 50, 40), {"max_outside": 0.33}, "outside_box"),
    ],
)
def test_a_mask_is_dropped_for_what_it_is(segment, changes, reason):
    places, dropped = filters.choose_segments(
        [seen(BOX)], [segment], dataclasses.replace(LOOSE, **changes)
    )
    assert (places, dict(dropped)) == (([], {reason: 1}) if reason else ([0], {}))


def test_of_masks_that_cover_each_other_the_first_stays():
    found = [seen(BOX)] * 3
    masks = [drawn(10, 10, 50, 30), drawn(10, 10, 50, 31), drawn(10, 30, 50, 50)]
    strict = dataclasses.replace(LOOSE, max_mask_iou=0.9)
    places, dropped = filters.choose_segments(found, masks, strict)
    assert (places, dict(dropped)) == ([0, 2], {"same_mask": 1})
    assert filters.choose_segments(found, masks, LOOSE)[0] == [0, 1, 2]
