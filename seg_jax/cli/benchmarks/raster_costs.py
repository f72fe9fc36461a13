"""Measures what a polygon costs: its growth, its share of the machine's best, reading beside it."""

from __future__ import annotations

import dataclasses
from typing import Any

from seg_jax.cli.benchmarks import harness, polygon_cases
from seg_jax.cli.benchmarks.polygon_cases import Case

# Imported again in a process of its own, where JAX has to find itself on one core: not at the top.


def growth(base: Case, *, rounds: int, seed: int) -> list[dict[str, Any]]:
    """Returns how the cost grows with each of points, outline, height and width alone."""
    start = dataclasses.replace(base, kind="blob", points=64, radius=0.1)
    side = start.height
    changed = [dataclasses.replace(start, points=count) for count in (16, 64, 256)]
    changed += [dataclasses.replace(start, radius=radius) for radius in (0.05, 0.2, 0.4)]
    far = 0.1 * side  # The shape stays as it is while the canvas grows.
    for height, width in ((2 * side, side), (side, 2 * side), (2 * side, 2 * side)):
        changed.append(
            dataclasses.replace(start, height=height, width=width, radius=far / min(height, width))
        )
    timed, crossed = {}, []
    for case in changed:
        true, answers = polygon_cases.draw(case, seed)
        timed[str(case)] = polygon_cases.scorer(case, true, answers)[0]
        crossed.append((case, polygon_cases.crossed_columns(answers)))
    medians = harness.by_turns(timed, rounds, harness.process_seconds)
    return [
        {
            **dataclasses.asdict(case),
            "columns": columns,
            "microseconds": 1e6 * medians[str(case)] / case.batch,
        }
        for case, columns in crossed
    ]


_EDGE, _TOGGLE, _WORD = 60, 18, 18
"""Integer operations that an edge, a column of an edge and a word of the box need."""


def roofline(case: Case, measured: dict[str, Any], *, rounds: int, seed: int) -> dict[str, Any]:
    """Returns what a polygon needs against what the processor can do and what was reached."""
    import numpy as np

    _, answers = polygon_cases.draw(case, seed)
    low, high = np.floor(answers.min(1)), np.ceil(answers.max(1))
    words = float(((high - low)[:, 0] * (high[:, 1] // 32 - low[:, 1] // 32 + 1)).mean())
    columns = polygon_cases.crossed_columns(answers)
    operations = case.points * _EDGE + columns * _TOGGLE + words * _WORD
    size = 4 * words + 8 * case.points
    speed, bandwidth = _ceilings(rounds)
    floor = max(operations / speed, size / bandwidth)
    reached = measured["microseconds"]["ours"] * 1e-6
    return {
        "kind": case.kind,
        "points": case.points,
        "columns": columns,
        "words": words,
        "operations": operations,
        "bytes": size,
        "operations_per_second": speed,
        "bytes_per_second": bandwidth,
        "floor_microseconds": 1e6 * floor,
        "reached_microseconds": 1e6 * reached,
        "share_of_operations": operations / speed / reached,
        "share_of_bytes": size / bandwidth / reached,
    }


def _ceilings(rounds: int) -> tuple[float, float]:
    """Returns int32 operations and bytes a second of this core, as XLA reaches them at best."""
    import jax
    import jax.numpy as jnp

    steps, lanes = 64, 1 << 12
    small, large = jnp.arange(lanes, dtype=jnp.uint32), jnp.ones(1 << 24, jnp.uint32)

    @jax.jit
    def compute(x):
        def step(i, x):
            for shift in range(1, steps // 2 + 1):
                x = x ^ (x << (1 + shift % 30))
            return x + i.astype(jnp.uint32)

        return jax.lax.fori_loop(0, 256, step, x)

    read = jax.jit(lambda x: jax.lax.reduce(x, jnp.uint32(0), jax.lax.bitwise_xor, (0,)))
    timed = {
        "compute": lambda: jax.block_until_ready(compute(small)),
        "read": lambda: jax.block_until_ready(read(large)),
    }
    taken = harness.by_turns(timed, rounds, harness.process_seconds)
    return lanes * steps * 256 / taken["compute"], large.nbytes / taken["read"]


def reading(case: Case, *, rounds: int, seed: int) -> dict[str, Any]:
    """Returns what reading answers costs beside scoring them, one character a token."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from seg_jax.grammar import outline, reader
    from seg_jax.records import Kind

    true, answers = polygon_cases.draw(case, seed)
    size = np.array([case.width, case.height])
    texts = [outline.write_mask([ring / size]).encode() for ring in np.asarray(answers)]
    longest = max(map(len, texts))
    ids = np.zeros((len(texts), longest), np.int32)
    used = np.arange(longest) < np.array([len(text) for text in texts])[:, None]
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = np.frombuffer(text, np.uint8)
    table = reader.table([bytes([byte]) for byte in range(256)])
    read = jax.jit(
        lambda ids, used: reader.read(ids, used, table, kind=Kind.MASK, rings=1, points=case.points)
    )
    ids, used = jnp.asarray(ids), jnp.asarray(used)
    timed = {
        "read": lambda: jax.block_until_ready(read(ids, used)),
        "score": polygon_cases.scorer(case, true, answers)[0],
    }
    taken = harness.by_turns(timed, rounds, harness.process_seconds)
    return {
        "tokens": longest,
        "points": case.points,
        "read_microseconds": 1e6 * taken["read"] / case.batch,
        "score_microseconds": 1e6 * taken["score"] / case.batch,
        "nanoseconds_per_token": 1e9 * taken["read"] / case.batch / longest,
        "read_over_score": taken["read"] / taken["score"],
    }


_WORDS = (
    b" the",
    b" red",
    b" star",
    b" lies",
    b" in",
    b" front",
    b" of",
    b" it",
    b"think",
    b"bbox",
)
_MARKS = (b"points", b"labels", b"],[", b"[[", b"]]", b"</", b">,", b" <", b"]</", b">[[")


def clicking(*, rounds: int, seed: int, batch: int = 256, tokens: int = 400) -> dict[str, Any]:
    """Returns what reading thoughts, boxes and clicks costs, in words and single digits."""
    import random

    import jax
    import jax.numpy as jnp
    import numpy as np

    from seg_jax.grammar import clicks, clicks_reader

    rng = random.Random(seed)
    pieces = [*_WORDS, *_MARKS, *(bytes([byte]) for byte in range(256))]
    ids = np.zeros((batch, tokens), np.int32)
    for row in ids:
        places = [[rng.random() / 2 for _ in range(4)] for _ in range(14)]
        boxes = [[x, y, x + 0.1 + w, y + 0.1 + h] for x, y, w, h in places[:2]]
        points, labels = [place[:2] for place in places[2:]], [rng.randrange(2) for _ in places[2:]]
        data = clicks.write(boxes, points, labels, frame=768, thought="Look").encode()
        before, data, after = data[:12], data[12:], []
        while data:
            after.append(next(n for n, piece in enumerate(pieces) if data.startswith(piece)))
            data = data[len(pieces[after[-1]]) :]
        start = [pieces.index(bytes([byte])) for byte in before]
        words = [rng.randrange(8) for _ in range(tokens - len(start) - len(after))]
        row[:] = [*start, *words, *after]
    table = clicks_reader.table(pieces)
    read = jax.jit(
        lambda ids: clicks_reader.read(ids, ids >= 0, table, frame=768, boxes=4, points=16)
    )
    given = jnp.asarray(ids)
    timed = {"read": lambda: jax.block_until_ready(read(given))}
    taken = harness.by_turns(timed, rounds, harness.process_seconds)["read"]
    return {
        "tokens": tokens,
        "characters_per_token": table.classes.shape[1],
        "ok": float((np.asarray(read(given)[1]) == 0).mean()),
        "read_microseconds": 1e6 * taken / batch,
    }
