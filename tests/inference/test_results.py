"""Answers in a program: typed, shown in a notebook, handed to tools that are not needed for it."""

import sys
import types
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scripted_answers import Scripted

from seg_jax.data.exports.answers import Answer
from seg_jax.inference.predictor import Predictor
from seg_jax.inference.results import Result
from seg_jax.records import Kind, Verdict
from seg_jax.runs import experiments
from seg_jax.tasks.referring import Referring, draw

TEXTS = ("the red star", "both rings", "nothing at all")
SIZE = (31, 40)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)


def answer(text, label, kind=Kind.MASK):
    """Returns an answer that a model wrote."""
    task = Referring()
    told = task.predict(task.ask(np.zeros((*SIZE, 3), np.uint8), label, kind), text).as_json()
    return Answer(told | {"number": 0, "label": label, "score": 0.25}, 0)


def test_every_text_is_asked_of_every_picture_of_any_sort(image, tmp_path):
    Image.fromarray(image).save(path := tmp_path / "a.png")
    asker = Scripted()
    found = asker.predict([path, str(path), image, Image.fromarray(image)], TEXTS, batch=5)
    assert asker.batches == [5, 5, 5]
    assert [one.name for one in found] == [str(path), str(path), "picture 2", "picture 3"]
    for one in found:
        np.testing.assert_array_equal(one.image, image)
        assert [each.label for each in one.answers] == [*TEXTS]
        assert [each.text for each in one.answers] == [each.text for each in found[0].answers]
        for each in one.answers:
            assert (each.score, each.verdict) == (pytest.approx(0.5), Verdict.OK)
            np.testing.assert_array_equal(each.mask, draw(each.text, Kind.MASK, SIZE).mask)
    assert [each.is_mask for each in found[0].answers] == [True, True, False]


def test_one_picture_is_asked_by_text_point_or_box(image):
    asker = Scripted()
    ((one,),) = (each.answers for each in asker.predict(image, "x"))
    assert one.told["asked"] == {"text": "x"}
    ((one,),) = (each.answers for each in asker.predict(image, point=(0.25, 0.5)))
    assert (one.told["asked"], one.label) == ({"point": [0.25, 0.5]}, "object")
    ((one,),) = (each.answers for each in asker.predict(image, box=np.array([0, 0, 0.5, 1])))
    assert one.told["asked"] == {"box": [0, 0, 0.5, 1]}
    assert asker.predict([], "x") == ()


def test_images_of_pil_are_what_their_files_are(image, tmp_path):
    turned = Image.fromarray(image)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(image).convert("CMYK").save(tmp_path / "press.tif")
    Image.fromarray(image[..., 0]).save(tmp_path / "grey.png")
    for name in ("turned.png", "grey.png"):
        with Image.open(tmp_path / name) as opened:
            of_file, of_image = Scripted().predict([tmp_path / name, opened], "x")
        np.testing.assert_array_equal(of_file.image, of_image.image)
    with Image.open(tmp_path / "press.tif") as opened:
        assert Scripted().predict(opened, "x")[0].image.shape == image.shape


@pytest.mark.parametrize(
    ("asked", "say"),
    [
        ({}, "predict: expected one of texts, point and box, got 0; do: "),
        ({"texts": "a", "point": (0, 0)}, "predict: expected one of texts, point and box, got 2"),
        ({"texts": ["a", " "]}, "texts: expected an expression, got none; do: "),
        ({"point": (0.1, 0.2, 0.3)}, "point: expected 2 numbers, got 3; do: "),
        ({"point": (3, 0.2)}, "point: expected fractions of width and height in 0..1, got"),
        ({"box": (0.5, 0.1, 0.2, 0.9)}, "box: expected a box x0 y0 x1 y1 with x0 < x1 and"),
        ({"texts": "a", "answer": "circle"}, "answer: expected one of point, box, mask, got 'cir"),
        ({"texts": "a", "batch": 0}, "batch: expected at least 1, got 0; do: "),
        ({"texts": "word " * 200}, "picture 0: .* do: ask in fewer words"),
    ],
)
def test_questions_that_are_none_are_refused(image, asked, say):
    with pytest.raises(ValueError, match=say):
        Scripted().predict(image, **asked)


@pytest.mark.parametrize(
    "pixels", [np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8)]
)
def test_pixels_that_are_no_picture_are_refused(pixels, tmp_path):
    with pytest.raises(ValueError, match=r"picture 0: expected uint8 \[H W 3\], got .*; do: "):
        Scripted().predict(pixels, "x")
    with pytest.raises(ValueError, match="gone.png"):
        Scripted().predict(tmp_path / "gone.png", "x")


@pytest.fixture
def result(image):
    """Returns masks, one with markup in its name, a box, a point, and nothing."""
    square = "[[[0.25, 0.20], [0.75, 0.20], [0.75, 0.80], [0.25, 0.80]]]."
    some = (
        answer(square, "<b>cup</b>"),
        answer("[0.10, 0.20, 0.90, 0.80]", "fork", Kind.BOX),
        answer("[0.25, 0.50]", "point", Kind.POINT),
        answer("[].", "nothing"),
    )
    return Result(image, some, "<a>.png")


def test_fields_of_supervision(result):
    """Checked against supervision 0.31.2: Detections, their annotators, filters and NMS."""
    fields = result.supervision_fields(["fork", "plate"])
    np.testing.assert_allclose(fields["xyxy"], [[10, 6, 30, 25], [4, 6.2, 36, 24.8]], atol=1e-5)
    assert (fields["xyxy"].dtype, fields["class_id"].tolist()) == (np.float32, [2, 0])
    np.testing.assert_array_equal(fields["mask"][0], result.answers[0].mask)
    assert not fields["mask"][1].any()
    assert fields["mask"].shape == (2, *SIZE)
    assert fields["confidence"].tolist() == [0.25, 0.25]
    assert fields["data"]["class_name"].tolist() == ["<b>cup</b>", "fork"]
    assert fields["data"]["answer"].tolist() == [0, 1]
    boxes = Result(result.image, result.answers[1:], "x").supervision_fields()
    assert (boxes["mask"], boxes["xyxy"].shape) == (None, (1, 4))
    none = Result(result.image, result.answers[3:], "x").supervision_fields()
    assert (none["mask"], none["xyxy"].shape, none["class_id"].dtype.kind) == (None, (0, 4), "i")


def test_fields_of_fiftyone(result):
    fields = result.fiftyone_fields()
    cup, fork = fields["detections"]
    height, width = SIZE
    assert cup["bounding_box"] == [10 / width, 6 / height, 20 / width, 19 / height]
    assert (cup["mask"].shape, cup["mask"].all(), cup["confidence"]) == ((19, 20), True, 0.25)
    np.testing.assert_allclose(fork["bounding_box"], [0.1, 0.2, 0.8, 0.6])
    assert fork.keys() == {"label", "confidence", "bounding_box"}
    (line,) = fields["polylines"]
    assert (line["label"], line["closed"], line["filled"]) == ("<b>cup</b>", True, True)
    np.testing.assert_allclose(line["points"][0][2], (0.75, 0.8))
    assert fields["keypoints"] == [
        {"label": "point", "points": [(0.25, 0.5)], "confidence": [0.25]}
    ]


def test_a_result_is_html_that_loads_nothing_and_holds_no_markup_of_others(result):
    page = result._repr_html_()
    body = ElementTree.fromstring(f"<body>{page.partition('</style>')[2]}</body>")
    places = [one.get("href") or one.get("src") for one in body.iter()]
    assert all(place.startswith("data:image/") for place in places if place)
    assert {one.tag.rpartition("}")[2] for one in body.iter()}.isdisjoint({"b", "a", "script"})
    told = " ".join(body.itertext())
    assert "<a>.png" in told
    assert "<b>cup</b> · score 0.250, 380 pixels" in told
    assert "there is nothing" in told
    assert ElementTree.fromstring(result.svg()) is not None
    assert result.draw().dtype == np.uint8


def test_a_notebook_shows_it_and_a_terminal_says_what_to_do(result, monkeypatch):
    shown = []
    package = types.ModuleType("IPython")
    package.get_ipython = lambda: None
    display = types.ModuleType("IPython.display")
    display.display = shown.append
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    with pytest.raises(RuntimeError, match="show: expected a notebook, got none; do: call draw"):
        result.show()
    package.get_ipython = object
    result.show()
    assert shown == [result]
    found = Scripted().predict(result.image, "x")
    found.show()
    assert shown == [result, found]
    assert found._repr_html_().count("<figure>") == 1


@pytest.mark.slow
def test_a_folder_is_loaded_and_answers_as_predict_does(tmp_path):
    model = Predictor.load(str(experiments.NANO), dtype="float32")
    image = np.random.default_rng(3).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    (found,) = model.predict(image, ["the red star", "the ring"], batch=1)
    for one in found.answers:
        told = model.predict_one(image, one.label).as_json()
        assert {name: one.told[name] for name in told} == told
    with pytest.raises(ValueError, match="expected a checkpoint folder, got nothing there; do: "):
        Predictor.load(tmp_path / "none")
    with pytest.raises(ValueError, match="segmenter: expected none for the task 'referring'"):
        Predictor.load(experiments.NANO, segmenter=tmp_path)
