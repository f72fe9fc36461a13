"""Reads users' images of many formats and writes PNG (host)."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from seg_jax import files

MAX_PIXELS = 80_000_000
"""The largest image that `read` opens: 240 MB once decoded."""

RgbImage = UInt8[np.ndarray, "H W 3"]
"""Red, green, blue, 0..255."""

Rings = Sequence[Float[np.ndarray, "_ 2"]]
"""Vertices x, y of each ring; `Ring` itself would tie the lengths of all rings together."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Those whose readers neither run another program (EPS) nor open other files."""


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
                return np.array(_rgb(upright, name))
    except Image.DecompressionBombError:
        raise ValueError(_too_large("far more", name)) from None
    except Image.UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise ValueError(
            f"{name}: expected an image ({formats}), got something else; "
            "do: check the file or convert it"
        ) from None
    except _Refused as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # a damaged file makes decoders fail in any way they can
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{name}: expected a whole image, got a damaged one ({reason}); "
            "do: copy or export it again"
        ) from None


class _Refused(ValueError):
    """A message that is already clear."""


def _check_file(path: Path, name: str) -> None:
    """Raises ValueError unless there is a file with something in it that may be read."""
    if not path.exists():
        raise ValueError(f"{name}: expected an image, got no file; do: check the path")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise ValueError(f"{name}: expected an image, got {kind}; do: name a file")
    if not os.access(path, os.R_OK):
        raise ValueError(
            f"{name}: expected an image, got no permission to read it; do: make it readable with "
            "chmod +r"
        )
    if not path.stat().st_size:
        raise ValueError(f"{name}: expected an image, got an empty file; do: copy it again")


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise _Refused(_too_large(f"{width} x {height}", name))
    if not width * height:
        raise _Refused(f"{name}: expected an image, got one without pixels; do: export it again")


def _too_large(size: str, name: str) -> str:
    return (
        f"{name}: expected at most {MAX_PIXELS / 1e6:.0f} million pixels, got {size}; "
        "do: make it smaller"
    )


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """Returns the image in mode RGB."""
    if image.mode.startswith("I"):  # Pillow's own conversion would cut off all above 255
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise _Refused(
                f"{name}: expected 8 or 16 bits a channel, got 32; do: export it with 8 bits"
            )
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise _Refused(
            f"{name}: expected 8 or 16 bits a channel, got real numbers; do: export it with 8 bits"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def write(path: Path | str, image: RgbImage) -> None:
    """Writes the image as PNG: whole, or not at all.

    Raises:
      OSError: see `files.write_bytes`.
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=False, compress_level=6)
    files.write_bytes(Path(path), buffer.getvalue())
