"""What is built, of what, and which reader reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from seg_jax.data.formats import (
    annotations,
    coco,
    coco_layouts,
    conversations,
    cvat,
    fcot,
    folder,
    huggingface,
    label_studio,
    labelme,
    mask_folders,
    reasonseg,
    refer,
    voc,
    yolo,
)
from seg_jax.data.formats.annotations import Annotations
from seg_jax.data.formats.conventions import Numbers

Name = Literal[
    "refcoco_unc",
    "refcoco_google",
    "refcocoplus_unc",
    "refcocog_umd",
    "refcocog_google",
    "refclef_unc",
    "refclef_berkeley",
    "grefcoco_unc",
    "reasonseg",
    "coco_instances",
    "coco_panoptic",
    "cod10k",
    "camo",
    "duts",
    "dut_omron",
    "hku_is",
    "ecssd",
    "dis5k",
    "fcot",
    "yolo",
    "labelme",
    "label_studio",
    "cvat",
    "voc",
    "conversations",
    "huggingface",
    "folder",
]
"""The formats that are read; the refer family by the names that TFDS gives them."""

DRAWN: dict[str, Callable[..., Annotations]] = {
    "yolo": yolo.read,
    "labelme": labelme.read,
    "label_studio": label_studio.read,
    "cvat": cvat.read,
}
"""Formats of labelling tools, in which objects may be boxes as well as outlines."""
TALKED = ("conversations", "huggingface")
"""Formats in which boxes, points and polygons stand in texts."""
UPRIGHT = (*DRAWN, *TALKED, "voc", "coco_instances", "coco_panoptic")
"""Formats that do not tell themselves whether outlines are of images as EXIF turns them."""
PLACES = {
    "coco": (
        "images/coco_2014/train2014",
        "images/mscoco/images/train2014",
        "images/train2014",
        "coco_train2014",
        "train2014",
    ),
    "saiapr": ("images/saiapr_tc-12", "saiapr_tc-12"),
}
"""Where images lie in common folders; the first that exists is taken."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is built, from what, and where."""

    name: Name
    source: Path
    out: Path
    images: Path | None = None
    """Folder of the images; None: where others keep them below the source, or for data of your own
    where the lines are."""
    masks: Path | None = None
    """Folder of the masks, for data sets of masks in one split (dut_omron, hku_is, ecssd); None:
    where others keep them below the source."""
    splits: tuple[str, ...] = ()
    """Splits to build; all if empty."""
    paper: bool = False
    """Whether images in train stay that a val or test split of the family holds."""
    family: Path | None = None
    """Folder of refcoco, refcoco+, ..; None: the source, for data sets of the family."""
    held_out: tuple[str, ...] = ()
    """Editions whose val and test images are removed; all that are there if empty."""
    records: int = 1024
    """Number of images in a file."""
    boxes: bool = False
    """Whether boxes are taken for outlines, and points in conversations for the pixels there; else
    they are left out, and told."""
    numbers: Numbers = Numbers()
    """What numbers in conversations mean."""
    questions: tuple[str, ...] = ()
    """Forms of questions in conversations, with {} for what is asked about, as 'Where is {}?'; what
    is in no such form is taken whole, and told."""
    upright: bool | None = None
    """Whether outlines are of images as their cameras' notes (EXIF) turn them; None: by the size
    that the annotations tell, or as seg_jax/data/build/README.md says of the format."""
    strict: bool = False
    """Whether the build ends at the first thing that would be left out or changed."""


_OPTIONS = {
    "boxes": (*DRAWN, *TALKED, "coco_instances"),
    "numbers": TALKED,
    "questions": TALKED,
    "upright": UPRIGHT,
}
"""Options of reading, and the formats that they are for."""


def chosen_options(plan: Plan) -> dict[str, Any]:
    """Returns the options of reading that are not left as they are, as JSON has them."""
    defaults = {field.name: field.default for field in dataclasses.fields(Plan)}
    values = {name: getattr(plan, name) for name in _OPTIONS}
    return {
        name: dataclasses.asdict(value) if isinstance(value, Numbers) else value
        for name, value in values.items()
        if value != defaults[name]
    }


def check_options(plan: Plan) -> None:
    """Raises ValueError for an option of reading that the format does not have."""
    for name, value in chosen_options(plan).items():
        if plan.name not in (known := _OPTIONS[name]):
            raise ValueError(
                f"{name}: expected one of {', '.join(known)} beside it, got {value} for "
                f"{plan.name}; do: leave it out"
            )


def read(plan: Plan) -> Annotations:
    """Returns the annotated images of a data set.

    Raises:
      ValueError: a file is missing, or none of its format; nothing in it is ever run.
      OSError: a file cannot be read.
    """
    found = _read(plan)
    if plan.upright is not None:
        turned = {"upright": plan.upright}
        found.images = [dataclasses.replace(one, **turned) for one in found.images]
    return found


def _read(plan: Plan) -> Annotations:
    source = plan.source
    if not source.is_dir():
        raise ValueError(
            f"{source}: expected the folder of the data set, got no folder; do: check --source"
        )
    if plan.name in refer.FAMILY:
        kind = refer.FAMILY[plan.name].images
        return refer.read(source, plan.name, _images_folder(plan, PLACES[kind]))
    if plan.name == "reasonseg":
        return reasonseg.read(source)
    if plan.name == "folder":
        return folder.read(source, images=plan.images)
    if plan.name == "fcot":
        return fcot.read(source)
    if plan.name in DRAWN:
        return DRAWN[plan.name](source, images=plan.images, boxes=plan.boxes)
    if plan.name in TALKED:
        rules = conversations.Rules(
            numbers=plan.numbers,
            questions=plan.questions,
            boxes=plan.boxes,
            upright=plan.upright,
        )
        if plan.name == "huggingface":
            return huggingface.read(source, rules=rules)
        return conversations.read(source, images=plan.images, rules=rules)
    if plan.name == "voc":
        return voc.read(source, images=plan.images)
    if plan.name in mask_folders.LAYOUTS:
        return mask_folders.read(
            source, plan.name, images=plan.images, masks=plan.masks, splits=plan.splits
        )
    return _read_coco(plan)


def _read_coco(plan: Plan) -> Annotations:
    """Returns the images of COCO's instances or panoptic segments."""
    source, kind = plan.source, plan.name.removeprefix("coco_")
    sheets = coco_layouts.sheets(source, kind, images=plan.images)
    whole = Annotations([])
    known = {one.split for one in sheets}
    if unknown := sorted({*plan.splits} - known):
        raise ValueError(
            f"splits: expected some of {', '.join(sorted(known))}, got {', '.join(unknown)}"
            "; do: choose --splits among them"
        )
    for file, split, images in sheets:
        if plan.splits and split not in plan.splits:
            continue
        if kind == "instances":
            one = coco.read_instances(file, images=images, split=split, boxes=plan.boxes)
        else:
            numbers = [source / "annotations" / file.stem, source / file.stem]
            numbers = next((place for place in numbers if place.is_dir()), numbers[0])
            one = coco.read_panoptic(file, numbers=numbers, images=images, split=split)
        if not one.images:
            one.findings.add(annotations.NO_IMAGES, str(file), advice=annotations.NO_IMAGES_ADVICE)
        whole.images += one.images
        whole.findings.merge(one.findings)
        whole.refs |= one.refs
    return whole


def _images_folder(plan: Plan, places: Sequence[str]) -> Path:
    if plan.images is not None:
        return plan.images
    for place in places:
        if (plan.source / place).is_dir():
            return plan.source / place
    raise ValueError(
        f"{plan.source}: expected the images in one of {', '.join(places)}, got no such "
        "folder; do: --images DIR"
    )
