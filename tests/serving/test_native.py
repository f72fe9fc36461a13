"""`/v1/segment` and `/v1/mask` over HTTP: what is answered, what is refused and how."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import scripted
from pycocotools import mask as coco

from seg_jax.grammar import outline
from seg_jax.records import Kind

IMAGE = scripted.data_uri()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    (folder / "in").mkdir()
    (folder / "in" / "one.png").write_bytes(scripted.picture())
    (folder.parent / "secret.png").write_bytes(scripted.picture())
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    with pytest.MonkeyPatch.context() as patch, scripted.serve(patch, images=folder) as found:
        yield found


@pytest.fixture
def script(monkeypatch):
    """Returns a function that sets what the model writes."""

    def write(function):
        monkeypatch.setattr(scripted.Batch, "script", staticmethod(function))

    return write


def test_an_outline_comes_with_polygons_run_lengths_and_score(served):
    status, told, headers = served.send(
        "/v1/segment", {"image": IMAGE, "text": "the red star"}, headers={"X-Request-ID": "mine-7"}
    )
    assert status == 200
    assert headers["x-request-id"] == "mine-7"
    assert told["model"] == "tiny"
    assert told["size"] == {"height": 40, "width": 60}
    (one,) = told["objects"]
    assert "the red star" in one["question"]
    assert (one["text"], one["verdict"], one["finish"]) == (scripted.SQUARE, "OK", "stop")
    assert one["score"] == pytest.approx(0.5)
    assert one["tokens"] == len(served.batch._tokenizer.encode(scripted.SQUARE)) + 1
    assert one["polygons_px"] == [[[15, 10], [45, 10], [45, 30], [15, 30]]]
    want = np.zeros((40, 60), bool)
    want[10:30, 15:45] = True
    np.testing.assert_array_equal(coco.decode(one["rle"]), want)
    assert served.batch.placed[-1][1].temperature == 0


def test_each_box_is_an_object_and_clicks_are_one(served, script):
    boxes = [[0.1, 0.1, 0.5, 0.5], [0.2, 0.2, 0.9, 0.9]]
    _, told, _ = served.send("/v1/segment", {"image": IMAGE, "boxes": boxes})
    assert ["[0.10, 0.10, 0.50, 0.50]" in one["question"] for one in told["objects"]] == [1, 0]
    script(lambda question, wanted: scripted.CORNER if "0.10" in question else scripted.SQUARE)
    points = [[0.1, 0.1], [0.5, 0.5]]
    _, told, _ = served.send(
        "/v1/segment", {"image": IMAGE, "points": points, "labels": [1, 0], "text": "it"}
    )
    (one,) = told["objects"]
    assert (one["text"], one["agreement"]) == (scripted.CORNER, 1.0)


def test_more_answers_are_drawn_where_none_agrees_with_the_clicks(served, script):
    script(
        lambda question, wanted: (
            scripted.CORNER if wanted.temperature and wanted.number == 2 else scripted.SQUARE
        )
    )
    ask = {"image": IMAGE, "points": [[0.1, 0.1], [0.5, 0.5]], "labels": [1, 0]}
    _, told, _ = served.send("/v1/segment", ask)
    (one,) = told["objects"]
    assert (one["text"], one["agreement"]) == (scripted.CORNER, 1.0)
    script(lambda question, wanted: scripted.SQUARE)
    (one,) = served.send("/v1/segment", ask)[1]["objects"]
    assert (one["text"], one["agreement"]) == (scripted.SQUARE, 0.0)


def test_whatever_a_model_writes_gets_a_verdict(served, script):
    for text, verdict in {
        "no list at all": "EMPTY",
        "[[[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1": "TRUNCATED",
        "[].": "OK",
    }.items():
        script(lambda *_, text=text: text)
        status, told, _ = served.send("/v1/segment", {"image": IMAGE, "text": "it"})
        assert (status, told["objects"][0]["verdict"]) == (200, verdict)
    script(lambda *_: "[0.5, 0.5].")
    _, told, _ = served.send("/v1/segment", {"image": IMAGE, "text": "it", "answer": "point"})
    assert told["objects"][0]["polygons_px"] == [[[30, 20]]]
    assert outline.read("[0.5, 0.5].", Kind.POINT).point is not None


def test_numbers_that_are_none_give_no_error(served, monkeypatch):
    monkeypatch.setattr(np, "log", lambda _: np.nan)
    status, told, _ = served.send("/v1/segment", {"image": IMAGE, "text": "it"})
    assert (status, told["objects"][0]["score"]) == (200, 0.0)


def test_an_answer_that_is_cut_says_so(served):
    ask = {"image": IMAGE, "text": "it", "max_tokens": 5, "temperature": 0.5, "seed": 9}
    (one,) = served.send("/v1/segment", ask)[1]["objects"]
    assert (one["finish"], one["tokens"]) == ("length", 5)
    wanted = served.batch.placed[-1][1]
    assert (wanted.max_tokens, wanted.temperature, wanted.seed) == (5, 0.5, 9)


@pytest.mark.parametrize(
    ("change", "say"),
    [
        ({"image": None}, "400 request, image: expected str, got None"),
        ({"image": "data:image/png;base64,%%%"}, "a picture in base64"),
        ({"image": "data:image/png;base64,aGVsbG8="}, "400 image: expected"),
        ({"image": "https://example.com/a.png"}, "a picture in the request"),
        ({"image": "file:///etc/passwd"}, "a picture in the request"),
        ({"image": "../secret.png"}, "leads out of it"),
        ({"image": "/../secret.png"}, "leads out of it"),
        ({"image": "link.png"}, "leads out of it"),
        ({"image": "in/two.png"}, "no file"),
        ({"image": "in"}, "a folder"),
        ({"image": "in/\0one.png"}, "a picture in the request"),
        ({"text": None}, "text, a point on the object or a box"),
        ({"text": "  "}, "a blank one"),
        ({"text": "a\x1bb"}, "U+001B"),
        ({"text": "x " * 900}, "tokens in the prompt"),
        ({"text": "x" * 3000}, "of length <= 2000"),
        ({"points": [[0.5, 2]]}, "expected float <= 1"),
        ({"points": [[0.5, float("nan")]]}, "request"),
        ({"points": [[0.5, 0.5]], "labels": [1, 1]}, "labels: expected one of each of 1"),
        ({"points": [[0.5, 0.5]], "labels": [2]}, "labels"),
        ({"boxes": [[0.5, 0.5, 0.1, 0.9]]}, "x0 < x1"),
        ({"boxes": [[0, 0, 1, 1]] * 2}, "at most one beside text"),
        ({"text": None, "boxes": [[0, 0, 1, 1]] * 99}, "413 request: expected at most 15"),
        ({"answer": "poem"}, "expected one of point, box, mask, got 'poem'"),
        ({"temperature": -1}, "temperature"),
        ({"colour": "red"}, "fields that are known, got one named 'colour'"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(served, change, say):
    body = {"image": IMAGE, "text": "it"} | change
    assert say in served.refuses(
        "/v1/segment",
        {name: value for name, value in body.items() if value is not None or name == "image"},
    )


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b'{"a": 1, "a": 2}', b"[" * 100_000])
def test_what_is_no_json_object_is_refused(served, body):
    assert served.refuses("/v1/segment", body).startswith("400")


def test_a_picture_in_the_allowed_folder_may_be_named(served):
    assert served.send("/v1/segment", {"image": "in/one.png", "text": "it"})[0] == 200


def test_pictures_of_two_sizes_go_to_two_buckets(served):
    for size in ((40, 60), (8, 8)):
        image = scripted.data_uri(scripted.picture(*size))
        assert served.send("/v1/segment", {"image": image, "text": "it"})[0] == 200
    assert [length for _, length in served.batch.shapes] == [100, 200]


def test_drawn_outlines_are_filled_as_pycocotools_does(served):
    rng = np.random.default_rng(3)
    rings = [(rng.random((7, 2)) * [60, 40]).round(1).tolist() for _ in range(2)]
    status, told, _ = served.send("/v1/mask", {"height": 40, "width": 60, "polygons_px": rings})
    assert status == 200
    want = np.zeros((40, 60), bool)
    for ring in rings:
        (rle,) = coco.frPyObjects([np.ravel(ring).tolist()], 40, 60)
        want ^= coco.decode(rle).astype(bool)
    np.testing.assert_array_equal(coco.decode(told["rle"]), want)
    assert told["area_px"] == want.sum()
    big = {"height": 40_000, "width": 40_000, "polygons_px": []}
    assert "413" in served.refuses("/v1/mask", big)
    half = {"height": 4, "width": 4, "polygons_px": [[[1]]]}
    assert "400" in served.refuses("/v1/mask", half)
    far = {"height": 4, "width": 4, "polygons_px": [[[0, 0], [1, 0], [1, 4.5]]]}
    assert "400 polygons_px: expected points within 0..4" in served.refuses("/v1/mask", far)
    none = served.send("/v1/mask", {"height": 4, "width": 4, "polygons_px": []})[1]
    assert (none["area_px"], none["box_px"]) == (0, [0, 0, 0, 0])


def test_jpeg_and_bare_pixels_of_a_camera_are_read(served):
    data = base64.b64encode(scripted.picture(kind="JPEG")).decode()
    image = f"data:image/jpeg;base64,{data}"
    assert served.send("/v1/segment", {"image": image, "text": "it"})[0] == 200
