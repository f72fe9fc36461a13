"""Named protocols of foreground objects, and one image's answer judged by their measures (host)."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from seg_jax.evaluation.foreground import measures
from seg_jax.evaluation.foreground.measures import Measures
from seg_jax.records import Sample

Name = Literal["cod", "sod"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """A field of foreground objects and the data sets that its papers report."""

    name: Name
    title: str
    sets: tuple[str, ...]


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(name="cod", title="Camouflaged objects (COD)", sets=("cod10k", "camo")),
        Protocol(
            name="sod",
            title="Salient objects (SOD)",
            sets=("dut_omron", "duts", "hku_is", "ecssd"),
        ),
    )
}

IOU_SHARE = 0.7
"""Share of the IoU in Seg-R1's reward; S has the rest."""
_COD10K = re.compile(r"COD10K-CAM-\d+-([A-Za-z]+)-")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What came of one image."""

    key: str
    """Key of the sample; it begins with the folder of its data set."""
    group: str
    """What part of its data set the image is of, as COD10K's names tell; mostly nothing."""
    height: int
    width: int
    measures: Measures
    iou: float
    """IoU of the pixels above 127 with the truth."""
    reward: float
    """What Seg-R1's reinforcement gives to these pixels, its format aside."""

    @property
    def set(self) -> str:
        """Folder of the data set."""
        return self.key.partition("/")[0]

    def as_json(self) -> dict[str, Any]:
        """Returns a line of rows.jsonl, curves by their means."""
        numbers = self.measures._asdict()
        for name in ("f", "e"):
            numbers[f"{name}_mean"] = float(numbers.pop(f"{name}_curve").mean())
        return {
            "key": self.key,
            "group": self.group,
            "height": self.height,
            "width": self.width,
            **numbers,
            "iou": self.iou,
            "reward": self.reward,
        }


def judge(sample: Sample, grey: UInt8[np.ndarray, "H W"], *, released: bool = False) -> Row:
    """Returns what a map is worth.

    Args:
      sample: with one mask, the truth.
      grey: the map, of the image's size; a mask has 0 and 255.
      released: whether numbers have the quirks of Seg-R1's code: S is 0 where the truth's centroid
        lies in the last row or column, and the reward has 1 - the answer's share of the image in
        the place of S.

    Raises:
      ValueError: the sample has not one mask, or the map is of another size.
    """
    if len(sample.masks) != 1:
        raise ValueError(
            f"sample {sample.key}: expected one mask of all that is foreground, got "
            f"{len(sample.masks)}; do: give data sets of masks, as seg-jax build cod10k"
        )
    truth = sample.masks[0]
    if grey.shape != truth.shape:
        raise ValueError(
            f"sample {sample.key}: expected a map of {truth.shape[0]}x{truth.shape[1]}, got "
            f"{grey.shape[0]}x{grey.shape[1]}; do: scale it to the image"
        )
    found = grey > 127
    union = int((found | truth).sum())
    iou = int((found & truth).sum()) / union if union else 1.0
    told = measures.measure(grey, truth, released=released)
    mask = 255 * found.astype(np.uint8)
    likeness = 1 - found.mean() if released else measures.measure(mask, truth).structure
    named = _COD10K.search(sample.key)
    return Row(
        key=sample.key,
        group=named[1].lower() if named else "",
        height=truth.shape[0],
        width=truth.shape[1],
        measures=told,
        iou=iou,
        reward=float(IOU_SHARE * iou + (1 - IOU_SHARE) * likeness),
    )
