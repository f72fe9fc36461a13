"""Tests that the device reader of clicks is the host reader."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seg_r1_release as release
from hypothesis import given, settings
from hypothesis import strategies as st
from seg_r1_release import FRAME

from seg_jax.grammar import clicks, clicks_reader, clicks_table, token_table
from seg_jax.records import Verdict

BOXES, POINTS = 2, 6
# One shape for all tests: the reader is compiled twice only, for each way to read.
LANES, LENGTH, CHARACTERS, VOCABULARY = 1000, 48, 9, 65536
compiled = jax.jit(clicks_reader.read, static_argnames=("frame", "boxes", "points", "released"))


def read(rows, pieces, **options):
    """The device's reading of token rows."""
    table = clicks_reader.table(pieces, vocab_size=VOCABULARY).classes
    wide = ((0, 0), (0, CHARACTERS - table.shape[1]))
    table = token_table.Table(np.pad(table, wide, constant_values=clicks_table.NOTHING))
    ids, used = np.zeros((2, LANES, LENGTH), np.int32)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        used[place, : len(row)] = 1
    sizes = {"frame": FRAME, "boxes": BOXES, "points": POINTS}
    answer, verdicts = compiled(ids, used > 0, table, **sizes, **options)
    return [np.asarray(x)[: len(rows)] for x in (*answer, verdicts)]


def padded(values, shape):
    array = np.zeros(shape, np.float32)
    array[: len(values)] = values
    return array


def assert_same(texts, rows, pieces, **options):
    boxes, boxed, points, labels, used, thought, verdicts = read(rows, pieces, **options)
    for place, text in enumerate(texts):
        want = clicks.read(text, frame=FRAME, boxes=BOXES, points=POINTS, **options)
        assert verdicts[place] == want.verdict, text
        assert thought[place] == want.thought, text
        assert (boxed[place] == (np.arange(BOXES) < len(want.boxes_unit))).all(), text
        assert (used[place] == (np.arange(POINTS) < len(want.labels))).all(), text
        assert (labels[place] == padded(want.labels, POINTS)).all(), text
        for ours, theirs in ((boxes, want.boxes_unit), (points, want.points_unit)):
            assert np.abs(ours[place] - padded(theirs, ours.shape[1:])).max() < 1e-7, text


def cut_at_random(texts, seed):
    """Returns rows of tokens of one to nine bytes, and the bytes of each token."""
    rng, pieces, rows = random.Random(seed), {}, []
    for text in texts:
        data, row = text.encode(), []
        while data:
            size = 9 if len(data) > 9 * (LENGTH - len(row) - 4) else rng.randint(1, 9)
            row.append(pieces.setdefault(data[:size], len(pieces)))
            data = data[size:]
        rows.append(row)
    return rows, list(pieces)


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_answers_are_read_as_on_the_host(count, released):
    texts = release.mutated(count * 6 // 5, seed=released)
    texts = [text for text in texts if len(text) < 9 * (LENGTH - 5)][:count]
    assert len(texts) == count
    for begin in range(0, count, LANES):
        some = texts[begin : begin + LANES]
        assert_same(some, *cut_at_random(some, seed=begin), released=released)
    met = {clicks.read(text, frame=FRAME, boxes=BOXES, points=POINTS).verdict for text in texts}
    assert met == set(Verdict)


@pytest.mark.parametrize("mode", ["whole", "single", "moonshots"])
def test_equals_the_host_on_a_tokenizer(mode, request):
    tokenizer = request.getfixturevalue(mode)[-1]
    texts = [f"<{text.partition('<')[2]}"[: LENGTH - 6] for text in release.mutated(300, seed=3)]
    assert_same(texts, [tokenizer.encode(text) for text in texts], tokenizer.pieces)


classes = st.lists(st.integers(0, clicks_table.OTHER), max_size=24).map(bytes)
runs = st.lists(st.tuples(st.integers(0, clicks_table.OTHER), st.integers(1, 12)), max_size=6).map(
    lambda pairs: b"".join(bytes([klass]) * count for klass, count in pairs)
)
parts = st.lists(
    st.sampled_from(
        ["<points>", "</points>", "<labels>", "</bbox>", "</", "[[", "1", "07", "],", "the", "in"]
    ),
    max_size=6,
).map(lambda some: "".join(some).encode().translate(clicks_table.BYTE_CLASS))
NAMES = "0123456789[],<>/ thinkboxplase?"


@settings(max_examples=150)
@given(st.one_of(classes, runs, parts), parts, parts)
def test_shortened_tokens_act_alike(token, before, after):
    short = clicks_reader._shorten(token)
    assert len(short) <= len(token)

    def seen(middle):
        text = "".join(NAMES[char_class] for char_class in before + middle + after)
        return repr(clicks.read(text, frame=FRAME))

    assert seen(token) == seen(short)


def test_words_and_long_tokens_do_not_widen_the_table():
    pieces = [
        b" antidisestablishment",
        b"=" * 80,
        b" " * 128,
        b"[" * 30,
        b"0" * 64,
        b"9" * 64,
        None,
    ]
    assert clicks_reader.table(pieces).classes.shape == (7, 6)
    words = [b"the", b" points", b"interesting", b"Answer", b", so"]
    assert [len(clicks_reader._shorten(w.translate(clicks_table.BYTE_CLASS))) for w in words] == [
        *[1] * 4,
        2,
    ]


def test_lowers_from_shapes_alone_and_refuses_too_little_room():
    shapes = (
        jax.ShapeDtypeStruct((4, 8, 16), jnp.int32),
        jax.ShapeDtypeStruct((4, 8, 16), bool),
        token_table.Table(jax.ShapeDtypeStruct((100, 6), jnp.int8)),
    )
    answer, verdict = jax.eval_shape(
        lambda *a: clicks_reader.read(*a, frame=FRAME, boxes=2, points=7), *shapes
    )
    assert answer.boxes_unit.shape == (4, 8, 2, 4)
    assert answer.points_unit.shape == (4, 8, 7, 2)
    assert verdict.shape == answer.thought.shape == (4, 8)
    with pytest.raises(ValueError, match="expected room for 1 box"):
        jax.eval_shape(lambda *a: clicks_reader.read(*a, frame=FRAME, boxes=0, points=7), *shapes)
