"""Mutations of images that know their parts, so that changes lie behind checksums and lengths."""

from __future__ import annotations

import random
import struct
import zlib
from typing import NamedTuple

from byte_mutations import NUMBERS, mutated

PNG = b"\x89PNG\r\n\x1a\n"


class Chunk(NamedTuple):
    """A chunk of a PNG."""

    kind: bytes
    data: bytes

    def encoded(self) -> bytes:
        checked = self.kind + self.data
        return struct.pack(">I", len(self.data)) + checked + struct.pack(">I", zlib.crc32(checked))


_BOMB = zlib.compress(bytes(1 << 24))
"""Sixteen million bytes in sixteen thousand."""

_MORE = (
    Chunk(b"acTL", struct.pack(">II", 2, 0)),
    Chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 8, 8, 0, 0, 1, 10, 0, 0)),
    Chunk(b"fdAT", b"\0\0\0\1" + zlib.compress(b"\0" * 200)),
    Chunk(b"tRNS", b"\0\1\0\1\0\1"),
    Chunk(b"PLTE", bytes(range(255)) * 3),
    Chunk(b"gAMA", b"\0\0\0\0"),
    Chunk(b"pHYs", b"\xff" * 9),
    Chunk(b"eXIf", b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"),
    Chunk(b"tEXt", b"Comment\0\x1b]0;OWNED\x07"),
    Chunk(b"zTXt", b"Comment\0\0" + _BOMB),
    Chunk(b"iTXt", b"Comment\0\1\0\0\0" + _BOMB),
    Chunk(b"iCCP", b"x\0\0" + _BOMB),
    Chunk(b"IDAT", b""),
    Chunk(b"IEND", b""),
    Chunk(b"ABCD", b"unknown"),
    Chunk(b"\0\xff\x1b[", b"unknown"),
)


def mutated_png(data: bytes, rng: random.Random) -> bytes:
    """Returns a PNG with changed chunks whose checksums are right, seldom with wrong ones."""
    if rng.random() < 0.15:
        return mutated(data, rng)
    chunks = png_chunks(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _change_chunks(chunks, rng)
    return PNG + b"".join(chunk.encoded() for chunk in chunks)


def png_chunks(data: bytes) -> list[Chunk]:
    """Returns the chunks of a whole PNG."""
    found, at = [], len(PNG)
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        found.append(Chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += size + 12
    return found


def _change_chunks(chunks: list[Chunk], rng: random.Random) -> None:
    if not chunks:
        chunks.append(rng.choice(_MORE))
    place = rng.randrange(len(chunks))
    kind, data = chunks[place]
    match rng.randrange(8):
        case 0 | 1 if kind == b"IHDR" or chunks[0].kind == b"IHDR":
            chunks[0] = Chunk(b"IHDR", _header(chunks[0].data, rng))
        case 2:
            chunks[place] = Chunk(kind, _repacked(data, rng) if kind == b"IDAT" else data[:-1])
        case 3:
            chunks[place] = Chunk(kind, mutated(data, rng))
        case 4:
            del chunks[place]
        case 5:
            chunks.insert(place, rng.choice(chunks))
        case 6:
            chunks.insert(place, rng.choice(_MORE))
        case _:
            chunks[place] = Chunk(rng.choice(_MORE).kind, data)


def _header(data: bytes, rng: random.Random) -> bytes:
    """Returns a header with another size, depth, colour or way to lie."""
    out = bytearray(data.ljust(13, b"\0"))
    match rng.randrange(4):
        case 0:
            sizes = (0, 1, 8, 100, 5000, 9000, 30_000, 2**16, 2**31 - 1, 2**32 - 1)
            struct.pack_into(">I", out, rng.choice((0, 4)), rng.choice(sizes))
        case 1:
            out[8] = rng.choice((0, 1, 2, 4, 8, 16, 32, 255))
        case 2:
            out[9] = rng.choice((0, 2, 3, 4, 6, 1, 255))
        case _:
            out[rng.choice((10, 11, 12))] = rng.choice((0, 1, 2, 255))
    return bytes(out)


def _repacked(data: bytes, rng: random.Random) -> bytes:
    """Returns compressed rows with changes to the rows, or much more than there should be."""
    try:
        rows = zlib.decompress(data)
    except zlib.error:
        return data
    return rng.choice((_BOMB, zlib.compress(mutated(rows, rng)), zlib.compress(rows[:-7])))


def mutated_jpeg(data: bytes, rng: random.Random) -> bytes:
    """Returns a JPEG with changed segments whose lengths are right, seldom with wrong ones."""
    if rng.random() < 0.3:
        return mutated(data, rng)
    segments, rest = jpeg_segments(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(segments))
        marker, inner = segments[place]
        match rng.randrange(6):
            case 0:
                segments[place] = marker, mutated(inner, rng)
            case 1:
                del segments[place]
            case 2:
                segments.insert(place, rng.choice(segments))
            case 3:
                segments[place] = (
                    rng.choice((0xC0, 0xC1, 0xC2, 0xC4, 0xDB, 0xDD, 0xE1, 0xEE)),
                    inner,
                )
            case 4:
                segments.insert(place, (0xE1, b"Exif\0\0" + mutated(_EXIF, rng)))
            case _:
                segments = [_resized(one, rng) for one in segments]
        if not segments:
            break
    head = b"".join(
        bytes((0xFF, marker)) + struct.pack(">H", min(len(inner) + 2, 0xFFFF)) + inner
        for marker, inner in segments
    )
    return b"\xff\xd8" + head + (mutated(rest, rng) if rng.random() < 0.3 else rest)


_EXIF = b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"


def jpeg_segments(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Returns the segments before the scan, each with its marker, and the rest."""
    found, at = [], 2
    while data[at + 1] != 0xDA:
        (size,) = struct.unpack_from(">H", data, at + 2)
        found.append((data[at + 1], data[at + 4 : at + 2 + size]))
        at += 2 + size
    return found, data[at:]


def _resized(segment: tuple[int, bytes], rng: random.Random) -> tuple[int, bytes]:
    """Returns a segment; one with the size of the image has another."""
    marker, inner = segment
    if marker not in (0xC0, 0xC1, 0xC2) or len(inner) < 6:
        return segment
    out = bytearray(inner)
    sizes = (0, 1, 8, 1000, 9000, 0xFFFF)
    struct.pack_into(">H", out, rng.choice((1, 3)), rng.choice(sizes))
    return marker, bytes(out)


def mutated_tiff(data: bytes, rng: random.Random) -> bytes:
    """Returns a little-endian TIFF with changed entries in its directory, or changed bytes."""
    if rng.random() < 0.4:
        return mutated(data, rng)
    out = bytearray(data)
    (at,) = struct.unpack_from("<I", out, 4)
    (count,) = struct.unpack_from("<H", out, at)
    for _ in range(rng.choice((1, 1, 2, 4))):
        entry = at + 2 + 12 * rng.randrange(count)
        match rng.randrange(4):
            case 0:
                tags = (254, 256, 257, 258, 259, 262, 273, 274, 277, 279, 284, 317, 320, 322, 330)
                struct.pack_into("<H", out, entry, rng.choice(tags))
            case 1:
                struct.pack_into("<H", out, entry + 2, rng.choice((1, 2, 3, 4, 5, 7, 11, 16, 255)))
            case 2:
                struct.pack_into("<I", out, entry + 4, rng.choice(NUMBERS) % 2**32)
            case _:
                few = (0, 1, 2, 3, 5, 6, 7, 8, 16, 32, 32773, 34712, 50000, 65000)
                value = rng.choice((*few, rng.choice(NUMBERS) % 2**32))
                struct.pack_into("<I", out, entry + 8, value)
    return bytes(out)
