"""Proves that an image's record holds the true masks, and that no fault of one is raised."""

import dataclasses
import hashlib
import io

import known_scenes as known
import numpy as np
import pytest
import shapely
from PIL import Image
from pycocotools import mask as coco

from seg_jax.annotation import annotator
from seg_jax.annotation.annotator import Contour, annotate, clean_outline
from seg_jax.annotation.filters import Filters
from seg_jax.annotation.stages import Answer, Detection, Segment, Stages, Unusable
from seg_jax.data.image_lists import ImageFile


@pytest.fixture
def scene(tmp_path):
    """Returns an image with its sample."""
    (sample,) = known.make(tmp_path, 1)
    return ImageFile("000.png", tmp_path / "000.png"), sample


def run(image, stages=None, settings=None, models=known.MODELS):
    settings = settings or known.settings()
    return annotate(image, stages or known.Load(1)(), settings, models=models, code="here")


def decoded(segmentation):
    rle = segmentation | {"counts": segmentation["counts"].encode()}
    return coco.decode(rle).astype(bool)


def filled(rings, height, width):
    """Returns the pixels whose centres rings of pixel corners enclose, by even-odd, slowly."""
    mask = np.zeros((height, width), bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True):
            for row in range(min(y0, y1), max(y0, y1)):
                x = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
                mask[row, max(0, int(np.ceil(x - 0.5))) :] ^= True
    return mask


def test_a_record_holds_the_true_masks_and_where_they_are_from(scene):
    image, sample = scene
    line, failed, dropped = run(image)
    assert (failed, dict(dropped)) == ([], {})
    assert [one["name"] for one in line["objects"]] == list(sample.names)
    for one, mask in zip(line["objects"], sample.masks, strict=True):
        np.testing.assert_array_equal(decoded(one["segmentation"]), mask)
        np.testing.assert_array_equal(filled(one["rings_px"], *mask.shape), mask)
        assert one["area_px"] == mask.sum()
        assert one["box_px"] == list(known.box(mask))
    assert [one["score"] for one in line["objects"]] == [0.9, 0.8]
    assert {one["text"]: one["objects"] for one in line["phrases"]} == {
        name: [place] for place, name in enumerate(sample.names)
    }
    origin = line["provenance"]
    assert origin["image"]["sha256"] == hashlib.sha256(image.path.read_bytes()).hexdigest()
    assert origin["image"]["size"] == [64, 64]
    assert origin["models"]["detector"] == {"name": "boxes", "revision": "1"}
    assert origin["models"]["describer"] is None
    assert origin["filters"]["min_score"] == 0.35
    assert origin["code"] == "here"


def test_descriptions_become_expressions(scene):
    image, sample = scene
    outcome = run(image, known.Load(1, talking=True)(), models=known.TALKING)
    texts = [one["text"] for one in outcome.line["phrases"]]
    assert texts == [f"the very {name}" for name in sample.names]
    assert outcome.line["provenance"]["question"] == "the very {label}"


def test_objects_of_one_description_are_meant_together(scene):
    image, _ = scene

    class Same:
        def describe(self, asks):
            return [Answer("A star"), Answer("a star.")]

    stages = known.Load(1)()._replace(describer=Same())
    line = run(image, stages, models=known.TALKING).line
    assert line["phrases"] == [{"text": "A star", "objects": [0, 1]}]


def test_a_refused_description_costs_its_object_alone(scene):
    image, sample = scene

    class Half:
        def describe(self, asks):
            return [Answer("the one<|im_end|>"), Answer("the other")]

    stages = known.Load(1)()._replace(describer=Half())
    line, failed, dropped = run(image, stages, models=known.TALKING)
    assert [one["name"] for one in line["objects"]] == [sample.names[1]]
    assert line["phrases"] == [{"text": "the other", "objects": [0]}]
    assert dropped == {"description": 1}
    (letter,) = failed
    assert (letter["stage"], letter["object"]["label"]) == ("describer", sample.names[0])
    assert "markup" in letter["reason"]


@pytest.mark.parametrize("stage", ["detector", "segmenter", "describer"])
def test_a_model_that_fails_makes_a_dead_letter(scene, stage):
    image, _ = scene
    stages = known.Load(1, talking=True)()._replace(**{stage: known.Broken()})
    line, (letter,), _ = run(image, stages, models=known.TALKING)
    assert line is None
    assert letter["stage"] == stage
    assert letter["reason"] == "RuntimeError: CUDA out of memory Tried to allocate"
    assert letter["transient"] is False
    assert letter["sha256"] == hashlib.sha256(image.path.read_bytes()).hexdigest()
    stages = stages._replace(**{stage: known.Broken(known.GONE)})
    assert run(image, stages, models=known.TALKING).failed[0]["transient"] is True
    with pytest.raises(Unusable, match="no key"):
        run(image, stages._replace(**{stage: known.Broken(Unusable("no key"))}))


def spoiled(path, fault):
    """Spoils an image's file."""
    data = path.read_bytes()
    whole = {"missing": None, "empty": b"", "cut": data[:200], "text": b"hello", "eps": EPS}[fault]
    path.unlink()
    if whole is not None:
        path.write_bytes(whole)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("missing", "expected an image, got no file"),
        ("empty", "expected an image"),
        ("cut", "expected a whole image"),
        ("text", "expected an image"),
        ("eps", "expected an image"),
    ],
)
def test_a_broken_file_makes_a_dead_letter(scene, fault, told):
    image, _ = scene
    spoiled(image.path, fault)
    line, (letter,), _ = run(image)
    assert (line, letter["stage"]) == (None, "read")
    assert told in letter["reason"]


def test_a_huge_image_is_not_decoded(scene, monkeypatch):
    image, _ = scene
    monkeypatch.setattr(annotator.image_files, "MAX_PIXELS", 64 * 64 - 1)
    assert "million pixels, got 64 x 64" in run(image).failed[0]["reason"]


def test_a_turned_image_is_seen_upright(tmp_path, scene):
    _, sample = scene
    stored = Image.fromarray(np.rot90(sample.image))
    exif = stored.getexif()
    exif[0x0112] = 6  # To be turned by a quarter, clockwise.
    stored.save(tmp_path / "turned.png", exif=exif)
    line = run(ImageFile("turned.png", tmp_path / "turned.png")).line
    assert line["upright"] is True
    for one, mask in zip(line["objects"], sample.masks, strict=True):
        np.testing.assert_array_equal(decoded(one["segmentation"]), mask)


def test_small_images_and_images_without_objects_are_no_failures(scene):
    image, _ = scene
    small = known.settings(filters=Filters(min_side_px=65))
    assert run(image, settings=small) == (None, [], {"small_image": 1})
    strict = known.settings(filters=Filters(min_score=0.95))
    assert run(image, settings=strict) == (None, [], {"score": 2})


def test_masks_of_another_size_are_the_segmenters_failure(scene):
    image, _ = scene

    class Odd:
        def segment(self, image, boxes_px):
            return [Segment(np.ones((8, 8), bool), 1.0, 1.0) for _ in boxes_px]

    line, (letter,), _ = run(image, known.Load(1)()._replace(segmenter=Odd()))
    assert (line, letter["stage"]) == (None, "segmenter")
    assert "expected 2 masks of 64x64, got [(8, 8), (8, 8)]" in letter["reason"]


def blob(seed, height=48, width=56):
    """Returns a ragged mask with holes and specks."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(height, width))
    for _ in range(3):
        noise = sum(np.roll(noise, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
    return noise > 0


@pytest.mark.parametrize("seed", range(2))
def test_outlines_lose_nothing_and_drop_what_is_small(seed):
    mask = blob(seed)
    same, rings = clean_outline(mask, Contour(min_area_px=0))
    np.testing.assert_array_equal(same, mask)
    np.testing.assert_array_equal(filled([r.astype(int).tolist() for r in rings], 48, 56), mask)
    clean, fewer = clean_outline(mask, Contour(min_area_px=12))
    assert 0 < len(fewer) < len(rings)
    wanted = filled([ring.astype(int).tolist() for ring in fewer], 48, 56)
    np.testing.assert_array_equal(clean, wanted)
    rough, few = clean_outline(mask, Contour(epsilon_px=1.5, min_area_px=12))
    assert sum(map(len, few)) < sum(map(len, fewer)) / 2
    # Who owns a centre that lies on an edge is for the rule to say.
    borders = shapely.MultiLineString([np.concatenate([ring, ring[:1]]) for ring in few])
    centres = shapely.points(*(np.mgrid[:48, :56][::-1] + 0.5))
    clear = shapely.distance(centres, borders) > 0
    wanted = filled([r.astype(int).tolist() for r in few], 48, 56)
    np.testing.assert_array_equal(rough[clear], wanted[clear])
    assert clear.mean() > 0.9
    shared = np.count_nonzero(rough & clean) / np.count_nonzero(rough | clean)
    assert 0.8 < shared < 1


def test_a_mask_of_specks_is_none(scene):
    image, _ = scene
    strict = known.settings(contour=Contour(min_area_px=64 * 64))
    assert run(image, settings=strict) == (None, [], {"mask_area": 2})


def test_grey_and_transparent_images_are_seen_as_they_are_stored(tmp_path):
    seen = []

    class Seeing:
        def detect(self, image, labels):
            seen.append((image, tuple(labels)))
            return [Detection((8.0, 8.0, 40.0, 40.0), "a thing", 0.9)]

    class Square:
        def segment(self, image, boxes_px):
            mask = np.zeros(image.shape[:2], bool)
            mask[8:40, 8:40] = True
            return [Segment(mask, 1.0, 1.0)]

    grey = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    (tmp_path / "grey.png").write_bytes(buffer.getvalue())
    stages = Stages(Seeing(), Square(), None)
    assert run(ImageFile("grey.png", tmp_path / "grey.png"), stages).line is not None
    np.testing.assert_array_equal(seen[0][0], np.repeat(grey[..., None], 3, 2))
    assert seen[0][1] == ("a thing",)


def test_settings_that_make_no_sense_are_told():
    with pytest.raises(ValueError, match="contour: expected numbers of 0 or more"):
        Contour(epsilon_px=-1.0)
    with pytest.raises(ValueError, match=r"filters.min_score: expected 0 to 1, got 35"):
        Filters(min_score=35.0)
    with pytest.raises(ValueError, match=r"filters.max_objects: expected at least 1, got 0"):
        Filters(max_objects=0)
    with pytest.raises(ValueError, match=r"filters.min_box: expected at most max_box"):
        dataclasses.replace(Filters(), min_box=0.9, max_box=0.5)
