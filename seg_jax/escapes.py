"""Writes text from outside so that a terminal shows it and is moved by none of it."""

from __future__ import annotations

import json
import re
from typing import Any

# What steers a terminal (C0, DEL, C1), turns the direction of the text around it, breaks a line or
# stands for nothing that can be seen; and halves of characters, which cannot be printed at all.
_STEERING = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)

MOST_SHOWN = 2000
"""Characters of an error that are printed: names and values from outside may be of any length."""


def lines(text: object) -> str:
    r"""Returns a text as a terminal shows it, its lines kept, with `\x1b` for an escape."""
    return _STEERING.sub(lambda match: ascii(match[0])[1:-1], str(text))


def line(text: object) -> str:
    """Returns a text as one line, as `lines` does it; ends of lines become spaces."""
    # Not by one pattern: blanks before an end of a line that does not come would be counted anew
    # from each of them.
    first, *rest = re.split(r"[\r\n]+", str(text))
    if rest:
        first = " ".join(part.strip(" \t") for part in (first, *rest))
    return lines(first)


def brief(text: object) -> str:
    """Returns a text as one line of at most `MOST_SHOWN` characters; its middle is left out.

    An error begins with the place and ends with what to do.
    """
    whole = line(text)
    if len(whole) <= MOST_SHOWN:
        return whole
    end = MOST_SHOWN // 4
    begin = MOST_SHOWN - end - len(note := f" [{len(whole)} characters in all] ")
    return f"{whole[:begin]}{note}{whole[-end:]}"


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Returns a value as JSON of printable ASCII, which also holds for DEL."""
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")
