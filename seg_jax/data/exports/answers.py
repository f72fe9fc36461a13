"""What is exported: pictures with the answers to the questions about them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Bool

from seg_jax.data.image_lists import SUFFIXES
from seg_jax.geometry import bitmask, runlengths
from seg_jax.records import Verdict

Files = Iterator[tuple[str, Callable[[], bytes]]]
"""Files of an export: the path of each within its folder, and what makes its bytes."""

MOST_NAME = 80
"""Characters of a part of a name."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer to one question about a picture."""

    told: Mapping[str, Any]
    """A line of answers.jsonl: what the prediction says as JSON, with label, score and ids."""
    category: int
    """Number of its label among all of the run, from 0."""

    @property
    def label(self) -> str:
        """What the object is called."""
        return self.told["label"]

    @property
    def score(self) -> float:
        """Geometric mean of the probabilities of the answer's tokens, 0..1."""
        return self.told["score"]

    @property
    def text(self) -> str:
        """What the model wrote."""
        return self.told["text"]

    @property
    def verdict(self) -> Verdict:
        """What the reader found in it."""
        return Verdict[self.told["verdict"]]

    @property
    def kind(self) -> str:
        """What was answered: "mask", "box", "point", or "clicks" of a model that draws nothing."""
        return self.told.get("kind", "mask" if self.rle is not None else "clicks")

    @property
    def rle(self) -> dict[str, Any] | None:
        """Run lengths of the mask, counts as text; None where there is none at all."""
        return self.told.get("rle")

    @functools.cached_property
    def area_px(self) -> int:
        """Pixels of the mask."""
        return 0 if self.rle is None else runlengths.area(self.rle)

    @property
    def is_mask(self) -> bool:
        """Whether it is a mask with pixels."""
        return self.kind == "mask" and self.area_px > 0

    @functools.cached_property
    def mask(self) -> Bool[np.ndarray, "H W"]:
        """The mask, empty where the answer is none."""
        if self.rle is None or self.kind != "mask":
            size = self.told["size"]
            return np.zeros((size["height"], size["width"]), bool)
        return bitmask.from_rle(self.rle)

    @property
    def rings_px(self) -> list[np.ndarray]:
        """The outline: filled by the even-odd rule it is the mask, to the pixel."""
        rings = [np.array(ring, np.float64) for ring in self.told.get("polygons_px", ())]
        return [ring for ring in rings if len(ring) >= 3] if self.kind == "mask" else rings

    @property
    def rings_unit(self) -> list[np.ndarray]:
        """What can be drawn over the picture, in fractions of it."""
        size = np.array([self.told["size"]["width"], self.told["size"]["height"]], np.float64)
        return [ring / size for ring in self.rings_px]

    @property
    def box_px(self) -> list[float] | None:
        """x0 y0 x1 y1 around what was answered; None of nothing."""
        if self.is_mask:
            assert self.rle is not None
            return [float(number) for number in runlengths.box_px(self.rle)]
        return self.told.get("box_px")

    def polygons_that_fill(self) -> list[list[float]] | None:
        """Returns the outline as x, y, .. of rings whose union is the mask to the pixel, if it is.

        A ring within a ring is a hole here, and none where rings are united: then there is None.
        """
        if not self.is_mask:
            return None
        assert self.rle is not None
        height, width = self.rle["size"]
        rings = [ring.ravel().tolist() for ring in self.rings_px]
        filled = runlengths.fill(rings, height=height, width=width)
        return rings if filled["counts"].decode("ascii") == self.rle["counts"] else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture with its answers."""

    key: str
    """Its path as the user gave it: its identity."""
    path: Path
    name: str
    """Names it in exports, without ending; no other picture of the run has it."""
    number: int
    """Its number in COCO's files."""
    answers: Sequence[Answer]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, upright."""
        size = self.answers[0].told["size"]
        return size["height"], size["width"]


@dataclasses.dataclass(frozen=True)
class Category:
    """What objects of one label are called."""

    name: str
    number: int
    """In COCO's files."""


def unique_names(keys: Sequence[str]) -> list[str]:
    """Returns a name in exports for each picture, a relative path without ending.

    It is the picture's path as given, below the folder that all of them share, in plain letters.
    Where two would have one name (a.png and a.jpg, also A.png where a disk knows no case) each has
    a digest of its path behind it.
    """
    paths = [PurePosixPath(key) for key in keys]
    above = [path.parent.parts for path in paths]
    levels = zip(*above, strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda some: len({*some}) == 1, levels))
    plain = [_plain_name(path.parts[shared:]) for path in paths]
    counts = Counter(name.casefold() for name in plain)
    whole = [
        name if counts[name.casefold()] == 1 else f"{name}-{_digest(key)}"
        for name, key in zip(plain, keys, strict=True)
    ]
    if len({name.casefold() for name in whole}) < len(whole):  # A name that looks like one of ours.
        whole = [f"{name}-{_digest(key)}" for name, key in zip(plain, keys, strict=True)]
    return whole


def _plain_name(parts: Sequence[str]) -> str:
    parts = parts or ("_",)  # Of a folder that is asked about, as ".".
    last = PurePosixPath(parts[-1])
    stem = last.stem if last.suffix.lower() in SUFFIXES else last.name
    plain = [re.sub(r"[^\w.-]", "_", part)[:MOST_NAME] for part in (*parts[:-1], stem)]
    # No part is hidden, or leads elsewhere.
    return "/".join(re.sub(r"^[.]+|[.]+$", "_", part) or "_" for part in plain)


def _digest(key: str) -> str:
    return hashlib.sha256(os.fsencode(key)).hexdigest()[:12]
