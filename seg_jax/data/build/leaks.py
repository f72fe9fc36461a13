"""Removes images of val and test splits of the refer family from train splits."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

from seg_jax.data.findings import Findings
from seg_jax.data.formats import refer
from seg_jax.data.formats.annotations import AnnotatedImage

NONE_SHARED = "does not apply: no train split shares images with RefCOCO"
"""What a report says of a data set that the filter has nothing to do with."""


def remove_leaks(
    splits: dict[str, list[AnnotatedImage]],
    *,
    name: str,
    family: Path | None,
    editions: tuple[str, ...],
    keep: bool,
    findings: Findings,
) -> dict[str, Any]:
    """Removes leaked images from the train splits in place, and returns a report.

    Args:
      splits: images of the data set by split.
      name: name of the data set.
      family: folder of refcoco, refcoco+, ..; None: it is not known where they are.
      editions: editions whose val and test images are removed; all that exist if empty.
      keep: whether the images stay and are only counted.
      findings: are told of references of other editions that cannot be read.
    """
    trains = [split for split in splits if split.startswith("train")]
    of_family = name in refer.FAMILY or name.startswith("coco_")
    if not of_family or not trains:
        return {"filter": NONE_SHARED}
    if family is None:
        return {"filter": "off: --family DIR removes val and test images of refcoco, .. in it"}
    kind = refer.FAMILY[name].images if name in refer.FAMILY else "coco"
    held_out = refer.held_out_images(family, kind, editions or None)
    findings.merge(held_out.findings)
    by: collections.Counter[str] = collections.Counter()
    counts: dict[str, Any] = {}
    for split in trains:
        leaked = [image for image in splits[split] if image.image_id in held_out.images]
        for image in leaked:
            by.update(held_out.images[image.image_id])
        counts[split] = {
            "images": len(leaked),
            "of": len(splits[split]),
            "expressions": sum(len(image.expressions) for image in leaked),
        }
        if not keep:
            keys = {image.key for image in leaked}
            splits[split] = [image for image in splits[split] if image.key not in keys]
    return {
        "filter": "kept, as the paper does" if keep else "removed",
        "train": counts,
        "by": dict(sorted(by.items())),
        "looked_through": held_out.names,
        "not_there": held_out.missing,
    }
