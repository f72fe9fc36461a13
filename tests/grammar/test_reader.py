"""Tests that the device reader is the host reader."""

import random
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seg_jax.grammar import outline, reader
from seg_jax.records import Kind, Verdict

RINGS, POINTS = 3, 5
read = jax.jit(reader.read, static_argnames=("rings", "points"))


def padded(rows, length):
    ids = np.zeros((len(rows), length), np.int32)
    used = np.zeros(ids.shape, bool)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        used[place, : len(row)] = True
    return ids, used


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


def assert_same(texts_and_kinds, ids, used, table):
    kinds = np.array([kind for _, kind in texts_and_kinds], np.int32)
    polygons, verdicts = read(ids, used, table, kind=kinds, rings=RINGS, points=POINTS)
    points, filled = np.asarray(polygons.points_unit), np.asarray(polygons.used)
    for place, (text, kind) in enumerate(texts_and_kinds):
        want_points, want_used, want_verdict = host(text, kind)
        assert verdicts[place] == want_verdict, (text, kind)
        assert (filled[place] == want_used).all(), (text, kind)
        np.testing.assert_allclose(points[place], want_points, atol=1e-7, err_msg=text)


@pytest.mark.parametrize("mode", ["whole", "single"])
def test_equals_the_host_on_a_tokenizer(mode, request, answers):
    _, tokenizer = request.getfixturevalue(mode)
    drawn = answers(1500, digits=2 if mode == "whole" else 3)
    rows = [tokenizer.encode(text) for text, _ in drawn]
    ids, used = padded(rows, max(map(len, rows)) + 3)
    ids[~used] = tokenizer.encode("]")[0]
    table = reader.table(tokenizer.pieces, vocab_size=tokenizer.vocab_size + 5)
    assert table.classes.shape[0] == tokenizer.vocab_size + 5
    assert_same(drawn, ids, used, table)


def test_equals_the_host_however_the_text_is_cut_into_tokens(answers):
    rng = random.Random(1)
    drawn = answers(1500, digits=3, seed=2)
    pieces, rows = {}, []
    for text, _ in drawn:
        data, row = text.encode(), []
        while data:
            size = rng.randint(1, 9)
            row.append(pieces.setdefault(data[:size], len(pieces)))
            data = data[size:]
        rows.append(row)
    ids, used = padded(rows, max(map(len, rows)))
    assert_same(drawn, ids, used, reader.table(list(pieces)))


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

    assert seen(token) == seen(reader._shortened(token))


def test_long_tokens_do_not_widen_the_table():
    pieces = [b" " * 128, b"=" * 80, b"antidisestablishment 123", b"[" * 30, b"0" * 64, None, b""]
    assert reader.table(pieces).classes.shape == (7, 8)


def test_any_batch_axes_and_one_kind_for_all(whole):
    _, tokenizer = whole
    row = tokenizer.encode("[0.25, 0.50].")
    ids, used = padded([row] * 6, len(row))
    table = reader.table(tokenizer.pieces)
    polygons, verdict = reader.read(
        jnp.asarray(ids.reshape(2, 3, -1)),
        jnp.asarray(used.reshape(2, 3, -1)),
        table,
        kind=Kind.POINT,
        rings=1,
        points=2,
    )
    assert verdict.shape == (2, 3)
    assert (verdict == Verdict.OK).all()
    assert polygons.points_unit[1, 2].tolist() == [[[0.25, 0.5], [0.0, 0.0]]]
    assert polygons.used[1, 2].tolist() == [[True, False]]


def test_a_box_is_its_two_corners(whole):
    _, tokenizer = whole
    ids, used = padded([tokenizer.encode("[0.25, 0.50, 0.75, 1.00].")], 8)
    table = reader.table(tokenizer.pieces)
    polygons, _ = reader.read(ids, used, table, kind=Kind.BOX, rings=2, points=3)
    assert polygons.points_unit[0, 0].tolist() == [[0.25, 0.5], [0.75, 1.0], [0.0, 0.0]]
    assert polygons.used.tolist() == [[[True, True, False], [False] * 3]]


def test_unknown_ids_and_special_tokens_have_no_text(whole):
    _, tokenizer = whole
    row = tokenizer.encode("[0.25, 0.50]")
    noise = [tokenizer.end_id, -1, 10**6, tokenizer.image_id]
    spread = [token for pair in zip(row, noise[: len(row)], strict=True) for token in pair]
    ids, used = padded([spread], len(spread))
    table = reader.table(tokenizer.pieces)
    _, verdict = reader.read(ids, used, table, kind=Kind.POINT, rings=1, points=2)
    assert verdict.tolist() == [Verdict.OK]


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
    rows = [tokenizer.encode(text)[:32] for text, _ in answers(512, digits=2)]
    ids, used = (jnp.asarray(x) for x in padded(rows, 32))
    table = reader.table(tokenizer.pieces)

    def run():
        start = time.perf_counter()
        jax.block_until_ready(read(ids, used, table, kind=Kind.MASK, rings=4, points=16))
        return time.perf_counter() - start

    run()
    assert min(run() for _ in range(20)) < 0.1  # about 3 ms on an idle core; machines are shared
