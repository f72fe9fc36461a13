"""Writes answers as data of one's own: the lines that `seg-jax build folder` reads."""

from __future__ import annotations

from typing import Any

from seg_jax.data.exports.answers import Picture

FILE = "folder/predicted.jsonl"
"""`seg-jax build folder --source OUT/folder --images .` finds it."""


def line(picture: Picture) -> dict[str, Any]:
    """Returns the line of a picture: masks as run lengths, and what was asked as phrases.

    An expression whose answer is that there is nothing is a phrase without objects.
    """
    objects, phrases = [], []
    for one in picture.answers:
        text = one.told["asked"].get("text")
        if one.is_mask:
            objects.append({"segmentation": one.rle, "name": one.label})
            meant = [len(objects) - 1]
        elif one.told.get("says_nothing"):
            meant = []
        else:
            continue
        if text:
            phrases.append({"text": text, "objects": meant})
    return {"image": picture.key, "upright": True, "objects": objects, "phrases": phrases}
