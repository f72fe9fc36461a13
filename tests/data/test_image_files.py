"""Images of every sort, good and bad."""

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
    assert line.startswith(f"{str(path)!r}: expected")
    assert ", got " in line
    assert "; do: " in line
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
