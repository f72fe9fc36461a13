"""Holds the automaton's tables to the grammar that `outline` writes and reads."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from seg_jax.grammar import automaton, chat, outline, outline_automaton
from seg_jax.grammar.tokenizer import tokens
from seg_jax.records import Kind

RINGS, POINTS = 3, 6


def held(tokenizer, digits, **changes):
    limits = {"rings": RINGS, "points": POINTS} | changes
    return table_of(tokenizer.pieces, [tokenizer.end_id], digits=digits, **limits)


def table_of(pieces, ends, **limits):
    return automaton.table(pieces, ends=ends, machine=outline_automaton.machine(**limits))


@pytest.fixture(scope="module", params=["whole", "single"])
def case(request):
    _, tokenizer = request.getfixturevalue(request.param)
    digits = 2 if request.param == "whole" else 3
    table = held(tokenizer, digits)
    return (
        tokenizer,
        digits,
        table._replace(**{k: np.asarray(v) for k, v in vars_of(table) if v is not None}),
    )


def vars_of(table):
    return table._asdict().items()


def takes(table, ids, kind):
    """Whether the tables lead from the start of the kind to the end; numbers are not compared."""
    state = table.start[kind]
    for token in ids:
        klass = table.classes[token]
        if state == automaton.FREE or table.need[state, klass] == automaton.LATE:
            return False
        state = table.following[state, klass]
    return state == automaton.FREE


def written(rng, digits):
    """Returns a random answer as `outline` writes it, and its kind."""
    steps = rng.choice([3, 10**digits])

    def point():
        return [rng.randint(0, steps) / steps, rng.randint(0, steps) / steps]

    kind = Kind(rng.choice([0, 1, 2, 2]))
    if kind == Kind.POINT:
        return outline.write_point(point(), digits=digits), kind
    if kind == Kind.BOX:
        return outline.write_box(point() + point(), digits=digits), kind
    rings = [
        np.array([point() for _ in range(rng.randint(3, POINTS))])
        for _ in range(rng.randint(1, RINGS))
    ]
    return outline.write_mask(rings, digits=digits), kind


def test_every_written_answer_is_taken(case):
    tokenizer, digits, table = case
    rng = random.Random(0)
    taken = 0
    for _ in range(600):
        text, kind = written(rng, digits)
        if text == "[]":
            continue
        ids = [*tokenizer.encode(chat.answer(text, kind)), tokenizer.end_id]
        assert takes(table, ids, kind), text
        singles = [token for byte in chat.answer(text, kind) for token in tokenizer.encode(byte)]
        assert takes(table, [*singles, tokenizer.end_id], kind), text
        taken += 1
    assert taken > 400


def pattern(kind, digits):
    """The grammar as a regular expression, written anew."""
    low = rf"0\.\d{{{digits}}}"
    number = rf"(?:{low}|1\.0{{{digits}}})"
    point = rf"\[{number}, {number}\]"
    ring = rf"\[{point}(?:, {point}){{2,{POINTS - 1}}}\]"
    return {
        Kind.POINT: rf"{point}\.",
        Kind.BOX: rf"\[{low}, {low}, {number}, {number}\]\.",
        Kind.MASK: rf"\[{ring}(?:, {ring}){{0,{RINGS - 1}}}\]\.",
    }[kind]


def test_changed_answers_are_taken_if_and_only_if_they_follow_the_grammar(case):
    tokenizer, digits, table = case
    rng = random.Random(1)
    verdicts = {True: 0, False: 0}
    parts = ["", "[", "]", ",", ".", " ", "0", "1", "7", "00", "], [", "]], [[", "1.", "-", "x"]
    while min(verdicts.values()) < 150 or sum(verdicts.values()) < 1500:
        text, kind = written(rng, digits)
        text = chat.answer(text, kind)
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(parts) + text[at + rng.randint(0, 2) :]
        want = re.fullmatch(pattern(kind, digits), text) is not None
        ids = [*tokenizer.encode(text), tokenizer.end_id]
        assert takes(table, ids, kind) == want, text
        assert not takes(table, ids[:-1], kind)
        assert not takes(table, [*ids, tokenizer.end_id], kind)
        verdicts[want] += 1


def test_the_tokens_to_the_end_are_those_of_the_shortest_answer(whole, single):
    for (_, tokenizer), digits in ((whole, 2), (single, 3)):
        table = held(tokenizer, digits)
        points = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
        shortest = {
            Kind.POINT: outline.write_point(points[0], digits=digits),
            Kind.BOX: outline.write_box(points[:2].ravel(), digits=digits),
            Kind.MASK: outline.write_mask([points], digits=digits),
        }
        for kind, text in shortest.items():
            count = len(tokenizer.encode(chat.answer(text, kind))) + 1
            automaton.check_max_tokens(table, count, [kind])
            with pytest.raises(ValueError, match=f"expected at least {count}"):
                automaton.check_max_tokens(table, count - 1, [kind])


def test_ways_to_the_end_are_counted_in_free_digits_alone():
    # "7" and "000" are tokens, but not every three digits are: only single digits may be counted.
    alphabet = [bytes([byte]) for byte in b"0123456789[], ."]
    plain = table_of([*alphabet, None], [15])
    pieces = [*alphabet, None, b"000", b"0.000", b"0.123, 0.456]."]
    more = table_of(pieces, [15])
    for kind in Kind:
        state = int(plain.start[kind])
        open_bracket = int(plain.classes[10])
        assert plain.need[state, open_bracket] == more.need[state, int(more.classes[10])]
    assert int(more.classes[-2]) > 0
    assert int(more.classes[-1]) == 0  # Digits of two numbers.
    complete = [*alphabet, None, *(b"%03d" % number for number in range(1000))]
    short = table_of(complete, [15])
    lengths = [int(np.asarray(t.need)[int(t.start[Kind.POINT])].min()) for t in (plain, short)]
    assert lengths == [16, 12]


def test_tables_grow_with_the_grammar_alone(single):
    _, tokenizer = single
    small = held(tokenizer, 3)
    words = [b"word%d" % number for number in range(150_000)]
    runs = [b"%03d" % number for number in range(1000)]
    pieces = [*tokenizer.pieces, *words, *runs]
    large = table_of(pieces, [tokenizer.end_id], rings=RINGS, points=POINTS)
    assert large.need.shape == small.need.shape
    assert sum(leaf.nbytes for leaf in large if leaf is not None) < 1.2e6


def test_limits_and_tokenizers_that_make_no_answer_are_refused(single):
    _, tokenizer = single
    with pytest.raises(ValueError, match="expected 1 ring of 3 points or more"):
        held(tokenizer, 3, points=2)
    with pytest.raises(ValueError, match="fewer than 32767 states"):
        held(tokenizer, 3, rings=40, points=400)
    with pytest.raises(ValueError, match="expected 1 to 6 decimals"):
        held(tokenizer, 7)
    with pytest.raises(ValueError, match="expected end tokens below 3"):
        table_of([b"0", b"[", b"]"], [3])
    pieces = [None if piece == b"7" else piece for piece in tokenizer.pieces]
    with pytest.raises(ValueError, match="every digit"):
        table_of(pieces, [tokenizer.end_id])


def test_the_table_of_other_decimals_refuses_them(single):
    _, tokenizer = single
    ids = [*tokenizer.encode("[0.12, 0.34]."), tokenizer.end_id]
    assert takes(held(tokenizer, 2), ids, Kind.POINT)
    assert not takes(held(tokenizer, 3), ids, Kind.POINT)


def test_brackets_of_a_large_vocabulary_are_taken():
    # As byte-level vocabularies have them: runs of punctuation, a blank before, up to 3 digits.
    alphabet = [bytes([byte]) for byte in range(256)]
    runs = [b"[[", b"]]", b"]]]", b"],", b"]],", b" [", b" [[", b"].", b"]].", b"]]].", b"[[["]
    pieces = [*alphabet, None, *runs, *(b"%02d" % n for n in range(100))]
    pieces += [b"%03d" % n for n in range(1000)]
    table = table_of(pieces, [256])
    number = {piece: token for token, piece in enumerate(pieces)}
    cut = "[[[|0|.|100|,| |0|.|20|0|],| [|0|.|300|,| |1|.|000|],| [|0|.|500|,| |0|.|600|]],"
    cut += "| [[|0|.|1|00|,| |0|.|200|],| [|0|.|300|,| |0|.|400|],| [|0|.|500|,| |0|.|600|]]]."
    ids = [number[piece.encode()] for piece in cut.split("|")]
    assert takes(table, [*ids, 256], Kind.MASK)
    assert not takes(table, [*ids[:-1], number[b"]]"], 256], Kind.MASK)


def test_trained_numbers_of_other_decimals_cost_nothing(tmp_path):
    tokenizer = tokens.train(
        chat.sentences(["red star"]), folder=tmp_path, numbers="whole", digits=2
    )
    ids = [*tokenizer.encode("[0.123, 0.456]."), tokenizer.end_id]
    assert takes(held(tokenizer, 3), ids, Kind.POINT)
