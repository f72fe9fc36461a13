"""Reads pickles of plain values only: nothing in them is looked up, called or run.

The published `refs(*).p` are pickles. A pickle is a program for a small machine; this is a machine
that knows lists, dicts, tuples, texts, bytes and numbers, and no instruction that could reach code.
"""

from __future__ import annotations

import codecs
import gc
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from seg_jax import files

MOST_BYTES = 2**28
"""Most bytes of a file: the largest published one has 40 million; each makes at most one value."""

_MARK = object()
_STOP = ord(".")
_U8, _U16, _U32, _U64 = (struct.Struct(form) for form in ("<B", "<H", "<I", "<Q"))
_I32, _F64 = struct.Struct("<i"), struct.Struct(">d")
_REFUSED = {
    **{"c": "GLOBAL", "\x93": "STACK_GLOBAL", "R": "REDUCE", "b": "BUILD", "i": "INST", "o": "OBJ"},
    **{"\x81": "NEWOBJ", "\x92": "NEWOBJ_EX", "\x82": "EXT1", "\x83": "EXT2", "\x84": "EXT4"},
    **{"P": "PERSID", "Q": "BINPERSID", "\x97": "NEXT_BUFFER", "\x98": "READONLY_BUFFER"},
}


def load(path: Path) -> Any:
    """Returns the value in a pickle file of plain values.

    Texts of Python 2 are read as Latin-1, as everybody reads these files.

    Raises:
      ValueError: the file cannot be read, holds anything else, is broken, or is larger than
        `MOST_BYTES`.
    """
    advice = "get the file from where it was published"
    expected = f"a pickle of at most {MOST_BYTES} bytes"
    data = files.read_bytes(path, most=MOST_BYTES, expected=expected, advice=advice)
    try:
        return loads(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; do: {advice}") from None


def loads(data: bytes, *, more: Mapping[bytes, Step] | None = None) -> Any:
    """Returns the value in a pickle of plain values; protocols 0 to 5.

    Args:
      data: the pickle.
      more: what instructions beyond those of plain values do; they raise `RefusedInstruction` or
        another `ValueError` for whatever they do not know, and call nothing that is named in the
        pickle.

    Raises:
      ValueError: the pickle holds anything else, or is broken.
    """
    machine = Machine(data, _STEPS | dict(more or {}))
    collecting = gc.isenabled()
    gc.disable()  # Millions of new values, none of them garbage.
    try:
        return machine.run()
    except RefusedInstruction:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError, struct.error) as error:
        raise ValueError(
            f"expected a whole pickle, got {type(error).__name__} near byte {machine.at}"
        ) from None
    finally:
        if collecting:
            gc.enable()


class RefusedInstruction(ValueError):
    """An instruction that plain values do not need."""


class Machine:
    """The stack and the memory of a pickle being read."""

    def __init__(self, data: bytes, steps: Mapping[bytes, Step]):
        self.data, self.at = data, 0
        self._steps = [steps.get(bytes([code])) for code in range(256)]
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def run(self) -> Any:
        """Returns what the pickle leaves behind."""
        data, steps = self.data, self._steps
        while data[self.at] != _STOP:
            code = data[self.at]
            self.at += 1
            step = steps[code]
            if step is None:
                self._refuse(bytes([code]))
            else:
                step(self)
        return self.pop()

    def _refuse(self, code: bytes) -> None:
        name = _REFUSED.get(code.decode("latin1"))
        if name is None:
            raise ValueError(f"unknown instruction {code!r}")
        raise RefusedInstruction(
            "expected a pickle of lists, dicts, texts and numbers, "
            f"got the instruction {name} at byte {self.at - 1}, which could run code; none was run"
        )

    def take(self, count: int) -> bytes:
        """Returns the next bytes."""
        if count < 0 or self.at + count > len(self.data):
            raise ValueError("the end")
        self.at += count
        return self.data[self.at - count : self.at]

    def line(self) -> bytes:
        """Returns the bytes up to the next line's end."""
        end = self.data.index(b"\n", self.at)
        found = self.data[self.at : end]
        self.at = end + 1
        return found

    def byte(self) -> int:
        """Returns the next byte as a number."""
        self.at += 1
        return self.data[self.at - 1]

    def number(self, form: struct.Struct) -> Any:
        """Returns a number of this binary form."""
        self.at += form.size
        return form.unpack_from(self.data, self.at - form.size)[0]

    def push(self, value: Any) -> None:
        """Puts a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Takes a value from the stack; a mark is none."""
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark")
        return value

    def pop_to_mark(self) -> list[Any]:
        """Takes the values above the last mark, and the mark."""
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("no mark")
        found = self.stack[place + 1 :]
        del self.stack[place:]
        return found

    def top(self, kind: type) -> Any:
        """Returns the top of the stack, which must be a list or a dict."""
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"no {kind.__name__}")
        return self.stack[-1]

    def memoize(self, place: int) -> None:
        """Remembers the top of the stack."""
        if self.stack[-1] is _MARK:
            raise ValueError("a mark")
        self.memory[place] = self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        """Sets keys and values of the dict on top."""
        if len(items) % 2:
            raise ValueError("a key without a value")
        self.top(dict).update(zip(items[::2], items[1::2], strict=True))

    def push_tuple(self, count: int) -> None:
        """Makes a tuple of the top values."""
        found = [self.pop() for _ in range(count)][::-1]
        self.push(tuple(found))

    def frame(self) -> None:
        """Skips the size of a frame; the whole pickle is in memory already."""
        self.number(_U64)


Step = Callable[[Machine], object]
"""What an instruction does."""


def _integer(text: bytes) -> int | bool:
    """Returns the integer on a line of protocol 0; 00 and 01 mean False and True."""
    if text in (b"00", b"01"):
        return text == b"01"
    return int(text.rstrip(b"L"))


def _quoted(text: bytes) -> str:
    """Returns a text of Python 2 from its quoted line."""
    text = text.strip()
    if len(text) < 2 or text[:1] not in b"'\"" or text[:1] != text[-1:]:
        raise ValueError("no quotes")
    decoded, _ = codecs.escape_decode(text[1:-1])  # pyright: ignore[reportAttributeAccessIssue]
    return decoded.decode("latin1")


def _append(machine: Machine) -> None:
    value = machine.pop()
    machine.top(list).append(value)


def _extend(machine: Machine) -> None:
    values = machine.pop_to_mark()
    machine.top(list).extend(values)


def _set_one(machine: Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _dict(machine: Machine) -> None:
    items = machine.pop_to_mark()
    machine.push({})
    machine.set_items(items)


def _pop(machine: Machine) -> None:
    machine.stack.pop()


def _long(machine: Machine, size: int) -> None:
    machine.push(int.from_bytes(machine.take(size), "little", signed=True))


def _text(form: struct.Struct) -> Callable[[Machine], None]:
    return lambda m: m.push(m.take(m.number(form)).decode("utf-8", "surrogatepass"))


def _old_text(form: struct.Struct) -> Callable[[Machine], None]:
    return lambda m: m.push(m.take(m.number(form)).decode("latin1"))


def _bytes(form: struct.Struct) -> Callable[[Machine], None]:
    return lambda m: m.push(m.take(m.number(form)))


_STEPS: dict[bytes, Step] = {
    b"\x80": lambda m: m.byte(),
    b"\x95": lambda m: m.frame(),
    b"(": lambda m: m.push(_MARK),
    b"0": _pop,
    b"1": lambda m: m.pop_to_mark(),
    b"2": lambda m: m.push(m.stack[-1]),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"I": lambda m: m.push(_integer(m.line())),
    b"L": lambda m: m.push(_integer(m.line())),
    b"J": lambda m: m.push(m.number(_I32)),
    b"K": lambda m: m.push(m.byte()),
    b"M": lambda m: m.push(m.number(_U16)),
    b"\x8a": lambda m: _long(m, m.byte()),
    b"\x8b": lambda m: _long(m, m.number(_I32)),
    b"F": lambda m: m.push(float(m.line())),
    b"G": lambda m: m.push(m.number(_F64)),
    b"S": lambda m: m.push(_quoted(m.line())),
    b"T": _old_text(_I32),
    b"U": _old_text(_U8),
    b"V": lambda m: m.push(m.line().decode("raw-unicode-escape")),
    b"X": _text(_U32),
    b"\x8c": _text(_U8),
    b"\x8d": _text(_U64),
    b"B": _bytes(_U32),
    b"C": _bytes(_U8),
    b"\x8e": _bytes(_U64),
    b"]": lambda m: m.push([]),
    b"l": lambda m: m.push(m.pop_to_mark()),
    b"a": _append,
    b"e": _extend,
    b"}": lambda m: m.push({}),
    b"d": _dict,
    b"s": _set_one,
    b"u": lambda m: m.set_items(m.pop_to_mark()),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.pop_to_mark())),
    b"\x85": lambda m: m.push_tuple(1),
    b"\x86": lambda m: m.push_tuple(2),
    b"\x87": lambda m: m.push_tuple(3),
    b"p": lambda m: m.memoize(int(m.line())),
    b"q": lambda m: m.memoize(m.byte()),
    b"r": lambda m: m.memoize(m.number(_U32)),
    b"\x94": lambda m: m.memoize(len(m.memory)),
    b"g": lambda m: m.push(m.memory[int(m.line())]),
    b"h": lambda m: m.push(m.memory[m.byte()]),
    b"j": lambda m: m.push(m.memory[m.number(_U32)]),
}
