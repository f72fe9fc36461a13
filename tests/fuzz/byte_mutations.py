"""Mutations of bytes and of texts, the same for the same random numbers (helper of the fuzzer)."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

MOST_BYTES = 1 << 20
"""Bytes of a mutated file: small ones find as much and take less time."""

ESCAPES = (
    "\x1b]0;OWNED\x07",
    "\x1b[2J",
    "\r",
    "\x00",
    "\u202e",
    "\x9b31m",
    "\u2028",
    "\x85",
    "\x7f",
)
"""What moves a terminal, ends a line, or is not shown."""

WORDS = (
    *ESCAPES,
    "\ufeff",
    "\u00e9",
    "\u4e2d",
    "\U0001f600",
    "\ufffd",
    "%s%n",
    "{0.__class__}",
    "{{7*7}}",
    "../../x",
    "/dev/zero",
    "/dev/full",
    "/proc/self/mem",
    "a\\b",
    "~",
    "-",
    "",
    " ",
    "\t",
    "\n",
    "NaN",
    "Infinity",
    "-Infinity",
    "null",
    "true",
    "1e999",
    "-0",
    "0x7f",
    "1_000",
    "\u0663",
    "<|im_end|>",
    "<|image_pad|>",
    "__class__",
    "constructor",
    "<script>",
    "&lt;",
    "]]>",
)
"""Texts that mean something to somebody."""

NUMBERS = sorted(
    {
        sign * (2**bits + step)
        for bits in (0, 7, 8, 15, 16, 24, 31, 32, 53, 63, 64)
        for step in (-1, 0, 1)
        for sign in (1, -1)
    }
)
"""Whole numbers at which a type of some width ends."""


def mutated(data: bytes, rng: random.Random, words: Sequence[bytes] = ()) -> bytes:
    """Returns bytes with one to six changes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        _change(out, rng, words)
    return bytes(out[:MOST_BYTES])


def _change(out: bytearray, rng: random.Random, words: Sequence[bytes]) -> None:
    """Changes something somewhere."""
    begin = rng.randrange(len(out) + 1)
    # Short pieces as often as long ones.
    end = min(len(out), begin + rng.choice((1, 2, 4, 8, rng.randrange(1, len(out) + 2))))
    match rng.randrange(9):
        case 0 if out:
            out[begin % len(out)] ^= 1 << rng.randrange(8)
        case 1 if out:
            out[begin % len(out)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        case 2:
            del out[begin:end]
        case 3:
            out[begin:begin] = rng.randbytes(rng.choice((1, 2, 4, 16)))
        case 4:
            at = rng.randrange(len(out) + 1)
            out[at : at + rng.choice((0, end - begin))] = out[begin:end]
        case 5:
            del out[begin:]
        case 6:
            out[begin:begin] = out[begin:end] * rng.choice((1, 2, 50))
        case 7:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(NUMBERS) % 256**width
            out[begin : begin + width] = number.to_bytes(width, rng.choice(("big", "little")))
        case _:
            word = rng.choice(words) if words and rng.random() < 0.7 else _word(rng)
            out[begin : begin + rng.choice((0, len(word)))] = word


def _word(rng: random.Random) -> bytes:
    return rng.choice(WORDS).encode("utf-8", "surrogatepass")


def mutated_text(data: bytes, rng: random.Random, words: Sequence[str] = ()) -> bytes:
    """Returns a text with changes to its words, numbers, lines or bytes.

    Args:
      data: of the text.
      rng: decides.
      words: of the language of the text.
    """
    if rng.random() < 0.2:
        return mutated(data, rng, [word.encode() for word in words])
    text = data.decode("utf-8", "surrogateescape")
    for _ in range(rng.choice((1, 1, 2, 4))):
        text = _changed_text(text, rng, words)
    return text.encode("utf-8", "surrogatepass" if rng.random() < 0.9 else "replace")[:MOST_BYTES]


def _changed_text(text: str, rng: random.Random, words: Sequence[str]) -> str:
    parts = re.findall(r"\w+|\s+|[^\w\s]", text)
    if not parts:
        return rng.choice(words or WORDS)
    place = rng.randrange(len(parts))
    end = min(len(parts), place + rng.choice((1, 1, 3, 10)))
    match rng.randrange(7):
        case 0:
            del parts[place:end]
        case 1:
            parts[place:place] = parts[place:end] * rng.choice((1, 1, 5, 100))
        case 2:
            parts[place] = rng.choice(words or WORDS)
        case 3:
            parts.insert(place, rng.choice(WORDS if rng.random() < 0.5 else words or WORDS))
        case 4:
            other = rng.randrange(len(parts))
            parts[place], parts[other] = parts[other], parts[place]
        case 5:
            numbers = [at for at, part in enumerate(parts) if part.isdecimal()]
            at = rng.choice(numbers) if numbers else place
            parts[at] = number_text(rng)
        case _:
            return _changed_lines(text, rng)
    return "".join(parts)


def _changed_lines(text: str, rng: random.Random) -> str:
    lines = text.split("\n")
    place = rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            del lines[place]
        case 1:
            lines.insert(place, lines[rng.randrange(len(lines))])
        case 2:
            lines[place] += rng.choice(("\r", "\x85", "\u2028", " ", "\\"))
        case 3:
            lines[place : place + 2] = ["".join(lines[place : place + 2])]
        case _:
            return text.removesuffix("\n") if rng.random() < 0.5 else text + "\n" * 3
    return "\n".join(lines)


def number_text(rng: random.Random) -> str:
    """Returns a number as somebody could write it."""
    match rng.randrange(6):
        case 0:
            return str(rng.choice(NUMBERS))
        case 1:
            return f"{rng.choice(NUMBERS)}.{rng.randrange(10**6)}"
        case 2:
            return f"{rng.uniform(-2, 2):.{rng.randrange(1, 20)}f}"
        case 3:
            return rng.choice(("1e308", "-1e308", "5e-324", "1e999", "1e-999", "-0", "0.0", "00"))
        case 4:
            return rng.choice("123456789") + "0" * rng.choice((20, 400, 5000))
        case _:
            return str(rng.randrange(-100, 1000))
