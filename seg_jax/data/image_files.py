"""Reads users' images, draws outlines over them, writes the result (host)."""

from __future__ import annotations

import io
import itertools
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image, ImageOps

from seg_jax import files
from seg_jax.geometry import boxes
from seg_jax.records import Ring

MAX_PIXELS = 80_000_000
"""The largest image that `read` opens: 240 MB once decoded."""

RgbImage = UInt8[np.ndarray, "H W 3"]
"""Red, green, blue, 0..255."""

Rings = Sequence[Float[np.ndarray, "_ 2"]]
"""Vertices x, y of each ring; `Ring` itself would tie the lengths of all rings together."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Those whose readers neither run another program (EPS) nor open other files."""
_SMALL_PX, _LARGE_PX = 512, 2048
_DARK = (16, 16, 16)


def read(path: Path | str) -> RgbImage:
    """Returns a user's image as an upright viewer would show it.

    The EXIF orientation is applied, transparent parts lie on white, palettes, greys and CMYK become
    RGB, 16-bit channels keep their high byte, of animations the first frame counts.

    Raises:
      ValueError: one line that says what was wrong with the file and what to do.
    """
    path = Path(path)
    name = repr(str(path))
    _check_file(path, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of size, which is checked below
            with Image.open(path, formats=FORMATS) as image:
                _check_size(image.size, name)
                upright = ImageOps.exif_transpose(image)
                return np.array(_rgb(upright))
    except Image.DecompressionBombError:
        raise ValueError(str(_too_large("far more", name))) from None
    except Image.UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise ValueError(
            f"expected an image ({formats}), got something else in {name},"
            " do check the file or convert it"
        ) from None
    except _Refused as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # a damaged file makes decoders fail in any way they can
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"expected a whole image, got a damaged one in {name} ({reason}),"
            " do copy or export it again"
        ) from None


class _Refused(ValueError):
    """A message that is already clear."""


def _check_file(path: Path, name: str) -> None:
    """Raises ValueError unless there is a file with something in it that may be read."""
    if not path.exists():
        raise ValueError(f"expected an image, got no file at {name}, do check the path")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise ValueError(f"expected an image, got {kind} at {name}, do name a file")
    if not os.access(path, os.R_OK):
        raise ValueError(f"expected an image, got no permission to read {name}, do chmod it")
    if not path.stat().st_size:
        raise ValueError(f"expected an image, got an empty file at {name}, do copy it again")


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise _too_large(f"{width} x {height}", name)
    if not width * height:
        raise _Refused(f"expected an image, got one without pixels in {name}, do export it again")


def _too_large(size: str, name: str) -> ValueError:
    return _Refused(
        f"expected at most {MAX_PIXELS / 1e6:.0f} million pixels, got {size} in {name},"
        " do make it smaller"
    )


def _rgb(image: Image.Image) -> Image.Image:
    """Returns the image in mode RGB."""
    if image.mode.startswith("I"):  # Pillow's own conversion would cut off all above 255
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise _Refused("expected 8 or 16 bits a channel, got 32, do export it with 8 bits")
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise _Refused(
            "expected 8 or 16 bits a channel, got real numbers, do export it with 8 bits"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def overlay(
    image: RgbImage,
    rings_unit: Rings,
    *,
    points_unit: Shaped[np.ndarray, "n 2"] | Sequence[tuple[float, float]] = (),
    boxes_unit: Shaped[np.ndarray, "m 4"] | Sequence[tuple[float, float, float, float]] = (),
    colour: tuple[int, int, int] = (0, 158, 115),
    opacity: float = 0.35,
    scale: float | int | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the image with a region, its outline and vertices, points and boxes drawn over it.

    The region is what the rings enclose by the even-odd rule: a pixel of the result is tinted if
    its centre lies inside. Lines have the same width whatever the scale, with a dark rim
    that keeps them visible on any ground. What lies outside the image is cut off.

    Args:
      image: the image.
      rings_unit: vertices of each ring, (0, 0) the outer corner of the first pixel, (1, 1) that of
        the last. A ring of two vertices is a line, of one a point; vertices that are not finite
        are left out.
      points_unit: x, y of each marker.
      boxes_unit: x0, y0, x1, y1 of each frame.
      colour: red, green, blue, 0..255.
      opacity: how much of the region's own colour is replaced, 0..1.
      scale: size of the result over that of the image; whole factors repeat pixels. None takes
        the whole factor, at most 16, that brings the longer side to 512 pixels, or the fraction
        that brings it down to 2048.

    Raises:
      ValueError: if the result would have no pixels or too many.
    """
    canvas = _resized(image, scale).astype(np.float32)
    height, width = canvas.shape[:2]
    unit_px = np.array([width, height], np.float64)
    rings = [_finite(ring) * unit_px for ring in rings_unit]
    points = [point for ring in rings if len(ring) == 1 for point in ring]
    points += list(_finite(np.reshape(points_unit, (-1, 2))) * unit_px)
    rings = [ring for ring in rings if len(ring) > 1]
    inside = _inside(rings, height, width)
    canvas[inside] += opacity * (np.array(colour, np.float32) - canvas[inside])
    corners = boxes.corners(np.reshape(np.asarray(boxes_unit, np.float64), (-1, 4)))
    frames = [_finite(box) * unit_px for box in corners]
    line = max(2.0, max(height, width) / 180)
    _stroke(canvas, [_segments(ring) for ring in rings + frames], line, colour=colour)
    dots = [(ring, _dot_px(ring, line)) for ring in rings]
    for place, radius in [*dots, *((point[None], 2 * line) for point in points)]:
        spot = np.stack([place, place], axis=1)
        _stroke(canvas, [spot], 2 * radius, colour=(255, 255, 255), rim=colour)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def _resized(image: RgbImage, scale: float | int | None) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the image at another size; whole factors repeat pixels, others are smooth."""
    height, width = image.shape[:2]
    longer = max(height, width)
    factor = scale
    if factor is None:
        factor = min(math.ceil(_SMALL_PX / max(longer, 1)), 16)
        factor = _LARGE_PX / longer if longer > _LARGE_PX else factor
    if not (0 < factor < MAX_PIXELS and 1 <= height * width * factor**2 <= MAX_PIXELS):
        raise ValueError(
            f"expected 1 to {MAX_PIXELS} pixels, got {width} x {height} times {factor},"
            " do change scale"
        )
    if factor == int(factor):
        return image.repeat(int(factor), axis=0).repeat(int(factor), axis=1)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def _finite(ring: Ring) -> Float[np.ndarray, "p 2"]:
    """Returns the finite vertices, none absurdly far outside."""
    ring = np.asarray(ring, np.float64)
    return np.clip(ring[np.isfinite(ring).all(axis=1)], -100, 100)


def _segments(ring: Ring) -> Float[np.ndarray, "P 2 2"]:
    return np.stack([ring, np.roll(ring, -1, axis=0)], axis=1)


def _dot_px(ring: Ring, line: float) -> float:
    """Returns the radius of vertex dots, smaller where vertices crowd."""
    step = np.diff(_segments(ring), axis=1)[:, 0]
    return min(line, 0.3 * float(np.median(np.hypot(step[:, 0], step[:, 1]))))


def _inside(rings: Rings, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
    """Returns the pixels whose centre lies inside the rings in pixels (even-odd rule).

    Every crossing of an edge with a row's centre line flips all pixels to the right of it.
    """
    flips = np.zeros((height, width + 1), np.uint8)
    for ring in rings:
        (x0, y0), (x1, y1) = np.moveaxis(_segments(ring), 0, -1)
        top, bottom = np.minimum(y0, y1), np.maximum(y0, y1)
        first = np.clip(np.ceil(top - 0.5), 0, height).astype(int)
        count = np.clip(np.ceil(bottom - 0.5), 0, height).astype(int) - first
        edge = np.repeat(np.arange(len(ring)), count)
        row = first[edge] + np.arange(edge.size) - (np.cumsum(count) - count)[edge]
        share = (row + 0.5 - y0[edge]) / (y1 - y0)[edge]
        x = x0[edge] + share * (x1 - x0)[edge]
        np.bitwise_xor.at(flips, (row, np.clip(np.ceil(x - 0.5), 0, width).astype(int)), 1)
    return np.bitwise_xor.accumulate(flips, axis=1)[:, :width].astype(bool)


def _stroke(
    canvas: Float[np.ndarray, "H W 3"],
    paths: Sequence[Float[np.ndarray, "_ 2 2"]],
    line: float,
    *,
    colour: tuple[int, int, int],
    rim: tuple[int, int, int] = _DARK,
) -> None:
    """Draws anti-aliased segments with round ends onto the canvas, over a rim of another colour."""
    segments = np.concatenate([np.zeros((0, 2, 2)), *paths])
    if not len(segments):
        return
    edge = 0.4 * line
    strength = 0.6 if rim == _DARK else 1.0
    near = _distance(segments, canvas.shape[:2], line / 2 + edge + 1)
    for reach, tone, share in ((line / 2 + edge, rim, strength), (line / 2, colour, 1.0)):
        cover = np.clip(reach + 0.5 - near, 0, 1)
        rows, columns = np.nonzero(cover)
        weight = share * cover[rows, columns, None]
        canvas[rows, columns] += weight * (np.array(tone, np.float32) - canvas[rows, columns])


def _distance(
    segments: Float[np.ndarray, "n 2 2"], shape: tuple[int, int], reach: float
) -> Float[np.ndarray, "H W"]:
    """Returns the distance of each pixel's centre to the nearest segment, infinite beyond reach."""
    height, width = shape
    near = np.full(shape, np.inf, np.float32)
    for start, end in itertools.chain.from_iterable(map(_pieces, segments)):
        low = np.clip(np.floor(np.minimum(start, end) - reach), 0, (width, height)).astype(int)
        high = np.clip(np.ceil(np.maximum(start, end) + reach), 0, (width, height)).astype(int)
        if (low >= high).any():
            continue
        x = np.arange(low[0], high[0]) + 0.5 - start[0]
        y = (np.arange(low[1], high[1]) + 0.5 - start[1])[:, None]
        dx, dy = end - start
        square = dx * dx + dy * dy
        share = np.clip((x * dx + y * dy) / square, 0, 1) if square else 0.0
        window = near[low[1] : high[1], low[0] : high[0]]
        np.minimum(
            window, np.hypot(x - share * dx, y - share * dy), out=window, casting="same_kind"
        )
    near[near > reach] = np.inf
    return near


def _pieces(segment: Float[np.ndarray, "2 2"]):
    """Yields the segment in short pieces, so that the window around each is small."""
    start, end = segment
    count = max(1, math.ceil(float(np.abs(end - start).max()) / 64))
    stops = start + np.linspace(0, 1, count + 1)[:, None] * (end - start)
    return itertools.pairwise(stops)


def write(path: Path | str, image: RgbImage) -> None:
    """Writes the image as PNG: whole, or not at all.

    Raises:
      OSError: see `files.write_bytes`.
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=False, compress_level=6)
    files.write_bytes(Path(path), buffer.getvalue())
