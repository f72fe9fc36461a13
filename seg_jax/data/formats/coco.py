"""Reads annotations of COCO: instances.json of polygons and run lengths, and panoptic PNGs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from seg_jax import files, schemas
from seg_jax.data.findings import Findings
from seg_jax.data.formats import annotations, coco_layouts, drawn, segmentation
from seg_jax.data.formats.annotations import (
    AnnotatedImage,
    AnnotatedObject,
    Annotations,
    BadAnnotation,
    Outline,
    PngSegment,
    Polygons,
    Role,
)

ADVICE = "get the file from where it was published"
LEFT_OUT = "annotation left out"
NUMBERED = "annotation without id: numbered by its place"
_OWN_ID = "give each annotation an id of its own"


class CocoImage(schemas.Record, frozen=True):
    """What COCO tells of an image."""

    id: schemas.Id
    file_name: schemas.FileName
    height: schemas.Extent | None = None
    width: schemas.Extent | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width; None: the file's own."""
        return None if self.height is None or self.width is None else (self.height, self.width)


class _Category(schemas.Record, frozen=True):
    id: schemas.Id
    name: schemas.Text | None = None


class _Object(schemas.Record, frozen=True):
    """What an annotation and a segment of panoptic COCO share."""

    category_id: schemas.Id | None = None
    bbox: Any = None
    iscrowd: bool | Annotated[int, Meta(ge=0, le=1)] | None = None


class _Annotation(_Object, frozen=True, kw_only=True):
    image_id: schemas.Id
    id: schemas.Id | None = None
    segmentation: Any = None


class _Segment(_Object, frozen=True, kw_only=True):
    id: Annotated[int, Meta(ge=1, le=2**24 - 1)]


class _PanopticAnnotation(schemas.Record, frozen=True):
    image_id: schemas.Id
    file_name: schemas.FileName
    segments_info: list[Any]


class _File(schemas.Record, frozen=True):
    images: list[Any]
    annotations: list[Any]
    categories: list[Any] | None = None


def read_instances(
    path: Path, *, images: Path | tuple[Path, ...], split: str, boxes: bool = False
) -> Annotations:
    """Returns the images of an instances_*.json; each category's name means all that show it.

    Args:
      path: of the JSON file.
      images: folder of the images, or several where they may lie.
      split: that they are of.
      boxes: whether the box of an annotation without an outline is taken for it.

    Raises:
      ValueError: the file is none of this format.
    """
    read = Annotations([])
    sheet = CocoFile(path, read.findings)
    objects: dict[int, list[AnnotatedObject]] = {number: [] for number in sheet.images}
    seen: set[int] = set()
    for place in range(len(sheet.annotations)):
        try:
            number, one = sheet.read_object(place, boxes=boxes)
            objects[number].append(one)
            if one.id in seen:
                told = f"{sheet.place(place)}: id {one.id}"
                reason = "annotation id listed twice: both are kept"
                read.findings.add(reason, told, advice=_OWN_ID)
            seen.add(one.id)
        except ValueError as error:
            read.findings.add_error(LEFT_OUT, error)
    read.images += _annotated_images(sheet, objects, split=split, images=images)
    return read


def read_panoptic(
    path: Path, *, numbers: Path, images: Path | tuple[Path, ...], split: str
) -> Annotations:
    """Returns the images of a panoptic_*.json, things and stuff alike.

    Args:
      path: of the JSON file.
      numbers: folder of the PNGs whose pixels are segment numbers.
      images: folder of the images, or several where they may lie.
      split: that they are of.

    Raises:
      ValueError: the file is none of this format.
    """
    read = Annotations([])
    sheet = CocoFile(path, read.findings)
    objects: dict[int, list[AnnotatedObject]] = {number: [] for number in sheet.images}
    seen: set[int] = set()
    for place, value in enumerate(sheet.annotations):
        where = sheet.place(place)
        try:
            note = annotations.check_annotation(
                value, _PanopticAnnotation, where=where, findings=read.findings
            )
            number = sheet.image_of(note.image_id, where).id
            if number in seen:
                told = f"{where}: image_id {note.image_id}"
                reason = f"{LEFT_OUT}: its image has one already"
                read.findings.add(reason, told, advice="leave one annotation an image")
                continue
            seen.add(number)
            objects[number] += _segments(sheet, note, numbers / note.file_name, where=where)
        except ValueError as error:
            read.findings.add_error(LEFT_OUT, error)
    read.images += _annotated_images(sheet, objects, split=split, images=images)
    return read


def _segments(
    sheet: CocoFile, note: _PanopticAnnotation, file: Path, *, where: str
) -> Iterator[AnnotatedObject]:
    """Yields the segments of a panoptic annotation; bad ones are told."""
    seen: set[int] = set()
    for inside, segment in annotations.checked_list(
        note.segments_info,
        _Segment,
        where=f"{where}, segments_info",
        left_out="segment left out",
        findings=sheet.findings,
    ):
        if segment.id in seen:
            sheet.findings.add(
                "segment left out: its number is another one's",
                f"{inside}: id {segment.id}",
                advice="give each segment of an image a number of its own",
            )
            continue
        seen.add(segment.id)
        outline = PngSegment(file, segment.id)
        yield sheet.object_of(segment, outline, number=segment.id, where=inside)


class CocoFile:
    """A JSON file of COCO: its images, annotations and categories."""

    def __init__(self, path: Path, findings: Findings):
        self.path, self.findings = path, findings
        file = _read_file(path)
        self.annotations = file.annotations
        """As they were read: `read_object` checks one."""
        self.images: dict[int, CocoImage] = {}
        self._same: dict[int, int] = {}
        """Numbers of images whose file is listed before: those of the first."""
        self._doubtful: set[int] = set()
        """Numbers of several files: nobody can know whose annotations are meant."""
        self._torn: set[int] = set()
        """Numbers of files that are listed with several sizes: nobody can know of which."""
        self._read_images(file.images)
        self.names = self._read_names(file.categories)

    def place(self, place: int) -> str:
        """Returns how messages name an annotation."""
        return f"{self.path}, annotations[{place}]"

    def image_of(self, number: int, where: str) -> CocoImage:
        """Returns the image of an annotation.

        Raises:
          ValueError: it is not listed, or several are.
        """
        image = self.images.get(self._same.get(number, number))
        if image is not None:
            return image
        got = "none"
        if number in self._doubtful:
            got = "several files of this number"
        elif number in self._torn:
            got = "several sizes of its file"
        raise BadAnnotation(
            f"{where}: expected an image with id {number} in images, got {got}; do: correct "
            "image_id or images",
            f"its image is {'not listed' if got == 'none' else 'ambiguous'}",
        )

    def read_object(self, place: int, *, boxes: bool | None = None) -> tuple[int, AnnotatedObject]:
        """Returns an annotation's image, by its number, and its object.

        Args:
          place: of the annotation in the file.
          boxes: whether its box is the outline where it has no other; None: not asked.

        Raises:
          ValueError: the annotation cannot be taken.
        """
        where = self.place(place)
        note = annotations.check_annotation(
            self.annotations[place], _Annotation, where=where, findings=self.findings
        )
        image = self.image_of(note.image_id, where)
        box = None if boxes is None else self._box(note, where, boxes=boxes)
        outline = box or segmentation.read_outline(
            note.segmentation, where=where, findings=self.findings, size=image.size
        )
        number = note.id
        if number is None:
            number = place
            self.findings.add(NUMBERED, where, advice=_OWN_ID)
        return image.id, self.object_of(note, outline, number=number, where=where)

    def _box(self, note: _Annotation, where: str, *, boxes: bool) -> Polygons | None:
        """Returns the box of an annotation that has no other outline; None: it has one, or neither.

        Raises:
          BadAnnotation: boxes are not to be taken for outlines.
        """
        if note.segmentation or note.bbox is None:
            return None
        drawn.check_boxes(where, boxes=boxes)
        found = segmentation.box_px(note.bbox, where=where, findings=self.findings)
        return None if found is None else Polygons((drawn.rectangle(found),))

    def places_by_id(self) -> dict[int, int]:
        """Returns the place of every annotation by its id; ids of different ones are told."""
        places: dict[int, int] = {}
        doubtful: set[int] = set()
        for place, value in enumerate(self.annotations):
            number = annotations.whole_number(value.get("id") if isinstance(value, dict) else None)
            if number is None or self.annotations[places.setdefault(number, place)] == value:
                continue
            doubtful.add(number)
            told = f"{self.place(place)}: id {number}"
            reason = "annotation id of different annotations: none is taken"
            self.findings.add(reason, told, advice=_OWN_ID)
        return {number: place for number, place in places.items() if number not in doubtful}

    def object_of(
        self, note: _Object, outline: Outline, *, number: int, where: str
    ) -> AnnotatedObject:
        """Returns an annotated object with this outline and number."""
        name = self.names.get(note.category_id, "") if note.category_id is not None else ""
        if self.names and note.category_id is None:
            reason = "object without a name: it has no category_id"
            self.findings.add(reason, where, advice="give it one of categories")
        elif self.names and note.category_id not in self.names:
            self.findings.add(
                "object without a name: its category is not listed",
                f"{where}: category_id {note.category_id}",
                advice="list it in categories, or correct category_id",
            )
        return AnnotatedObject(
            id=number,
            outline=outline,
            name=name,
            box_px=segmentation.box_px(note.bbox, where=where, findings=self.findings),
            role=Role.CROWD if note.iscrowd else Role.OBJECT,
        )

    def _read_images(self, listed: list[Any]) -> None:
        """Fills the images; those that nobody can tell apart are left out before any is joined."""
        every = list(self._checked_images(listed))
        first: dict[int, CocoImage] = {}
        sizes: dict[str, tuple[int, int]] = {}
        torn: set[str] = set()
        for _, image in every:
            if first.setdefault(image.id, image) != image:
                self._doubtful.add(image.id)
        for _, image in every:
            if image.id in self._doubtful or image.size is None:
                continue
            if sizes.setdefault(image.file_name, image.size) != image.size:
                torn.add(image.file_name)
        by_file: dict[str, int] = {}
        for told, image in every:
            if image.id in self._doubtful:
                reason = "image left out: its id is listed with different values"
                self.findings.add(reason, told, advice="give each image an id of its own")
            elif image.file_name in torn:
                self._torn.add(image.id)
                reason = "image left out: its file is listed with different sizes"
                self.findings.add(reason, told, advice="correct height and width in images")
            elif image.id in self.images:
                self.findings.add("image listed twice: joined", told)
            elif (other := by_file.setdefault(image.file_name, image.id)) != image.id:
                self._same[image.id] = other
                self.findings.add("image listed under several ids: joined", told)
            else:
                self.images[image.id] = image
                if image.size is None:
                    self.findings.add("image without height and width: its file's count", told)

    def _checked_images(self, listed: list[Any]) -> Iterator[tuple[str, CocoImage]]:
        """Yields the images that can be taken, each after how messages name it."""
        for where, image in annotations.checked_list(
            listed,
            CocoImage,
            where=f"{self.path}, images",
            left_out="image left out",
            findings=self.findings,
        ):
            yield f"{where}: id {image.id}, {schemas.short_repr(image.file_name)}", image

    def _read_names(self, listed: list[Any] | None) -> dict[int, str]:
        """Returns the names of categories; nothing is the name of those that have none."""
        if not listed:
            self.findings.add(
                "no categories are listed: objects have no names",
                str(self.path),
                advice="list them in categories, with id and name",
            )
        names: dict[int, str] = {}
        for where, one in annotations.checked_list(
            listed or (),
            _Category,
            where=f"{self.path}, categories",
            left_out="category left out",
            findings=self.findings,
        ):
            name = " ".join((one.name or "").split())
            told = f"{where}: id {one.id}, {schemas.short_repr(name)}"
            if not name:
                self.findings.add("category without a name", told, advice="name it")
            if names.setdefault(one.id, name) != name:
                names[one.id] = ""
                reason = "category id of several names: its objects have none"
                self.findings.add(reason, told, advice="give each category an id of its own")
        return names


def _read_file(path: Path) -> _File:
    """Returns the lists of a file of COCO."""
    data = files.read_bytes(path, advice=ADVICE)
    data = annotations.parse_json(data, where=str(path), advice=ADVICE)
    if isinstance(data, list):
        raise ValueError(
            f"{path}: expected an object with images, annotations and categories, got a list, as "
            f"results of detectors are; do: {ADVICE}"
        )
    return schemas.check(data, _File, where=str(path), advice=ADVICE)


def _annotated_images(
    sheet: CocoFile,
    objects: dict[int, list[AnnotatedObject]],
    *,
    split: str,
    images: Path | tuple[Path, ...],
) -> Iterator[AnnotatedImage]:
    """Yields the images that have objects; expressions are their names, each meaning all of it.

    The others are told.
    """
    folders = (images,) if isinstance(images, Path) else images
    for number, some in objects.items():
        if not some:
            name = schemas.short_repr(sheet.images[number].file_name)
            told = f"{sheet.path}: image {number}, {name}"
            sheet.findings.add(annotations.NONE_TAKEN, told)
        if some:
            image = sheet.images[number]
            yield AnnotatedImage(
                key=f"{split}/{image.file_name}",
                split=split,
                image=coco_layouts.find_image(image.file_name, folders),
                image_id=number,
                objects=tuple(some),
                expressions=annotations.names_as_expressions(some),
                size=image.size,
            )
