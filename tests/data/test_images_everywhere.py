"""What a build stores, what `predict` reads and what `annotate` sees of an image are the same."""

import json
import os

import numpy as np
from built_data import build, records, tree
from PIL import Image

from seg_jax.annotation import annotator
from seg_jax.data import image_files
from seg_jax.data.build import dataset
from seg_jax.data.image_lists import ImageFile
from seg_jax.data.sources import Built

SIDE = 64
RING = [[10, 10, 50, 10, 50, 50, 10, 50]]


def write_images(folder):
    """Writes an image of many kinds each; returns their names."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 4)).astype(np.uint8))
    ramp = np.linspace(0, 0xFFFF, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    palette = colours.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(ramp).save(folder / "deep.png")
    Image.fromarray(ramp).save(folder / "deep.tiff")
    palette.save(folder / "palette.png", transparency=3)
    palette.save(folder / "palette.gif", transparency=3)
    colours.save(folder / "alpha.png")
    colours.save(folder / "alpha.webp")
    colours.convert("LA").save(folder / "grey.png")
    colours.convert("L").save(folder / "grey.jpg")
    colours.convert("1").save(folder / "bits.png")
    colours.convert("CMYK").save(folder / "inks.jpg")
    colours.convert("RGB").save(folder / "plain.jpg")
    colours.convert("RGB").save(folder / "plain.bmp")
    colours.convert("RGB").save(folder / "turned.jpg", exif=exif)
    return sorted(path.name for path in folder.iterdir())


def write_lines(source, names):
    """Writes the lines that outline an object in each image."""
    lines = [
        {
            "image": f"images/{name}",
            "key": name,
            "upright": True,
            "objects": [{"segmentation": RING, "name": "cup"}],
            "phrases": [{"text": "the cup", "objects": [0]}],
        }
        for name in names
    ]
    (source / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_every_program_sees_the_same_pixels(tmp_path):
    """png-1 and its like: deep greys, palettes, alpha, inks, turned images."""
    names = write_images(tmp_path / "images")
    write_lines(tmp_path, names)
    build(dataset.Plan(name="folder", source=tmp_path, out=tmp_path / "out"))
    source = Built(folders=(tmp_path / "out",))
    assert len(source) == len(names)
    for index in range(len(source)):
        sample = source[index]
        name = next(name for name in names if sample.key.endswith(name))
        read = image_files.read(tmp_path / "images" / name)
        np.testing.assert_array_equal(sample.image, read, err_msg=name)
        _, seen = annotator._read(ImageFile(name, tmp_path / "images" / name))
        np.testing.assert_array_equal(seen, read, err_msg=name)
        if name.startswith("deep"):
            assert abs(read.mean() - 127.5) < 0.5


def test_what_is_no_image_costs_itself_and_starts_nothing(tmp_path, monkeypatch):
    """eps-1, text-1: a PostScript file and a text in a data set; two builds are equal."""
    log, fake = tmp_path / "log", tmp_path / "bin" / "gs"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\necho called >> {log}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent), prepend=os.pathsep)
    names = write_images(tmp_path / "images")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"
    (tmp_path / "images" / "eps.jpg").write_bytes(eps)
    (tmp_path / "images" / "text.jpg").write_bytes(b"Dear diary,\n")
    write_lines(tmp_path, [*names, "eps.jpg", "text.jpg"])
    for out in ("a", "b"):
        build(dataset.Plan(name="folder", source=tmp_path, out=tmp_path / out))
        assert len([*records(tmp_path / out, "folder", "train")]) == len(names)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    report = (tmp_path / "a" / "build.json").read_text()
    assert "file is no image that is read" in report
    assert "0x" not in report
    assert not log.exists()
