"""Reads grey images, masks and foreground maps, of any format, and what is odd about them (host).

Colours become grey as Pillow and OpenCV weigh them; what is transparent is black: no object.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from seg_jax.data import image_files

SOFT_SHARE = 0.05
"""Share of pixels from 6 to 249 above which a mask is told to be soft: edges alone have less."""
_WEIGHTS = np.array([19595, 38470, 7471], np.uint32)
"""Weights of red, green, blue, in 65536ths (ITU-R 601)."""
_ROWS = 256
"""Rows that are made grey at a time."""


class Grey(NamedTuple):
    """A grey image."""

    pixels: UInt8[np.ndarray, "H W"]
    remarks: tuple[str, ...]
    """Fixed phrases of what is odd about it as a mask."""


def read(path: Path) -> Grey:
    """Returns the greys of an image as its file stores them, unturned.

    Raises:
      image_files.Unreadable: one line that says what is wrong with the file and what to do.
    """
    data, where = image_files.read_bytes(path), repr(str(path))
    header = image_files.read_header(data, where=where)
    colours = image_files.read(data, upright=False, where=where)
    grey = np.empty(colours.shape[:2], np.uint8)
    for top in range(0, len(grey), _ROWS):  # Of all rows at once the products take a gigabyte.
        some = slice(top, top + _ROWS)
        grey[some] = (colours[some] @ _WEIGHTS + 0x8000) >> 16
    remarks = []
    alpha = image_files.read_alpha(data, where=where)
    if alpha is not None:
        # It was laid on white; what is transparent takes that much away again.
        grey = np.maximum(grey.astype(np.int16) - (255 - alpha.astype(np.int16)), 0)
        grey = grey.astype(np.uint8)
        remarks.append("mask has transparent pixels: they count as none of the object")
    if path.suffix.lower() == ".png" and header.format != "PNG":
        remarks.append(f"mask is a {header.format} with a name of PNG: read as what it is")
    if np.mean((grey > 5) & (grey < 250)) > SOFT_SHARE:
        remarks.append("mask is soft: its greys above 128 are the object")
    return Grey(grey, tuple(remarks))
