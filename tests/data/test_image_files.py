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
    assert type(caught.value) is image_files.Unreadable
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
    assert "a pipe or a device" in complaint(tmp_path / "pipe.png")
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


def png(bits, colour, rows, *chunks, width=1):
    """Returns a PNG by hand: Pillow does not write every kind."""
    size = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", size), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(values, bits, *, meaning=1, order="<"):
    """Returns a grey TIFF of one strip."""
    data = values if isinstance(values, bytes) else values.tobytes()
    height, width = 1, len(data) * 8 // bits
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: meaning, 273: 134, 277: 1, 278: 1}
    tags |= {279: len(data), 339: 1}
    entries = [
        struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(tags.items())
    ]
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    whole = head + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + b"\0" * 4
    assert len(whole) == 134
    return whole + data


def test_a_grey_ramp_of_16_bits_has_one_mean_everywhere(tmp_path):
    """png-1: what a build stores of it is what `read` gives."""
    ramp = np.linspace(0, 0xFFFF, 4096, dtype=np.uint16).reshape(64, 64)
    path = saved(tmp_path / "a.png", Image.fromarray(ramp))
    read = image_files.read(path)
    assert abs(read.mean() - 127.5) < 0.5
    stored = image_files.storable(path.read_bytes(), upright=False)
    assert stored.changed
    again = image_files.read(stored.data, upright=False, formats=image_files.STORED)
    np.testing.assert_array_equal(again, read)


def test_what_has_three_channels_of_eight_bits_is_stored_as_it_is(tmp_path):
    for name, options in (("a.jpg", {}), ("a.png", {}), ("b.jpg", {"progressive": True})):
        data = saved(tmp_path / name, Image.fromarray(scene()), **options).read_bytes()
        assert image_files.storable(data, upright=True) == (data, 6, 8, False)
    deep = png(16, 2, [bytes(range(6))])
    for data in (deep, png(8, 2, [b"abc"], (b"tRNS", b"\0a\0b\0c"))):
        stored = image_files.storable(data, upright=False)
        assert stored.changed
        np.testing.assert_array_equal(
            image_files.read(stored.data), image_files.read(data, where="here")
        )
    assert image_files.read(deep).tolist() == [[[0, 2, 4]]]


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_stored_image_is_turned_once(tmp_path, turn):
    """exif-1: `upright` decides for reading and storing alike; what is stored is not turned."""
    exif = Image.Exif()
    exif[0x0112] = turn
    path = saved(tmp_path / "a.jpg", Image.fromarray(scene(16, 32)), exif=exif)
    header = image_files.read_header(path)
    assert header == ("JPEG", 16, 32, turn)
    raw, upright = (image_files.read(path, upright=upright) for upright in (False, True))
    assert raw.shape[:2] == (16, 32)
    assert upright.shape[:2] == header.upright_size
    for wanted, turned in ((raw, False), (upright, True)):
        stored = image_files.storable(path.read_bytes(), upright=turned)
        assert (stored.height, stored.width) == wanted.shape[:2]
        assert stored.changed == (turned and turn != 1)
        np.testing.assert_array_equal(image_files.read(stored.data, upright=False), wanted)


def test_a_broken_note_of_a_camera_counts_for_nothing(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.fromarray(scene()))
    wanted, data = image_files.read(path), path.read_bytes()
    tags = [(274, 2, 4, b"six\0"), (274, 3, 1, b"\x63\0\0\0"), (274, 12, 9, b"\xff" * 4)]
    for tag, kind, count, value in tags:
        note = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHI4s", 1, tag, kind, count, value)
        segment = b"\xff\xe1" + struct.pack(">H", len(note) + 2) + note
        np.testing.assert_array_equal(image_files.read(data[:2] + segment + data[2:]), wanted)


@pytest.mark.parametrize(
    ("bits", "row", "key", "wanted"),
    [
        (1, b"\x40", 1, [0, 255]),
        (1, b"\x40", 0, [255, 255]),
        (2, b"\x60", 1, [255, 170]),
        (4, b"\x3c", 3, [255, 204]),
        (8, b"\x03\x04", 3, [255, 4]),
        (16, b"\x03\x04\x03\x05", 0x304, [255, 3]),
    ],
)
def test_a_colour_key_of_grey_is_white(bits, row, key, wanted):
    data = png(bits, 0, [row], (b"tRNS", struct.pack(">H", key)), width=2)
    assert image_files.read(data)[0, :, 0].tolist() == wanted
    np.testing.assert_array_equal(image_files.read(data)[..., 0], image_files.read(data)[..., 2])


def test_a_colour_key_of_rgb_is_white():
    data = png(8, 2, [bytes([1, 2, 3, 1, 2, 4])], (b"tRNS", b"\0\1\0\2\0\3"), width=2)
    assert image_files.read(data).tolist() == [[[255] * 3, [1, 2, 4]]]
    deep = png(16, 2, [bytes([1, 9, 2, 9, 3, 9])], (b"tRNS", bytes([1, 9, 2, 9, 3, 9])))
    assert image_files.read(deep).tolist() == [[[255] * 3]]


def test_alpha_of_every_kind_lies_on_white(tmp_path):
    alpha = np.array([[[0, 0], [0, 255], [100, 255], [0, 128]]], np.uint8)
    got = image_files.read(saved(tmp_path / "a.png", Image.fromarray(alpha, "LA")))
    assert got[0, :, 1].tolist() == [255, 0, 100, 127]
    got = image_files.read(saved(tmp_path / "a.tiff", Image.fromarray(alpha, "LA")))
    assert got[0, :, 1].tolist() == [255, 0, 100, 127]
    premultiplied = np.array([[[0, 0], [0, 255], [100, 255], [50, 128]]], np.uint8)
    path = saved(tmp_path / "b.tiff", Image.fromarray(premultiplied, "LA"))
    unassociated, associated = (struct.pack("<HHIH", 338, 3, 1, kind) for kind in (2, 1))
    path.write_bytes(path.read_bytes().replace(unassociated, associated))
    got = image_files.read(path)
    assert got[0, :, 1].tolist() == [255, 0, 100, 177]
    deep = png(16, 4, [b"\x50\0\xff\xff"])
    assert image_files.read(deep)[0, 0].tolist() == [80] * 3
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    palette.putpalette([9, 9, 9, 50, 60, 70, 0, 0, 0])
    got = image_files.read(saved(tmp_path / "p.png", palette, transparency=b"\0\xff\x80"))
    assert got[0].tolist() == [[255] * 3, [50, 60, 70], [127] * 3]


def test_large_images_are_converted_in_bands(tmp_path, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (31, 7, 4)).astype(np.uint8)
    path = saved(tmp_path / "a.png", Image.fromarray(image))
    wanted = image_files.read(path)
    monkeypatch.setattr(image_files, "_BAND_PIXELS", 20)
    np.testing.assert_array_equal(image_files.read(path), wanted)


def test_deep_greys_keep_their_highest_eight_bits(tmp_path):
    values = np.array([0, 255, 256, 0x8000, 0xFFFF], np.uint16)
    wanted = [0, 0, 1, 128, 255]
    assert image_files.read(tiff(values, 16))[0, :, 0].tolist() == wanted
    assert image_files.read(tiff(values.astype(">u2"), 16, order=">"))[0, :, 0].tolist() == wanted
    inverted = image_files.read(tiff(values, 16, meaning=0))
    assert inverted[0, :, 0].tolist() == [255, 255, 254, 127, 0]
    # 0x000, 0x0ff, 0x7f0, 0xfff of 12 bits.
    twelve = image_files.read(tiff(b"\x00\x00\xff\x7f\x0f\xff", 12))
    assert twelve[0, :, 0].tolist() == [0, 15, 127, 255]
    for most, data, wanted in (
        (65535, b"\x80\0", 128),
        (4095, b"\x08\0", 128),
        (1000, b"\x01\xf4", 128),
    ):
        assert image_files.read(b"P5 1 1 %d\n%s" % (most, data))[0, 0, 0] == wanted
    assert image_files.read(b"P2 2 1 4095\n2048 4095")[0, :, 0].tolist() == [128, 255]


def test_what_has_no_known_scale_is_refused(tmp_path):
    path = tmp_path / "a.tiff"
    small = Image.fromarray(np.array([[0, 200]], np.int32))
    assert "whole numbers of 32 bits" in complaint(saved(path, small))
    path.write_bytes(b"Pf 1 1 -1.0\n\0\0\0\0")
    assert "got real numbers" in complaint(path)
    assert "LAB" in complaint(saved(path, Image.new("LAB", (2, 2))))


def test_cmyk_of_either_sign_is_read_alike(tmp_path):
    """A JPEG of Adobe's programs holds its inks inverted; Pillow writes those."""
    inks = np.zeros((8, 8, 4), np.uint8)
    inks[..., 1] = 200
    path = saved(tmp_path / "a.jpg", Image.fromarray(inks, "CMYK"), quality=95)
    assert b"Adobe" in path.read_bytes()
    plain = saved(tmp_path / "a.tiff", Image.fromarray(inks, "CMYK"))
    for one in (path, plain):
        assert np.abs(image_files.read(one).astype(int) - [255, 55, 255]).max() <= 3


@pytest.mark.parametrize("kind", ["gif", "png", "tiff", "webp"])
def test_of_several_images_the_first_counts(tmp_path, kind):
    first, second = (Image.new("RGB", (8, 6), colour) for colour in ("red", "blue"))
    path = tmp_path / f"a.{kind}"
    first.save(path, save_all=True, append_images=[second])
    got = image_files.read(path)
    assert got.shape == (6, 8, 3)
    assert np.abs(got.astype(int) - [255, 0, 0]).max() <= 6


def test_an_error_is_the_same_each_time(tmp_path):
    """text-1: no address of memory in it."""
    path = tmp_path / "a.jpg"
    path.write_text("Dear diary,\n")
    assert complaint(path) == complaint(path)
    assert "0x" not in complaint(path)
    with pytest.raises(image_files.Unreadable) as caught:
        image_files.storable(path.read_bytes(), upright=False)
    assert caught.value.reason == "file is no image that is read"
    assert caught.value.fault.endswith("TIFF, PPM), got something else")


def test_no_other_program_is_started(tmp_path, monkeypatch):
    """eps-1: a PostScript file under every name and a Ghostscript that would tell."""
    log = tmp_path / "log"
    fake = tmp_path / "bin" / "gs"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\necho called >> {log}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent), prepend=os.pathsep)
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n"
    binary = b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(text)) + bytes(20) + text
    for name in ("eps.jpg", "eps.png", "eps.eps"):
        for data in (text, binary):
            (tmp_path / name).write_bytes(data)
            assert "something else" in complaint(tmp_path / name)
            for call in (image_files.read_header, image_files.read_numbers):
                with pytest.raises(image_files.Unreadable):
                    call(tmp_path / name)
            with pytest.raises(image_files.Unreadable):
                image_files.storable(data, upright=True)
    assert not log.exists()


def test_bombs_of_other_kinds_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    big = zlib.compress(bytes(100 << 20))
    path.write_bytes(png(8, 2, [b"abc"], (b"zTXt", b"k\0\0" + big)))
    assert "damaged" in complaint(path)
    path.write_bytes(png(8, 2, [b"abc"], (b"iCCP", b"k\0\0" + big)))
    with contextlib.suppress(image_files.Unreadable):
        assert image_files.read(path).shape == (1, 1, 3)
    size = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b""))
    assert "million pixels" in complaint(path)
    path.write_bytes(b"P2 3000 3000 255\n1 2 3")
    assert "2 million pixels of this kind" in complaint(path)
    path.write_bytes(b"P5 3000 3000 4095\n1 2 3")
    assert "2 million pixels of this kind" in complaint(path)
    saved(tmp_path / "a.jpg", Image.fromarray(scene(32, 32)), progressive=True)
    monkeypatch.setattr(image_files, "MAX_SCANS", 5e-5)
    assert "drawn" in complaint(tmp_path / "a.jpg")
    monkeypatch.setattr(image_files, "MAX_READS", 1000)
    path.write_bytes(png(8, 2, [b"abc"], *[(b"prVt", b"")] * 1000))
    assert "too many headers" in complaint(path)
    monkeypatch.setattr(image_files, "MAX_BYTES", 100)
    assert "more than 100" in complaint(tmp_path / "a.jpg")


def test_numbers_are_read_from_rgb_alone(tmp_path):
    """why-1: of another kind of PNG the numbers would be wrong without a word."""
    colours = np.array([[[1, 2, 3], [255, 255, 255], [0, 0, 0]]], np.uint8)
    path = saved(tmp_path / "a.png", Image.fromarray(colours))
    wanted = [[1 + 2 * 256 + 3 * 65536, 2**24 - 1, 0]]
    assert image_files.read_numbers(path).tolist() == wanted
    veiled = np.concatenate([colours, np.full((1, 3, 1), 7, np.uint8)], 2)
    saved(path, Image.fromarray(veiled))
    assert image_files.read_numbers(path).tolist() == wanted
    for kind, got in (
        (Image.fromarray(np.array([[7]], np.uint16)), "grey of 16 bits"),
        (Image.fromarray(np.array([[7]], np.uint8)), "grey of 8 bits"),
        (Image.fromarray(colours).convert("P"), "a palette"),
        (Image.fromarray(colours).convert("1"), "black and white"),
    ):
        saved(path, kind)
        with pytest.raises(image_files.Unreadable, match=rf"numbers in RGB .*, got {got}; do: "):
            image_files.read_numbers(path)
    path.write_bytes(png(16, 2, [bytes(6)]))
    with pytest.raises(image_files.Unreadable, match="RGB of 16 bits a channel"):
        image_files.read_numbers(path)
    saved(tmp_path / "a.jpg", Image.fromarray(colours))
    with pytest.raises(image_files.Unreadable, match=r"an image \(PNG\), got something else"):
        image_files.read_numbers(tmp_path / "a.jpg")


def test_masks_have_one_channel(tmp_path):
    mask = np.array([[0, 1, 255]], np.uint8)
    path = tmp_path / "a.png"
    for kind in (Image.fromarray(mask), Image.fromarray(mask > 0)):
        data = saved(path, kind).read_bytes()
        assert image_files.read_mask(data, where="here").tolist() == [[False, True, True]]
    data = saved(path, Image.fromarray(scene())).read_bytes()
    with pytest.raises(image_files.Unreadable, match="here: expected a mask as a PNG of one"):
        image_files.read_mask(data, where="here")


def test_decoders_say_nothing_beside_the_error(tmp_path, capfd):
    """Libtiff would print lines of its own about a damaged file."""
    path = saved(
        tmp_path / "a.tiff", Image.fromarray(scene(40, 40)), compression="tiff_adobe_deflate"
    )
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes(200) + data[300:])
    complaint(path)
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("wide", [False, True])
def test_a_tiff_of_countless_tiles_is_refused(tmp_path, order, wide):
    """Pillow would lay out each of them, of one pixel, before it decodes any."""
    count = image_files.MAX_TIFF_PIECES + 1
    name = b"II" if order == "<" else b"MM"
    if wide:
        data = struct.pack(f"{order}2sHHHQQ", name, 43, 8, 0, 16, 1)
        data += struct.pack(f"{order}HHQQ", 324, 4, count, 0)
    else:
        data = struct.pack(f"{order}2sHIHHHII", name, 42, 8, 1, 324, 4, count, 0)
    path = tmp_path / "a.tiff"
    path.write_bytes(data)
    assert "100001 strips or tiles" in complaint(path)
    path.write_bytes(data[:-5])
    assert "strips" not in complaint(path)


def black_png(count, *, interlaced=False):
    """Returns a black PNG of 8 bits RGB, 16 wide, of whose pixels there are so many bytes."""

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 16, 48, 8, 2, 0, 0, interlaced)
    packed = zlib.compress(bytes(count))
    middle = len(packed) // 2
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            chunk(b"IHDR", header),
            chunk(b"IDAT", packed[:middle]),
            chunk(b"IDAT", packed[middle:]),
            chunk(b"IEND", b""),
        ]
    )


@pytest.mark.parametrize(
    ("whole", "interlaced"),
    # Of 16 x 48 there are 6 rows of 2 and 2, 6 of 4, 12 of 4, 12 of 8, 24 of 8, 24 of 16.
    [(48 * 49, False), (2304 + 6 + 6 + 6 + 12 + 12 + 24 + 24, True)],
)
def test_a_png_whose_pixels_end_too_early_is_damaged(whole, interlaced):
    """A stream that ends in order after some of the rows is not an image with black ones."""
    read = image_files.storable(black_png(whole, interlaced=interlaced), upright=False, where="x")
    assert (read.height, read.width) == (48, 16)
    for rows in (20 * 49, whole - 49, whole - 1):
        with pytest.raises(image_files.Unreadable, match="a damaged one"):
            image_files.storable(black_png(rows, interlaced=interlaced), upright=False, where="x")
