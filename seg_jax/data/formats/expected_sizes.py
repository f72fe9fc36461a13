"""Published sizes of the data sets, to warn of a copy that is not whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Size(NamedTuple):
    """Sizes of a split; None where no publication gives one."""

    refs: int | None
    images: int | None
    expressions: int | None


SIZES: dict[str, dict[str, Size]] = {
    "refcoco_unc": {
        "train": Size(42404, 16994, 120624),
        "val": Size(3811, 1500, 10834),
        "testA": Size(1975, 750, 5657),
        "testB": Size(1810, 750, 5095),
    },
    "refcoco_google": {
        "train": Size(40000, 19213, None),
        "val": Size(5000, 4559, None),
        "test": Size(5000, 4527, None),
    },
    "refcocoplus_unc": {
        "train": Size(42278, 16992, 120191),
        "val": Size(3805, 1500, 10758),
        "testA": Size(1975, 750, 5726),
        "testB": Size(1798, 750, 4889),
    },
    "refcocog_umd": {
        "train": Size(42226, 21899, 80512),
        "val": Size(2573, 1300, 4896),
        "test": Size(5023, 2600, 9602),
    },
    "refcocog_google": {"train": Size(44822, 24698, None), "val": Size(5000, 4650, None)},
    "grefcoco_unc": {
        "train": Size(None, 16994, None),
        "val": Size(None, 1500, None),
        "testA": Size(None, 750, None),
        "testB": Size(None, 750, None),
    },
    "reasonseg": {
        "train": Size(None, 239, None),
        "val": Size(None, 200, None),
        "test": Size(None, 779, None),
    },
    # COCO's 118,287 images of train2017 hold 117,266 with objects, and so on.
    "coco_instances": {
        "train2014": Size(604907, 82081, None),
        "val2014": Size(291875, 40137, None),
        "train2017": Size(860001, 117266, None),
        "val2017": Size(36781, 4952, None),
    },
    "cod10k": {"train": Size(None, 3040, None), "test": Size(None, 2026, None)},
    "camo": {"train": Size(None, 1000, None), "test": Size(None, 250, None)},
    "duts": {"train": Size(None, 10553, None), "test": Size(None, 5019, None)},
    "dut_omron": {"test": Size(None, 5168, None)},
    "hku_is": {"test": Size(None, 4447, None)},
    "ecssd": {"test": Size(None, 1000, None)},
    "dis5k": {
        "train": Size(None, 3000, None),
        "val": Size(None, 470, None),
        **{f"test{number}": Size(None, 500, None) for number in range(1, 5)},
    },
    "fcot": {"train": Size(None, 1500, None)},
    "coco_panoptic": {"train2017": Size(None, 118287, None), "val2017": Size(None, 5000, None)},
}
"""Sizes by data set and split.

Source: TFDS's catalogue of ref_coco for references and images; the papers' sentence counts of
refCOCO, refCOCO+ (unc) and refCOCOg (umd); Liu et al. 2023 (gRefCOCO keeps UNC's images); Lai et
al. 2023 (ReasonSeg); cocodataset.org; the papers of data sets of masks, see `mask_folders`, whose
counts of COD10K are of camouflaged images.
"""


def differences(name: str, found: Mapping[str, Size]) -> list[str]:
    """Returns what differs from the published sizes, a sentence each.

    Args:
      name: of the data set.
      found: sizes by split.
    """
    told = []
    # The other names are those of published data; COCO's format is that of many people's own.
    doubt = "if this is the published COCO: " if name.startswith("coco_") else ""
    for split, size in found.items():
        expected = SIZES.get(name, {}).get(split)
        for what, want, got in zip(Size._fields, expected or (), size, strict=False):
            if want is not None and want != got:
                told.append(
                    f"{doubt}{name} {split}: expected {want} {what} as published, got {got}"
                )
    return told
