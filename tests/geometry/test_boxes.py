"""Boxes on the host: overlaps as the device finds them, corners in order."""

import numpy as np

from seg_jax.geometry import boxes, overlap, polygon


def test_the_host_finds_what_the_device_finds():
    ends = np.random.default_rng(0).integers(-3, 12, (200, 2, 2, 2))
    some = np.concatenate([ends.min(2), ends.max(2)], axis=-1).astype(np.float32)
    wanted = np.asarray(overlap.box_iou(some[:, 0], some[:, 1]))
    got = [boxes.iou(*pair) for pair in some]
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert 0 < np.count_nonzero(got) < 200
    np.testing.assert_allclose(
        boxes.iou_with_each(some[0, 0], some[:, 1]),
        [boxes.iou(some[0, 0], other) for other in some[:, 1]],
    )


def test_boxes_without_area_share_nothing():
    line = np.array([1.0, 1.0, 1.0, 5.0])
    assert boxes.iou(line, line) == 0.0
    assert boxes.iou(line, np.array([0.0, 0.0, 9.0, 9.0])) == 0.0


def test_corners_go_around():
    ring = boxes.corners(np.array([1, 2, 4, 8]))
    assert ring.tolist() == [[1, 2], [4, 2], [4, 8], [1, 8]]
    assert polygon.signed_area(ring.astype(float)) == 18.0
    assert boxes.corners(np.zeros((3, 5, 4))).shape == (3, 5, 4, 2)
