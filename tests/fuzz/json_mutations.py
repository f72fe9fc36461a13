"""Mutations of JSON values, JSON files and files of JSON lines (helper of the fuzzer)."""

from __future__ import annotations

import json
import random
import re
from typing import Any

from byte_mutations import ESCAPES, MOST_BYTES, NUMBERS, WORDS, mutated, number_text

# What Python's writer of JSON cannot write is written as texts that are replaced afterwards.
_RAW, _AGAIN = "\x00raw ", "\x00again "

_ODD_NUMBERS = ("1e999", "-1e999", "NaN", "-Infinity", "1e-400", "-0", "-0.0", "1" + "0" * 400)


def mutated_json(data: bytes, rng: random.Random) -> bytes:
    """Returns a JSON file with changes to its values, seldom to how they are written."""
    if rng.random() < 0.08:
        return mutated(data, rng)
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        value = changed(value, rng)
    return _encoded(_text(value, rng), rng)[: 2 * MOST_BYTES]


def mutated_lines(data: bytes, rng: random.Random) -> bytes:
    """Returns a file of JSON lines with changes to a line, or to the order of lines."""
    lines = data.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    match rng.randrange(12):
        case 0:
            return mutated(data, rng)
        case 1:
            lines.insert(rng.randrange(len(lines) + 1), lines[place])
        case 2:
            del lines[place]
        case 3:
            lines[place] = lines[place].rstrip(b"\n") + rng.choice((b"", b"\r\n", b"\x0c", b"\0"))
        case 4:
            rng.shuffle(lines)
        case _:
            lines[place] = mutated_json(lines[place], rng) + b"\n"
    return b"".join(lines)[:MOST_BYTES]


def changed(value: Any, rng: random.Random) -> Any:
    """Returns a JSON value with one change; what it is given may be changed too."""
    places = _places(value)
    if not places or rng.random() < 0.02:
        return _any_value(value, rng)
    holder, key = rng.choice(places)
    old = holder[key]
    match rng.randrange(10):
        case 0 | 1 | 2:
            holder[key] = _any_value(old, rng)
        case 3 | 4:
            holder[key] = _alike(old, rng)
        case 5:
            del holder[key]
        case 6:
            other, name = rng.choice(places)
            holder[key] = _copied(other[name])
        case 7 if isinstance(holder, dict):
            _rename(holder, key, rng)
        case 8 if isinstance(holder, list):
            size = len(json.dumps(old))  # Repeated by turns it would fill the memory.
            many = min(rng.choice((1, 1, 1, 30, 1000)), 1 + MOST_BYTES // size)
            holder[key:key] = [_copied(old) for _ in range(many)]
        case 9 if isinstance(holder, list):
            rng.shuffle(holder)
        case _:
            holder[key] = rng.choice(([old], {"a": old}, [[old]], [], {}, None))
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Returns where values stand within a value: what holds them, and under which key."""
    found, left = [], [value]
    while left and len(found) < 5000:
        one = left.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one)) if _is_list(one) else ()
        found += [(one, key) for key in keys]
        left += [one[key] for key in keys]
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _copied(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _any_value(old: Any, rng: random.Random) -> Any:
    """Returns a value of any type."""
    match rng.randrange(10):
        case 0:
            return rng.choice((None, True, False, [], {}, "", 0, -1, 1.5))
        case 1:
            return rng.choice(NUMBERS)
        case 2:
            return _RAW + rng.choice(_ODD_NUMBERS)
        case 3:
            return _RAW + number_text(rng).lstrip("0").rjust(1, "0")
        case 4:
            return rng.choice(WORDS)
        case 5:
            return rng.choice(("\ud800", "a\udfff", "x" * 100_000, "9" * 5000, "\u0000", "\n\n"))
        case 6:
            depth = rng.choice((1, 2, 3, 3, 10, 10, 1000, 100_000))
            return _RAW + rng.choice(
                ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth)
            )
        case 7:
            return [_any_value(old, rng) for _ in range(rng.choice((1, 2, 4, 5)))]
        case 8:
            return {rng.choice(("size", "counts", "id", "a", "")): old, "b": rng.choice(NUMBERS)}
        case _:
            return [rng.choice((0, 1, -1, 0.5, 1e6))] * rng.choice((1, 6, 6, 6, 1000, 1000, 50_000))


def _alike(old: Any, rng: random.Random) -> Any:
    """Returns a value near the one that was there."""
    if isinstance(old, bool) or old is None:
        return rng.choice((True, False, None, 0, 1, "true"))
    if isinstance(old, int | float):
        step = rng.choice((-1, 1, 0.5, -old, old, 1000, 1e7, -1e7, 1e-9))
        return rng.choice((old + step, str(old), -old, [old], bool(old), float(old)))
    if isinstance(old, str):
        return _changed_string(old, rng)
    if isinstance(old, list):
        return rng.choice((old[::-1], old[:-1], old * 2, {str(n): x for n, x in enumerate(old)}))
    return rng.choice((list(old.values()), list(old), {}, [old, old]))


def _changed_string(old: str, rng: random.Random) -> str:
    at = rng.randrange(len(old) + 1)
    match rng.randrange(7):
        case 0:
            return old[:at] + rng.choice(ESCAPES) + old[at:]
        case 1:
            return rng.choice(("../", "/", "a/", "./", " ", "\ufeff")) + old
        case 2:
            return old[:at]
        case 3:
            return old[:at] + rng.choice(WORDS) + old[at + 1 :]
        case 4:
            return old * (2 if len(old) > 1000 else rng.choice((2, 500)))
        case 5:
            return old.swapcase()
        case _:
            return (
                old[:at] + chr(rng.choice((rng.randrange(128), rng.randrange(0xD800)))) + old[at:]
            )


def _rename(holder: dict, key: str, rng: random.Random) -> None:
    """Gives a value another key, or its key a second value."""
    if rng.random() < 0.5:
        holder[_AGAIN + key] = _any_value(holder[key], rng)
        return
    value = holder.pop(key)
    holder[rng.choice((*holder, key.upper(), key + "s", *WORDS))] = value


def _text(value: Any, rng: random.Random) -> str:
    """Returns a value as JSON, with what JSON does not allow."""
    ascii_only = rng.random() < 0.7
    text = json.dumps(value, ensure_ascii=ascii_only, indent=1 if rng.random() < 0.03 else None)
    text = text.replace(r'"\u0000again ', '"')
    return re.sub(r'"\\u0000raw ((?:[^"\\]|\\.)*)"', lambda raw: json.loads(f'"{raw[1]}"'), text)


def _encoded(text: str, rng: random.Random) -> bytes:
    match rng.randrange(24):
        case 0:
            return b"\xef\xbb\xbf" + text.encode("utf-8", "surrogatepass")
        case 1:
            return text.encode(rng.choice(("utf-16", "utf-32-be")), "replace")
        case 2:
            return text.encode("latin-1", "replace")
        case 3:
            return (text + rng.choice(("}", ",", "//", "\0", text))).encode(
                "utf-8", "surrogatepass"
            )
        case _:
            return text.encode("utf-8", "surrogatepass")
