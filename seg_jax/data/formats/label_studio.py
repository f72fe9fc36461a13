"""Reads exports of Label Studio as JSON: polygons, brushes, ellipses and boxes of tasks.

Coordinates are hundredths of the image. In a task of several images a region is of that which its
`to_name` tells. Of several annotations of a task the first that was not cancelled is taken. Texts
that were written for a region are expressions that mean it. JSON-MIN is read too, where labels
stand beside the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from msgspec import Meta

from seg_jax import files, schemas
from seg_jax.data import image_files
from seg_jax.data.findings import Findings
from seg_jax.data.formats import annotations, drawn, foreign, picture_paths, segmentation
from seg_jax.data.formats.annotations import Annotations, BadAnnotation, Outline, Polygons
from seg_jax.data.formats.drawn import Drawing, Region

ADVICE = "export the project anew as JSON"
MOST_BYTES = 1 << 30
OPAQUE = 128
"""Alpha of a brushed pixel from which on it is of the object."""
_Percent = Annotated[float, Meta(ge=-1e6, le=1e6)]
_KINDS = (
    "polygonlabels",
    "brushlabels",
    "rectanglelabels",
    "ellipselabels",
    "keypointlabels",
    "labels",
)
_PLAIN = ("polygon", "brush", "rectangle", "ellipse", "keypoint")
"""Types of regions that have no label."""


class _Value(schemas.Record, frozen=True, kw_only=True):
    points: Annotated[tuple[tuple[_Percent, _Percent], ...], Meta(max_length=10**6)] | None = None
    closed: bool | None = None
    x: _Percent | None = None
    y: _Percent | None = None
    width: _Percent | None = None
    height: _Percent | None = None
    radiusX: _Percent | None = None
    radiusY: _Percent | None = None
    rotation: _Percent | None = None
    rle: Annotated[list[Annotated[int, Meta(ge=0, le=255)]], Meta(max_length=2**26)] | None = None


class _Result(schemas.Record, frozen=True, kw_only=True):
    original_width: schemas.Extent
    original_height: schemas.Extent
    image_rotation: float | None = None
    value: Any


class _Shape(NamedTuple):
    """A region of a task, for messages and in pixels."""

    where: str
    value: _Value
    size: tuple[int, int]
    boxes: bool
    met: Findings


def read(source: Path, *, images: Path | None = None, boxes: bool = False) -> Annotations:
    """Returns the images of the tasks of every JSON file in a folder.

    A file named train, val, .. is of that split, as are those in folders named so; others of train.

    Args:
      source: the folder.
      images: folder of the images; None: the source, and images or upload in it.
      boxes: whether boxes are taken for outlines.

    Raises:
      ValueError: there is no such file.
    """
    found, any_ = Annotations([]), False
    top = images or source
    folders = [top, top / "images", top / "upload"]
    for path in picture_paths.files_below(source, ending=r".+\.json", met=found.findings):
        try:
            tasks = _tasks(path)
        except ValueError as error:
            found.findings.add_error("file left out", error)
            continue
        split = drawn.split_of(path.relative_to(source).with_suffix(""))
        for place, task in enumerate(tasks):
            where = f"{path}, [{place}]"
            any_ = any_ or _is_task(task)
            for inside, drawing in _drawings(
                task, folders, where=where, boxes=boxes, met=found.findings
            ):
                image = drawn.annotated_image(
                    drawing, split=split, number=len(found.images), where=inside, met=found.findings
                )
                if image:
                    found.images.append(image)
    if not any_:
        what, advice = foreign.found_instead(source)
        raise ValueError(
            f"{source}: expected tasks of Label Studio in JSON, got {what}; do: {advice}"
        )
    return found


def _tasks(path: Path) -> list[Any]:
    """Returns the tasks of a file.

    Raises:
      ValueError: it is none of this format.
    """
    data = files.read_bytes(path, most=MOST_BYTES, advice=ADVICE)
    value = annotations.parse_json(data, where=str(path), advice=ADVICE)
    if isinstance(value, Mapping) and _is_task(value):
        return [value]
    if not isinstance(value, list):
        raise BadAnnotation(
            f"{path}: expected a list of tasks, got {schemas.short_repr(value)}; do: {ADVICE}",
            "it has no list of tasks",
        )
    return value


def _is_task(task: Any) -> bool:
    names = ("annotations", "completions", "data", "annotation_id")
    return isinstance(task, Mapping) and any(name in task for name in names)


def _drawings(
    task: Any, folders: Sequence[Path], *, where: str, boxes: bool, met: Findings
) -> Iterator[tuple[str, Drawing]]:
    """Yields the images of a task with their regions, each after how messages name it.

    What is bad is told.
    """
    try:
        if not _is_task(task):
            raise BadAnnotation(
                f"{where}: expected a task, got {schemas.short_repr(task)}; do: {ADVICE}",
                "it is no task of Label Studio",
            )
        pictures = _pictures(task, where)
    except ValueError as error:
        met.add_error("task left out", error)
        return
    texts = _texts(task, where, met)
    for name, some in _by_picture([*_results(task, where, met)], pictures, met).items():
        inside = f"{where}, {name}" if len(pictures) > 1 else where
        regions: list[Region] = []
        sizes: list[tuple[int, int]] = []
        for place, one in some:
            try:
                result = annotations.check_annotation(one, _Result, where=place, findings=met)
                size = result.original_height, result.original_width
                regions.append(_region(one, result, texts, _place(result, place, boxes, met)))
                sizes.append(size)
            except ValueError as error:
                met.add_error("region left out", error)
        if len({*sizes}) > 1:
            error = BadAnnotation(
                f"{inside}: expected regions of one size of the image, got "
                f"{len({*sizes})}; do: {ADVICE}",
                "its regions are of several sizes of the image",
            )
            met.add_error("task left out", error)
            continue
        told = pictures[name]
        picture = _find(told, folders)
        yield inside, Drawing(told, picture, regions, size=sizes[0] if sizes else None)


def _find(told: str, folders: Sequence[Path]) -> Path:
    """Returns the image that a task names."""
    picture = picture_paths.find(told, folders=[*folders])
    if picture_paths.is_file(picture):
        return picture
    return picture_paths.without_hash(picture, folders) or picture


def _by_picture(
    results: Sequence[tuple[str, Any]], pictures: Mapping[str, str], met: Findings
) -> dict[str, list[tuple[str, Any]]]:
    """Returns the regions of each image of a task, by its name in the task's data.

    A region says which by `to_name`. Where all say the same, and it is no name of the data, the
    likeliest image is meant.
    """
    first = next(iter(pictures))
    names = [one.get("to_name") if isinstance(one, Mapping) else None for _, one in results]
    names = [name if isinstance(name, str) else None for name in names]
    known = {name for name in names if name is not None}
    if len(pictures) == 1 or (len(known) < 2 and not known & pictures.keys()):
        return {first: [*results]}
    found: dict[str, list[tuple[str, Any]]] = {name: [] for name in pictures}
    for (where, one), name in zip(results, names, strict=True):
        if name is not None and name in pictures:
            found[name].append((where, one))
            continue
        error = BadAnnotation(
            f"{where}: expected to_name as one of {', '.join(pictures)}, got "
            f"{schemas.short_repr(name)}; do: name the image tags of the project as their values",
            "its task has several images, and nothing says which is meant",
        )
        met.add_error("region left out", error)
    return found


def _pictures(task: Mapping[str, Any], where: str) -> dict[str, str]:
    """Returns the paths of a task's images by their names in its data, the likeliest first."""
    data = task.get("data", task)
    data = data if isinstance(data, Mapping) else {}
    told = {name: one for name, one in data.items() if isinstance(one, str)}
    named = [name for name in ("image", "img", "picture") if name in told]
    # Longer texts are no paths, and the pattern would look through them again and again.
    short = {name: one for name, one in told.items() if len(one) < 4096}
    files_ = {name: picture_paths.relative(one).rpartition("/")[2] for name, one in short.items()}
    like = [name for name, one in files_.items() if picture_paths.IMAGE.fullmatch(one)]
    found = {
        name: told[name]
        for name in (*named, *like)
        if not told[name].startswith("data:") and schemas.holds(told[name], schemas.FileName)
    }
    if found:
        return found
    got = next(iter(told.values()), data)
    raise BadAnnotation(
        f"{where}: expected the path or the URL of an image in data, got "
        f"{schemas.short_repr(got)}; do: {ADVICE}",
        "it names no image",
    )


def _results(task: Mapping[str, Any], where: str, met: Findings) -> Iterator[tuple[str, Any]]:
    """Yields the regions of the annotation that counts, each after how messages name it."""
    every = task.get("annotations", task.get("completions"))
    if every is None:  # JSON-MIN: lists of regions beside the image.
        for name, some in task.items():
            for place, one in enumerate(some if isinstance(some, list) else ()):
                if isinstance(one, Mapping) and "original_width" in one:
                    yield f"{where}, {name}[{place}]", {**one, "value": one}
        return
    notes = [one for one in every if isinstance(one, Mapping)] if isinstance(every, list) else []
    kept = [one for one in notes if not one.get("was_cancelled")]
    if len(kept) > 1:
        reason = "annotation left out: its task has another one before"
        met.add(reason, where, count=len(kept) - 1, advice="export one annotation a task")
    for note in kept[:1]:
        some = note.get("result")
        for place, one in enumerate(some if isinstance(some, list) else ()):
            if _is_region(one):
                yield f"{where}, result[{place}]", one


def _is_region(one: Any) -> bool:
    """Returns whether a result is a region, or nothing known; else it is a text or a choice."""
    if not isinstance(one, Mapping) or one.get("type") in (*_KINDS, *_PLAIN):
        return True
    value = one.get("value")
    return isinstance(value, Mapping) and bool(_label(value)[0])


def _texts(task: Mapping[str, Any], where: str, met: Findings) -> dict[str, tuple[str, ...]]:
    """Returns the texts that were written for regions, by the regions' ids."""
    found: dict[str, tuple[str, ...]] = {}
    for _, one in _every_result(task):
        value = one.get("value")
        if one.get("type") != "textarea" or not isinstance(value, Mapping):
            continue
        some = value.get("text")
        some = some if isinstance(some, list) else [some]
        some = [text for text in some if isinstance(text, str)]
        try:
            some = schemas.check(some, list[schemas.Text], where=f"{where}, text", advice=ADVICE)
        except ValueError as error:
            met.add_error("texts left out", error)
            continue
        texts = tuple(" ".join(text.split()) for text in some)
        if isinstance(one.get("id"), str) and (kept := tuple(text for text in texts if text)):
            found[one["id"]] = kept
    return found


def _every_result(task: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    every = task.get("annotations", task.get("completions"))
    for number, note in enumerate(every if isinstance(every, list) else ()):
        some = note.get("result") if isinstance(note, Mapping) else None
        for one in some if isinstance(some, list) else ():
            if isinstance(one, Mapping):
                yield number, one


def _label(value: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the kind of a region's labels, and the first of them."""
    for kind in _KINDS:
        some = value.get(kind)
        if isinstance(some, list) and some:
            return kind, next((one for one in some if isinstance(one, str)), "")
    return "", ""


def _place(result: _Result, where: str, boxes: bool, met: Findings) -> _Shape:
    if result.image_rotation:
        raise BadAnnotation(
            f"{where}: expected an image that was not turned in Label Studio, got one turned by "
            f"{result.image_rotation:g} degrees; do: turn the file, and annotate it anew",
            "its image was turned by hand",
        )
    value = schemas.check(result.value, _Value, where=f"{where}, value", advice=ADVICE)
    return _Shape(where, value, (result.original_height, result.original_width), boxes, met)


def _region(
    one: Mapping[str, Any], result: _Result, texts: dict[str, tuple[str, ...]], shape: _Shape
) -> Region:
    """Returns what a region outlines.

    Raises:
      ValueError: it outlines nothing.
    """
    label = _label(result.value)[1]
    name = drawn.label(label, shape.where, shape.met)
    said = texts.get(one["id"], ()) if isinstance(one.get("id"), str) else ()
    return Region(name, _outline(shape), texts=said)


def _outline(shape: _Shape) -> Outline:
    """Returns the outline of a region, by what it has."""
    value, (height, width) = shape.value, shape.size
    if value.rle is not None:
        return drawn.mask_outline(brush_mask(value.rle, shape.size, where=shape.where))
    if value.points is not None:
        if value.closed is False:
            raise drawn.no_outline(shape.where, "polyline")
        flat = [
            round(n * s / 100, 6)
            for p in value.points
            for n, s in zip(p, (width, height), strict=True)
        ]
        return segmentation.read_outline([flat], where=shape.where, findings=shape.met)
    if value.x is None or value.y is None:
        raise BadAnnotation(
            f"{shape.where}: expected points, a brush, a box or an ellipse, got none; do: {ADVICE}",
            "it has no shape",
        )
    x, y = value.x * width / 100, value.y * height / 100
    degrees = value.rotation or 0.0
    if value.radiusX is not None and value.radiusY is not None:
        radii = value.radiusX * width / 100, value.radiusY * height / 100
        return Polygons((drawn.ellipse(x, y, radii, degrees=degrees),))
    if value.width is None or value.height is None:
        raise drawn.no_outline(shape.where, "point")
    drawn.check_boxes(shape.where, boxes=shape.boxes)
    ring = drawn.rectangle([x, y, x + value.width * width / 100, y + value.height * height / 100])
    return Polygons((tuple(round(n, 6) for n in drawn.turned(ring, degrees, (x, y))),))


def brush_mask(rle: Sequence[int], size: tuple[int, int], *, where: str) -> Bool[np.ndarray, "H W"]:
    """Returns the mask of a brush: its pixels' red, green, blue and alpha in run lengths.

    The bits are: 32 for the number of values, 5 for the bits of a value less one, four times 4 for
    the bits of lengths less one; then runs: whether it repeats one value, which of the four
    lengths it has, the length less one, and the value or the values.

    Args:
      rle: bytes.
      size: height and width of the image.
      where: tells file and region.

    Raises:
      BadAnnotation: they are of another size, or end too soon.

    Source: `rle-pack` of thi.ng/umbrella, as Label Studio's converter reads it.
    """
    height, width = size
    bits = _Bits(rle)
    try:
        count, word = bits.take(32), bits.take(5) + 1
        lengths = [bits.take(4) + 1 for _ in range(4)]
        if count != 4 * height * width or height * width > image_files.MAX_PIXELS or word != 8:
            raise BadAnnotation(
                f"{where}: expected a brush of {height}x{width} pixels, got one of {count // 4} "
                f"pixels; do: {ADVICE}",
                "its brush is of another size than the image",
            )
        values = np.zeros(count, np.uint8)
        at = 0
        while at < count:
            repeated = bits.take(1)
            run = min(bits.take(lengths[bits.take(2)]) + 1, count - at)
            values[at : at + run] = bits.take(8) if repeated else bits.octets(run)
            at += run
    except IndexError:
        raise BadAnnotation(
            f"{where}: expected a whole brush, got one that ends too soon; do: {ADVICE}",
            "its brush is cut off",
        ) from None
    return values.reshape(height, width, 4)[..., 3] >= OPAQUE


class _Bits:
    """Bits of bytes, from the highest on."""

    def __init__(self, values: Sequence[int]):
        self._data = np.array(values, np.uint8)
        self._bytes, self._at, self._end = self._data.tobytes(), 0, 8 * len(values)

    def take(self, count: int) -> int:
        """Returns the number of so many bits, 32 at most."""
        self._check(count)
        begin, end = self._at // 8, (self._at + count + 7) // 8
        value = int.from_bytes(self._bytes[begin:end], "big")
        value >>= 8 * end - self._at - count
        self._at += count
        return value & ((1 << count) - 1)

    def octets(self, count: int) -> np.ndarray:
        """Returns so many numbers of eight bits."""
        self._check(8 * count)
        begin, shift = divmod(self._at, 8)
        self._at += 8 * count
        some = self._data[begin : begin + count + 1].astype(np.uint16)
        if not shift:
            return some[:count].astype(np.uint8)
        return ((some[:-1] << shift | some[1:] >> (8 - shift)) & 0xFF).astype(np.uint8)

    def _check(self, count: int) -> None:
        if self._at + count > self._end:
            raise IndexError
