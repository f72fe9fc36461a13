"""Reads data sets of foreground objects: a folder of images, and one of grey masks beside it.

COD10K, CAMO, DUTS, DUT-OMRON, HKU-IS, ECSSD and DIS5K are published so. An image and its mask have
the same name but for its ending. Nothing is read here but names: masks are read when records are
made, see `annotations.GreyMask`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from seg_jax.data.findings import Findings
from seg_jax.data.formats import foreign
from seg_jax.data.formats.annotations import (
    AnnotatedImage,
    AnnotatedObject,
    Annotations,
    Expression,
    GreyMask,
)

_IMAGE = re.compile(r"[^.].*\.(jpe?g|png|webp|bmp|gif|tiff?)", re.IGNORECASE)
"""Names of images; those that a file manager leaves, as ._a.jpg, are none."""


class _Pair(NamedTuple):
    """Where the images and the masks of a split may lie below the source."""

    images: tuple[str, ...]
    masks: tuple[str, ...]


class Layout(NamedTuple):
    """How a data set is published."""

    splits: Mapping[str, _Pair]
    name: str
    """What every object is called."""
    phrase: str
    """The expression that means all that a mask holds."""
    inside: tuple[str, ...] = ()
    """Folders that may lie between the source and those of the splits."""
    left_out: str = ""
    """Part of the names of images that do not belong to it."""
    pooled: bool = False
    """Whether the masks of all splits may lie in one folder."""


def _dis(split: str) -> _Pair:
    return _Pair((f"DIS-{split}/im",), (f"DIS-{split}/gt",))


def _camo(split: str) -> _Pair:
    return _Pair((f"Images/{split}", split), (f"GT/{split}", "GT"))


_CAMOUFLAGED = "camouflaged object", "all camouflaged objects"
_SALIENT = "salient object", "all salient objects"

LAYOUTS: dict[str, Layout] = {
    "cod10k": Layout(
        {
            "train": _Pair(("Train/Image",), ("Train/GT_Object",)),
            "test": _Pair(("Test/Image",), ("Test/GT_Object",)),
        },
        *_CAMOUFLAGED,
        inside=("COD10K-v3", "COD10K"),
        left_out="NonCAM",
    ),
    "camo": Layout(
        {"train": _camo("Train"), "test": _camo("Test")},
        *_CAMOUFLAGED,
        inside=("CAMO-V.1.0-CVIU2019", "CAMO"),
        pooled=True,
    ),
    "duts": Layout(
        {
            split: _Pair(
                (f"DUTS-{short}/DUTS-{short}-Image", f"DUTS-{short}-Image"),
                (f"DUTS-{short}/DUTS-{short}-Mask", f"DUTS-{short}-Mask"),
            )
            for split, short in (("train", "TR"), ("test", "TE"))
        },
        *_SALIENT,
        inside=("DUTS",),
    ),
    "dut_omron": Layout(
        {"test": _Pair(("DUT-OMRON-image",), ("pixelwiseGT-new-PNG",))},
        *_SALIENT,
        inside=("DUT-OMRON",),
    ),
    "hku_is": Layout({"test": _Pair(("imgs",), ("gt",))}, *_SALIENT, inside=("HKU-IS",)),
    "ecssd": Layout(
        {"test": _Pair(("images",), ("ground_truth_mask",))}, *_SALIENT, inside=("ECSSD",)
    ),
    "dis5k": Layout(
        {
            "train": _dis("TR"),
            "val": _dis("VD"),
            **{f"test{number}": _dis(f"TE{number}") for number in range(1, 5)},
        },
        "main object",
        "all main objects",
        inside=("DIS5K",),
    ),
}
"""Layouts by name.

Source: Fan et al. 2020 (COD10K), Le et al. 2019 (CAMO), Wang et al. 2017 (DUTS), Yang et al. 2013
(DUT-OMRON), Li and Yu 2015 (HKU-IS), Shi et al. 2016 (ECSSD), Qin et al. 2022 (DIS5K), and the
archives that they offer.
"""


def read(
    source: Path,
    name: str,
    *,
    images: Path | None = None,
    masks: Path | None = None,
    splits: Sequence[str] = (),
) -> Annotations:
    """Returns the images of a data set that have masks.

    Args:
      source: folder of the data set.
      name: of the data set, in `LAYOUTS`.
      images: folder of the images, for data sets of one split; None: where others keep them.
      masks: folder of the masks, alike.
      splits: to read; all that are there if empty.

    Raises:
      ValueError: a split that is asked for has no folder of images or of masks.
    """
    for option, folder in (("images", images), ("masks", masks)):
        if folder is not None and not folder.is_dir():
            raise ValueError(
                f"{folder}: expected a folder of {option}, got none; do: check --{option}"
            )
    layout, found = LAYOUTS[name], Annotations([])
    roots = [source, *(source / one for one in layout.inside)]
    wanted = [one for one in layout.splits if one in splits or not splits]
    for split in wanted:
        pair = layout.splits[split]
        pictures, greys = images or _find(roots, pair.images), masks or _find(roots, pair.masks)
        if pictures and greys:
            found.images += _images(layout, split, (pictures, greys), met=found.findings)
        elif splits or len(layout.splits) == 1:
            raise _missing(source, pair, images=pictures is None)
        elif pictures or (greys and not layout.pooled):
            kind, places = ("masks", pair.masks) if pictures else ("images", pair.images)
            found.findings.add(
                f"split left out: it has no folder of {kind}",
                f"{split}: {pictures or greys}, but none of {', '.join(places)}",
                advice=f"fetch the {kind}, or choose other --splits",
            )
    if not found.images and not found.findings.counts:
        raise _missing(source, layout.splits[wanted[0]], images=True)
    return found


def _find(roots: Sequence[Path], places: Sequence[str]) -> Path | None:
    """Returns the first of some folders that exists."""
    every = (root / place for place in places for root in roots)
    return next((folder for folder in every if folder.is_dir()), None)


def _missing(source: Path, pair: _Pair, *, images: bool) -> ValueError:
    what, advice = foreign.found_instead(source)
    wanted = " or ".join(pair.images if images else pair.masks)
    kind = "images" if images else "masks"
    return ValueError(
        f"{source}: expected {kind} in {wanted}, got {what}; do: give the folder that holds it as "
        f"--source, or {advice}"
    )


def _images(
    layout: Layout, split: str, folders: tuple[Path, Path], *, met: Findings
) -> Iterator[AnnotatedImage]:
    """Yields the images of a split whose masks are there; the others are told."""
    pictures, greys = (_by_stem(folder, layout, met) for folder in folders)
    if not layout.pooled:  # Else masks of other splits lie there too.
        for stem in sorted({*greys} - {*pictures}):
            met.add("mask left out: it has no image", str(greys[stem]))
    for place, (stem, file) in enumerate(sorted(pictures.items())):
        if stem not in greys:
            met.add("image left out: it has no mask", f"{split}/{file.name}: none in {folders[1]}")
            continue
        yield AnnotatedImage(
            key=f"{split}/{file.name}",
            split=split,
            image=file,
            image_id=place,
            objects=(AnnotatedObject(0, GreyMask(greys[stem]), name=layout.name),),
            expressions=(Expression(0, layout.phrase, (0,)),),
        )


def _by_stem(folder: Path, layout: Layout, met: Findings) -> dict[str, Path]:
    """Returns the images of a folder by their names without endings."""
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if not _IMAGE.fullmatch(file.name):
            continue
        if layout.left_out and layout.left_out in file.name:
            continue
        if (first := found.setdefault(file.stem, file)) is not file:
            met.add("file left out: another one has its name", f"{file} beside {first.name}")
    return found
