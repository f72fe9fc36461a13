"""Writes answers as PNG: a mask an answer, Pascal VOC's palettes, and overlays a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from seg_jax.data import image_files
from seg_jax.data.exports import overlay, stored_pictures
from seg_jax.data.exports.answers import Category, Files, Picture
from seg_jax.data.formats import voc

MOST_COLOURS = 254
"""Classes, or objects of a picture, that a palette has beside background and void."""


def masks(picture: Picture) -> Files:
    """Yields a grey PNG of 8 bits for each answer: 255 where its mask is, 0 elsewhere."""
    for place, one in enumerate(picture.answers):
        yield (
            f"{picture.name}-{place + 1:03d}.png",
            lambda one=one: _png(Image.fromarray(255 * one.mask.astype(np.uint8))),
        )


def palettes(picture: Picture) -> Files:
    """Yields a picture as VOC has it: classes and objects by number, the last answer on top.

    Objects beyond `MOST_COLOURS` are left out.
    """
    classes, objects = (np.zeros(picture.size, np.uint8) for _ in range(2))
    seen = [one for one in picture.answers if one.is_mask][:MOST_COLOURS]

    def paint(canvas: UInt8[np.ndarray, "H W"], numbers: Sequence[int]) -> bytes:
        for one, number in zip(seen, numbers, strict=True):
            canvas[one.mask] = number
        image = Image.fromarray(canvas).convert("P")
        image.putpalette([part for n in range(256) for part in voc.colour(n).to_bytes(3, "little")])
        return _png(image)

    yield from stored_pictures.of_picture(picture, "JPEGImages")
    which = [one.category + 1 for one in seen]
    yield f"SegmentationClass/{picture.name}.png", lambda: paint(classes, which)
    order = range(1, len(seen) + 1)
    yield f"SegmentationObject/{picture.name}.png", lambda: paint(objects, order)


def palette_lists(categories: Sequence[Category], names: Sequence[str]) -> Files:
    """Yields the lists of VOC's folder: what colours mean, which pictures there are."""
    told = [(0, "background"), *((n + 1, one.name) for n, one in enumerate(categories))]
    lines = ["# label:color_rgb:parts:actions"]
    for number, name in told:
        channels = ",".join(str(part) for part in voc.colour(number).to_bytes(3, "little"))
        lines.append(f"{name.replace(':', ' ')}:{channels}::")
    yield "labelmap.txt", lambda: ("\n".join(lines) + "\n").encode()
    every = "".join(f"{name}\n" for name in names)
    yield "ImageSets/Segmentation/predicted.txt", lambda: every.encode()


def overlays(picture: Picture) -> Files:
    """Yields the picture with all of its answers drawn over it, each in a colour."""
    yield f"{picture.name}.png", lambda: _png(Image.fromarray(drawn_over(picture)))


def drawn_over(picture: Picture) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the picture with its answers drawn over it.

    Raises:
      image_files.Unreadable: the picture is gone, or has changed.
    """
    return draw_all(image_files.read(picture.path), [one.rings_unit for one in picture.answers])


def draw_all(
    image: image_files.RgbImage, every: Sequence[image_files.Rings]
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns an image with several answers over it, each in a colour of its own."""
    shown = overlay.draw(image, every[0] if every else (), colour=overlay.COLOURS[0])
    for place, rings in enumerate(every[1:], 1):
        colour = overlay.COLOURS[place % len(overlay.COLOURS)]
        shown = overlay.draw(shown, rings, colour=colour, scale=1)
    return shown


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=False, compress_level=6)
    return buffer.getvalue()
