"""Answers as JSON against pycocotools, whatever the model writes; the model is a stand-in."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import small_run
from pycocotools import mask as coco

from seg_jax.geometry import host_raster
from seg_jax.grammar import outline
from seg_jax.inference.predictor import Predictor
from seg_jax.records import Kind, Verdict
from seg_jax.tasks.referring import RegionPrediction

HEIGHT, WIDTH = 50, 100
OUTER = np.array([[0.1, 0.2], [0.9, 0.2], [0.9, 0.8], [0.1, 0.8]])
INNER = np.array([[0.3, 0.4], [0.5, 0.4], [0.5, 0.6], [0.3, 0.6]])
APART = np.array([[0.92, 0.9], [0.98, 0.9], [0.98, 1.0], [0.92, 1.0]])


@pytest.fixture
def ask(monkeypatch):
    """Returns a function that asks about an image a model that writes the given text."""
    asked = Predictor(small_run.bundle())

    def call(text, kind=Kind.MASK, size=(HEIGHT, WIDTH)):
        tokenizer = small_run.bundle().tokenizer
        ids = [*tokenizer.encode(text), tokenizer.end_id]
        padding = [tokenizer.id("!")] * 3
        row = np.array([[ids + padding]], np.int32)
        used = np.array([[[True] * len(ids) + [False] * 3]])
        rollout = SimpleNamespace(ids=row, used=used)
        monkeypatch.setattr(asked, "answer", lambda *_: (rollout, None))
        return asked.predict_one(np.zeros((*size, 3), np.uint8), "the red star", kind)

    return call


def drawn(rings, height, width):
    """Returns what pycocotools draws of each ring, the rings joined by even-odd."""
    mask = np.zeros((height, width), bool)
    for ring in rings:
        pixels = np.asarray(ring, np.float64) * [width, height]
        (rle,) = coco.frPyObjects([pixels.ravel().tolist()], height, width)
        mask ^= coco.decode(rle).astype(bool)
    return mask


def assert_strict_json(told):
    assert json.loads(json.dumps(told, allow_nan=False)) == told


@pytest.mark.parametrize(
    "rings", [[OUTER], [OUTER, INNER], [INNER, APART]], ids=["one", "hole", "two"]
)
def test_an_outline_as_json_is_what_pycocotools_reads(ask, rings):
    text = outline.write_mask(rings, digits=2)
    got = ask(text)
    told = got.as_json()
    assert_strict_json(told)
    want = drawn(rings, HEIGHT, WIDTH)
    np.testing.assert_array_equal(got.mask, want)
    np.testing.assert_array_equal(coco.decode(told["rle"]), want)
    assert told["rle"]["size"] == [HEIGHT, WIDTH]
    assert told["size"] == {"height": HEIGHT, "width": WIDTH}
    assert told["area_px"] == coco.area(told["rle"]) == want.sum() > 0
    x, y, width, height = coco.toBbox(told["rle"])
    assert told["box_px"] == [x, y, x + width, y + height]
    np.testing.assert_allclose(
        told["box_unit"], [x / 100, y / 50, (x + width) / 100, 0.02 * (y + height)]
    )
    assert (told["text"], told["kind"], told["verdict"]) == (text, "mask", "OK")
    assert "the red star" in told["question"]
    for index, ring in enumerate(rings):
        np.testing.assert_allclose(told["polygons_unit"][index], ring)
        np.testing.assert_allclose(told["polygons_px"][index], ring * [WIDTH, HEIGHT])
    assert len(told["polygons_unit"]) == len(told["polygons_px"]) == len(rings)


@pytest.mark.parametrize("size", [(427, 640), (125, 100), (333, 250)])
def test_pixels_as_json_fill_the_mask_as_json(ask, size):
    """fill-1: a vertex that three decimals moved across the grid's border filled other pixels."""
    rng = np.random.default_rng(size[0])
    for digits in (3, 3, 3, 6, 6):
        ring = rng.random((60, 2)).round(digits)
        told = ask(outline.write_mask([ring], digits=digits), size=size).as_json()
        want = coco.decode(told["rle"])
        assert_strict_json(told)
        np.testing.assert_array_equal(want, drawn(told["polygons_unit"], *size))
        (rle,) = coco.frPyObjects([np.ravel(told["polygons_px"][0]).tolist()], *size)
        np.testing.assert_array_equal(want, coco.decode(rle))


def test_the_area_of_a_ring_in_a_ring_is_without_its_hole(ask):
    told = ask(outline.write_mask([OUTER, INNER], digits=2)).as_json()
    assert told["area_px"] == 80 * 30 - 20 * 10


def test_a_box_as_json(ask):
    told = ask("[0.10, 0.20, 0.90, 0.80]", Kind.BOX).as_json()
    assert_strict_json(told)
    assert (told["kind"], told["verdict"], told["area_px"]) == ("box", "OK", 0)
    assert told["box_unit"] == [0.1, 0.2, 0.9, 0.8]
    assert told["box_px"] == [10, 10, 90, 40]
    assert told["polygons_px"] == [[[10, 10], [90, 40]]]
    assert not coco.decode(told["rle"]).any()


def test_a_point_as_json(ask):
    told = ask("[0.25, 0.50]", Kind.POINT).as_json()
    assert_strict_json(told)
    assert (told["kind"], told["verdict"], told["area_px"]) == ("point", "OK", 0)
    assert told["polygons_unit"] == [[[0.25, 0.5]]]
    assert told["polygons_px"] == [[[25, 25]]]
    assert told["box_px"] == [25, 25, 25, 25]
    assert coco.decode(told["rle"]).shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("text", ["", "I see no star.", "[[[", "[nan, inf]", "[[0.1]] é"])
def test_what_cannot_be_read_is_an_empty_answer(ask, text, kind):
    told = ask(text, kind).as_json()
    assert_strict_json(told)
    assert (told["text"], told["kind"], told["verdict"]) == (text, kind.name.lower(), "EMPTY")
    assert told["polygons_unit"] == told["polygons_px"] == []
    assert told["box_unit"] is told["box_px"] is None
    assert told["area_px"] == coco.area(told["rle"]) == 0
    assert coco.decode(told["rle"]).shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize("kind", Kind)
def test_an_empty_list_says_that_there_is_nothing(ask, kind):
    told = ask("[].", kind).as_json()
    assert_strict_json(told)
    assert (told["verdict"], told["says_nothing"]) == ("OK", True)
    assert (told["polygons_unit"], told["box_unit"], told["area_px"]) == ([], None, 0)
    assert ask("", kind).as_json()["says_nothing"] is False


def test_half_an_answer_is_kept_and_said_to_be_half(ask):
    told = ask("[[[0.10, 0.20], [0.90, 0.20], [0.90, 0.80], [0.1").as_json()
    assert told["verdict"] == "TRUNCATED"
    assert told["polygons_unit"] == [OUTER[:3].tolist()]
    np.testing.assert_array_equal(coco.decode(told["rle"]), drawn([OUTER[:3]], HEIGHT, WIDTH))


def test_numbers_beyond_the_image_are_pulled_to_its_border(ask):
    told = ask("[[[-3, 0.20], [7.00, 0.20], [99999999999, 0.80], [0.10, 99]]]").as_json()
    assert_strict_json(told)
    assert told["verdict"] == "CLAMPED"
    assert told["polygons_px"] == [[[0, 10], [100, 10], [100, 40], [10, 50]]]


def test_images_of_any_shape_keep_their_own_size(ask):
    for height, width in ((7, 9), (33, 150)):
        got = ask(outline.write_mask([OUTER], digits=2), size=(height, width))
        assert got.mask.shape == (height, width)
        np.testing.assert_array_equal(got.mask, drawn([OUTER], height, width))
        np.testing.assert_array_equal(coco.decode(got.as_json()["rle"]), got.mask)


def test_a_prediction_may_hold_any_mask():
    mask = np.random.default_rng(0).random((13, 21)) < 0.5
    for each in (mask, mask & False, mask | True):
        told = RegionPrediction(
            question="q",
            text="t",
            kind=Kind.MASK,
            verdict=Verdict.OK,
            rings_unit=(OUTER,),
            size=(13, 21),
            mask=each,
        ).as_json()
        assert_strict_json(told)
        np.testing.assert_array_equal(coco.decode(told["rle"]), each)
        assert told["area_px"] == coco.area(told["rle"]) == each.sum()


@pytest.mark.parametrize(("height", "width"), [(37, 53), (64, 64)])
def test_a_filled_ring_is_that_of_pycocotools(height, width):
    rng = np.random.default_rng(height)
    for _ in range(40):
        ring = rng.random((7, 2)).round(2)
        got = host_raster.fill((ring,), height=height, width=width, rule="coco")
        np.testing.assert_array_equal(got, drawn([ring], height, width))


def test_rings_are_filled_by_even_odd():
    rng = np.random.default_rng(1)
    for _ in range(20):
        rings = rng.random((7, 2)).round(2), rng.random((4, 2)).round(2), rng.random((3, 2))
        got = host_raster.fill(rings, height=37, width=53, rule="coco")
        np.testing.assert_array_equal(got, drawn(rings, 37, 53))


def test_the_center_rule_is_used_where_it_is_asked_for():
    corner = np.array([[0.0, 0.0], [0.95, 0.0], [0.0, 0.95]])
    rows, columns = np.mgrid[:10, :10] + 0.5
    got = host_raster.fill((corner,), height=10, width=10, rule="center")
    np.testing.assert_array_equal(got, rows + columns < 9.5)
    ring = np.random.default_rng(2).random((7, 2))
    one, other = (
        host_raster.fill((ring,), height=37, width=53, rule=rule) for rule in ("center", "coco")
    )
    assert 0 < (one != other).sum() < 37
