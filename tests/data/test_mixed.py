"""Sources by weights: their shares, rounds and order, the same for any number of processes."""

import collections
import dataclasses
import pickle

import jax
import numpy as np
import pytest
import small_run
from batches import assert_same, take

from seg_jax.data import pipeline, sources

COUNTS = (40, 7, 25)


def mixed(*weights, counts=COUNTS):
    config = small_run.sft_config().source.world
    parts = tuple(
        sources.Scenes(world=config, seed=seed, count=count)
        for seed, count in zip(range(5, 5 + len(weights)), counts, strict=False)
    )
    return sources.Mixed(parts=parts, weights=weights)


def keys(source, count, seed=0):
    """The first samples of a run: the part that each comes from, and its number there."""
    samples = pipeline._samples(source, seed)
    found = [samples[index].key.split("-")[1:] for index in range(count)]
    return [(int(part) - 5, int(number)) for part, number in found]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (0.5, 0.2, 0.3), (1.0, 0.05)])
def test_every_stretch_has_the_shares_of_the_weights(weights):
    drawn = [part for part, _ in keys(mixed(*weights), 240)]
    for begin, end in ((0, 240), (0, 37), (101, 160), (200, 240)):
        counts = collections.Counter(drawn[begin:end])
        for part, weight in enumerate(weights):
            share = weight / sum(weights) * (end - begin)
            assert abs(counts[part] - share) <= 2, (begin, end, part)


def test_each_part_goes_its_own_rounds_in_ever_new_orders():
    drawn = keys(mixed(1.0, 1.0), 80)
    for part, count in enumerate(COUNTS[:2]):
        mine = [number for which, number in drawn if which == part]
        rounds = [mine[i : i + count] for i in range(0, len(mine) - count + 1, count)]
        assert all(sorted(one) == list(range(count)) for one in rounds)
        assert len({tuple(one) for one in rounds}) == len(rounds)
    assert keys(mixed(1.0, 1.0), 80) == drawn
    assert keys(mixed(1.0, 1.0), 80, seed=1) != drawn
    equal = keys(mixed(1.0, 1.0, counts=(20, 20)), 40)
    orders = [[number for which, number in equal if which == part] for part in range(2)]
    assert orders[0] != orders[1]


def test_one_part_alone_is_that_source():
    alone = mixed(2.0)
    assert keys(alone, 90) == keys(alone.parts[0], 90)


def feed(source, *, held=None, **changes):
    return pipeline.batches(
        source,
        small_run.task("sft"),
        small_run.bundle().encoder,
        feed=pipeline.Feed(**({"batch": 4, "questions": 2, "seed": 1} | changes)),
        rows="sft",
        local_rows=held,
    )


def test_processes_threads_and_positions_change_nothing():
    source = mixed(3.0, 1.0)
    wanted = take(feed(source), 5)
    parts = [take(feed(source, held=held, threads=threads), 5) for held, threads in HELD]
    for step, batch in enumerate(wanted):
        several = (part[step] for part in parts)
        assert_same(batch, jax.tree.map(lambda *x: np.concatenate(x), *several))
    begun = feed(source)
    take(begun, 3)
    other = feed(source, threads=0)
    other.set_state(begun.get_state())
    assert_same(take(other, 2), wanted[3:])
    assert_same(take(begun, 2), wanted[3:])


HELD = (([0, 1], 2), ([2], 0), ([3], 5))


@pytest.mark.slow
def test_worker_processes_change_nothing():
    source = mixed(3.0, 1.0)
    assert_same(take(feed(source, workers=2), 3), take(feed(source), 3))


def test_as_a_source_it_is_one_after_the_other():
    source = mixed(1.0, 5.0)
    assert isinstance(source, sources.Source)
    assert len(source) == 47
    found = [source[index].key for index in (0, 39, 40, 46)]
    assert found == ["scene-5-0", "scene-5-39", "scene-6-0", "scene-6-6"]
    for index in (-1, 47):
        with pytest.raises(IndexError, match=r"mixed: expected an index in 0\.\.46"):
            source[index]
    assert pickle.loads(pickle.dumps(source)) == source
    texts = sources.corpus(dataclasses.replace(source, weights=(1.0, 3.0)), 40)
    assert len(texts) == 40


@pytest.mark.parametrize(
    ("weights", "word"),
    [
        ((1.0,), "expected a weight for each of 2 sources, got 1"),
        ((1.0, 0.0), r"expected weights > 0, got \(1.0, 0.0\)"),
        ((1.0, float("nan")), "expected weights > 0"),
        ((1.0, -1.0), "expected weights > 0"),
    ],
)
def test_wrong_weights_are_told(weights, word):
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(mixed(1.0, 1.0), weights=weights)
