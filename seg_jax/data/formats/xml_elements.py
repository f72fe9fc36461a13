"""Reads XML, a child of the root element at a time; document types and entities are refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from seg_jax import files

MOST_BYTES = 1 << 30
MOST_LEVELS = 20
"""Elements within each other."""
MOST_ELEMENTS = 1_000_000
"""Elements of a child of the root."""
_BLOCK = 1 << 20
_ADVICE = "export the annotations anew"
_DOCTYPE = "a document type or entities"
_LIMITS = "elements nested too deep, or too many of them"


class _Refused(Exception):
    """What is valid XML, and none that labelling tools write."""


class _Builder:
    """Makes elements of a parser's events: whole children of the root."""

    def __init__(self):
        self.root = ""
        self.whole: list[ElementTree.Element] = []
        self._tree, self._level, self._count = ElementTree.TreeBuilder(), 0, 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Begins an element."""
        self._level += 1
        if self._level == 1:
            self.root = name
            return
        if self._level == 2:
            self._tree, self._count = ElementTree.TreeBuilder(), 0
        self._count += 1
        if self._level > MOST_LEVELS or self._count > MOST_ELEMENTS:
            raise _Refused(_LIMITS)
        self._tree.start(name, attributes)

    def end(self, name: str) -> None:
        """Ends an element."""
        self._level -= 1
        if self._level:
            self._tree.end(name)
        if self._level == 1:
            self.whole.append(self._tree.close())

    def text(self, text: str) -> None:
        """Adds to the text of an element."""
        if self._level > 1:
            self._tree.data(text)


def _refuse(*_: object) -> Any:
    raise _Refused(_DOCTYPE)


def children(path: Path) -> Iterator[tuple[str, ElementTree.Element]]:
    """Yields the children of the root element, each with the root's name.

    Args:
      path: of the file.

    Raises:
      ValueError: it cannot be read, is no XML, or has a document type.
    """
    data = files.read_bytes(path, most=MOST_BYTES, expected="XML", advice=_ADVICE)
    builder, parser = _Builder(), expat.ParserCreate()
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = _refuse
    parser.ExternalEntityRefHandler = parser.UnparsedEntityDeclHandler = _refuse
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.text
    parser.buffer_text = True
    for begin in range(0, max(len(data), 1), _BLOCK):
        block = data[begin : begin + _BLOCK]
        try:
            parser.Parse(block, begin + _BLOCK >= len(data))
        except expat.ExpatError as error:
            got = f"{expat.ErrorString(error.code)} in line {error.lineno}"
        except (_Refused, ValueError, LookupError) as error:
            got = str(error) or "another text"
        else:
            got = ""
        yield from ((builder.root, one) for one in builder.whole)
        builder.whole.clear()
        if not got:
            continue
        raise ValueError(f"{path}: expected XML of a labelling tool, got {got}; do: {_ADVICE}")


def numbers(text: str, *, most: int = 2**24) -> list[float] | None:
    """Returns the numbers of an attribute, between commas, semicolons and spaces.

    Args:
      text: of the attribute.
      most: the largest count of numbers.

    Returns:
      Finite numbers; None where something else stands there, or too many.
    """
    words = text.replace(";", ",").replace(",", " ").split()
    try:
        found = [float(word) for word in words] if len(words) <= most else [math.nan]
    except ValueError:
        return None
    return found if all(abs(number) < 1e7 for number in found) else None
