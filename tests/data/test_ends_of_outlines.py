"""Outlines at the ends of what is read: fractions, boxes, compressed counts."""

import pytest

from seg_jax.data.findings import Findings
from seg_jax.data.formats import segmentation
from seg_jax.data.formats.annotations import BadAnnotation, Polygons, RunLengths


@pytest.mark.parametrize(
    ("ring", "are"),
    [
        ((-0.02, 0, 1.02, 0, 1, 1), True),
        ((-0.021, 0, 1, 0, 1, 1), False),
        ((0, 0, 1.021, 0, 1, 1), False),
        ((0.5, 0.5, 0.5, 0.5), False),
        ((0, 0, 0, 0), False),
        ((0, 0, 0, 0.5), True),
    ],
)
def test_fractions_are_within_a_margin_and_differ(ring, are):
    assert segmentation.are_fractions([*map(float, ring)]) is are


@pytest.mark.parametrize(
    ("box", "wanted"),
    [
        ([5, 6, 7, 8], (5, 6, 12, 14)),
        ([5, 6, 0, 8], (5, 6, 5, 14)),
        ([5, 6, 7, 0], (5, 6, 12, 6)),
        ([0, 0, 0, 0], (0, 0, 0, 0)),
        ([5, 6, 7, -0.1], None),
        (None, None),
    ],
)
def test_boxes_have_corner_and_size(box, wanted):
    told = Findings()
    assert segmentation.box_px(box, where="here", findings=told) == wanted
    assert len(told.counts) == (wanted is None and box is not None)


@pytest.mark.parametrize(("letter", "known"), [("0", 1), ("o", 1), ("/", 0), ("p", 0)])
def test_letters_of_compressed_counts(letter, known):
    value = {"size": [48, 64], "counts": f"1{letter}"}
    if known:
        found = segmentation.read_outline(value, where="here", findings=Findings())
        assert found == RunLengths((value,))
        return
    with pytest.raises(BadAnnotation, match="expected compressed counts, letters from 0 to o, got"):
        segmentation.read_outline(value, where="here", findings=Findings())


@pytest.mark.parametrize("numbers", [[10, 10, 40], [10.0, 10.0, 40.0], [10, 10.5, 40]])
def test_a_flat_list_of_numbers_of_any_kind_is_told(numbers):
    with pytest.raises(BadAnnotation, match="got a flat list of 3 numbers"):
        segmentation.read_outline(numbers, where="here", findings=Findings())


def test_three_triangles_are_three_polygons():
    """Three points in pairs are one."""
    rings = [[10 * n, 10, 10 * n + 9, 10, 10 * n + 9, 30] for n in range(3)]
    told = Findings()
    found = segmentation.read_outline(rings, where="here", findings=told)
    assert found == Polygons(tuple(tuple(map(float, ring)) for ring in rings))
    assert told.counts == {}


@pytest.mark.parametrize(("counts", "whole"), [([3072], 1), ([10, 20, 3042], 1), ([10, 102], 0)])
def test_counts_fill_their_size(counts, whole):
    """10 and 102 are as many as height and width together."""
    value, told = {"size": [48, 64], "counts": counts}, Findings()
    if whole:
        found = segmentation.read_outline(value, where="here", findings=told)
        assert found == RunLengths((value,))
        return
    with pytest.raises(BadAnnotation, match="expected counts of 3072 pixels, got 112; do: "):
        segmentation.read_outline(value, where="here", findings=told)
