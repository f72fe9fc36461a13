"""The one door of images: reads files of many formats by stated rules, and writes PNG (host).

Every program reads images here. The rules:

- A file is a regular one of at most `MAX_BYTES`, its image of at most `MAX_PIXELS`; both are known
  before it is decoded. Formats are those of `FORMATS`, whose readers run no other program (as that
  of EPS does) and open no other file.
- Of animations and of files of several images the first counts.
- The camera's note (EXIF orientation) turns an image where the caller says so; one that is broken
  counts for nothing. Colour profiles (ICC) and gammas count for nothing.
- Greys, palettes, YCbCr and CMYK (by the plain formula) become RGB. Of 10 to 16 bits a channel the
  highest 8 stay. Real numbers, 32 bits and LAB are refused: nobody can know their scale.
- Transparent parts, of an alpha channel, a palette or a colour key, lie on white.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import re
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int32, UInt8
from PIL import ExifTags, Image

from seg_jax import files

MAX_BYTES = 256 << 20
"""The largest file that is opened: all pixels of the largest image, as they lie in a BMP."""
MAX_PIXELS = 80_000_000
"""The largest image that is decoded: 240 MB then."""
MAX_SCANS = 20
"""As many times may a progressive JPEG draw the largest image; smaller ones more often."""
MAX_WEBP_PIXELS = 40_000_000
"""The largest WebP image, of which the decoder holds four copies."""
MAX_SLOW_PIXELS = 2_000_000
"""The largest image of the few kinds (BMP run lengths, PPM in digits) that Python decodes."""
MAX_READS = 500_000
"""As often may a decoder read on in a file: headers of a few bytes each take time, not room."""
MAX_TIFF_PIECES = 100_000
"""The most strips or tiles of a TIFF."""

RgbImage = UInt8[np.ndarray, "H W 3"]
"""Red, green, blue, 0..255."""

Rings = Sequence[Float[np.ndarray, "_ 2"]]
"""Vertices x, y of each ring; `Ring` itself would tie the lengths of all rings together."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Those whose readers neither run another program (EPS) nor open other files."""
STORED = ("JPEG", "PNG")
"""Formats that a built data set holds."""

# What it logs of a damaged file, `Unreadable` says.
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)

_BAND_PIXELS = 1 << 22
"""Pixels that are converted at once: what a conversion takes beside the image stays small."""
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
_OPAQUE = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "RGBX")
_TIFF_BITS, _TIFF_MEANING, _TIFF_PIECES = 258, 262, (273, 279, 324, 325)


_PNG_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""First column and row of each pass of an interlaced PNG, and its steps."""


class Unreadable(ValueError):
    """An image that cannot be read; the text is one line: where, what is wrong, what to do."""

    def __init__(self, where: str, *, reason: str, expected: str, got: str, advice: str):
        self.fault = f"expected {expected}, got {got}"
        """What is wrong, without the place: for reports that name the file beside it."""
        self.reason = reason
        """A fixed phrase that cases are counted by, as "image is damaged"."""
        self.advice = advice
        """What to do."""
        super().__init__(f"{where}: {self.fault}; do: {advice}")


class Header(NamedTuple):
    """What a file says about its image before any pixel is decoded."""

    format: str
    """Name of the format, one of `FORMATS`, or MPO: a JPEG with others behind it."""
    height: int
    """Rows as they are stored."""
    width: int
    """Columns as they are stored."""
    orientation: int
    """How a camera held the image: 1 to 8 of EXIF, 1 is upright; 5 and more swap the sides."""

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width of the image as a viewer shows it."""
        return (self.width, self.height) if self.orientation > 4 else (self.height, self.width)


class Stored(NamedTuple):
    """An image as a data set stores it: JPEG or PNG, RGB of 8 bits, to be read without turning."""

    data: bytes
    height: int
    width: int
    changed: bool
    """Whether the bytes are new ones: those of a PNG."""


def read(
    source: Path | str | bytes,
    *,
    upright: bool = True,
    where: str | None = None,
    formats: Sequence[str] = FORMATS,
) -> RgbImage:
    """Returns an image, by the rules of this module.

    Args:
      source: path of a file, or its bytes.
      upright: whether the image is turned as its camera's note (EXIF) says; False gives the pixels
        as they are stored.
      where: names the image in errors; None: by its path.
      formats: the formats that it may have.

    Raises:
      Unreadable: one line that says what was wrong with the file and what to do.
    """
    data, where = _bytes_and_name(source, where)
    with _opened(data, where, formats) as image:
        pixels = _rgb(image, where)
        orientation = _orientation(image) if upright else 1
    return _turned(pixels, orientation)


def read_header(
    source: Path | str | bytes,
    *,
    where: str | None = None,
    formats: Sequence[str] = FORMATS,
) -> Header:
    """Returns the size and orientation of an image; its pixels are not decoded.

    Args:
      source: path of a file, or its bytes.
      where: names the image in errors; None: by its path.
      formats: the formats that it may have.

    Raises:
      Unreadable: it is no image, or one that `read` refuses for its size.
    """
    data, where = _bytes_and_name(source, where)
    with _opened(data, where, formats) as image:
        return Header(str(image.format), image.height, image.width, _orientation(image))


def storable(data: bytes, *, upright: bool, where: str = "image") -> Stored:
    """Returns an image as a data set stores it: unchanged where that can be.

    Args:
      data: bytes of the file.
      upright: whether the image is turned as its camera's note (EXIF) says.
      where: names the image in errors.

    Raises:
      Unreadable: it is no image, a damaged one or one that is refused.
    """
    with _opened(data, where, FORMATS) as image:
        kept = image.format in (*STORED, "MPO") and image.mode == "RGB" and _png_bits(image) == 8
        # All of it is decoded here: what is stored can be read.
        pixels = _rgb(image, where)
        orientation = _orientation(image) if upright else 1
        kept = kept and orientation == 1 and "transparency" not in image.info
    if not kept:
        pixels = _turned(pixels, orientation)
        data = _png(pixels)
    return Stored(data, pixels.shape[0], pixels.shape[1], changed=not kept)


def read_numbers(
    source: Path | str | bytes, *, where: str | None = None
) -> Int32[np.ndarray, "H W"]:
    """Returns the numbers of a PNG's pixels: red + 256 green + 65536 blue.

    Raises:
      Unreadable: it is no PNG of three channels of 8 bits: of others the numbers are not known.
    """
    data, where = _bytes_and_name(source, where)
    with _opened(data, where, ("PNG",)) as image:
        if image.mode not in ("RGB", "RGBA") or _png_bits(image) != 8:
            raise Unreadable(
                where,
                reason="PNG of segment numbers has other channels than RGB of 8 bits",
                expected="a PNG of numbers in RGB of 8 bits a channel",
                got=_kind(image),
                advice="write each number as red + 256 green + 65536 blue",
            )
        numbers = np.zeros((image.height, image.width), np.int32)
        for channel in reversed(range(3)):
            numbers <<= 8
            numbers |= np.asarray(image.getchannel(channel))
        return numbers


def read_alpha(source: bytes, *, where: str) -> UInt8[np.ndarray, "H W"] | None:
    """Returns how opaque the pixels of an image are, 0..255; None where all of them are.

    Raises:
      Unreadable: as `read`.
    """
    with _opened(source, where, FORMATS) as image:
        if not image.has_transparency_data:
            return None
        alpha = np.array(image.convert("RGBA").getchannel("A"))
    return None if alpha.min() == 255 else alpha


def read_mask(source: bytes, *, where: str) -> Bool[np.ndarray, "H W"]:
    """Returns the pixels of a one-channel PNG that are not 0.

    Raises:
      Unreadable: it is no such PNG.
    """
    with _opened(source, where, ("PNG",)) as image:
        if image.mode not in ("1", "L", "I;16", "I"):
            raise Unreadable(
                where,
                reason="mask is no PNG of one channel",
                expected="a mask as a PNG of one channel",
                got=_kind(image),
                advice="build the data set anew",
            )
        return np.asarray(image) != 0


def write(path: Path | str, image: RgbImage) -> None:
    """Writes the image as PNG: whole, or not at all.

    Raises:
      OSError: see `files.write_bytes`.
    """
    files.write_bytes(Path(path), _png(image))


def _png(image: RgbImage) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=False, compress_level=6)
    return buffer.getvalue()


def _bytes_and_name(source: Path | str | bytes, where: str | None) -> tuple[bytes, str]:
    """Returns an image's bytes, read from its file if need be, and its name in errors."""
    if isinstance(source, bytes):
        return source, "image" if where is None else where
    path = Path(source)
    return read_bytes(path, where=where), repr(str(path)) if where is None else where


def read_bytes(path: Path, *, where: str | None = None) -> bytes:
    """Returns the bytes of an image's file.

    Raises:
      Unreadable: there is no such file, or it is no regular one, empty, too large or not readable.
    """
    name = repr(str(path)) if where is None else where
    data = files.bytes_or_reason(path, most=MAX_BYTES)
    if isinstance(data, str):
        raise Unreadable(
            name,
            reason="image is missing" if data == "no file" else "image cannot be read",
            expected="an image",
            got=data,
            advice="check the path",
        )
    if not data:
        raise Unreadable(
            name,
            reason="image is damaged",
            expected="an image",
            got="an empty file",
            advice="copy it again",
        )
    return data


@contextlib.contextmanager
def _opened(data: bytes, where: str, formats: Sequence[str]) -> Iterator[Image.Image]:
    """Gives an image whose size is allowed; whatever goes wrong with it becomes `Unreadable`."""
    with contextlib.ExitStack() as stack:
        # Stored images are read by threads, for which filters of warnings are not made.
        if formats is not STORED:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # of odd metadata, and of size, which is checked below
        try:
            if "TIFF" in formats and _tiff_pieces(data) > MAX_TIFF_PIECES:
                raise _too_large(where, f"{_tiff_pieces(data)} strips or tiles")
            file = _CountedReads(data)
            with Image.open(file, formats=list(formats)) as image:
                _check_size(image, data, where)
                if image.format == "PPM":  # Some of its decoders read each pixel.
                    file.left += MAX_SLOW_PIXELS
                if image.format == "TIFF":
                    stack.enter_context(_silence())
                yield image
                if image.format == "PNG" and _is_cut_png(image, data):
                    raise Unreadable(
                        where,
                        reason="image is damaged",
                        expected="a whole image",
                        got="a damaged one (its pixels end too early)",
                        advice="copy or export it again",
                    )
        except Unreadable:
            raise
        except Image.DecompressionBombError:
            raise _too_large(where, "far more") from None
        except Image.UnidentifiedImageError:
            raise Unreadable(
                where,
                reason="file is no image that is read",
                expected=f"an image ({', '.join(formats)})",
                got="something else",
                advice="check the file or convert it",
            ) from None
        except Exception as error:  # a damaged file makes decoders fail in any way they can
            reason = re.sub(r"<[^<>]* at 0x\w+>", "it", " ".join(str(error).split()))[:120]
            reason = ascii(reason)[1:-1] or type(error).__name__
            raise Unreadable(
                where,
                reason="image is damaged",
                expected="a whole image",
                got=f"a damaged one ({reason})",
                advice="copy or export it again",
            ) from None


def _check_size(image: Image.Image, data: bytes, where: str) -> None:
    """Raises Unreadable if an image has no pixels, or takes too long to decode."""
    width, height = image.size
    if not width * height:
        raise Unreadable(
            where,
            reason="image is damaged",
            expected="an image",
            got="one without pixels",
            advice="export it again",
        )
    if width * height > MAX_PIXELS:
        raise _too_large(where, f"{width} x {height}")
    # Each scan of a progressive JPEG passes over all pixels; the mark of one is nowhere in another.
    scans = data.count(b"\xff\xda") if "progressive" in image.info else 1
    if scans * width * height > MAX_SCANS * MAX_PIXELS:
        raise _too_large(where, f"{width} x {height} drawn {scans} times")
    tiles: list[Any] = getattr(image, "tile", [])
    slow = any(tile[0] in ("bmp_rle", "ppm", "ppm_plain") for tile in tiles)
    most = MAX_WEBP_PIXELS if image.format == "WEBP" else MAX_PIXELS
    most = MAX_SLOW_PIXELS if slow else most
    if width * height > most:
        raise _too_large(where, f"{width} x {height}", most, " of this kind")


def _is_cut_png(image: Image.Image, data: bytes) -> bool:
    """Returns whether the pixels of a PNG that was decoded end too early.

    Pillow takes the end of a stream for that of the image, and leaves the rows after it black.
    """
    tiles: list[Any] = getattr(image, "tile", [])
    if tiles:  # Not decoded.
        return False
    width, height, bits, kind, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    last = image.crop((0, height - 1, width, height))
    if not interlaced and last.getbbox(alpha_only=False) is not None:
        return False
    bits *= {2: 3, 4: 2, 6: 4}.get(kind, 1)
    passes = _PNG_PASSES if interlaced else ((0, 0, 1, 1),)
    wanted = 0
    for left, top, right, down in passes:
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        wanted += rows * (1 + (columns * bits + 7) // 8) if columns > 0 < rows else 0
    return _inflated_size(data, wanted) < wanted


def _inflated_size(data: bytes, most: int) -> int:
    """Returns how many bytes the pixels of a PNG have, as they are before filters."""
    stream, size, at = zlib.decompressobj(), 0, 8
    while size < most and at + 8 <= len(data) and not stream.eof:
        length, name = struct.unpack_from(">I4s", data, at)
        rest = data[at + 8 : at + 8 + length] if name == b"IDAT" else b""
        while rest and size < most and not stream.eof:
            size += len(stream.decompress(rest, 1 << 20))
            rest = stream.unconsumed_tail
        at += 12 + length
    return size + len(stream.flush()) if size < most else size


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps what libtiff says of a damaged file off the terminal: `Unreadable` says it."""
    try:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # There is no terminal to keep it off.
        yield
        return
    try:
        sys.stderr.flush()
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class _CountedReads(io.BytesIO):
    """Bytes that end an endless parade of headers."""

    def __init__(self, data: bytes):
        super().__init__(data)
        self.left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise OSError("too many headers")
        return super().read(size)


def _tiff_pieces(data: bytes) -> int:
    """Returns the number of strips or tiles that a TIFF tells first; 0 of anything else."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
    try:
        if not order or struct.unpack_from(f"{order}H", data, 2)[0] not in (42, 43):
            return 0
        wide = struct.unpack_from(f"{order}H", data, 2)[0] == 43
        (at,) = struct.unpack_from(f"{order}Q" if wide else f"{order}I", data, 8 if wide else 4)
        (count,) = struct.unpack_from(f"{order}Q" if wide else f"{order}H", data, at)
        entry = struct.Struct(f"{order}HHQ8x" if wide else f"{order}HHI4x")
        begin = at + (8 if wide else 2)
        table = data[begin : begin + min(count, 4096) * entry.size]
        found = entry.iter_unpack(table[: len(table) // entry.size * entry.size])
        return max((number for tag, _, number in found if tag in _TIFF_PIECES), default=0)
    except (struct.error, OverflowError):  # Too short; the reader will tell.
        return 0


def _too_large(where: str, got: str, most: int = MAX_PIXELS, kind: str = "") -> Unreadable:
    return Unreadable(
        where,
        reason="image is too large",
        expected=f"at most {most / 1e6:.0f} million pixels{kind}",
        got=got,
        advice="make it smaller",
    )


def _orientation(image: Image.Image) -> int:
    """Returns the camera's note, 1 where there is none that can be read."""
    try:
        note = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Other notes beside it may be damaged in any way.
        return 1
    return note if isinstance(note, int) and 1 <= note <= 8 else 1


def _turned(pixels: RgbImage, orientation: int) -> RgbImage:
    """Returns pixels as a viewer shows them that knows the camera's note."""
    if orientation > 4:  # Rows were columns.
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _kind(image: Image.Image) -> str:
    """Returns an image's kind of pixels in words."""
    kinds = {
        "1": "black and white",
        "L": "grey of 8 bits",
        "LA": "grey with alpha",
        "P": "a palette",
        "I;16": "grey of 16 bits",
        "I;16B": "grey of 16 bits",
        "I": "whole numbers of 32 bits",
        "F": "real numbers",
    }
    if image.mode in ("RGB", "RGBA"):
        return f"{image.mode} of 16 bits a channel"
    return kinds.get(image.mode, f"pixels of the kind {image.mode}")


def _rgb(image: Image.Image, where: str) -> RgbImage:
    """Returns the pixels of an image in RGB."""
    convert = _conversion(image, where)
    if convert is None:
        if image.height * image.width <= _BAND_PIXELS:
            return np.array(image)
        convert = np.asarray
    image.load()
    found = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(image.height, top + rows)
        found[top:bottom] = convert(image.crop((0, top, image.width, bottom)))
    return found


def _conversion(image: Image.Image, where: str) -> Callable[[Image.Image], np.ndarray] | None:
    """Returns what turns a band of an image into RGB or into grey [H W 1], None for RGB itself."""
    key = image.info.get("transparency")  # One value, a value a channel, or an alpha a colour.
    if image.mode.startswith("I"):
        return _deep_grey(image, key, where)
    if image.mode in _TRANSPARENT or (image.mode == "P" and image.has_transparency_data):
        return _on_white
    if image.mode not in _OPAQUE:
        raise _unknown_kind(image, where)
    if isinstance(key, tuple if image.mode == "RGB" else int) and image.mode in ("1", "L", "RGB"):
        return functools.partial(_without_key, key=key, bits=_png_bits(image))
    return None if image.mode == "RGB" else lambda band: np.asarray(band.convert("RGB"))


def _unknown_kind(image: Image.Image, where: str) -> Unreadable:
    return Unreadable(
        where,
        reason="image has pixels of a kind that is not read",
        expected="8 or 16 bits a channel",
        got=_kind(image),
        advice="export it in RGB with 8 bits a channel",
    )


def _png_bits(image: Image.Image) -> int:
    """Returns the bits of a PNG's channels; it must not be decoded yet. Others have 8."""
    tiles: list[Any] = getattr(image, "tile", [])
    raw = tiles[0].args if image.format == "PNG" and tiles else ""
    return {"1": 1, "L;2": 2, "L;4": 4}.get(raw, 16 if ";16" in raw else 8)


def _deep_grey(image: Image.Image, key: Any, where: str) -> Callable[[Image.Image], np.ndarray]:
    """Returns what turns a band of grey of more than 8 bits into one of 8."""
    tags: Any = getattr(image, "tag_v2", {})
    shift = 4 if tags.get(_TIFF_BITS) == (12,) else 8
    inverted = tags.get(_TIFF_MEANING) == 0
    # Pillow's 32 bits hold what PPM scaled to 16, or what a TIFF has in 32 or with a sign.
    if image.mode == "I" and image.format != "PPM":
        raise _unknown_kind(image, where)

    def convert(band: Image.Image) -> np.ndarray:
        values = np.asarray(band)
        grey = (values >> shift).astype(np.uint8)
        if inverted:
            grey = ~grey
        if isinstance(key, int):
            grey[values == key] = 255
        return grey[..., None]

    return convert


def _on_white(band: Image.Image) -> np.ndarray:
    """Returns a band with alpha as it looks on white."""
    if band.mode == "La":  # Pillow knows no other way on.
        band = band.convert("LA")
    band = band.convert("RGBA")
    white = Image.new("RGBA", band.size, "white")
    return np.asarray(Image.alpha_composite(white, band).convert("RGB"))


def _without_key(band: Image.Image, key: Any, bits: int) -> np.ndarray:
    """Returns a band whose pixels of a colour key are white."""
    pixels = np.array(band.convert("RGB"))
    if band.mode == "RGB":  # Of 16 bits, Pillow has left the high byte.
        wanted = np.array(key) >> (bits - 8)
    else:  # The key is as the file has it; Pillow has scaled the pixels to 0..255.
        wanted = key if bits in (1, 8) else key * 255 // (2**bits - 1)
    pixels[(pixels == wanted).all(-1)] = 255
    return pixels
