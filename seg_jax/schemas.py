"""Checks values from outside (annotations, answers, replies, records) against types with bounds."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

Value = TypeVar("Value")

Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""What names a thing: a 64-bit integer."""
Coordinate = Annotated[float, Meta(ge=-1e7, le=1e7)]
"""Pixels; finite, and far beyond any image."""
Extent = Annotated[int, Meta(ge=1, le=1_000_000)]
"""Height or width of an image in pixels."""
Text = Annotated[str, Meta(max_length=100_000, pattern=r"^[^\ud800-\udfff]*\Z")]
"""What a person or a model wrote; lone surrogates, which no file can hold, are refused."""
FileName = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00\ud800-\udfff]+\Z")]
"""A path as an annotation gives it."""

MOST_SHOWN = 60
"""Characters of a value that a message shows."""
_PHRASES = {
    r" matching regex .*x00.*": " without the character 0 and lone surrogates",
    r" matching regex .*ud800.*": " without lone surrogates",
    r" matching regex .*w\{1.*": " of letters, digits and _",
    r"\barray\b": "list",
    r"Number out of range": "a number in range",
    r"Invalid enum value .*": "a value that is known",
}
"""What msgspec says, as a pattern, and how a message says it."""


class Invalid(ValueError):
    """A value that is not of its type."""

    reason: str = ""
    """What was expected at which field, without places in lists: cases are counted by it."""


Whole = Annotated[int, Meta(ge=1, le=2**31 - 1)]
"""A size or a count of which there is one at least."""
Finite = Annotated[float, Meta(ge=-1e300, le=1e300)]
"""A number that is neither NaN nor infinite."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """An object whose fields are checked; fields that it does not know are left alone.

    Types of objects are written `class Part(schemas.Record, frozen=True)`.
    """


def record_of(kind: type) -> type[Record]:
    """Returns the type of the objects that a dataclass of options is stored as.

    It knows the dataclass's fields and no others; numbers are finite. Fields that are dataclasses
    themselves have to be there, others may be left out, and then have no attribute's value but
    `msgspec.UNSET`.

    Args:
      kind: a dataclass whose fields are numbers, texts, choices, lists and dataclasses of such.
    """
    hints = typing.get_type_hints(kind)
    fields: list[Any] = []
    for field in dataclasses.fields(kind):
        of = _stored_type(hints[field.name])
        nested = dataclasses.is_dataclass(hints[field.name])
        fields.append(
            (field.name, of) if nested else (field.name, of | msgspec.UnsetType, msgspec.UNSET)
        )
    made = msgspec.defstruct(
        kind.__name__,
        fields,
        bases=(Record,),
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
    )
    return typing.cast(type[Record], made)


def _stored_type(kind: Any) -> Any:
    """Returns the type of a stored value of an option of this type."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return record_of(kind)
    plain: dict[Any, Any] = {float: Finite, int: Id}
    if kind in plain:
        return plain[kind]
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return tuple[tuple(one if one is ... else _stored_type(one) for one in parts)]
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return typing.Union[tuple(_stored_type(one) for one in parts)]  # noqa: UP007
    return kind


class Repeated:
    """Stands for an object in which a name stands twice; no type is its, so it costs itself."""

    def __init__(self, name: str):
        self.name = name

    def __str__(self) -> str:
        return f"an object with the name {short_repr(self.name)} twice"


def check(
    value: Any,
    kind: type[Value] | types.GenericAlias | types.UnionType,
    *,
    where: str,
    advice: str = "correct the annotation",
) -> Value:
    """Returns a parsed value as a type whose every level holds.

    Args:
      value: of dicts, lists, texts, numbers, as `json.loads` returns them.
      kind: a `Record`, or a type of such as `dict[str, Part]`; bounds are set by `Meta`.
      where: tells the file, the line or the annotation.
      advice: what to do where it does not hold; it ends the message.

    Raises:
      Invalid: one line with the path within the value, what was expected and what was got.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        expected, _, path = str(error).partition(" - at ")
        message, reason = _message(
            expected, path.strip("`"), value=value, where=where, advice=advice
        )
        invalid = Invalid(message)
        invalid.reason = reason
        raise invalid from None
    except UnicodeEncodeError:  # msgspec's, of a text where something else is expected.
        invalid = Invalid(
            f"{where}: expected texts without lone surrogates, got one with some; do: {advice}"
        )
        invalid.reason = "expected texts without lone surrogates"
        raise invalid from None
    except RecursionError:
        raise Invalid(
            f"{where}: expected a value of a few levels, got one too deep to read; do: {advice}"
        ) from None


def holds(value: Any, kind: Any) -> bool:
    """Returns whether a value is of a type, as `check` would find."""
    try:
        msgspec.convert(value, kind)
    except (msgspec.ValidationError, UnicodeEncodeError, RecursionError):
        return False
    return True


def short_repr(value: Any) -> str:
    """Returns a value as a message shows it: one line, escaped, cut; never a long computation."""
    if isinstance(value, list | dict | tuple):  # Perhaps deeper than can be printed.
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, Repeated):
        return str(value)
    if isinstance(value, int) and abs(value) >= 10**MOST_SHOWN:  # More digits than Python prints.
        return "an integer of more digits than fit"
    if isinstance(value, str | bytes):
        value = value[: MOST_SHOWN + 1]
    elif not isinstance(value, int | float | None):
        return f"a value of type {type(value).__name__}"
    text = ascii(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."


def _message(expected: str, path: str, *, value: Any, where: str, advice: str) -> tuple[str, str]:
    """Returns the message of an error of msgspec, and its reason."""
    wanted = expected.partition(", got ")[0].replace("`", "").removeprefix("Expected ")
    if missing := re.fullmatch(r"Object missing required field (.*)", wanted):
        wanted, got = f"a field {missing[1]!r}", "none"
    elif unknown := re.fullmatch(r"Object contains unknown field (.*)", wanted):
        wanted, got = "fields that are known", f"one named {unknown[1]!r}"
    elif path.startswith("key"):
        wanted, got = "texts as names of fields", "others"
        path = path.removeprefix("key` in `")
    else:
        got = short_repr(_value_at(value, path))
        for said, phrase in _PHRASES.items():
            wanted = re.sub(said, phrase, wanted)
    inside = path.removeprefix("$").removeprefix(".")
    place = f"{where}, {inside}" if inside else where
    field = re.sub(r"\[[\d.]*\]", "[]", inside)
    within = where.rpartition(", ")[2]
    if field.startswith("[") and within.isidentifier():
        field = within + field  # As segmentation[][].
    reason = f"expected {wanted} at {field}" if field else f"expected {wanted}"
    return f"{place}: expected {wanted}, got {got}; do: {advice}", reason


def _value_at(value: Any, path: str) -> Any:
    """Returns the part of a value that a path of msgspec names, or the last that can be found."""
    for name, place in re.findall(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]", path):
        try:
            value = value[name] if name else value[int(place)]
        except (KeyError, IndexError, TypeError, ValueError):
            break
    return value
