"""Protocols: numbers against an independent evaluation with pycocotools, questions, conventions."""

import dataclasses

import benchmark
import numpy as np
import pytest
from benchmark import Listed, rectangle, sample
from pycocotools import mask as coco

from seg_jax.evaluation.referring import protocols, scoring
from seg_jax.records import Kind
from seg_jax.tasks.referring import Referring, draw

EXACT = 1e-9
PRECISIONS = [f"p_at_0.{tenth}" for tenth in range(5, 10)]


def means(summary, *names):
    return {name: summary[name] and summary[name]["mean"] for name in names}


def summarise(name, rows):
    return scoring.summarise(rows, protocols.PROTOCOLS[name])


@pytest.fixture(scope="module")
def judged():
    """Returns a hundred random samples with all sorts of answers, and the rows of RES."""
    samples = benchmark.scattered(0, 40)
    rows = benchmark.rows("res", samples, benchmark.random_answer(np.random.default_rng(1)))
    return samples, rows


def test_res_is_that_of_pycocotools(judged):
    samples, rows = judged
    shared, covered, iou, boxes, kinds = 0, 0, [], [], set()
    for row in rows:
        truth = samples[row.index].masks[row.which]
        rings = benchmark.numbers_of(row.text)
        mask = benchmark.pixels(rings, *truth.shape)
        both, either = benchmark.areas(mask, truth)
        assert (row.intersection, row.union) == (both, either), row
        shared, covered = shared + int(both), covered + int(either)
        iou.append(benchmark.mask_iou(mask, truth))
        assert row.iou == pytest.approx(iou[-1], abs=EXACT)
        boxes.append(benchmark.box_iou(benchmark.box_of(mask), benchmark.box_of(truth)))
        assert row.box_iou == pytest.approx(boxes[-1], abs=EXACT)
        kinds.add((mask.any(), truth.any(), len(rings) > 1, row.verdict == "CLAMPED"))
    # The set has what it should have: empty answers, empty truths, parts, clipped answers.
    for place, value in enumerate([False, False, True, True]):
        assert any(kind[place] == value for kind in kinds)
    assert {(False, False), (True, False), (False, True)} <= {kind[:2] for kind in kinds}
    iou, boxes = np.array(iou), np.array(boxes)
    wanted = {"ciou": shared / covered, "giou": iou.mean(), "rec_from_mask": (boxes > 0.5).mean()}
    wanted |= {name: (iou > float(name[5:])).mean() for name in PRECISIONS}
    assert 0.05 < wanted["p_at_0.5"] < wanted["giou"] < 0.9
    assert means(summarise("res", rows), *wanted) == pytest.approx(wanted, abs=EXACT)


def test_rec_is_that_of_pycocotools_for_both_boxes():
    samples = benchmark.scattered(2, 30)
    rng = np.random.default_rng(3)

    def answer(question):
        if question.kind == Kind.MASK or rng.random() < 0.3 or not question.truth.any():
            return benchmark.random_answer(rng)(question)
        x, y, width, height = benchmark.box_of(question.truth)
        box = np.array([x, y, x + width, y + height]) / np.tile(question.truth.shape[::-1], 2)
        return str(np.clip(box + rng.normal(size=4) * 0.05, 0, 1).round(3).tolist())

    rows = benchmark.rows("rec", samples, answer)
    hits = {"mask": [], "box": []}
    for row in rows:
        truth = samples[row.index].masks[row.which]
        box = benchmark.box_of(truth)
        if row.kind == "mask":
            mask = benchmark.pixels(benchmark.numbers_of(row.text), *truth.shape)
            iou = benchmark.box_iou(benchmark.box_of(mask), box)
        else:
            numbers = [float(n) for n in benchmark.re.findall(r"-?\d\.\d+", row.text)]
            size = np.tile(truth.shape[::-1], 2)
            corners = np.array(numbers) * size if len(numbers) == 4 else np.zeros(4)
            low, high = np.minimum(*corners.reshape(2, 2)), np.maximum(*corners.reshape(2, 2))
            iou = benchmark.box_iou(np.concatenate([low, high - low]), box)
        hits[row.kind].append(iou > 0.5)
        assert row.box_iou == pytest.approx(iou, abs=EXACT)
    summary = summarise("rec", rows)
    wanted = {f"rec_from_{kind}": np.mean(found) for kind, found in hits.items()}
    assert 0 < wanted["rec_from_mask"] < wanted["rec_from_box"] < 1
    assert means(summary, *wanted) == pytest.approx(wanted, abs=EXACT)


def test_the_same_answers_give_the_same_rows_twice(judged):
    samples, rows = judged
    again = benchmark.rows("res", samples, benchmark.random_answer(np.random.default_rng(1)))
    assert again == rows
    assert summarise("res", again) == summarise("res", rows)


SQUARE = "[[[0.200, 0.250], [0.600, 0.250], [0.600, 0.750], [0.200, 0.750]]]"
TRUE = rectangle(10, 10, 30, 30)
NOTHING = rectangle(0, 0, 0, 0)


def test_gres_counts_targets_and_the_lack_of_them():
    two = rectangle(10, 10, 30, 30) | rectangle(40, 0, 50, 10)
    images = Listed(
        [
            sample("a", [TRUE, NOTHING], (("the square",), ("the cat", "a dog"))),
            sample("b", [two, NOTHING, TRUE], (("both",), ("no one",), ("the left one",))),
        ]
    )
    # Right; said, invented; one of two; unreadable; missed.
    answers = [SQUARE, "[].", SQUARE, SQUARE, "who knows", "It is at [ ]."]
    rows = benchmark.rows("gres", images, answers)
    summary = summarise("gres", rows)
    assert means(summary, "giou", "ciou", "n_acc", "n_acc_said", "t_acc") == pytest.approx(
        {
            "giou": (1 + 1 + 0 + 400 / 500 + 1 + 0) / 6,
            "ciou": (400 + 0 + 0 + 400 + 0 + 0) / (400 + 0 + 400 + 500 + 0 + 400),
            "n_acc": 2 / 3,
            "n_acc_said": 1 / 3,
            "t_acc": 2 / 3,
        },
        abs=EXACT,
    )
    assert summary["no_target"] == 3
    faults = ["none", "none", "semantic", "none", "format", "semantic"]
    assert [row.fault for row in rows] == faults


def test_gres_counts_several_things_and_what_is_repeated():
    right = rectangle(40, 0, 50, 10)
    pair = TRUE | right
    image = sample(
        "a",
        [TRUE, right, pair, NOTHING],
        (("the square",), ("the right one",), ("both", "all of them"), ("a dog",)),
        together=(False, False, True, False),
    )
    unknown = sample("b", [pair], (("both",),), together=(True,))
    other = "[[[0.800, 0.000], [1.000, 0.000], [1.000, 0.250], [0.800, 0.250]]]"
    two = f"[{SQUARE[1:-1]}, {other[1:-1]}]"
    thrice = f"[{SQUARE[1:-1]}, {SQUARE[1:-1]}, {SQUARE[1:-1]}]"
    answers = [thrice, "[]", two, thrice, "[]", two]
    rows = benchmark.rows("gres", Listed([image, unknown]), answers)
    assert [row.meant for row in rows] == [1, 1, 2, 2, 0, None]
    assert [row.found for row in rows] == [1, 0, 2, 1, 0, 0]
    assert [row.duplicates for row in rows] == [2, 0, 0, 2, 0, 0]
    summary = summarise("gres", rows)
    # Of things that are not known one by one the recall says nothing.
    assert means(summary, "several_giou", "several_recall", "duplicates") == pytest.approx(
        {
            "several_giou": (1.0 + 400 / 500 + 1.0) / 3,
            "several_recall": 3 / 4,
            "duplicates": 4 / 6,
        },
        abs=EXACT,
    )
    alone = summarise("gres", rows[:2])
    assert (alone["several_giou"], alone["several_recall"]) == (None, None)
    assert [row.meant for row in benchmark.rows("res", Listed([unknown]), [two])] == [None]


def test_ignored_pixels_count_for_nothing():
    ignored = rectangle(20, 0, 50, 40)
    plain = sample("a", [TRUE, rectangle(20, 10, 30, 30)], (("a",), ("b",)))
    masked = dataclasses.replace(plain, ignored=np.stack([ignored, ignored]))
    half = "[[[0.300, 0.250], [0.800, 0.250], [0.800, 0.750], [0.300, 0.750]]]"
    one, other = benchmark.rows("reasonseg", Listed([masked]), [half, half])
    assert (one.intersection, one.union, one.iou) == (100, 200, 0.5)
    assert (other.intersection, other.union, other.iou) == (0, 100, 0.0)
    (third, _) = benchmark.rows("reasonseg", Listed([plain]), [half, half])
    assert (third.intersection, third.union) == (300, 600)
    full = dataclasses.replace(plain, ignored=np.ones_like(plain.masks))
    whole = benchmark.rows("reasonseg", Listed([full]), [half, ""])
    assert [row.iou for row in whole] == [1.0, 1.0]
    assert summarise("reasonseg", whole)["ciou"] is None


@pytest.mark.parametrize("name", ["point_mask", "box_mask"])
def test_places_are_told_of_each_mask_and_always_the_same(name):
    images = Listed([sample("a", [TRUE, NOTHING, rectangle(0, 0, 1, 1)], ((), (), ()))])
    protocol = protocols.PROTOCOLS[name]
    asked, again = (
        list(protocols.questions(protocol, images, task=Referring(digits=3))) for _ in range(2)
    )
    assert [question.which for question in asked] == [0, 2]
    assert [question.text for question in asked] == [question.text for question in again]
    if name == "box_mask":
        assert "box [0.200, 0.250, 0.600, 0.750]" in asked[0].text
    else:
        x, y = asked[0].clue * [50, 40]
        assert TRUE[int(y), int(x)]
        others = protocols.questions(protocol, images, task=Referring(digits=3), seed=1)
        assert next(others).text != asked[0].text
    rows = benchmark.rows(name, images, [SQUARE, SQUARE])
    assert [row.iou for row in rows] == [1.0, 0.0]


def test_every_expression_is_asked_about_once_in_one_form():
    images = Listed([sample("a", [TRUE, NOTHING], ((" a", "b"), ("c",)))])
    asked = list(protocols.questions(protocols.PROTOCOLS["res"], images, task=Referring(digits=3)))
    assert [q.text for q in asked] == ['"a"\'s polygon', '"b"\'s polygon', '"c"\'s polygon']
    (first, *_) = protocols.questions(
        protocols.PROTOCOLS["res"], images, task=Referring(digits=3), form=2
    )
    assert first.text == "Output the polygon coordinates of a in the image."
    both = protocols.questions(protocols.PROTOCOLS["rec"], images, task=Referring(digits=3))
    assert [q.kind for q in both] == [Kind.MASK] * 2 + [Kind.BOX] * 2 + [Kind.MASK, Kind.BOX]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"masks": np.zeros((1, 40, 49), bool)}, "masks of the image's size"),
        ({"ignored": np.zeros((2, 40, 50), bool)}, "ignored of the image's size"),
        ({"phrases": ()}, "expressions for each of 1 masks, got 0"),
    ],
)
def test_samples_that_contradict_themselves_are_named(changes, words):
    good = sample("a", [TRUE])
    broken = object.__new__(type(good))
    for field in dataclasses.fields(good):
        object.__setattr__(broken, field.name, changes.get(field.name, getattr(good, field.name)))
    with pytest.raises(ValueError, match=f"sample a: expected {words}"):
        next(
            protocols.questions(
                protocols.PROTOCOLS["res"], Listed([broken]), task=Referring(digits=3)
            )
        )


def test_faults_tell_the_object_from_its_outline():
    other = rectangle(34, 10, 50, 30)
    images = Listed([sample("a", [TRUE, other, TRUE | other])])

    def fault(text):
        return benchmark.rows("res", images, [text, "", ""])[0].fault

    assert fault(SQUARE) == "none"
    assert fault("[[[0.700, 0.250], [0.980, 0.250], [0.980, 0.750]]]") == "semantic"
    assert fault("[[[0.0, 0.0], [0.1, 0.0], [0.1, 0.1]]]") == "semantic"
    assert fault("[[[0.200, 0.250], [1.0, 0.250], [1.0, 0.750], [0.200, 0.750]]]") == "semantic"
    assert fault("[]") == "semantic"
    small = "[[[0.300, 0.300], [0.400, 0.300], [0.400, 0.400]]]"
    assert fault(small) == "geometric"
    assert fault(small[:-3]) == "format"
    assert fault("[[[0.300, 0.301], [0.301, 0.301], [0.301, 0.302]]]") == "geometric"
    assert fault("[[[0.900, 0.901], [0.901, 0.901], [0.901, 0.902]]]") == "semantic"
    assert fault("nothing at all") == fault("") == "format"


def test_faults_of_boxes():
    images = Listed([sample("a", [TRUE, rectangle(34, 10, 50, 30)])])

    def fault(text):
        return benchmark.rows("rec", images, ["", text, "", ""])[1].fault

    assert fault("[0.2, 0.25, 0.6, 0.75]") == "none"
    assert fault("[0.7, 0.25, 1.0, 0.75]") == "semantic"
    assert fault("[0.3, 0.3, 0.4, 0.4]") == "geometric"
    assert fault("[0.3, 0.3]") == "format"


def test_what_faults_cost_adds_up_to_what_is_missing(judged):
    _, rows = judged
    summary = summarise("res", rows)
    faults = summary["faults"]["mask"]
    assert sum(fault["count"] for fault in faults.values()) == len(rows)
    assert sum(f["lost"] for f in faults.values()) == pytest.approx(1 - summary["giou"]["mean"])
    assert min(fault["count"] for fault in faults.values()) > 0


def test_intervals_are_over_images_not_questions():
    # Ten questions about each image, all right or all wrong: ten times the questions, no more
    # knowledge than two images of one question each give.
    phrases = tuple(str(number) for number in range(10))
    many = Listed([sample(str(n), [TRUE], (phrases,)) for n in range(8)])
    few = Listed([sample(str(n), [TRUE], (("x",),)) for n in range(8)])

    def half(question):
        return SQUARE if question.index % 2 else ""

    one, other = (summarise("res", benchmark.rows("res", s, half)) for s in (many, few))
    assert one["giou"] == pytest.approx(other["giou"])
    assert one["giou"]["high"] - one["giou"]["low"] > 0.4


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match="expected at least one question, got none"):
        summarise("res", [])


def test_images_of_cameras_are_larger_than_the_canvas():
    """48 megapixels ended preview and predict, which drew answers of them on the canvas."""
    for height, width in ((40, 5000), (6000, 40)):
        found = draw(SQUARE, Kind.MASK, (height, width)).mask
        ring = np.array([[0.2, 0.25], [0.6, 0.25], [0.6, 0.75], [0.2, 0.75]]) * [width, height]
        (wanted,) = coco.frPyObjects([ring.ravel().tolist()], height, width)
        assert (found == coco.decode(wanted).astype(bool)).all()
        assert found.any()


def test_what_no_canvas_holds_is_an_error_of_one_line():
    for size, rule in (((40, 5000), "center"), ((0, 5), "coco")):
        with pytest.raises(ValueError, match=f"expected an image of 1x1 to .*, got {size[0]}x"):
            draw(SQUARE, Kind.MASK, size, rule=rule)
