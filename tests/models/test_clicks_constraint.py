"""Holds answers of boxes and clicks to the grammar, whatever a model likes to write."""

from __future__ import annotations

import functools
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seg_jax.grammar import automaton, clicks, clicks_automaton
from seg_jax.models.vlm import constraint
from seg_jax.records import Verdict

END = 299
WORDS = [
    b" the",
    b" red",
    b"</",
    b"think",
    b"> <",
    b"points",
    b"bbox",
    b">[",
    b"]</",
    b"]],",
    b"3d",
]
WORDS += [b",", b"],[", b">, <", b"labels", b"00", b"12", b"345", b"768", b"99999", b"\xe6\xbc"]
PIECES = [bytes([byte]) for byte in range(256)] + WORDS
PIECES += [None] * (END + 1 - len(PIECES))
BOXES, POINTS = 3, 4


@functools.cache
def grammar(frame=768, boxes=BOXES, points=POINTS, thinks=True):
    machine = clicks_automaton.machine(frame=frame, boxes=boxes, points=points, thinks=thinks)
    return automaton.table(PIECES, ends=[END], machine=machine)


@functools.partial(jax.jit, static_argnames=("lanes", "budget", "noisy"))
def walk(held_to, key, scale, *, lanes, budget, noisy):
    """Random answers of a model whose logits never change, from budgets of its own; and stuck."""
    size = END + 1
    liking = scale * jax.random.normal(jax.random.fold_in(key, budget), (lanes, 1, size))
    least = jnp.min(held_to.need[held_to.start[0]].astype(jnp.int32))
    room = least + jax.random.randint(key, (lanes, 1), 0, budget - least + 1)

    def step(held, column):
        noise = jax.random.gumbel(jax.random.fold_in(key, column), (lanes, 1, size))
        given = constraint.permit(held_to, held, room - column)
        logits = constraint.mask_logits(held_to, given, liking + noisy * noise)
        ids = jnp.argmax(logits, -1)
        after = constraint.advance(held_to, held, ids)
        stuck = (jnp.max(logits, -1) < -1e29) & (held.state > 0)
        return after, (ids[:, 0], held.state[:, 0] > 0, stuck[:, 0])

    start = constraint.initial_progress(held_to, np.zeros(lanes, np.int32), 1)
    end, out = jax.lax.scan(step, start, jnp.arange(budget))
    return *[leaf.T for leaf in out], end.state[:, 0]


def texts_of(held_to, key, scale=0.0, *, lanes, budget, noisy=True):
    ids, used, stuck, states = map(
        np.asarray, walk(held_to, key, scale, lanes=lanes, budget=budget, noisy=noisy)
    )
    assert not stuck.any()
    assert not states.any(), "every answer ends within its room"
    rows = (row[keep] for row, keep in zip(ids, used, strict=True))
    return [b"".join(PIECES[t] for t in row[:-1]).decode("utf-8", "replace") for row in rows]


def assert_fine(text, frame, *, boxes, points, thinks):
    reading = clicks.read(text, frame=frame, boxes=boxes, points=points)
    assert reading.verdict == Verdict.OK, text
    assert reading.thought == thinks, text
    assert len(reading.boxes_unit) >= min(boxes, 1), text
    assert len(reading.points_unit) >= 1, text
    again = clicks.write(reading.boxes_unit, reading.points_unit, reading.labels, frame=frame)
    assert re.sub("<think>[^<]*</think> ", "", text) == again
    return reading


@pytest.mark.slow
def test_ten_thousand_answers_at_random_are_all_fine():
    key, met = jax.random.key(7, impl="rbg"), set()
    for text in texts_of(grammar(), key, lanes=10_000, budget=150):
        reading = assert_fine(text, 768, boxes=BOXES, points=POINTS, thinks=True)
        met.add((len(reading.boxes_unit), len(reading.points_unit)))
    assert len(met) == BOXES * POINTS


@pytest.mark.parametrize(
    ("frame", "scale", "noisy"),
    [(2, 8.0, True), (9, 8.0, True), (100, 8.0, True), (1024, 8.0, True), (1024, 1.0, False)],
)
def test_whatever_a_model_likes_its_answers_are_fine(frame, scale, noisy):
    held_to = grammar(frame, 2, 2, frame > 9)
    options = {"lanes": 200, "budget": 90, "noisy": noisy}
    texts = texts_of(held_to, jax.random.key(frame), scale, **options)
    for text in texts:
        assert_fine(text, frame, boxes=2, points=2, thinks=frame > 9)
    assert len(set(texts)) > 10


def test_without_boxes_the_answer_is_of_clicks_alone():
    for text in texts_of(grammar(boxes=0, thinks=False), jax.random.key(1), lanes=100, budget=90):
        assert text.startswith("<points>")
        assert "</points> <labels>" in text
        assert_fine(text, 768, boxes=0, points=POINTS, thinks=False)


@pytest.mark.parametrize("frame", [100, 768])
def test_an_answer_is_taken_if_and_only_if_it_follows_the_grammar(frame):
    """Held to the reader and the writer on answers whose numbers are on the edge."""
    rng, held_to, rows, wanted = random.Random(3), grammar(frame, thinks=False), [], []
    few = [0, 1, 7, 9, 10, 67, 76, 77, 99, 100, 700, frame - 1, frame]
    while len(rows) < 400:
        few[-1] = frame + (rng.random() < 0.05)
        sides = [[rng.choice(few) for _ in range(2)] for _ in range(2)]
        if rng.random() < 0.7:
            sides = [sorted(side) for side in sides]
        corners = [sides[axis][end] for end in range(2) for axis in range(2)]
        spots = [[rng.choice(few), rng.choice(few)] for _ in range(rng.randint(1, 5))]
        labels = [rng.randrange(2) for _ in spots]
        text = f"<bbox>{corners}</bbox>;<points>{spots}</points>;<labels>{labels}</labels>"
        text = text.replace(" ", "").replace(";", ", ")
        if rng.random() < 0.2:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(["", "0", "1", ",", "]", "<", " "]) + text[at + 1 :]
        reading = clicks.read(text, frame=frame, boxes=BOXES, points=POINTS)
        fine = reading.verdict == Verdict.OK
        numbers = reading.boxes_unit, reading.points_unit, reading.labels
        wanted.append(fine and clicks.write(*numbers, frame=frame) == text)
        ids, data = [], text.encode()
        while data:
            fitting = [n for n in range(1, 7) if data[:n] in PIECES]
            size = rng.choice(fitting)
            # A number is cut from what is around it.
            ids.append(PIECES.index(data[:size]))
            data = data[size:]
        rows.append([*ids, END])
    assert 0.2 < np.mean(wanted) < 0.8
    length = max(map(len, rows)) + 90
    ids = np.array([row + [0] * (length - len(row)) for row in rows], np.int32)[:, None]
    permitted = jax.jit(_permitted)(held_to, ids)
    for row, may, want in zip(rows, np.asarray(permitted[:, 0]), wanted, strict=True):
        assert may[: len(row)].all() == want, [PIECES[token] for token in row[:-1]]


def _permitted(held_to, ids):
    given = constraint.permits_along(held_to, jnp.zeros(len(ids), jnp.int32), ids)
    may = constraint.allowed_tokens(held_to, given, END + 1)
    return jnp.take_along_axis(may, ids[..., None], -1)[..., 0]


def test_limits_and_tokenizers_that_make_no_answer_are_refused():
    for limits in ({"boxes": -1}, {"points": 0}):
        with pytest.raises(ValueError, match="clicks_automaton: expected no box or more"):
            grammar(**limits)
    with pytest.raises(ValueError, match="frame: expected a side of 2"):
        grammar(frame=1)
    machine = clicks_automaton.machine(frame=768, boxes=1, points=1, thinks=False)
    pieces = [None if piece == b"7" else piece for piece in PIECES]
    with pytest.raises(ValueError, match="every digit"):
        automaton.table(pieces, ends=[END], machine=machine)
    held = automaton.table([*PIECES[:256], None], ends=[256], machine=machine)
    shortest = "<bbox>[0,0,100,100]</bbox>, <points>[[0,0]]</points>, <labels>[0]</labels>"
    automaton.check_max_tokens(held, len(shortest) + 1, [0], names=["answer"])
    with pytest.raises(ValueError, match="expected at least 75, the shortest answer"):
        automaton.check_max_tokens(held, len(shortest), [0], names=["answer"])


def test_the_tables_of_the_release_stay_small():
    machine = clicks_automaton.machine(frame=1024, boxes=4, points=16, thinks=True)
    held = automaton.table(PIECES, ends=[END], machine=machine)
    assert len(machine.final) < 1000
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(held)) < 1e6
