"""Images of every sort, good and bad; overlays whose pixels are known."""

import contextlib
import errno
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from seg_jax.data import image_files

SQUARE = np.array([[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]])
HOLE = np.array([[0.4, 0.4], [0.4, 0.6], [0.5, 0.6], [0.6, 0.6], [0.6, 0.4]])


def scene(height=6, width=8):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    return values.astype(np.uint8)


def saved(path, image, **options):
    image.save(path, **options)
    return path


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height):
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


def complaint(path):
    with pytest.raises(ValueError) as caught:
        image_files.read(path)
    line = str(caught.value)
    assert type(caught.value) is ValueError
    assert line.startswith("expected")
    assert ", got " in line
    assert ", do " in line
    assert "\n" not in line
    return line


def test_reads_what_was_written(tmp_path):
    image = scene()
    image_files.write(tmp_path / "a.png", image)
    np.testing.assert_array_equal(image_files.read(tmp_path / "a.png"), image)
    np.testing.assert_array_equal(image_files.read(str(tmp_path / "a.png")), image)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("kind", ["jpg", "webp", "bmp", "gif", "tiff", "ppm"])
def test_reads_the_usual_formats(tmp_path, kind):
    grey = np.full((6, 8, 3), 100, np.uint8)
    got = image_files.read(saved(tmp_path / f"a.{kind}", Image.fromarray(grey)))
    assert got.shape == grey.shape
    assert got.dtype == np.uint8
    assert np.abs(got.astype(int) - 100).max() <= 3


def test_modes_become_rgb(tmp_path):
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    for mode in ("P", "CMYK", "RGBA", "1", "L", "LA"):
        name = tmp_path / ("a.tiff" if mode == "CMYK" else f"{mode}.png")
        got = image_files.read(saved(name, Image.fromarray(red).convert(mode)))
        assert got.shape == (2, 2, 3)
        if mode in ("P", "CMYK", "RGBA"):
            assert np.abs(got.astype(int) - red).max() <= 1, mode
        else:
            assert (got[..., :1] == got).all()


def test_transparent_parts_lie_on_white(tmp_path):
    image = np.zeros((1, 3, 4), np.uint8)
    image[0, :, 3] = 0, 255, 128
    got = image_files.read(saved(tmp_path / "a.png", Image.fromarray(image)))
    assert got[0, :, 0].tolist() == [255, 0, 127]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([9, 9, 9, 50, 60, 70])
    got = image_files.read(saved(tmp_path / "p.png", palette, transparency=0))
    assert got[0].tolist() == [[255, 255, 255], [50, 60, 70]]


def test_sixteen_bits_keep_their_high_byte(tmp_path):
    grey = np.array([[0, 255, 256, 0x8000, 0xFFFF]], np.uint16)
    for name in ("a.png", "a.tiff"):
        got = image_files.read(saved(tmp_path / name, Image.fromarray(grey)))
        assert got[0, :, 1].tolist() == [0, 0, 1, 128, 255]
    wide = Image.fromarray(np.array([[0, 70000]], np.int32))
    assert "32" in complaint(saved(tmp_path / "wide.tiff", wide))
    assert "real" in complaint(saved(tmp_path / "f.tiff", Image.fromarray(np.ones((2, 2), "f4"))))


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_is_honoured(tmp_path, turn):
    image = np.zeros((16, 32, 3), np.uint8)
    image[:8, :16] = 255  # the stored top left corner
    exif = Image.Exif()
    exif[0x0112] = turn
    path = saved(tmp_path / "a.jpg", Image.fromarray(image), exif=exif, quality=95)
    got = image_files.read(path)
    assert got.shape[:2] == ((16, 32) if turn <= 4 else (32, 16))
    corners = got[[0, 0, -1, -1], [0, -1, 0, -1], 0] > 128  # tl tr bl br
    assert corners.tolist().index(True) == [0, 1, 3, 2, 0, 1, 3, 2][turn - 1]
    assert corners.sum() == 1


def test_files_that_are_none(tmp_path):
    assert "no file" in complaint(tmp_path / "missing.png")
    assert "folder" in complaint(tmp_path)
    (tmp_path / "empty.png").touch()
    assert "empty" in complaint(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("Dear diary,\n")
    assert "something else" in complaint(tmp_path / "text.png")
    (tmp_path / "a\nb.png").write_text("x")
    complaint(tmp_path / "a\nb.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "regular" in complaint(tmp_path / "pipe.png")
    complaint("nul\0byte.png")


def test_postscript_is_never_run(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    assert "something else" in complaint(path)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "tiff", "bmp", "ppm"])
def test_cut_and_bent_files(tmp_path, kind):
    buffer = io.BytesIO()
    Image.fromarray(scene(40, 40)).save(buffer, kind)
    whole = buffer.getvalue()
    path = tmp_path / "a.png"
    path.write_bytes(whole[: len(whole) // 2])
    complaint(path)
    rng = np.random.default_rng(1)
    for _ in range(40):  # never anything but an image or a ValueError
        bent = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 200), 4):
            bent[place] = rng.integers(256)
        path.write_bytes(bent)
        with contextlib.suppress(ValueError):
            assert image_files.read(path).shape[2] == 3


def test_bombs_are_refused_before_they_go_off(tmp_path, recwarn):
    path = tmp_path / "bomb.png"
    for side in (9_000, 10_000, 60_000):
        path.write_bytes(png_header(side, side))
        assert "80 million pixels" in complaint(path)
    assert not recwarn.list


def test_a_known_square_lands_on_its_pixels():
    image = np.full((8, 8, 3), 200, np.uint8)
    got = image_files.overlay(image, [SQUARE], colour=(0, 0, 0), opacity=0.5, scale=20)
    assert got.shape == (160, 160, 3)
    assert (got[50:110, 50:110] == 100).all()  # well inside
    assert (got[:30] == 200).all()
    assert (got[:, 130:] == 200).all()
    assert (got[[40, 119, 80, 80], [80, 80, 40, 119]] < 60).all()  # on the outline


def test_the_region_is_exact_by_pixel_centres():
    image = np.full((10, 10, 3), 200, np.uint8)
    inside = image_files._inside([SQUARE * 10], 10, 10)
    want = np.zeros((10, 10), bool)
    want[2:7, 2:7] = True  # centres 2.5 .. 6.5: borders are half open
    np.testing.assert_array_equal(inside, want)
    ring = image_files._inside([SQUARE * 100, HOLE * 100], 100, 100)
    assert ring.sum() == 50 * 50 - 20 * 20
    beyond = image_files._inside([SQUARE * 40 - 15], 10, 10)
    assert beyond.sum() == 100
    assert image_files.overlay(image, [], colour=(0, 0, 0), scale=1).tolist() == image.tolist()


def test_holes_stay_unfilled():
    image = np.full((50, 50, 3), 200, np.uint8)
    got = image_files.overlay(image, [SQUARE, HOLE], colour=(0, 0, 0), opacity=0.5, scale=4)
    assert (got[95:105, 95:105] == 200).all()
    assert (got[62:70, 62:140] == 100).all()


def test_outlines_are_smooth():
    image = np.full((64, 64, 3), 255, np.uint8)
    line = np.array([[0.1, 0.2], [0.9, 0.5]])
    got = image_files.overlay(image, [line], colour=(0, 0, 0), scale=4)
    assert len(np.unique(got[..., 0])) > 30


def test_points_and_boxes():
    image = np.full((100, 100, 3), 200, np.uint8)
    got = image_files.overlay(
        image,
        [np.array([[0.2, 0.8]])],
        points_unit=[(0.7, 0.3)],
        boxes_unit=[(0.1, 0.1, 0.5, 0.5)],
        colour=(0, 0, 255),
        scale=5,
    )
    assert (got[150, 350] == 255).all()
    assert (got[400, 100] == 255).all()
    assert got[50, 150].tolist() == [0, 0, 255]
    assert (got[150, 150] == 200).all()  # frames are not filled


def test_absurd_rings_do_no_harm():
    image = scene(20, 30)
    nan = np.array([[np.nan, 0.5], [0.2, np.inf], [0.1, 0.1], [0.6, 0.1], [0.6, 0.6]])
    far = np.array([[-1e300, 0.0], [1e300, 0.5], [0.0, 1e300]])
    rings = [nan, far, np.zeros((0, 2)), np.zeros((5, 2)), SQUARE[:2]]
    before = image.copy()
    assert image_files.overlay(image, rings).shape == (320, 480, 3)
    np.testing.assert_array_equal(image, before)


def test_scale():
    assert image_files.overlay(scene(64, 64), []).shape == (512, 512, 3)
    assert image_files.overlay(scene(600, 700), []).shape == (600, 700, 3)
    assert image_files.overlay(scene(100, 4096), []).shape == (50, 2048, 3)
    assert image_files.overlay(scene(64, 64), [], scale=0.5).shape == (32, 32, 3)
    for scale in (0, -1, 1e9, float("nan")):
        with pytest.raises(ValueError, match="change scale"):
            image_files.overlay(scene(), [], scale=float(scale))


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    image_files.write(path, scene())
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match=r"expected to write .*No space left.*; do: free space"
    ) as got:
        image_files.write(path, scene(9, 9))
    assert got.value.errno == errno.ENOSPC
    assert path.read_bytes() == before

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        image_files.write(path, scene(9, 9))
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        image_files.write(tmp_path / "none" / "a.png", scene())
