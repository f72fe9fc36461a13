"""Holds the reader of plain pickles to pickle itself, and proves that hostile ones run nothing."""

import contextlib
import copyreg
import datetime
import os
import pickle
import pickletools
import random
import struct
import sys
import tracemalloc

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from seg_jax import safe_pickle

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda some: (
        st.lists(some, max_size=4)
        | st.dictionaries(st.text() | st.integers(), some, max_size=4)
        | st.tuples(some, some)
        | st.tuples(some)
        | st.tuples(some, some, some, some)
    ),
    max_leaves=20,
)


@hypothesis.given(VALUES, st.integers(3, pickle.HIGHEST_PROTOCOL))
def test_plain_values_are_read_as_pickle_reads_them(value, protocol):
    assert safe_pickle.loads(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_old_protocols_are_read(protocol):
    shared = ["a", "\u00e9 \u4f60\n", 3]
    value = {"x": [shared, shared, (1,), (1, 2), (1, 2, 3), (), (1, 2, 3, 4)]}
    value |= {"y": [True, False, None, -7, 2**40, 2**70, 1.5, 255, 65535, -(2**31)], 5: {}}
    read = safe_pickle.loads(pickle.dumps(value, protocol))
    assert read == value
    assert read["x"][0] is read["x"][1]
    assert [type(v) for v in read["y"]] == [type(v) for v in value["y"]]


def test_texts_of_python_2_are_latin_1():
    # {'sent': 'caf\xe9', 'tokens': [u'caf\xe9'], 'n': 7L} as Python 2 writes it.
    zero = b"(dp0\nS'sent'\np1\nS'caf\\xe9'\np2\nsS'tokens'\np3\n(lp4\nVcaf\xe9\np5\nas"
    zero += b"S'n'\np6\nL7L\ns."
    two = b"\x80\x02}q\x00(U\x04sentq\x01U\x04caf\xe9q\x02U\x06tokensq\x03]q\x04"
    two += b"X\x05\x00\x00\x00caf\xc3\xa9q\x05aU\x01nq\x06\x8a\x01\x07u."
    for text in (zero, two):
        assert safe_pickle.loads(text) == {"sent": "caf\xe9", "tokens": ["caf\xe9"], "n": 7}
        assert safe_pickle.loads(text) == pickle.loads(text, encoding="latin1")


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Extended:
    """A class with a code of its own, as copyreg gives them."""


def hostile(folder):
    """Returns pickles that would make a file or reach an object."""
    touch = f"touch {folder / 'touched'}"
    code = f"open({str(folder / 'touched')!r}, 'w').close()"
    copyreg.add_extension(__name__, "Extended", 240)
    try:
        extended = [pickle.dumps(Extended(), protocol) for protocol in (2, 4)]
        by_code = [pickle.dumps([Extended], 2), b"\x80\x02\x82\xf0.", b"\x80\x02\x83\xf0\x00."]
    finally:
        copyreg.remove_extension(__name__, "Extended", 240)
    calls = [
        Calls(os.system, touch),
        Calls(eval, code),
        Calls(exec, code),
        Calls(getattr, "x", "upper"),
    ]
    calls += [Calls(__import__, "os"), Calls(copyreg._reconstructor, object, object, None)]
    others = [np.arange(3), np.float64(1.5), np.random.default_rng(0), datetime.date(2020, 1, 1)]
    others += [{1, 2}, frozenset("a"), random.Random(0), bytearray(b"a"), 1j, int, print, Ellipsis]
    yield from (
        pickle.dumps({"refs": [one]}, protocol)
        for one in [*calls, *others]
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    )
    yield from extended + by_code
    yield f"cposix\nsystem\n(S'{touch}'\ntR.".encode()
    yield f"(S'{touch}'\niposix\nsystem\n.".encode()
    yield f"(cposix\nsystem\nS'{touch}'\no.".encode()
    yield b"c__builtin__\neval\n(S'1'\ntR."
    yield b"Pan id\n."
    yield b"\x80\x02K\x01Q."
    yield b"\x80\x04\x8c\x05posix\x8c\x06system\x93."
    yield b"\x80\x02}}b."
    yield b"\x80\x02]\x81."
    yield b"\x80\x05\x97\x98."


def test_a_hostile_pickle_runs_nothing(tmp_path):
    refused = []
    seen = []
    # Whatever is imported, compiled, executed or opened from here on is seen.
    hook_on = True

    def hook(event, arguments):
        watched = ("import", "exec", "compile", "os.system", "open", "subprocess.Popen")
        if hook_on and event in (*watched, "pickle.find_class"):
            seen.append((event, arguments[:1]))

    attacks = list(hostile(tmp_path))
    sys.addaudithook(hook)
    modules = set(sys.modules)
    try:
        for attack in attacks:
            try:
                value = safe_pickle.loads(attack)
            except ValueError as error:
                refused.append(str(error))
            else:
                pytest.fail(f"{attack[:60]!r} was read as {value!r}")
    finally:
        hook_on = False
    assert len(refused) > 90
    assert all("\n" not in line and len(line) < 200 for line in refused)
    assert seen == []
    assert set(sys.modules) == modules
    assert not (tmp_path / "touched").exists()
    # The trick of this test works: pickle itself falls for it.
    pickle.loads(pickle.dumps(Calls(os.system, f"touch {tmp_path / 'touched'}")))
    assert (tmp_path / "touched").exists()


def test_every_instruction_of_pickle_is_known_or_refused():
    codes = {op.code.encode("latin1") for op in pickletools.opcodes} - {b"."}
    refused = {code.encode("latin1") for code in safe_pickle._REFUSED}
    sets = {b"\x8f", b"\x90", b"\x91", b"\x96"}  # Sets and bytearrays: no plain values.
    assert not refused & set(safe_pickle._STEPS)
    assert codes - refused - set(safe_pickle._STEPS) == sets


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x80\x02]r\xff\xff\xff\xff.",  # Memory of four thousand million places.
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b".",
        b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"K\x01.",
        b"\x80\x02\x8b" + struct.pack("<i", -5) + b".",
        b"I" + b"9" * 100_000 + b"\n.",
        b"\x80\x02" + b"(" * 3000 + b".",
        b"\x80\x02" + b"]" * 3000 + b"a" * 2999 + b".",
        b"(0(1.",
    ],
)
def test_a_bomb_takes_no_more_memory_than_its_bytes(bomb):
    tracemalloc.start()
    with contextlib.suppress(ValueError):
        safe_pickle.loads(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e5 + 300 * len(bomb)


@hypothesis.given(VALUES, st.data())
def test_a_broken_pickle_is_told(value, data):
    text = pickle.dumps(value, data.draw(st.sampled_from([0, 2, 4])))
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(ValueError, match="expected a .*pickle"):
        safe_pickle.loads(text[:cut])


@hypothesis.given(st.binary(max_size=200))
def test_any_bytes_are_read_or_told(text):
    with contextlib.suppress(ValueError):
        safe_pickle.loads(text)


def test_a_file_is_named(tmp_path, monkeypatch):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps(Calls(os.system, "true")))
    with pytest.raises(ValueError, match=r"refs\(unc\).p: expected a pickle of lists"):
        safe_pickle.load(path)
    monkeypatch.setattr(safe_pickle, "MOST_BYTES", 4)
    with pytest.raises(ValueError, match="at most 4 bytes"):
        safe_pickle.load(path)
