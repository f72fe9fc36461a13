"""Reads the refer family: refs(*).p or grefs(*).json beside an instances.json."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from seg_jax import files
from seg_jax.data.findings import Findings
from seg_jax.data.formats import annotations, safe_pickle
from seg_jax.data.formats.annotations import (
    AnnotatedImage,
    AnnotatedObject,
    Annotations,
    Expression,
    Role,
)
from seg_jax.data.formats.coco import CocoFile


@dataclasses.dataclass(frozen=True)
class Edition:
    """A data set of the family with one partition into splits."""

    folder: str
    by: str
    """Who cut it into splits."""
    images: str = "coco"

    @property
    def file(self) -> str:
        """Name of the references, relative to the family's folder."""
        if self.folder == "grefcoco":
            return f"{self.folder}/grefs({self.by}).json"
        return f"{self.folder}/refs({self.by}).p"


FAMILY = {
    "refcoco_unc": Edition("refcoco", "unc"),
    "refcoco_google": Edition("refcoco", "google"),
    "refcocoplus_unc": Edition("refcoco+", "unc"),
    "refcocog_umd": Edition("refcocog", "umd"),
    "refcocog_google": Edition("refcocog", "google"),
    "grefcoco_unc": Edition("grefcoco", "unc"),
    "refclef_unc": Edition("refclef", "unc", "saiapr"),
    "refclef_berkeley": Edition("refclef", "berkeley", "saiapr"),
}
"""The editions by the names that TFDS gives them, where it knows them."""


def references(source: Path, edition: Edition) -> list[dict[str, Any]]:
    """Returns the references of an edition as they are.

    Raises:
      ValueError: the file is missing, or none of this format; nothing in it is ever run.
    """
    path = source / edition.file
    if not path.is_file():
        raise ValueError(
            f"{path}: expected the references of {edition.folder} ({edition.by}), got no such "
            "file; do: give the folder that holds refcoco, refcoco+, .. as --source"
        )
    found = (
        files.read_json(path, advice="get the file from where it was published")
        if path.suffix == ".json"
        else safe_pickle.load(path)
    )
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(
            f"{path}: expected a list of references, got {type(found).__name__}"
            "; do: get the file from where it was published"
        )
    return found


def read(source: Path, name: str, images: Path) -> Annotations:
    """Returns the images of an edition, split by split, in the order of their numbers.

    Args:
      source: folder that holds refcoco, refcoco+, ..
      name: of the edition.
      images: folder of the images.

    Raises:
      ValueError: a file is missing, or none of this format.
    """
    edition = FAMILY[name]
    sheet = CocoFile(source / edition.folder / "instances.json")
    notes = {note["id"]: note for note in sheet.notes if isinstance(note.get("id"), int)}
    found = Annotations([])
    grouped: dict[tuple[str, int], list[dict]] = {}
    for place, ref in enumerate(references(source, edition)):
        where = f"{source / edition.file}, reference {place}"
        split = annotations.field(ref, "split", str, where=where)
        number = annotations.field(ref, "image_id", int, where=where)
        found.refs[split] = found.refs.get(split, 0) + 1
        if number not in sheet.images:
            found.findings.add("reference left out: its image is not listed", f"{where}: {number}")
            continue
        grouped.setdefault((split, number), []).append(ref)
    for (split, number), refs in sorted(grouped.items()):
        things, told = _objects_and_expressions(
            refs, notes=notes, sheet=sheet, findings=found.findings, file=str(source / edition.file)
        )
        if not told:
            continue
        file = sheet.file_name(number)
        found.images.append(
            AnnotatedImage(
                key=f"{split}/{Path(file).stem}",
                split=split,
                image=_image_path(images, file, number=number, edition=edition),
                image_id=number,
                objects=things,
                expressions=told,
                size=sheet.size(number),
            )
        )
    return found


def _objects_and_expressions(
    refs: list[dict], *, notes: dict[int, dict], sheet: CocoFile, findings: Findings, file: str
) -> tuple[tuple[AnnotatedObject, ...], tuple[Expression, ...]]:
    """Returns the objects that references of an image mean, and their expressions."""
    places: dict[int, int] = {}
    things: list[AnnotatedObject] = []
    told: list[Expression] = []
    for ref in sorted(refs, key=lambda ref: ref.get("ref_id", -1)):
        number = annotations.field(ref, "ref_id", int, where=file)
        where = f"{file}, ref_id {number}"
        meant = annotations.field(ref, "ann_id", (int, list), where=where)
        meant = meant if isinstance(meant, list) else [meant]
        # gRefCOCO's way to say that there is no such thing in the image.
        meant = [] if meant == [-1] else meant
        if missing := [one for one in meant if one not in notes]:
            findings.add("reference left out: its objects are not listed", f"{where}: {missing}")
            continue
        which = []
        for one in meant:
            if one not in places:
                places[one] = len(things)
                things.append(sheet.object_of(notes[one]))
            which.append(places[one])
        # As gRefCOCO's own loader: regions of many objects are not told apart, and not meant.
        objects = tuple(place for place in which if things[place].role is Role.OBJECT)
        which = objects if isinstance(ref["ann_id"], list) else tuple(which)
        if meant and not which:
            findings.add("reference left out: it means crowds only", where)
            continue
        for sentence in annotations.field(ref, "sentences", list, where=where):
            told.append(
                Expression(
                    id=annotations.field(sentence, "sent_id", int, where=where),
                    text=annotations.field(sentence, "sent", str, where=where),
                    objects=which,
                    ref=number,
                )
            )
    return tuple(things), tuple(told)


def _image_path(images: Path, file: str, *, number: int, edition: Edition) -> Path:
    """Returns where an image lies: SAIAPR TC-12 is unpacked flat or in its forty folders."""
    path = images / file
    if edition.images == "saiapr" and not path.exists():
        inner = images / f"{number // 1000:02d}" / "images" / f"{number}.jpg"
        return inner if inner.exists() else path
    return path


def held_out_images(source: Path, kind: str, names: tuple[str, ...] | None) -> HeldOut:
    """Returns the images of the val and test splits of the family.

    Args:
      source: folder that holds refcoco, refcoco+, ..
      kind: "coco" or "saiapr", whose images are asked for.
      names: of editions; None: every one whose references are there.

    Raises:
      ValueError: no edition is there, a named one is missing or none of this kind, or a file is
        none of this format.
    """
    known = [name for name, edition in FAMILY.items() if edition.images == kind]
    if unknown := sorted({*(names or ())} - {*known}):
        raise ValueError(
            f"held_out: expected some of {', '.join(known)}, got {', '.join(unknown)}; do: choose "
            "editions with the same images"
        )
    found = HeldOut({}, [], [])
    for name, edition in FAMILY.items():
        if edition.images != kind or (names is not None and name not in names):
            continue
        if names is None and not (source / edition.file).is_file():
            found.missing.append(name)
            continue
        found.names.append(name)
        for ref in references(source, edition):
            split = annotations.field(ref, "split", str, where=edition.file)
            if split != "train":
                number = annotations.field(ref, "image_id", int, where=edition.file)
                found.images.setdefault(number, set()).add(f"{name}/{split}")
    if not found.names:
        raise ValueError(
            f"{source}: expected the references of one of {', '.join(known)}, got none; do: give "
            "the folder that holds refcoco, refcoco+, .. as --family"
        )
    return found


@dataclasses.dataclass
class HeldOut:
    """Images that no model may have been trained on before it is tested."""

    images: dict[int, set[str]]
    """Splits that hold each image, by its number."""
    names: list[str]
    """Editions that were looked through."""
    missing: list[str]
    """Editions whose references were not there."""
