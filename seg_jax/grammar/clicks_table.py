"""The table by which tags and lists of boxes and clicks are read, on host and device.

A state is a place in one of five tags or in one of three lists. "<" leads into the tags from
wherever it stands, so that a list that breaks off is dropped and the next one is read. The table
takes the language of the release's regular expressions: of points and labels the first list that is
closed, of boxes every one, thoughts included.

Source: Seg-R1, arXiv 2506.22624, the expressions of its release (`parse_custom_format`).
"""

from __future__ import annotations

import enum
import functools
import operator
from collections.abc import Iterator, Sequence

import numpy as np

SIGNS, LETTERS = "[],<>/", "thinkboxplase"
SPACE, OTHER, NOTHING = 16, 30, 31
"""Classes of characters beside digits, which are their own values, `SIGNS` from 10 and `LETTERS`
from 17 on; NOTHING pads and changes nothing."""
CLASSES = 32


def _byte_classes() -> bytes:
    """Returns the class of each byte; bytes above 127 are OTHER."""
    classes = bytearray([OTHER] * 256)
    for first, characters in ((0, "0123456789"), (10, SIGNS), (SPACE + 1, LETTERS)):
        for place, character in enumerate(characters):
            classes[ord(character)] = first + place
    for character in " \t\n\v\f\r\x1c\x1d\x1e\x1f":
        classes[ord(character)] = SPACE
    return bytes(classes)


BYTE_CLASS = _byte_classes()


class Effect(enum.IntEnum):
    """What a character does beside moving the state: bits, of which several may be set."""

    BEGIN = 1
    """A list begins."""
    FIRST = 2
    """The first digit of a number."""
    DIGIT = 4
    """A further one."""
    CORNER = 8
    """One of the four numbers of a box is complete."""
    X = 16
    Y = 32
    LABEL = 64
    ODD = 128
    """A comma is missing: the release's expressions take it, but not its reading of the list."""
    BREAK = 256
    """A list that has begun breaks off."""
    THINK = 512
    THOUGHT = 1024
    """A thought is opened, and closed."""
    BBOX = 2048
    POINTS = 4096
    LABELS = 8192
    """A list is closed."""


STATE_BITS = 7
"""A cell of the table is the next state and, above these bits, the effects."""

# State, characters (0 is every digit, _ a space), next state, effects. A list begins at the name
# of its tag and ends at this name with a stroke. Spaces change no state that has none here.
_WRITTEN = """
points     [  outer      BEGIN
outer      [  point
point      0  x          FIRST
x          0  x          DIGIT
x          _  x_
x          ,  comma      X
x_         ,  comma      X
comma      0  y          FIRST
y          0  y          DIGIT
y          _  y_
y          ]  after      Y
y_         ]  after      Y
after      ,  next
after      [  point      ODD
after      ]  /points
next       [  point
next       ]  /points
labels     [  many       BEGIN
many       0  label      FIRST
label      0  label      DIGIT
label      _  label_
label      ,  more       LABEL
label      ]  /labels    LABEL
label_     0  label      LABEL ODD FIRST
label_     ,  more       LABEL
label_     ]  /labels    LABEL
more       0  label      FIRST
more       ]  /labels
bbox       [  box0       BEGIN
"""
LISTS = {"bbox": Effect.BBOX, "points": Effect.POINTS, "labels": Effect.LABELS}
_THOUGHTS = {"think": Effect.THINK, "/think": Effect.THOUGHT}
_Row = dict[int, tuple[str, int]]
"""What follows on each class of characters."""


def _transitions() -> Iterator[tuple[str, str, str, int]]:
    """Yields what lists may go on with."""
    lines = _WRITTEN.strip().splitlines()
    for k in range(4):
        sign, after = ",]"[k == 3], "/bbox" if k == 3 else f"box{k + 1}"
        lines += [f"box{k} 0 corner{k} FIRST", f"corner{k} 0 corner{k} DIGIT"]
        lines += [f"corner{k} _ corner{k}_"]
        lines += [f"corner{k}{space} {sign} {after} CORNER" for space in ("", "_")]
    for line in lines:
        state, character, following, *effects = line.split()
        together = functools.reduce(operator.or_, map(Effect.__getitem__, effects), 0)
        yield state, character, following, together


def _classes(character: str) -> Sequence[int]:
    return (
        range(10) if character == "0" else [BYTE_CLASS[ord(" " if character == "_" else character)]]
    )


def _breaking_row(row: _Row) -> _Row:
    """Returns the row of a state within a list: what is not expected there breaks it."""
    return {char_class: (following, Effect.BREAK) for char_class, (following, _) in row.items()}


def _rows() -> dict[str, _Row]:
    """Returns every state's row."""
    prose: _Row = dict.fromkeys(range(NOTHING), ("prose", 0))
    prose |= dict.fromkeys(_classes("<"), ("<", 0))
    rows = {"prose": prose}
    for tag in (*_THOUGHTS, *LISTS):
        for end, sign in enumerate(f"{tag}>"):
            row = rows.setdefault(f"<{tag[:end]}", dict(prose))
            following = ("prose", _THOUGHTS[tag]) if tag in _THOUGHTS else (tag, 0)
            row[BYTE_CLASS[ord(sign)]] = following if sign == ">" else (f"<{tag[: end + 1]}", 0)
    for state, character, following, effect in _transitions():
        if state not in rows:
            rows[state] = (prose if state in LISTS else _breaking_row(prose)) | {SPACE: (state, 0)}
        rows[state] |= dict.fromkeys(_classes(character), (following, effect))
    for tag, closed in LISTS.items():
        # What should have closed a list may still open a tag.
        text = f"</{tag}>"
        for end, sign in enumerate(text):
            state = f"/{tag}{text[:end]}"
            rows[state] = _breaking_row(rows.get(text[:end], prose))
            if end == 0:
                rows[state][SPACE] = (state, 0)
            expected = ("prose", closed) if sign == ">" else (f"/{tag}{text[: end + 1]}", 0)
            rows[state][BYTE_CLASS[ord(sign)]] = expected
    return rows


def _table(rows: dict[str, _Row]) -> np.ndarray:
    """Returns the rows as next state + (effects << STATE_BITS), i32[states, CLASSES]."""
    number = {state: place for place, state in enumerate(rows)}
    table = np.zeros((len(rows), CLASSES), np.int32)
    for state, row in rows.items():
        table[number[state], NOTHING] = number[state]
        for char_class, (following, effect) in row.items():
            table[number[state], char_class] = number[following] + (effect << STATE_BITS)
    return table


_ROWS = _rows()
STATES = tuple(_ROWS)
TABLE = _table(_ROWS)
OPEN = np.array([state != "prose" and not state.startswith("<") for state in STATES])
"""In which states a list or its tag is open."""
