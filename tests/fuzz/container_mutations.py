"""Mutations of safetensors, pickles and stored examples, which know their parts (helper)."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import pickletools
import random
import struct
import zipfile

from byte_mutations import NUMBERS, mutated
from json_mutations import mutated_json

from seg_jax.data import tf_example


def mutated_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Returns a safetensors file with a changed header whose length is right, or changed bytes."""
    if rng.random() < 0.2:
        return mutated(data, rng)
    (size,) = struct.unpack_from("<Q", data)
    header, tensors = data[8 : 8 + size], data[8 + size :]
    match rng.randrange(6):
        case 0:
            tensors = mutated(tensors, rng)
        case 1:
            header = _moved_tensor(header, rng)
        case _:
            header = mutated_json(header, rng)
    header += b" " * rng.choice((0, 0, -len(header) % 8))
    length = len(header) if rng.random() < 0.9 else rng.choice(NUMBERS) % 2**64
    return struct.pack("<Q", length) + header + tensors


def _moved_tensor(header: bytes, rng: random.Random) -> bytes:
    """Returns a header with a tensor of another dtype, shape or place."""
    value = json.loads(header)
    entry = value[rng.choice([name for name in value if name != "__metadata__"])]
    match rng.randrange(3):
        case 0:
            names = ("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64")
            entry["dtype"] = rng.choice(names)
        case 1:
            entry["shape"] = rng.choice(([], [0], [2**32, 2**32], [-1], entry["shape"][::-1]))
        case _:
            entry["data_offsets"][rng.randrange(2)] += rng.choice((-8, -1, 1, 8, 2**40))
    return json.dumps(value).encode()


def mutated_pickle(data: bytes, rng: random.Random) -> bytes:
    """Returns a pickle, written by any protocol, with changed instructions, or changed bytes."""
    data = pickle.dumps(pickle.loads(data), rng.randrange(6))
    return mutated(data, rng) if rng.random() < 0.25 else mutated_instructions(data, rng)


def mutated_archive(data: bytes, rng: random.Random) -> bytes:
    """Returns an archive of torch with a changed pickle or entry, or with changed bytes."""
    if rng.random() < 0.3:
        return mutated(data, rng)
    out = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", kind) as new:
        for name in old.namelist():
            part = old.read(name)
            if name.endswith(".pkl") and rng.random() < 0.8:
                part = mutated_instructions(part, rng)
            elif rng.random() < 0.1:
                part = mutated(part, rng)
            if rng.random() < 0.97:
                new.writestr(name, part)
    return out.getvalue()


def mutated_instructions(data: bytes, rng: random.Random) -> bytes:
    """Returns a pickle with changed instructions."""
    starts = [at for _, _, at in pickletools.genops(data)] + [len(data)]
    steps = [data[a:b] for a, b in itertools.pairwise(starts)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(steps))
        match rng.randrange(6):
            case 0:
                del steps[place]
            case 1:
                steps.insert(place, rng.choice(steps))
            case 2:
                steps.insert(place, rng.choice(_INSTRUCTIONS))
            case 3:
                steps[place] = rng.choice(_INSTRUCTIONS)
            case 4:
                steps[place] = steps[place][:1] + mutated(steps[place][1:], rng)
            case _:
                steps[place : place + 1] = [steps[place]] * rng.choice((2, 100, 5000))
        if not steps:
            break
    return b"".join(steps)


_OPCODES = tuple(
    bytes([code]) for code in b"()]}.0120Nalesudt\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94"
)
_INSTRUCTIONS = (
    *_OPCODES,
    b"cos\nsystem\n",
    b"ios\nsystem\n",
    b"\x93",
    b"R",
    b"b",
    b"P1\n",
    b"Q",
    b"\x82\x01",
    b"V\\ud800\n",
    b"S'\\x1b]0;OWNED\\x07'\n",
    b"Vx\n",
    b"X\x03\0\0\0abc",
    b"X\xff\xff\xff\xff",
    b"I1\n",
    b"I" + b"9" * 5000 + b"\n",
    b"L1L\n",
    b"Inan\n",
    b"Fnan\n",
    b"F1e999\n",
    b"F_1\n",
    b"G\x7f\xf0\0\0\0\0\0\0",
    b"K\x05",
    b"J\xff\xff\xff\xff",
    b"M\0\1",
    b"\x8a\xff" + b"\x01" * 255,
    b"\x8b\xff\xff\xff\x7f",
    b"\x8b\0\0\0\x80",
    b"p0\n",
    b"p-1\n",
    b"g0\n",
    b"gx\n",
    b"q\0",
    b"h\0",
    b"r\0\0\0\0",
    b"j\0\0\0\0",
    b"j\xff\xff\xff\xff",
    b"\x95" + b"\xff" * 8,
    b"\x80\x05",
    b"\x80\xff",
    b"\x8e" + b"\xff" * 8,
    b"\x8c\x01a",
    b"\x8d" + b"\xff" * 8,
    b"C\x01a",
    b"B\xff\xff\xff\xff",
    b"(" * 1000,
    b"]" * 100_000,
    b"]" + b"q\0" + b"h\0a",
    b"]" + b"\x85" * 100_000,
    b"]" + b"(h\0h\0e" * 30,
)
"""Instructions that a reader of plain values knows, and those that it must refuse."""


def mutated_example(data: bytes, rng: random.Random) -> bytes:
    """Returns a stored example with changed features, or changed bytes."""
    if rng.random() < 0.4:
        return mutated(data, rng)
    features = tf_example.decode(data)
    name = rng.choice(sorted(features))
    value = features[name]
    match rng.randrange(6):
        case 0:
            del features[name]
        case 1:
            features[name] = features[rng.choice(sorted(features))]
        case 2:
            features[name] = value[: len(value) // 2]
        case 3 if isinstance(value, list):
            features[name] = value * rng.choice((0, 2, 50))
        case _ if isinstance(value, list) and value:
            place = rng.randrange(len(value))
            features[name] = [*value[:place], mutated(value[place], rng), *value[place + 1 :]]
        case _ if len(value):
            some = value.copy()
            some[rng.randrange(len(some))] = rng.choice((-1, 0, 1, 7, 2**31, 2**62))
            features[name] = some
        case _:
            features[name] = [b"\x1b]0;OWNED\x07\xff"]
    return tf_example.encode(features)
