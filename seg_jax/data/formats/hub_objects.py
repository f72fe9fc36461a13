"""Reads the column `objects` of tables of Hugging Face's hub: boxes, outlines and names of objects.

It is a list of objects, or an object of lists as older tables have it:

    {"bbox": [[302, 109, 73, 52], ..], "category": [4, ..]}  # and segmentation, as COCO has it

Numbers of classes are named by the table's own list. What boxes are, corners or sizes, pixels or
fractions, is found out for all of them together (`conventions.py`), and told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seg_jax import schemas
from seg_jax.data.findings import Findings
from seg_jax.data.formats import annotations, conversations, table_rows
from seg_jax.data.formats import text_regions as regions
from seg_jax.data.formats.annotations import BadAnnotation

COLUMN = "objects"
_BOXES = ("bbox", "box", "bboxes", "boxes")
_OUTLINES = ("segmentation", "polygon", "polygons")
_NAMES = ("category", "categories", "label", "labels", "class", "name", "names", "category_id")
_ADVICE = "correct the column objects"
_MOST = 10_000
"""Objects of a row."""


def class_names(path: Path) -> list[str]:
    """Returns the names of classes of objects by number, as the table tells them; else nothing.

    Raises:
      ValueError: it is no such file.
    """
    told = table_rows.metadata(path)
    try:
        value = annotations.parse_json(told or b"{}", where=str(path), advice="save it anew")
    except ValueError:
        return []
    for name in ("info", "features", COLUMN):
        value = value.get(name) if isinstance(value, Mapping) else None
    return next(_names_within(value, 0), [])


def _names_within(value: Any, depth: int) -> Iterator[list[Any]]:
    """Yields lists of names of classes within the description of a column."""
    if depth > 6:
        return
    if isinstance(value, Mapping):
        names = value.get("names")
        if isinstance(names, list) and schemas.holds(names, list[schemas.Text]):
            yield names
        else:
            for name in sorted(value, key=lambda name: name not in _NAMES):
                yield from _names_within(value[name], depth + 1)
    elif isinstance(value, list):
        for one in value:
            yield from _names_within(one, depth + 1)


def rows_of(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Returns the rows of columns, as far as all go."""
    lists = {name: one for name, one in columns.items() if isinstance(one, list)}
    count = min((len(one) for one in lists.values()), default=0)
    return [{name: one[place] for name, one in lists.items()} for place in range(count)]


def regions_of(
    value: Any, kinds: Sequence[str], *, where: str, met: Findings
) -> list[regions.Told]:
    """Returns the objects of a row, with their names as labels; bad ones are told.

    Args:
      value: what the row has in the column.
      kinds: names of classes by number.
      where: tells file and row.
      met: are told of what is left out.
    """
    every = rows_of(value) if isinstance(value, Mapping) else value
    if not isinstance(every, list) or len(every) > _MOST:
        got = f"{len(every)}" if isinstance(every, list) else schemas.short_repr(value)
        told = f"{where}: expected at most {_MOST} objects, got {got}"
        met.add("objects left out: they are no list of few", told, advice=_ADVICE)
        return []
    found = []
    for place, one in enumerate(every):
        inside = f"{where}, objects[{place}]"
        try:
            found.append(_region(one, kinds, where=inside, met=met))
        except ValueError as error:
            met.add_error("region left out", error)
    return found


def _region(one: Any, kinds: Sequence[str], *, where: str, met: Findings) -> regions.Told:
    """Returns an object: its outline, or its box where it has none.

    Raises:
      BadAnnotation: it has neither.
    """
    if not isinstance(one, Mapping):
        raise BadAnnotation(
            f"{where}: expected an object with bbox, got {schemas.short_repr(one)}; do: {_ADVICE}",
            "it is no object",
        )
    name = _name(one, kinds, where, met)
    outline = next((value for key in _OUTLINES if (value := one.get(key))), None)
    box = next((value for key in _BOXES if (value := one.get(key))), None)
    if outline is not None:
        rings = outline if isinstance(outline, list) else None
        if rings and not isinstance(rings[0], list):
            rings = [rings]
        if rings and all(_finite(ring) and len(ring) >= 6 and len(ring) % 2 == 0 for ring in rings):
            flat = tuple(tuple(map(float, ring)) for ring in rings)
            return regions.Told(conversations.COLUMN, "polygon", flat, name)
        raise BadAnnotation(
            f"{where}: expected rings x, y, x, y, .. of three points or more, got "
            f"{schemas.short_repr(outline)}; do: {_ADVICE}",
            "its outline is no list of rings",
        )
    if isinstance(box, list) and len(box) == 4 and _finite(box):
        return regions.Told(conversations.COLUMN, "box", (tuple(map(float, box)),), name)
    raise BadAnnotation(
        f"{where}: expected bbox of four numbers, got {schemas.short_repr(box)}; do: {_ADVICE}",
        "it has no box of four numbers",
    )


def _finite(numbers: Any) -> bool:
    """Returns whether these are numbers that an image may have."""
    return isinstance(numbers, list) and all(
        isinstance(one, int | float) and not isinstance(one, bool) and abs(one) < 1e9
        for one in numbers
    )


def _name(one: Mapping[str, Any], kinds: Sequence[str], where: str, met: Findings) -> str:
    """Returns the name of an object; none is told."""
    told = next((value for key in _NAMES if (value := one.get(key)) is not None), None)
    name = told if isinstance(told, str) else ""
    if isinstance(told, int) and 0 <= told < len(kinds):
        name = kinds[told]
    if not schemas.holds(name, schemas.Text) or not name.strip():
        met.add(
            "object without a name: its class is not listed",
            f"{where}: {schemas.short_repr(told)}",
            advice="make category a text, or a ClassLabel of datasets",
        )
        return ""
    return " ".join(name.split())
