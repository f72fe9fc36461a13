"""Tests of the text of boxes and clicks, held to what the released Seg-R1 reads."""

import numpy as np
import pytest
import seg_r1_release as release
from seg_r1_release import FRAME

from seg_jax.grammar import clicks
from seg_jax.records import Verdict

BOX, CLICKS = (
    "<bbox>[10,20,300,400]</bbox>",
    "<points>[[30,40],[1,2]]</points>, <labels>[1,0]</labels>",
)


def read(text, **options):
    return clicks.read(text, frame=FRAME, **options)


def numbers(array):
    return np.rint(array * FRAME).astype(int).tolist()


def test_what_is_written_is_the_form_of_the_release_and_is_read_back():
    boxes, points = np.array([[10, 20, 300, 400], [500, 0, 768, 90]]), np.array([[30, 40], [1, 2]])
    text = clicks.write(boxes / FRAME, points / FRAME, [1, 0], frame=FRAME, thought="It is red.")
    boxed = f"{BOX}, <bbox>[500,0,768,90]</bbox>"
    assert text == f"<think> It is red. </think> {boxed}, {CLICKS}"
    reading = read(text)
    assert reading.verdict == Verdict.OK
    assert reading.thought
    assert numbers(reading.boxes_unit) == boxes.tolist()
    assert numbers(reading.points_unit) == points.tolist()
    assert reading.labels.tolist() == [1, 0]
    bare = clicks.write([], points / FRAME, [1, 0], frame=FRAME)
    assert bare == CLICKS.replace(", <", " <")
    assert not read(bare).thought


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_answers_are_read_as_the_release_reads_them(count):
    raised = complete = 0
    for text in release.mutated(count):
        theirs, ours, own = release.parse(text), read(text, released=True), read(text)
        if theirs is None:
            raised += 1
            assert ours.verdict == Verdict.EMPTY, text
            assert not len(ours.boxes_unit) + len(ours.points_unit), text
            assert own.verdict >= Verdict.MALFORMED, text
            continue
        boxes, points, labels, thought = theirs
        assert ours.thought == own.thought == thought, text
        assert (ours.boxes_unit == release.clamped(boxes, 4)).all(), text
        assert (ours.points_unit == release.clamped(points, 2)).all(), text
        assert ours.labels.tolist() == [min(label, 9) for label in labels], text
        ordered = [[*np.minimum(b[:2], b[2:]), *np.maximum(b[:2], b[2:])] for b in boxes]
        ordered = release.clamped(ordered, 4)
        whole = (ordered[:, :2] < ordered[:, 2:]).all(1) if len(ordered) else []
        assert (own.boxes_unit == ordered[whole]).all(), text
        usable = all(label < 2 for label in labels)
        assert (own.points_unit == (ours.points_unit if usable else np.zeros((0, 2)))).all(), text
        if own.verdict == Verdict.OK:
            complete += 1
            assert boxes or points, text
            assert all(number <= FRAME for row in boxes + points for number in row)
    assert raised > count / 100
    assert complete > count / 10


V = Verdict
FAULTS = {
    f"{BOX}, {CLICKS}": (V.OK, 1, 2),
    f"so {CLICKS} and {BOX}.": (V.OK, 1, 2),
    BOX: (V.OK, 1, 0),
    f"I use <points> and <labels>: {CLICKS}": (V.OK, 0, 2),
    "<points>[[ 3 ,\n4 ],]</points><labels> [1 ,] </labels>": (V.OK, 0, 1),
    "": (V.EMPTY, 0, 0),
    "no idea": (V.EMPTY, 0, 0),
    "<points>[]</points> <labels>[]</labels>": (V.EMPTY, 0, 0),
    f"<bbox>[300,20,10,400]</bbox>, {CLICKS}": (V.MALFORMED, 1, 2),  # Swapped corners.
    f"<bbox>[10,20,10,400]</bbox>, {CLICKS}": (V.DEGENERATE, 0, 2),  # Flat.
    f"<bbox>[10,20,300,800]</bbox>, {CLICKS}": (V.CLAMPED, 1, 2),  # Above the frame.
    f"{BOX}<points>[[1,2],[3,4]]</points><labels>[1]</labels>": (V.MALFORMED, 1, 0),
    f"{BOX}<points>[[1,2]]</points>": (V.MALFORMED, 1, 0),  # Points without labels.
    f"{BOX}<points>[[1,2]]</points><labels>[7]</labels>": (V.MALFORMED, 1, 0),
    f"{BOX}, {CLICKS}{CLICKS}": (V.MALFORMED, 1, 2),  # A second list.
    f"{BOX}, {CLICKS[:20]}": (V.TRUNCATED, 1, 0),  # Unclosed.
    f"{BOX}, {CLICKS[:-9]}": (V.MALFORMED, 1, 0),  # Points whose labels are unclosed.
    f"<think> hm {BOX}, {CLICKS}": (V.TRUNCATED, 1, 2),
    f"{BOX}, <points>": (V.TRUNCATED, 1, 0),
    f"{BOX}, <points>[[[1,2]]]</points>, <labels>[1]</labels>": (V.MALFORMED, 1, 0),  # Nested.
    f"{BOX}, <points>[[1,<points>[[5,6]]</points>, <labels>[1]</labels>": (V.MALFORMED, 1, 1),
    "<points>[[1,2]]</points<points>[[3,4]]</points><labels>[1]</labels>": (V.MALFORMED, 0, 1),
    f"{BOX}<points>[[1,2][3,4]]</points><labels>[1,1]</labels>": (V.MALFORMED, 1, 0),
    f"{BOX}<points>[[1,02]]</points><labels>[1]</labels>": (V.MALFORMED, 1, 0),
    f"{BOX}<points>[[-1,2]]</points><labels>[1]</labels>": (V.MALFORMED, 1, 0),
    f"{BOX}<points>[[0.5,2]]</points><labels>[1]</labels>": (V.MALFORMED, 1, 0),
    f"<bbox>[1,2,{'9' * 10_000},3]</bbox>": (V.CLAMPED, 1, 0),
    f"<bbox>[1,2,{'0' * 10_000},3]</bbox>": (V.MALFORMED, 1, 0),  # 0: swapped.
}


@pytest.mark.parametrize("text", FAULTS, ids=lambda text: text[:40])
def test_every_fault_has_its_verdict_and_what_can_be_kept_is(text):
    reading = read(text)
    assert (reading.verdict, len(reading.boxes_unit), len(reading.points_unit)) == FAULTS[text]


def test_swapped_corners_are_put_in_order_but_for_the_release():
    text = "<bbox>[300,400,10,20]</bbox>"
    assert numbers(read(text).boxes_unit) == [[10, 20, 300, 400]]
    assert numbers(read(text, released=True).boxes_unit) == [[300, 400, 10, 20]]
    assert len(read("<bbox>[10,20,10,400]</bbox>", released=True).boxes_unit) == 1


def test_labels_beyond_two_are_kept_for_the_release_alone():
    text = f"{BOX}<points>[[1,2],[3,4]]</points><labels>[3,12]</labels>"
    assert read(text, released=True).labels.tolist() == [3, 9]
    assert not len(read(text).labels)


def test_limits_cut():
    text = f"{BOX}{BOX}{BOX}, {CLICKS}"
    reading = read(text, boxes=2, points=1)
    assert (len(reading.boxes_unit), len(reading.points_unit)) == (2, 1)
    assert reading.labels.tolist() == [1]
    assert reading.verdict == Verdict.TRUNCATED
    assert read(text, boxes=3, points=2).verdict == Verdict.OK


def test_flat_boxes_are_widened_and_what_cannot_be_written_is_refused():
    boxes = [[1.0, 0.5, 1.0, 0.5], [-1.0, 0.0, 0.0, 2.0]]
    text = clicks.write(boxes, [], [], frame=100)
    assert text == "<bbox>[99,50,100,51]</bbox>, <bbox>[0,0,1,100]</bbox>"
    for arguments, message in (
        (([], [], []), "box or a click"),
        (([], [[0.1, 0.2]], []), "label 0 or 1 for each of 1 points"),
        (([], [[0.1, 0.2]], [2]), "label 0 or 1"),
        (([[0.1, 0.2]], [], []), r"shape \(n, 4\)"),
        (([], [[np.nan, 0.2]], [1]), "coordinates of shape"),
    ):
        with pytest.raises(ValueError, match=f"^clicks.write: expected .*{message}"):
            clicks.write(*arguments, frame=FRAME)
    with pytest.raises(ValueError, match="a thought without"):
        clicks.write([], [[0.1, 0.2]], [1], frame=FRAME, thought="<points>")
    for frame in (1, 8193):
        with pytest.raises(ValueError, match="^frame: expected a side of 2 to 8192"):
            clicks.read("", frame=frame)
