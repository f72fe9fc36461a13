"""Bytes behind the entries of a vocabulary."""

from __future__ import annotations

import functools
import re


@functools.cache
def byte_of() -> dict[str, int]:
    """Returns the byte behind each character of a byte-level vocabulary.

    Printable Latin-1 stands for itself, the other 68 bytes for the characters from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + place): byte for place, byte in enumerate(others)},
    }


def token_bytes(token: str, *, byte_level: bool) -> bytes:
    """Returns the bytes of an entry: byte-level, or a byte by number, or text with a space mark."""
    if byte_level and all(character in byte_of() for character in token):
        return bytes(byte_of()[character] for character in token)
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode("utf-8", "replace")


def to_vocabulary(text: str) -> str:
    """Returns a text as a byte-level vocabulary writes it."""
    names = {byte: character for character, byte in byte_of().items()}
    return "".join(names[byte] for byte in text.encode())
