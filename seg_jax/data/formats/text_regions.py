"""Finds boxes, points and polygons in what somebody or a model answered, as it was written.

What the numbers mean is for `conventions`. Known are JSON, bare or fenced (Qwen's `bbox_2d`,
`point_2d`, Gemini's `box_2d`, objects with `polygon` or `segmentation`), lists of numbers within
a sentence, and the tags of Qwen-VL and InternVL, <ref>..</ref><box>..</box> and their siblings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from seg_jax import schemas
from seg_jax.data.formats import annotations
from seg_jax.data.formats.annotations import BadAnnotation

Kind = Literal["point", "box", "polygon"]

MOST_CHARACTERS = 1_000_000
"""Characters of an answer."""
MOST_NUMBERS = 200_000
"""Numbers of an answer."""
BARE = "a bare list"
"""Form of numbers that no name stands before."""
_LABELS = ("label", "ref", "phrase", "name", "description", "caption", "text", "category", "object")
_BOXES = ("bbox_2d", "box_2d", "bbox", "box", "bounding_box", "bboxes")
_POINTS = ("point_2d", "point")
_POLYGONS = ("polygon", "polygons", "segmentation", "mask", "contour", "outline", "points")
_WITHIN = ("boxes", "objects", "detections", "items", "results", "answer", "annotations")
_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)(</answer>|\Z)", re.DOTALL)
_REF = re.compile(
    # Not any text: each tag that is never closed would be looked for up to the end.
    r"(?:<ref>|<\|object_ref_start\|>)([^<]*)(?:</ref>|<\|object_ref_end\|>)"
)
_TAGGED = re.compile(
    r"(?:(?:<ref>|<\|object_ref_start\|>)(?P<ref>[^<]*)(?:</ref>|<\|object_ref_end\|>)\s*)?"
    r"(?:<(?P<tag>box|quad|poly|point)>(?P<inner>[^<]*)</(?P=tag)>"
    r"|<\|(?P<mark>box|quad|point)_start\|>(?P<marked>[^<]*)<\|(?P=mark)_end\|>)"
)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?")


class Told(NamedTuple):
    """A region as it was written."""

    form: str
    """What stood before the numbers, as "bbox_2d" or "<box>": one form has one meaning."""
    kind: Kind
    rings: tuple[tuple[float, ...], ...]
    """Two numbers for a point, four for a box, or those of each ring of a polygon."""
    label: str = ""
    box: tuple[float, ...] = ()
    """The box that was told beside a polygon, in the order of `box_2d`, or nothing."""


def reference(question: str) -> str:
    """Returns what a question marks as what is asked for, by <ref> or the like; else ""."""
    found = _REF.search(question[:MOST_CHARACTERS])
    return " ".join(found[1].split()) if found else ""


def find(answer: str, *, where: str) -> list[Told] | None:
    """Returns the regions of an answer; of "[]" none, and None where it tells of no place.

    Args:
      answer: with a thought before it or not, which is passed over.
      where: tells file and conversation.

    Raises:
      BadAnnotation: it has brackets that hold something else.
    """
    if len(answer) > MOST_CHARACTERS:
        raise BadAnnotation(
            f"{where}: expected an answer of at most {MOST_CHARACTERS} characters, got "
            f"{len(answer)}; do: leave it out",
            "its answer is too long",
        )
    text = _THOUGHT.sub("", answer)
    if within := _ANSWER.search(text):
        text = within[1]
    tagged = list(_tagged(text, where))
    if tagged:
        return tagged
    values = [_value(span, where) for span in _spans(text)]
    if not values:
        return None
    found = [one for value in values for one in _regions(value, where)]
    if sum(len(ring) for one in found for ring in one.rings) > MOST_NUMBERS:
        raise BadAnnotation(
            f"{where}: expected at most {MOST_NUMBERS} numbers, got more; do: leave it out",
            "its answer is too long",
        )
    return found


def _tagged(text: str, where: str) -> Iterator[Told]:
    """Yields the regions between tags."""
    label = ""
    for match in _TAGGED.finditer(text):
        label = " ".join((match["ref"] or label).split())
        tag = match["tag"] or match["mark"]
        numbers = [float(one) for one in _NUMBER.findall(match["inner"] or match["marked"] or "")]
        each = {"box": 4, "point": 2, "quad": 8}.get(tag, len(numbers))
        if not numbers or len(numbers) % each or len(numbers) % 2:
            raise _unknown(where, f"{len(numbers)} numbers in <{tag}>")
        kind: Kind = "box" if tag == "box" else "point" if tag == "point" else "polygon"
        for at in range(0, len(numbers), each):
            yield Told(f"<{tag}>", kind, (tuple(numbers[at : at + each]),), label)


def _spans(text: str) -> Iterator[str]:
    """Yields the outermost brackets of a text, with what is in them."""
    level, begin, quoted, skip = 0, 0, "", False
    for place, letter in enumerate(text):
        if skip:
            skip = False
        elif quoted:
            skip = letter == "\\"
            quoted = "" if letter == quoted else quoted
        elif letter == '"' and level:
            quoted = letter
        elif letter in "[{":
            begin = place if level == 0 else begin
            level += 1
        elif letter in "]}" and level:
            level -= 1
            if level == 0:
                yield text[begin : place + 1]
    if level:
        yield text[begin:]


def _value(span: str, where: str) -> Any:
    """Returns the value in brackets; Python's quotes are taken for JSON's."""
    if '"' not in span and "'" in span:
        span = span.replace("'", '"')
    try:
        return annotations.parse_json(
            span.encode(errors="replace"), where=where, advice="correct it"
        )
    except ValueError as error:
        raise BadAnnotation(str(error), "its answer is no JSON") from None


def _unknown(where: str, got: str) -> BadAnnotation:
    return BadAnnotation(
        f"{where}: expected boxes, points or polygons, got {got}; do: correct the answer",
        "its answer has brackets, and no region in them",
    )


def _regions(value: Any, where: str, form: str = BARE, label: str = "") -> Iterator[Told]:
    """Yields the regions of a value of JSON."""
    if isinstance(value, Mapping):
        yield from _of_object(value, where, form)
        return
    if not isinstance(value, list):
        raise _unknown(where, schemas.short_repr(value))
    if not value:
        return
    if all(isinstance(one, Mapping) for one in value):
        for one in value:
            yield from _of_object(one, where, form)
    else:
        yield from _of_list(value, where, form, label)


def _of_object(value: Mapping[str, Any], where: str, form: str) -> Iterator[Told]:
    """Yields the region of an object, or those of the lists in it."""
    label = next((one for name in _LABELS if isinstance(one := value.get(name), str)), "")
    label = " ".join(label.split())
    has = {
        group: next((name for name in group if isinstance(value.get(name), list)), "")
        for group in (_POLYGONS, _BOXES, _POINTS)
    }
    polygon, box, point = has.values()
    if polygon and value[polygon]:
        beside = value.get("box_2d")
        numbers = _numbers(beside) if isinstance(beside, list) else None
        for one in _of_list(value[polygon], where, polygon, label):
            yield one._replace(box=tuple(numbers) if numbers and len(numbers) == 4 else ())
        return
    name = box or point
    if name:
        yield from _of_list(value[name], where, name, label)
        return
    inner = [one for one in _WITHIN if isinstance(value.get(one), list | Mapping)]
    if not inner:
        names = ", ".join(sorted(schemas.short_repr(one) for one in value)[:6])
        raise _unknown(where, f"an object with {names or 'nothing'}")
    for one in inner:
        yield from _regions(value[one], where, form, label)


def _of_list(value: Sequence[Any], where: str, form: str, label: str) -> Iterator[Told]:
    """Yields the regions of a list of numbers, of pairs, of boxes or of rings."""
    if not value:
        return
    if (numbers := _numbers(value)) is not None:
        yield _of_numbers(numbers, where, form, label)
        return
    parts = [_numbers(one) if isinstance(one, list) else None for one in value]
    flat = [one for one in parts if one is not None]
    if len(flat) == len(parts):
        lengths = {len(one) for one in flat}
        if lengths == {2}:  # Corners of a box, or points of a ring.
            every = [number for pair in flat for number in pair]
            yield _of_numbers(every, where, form, label)
        elif lengths == {4} and form not in _POLYGONS:
            for one in flat:
                yield Told(form, "box", (tuple(one),), label)
        else:
            rings = tuple(_ring(one, where) for one in flat)
            yield Told(form, "polygon", rings, label)
        return
    rings = []
    for one in value if all(isinstance(one, list) for one in value) else [[]]:
        pairs = [_numbers(pair) if isinstance(pair, list) else None for pair in one]
        if not pairs or any(pair is None or len(pair) != 2 for pair in pairs):
            raise _unknown(where, f"a list of {len(value)} with other things than numbers in it")
        rings.append(_ring([number for pair in pairs for number in pair or ()], where))
    yield Told(form, "polygon", tuple(rings), label)


def _of_numbers(numbers: Sequence[float], where: str, form: str, label: str) -> Told:
    kinds: dict[int, Kind] = {2: "point", 4: "box"}
    kind = kinds.get(len(numbers), "polygon")
    if kind == "polygon":
        return Told(form, kind, (_ring(numbers, where),), label)
    return Told(form, kind, (tuple(numbers),), label)


def _ring(numbers: Sequence[float], where: str) -> tuple[float, ...]:
    if len(numbers) % 2 or len(numbers) < 6:
        raise _unknown(where, f"a ring of {len(numbers)} numbers")
    return tuple(numbers)


def _numbers(value: Any) -> list[float] | None:
    """Returns a list of finite numbers; None of anything else."""
    kinds = int | float
    if not value or not all(isinstance(one, kinds) and not isinstance(one, bool) for one in value):
        return None
    return [float(one) for one in value] if all(abs(one) < 1e9 for one in value) else None
