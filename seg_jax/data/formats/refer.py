"""Reads the refer family: refs(*).p or grefs(*).json beside an instances.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from msgspec import Meta

from seg_jax import files, safe_pickle, schemas
from seg_jax.data.findings import Findings
from seg_jax.data.formats import annotations, foreign
from seg_jax.data.formats.annotations import (
    AnnotatedImage,
    AnnotatedObject,
    Annotations,
    BadAnnotation,
    Expression,
    Role,
)
from seg_jax.data.formats.coco import ADVICE, CocoFile

LEFT_OUT = "reference left out"


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


MOST_SENTENCES = 10_000_000
"""Sentences of an edition, which has no more than bytes: some of a pickle hold one many times."""


class _Split(schemas.Record, frozen=True):
    """What a reference must tell for the filter of leaks."""

    split: Annotated[str, Meta(pattern=r"^\w{1,100}\Z")]
    image_id: schemas.Id


class _Reference(_Split, frozen=True):
    ref_id: schemas.Id
    ann_id: schemas.Id | Annotated[list[schemas.Id], Meta(max_length=100_000)]
    sentences: Annotated[list[Any], Meta(max_length=1000)]
    no_target: Any = None


class _Sentence(schemas.Record, frozen=True):
    sent_id: schemas.Id
    sent: schemas.Text


class _Placed(NamedTuple):
    """A reference with its place in the file, for messages."""

    where: str
    value: _Reference


def references(source: Path, edition: Edition) -> list[Any]:
    """Returns the references of an edition as they are.

    Raises:
      ValueError: the file is missing, or no list; nothing in it is ever run.
    """
    path = source / edition.file
    if not path.is_file():
        what, advice = foreign.found_instead(source)
        raise ValueError(
            f"{path}: expected the references of {edition.folder} ({edition.by}), got no such file "
            f"but {what}; do: give the folder that holds refcoco, refcoco+, .. as --source, or "
            f"{advice}"
        )
    if path.suffix == ".json":
        data = files.read_bytes(path, advice=ADVICE)
        found = annotations.parse_json(data, where=str(path), advice=ADVICE)
    else:
        found = safe_pickle.load(path)
    if not isinstance(found, list):
        raise ValueError(
            f"{path}: expected a list of references, got {schemas.short_repr(found)}; do: {ADVICE}"
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
    found = Annotations([])
    sheet = CocoFile(source / edition.folder / "instances.json", found.findings)
    places = sheet.places_by_id()
    grouped = _references_by_image(source, edition, sheet=sheet, found=found)
    for (split, number), refs in sorted(grouped.items()):
        objects, told = _objects_and_expressions(refs, places=places, sheet=sheet)
        if not told:
            continue
        image = sheet.images[number]
        found.images.append(
            AnnotatedImage(
                key=f"{split}/{image.file_name}",
                split=split,
                image=_image_path(images, image.file_name, number=number, edition=edition),
                image_id=number,
                objects=objects,
                expressions=told,
                size=image.size,
            )
        )
    return found


def _references_by_image(
    source: Path, edition: Edition, *, sheet: CocoFile, found: Annotations
) -> dict[tuple[str, int], list[_Placed]]:
    """Returns the references by split and number of the image; bad ones are told."""
    grouped: dict[tuple[str, int], list[_Placed]] = {}
    sentences, seen = 0, set[int]()
    every = references(source, edition)
    most = min(MOST_SENTENCES, (source / edition.file).stat().st_size)
    for place, value in enumerate(every):
        where = f"{source / edition.file}, reference {place}"
        try:
            ref = annotations.check_annotation(
                value, _Reference, where=where, findings=found.findings
            )
            found.refs[ref.split] = found.refs.get(ref.split, 0) + 1
            number = sheet.image_of(ref.image_id, where).id
        except ValueError as error:
            found.findings.add_error(LEFT_OUT, error)
            continue
        sentences += len(ref.sentences)
        if sentences > most:
            raise ValueError(
                f"{where}: expected at most {most} sentences in all, got more; do: {ADVICE}"
            )
        if not ref.sentences:
            found.findings.add(f"{LEFT_OUT}: it has no sentences", where, advice=ADVICE)
            continue
        if ref.ref_id in seen:
            told = f"{where}: ref_id {ref.ref_id}"
            found.findings.add("ref_id listed twice: both are kept", told, advice=ADVICE)
        seen.add(ref.ref_id)
        grouped.setdefault((ref.split, number), []).append(_Placed(where, ref))
    return grouped


def _objects_and_expressions(
    refs: list[_Placed], *, places: dict[int, int], sheet: CocoFile
) -> tuple[tuple[AnnotatedObject, ...], tuple[Expression, ...]]:
    """Returns the objects that references of an image mean, and their expressions.

    Args:
      refs: of the image.
      places: of annotations in `sheet` by their ids.
      sheet: the annotations; its findings are told of what is left out.
    """
    known: dict[int, int] = {}
    objects: list[AnnotatedObject] = []
    told: list[Expression] = []
    seen: set[int] = set()
    for where, ref in sorted(refs, key=lambda ref: ref.value.ref_id):
        where = f"{where}, ref_id {ref.ref_id}"
        meant = ref.ann_id if isinstance(ref.ann_id, list) else [ref.ann_id]
        # gRefCOCO's way to say that there is no such thing in the image.
        meant = [] if meant == [-1] else meant
        if ref.no_target and meant:
            got = f"{where}: no_target beside ann_id {schemas.short_repr(ref.ann_id)}"
            sheet.findings.add(f"{LEFT_OUT}: it means something and nothing", got, advice=ADVICE)
            continue
        try:
            for one in meant:
                if one not in known:
                    objects.append(_object(one, ref, where=where, places=places, sheet=sheet))
                    known[one] = len(objects) - 1
        except ValueError as error:
            sheet.findings.add_error(LEFT_OUT, error)
            continue
        which = tuple(dict.fromkeys(known[one] for one in meant))
        if isinstance(ref.ann_id, list):
            # As gRefCOCO's own loader: regions of many objects are not told apart, and not meant.
            every = len(which)
            which = tuple(place for place in which if objects[place].role is Role.OBJECT)
            if 0 < len(which) < every:
                sheet.findings.add("reference kept without the crowds that it means", where)
        if meant and not which:
            sheet.findings.add(f"{LEFT_OUT}: it means crowds only", where)
            continue
        told += _expressions(ref, which, where=where, findings=sheet.findings, seen=seen)
    return tuple(objects), tuple(told)


def _object(
    number: int, ref: _Reference, *, where: str, places: dict[int, int], sheet: CocoFile
) -> AnnotatedObject:
    """Returns an object that a reference means.

    Raises:
      ValueError: it is not listed, cannot be taken, or is of another image.
    """
    if number not in places:
        raise BadAnnotation(
            f"{where}: expected an annotation with id {number}, got none in {sheet.path}"
            f"; do: {ADVICE}",
            "its objects are not listed",
        )
    image, found = sheet.read_object(places[number])
    if image != sheet.image_of(ref.image_id, where).id:
        raise BadAnnotation(
            f"{where}: expected objects of the image {ref.image_id}, got annotation {number} of "
            f"image {image}; do: {ADVICE}",
            "its objects are of another image",
        )
    return found


def _expressions(
    ref: _Reference, which: tuple[int, ...], *, where: str, findings: Findings, seen: set[int]
) -> Iterator[Expression]:
    """Yields the sentences of a reference; bad ones are told, and ids that were `seen`."""
    for inside, one in annotations.checked_list(
        ref.sentences,
        _Sentence,
        where=f"{where}, sentences",
        left_out="expression left out",
        findings=findings,
    ):
        if one.sent_id in seen:
            told = f"{inside}: sent_id {one.sent_id}"
            findings.add("sent_id listed twice in an image: both are kept", told, advice=ADVICE)
        seen.add(one.sent_id)
        yield Expression(id=one.sent_id, text=one.sent, objects=which, ref=ref.ref_id)


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
    found = HeldOut({}, [], [], Findings())
    for name, edition in FAMILY.items():
        if edition.images != kind or (names is not None and name not in names):
            continue
        if names is None and not (source / edition.file).is_file():
            found.missing.append(name)
            continue
        found.names.append(name)
        for place, value in enumerate(references(source, edition)):
            where = f"{source / edition.file}, reference {place}"
            try:
                ref = annotations.check_annotation(
                    value, _Split, where=where, findings=found.findings
                )
            except ValueError as error:
                found.findings.add_error("reference left out of the filter of leaks", error)
                continue
            if ref.split != "train":
                found.images.setdefault(ref.image_id, set()).add(f"{name}/{ref.split}")
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
    findings: Findings
    """References that cannot be read: their images are not known."""
