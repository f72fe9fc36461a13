"""Pictures as clients send them: in the request, or by a name in an allowed folder."""

from __future__ import annotations

import base64
import binascii
import math
import re
import threading
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from seg_jax.data import image_files
from seg_jax.data.image_files import RgbImage
from seg_jax.geometry import raster
from seg_jax.serving import faults

_READING = threading.Lock()
"""Readers of pictures turn off warnings, and what libtiff prints, for the whole process."""
_DATA_URI = re.compile(r"data:[\w.+/-]*(?:;[\w=.-]+)*;base64,", re.ASCII)
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]{0,30}:", re.ASCII)
_LABEL_STUDIO = ("/data/upload/", "/data/local-files/")
"""How Label Studio names pictures that it has been given, or sees in its storage."""


def bytes_of(text: str, *, where: str) -> bytes:
    """Returns the bytes of a picture in a data URI, or in base64 alone.

    Raises:
      Refused: it is neither; an address is never fetched.
    """
    head = _DATA_URI.match(text[:200])
    if head is None and _ADDRESS.match(text[:40]):
        raise faults.Refused(
            f"{where}: expected a picture in the request (data:image/png;base64,..), got an address"
            " or another kind of data; do: send the picture itself, no address is fetched for a "
            "client"
        )
    try:
        return base64.b64decode(text[head.end() if head else 0 :], validate=True)
    except (binascii.Error, ValueError):
        raise faults.Refused(
            f"{where}: expected a picture in base64, got other text; do: encode the bytes of the "
            "file"
        ) from None


def read(data: bytes, *, most_pixels: int, where: str) -> RgbImage:
    """Returns the pixels of a picture, whose size is known before it is decoded.

    Raises:
      TooLarge: it has more pixels than it may have.
      Refused: it is no picture that can be read.
    """
    try:
        with _READING:
            header = image_files.read_header(data, where=where)
        sides = header.height, header.width
        if math.prod(sides) > most_pixels or max(sides) > raster.MAX_SIDE:
            raise faults.TooLarge(
                f"{where}: expected at most {most_pixels} pixels and {raster.MAX_SIDE} a side, got "
                f"{header.height} x {header.width}; do: make the picture smaller"
            )
        with _READING:
            return image_files.read(data, where=where)
    except image_files.Unreadable as error:
        raise faults.Refused(str(error)) from None


def bytes_in(folder: Path | None, name: str, *, where: str) -> bytes:
    """Returns the bytes of a picture that a client names: in the request itself, or in the folder.

    Args:
      folder: that clients may name pictures of; None: there is none.
      name: data URI, path below the folder, or Label Studio's address of it.
      where: names the picture in errors.

    Raises:
      Refused: it is an address, outside of the folder, or no file.
    """
    if name.startswith("data:"):
        return bytes_of(name, where=where)
    path = _path_in(name)
    if folder is None or path is None:
        raise faults.Refused(
            f"{where}: expected a picture in the request (data:image/png;base64,..)"
            f"{'' if folder is None else ' or a path below the folder of --images'}, got "
            f"{name[:60]!r}; do: send it so, or start the server with --images FOLDER"
        )
    root = folder.resolve()
    found = (root / path).resolve()
    if not found.is_relative_to(root):
        raise faults.Refused(
            f"{where}: expected a path below the folder of --images, got one that leads out of it"
            "; do: name a picture in the folder"
        )
    try:
        return image_files.read_bytes(found, where=where)
    except image_files.Unreadable as error:
        raise faults.Refused(str(error)) from None


def _path_in(name: str) -> str | None:
    """Returns the path below a folder that a name means; None for an address of elsewhere."""
    if not name.startswith(_LABEL_STUDIO):
        return None if _ADDRESS.match(name[:40]) or "\0" in name else name.lstrip("/")
    address = urlsplit(name)
    if address.path.startswith("/data/local-files/"):
        return unquote(parse_qs(address.query).get("d", [""])[0]).lstrip("/") or None
    return unquote(address.path.removeprefix("/data/upload/"))
