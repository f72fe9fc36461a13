"""Reads the `segmentation` of an annotation: polygons or run lengths, as COCO's files have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta

from seg_jax import schemas
from seg_jax.data.findings import Findings
from seg_jax.data.formats.annotations import BadAnnotation, Outline, Polygons, RunLengths

MOST_COUNTS = 2**26
"""Characters or numbers of a mask's run lengths."""
FRACTION_MARGIN = 0.02
"""How far fractions of an image may lie beyond 0 and 1."""
_TO_PIXELS = "multiply x by the image's width and y by its height"
_BOX = "correct bbox: x, y, width, height in pixels"
_Rings = tuple[tuple[schemas.Coordinate, ...], ...]
_Box = tuple[schemas.Coordinate, schemas.Coordinate, schemas.Coordinate, schemas.Coordinate]
_FORM = "a list of polygons [x, y, x, y, ..] or run lengths with size and counts"


class _Run(schemas.Record, frozen=True):
    size: tuple[schemas.Extent, schemas.Extent]
    counts: (
        Annotated[str, Meta(max_length=MOST_COUNTS)]
        | Annotated[
            list[Annotated[int, Meta(ge=0, le=2**40)]], Meta(min_length=1, max_length=MOST_COUNTS)
        ]
    )


def read_outline(
    value: Any, *, where: str, findings: Findings, size: tuple[int, int] | None = None
) -> Outline:
    """Returns a `segmentation`: polygons, run lengths, or a list of run lengths (RefCLEF's).

    Points in pairs, [[[x, y], [x, y], ..]] or [[x, y], [x, y], ..], are read as the rings that
    they plainly are. A flat list of numbers is not: it could be run lengths as well.

    Args:
      value: as it was read.
      where: tells file and annotation.
      findings: are told what was not taken as it stood.
      size: height and width of the image, if the annotation tells; run lengths must be of it.

    Raises:
      ValueError: it is none of these; `reason` names the kind of fault.
    """
    if value is None or value == []:
        raise BadAnnotation(
            f"{where}: expected {_FORM}, got {'none' if value is None else 'an empty list'}"
            "; do: outline the object or leave it out",
            "it has no segmentation",
        )
    if isinstance(value, dict):
        return RunLengths((_run_lengths(value, where, size),))
    if isinstance(value, list):
        kinds = {type(one) for one in value}
        if kinds == {list}:
            return _polygons(value, where, findings, size=size)
        if kinds == {dict}:
            return RunLengths(tuple(_run_lengths(one, where, size) for one in value))
        if kinds <= {int, float}:
            raise BadAnnotation(
                f"{where}: expected {_FORM}, got a flat list of {len(value)} numbers; do: put a "
                "polygon into a list of its own, or give run lengths their size",
                "segmentation is a flat list of numbers",
            )
        raise BadAnnotation(
            f"{where}: expected {_FORM}, got a list of {_kinds(value)}; do: write one or the other",
            "segmentation mixes kinds",
        )
    raise BadAnnotation(
        f"{where}: expected {_FORM}, got {schemas.short_repr(value)}; do: give run lengths as an "
        "object with size and counts",
        "segmentation is neither polygons nor run lengths",
    )


def _kinds(value: list[Any]) -> str:
    names = {dict: "objects", list: "lists", str: "texts", int: "numbers", float: "numbers"}
    return ", ".join(sorted({names.get(type(one), "others") for one in value}))


def _polygons(
    value: list[Any], where: str, findings: Findings, *, size: tuple[int, int] | None
) -> Polygons:
    """Returns polygons of whole points, without rings that fill nothing."""
    try:
        rings = schemas.check(value, _Rings, where=f"{where}, segmentation")
    except schemas.Invalid:
        flat = [_flat_pairs(ring) for ring in value]
        if None in flat:
            raise
        rings = schemas.check(flat, _Rings, where=f"{where}, segmentation")
        findings.add("points are pairs: read as polygons", f"{where}: {len(rings)} polygons")
    if len(rings) > 2 and all(len(ring) == 2 for ring in rings):
        rings = (tuple(number for point in rings for number in point),)
        findings.add("points are pairs: read as polygons", f"{where}: one polygon")
    whole, short = [], []
    for place, ring in enumerate(rings):
        if len(ring) % 2:
            raise BadAnnotation(
                f"{where}, polygon {place}: expected x and y of each point, got {len(ring)} numbers"
                "; do: complete them",
                "a polygon has half a point",
            )
        if len(ring) < 6:
            short.append(f"{where}, polygon {place}: {len(ring) // 2} points")
        else:
            whole.append(ring)
    if not whole:
        raise BadAnnotation(
            f"{where}: expected polygons of three points or more, got none; do: outline the object "
            "or leave it out",
            "no polygon has three points",
        )
    for told in short:
        reason = "polygon left out: it has fewer than three points"
        findings.add(reason, told, advice="outline it with three points or more")
    pixels = [ring for ring in whole if size == (1, 1) or not are_fractions(ring)]
    if not pixels:
        raise fractions_error(where)
    if len(pixels) < len(whole):
        reason = "polygon left out: its coordinates are fractions of the image, not pixels"
        told = f"{where}: {len(whole) - len(pixels)} of {len(whole)} polygons"
        findings.add(reason, told, advice=_TO_PIXELS)
    return Polygons(tuple(pixels))


def _flat_pairs(ring: Any) -> list[Any] | None:
    """Returns x, y, x, y, .. of a ring of points x, y; None if it is none."""
    if isinstance(ring, list) and all(isinstance(one, list) and len(one) == 2 for one in ring):
        return [number for point in ring for number in point]
    return None


def are_fractions(numbers: Sequence[float]) -> bool:
    """Returns whether coordinates look like fractions of an image: in pixels, they are in one.

    They may be 0 and 1 themselves, as those of a whole image are, and a little beyond by rounding.
    """
    low, high = min(numbers), max(numbers)
    return -FRACTION_MARGIN <= low < high <= 1 + FRACTION_MARGIN


def fractions_error(where: str) -> BadAnnotation:
    """Returns the error that says that coordinates are no pixels."""
    return BadAnnotation(
        f"{where}: expected pixels, got fractions of the image, from 0 to 1; do: {_TO_PIXELS}",
        "coordinates are fractions of the image, not pixels",
    )


def _run_lengths(value: Any, where: str, size: tuple[int, int] | None) -> dict[str, Any]:
    """Returns run lengths whose counts can be those of their size; the build counts them out."""
    counts = value.get("counts")
    if counts is None or "size" not in value:
        names = ", ".join(sorted(schemas.short_repr(name) for name in value)[:6])
        raise BadAnnotation(
            f"{where}: expected run lengths with size and counts, got an object with "
            f"{names or 'nothing'}; do: convert what a labelling tool's brush has drawn to COCO's "
            "run lengths",
            "run lengths are not COCO's",
        )
    if isinstance(counts, str) and counts[:2] in ("b'", 'b"'):
        raise BadAnnotation(
            f"{where}: expected counts as a text, got Python's spelling of bytes, "
            f"{schemas.short_repr(counts[:20])}; do: write counts.decode() into the file",
            "counts are Python's spelling of bytes",
        )
    run = schemas.check(value, _Run, where=f"{where}, segmentation")
    if isinstance(counts, str) and not all("0" <= letter <= "o" for letter in {*counts}):
        raise BadAnnotation(
            f"{where}: expected compressed counts, letters from 0 to o, got "
            f"{schemas.short_repr(counts)}; do: write the counts as COCO's API gives them",
            "counts are no compressed run lengths",
        )
    height, width = run.size
    if size is not None and size != run.size:
        raise BadAnnotation(
            f"{where}: expected run lengths of {size[0]}x{size[1]} as the image, got "
            f"{height}x{width}; do: check that size is [height, width]",
            "run lengths are of another size than the image",
        )
    if isinstance(counts, list) and (pixels := sum(counts)) != height * width:
        raise BadAnnotation(
            f"{where}: expected counts of {height * width} pixels, got {pixels}; do: check that "
            "counts are whole",
            "run lengths do not fill the image",
        )
    return {"size": [height, width], "counts": counts}


def box_px(
    value: Any, *, where: str, findings: Findings
) -> tuple[float, float, float, float] | None:
    """Returns x0 y0 x1 y1 of a COCO box x, y, width, height; None of none, or of one that is odd.

    Args:
      value: as it was read.
      where: tells file and annotation.
      findings: are told of an odd one; the box of the mask is taken instead.
    """
    if value is None:
        return None
    reason = "box is odd: that of the mask is taken"
    try:
        x, y, width, height = schemas.check(value, _Box, where=f"{where}, bbox")
    except schemas.Invalid as error:
        findings.add(reason, str(error).partition("; do: ")[0], advice=_BOX)
        return None
    if width < 0 or height < 0 or are_fractions((x, y, width, height)):
        findings.add(reason, f"{where}: {x:g}, {y:g}, {width:g}, {height:g}", advice=_BOX)
        return None
    return x, y, x + width, y + height
