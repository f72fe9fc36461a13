"""The pipeline: the same rows for any number of hosts, threads and processes, resumed exactly."""

import multiprocessing
import os
import signal

import jax
import numpy as np
import pytest
import small_run
from batches import assert_same, take

from seg_jax.data import encode, pipeline, sources


def feed(rows="sft", *, held=None, count=1000, **changes):
    config = small_run.sft_config() if rows == "sft" else small_run.gspo_config()
    return pipeline.batches(
        sources.Scenes(world=config.source.world, seed=5, count=count),
        small_run.task(rows),
        small_run.bundle().encoder,
        feed=pipeline.Feed(**({"batch": 4, "questions": 2, "seed": 1} | changes)),
        rows=rows,
        local_rows=held,
    )


def rows(batch):
    """Returns the rows of a batch as bytes, in any order."""
    leaves = jax.tree.leaves(batch)
    return {b"".join(np.asarray(x[i]).tobytes() for x in leaves) for i in range(len(leaves[0]))}


@pytest.fixture(scope="module")
def wanted():
    return take(feed(), 3)


@pytest.mark.parametrize("route", ["sft", "prompts"])
def test_processes_put_together_have_the_batch_of_one_in_its_order(route):
    whole = take(feed(route), 2)
    places = [0, 1], [2], [3]
    parts = [take(feed(route, held=held), 2) for held in places]
    for step, batch in enumerate(whole):
        assert len(rows(batch)) == 4
        assert_same(batch, jax.tree.map(lambda *x: np.concatenate(x), *(p[step] for p in parts)))


def test_threads_change_nothing(wanted):
    assert_same(take(feed(threads=0, prefetch=0), 3), wanted)
    assert_same(take(feed(threads=7, prefetch=3), 3), wanted)


@pytest.mark.slow
def test_a_worker_process_changes_nothing(wanted):
    assert_same(take(feed(workers=1), 3), wanted)
    iterator = feed(workers=2)
    assert_same(take(iterator, 2), wanted[:2])
    # A position does not depend on who reads.
    other = feed(held=[1, 3])
    other.set_state(iterator.get_state())
    assert_same(next(other), jax.tree.map(lambda leaf: leaf[[1, 3]], wanted[2]))
    # A terminal sends Ctrl-C to all.
    workers = multiprocessing.active_children()
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
    for worker in workers:
        worker.join(0.3)
    assert [worker.exitcode for worker in workers] == [None] * 2
    assert_same(next(iterator), wanted[2])


def test_it_resumes_exactly(wanted):
    iterator = feed()
    next(iterator)
    position = iterator.get_state()
    assert_same(take(iterator, 2), wanted[1:])
    other = feed(threads=0)
    other.set_state(position)
    assert_same(take(other, 2), wanted[1:])


def test_it_is_endless_and_every_round_is_new():
    iterator = feed(count=8, questions=1)
    first, second, third = (
        [row for batch in take(iterator, 2) for row in batch.images.patches] for _ in range(3)
    )
    names = [sorted(image.tobytes() for image in part) for part in (first, second, third)]
    assert names[0] == names[1] == names[2]
    assert len(set(names[0])) == 8
    assert [p.tobytes() for p in first] != [p.tobytes() for p in second]


def test_a_finite_set_of_scenes_is_asked_other_questions_in_every_pass():
    iterator = feed(count=8, questions=2)
    passes = [take(iterator, 2) for _ in range(3)]
    asked = [
        {
            image.tobytes(): ids.tobytes()
            for batch in part
            for image, ids in zip(batch.images.patches, batch.ids, strict=True)
        }
        for part in passes
    ]
    first = asked[0]
    assert len(first) == 8
    for other in asked[1:]:
        assert other.keys() == first.keys()
        assert sum(other[image] != first[image] for image in first) > 4


def test_scenes_are_as_many_as_counted_or_without_end():
    world = small_run.sft_config().source.world
    few, endless = sources.Scenes(world=world, seed=5, count=3), sources.Scenes(world=world, seed=5)
    assert (len(few), len(endless)) == (3, sources.ENDLESS)
    for index in range(3):
        np.testing.assert_array_equal(few[index].image, endless[index].image)
        np.testing.assert_array_equal(few[index].image, few[index].image)
    with pytest.raises(IndexError, match=r"scenes: expected an index in 0\.\.2, got 3; do: "):
        _ = few[3]
    assert endless[3].key == "scene-5-3"
    with pytest.raises(
        ValueError, match="^scenes: expected a count >= 1, got 0; do: give 1 or more"
    ):
        sources.Scenes(count=0)


def test_random_choices_differ_between_samples_and_rounds():
    class One:
        """The same scene again and again."""

        def __len__(self):
            return 64

        def __getitem__(self, index):
            return small_run.sft_config().source[0]

    iterator = pipeline.batches(
        One(),
        small_run.TINY.TASK,
        small_run.bundle().encoder,
        feed=pipeline.Feed(batch=64, questions=2),
        rows="sft",
    )
    one, other = take(iterator, 2)
    assert len({row.tobytes() for row in one.ids[:, 0]}) > 5
    assert (one.ids[:, 0] != one.ids[:, 1]).any(-1).sum() > 10
    assert (one.ids != other.ids).any()


def test_in_order_covers_each_scene_once_and_repeats_itself():
    source = sources.Scenes(world=small_run.sft_config().source.world, seed=9, count=7)
    task = small_run.task("prompts")

    def read(batch):
        return list(
            pipeline.batches_in_order(source, task, small_run.bundle().encoder, batch=batch, seed=3)
        )

    found, again, alone = read(4), read(4), read(1)
    examples = [example for part, _ in found for example in part]
    assert [example.key for example in examples] == [source[i].key for i in range(7)]
    assert [len(prompts.tokens.ids) for _, prompts in found] == [4, 4]
    assert_same([p for _, p in found], [p for _, p in again])
    ids = np.concatenate([prompts.tokens.ids for _, prompts in found])[:7]
    np.testing.assert_array_equal(ids, np.concatenate([p.tokens.ids for _, p in alone]))


@pytest.mark.parametrize(
    ("kind", "name", "value", "least"),
    [
        *((pipeline.Feed, name, 0, 1) for name in ("batch", "questions", "packed_rows")),
        *((pipeline.Feed, name, -1, 0) for name in ("seed", "threads", "workers", "prefetch")),
        *((encode.Layout, name, 0, 1) for name in ("patch", "merge", "max_patches", "buckets")),
    ],
)
def test_numbers_that_make_no_sense_are_refused(kind, name, value, least):
    room = kind.__name__.lower()
    with pytest.raises(ValueError, match=f"^{room}.{name}: expected at least {least}, got {value}"):
        kind(**{name: value})


class Spread(jax.sharding.Sharding):
    """Stands for a sharding of rows of which some devices are another process's."""

    is_fully_addressable = False

    def __init__(self, *parts):
        self.parts = parts

    def addressable_devices_indices_map(self, shape):
        return {number: (slice(*part),) for number, part in enumerate(self.parts)}


def test_a_process_holds_the_rows_of_its_devices():
    whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    assert pipeline.local_rows(whole, 4) == [0, 1, 2, 3]
    # Copies on several devices are read once; the devices need not be neighbours.
    assert pipeline.local_rows(Spread((6, 8), (0, 2), (0, 2)), 8) == [0, 1, 6, 7]


def test_rows_of_a_process_go_to_their_devices(monkeypatch):
    given = {}

    def make(shape, sharding, part):
        given.update({key: part((slice(*key),)) for key in sharding.parts})
        return jax.numpy.zeros(shape)

    monkeypatch.setattr(jax, "make_array_from_callback", make)
    local = np.array([[0.0], [1.0], [6.0], [7.0]])
    assert pipeline.to_device(local, Spread((6, 8), (0, 2)), rows=8).shape == (8, 1)
    np.testing.assert_array_equal(given[6, 8], [[6.0], [7.0]])
    np.testing.assert_array_equal(given[0, 2], [[0.0], [1.0]])
