"""Pictures as exports hold them: upright, their bytes unchanged where that can be."""

from __future__ import annotations

import functools

from seg_jax.data import image_files
from seg_jax.data.exports.answers import Files, Picture


def of_picture(picture: Picture, folder: str) -> Files:
    """Yields the picture under its name in exports.

    Its bytes are the file's own where these are RGB and need no turning; others become a PNG.

    Args:
      picture: to store.
      folder: in the export.
    """

    @functools.cache
    def stored() -> image_files.Stored:
        data = image_files.read_bytes(picture.path)
        return image_files.storable(data, upright=True, where=repr(picture.key))

    try:
        is_new = stored().changed
    except image_files.Unreadable:  # Whoever makes the bytes is told.
        is_new = False
    ending = ".png" if is_new else picture.path.suffix.lower()
    yield f"{folder}/{picture.name}{ending}", lambda: stored().data
