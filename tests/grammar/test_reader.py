"""Tests that the device reader is the host reader."""

import random
import time

import compilation
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seg_jax.grammar import outline, reader
from seg_jax.records import Kind, Verdict

RINGS, POINTS = 3, 5
# Shapes of all tests, so that the reader is compiled twice only: few tokens of many characters and
# many of few. Every lane steps through all characters that would fit.
LANES, VOCABULARY = 600, 16384
SHAPES = [(96, 12), (352, 4)]
compiled = jax.jit(reader.read, static_argnames=("rings", "points"))


def read(rows, kinds, pieces):
    """The device's reading of token rows: points, used, verdicts."""
    table = reader.table(pieces, vocab_size=VOCABULARY).classes
    need = np.array([max(map(len, rows)), table.shape[1]])
    length, characters = next(shape for shape in SHAPES if (need <= shape).all())
    ids, used = np.zeros((2, LANES, length), np.int32)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        used[place, : len(row)] = 1
    wide = ((0, 0), (0, characters - table.shape[1]))
    table = reader.Table(np.pad(table, wide, constant_values=outline.NOTHING))
    kinds = np.resize(np.asarray(kinds, np.int32), LANES)
    polygons, verdicts = compiled(ids, used > 0, table, kind=kinds, rings=RINGS, points=POINTS)
    return [np.asarray(x)[: len(rows)] for x in (*polygons, verdicts)]


def host(text, kind):
    """The host's reading in the device's layout."""
    reading = outline.read(text, kind, rings=RINGS, points=POINTS)
    singles = [x.reshape(-1, 2) for x in (reading.point, reading.box) if x is not None]
    points = np.zeros((RINGS, POINTS, 2), np.float32)
    used = np.zeros((RINGS, POINTS), bool)
    for place, ring in enumerate([*reading.rings, *singles]):
        points[place, : len(ring)] = ring
        used[place, : len(ring)] = True
    return points, used, reading.verdict


def assert_same(drawn, rows, pieces):
    points, filled, verdicts = read(rows, [kind for _, kind in drawn], pieces)
    for place, (text, kind) in enumerate(drawn):
        want_points, want_used, want_verdict = host(text, kind)
        assert verdicts[place] == want_verdict, (text, kind)
        assert (filled[place] == want_used).all(), (text, kind)
        np.testing.assert_allclose(points[place], want_points, atol=1e-7, err_msg=text)


@pytest.mark.parametrize("mode", ["whole", "single"])
def test_equals_the_host_on_a_tokenizer(mode, request, answers):
    _, tokenizer = request.getfixturevalue(mode)
    drawn = answers(LANES, digits=2 if mode == "whole" else 3)
    assert_same(drawn, [tokenizer.encode(text) for text, _ in drawn], tokenizer.pieces)


def test_equals_the_host_however_the_text_is_cut_into_tokens(answers):
    rng = random.Random(1)
    drawn = answers(LANES, digits=3, seed=2)
    pieces, rows = {}, []
    for text, _ in drawn:
        data, row = text.encode(), []
        while data:
            size = rng.randint(1, 9)
            row.append(pieces.setdefault(data[:size], len(pieces)))
            data = data[size:]
        rows.append(row)
    assert_same(drawn, rows, list(pieces))


def test_equals_the_host_on_moonshots_tokenizer(moonshots, answers):
    _, found, tokenizer = moonshots
    assert {b"371", b"]]", b"],", b" [["} <= set(found), "numbers by threes, marks together"
    drawn = answers(LANES, digits=3, seed=3)
    assert_same(drawn, [tokenizer.encode(text) for text, _ in drawn], tokenizer.pieces)


def test_equals_the_host_on_whatever_moonshots_tokens_a_model_writes(moonshots, answers):
    _, found, tokenizer = moonshots
    rng = random.Random(4)
    marks = [rank for piece, rank in found.items() if not piece.strip(b"0123456789.,-[] ")]
    halves = [rank for piece, rank in found.items() if piece[0] > 127]
    special = list(tokenizer.special.values())
    assert min(len(marks), len(halves)) > 100
    rows = []
    for text, _ in answers(LANES // 2, digits=3, seed=5):
        row = tokenizer.encode(text)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(row) + 1)
            row[at : at + rng.randint(0, 2)] = [rng.choice(rng.choice([marks, halves, special]))]
        rows.append(row)
    for _ in range(LANES - len(rows)):
        start = tokenizer.encode(rng.choice(starts))
        kinds = rng.choices([marks, halves, special, range(len(found))], [9, 1, 1, 1], k=40)
        rows.append([*start, *(rng.choice(kind) for kind in kinds)])
    kinds = [Kind(rng.randrange(3)) for _ in rows]
    drawn = [(tokenizer.decode(row), kind) for row, kind in zip(rows, kinds, strict=True)]
    assert any("\ufffd" in text for text, _ in drawn), "letters that are cut in two"
    assert {host(*one)[2] for one in drawn} == set(Verdict)
    assert_same(drawn, rows, tokenizer.pieces)


def test_drawn_answers_meet_every_verdict(answers):
    drawn = answers(LANES, digits=3)
    for kind in Kind:
        met = {host(text, asked)[2] for text, asked in drawn if asked == kind}
        often = {Verdict.OK, Verdict.MALFORMED, Verdict.EMPTY}
        assert met >= (set(Verdict) if kind == Kind.MASK else often)


classes = st.lists(st.integers(0, outline.OTHER), max_size=40).map(bytes)
runs = st.lists(st.tuples(st.integers(0, outline.OTHER), st.integers(1, 12)), max_size=8).map(
    lambda pairs: b"".join(bytes([klass]) * count for klass, count in pairs)
)
starts = ["", "[[[", "[[[0.1, 0.2]", "[[[0.1, 0.2], [0.3", "[0.1, ", "[[0.1, 0.2], [0.3, 0.5]]"]


@given(st.one_of(classes, runs), st.sampled_from(starts), classes, st.sampled_from(Kind))
def test_shortened_tokens_act_alike(token, before, after, kind):
    names = dict(zip(range(17), "0123456789.,-[] x", strict=True))

    def seen(middle):
        text = before + "".join(names[klass] for klass in middle + after)
        reading = outline.read(text, kind)
        return repr(reading)

    assert seen(token) == seen(reader._shorten(token))


def test_long_tokens_do_not_widen_the_table():
    pieces = [b" " * 128, b"=" * 80, b"antidisestablishment 123", b"[" * 30, b"0" * 64, None, b""]
    assert reader.table(pieces).classes.shape == (7, 8)


def test_points_and_boxes_are_rings(whole):
    _, tokenizer = whole
    rows = [tokenizer.encode(text) for text in ("[0.25, 0.50].", "[0.25, 0.50, 0.75, 1.00].")]
    points, used, verdicts = read(rows, [Kind.POINT, Kind.BOX], tokenizer.pieces)
    assert verdicts.tolist() == [Verdict.OK] * 2
    assert points[0, 0, :2].tolist() == [[0.25, 0.5], [0.0, 0.0]]
    assert points[1, 0, :3].tolist() == [[0.25, 0.5], [0.75, 1.0], [0.0, 0.0]]
    assert used[:, 0].sum(1).tolist() == [1, 2]
    assert not used[:, 1:].any()


def test_unknown_ids_and_special_tokens_have_no_text(whole):
    _, tokenizer = whole
    row = tokenizer.encode("[0.25, 0.50]")
    noise = [tokenizer.end_id, -1, 10**6, tokenizer.image_id]
    spread = [token for pair in zip(row, noise[: len(row)], strict=True) for token in pair]
    assert read([spread], [Kind.POINT], tokenizer.pieces)[2].tolist() == [Verdict.OK]


def test_refuses_too_little_room(whole):
    _, tokenizer = whole
    table = reader.table(tokenizer.pieces)
    with pytest.raises(ValueError, match="expected room"):
        reader.read(
            np.zeros((1, 2), np.int32), np.ones((1, 2), bool), table, kind=0, rings=1, points=1
        )
    with pytest.raises(ValueError, match="expected a vocab_size"):
        reader.table(tokenizer.pieces, vocab_size=3)


def test_lowers_from_shapes_alone():
    shapes = (
        jax.ShapeDtypeStruct((4, 8, 16), jnp.int32),
        jax.ShapeDtypeStruct((4, 8, 16), bool),
        reader.Table(jax.ShapeDtypeStruct((100, 6), jnp.int8)),
    )
    polygons, verdict = jax.eval_shape(
        lambda *a: reader.read(*a, kind=Kind.MASK, rings=2, points=7), *shapes
    )
    assert polygons.points_unit.shape == (4, 8, 2, 7, 2)
    assert verdict.shape == (4, 8)


def test_quick_enough_for_rollouts(whole, answers):
    _, tokenizer = whole
    ids = np.zeros((512, 32), np.int32)
    for row, (text, _) in zip(ids, answers(512, digits=2), strict=True):
        tokens = tokenizer.encode(text)[:32]
        row[: len(tokens)] = tokens
    table = reader.table(tokenizer.pieces)
    quick = jax.jit(
        lambda ids: reader.read(ids, ids >= 0, table, kind=2, rings=4, points=16),
        compiler_options=compilation.as_users(),
    )

    def seconds():
        start = time.perf_counter()
        jax.block_until_ready(quick(ids))
        return time.perf_counter() - start

    seconds()
    assert min(seconds() for _ in range(20)) < 0.1  # a few ms; machines are shared
