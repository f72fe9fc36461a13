"""The released evaluators: against their own code in small, and how they differ from ours."""

import json

import benchmark
import numpy as np
import pycocotools.mask as coco
import pytest
from benchmark import Listed, rectangle, sample

from seg_jax.evaluation.referring import protocols, scoring, text4seg
from seg_jax.tasks.referring import Referring

TRUE = rectangle(10, 10, 30, 30)
SQUARE = "[[[0.200, 0.250], [0.600, 0.250], [0.600, 0.750], [0.200, 0.750]]]"


def judged(name, mask, text, **more):
    return benchmark.rows(name, Listed([sample("a", [mask], (("a, B",),), **more)]), [text])[0]


def snippet(text, height, width):
    """Returns the mask that the README's snippet makes of an answer, in its own steps."""
    number = r"(?:[1-9]\d*\.\d+|0\.\d+|\d+)"
    point = rf"\[\s*({number})\s*,\s*({number})\s*\]"
    polygon = rf"\[\s*{point}(?:\s*,\s*{point})*\s*\]"
    masks = []
    for hit in benchmark.re.finditer(polygon, text, benchmark.re.DOTALL):
        points = np.array(json.loads(hit.group(0))) * np.array([width, height])
        rle = coco.frPyObjects(points.reshape((1, -1)).tolist(), height, width)
        masks.append(np.sum(coco.decode(rle), axis=2, keepdims=True))
    return np.sum(masks, axis=0).sum(axis=2) > 0


def test_answers_are_those_of_the_snippet():
    rng = np.random.default_rng(0)
    samples = benchmark.scattered(4, 40)
    answers = [SQUARE, SQUARE.replace("0.2", "1.2"), SQUARE[:-1], SQUARE[:-2], SQUARE + "[[1, 0]]"]
    answers += [SQUARE.replace("0.600, 0.250", "-0.600, 0.250"), "", "[]", "[[[0.1, 0.2]]]"]
    answers += [SQUARE.replace("0.750", "00.75"), "[[[0, 0], [1, 1]]]", "[[[0, 0], [1, 0], [1, 1]]"]
    failed = 0
    for each in samples:
        for question in protocols.questions(
            protocols.PROTOCOLS["text4seg"], [each], task=Referring(digits=3)
        ):
            answers.append(benchmark.random_answer(rng)(question))
    for text in answers:
        try:
            wanted = snippet(text, 40, 50)
        except Exception:
            wanted, failed = np.zeros((40, 50), bool), failed + 1
        np.testing.assert_array_equal(
            text4seg.answer(text4seg.polygons(text), 40, 50), wanted, err_msg=text
        )
    assert 5 < failed < len(answers) / 2


def test_a_broken_outline_is_lost_where_we_keep_it():
    for cut in (SQUARE[:-2], SQUARE[:-4]):
        ours, theirs = (judged(name, TRUE, cut) for name in ("res", "text4seg"))
        assert ours.iou > 0.4
        assert (theirs.iou, theirs.verdict) == (0.0, "EMPTY")
    for spoilt in (SQUARE.replace("[0.600", "[1.600"), SQUARE[:-1] + ", [[0.1, 0.1]]]"):
        ours, theirs = (judged(name, TRUE, spoilt) for name in ("res", "text4seg"))
        assert ours.iou > theirs.iou


def test_holes_are_filled_where_ours_stay_open():
    ring = TRUE & ~rectangle(15, 15, 25, 25)
    inner = "[[0.300, 0.375], [0.500, 0.375], [0.500, 0.625], [0.300, 0.625]]"
    text = f"{SQUARE[:-1]}, {inner}]"
    ours, theirs = (judged(name, ring, text) for name in ("res", "text4seg"))
    assert ours.iou == 1.0
    assert theirs.iou == pytest.approx(300 / 400)


def test_overlapping_parts_of_the_truth_become_a_hole():
    parts = [rectangle(10, 10, 22, 30), rectangle(20, 10, 30, 30)]
    covers = np.sum(parts, axis=0, dtype=np.uint8)[None]
    # Their steps: sum, times 255 in uint8, whole division by 255.
    theirs = (covers[0].astype("uint8") * np.uint8(255)) // 255
    np.testing.assert_array_equal(
        text4seg.truth(sample("a", [TRUE], covers=covers), 0), theirs.astype(bool)
    )
    ours, released = (judged(name, TRUE, SQUARE, covers=covers) for name in ("res", "text4seg"))
    assert (ours.intersection, ours.union, ours.iou) == (400, 400, 1.0)
    assert (released.intersection, released.union, released.truth_px) == (360, 400, 360)
    # A source that does not count covers has no such holes.
    assert judged("text4seg", TRUE, SQUARE).intersection == 400


def test_boxes_end_one_pixel_early():
    line = rectangle(10, 10, 11, 30)
    text = "[[[0.200, 0.250], [0.220, 0.250], [0.220, 0.750], [0.200, 0.750]]]"
    ours, theirs = (judged(name, line, text) for name in ("res", "text4seg"))
    assert (ours.iou, ours.box_iou) == (1.0, 1.0)
    assert (theirs.intersection, theirs.union, theirs.box_iou) == (20, 20, 0.0)
    half = "[[[0.200, 0.250], [0.400, 0.250], [0.400, 0.750], [0.200, 0.750]]]"
    ours, theirs = (judged(name, TRUE, half) for name in ("res", "text4seg"))
    assert (ours.box_iou, theirs.box_iou) == (pytest.approx(10 / 20), pytest.approx(9 / 19))
    empty = judged("text4seg", TRUE, "")
    assert (empty.iou, empty.box_iou) == (0.0, 0.0)
    both = judged("text4seg", TRUE & False, "")
    assert (both.iou, both.box_iou) == (1.0, 0.0)


def test_sums_are_theirs():
    samples = benchmark.scattered(5, 12)
    rows = benchmark.rows("text4seg", samples, benchmark.random_answer(np.random.default_rng(6)))
    summary = scoring.summarise(rows, protocols.PROTOCOLS["text4seg"])
    shared, union = (np.array([getattr(r, n) for r in rows]) for n in ("intersection", "union"))
    iou = shared / (union + 1e-5)
    iou[union == 0] += 1.0
    assert summary["giou"]["mean"] == pytest.approx(iou.mean(), abs=1e-12)
    assert summary["ciou"]["mean"] == pytest.approx(shared.sum() / (union.sum() + 1e-10), abs=1e-9)
    released, ours = (
        scoring.summarise(each, protocols.PROTOCOLS[name])
        for name, each in (
            ("text4seg", rows),
            ("res", benchmark.rows("res", samples, [row.text for row in rows])),
        )
    )
    for name in ("giou", "ciou", "rec_from_mask"):
        assert released[name]["mean"] != ours[name]["mean"]


def test_questions_are_lower_case_without_commas():
    row = judged("text4seg", TRUE, SQUARE)
    assert (row.phrase, row.question) == ("a, B", '"a b"\'s polygon')
    assert judged("res", TRUE, SQUARE).question == '"a, B"\'s polygon'
