"""Reads YOLO's folders: data.yaml, images, and a text of outlines beside each.

As Ultralytics reads them: data.yaml has `path`, `train`, `val`, `test` (folders of images, or texts
that list them) and `names`. The labels of images/a.jpg are in labels/a.txt, a line an object: its
class and x y x y .. of its outline, or x y width height of its box, in fractions of the image as
its camera's note (EXIF) turns it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from seg_jax import schemas
from seg_jax.data.findings import Findings
from seg_jax.data.formats import annotations, drawn, foreign, picture_paths, segmentation, yaml_text
from seg_jax.data.formats.annotations import Annotations, BadAnnotation, UnitPolygons
from seg_jax.data.formats.drawn import Drawing, Region

SPLITS = ("train", "val", "test")
_LEFT_OUT = "line left out"
_TO_FRACTIONS = "divide x by the image's width and y by its height"
_NAMES = 100_000
"""Classes of a data set."""


class _Rules(NamedTuple):
    """How the lines of a data set are read."""

    names: dict[int, str]
    keypoints: bool
    """Whether lines are boxes with keypoints behind them."""
    boxes: bool


def read(source: Path, *, images: Path | None = None, boxes: bool = False) -> Annotations:
    """Returns the images of the splits that a data.yaml names.

    Args:
      source: the folder of data.yaml.
      images: folder that `train`, `val` and `test` are relative to; None: as data.yaml says.
      boxes: whether boxes are taken for outlines.

    Raises:
      ValueError: there is no data.yaml, or it names no split that is there.
    """
    path = _description(source)
    told = yaml_text.read(path)
    found = Annotations([])
    rules = _Rules(
        names=_names(told, path, found.findings),
        keypoints="kpt_shape" in told,
        boxes=boxes,
    )
    if told.get("val") and told.get("valid"):
        raise ValueError(f"{path}: expected val or valid, got both; do: leave one of them in it")
    splits = {
        "val" if one == "valid" else one: told[one] for one in (*SPLITS, "valid") if told.get(one)
    }
    if not splits:
        raise ValueError(
            f"{path}: expected train, val or test with their folders, got none; do: name them"
        )
    root = _root(path, told, images)
    missing = []
    labels: set[Path] = set()
    for split, value in splits.items():
        places = [value] if isinstance(value, str) else value
        lists = [_find(root, source, one) for one in places if isinstance(one, str)]
        pictures = [picture for one in lists if one for picture in _pictures(one, found.findings)]
        if not pictures:
            missing.append(f"{split} ({schemas.short_repr(value)})")
            continue
        for picture in pictures:
            labels.add(_labels(picture))
            _add(found, picture, split, root=root, rules=rules)
    _tell_unused(labels, found.findings)
    for one in missing:
        found.findings.add(
            annotations.NO_IMAGES, f"{path}: {one}", advice=annotations.NO_IMAGES_ADVICE
        )
    if len(missing) == len(splits):
        raise ValueError(
            f"{path}: expected folders of images, got none for {', '.join(missing)}; do: correct "
            "path, train and val in it, or give their folder by --images"
        )
    return found


def _description(source: Path) -> Path:
    """Returns the YAML file of a data set."""
    every = [*sorted(source.glob("*.yaml")), *sorted(source.glob("*.yml"))]
    named = [one for one in every if one.stem == "data"] or every
    if len(named) == 1:
        return named[0]
    what, advice = foreign.found_instead(source)
    if named:
        what, advice = f"{len(named)} YAML files", "name that of the data set data.yaml"
    elif "YOLO" in what:
        advice = "write data.yaml with train, val and names"
    raise ValueError(f"{source}: expected data.yaml of YOLO, got {what}; do: {advice}")


def _names(told: dict[str, Any], path: Path, met: Findings) -> dict[int, str]:
    """Returns the classes by number; what is no name is told, and its objects have none."""
    value = told.get("names")
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        pairs = [*value.items()]
    elif isinstance(value, list):
        pairs = [*enumerate(value)]
    elif value:
        raise ValueError(
            f"{path}: expected names as a list or a mapping, got {schemas.short_repr(value)}; do: "
            "list the classes"
        )
    else:
        met.add(
            "no names of classes are listed: objects have none",
            str(path),
            advice="list them in names",
        )
    found = {}
    for key, one in pairs[:_NAMES]:
        number = annotations.whole_number(key)
        name = " ".join(one.split()) if schemas.holds(one, schemas.Text) else ""
        if number is None or not name:
            met.add(
                "class without a name",
                f"{path}, names: {schemas.short_repr(key)}",
                advice="name it",
            )
        else:
            found[number] = name
    return found


def _root(path: Path, told: dict[str, Any], images: Path | None) -> Path:
    """Returns the folder that splits are relative to."""
    if images is not None:
        return images
    if isinstance(value := told.get("path"), str) and value.strip():
        for place in (path.parent / value, path.parent.parent / value):
            if place.is_dir():
                return place
    return path.parent


def _find(root: Path, source: Path, told: str) -> Path | None:
    """Returns the folder or list of a split; a leading ../ that leads nowhere is passed over."""
    told = picture_paths.relative(told)
    ways = [told, re.sub(r"^(\.\./)+", "", told)]
    for base in (root, source):
        for way in ways:
            place = base / way
            if place.is_dir() or picture_paths.is_file(place):
                return place
    return None


def _pictures(place: Path, met: Findings) -> Iterator[Path]:
    """Yields the images of a folder and those below it, or that a text lists."""
    if place.is_dir():
        yield from picture_paths.files_below(place, ending=picture_paths.IMAGE.pattern, met=met)
        return
    for line in picture_paths.read_lines(place):
        if told := line.strip():
            yield picture_paths.find(told, folders=[place.parent])


def _labels(picture: Path) -> Path:
    """Returns the text of an image: in the last folder `images` of its path, `labels` instead."""
    parts = [*picture.parts]
    if "images" in parts[:-1]:
        place = len(parts) - 2 - parts[:-1][::-1].index("images")
        parts[place] = "labels"
    return Path(*parts).with_suffix(".txt")


def _tell_unused(used: set[Path], met: Findings) -> None:
    """Tells of labels that lie beside those of images, and are of none."""
    for folder in sorted({path.parent for path in used}):
        if not folder.is_dir():
            continue
        for path in sorted(folder.glob("*.txt")):
            if path not in used and _has_labels(path):
                met.add(
                    "labels left out: no image has them",
                    f"{path}: expected an image of this name in a folder of data.yaml, got none",
                    advice="add the image, or rename one of them",
                )


def _has_labels(path: Path) -> bool:
    """Returns whether a text begins as labels do: lists of classes or of images do not."""
    try:
        lines = picture_paths.read_lines(path) if picture_paths.is_file(path) else []
    except ValueError:
        return True
    first = next((line.split() for line in lines if line.strip()), [])
    return len(first) > 4 and all(re.match(r"[+-]?[\d.]", word) for word in first)


def _add(found: Annotations, picture: Path, split: str, *, root: Path, rules: _Rules) -> None:
    """Adds an image with the objects of its lines; bad ones are told."""
    path, met = _labels(picture), found.findings
    regions: list[Region] = []
    try:
        lines = picture_paths.read_lines(path) if picture_paths.is_file(path) else []
    except ValueError as error:
        met.add_error("labels left out", error)
        lines = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            regions.append(_region(line.split(), rules, where=where, met=met))
        except ValueError as error:
            met.add_error(_LEFT_OUT, error)
    told = picture_paths.name_within(picture, root)
    drawing = Drawing(told, picture, regions, upright=True)
    where = f"{picture}: {'no line' if lines else 'no label'} is taken"
    image = drawn.annotated_image(
        drawing, split=split, number=len(found.images), where=where, met=met
    )
    if image:
        found.images.append(image)


def _region(words: Sequence[str], rules: _Rules, *, where: str, met: Findings) -> Region:
    """Returns the object of a line.

    Raises:
      ValueError: it is none.
    """
    numbers = [_number(word, where) for word in words]
    number = annotations.whole_number(numbers[0])
    if number is None or number < 0:
        raise BadAnnotation(
            f"{where}: expected the number of a class first, got {schemas.short_repr(words[0])}; "
            "do: correct the line",
            "it does not begin with the number of a class",
        )
    name = rules.names.get(number, "")
    if rules.names and not name:
        reason = "object without a name: its class is not listed"
        met.add(reason, f"{where}: class {number}", advice="list it in names of data.yaml")
    return Region(name, UnitPolygons((_ring(numbers[1:], rules, where),)))


def _ring(numbers: Sequence[float], rules: _Rules, where: str) -> tuple[float, ...]:
    """Returns an outline in fractions of the image; `boxes` may be outlines too."""
    box = len(numbers) in (4, 5) or rules.keypoints
    if not box and (len(numbers) % 2 or len(numbers) < 6):
        raise BadAnnotation(
            f"{where}: expected a class and x y of three points or more, or of a box, got "
            f"{len(numbers)} numbers behind the class; do: correct the line",
            "a polygon has half a point" if len(numbers) % 2 else "no polygon has three points",
        )
    used = numbers[:4] if box else numbers
    margin = segmentation.FRACTION_MARGIN
    if len(used) < 4 or min(used) < -margin or max(used) > 1 + margin:
        raise BadAnnotation(
            f"{where}: expected fractions of the image, from 0 to 1, got "
            f"{', '.join(f'{one:g}' for one in used[:6])}; do: {_TO_FRACTIONS}",
            "coordinates are no fractions of the image",
        )
    if not box:
        return tuple(used)
    drawn.check_boxes(where, boxes=rules.boxes)
    x, y, width, height = used
    return drawn.rectangle([x - width / 2, y - height / 2, x + width / 2, y + height / 2])


def _number(word: str, where: str) -> float:
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", word) or len(word) > 40:
        raise BadAnnotation(
            f"{where}: expected numbers, got {schemas.short_repr(word)}; do: correct the line",
            "it has something else than numbers",
        )
    return float(word)
