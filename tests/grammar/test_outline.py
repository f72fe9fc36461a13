"""Tests of what is written and of the tolerant reader on the host."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seg_jax.grammar import outline
from seg_jax.records import Kind, Verdict

TRIANGLE = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.9]])
WRITTEN = "[[[0.100, 0.200], [0.300, 0.400], [0.500, 0.900]]]"

kinds = st.sampled_from(Kind)
grammar_like = st.text(st.sampled_from("[[[]]],,,...  0123456789-xé\n"), max_size=120)


def read_mask(text):
    reading = outline.read(text, Kind.MASK)
    return reading.verdict, [ring.tolist() for ring in reading.rings]


def test_written_forms():
    assert outline.write_mask([TRIANGLE]) == WRITTEN
    two = outline.write_mask([TRIANGLE, TRIANGLE[::-1]], digits=1)
    assert two == "[[[0.1, 0.2], [0.3, 0.4], [0.5, 0.9]], [[0.5, 0.9], [0.3, 0.4], [0.1, 0.2]]]"
    assert outline.write_point((0.26, 0.5)) == "[0.260, 0.500]"
    assert outline.write_box((0, 0.25, 0.5, 1), digits=2) == "[0.00, 0.25, 0.50, 1.00]"


def test_writer_clamps_and_rounds_to_even_digits():
    assert outline.write_point((-0.5, 1.7)) == "[0.000, 1.000]"
    assert outline.write_point((0.9996, 0.0004)) == "[1.000, 0.000]"
    assert outline.write_point((0.1239, 0.1231), digits=2) == "[0.12, 0.12]"


def test_writer_drops_repeats_and_hollow_rings():
    repeated = np.repeat(TRIANGLE, 2, axis=0)
    closed = np.concatenate([repeated, TRIANGLE[:1] + 1e-5])
    assert outline.write_mask([closed]) == WRITTEN
    assert outline.write_mask([TRIANGLE[:2], TRIANGLE, TRIANGLE * 1e-5]) == WRITTEN
    assert outline.write_mask([]) == outline.write_mask([np.zeros((0, 2))]) == "[]"


@pytest.mark.parametrize("box", [(0.5, 0.5, 0.5, 0.5), (1, 1, 1, 1), (0, 0, 0, 1), (0.9, 0, 1, 0)])
def test_written_box_always_has_area(box):
    reading = outline.read(outline.write_box(box, digits=2), Kind.BOX)
    assert reading.verdict == Verdict.OK
    assert (reading.box[2:] > reading.box[:2]).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: outline.write_point((0.1, np.nan)),
        lambda: outline.write_point((0.1, 0.2, 0.3)),
        lambda: outline.write_box((0.1, 0.2)),
        lambda: outline.write_point((0.1, 0.2), digits=0),
        lambda: outline.write_point((0.1, 0.2), digits=7),
    ],
)
def test_writer_refuses_clearly(call):
    with pytest.raises(ValueError, match=r"expected .*, got .*; do: "):
        call()


unit = st.floats(0, 1)
ring = st.lists(st.tuples(unit, unit), min_size=3, max_size=12).map(np.array)


@given(st.lists(ring, min_size=1, max_size=4), st.integers(1, 6))
def test_mask_round_trip(rings, digits):
    text = outline.write_mask(rings, digits=digits)
    reading = outline.read(text, Kind.MASK)
    assert (reading.verdict, reading.says_nothing) == (Verdict.OK, text == "[]")
    assert outline.write_mask(reading.rings, digits=digits) == text
    for got in reading.rings:
        nearest = [
            np.abs(vertex - np.concatenate(rings)).max(1).min() <= 0.5001 * 10.0**-digits
            for vertex in got
        ]
        assert all(nearest)


@given(unit, unit, unit, unit)
def test_point_and_box_round_trip(a, b, c, d):
    point = outline.read(outline.write_point((a, b)), Kind.POINT)
    assert point.verdict == Verdict.OK
    np.testing.assert_allclose(point.point, (a, b), atol=0.0005001)
    box = outline.read(f"It is at {outline.write_box((a, b, c, d))}.", Kind.BOX)
    assert box.verdict == Verdict.OK
    corners = [min(a, c), min(b, d), max(a, c), max(b, d)]
    np.testing.assert_allclose(box.box, corners, atol=0.0015001)


@pytest.mark.parametrize(
    "text",
    [
        WRITTEN,
        f"{WRITTEN}.",
        f"Sure, you can find it at {WRITTEN}.",
        f"The thing [sic] at point [0.1, 0.2] in box [0.1, 0.2, 0.3, 0.4]: {WRITTEN} Good luck!",
        WRITTEN.replace(" ", ""),
        WRITTEN.replace(" ", "  \n"),
        WRITTEN.replace("00]", "]").replace("00,", ","),
        WRITTEN.replace("0.", "."),
        WRITTEN[1:-1],
        f"```json\n{{'polygon': {WRITTEN}}}\n```",
    ],
)
def test_tolerated_as_ok(text):
    verdict, rings = read_mask(text)
    assert verdict == Verdict.OK
    np.testing.assert_allclose(rings, [TRIANGLE])


def test_the_cases_that_crash_the_released_decoder():
    kept = [TRIANGLE.tolist()]
    assert read_mask(WRITTEN[:-3] + "], [0.7, 0.") == (Verdict.TRUNCATED, kept)
    assert read_mask(WRITTEN[:-3]) == (Verdict.EMPTY, [])
    assert read_mask(WRITTEN[:-2]) == (Verdict.TRUNCATED, kept)
    negative = [[0.1, 0.2], [0.0, 0.4], [0.5, 0.9]]
    assert read_mask(WRITTEN.replace("0.300", "-0.3")) == (Verdict.CLAMPED, [negative])
    assert read_mask(WRITTEN.replace("0.900", "0.9.0")) == (Verdict.EMPTY, [])
    assert read_mask("[[[0.1, 0.2]]]") == (Verdict.EMPTY, [])
    assert read_mask("[[[0.1, 0.2], [0.3, 0.4]]]") == (Verdict.EMPTY, [])
    assert read_mask("I see no such object.") == (Verdict.EMPTY, [])
    assert read_mask("") == read_mask("[[[") == (Verdict.EMPTY, [])
    assert read_mask("[]") == read_mask("[[[]]]") == (Verdict.OK, [])
    assert read_mask("[[[120, 80], [300, 90], [200, 400]]]") == (Verdict.EMPTY, [])


def test_one_ring_in_three_is_hollow():
    text = f"[{WRITTEN[1:-1]}, [[0.1, 0.1], [0.2, 0.2], [0.1, 0.1]], {WRITTEN[1:-1]}]"
    assert read_mask(text) == (Verdict.DEGENERATE, [TRIANGLE.tolist()] * 2)


@pytest.mark.parametrize(
    "tail", ["[0.7, x]]]", "(0.1, 0.2)]]]", "[0.7, 0.8, 0.9]]]", "[0.7]]]", "[[0.7, 0.8]]]]", "]]"]
)
def test_malformed_keeps_what_came_before(tail):
    assert read_mask(f"{WRITTEN[:-2]}, {tail}") == (Verdict.MALFORMED, [TRIANGLE.tolist()])


def test_brackets_after_the_list_are_malformed():
    for tail in ("]", f" and {WRITTEN}"):
        assert read_mask(WRITTEN + tail) == (Verdict.MALFORMED, [TRIANGLE.tolist()])


def test_points_and_boxes_of_other_shapes():
    assert outline.read("[0.1, 0.2, 0.3, 0.4]", Kind.POINT).verdict == Verdict.EMPTY
    assert outline.read("[0.1, 0.2]", Kind.BOX).verdict == Verdict.EMPTY
    assert outline.read("[0.1, 0.2", Kind.POINT).verdict == Verdict.EMPTY
    assert outline.read("[0.3, 0.2, 0.3, 0.4]", Kind.BOX).verdict == Verdict.EMPTY
    swapped = outline.read("[0.3, 0.4, 0.1, 0.2]", Kind.BOX)
    assert swapped.verdict == Verdict.MALFORMED
    assert swapped.box.tolist() == [0.1, 0.2, 0.3, 0.4]
    several = outline.read("[[0.1, 0.2], [0.3, 0.4]]", Kind.POINT)
    assert several.verdict == Verdict.MALFORMED
    assert several.point.tolist() == [0.1, 0.2]
    nested = outline.read("[[0.1, 0.2, 0.3, 2]]", Kind.BOX)
    assert nested.verdict == Verdict.CLAMPED
    assert nested.box.tolist() == [0.1, 0.2, 0.3, 1.0]


def test_limits_cut():
    text = outline.write_mask([np.concatenate([TRIANGLE, [[0.0, 1.0]]])] * 3)
    reading = outline.read(text, Kind.MASK, rings=2, points=3)
    assert reading.verdict == Verdict.TRUNCATED
    assert [ring.tolist() for ring in reading.rings] == [TRIANGLE.tolist()] * 2
    assert outline.read(text, Kind.MASK, rings=3, points=4).verdict == Verdict.OK


def test_numbers_keep_six_decimals():
    reading = outline.read("[0.1234567899999, 1.00000099]", Kind.POINT)
    assert reading.verdict == Verdict.OK
    assert reading.point.tolist() == [0.123456, 1.0]
    assert outline.read("[0.1, 00000000001.5]", Kind.POINT).verdict == Verdict.CLAMPED
    assert outline.read("[-0.0, 0.5]", Kind.POINT).verdict == Verdict.OK


@given(st.one_of(st.text(), grammar_like, st.binary().map(lambda b: b.decode("latin-1"))), kinds)
def test_never_raises_and_stays_in_range(text, kind):
    reading = outline.read(text, kind)
    found = [*reading.rings, *(x for x in (reading.point, reading.box) if x is not None)]
    assert (reading.verdict == Verdict.EMPTY) == (not found and not reading.says_nothing)
    assert not reading.says_nothing or (not found and reading.verdict == Verdict.OK)
    assert all(((x >= 0) & (x <= 1)).all() for x in found)
    assert all(len({tuple(p) for p in ring.tolist()}) >= 3 for ring in reading.rings)


@given(st.integers(0, len(WRITTEN)))
def test_every_prefix_keeps_its_complete_points(length):
    reading = outline.read(WRITTEN[:length], Kind.MASK)
    complete = WRITTEN[:length].count("]")
    expected = Verdict.EMPTY if complete < 3 else Verdict.TRUNCATED
    assert reading.verdict == (Verdict.OK if length == len(WRITTEN) else expected)


@pytest.mark.parametrize(
    "unit", ["[", "]", "9", ".", "[0.1, 0.2], ", "[[[", "[[0.5,.5],[", "\ud800"]
)
def test_long_answers_take_linear_time(unit):
    text = "[[[" + unit * (50_000 // len(unit))

    def seconds(part):
        start = time.process_time()
        outline.read(part, Kind.MASK)
        return time.process_time() - start

    short = min(seconds(text[:5_000]) for _ in range(3))
    assert seconds(text) < 10 * 5 * short + 0.5


def test_table_is_total_and_idempotent_on_prose_and_space():
    following, action = outline.TABLE % 16, outline.TABLE // 16
    assert following.max() < len(outline.STATES)
    assert action.max() < len(outline.ACTIONS)
    states = np.arange(len(outline.STATES))
    assert (outline.TABLE[:, outline.NOTHING] == states).all()
    assert (outline.TABLE[:, 0] == outline.TABLE[:, : outline.STOP].T).all()
