"""The answer that there is nothing: written, read on the host and the device, held to by tables."""

import itertools

import jax
import numpy as np
import pytest

from seg_jax.grammar import automaton, chat, outline, outline_automaton, reader
from seg_jax.records import Kind, Verdict

RINGS, POINTS = 2, 4
SQUARE = np.array([[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]])
MASK = outline.write_mask([SQUARE])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", True),
        ("It is at [ ].", True),
        ("[[]]", True),
        ("[[[ ]]]", True),
        (outline.write_mask([]), True),
        (f"{chat.denial(index=2)} At all.", True),
        ("The thing [sic] at point 0.1 is not there: []", True),
        ("", False),
        ("nothing", False),
        ("[", False),
        ("[[[0.1", False),
        ("[x]", False),
        ("[0.1, 0.2, 0.3]", False),
    ],
)
def test_an_empty_list_says_that_there_is_nothing(text, says):
    for kind in Kind:
        reading = outline.read(text, kind)
        assert reading.says_nothing is says
        assert reading.verdict == (Verdict.OK if says else Verdict.EMPTY)
        assert reading.rings == ()
        assert reading.point is reading.box is None


def test_who_says_both_has_said_where_and_is_at_fault():
    reading = outline.read(f"[] or {MASK}", Kind.MASK)
    assert (reading.verdict, reading.says_nothing) == (Verdict.MALFORMED, False)
    np.testing.assert_allclose(reading.rings, [SQUARE])
    assert outline.read(f"{MASK} or []", Kind.MASK).verdict == Verdict.MALFORMED
    point = outline.read("[] [0.1, 0.2]", Kind.POINT)
    assert (point.verdict, point.point.tolist()) == (Verdict.MALFORMED, [0.1, 0.2])
    # What was begun and came to nothing is no word that there is none.
    for text in ("[] [[[0.1, 0.2]", "[[[0.1, 0.1], [0.5, 0.1]], []]", "[[[0.1, 0.1]]] []"):
        assert outline.read(text, Kind.MASK).verdict == Verdict.EMPTY


def test_denials_read_as_such_whatever_their_form():
    rng = np.random.default_rng(0)
    drawn = {chat.denial(rng=rng) for _ in range(60)}
    assert drawn == {chat.denial(index=index) for index in range(len(chat.DENIALS))}
    assert all(outline.read(text, kind).says_nothing for text in drawn for kind in Kind)
    assert chat.denial() == "[]."
    plain, more = ([*chat.sentences(["a"], denials=denials)] for denials in (False, True))
    assert {*more} - {*plain} == drawn - {*plain}


def test_the_device_reads_empty_lists_as_the_host_does(single):
    _, tokenizer = single
    parts = ["[]", "[ ]", "[[]]", ", ", "x", MASK, "[0.1, 0.2]", "[0.1, 0.2, 0.3, 0.4]", "[[0.1"]
    texts = [" ".join(some) for n in (1, 2, 3) for some in itertools.product(parts, repeat=n)]
    rows = [tokenizer.encode(text) for text in texts]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    used = np.zeros(ids.shape, bool)
    for place, row in enumerate(rows):
        ids[place, : len(row)], used[place, : len(row)] = row, True
    table = reader.table(tokenizer.pieces)
    read = jax.jit(reader.read, static_argnames=("rings", "points"))
    met = set()
    for kind in Kind:
        answer, verdicts = read(ids, used, table, kind=int(kind), rings=RINGS, points=POINTS)
        says = np.asarray(reader.says_nothing(answer, verdicts))
        for text, verdict, denies in zip(texts, np.asarray(verdicts), says, strict=True):
            wanted = outline.read(text, kind, rings=RINGS, points=POINTS)
            assert (verdict, denies) == (wanted.verdict, wanted.says_nothing), (text, kind)
            met.add((kind, bool(denies)))
    assert len(met) == 6


@pytest.mark.parametrize("mode", ["whole", "single"])
def test_tables_take_the_empty_list_where_it_is_switched_on(mode, request):
    _, tokenizer = request.getfixturevalue(mode)
    digits = 2 if mode == "whole" else 3
    limits = {"digits": digits, "rings": RINGS, "points": POINTS}
    machines = {
        nothing: outline_automaton.machine(nothing=nothing, **limits) for nothing in (False, True)
    }
    tables = {
        nothing: automaton.table(tokenizer.pieces, ends=[tokenizer.end_id], machine=machine)
        for nothing, machine in machines.items()
    }
    usual = {
        Kind.POINT: outline.write_point((0.1, 0.2), digits=digits),
        Kind.BOX: outline.write_box((0.1, 0.2, 0.3, 0.4), digits=digits),
        Kind.MASK: outline.write_mask([SQUARE, SQUARE[::-1]], digits=digits),
    }
    for kind, text in usual.items():
        assert takes(tables[True], tokenizer, f"{text}.", kind)
        for denied in ("[].", "[]"):
            taken = [takes(tables[nothing], tokenizer, denied, kind) for nothing in (False, True)]
            assert taken == [False, denied == "[]."]
        for wrong in ("[[]].", "[[[]]].", "[] .", "[], [].", f"[{text}, []]."):
            assert not takes(tables[True], tokenizer, wrong, kind)
    assert not takes(tables[True], tokenizer, f"{usual[Kind.MASK][:-1]}, []].", Kind.MASK)


def takes(table, tokenizer, text, kind):
    """Whether the tables lead from the start of the kind to the end."""
    following, need, classes = (np.asarray(x) for x in (table.following, table.need, table.classes))
    state = int(table.start[kind])
    for token in [*tokenizer.encode(text), tokenizer.end_id]:
        klass = classes[token]
        if state == automaton.FREE or need[state, klass] == automaton.LATE:
            return False
        state = int(following[state, klass])
    return state == automaton.FREE
