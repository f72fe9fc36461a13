"""Data sets of images and grey masks: layouts as published, odd masks, what is told of them."""

import json

import numpy as np
import published_formats as formats
import pytest
from PIL import Image

from seg_jax.data import grey_images, sources
from seg_jax.data.build import dataset, record_files
from seg_jax.data.formats import mask_folders


def build(source, name, **more):
    """Builds a data set in this process; returns its report."""
    plan = dataset.Plan(name=name, source=source, out=source / "out", **more)
    with dataset.claim_build(plan, anew=False):
        planned = dataset.plan_files(plan)
        parts = [record_files.make_file(task) for task in planned.tasks]
        return dataset.finish_build(plan, planned, parts)


@pytest.mark.parametrize("name", mask_folders.LAYOUTS)
def test_a_data_set_is_built_from_its_published_layout(tmp_path, name):
    made = formats.masks(tmp_path, name)
    report = build(tmp_path, name)
    assert report["findings"] == {}
    splits = {split for split, _ in made}
    assert {split: one["records"] for split, one in report["splits"].items()} == dict.fromkeys(
        splits, 2
    )
    assert all("as published, got 2" in told for told in report["warnings"])
    assert len(report["warnings"]) == len(splits)
    for split in splits:
        source = sources.Built(folders=(tmp_path / "out",), split=split)
        samples = [source[number] for number in range(len(source))]
        for sample in samples:
            (mask,) = sample.masks
            name_of_image = sample.key.rpartition("/")[2]
            np.testing.assert_array_equal(mask, made[split, name_of_image])
            assert sample.phrases == ((mask_folders.LAYOUTS[name].phrase,),)
            assert sample.names == (mask_folders.LAYOUTS[name].name,)


@pytest.mark.parametrize("name", ["cod10k", "camo", "duts", "dut_omron", "dis5k"])
def test_a_folder_of_the_archive_may_lie_between(tmp_path, name):
    layout = mask_folders.LAYOUTS[name]
    made = formats.masks(tmp_path / layout.inside[0], name)
    assert len(mask_folders.read(tmp_path, name).images) == len(made)


def test_other_places_of_camo_duts_and_folders_that_are_named(tmp_path):
    made = formats.masks(tmp_path / "camo", "camo")
    for split in ("Train", "Test"):
        for file in [*(tmp_path / "camo/GT" / split).iterdir()]:
            file.rename(tmp_path / "camo/GT" / file.name)
        (tmp_path / "camo/GT" / split).rmdir()
    read = mask_folders.read(tmp_path / "camo", "camo")
    assert (len(read.images), read.findings.counts) == (len(made), {})
    formats.masks(tmp_path / "duts", "duts")
    for short in ("TR", "TE"):
        for kind in ("Image", "Mask"):
            (tmp_path / f"duts/DUTS-{short}/DUTS-{short}-{kind}").rename(
                tmp_path / f"duts/DUTS-{short}-{kind}"
            )
    assert len(mask_folders.read(tmp_path / "duts", "duts").images) == 4
    formats.masks(tmp_path / "hku", "hku_is")
    (tmp_path / "hku/imgs").rename(tmp_path / "pictures")
    (tmp_path / "hku/gt").rename(tmp_path / "truth")
    read = mask_folders.read(
        tmp_path, "hku_is", images=tmp_path / "pictures", masks=tmp_path / "truth"
    )
    assert len(read.images) == 2


def test_images_without_camouflage_and_stray_files_are_none_of_cod10k(tmp_path):
    formats.masks(tmp_path, "cod10k")
    formats.image(tmp_path / "Train/Image/COD10K-NonCAM-1-Aquatic-1-Crab-9.jpg", 3)
    for stray in ("Thumbs.db", ".DS_Store", "._COD10K-CAM-1.jpg"):
        (tmp_path / "Train/Image" / stray).write_bytes(b"x")
    read = mask_folders.read(tmp_path, "cod10k")
    assert (len(read.images), read.findings.counts) == (4, {})


def test_what_has_no_partner_is_told(tmp_path):
    formats.masks(tmp_path, "ecssd", images=3)
    (tmp_path / "images/test#0.jpg").unlink()
    (tmp_path / "ground_truth_mask/test#1.png").unlink()
    formats.image(tmp_path / "images/test#2.png", 1, form="PNG")
    report = build(tmp_path, "ecssd")
    assert {reason: one["count"] for reason, one in report["findings"].items()} == {
        "image left out: it has no mask": 1,
        "mask left out: it has no image": 1,
        "file left out: another one has its name": 1,
    }
    assert report["splits"]["test"]["records"] == 1


@pytest.mark.parametrize("gone", ["DUTS-Test", "Image", "Mask"])
def test_a_split_of_which_half_is_there_is_told(tmp_path, gone):
    formats.masks(tmp_path, "duts")
    for file in sorted((tmp_path / "DUTS-TE").rglob(f"*{gone}"), reverse=True):
        file.rename(tmp_path / f"elsewhere-{file.name}")
    if gone == "DUTS-Test":
        (tmp_path / "DUTS-TE").rename(tmp_path / "elsewhere")
    read = mask_folders.read(tmp_path, "duts")
    assert {image.split for image in read.images} == {"train"}
    kind = {"Image": "images", "Mask": "masks"}.get(gone)
    told = {f"split left out: it has no folder of {kind}": 1} if kind else {}
    assert read.findings.counts == told
    with pytest.raises(ValueError, match=r"expected (images|masks) in DUTS-TE/.*; do: "):
        mask_folders.read(tmp_path, "duts", splits=["test"])


@pytest.mark.parametrize("option", ["images", "masks"])
def test_a_folder_that_is_none_is_told_by_its_option(tmp_path, option):
    formats.masks(tmp_path, "ecssd")
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(ValueError, match=rf"a folder of {option}, got none; do: check --"):
            mask_folders.read(tmp_path, "ecssd", **{option: folder})


def spoil(path, kind):
    """Writes a mask in an odd way; returns the true one."""
    mask = formats.rectangle(5, 6, 30, 40)
    grey = Image.fromarray(255 * mask.astype(np.uint8))
    pixels = np.asarray(grey)
    if kind == "palette":
        image = Image.fromarray(mask.astype(np.uint8), "P")
        image.putpalette([0, 0, 0, 255, 255, 255])
        image.save(path)
    elif kind == "colours":
        grey.convert("RGB").save(path)
    elif kind == "alpha":
        full = np.full_like(pixels, 255)
        Image.fromarray(np.stack([full, full, full, pixels], -1)).save(path)
    elif kind == "JPEG":
        grey.save(path, "JPEG", quality=95)
    elif kind == "bits":
        grey.convert("1").save(path)
    elif kind == "16 bits":
        Image.fromarray(pixels.astype(np.uint16) * 257).save(path)
    elif kind == "soft":
        Image.fromarray(np.where(mask, 180, 120).astype(np.uint8)).save(path)
    elif kind == "size":
        grey.resize((32, 24)).save(path)
    elif kind == "numbers":
        Image.fromarray(mask.astype(np.uint8)).save(path)
    elif kind == "black":  # The object shows by its alpha alone.
        Image.fromarray(np.stack([0 * pixels] * 3 + [pixels], -1)).save(path)
    elif kind == "empty":
        Image.fromarray(0 * pixels).save(path)
    elif kind == "cut":
        grey.save(path)
        path.write_bytes(path.read_bytes()[:60])
    elif kind == "text":
        path.write_text("no image")
    return mask


@pytest.mark.parametrize(
    ("kind", "reasons"),
    [
        ("palette", []),
        ("colours", []),
        ("bits", []),
        ("16 bits", []),
        ("alpha", ["mask has transparent pixels: they count as none of the object"]),
        ("JPEG", ["mask is a JPEG with a name of PNG: read as what it is"]),
        ("soft", ["mask is soft: its greys above 128 are the object"]),
    ],
)
def test_odd_masks_are_taken(tmp_path, kind, reasons):
    formats.masks(tmp_path, "ecssd")
    mask = spoil(tmp_path / "ground_truth_mask/test#1.png", kind)
    report = build(tmp_path, "ecssd")
    assert [*report["findings"]] == reasons
    found = sources.Built(folders=(tmp_path / "out",), split="test")[1].masks[0]
    assert (found != mask).sum() <= (3 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("size", "object left out: mask is of another size than the image"),
        ("numbers", "object left out: mask has no grey above 128, though some above 0"),
        ("empty", "object left out: mask is empty: black or transparent throughout"),
        ("black", "object left out: mask is empty: black or transparent throughout"),
        ("cut", "object left out: image is damaged"),
        ("text", "object left out: file is no image that is read"),
    ],
)
def test_masks_that_cannot_be_taken_cost_their_image(tmp_path, kind, reason):
    formats.masks(tmp_path, "ecssd")
    spoil(tmp_path / "ground_truth_mask/test#1.png", kind)
    report = build(tmp_path, "ecssd")
    assert reason in report["findings"]
    assert report["splits"]["test"] | {"bytes": 0} == {
        "files": 1, "records": 1, "skipped": 1, "bytes": 0, "expressions": 1, "objects": 1,
        "records_with_objects": 1,
    }  # fmt: skip


def test_a_turned_image_is_stored_as_its_mask_is(tmp_path):
    formats.masks(tmp_path, "ecssd", images=1)
    path = tmp_path / "images/test#0.jpg"
    pixels = Image.open(path)
    note = Image.Exif()
    note[274] = 6
    pixels.transpose(Image.Transpose.ROTATE_90).save(path, exif=note)
    report = build(tmp_path, "ecssd")
    (reason,) = report["findings"]
    assert "image turned as its EXIF note says" in reason
    sample = sources.Built(folders=(tmp_path / "out",), split="test")[0]
    assert sample.image.shape[:2] == sample.masks.shape[1:] == (48, 64)


def test_what_is_not_there_is_told_in_one_line(tmp_path):
    formats.masks(tmp_path / "duts", "duts")
    with pytest.raises(ValueError, match=r"expected images in images, got images alone.*; do: "):
        mask_folders.read(tmp_path / "duts", "ecssd")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"expected images in DIS-TR/im, got an empty folder"):
        mask_folders.read(tmp_path / "nothing", "dis5k")
    with pytest.raises(ValueError, match=r"expected some of train, test, got test1; do: "):
        dataset.plan_files(
            dataset.Plan(name="duts", source=tmp_path / "duts", out=tmp_path, splits=("test1",))
        )
    formats.masks(tmp_path / "dis", "dis5k")
    (tmp_path / "dis/DIS-VD/im").rename(tmp_path / "dis/moved")
    with pytest.raises(ValueError, match="expected images in DIS-VD/im"):
        mask_folders.read(tmp_path / "dis", "dis5k", splits=("val",))


def test_a_changed_mask_makes_its_file_anew(tmp_path):
    formats.masks(tmp_path, "ecssd", images=1)
    build(tmp_path, "ecssd")
    mask = spoil(tmp_path / "ground_truth_mask/test#0.png", "colours")
    build(tmp_path, "ecssd")
    found = sources.Built(folders=(tmp_path / "out",), split="test")[0].masks[0]
    np.testing.assert_array_equal(found, mask)
    assert json.loads((tmp_path / "out/build.json").read_text())["name"] == "ecssd"


def test_greys_are_pillows(tmp_path):
    formats.image(tmp_path / "a.png", 0, form="PNG")
    want = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    np.testing.assert_array_equal(grey_images.read(tmp_path / "a.png").pixels, want)


@pytest.mark.parametrize("height", [1, 255, 256, 257, 600])
def test_greys_of_colours_are_those_of_pillow_in_images_of_any_height(tmp_path, height):
    pixels = np.random.default_rng(height).integers(0, 256, (height, 3, 3), dtype=np.uint8)
    path = tmp_path / "mask.png"
    Image.fromarray(pixels).save(path)
    wanted = np.asarray(Image.fromarray(pixels).convert("L"))
    np.testing.assert_array_equal(grey_images.read(path).pixels, wanted)
