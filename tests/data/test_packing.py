"""Packed rows: nothing lost, nothing mixed, the same for any processes and threads, resumed."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import packed_images
import pytest
from batches import assert_same, take

from seg_jax.data import packing, pipeline
from seg_jax.data.encode import TooLong
from seg_jax.data.packing import Pack, Size

PACK = Pack(tokens=240, patches=256, ahead=6)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return packed_images.encoder(tmp_path_factory.mktemp("tokenizer"))


def feed(encoder, *, held=None, gather=lambda mine: [mine], count=1000, **changes):
    return pipeline.batches(
        packed_images.Crops(count),
        packed_images.TASK,
        encoder,
        feed=pipeline.Feed(**({"batch": 4, "seed": 1, "pack": PACK} | changes)),
        rows="sft",
        local_rows=held,
        gather=gather,
    )


def lane(batches, row):
    return [jax.tree.map(lambda leaf: leaf[row], batch) for batch in batches]


@pytest.fixture(scope="module")
def wanted(encoder):
    return take(feed(encoder), 4)


def test_a_row_holds_its_pieces_and_nothing_of_one_points_into_another(encoder):
    pieces = [
        packing.encode_item(encoder, packed_images.examples(n, count))
        for n, count in ((0, 2), (1, 1))
    ]
    row = packing.pack_row(encoder, pieces, Pack(tokens=400, patches=256))
    at = spot = 0
    for number, (one, conversations) in enumerate(zip(pieces, ([1, 2], [3]), strict=True)):
        tokens, patches = one.size
        here, there = slice(at, at + tokens), slice(spot, spot + patches)
        np.testing.assert_array_equal(row.tokens.ids[here], one.tokens.ids)
        assert np.unique(row.tokens.segments[here]).tolist() == conversations
        np.testing.assert_array_equal(row.tokens.positions[:, here], one.tokens.positions)
        np.testing.assert_array_equal(row.images.patches[there], one.patches)
        assert (row.images.image[there] == number).all()
        # Every conversation looks at all visual tokens of the piece's own image, in their order.
        for which in conversations:
            visual_tokens = row.tokens.visual_tokens[row.tokens.segments == which]
            unit = encoder.layout.merge**2
            wanted = np.arange(spot // unit, (spot + patches) // unit)
            np.testing.assert_array_equal(visual_tokens[visual_tokens >= 0], wanted)
        at, spot = at + tokens, spot + patches
    first, second = (row.images.window[row.images.image == number] for number in (0, 1))
    assert set(first.tolist()).isdisjoint(second.tolist())
    assert set(first.tolist()) | set(second.tolist()) == set(range(second.max() + 1))
    assert len(np.unique(first)) > 1
    assert not row.tokens.segments[at:].any()
    assert not row.weights[at:].any()
    assert (row.images.image[spot:] == -1).all()
    assert (row.images.window[spot:] == -1).all()
    assert (row.tokens.visual_tokens[at:] == -1).all()


def test_a_conversation_says_what_a_row_of_one_image_says(encoder):
    examples = packed_images.examples(3, 2)
    plain = encoder.batch_row(examples)
    head = plain.tokens.ids[plain.tokens.segments > 0]
    one = packing.encode_item(encoder, examples)
    for number in (1, 2):
        here = one.tokens.segments == number
        used = plain.packing.segments[number - 1] > 0
        whole = np.concatenate([head, plain.ids[number - 1][used]])
        np.testing.assert_array_equal(one.tokens.ids[here], whole)
        weighted = one.weights[here] > 0
        answer = plain.targets[number - 1][plain.weights[number - 1] > 0]
        np.testing.assert_array_equal(one.targets[here][weighted], answer)
        where = one.tokens.positions[:, here]
        np.testing.assert_array_equal(
            where[:, : len(head)], plain.tokens.positions[:, -len(head) :]
        )
        np.testing.assert_array_equal(np.diff(where[:, len(head) :]), 1)


def test_the_one_that_waits_longest_goes_with_those_that_fill_the_row_best():
    pack = Pack(tokens=100, patches=100, ahead=4)
    sizes = [Size(30, 10), Size(80, 10), Size(20, 10), Size(50, 60), Size(50, 10), Size(15, 10)]
    assert packing.choose_items(sizes, pack) == [0, 2, 3]
    assert packing.choose_items([Size(10, 100), Size(10, 1)], pack) == [0]
    assert packing.choose_items([Size(100, 1), Size(1, 1)], pack) == [0]
    # By hand: whatever the sizes, no other set with the first one in it fills the row better.
    rng = np.random.default_rng(0)
    for _ in range(20):
        sizes = [Size(*pair) for pair in rng.integers(5, 60, (7, 2)).tolist()]
        found = packing.choose_items(sizes, pack)
        every = itertools.chain.from_iterable(
            itertools.combinations(range(1, 7), count) for count in range(7)
        )
        sums = [np.sum([sizes[i] for i in (0, *some)], 0) for some in every]
        most = max(total.sum() for total in sums if (total <= 100).all())
        assert np.sum([sizes[i] for i in found], 0).sum() == most
    # Where many are small, those that wait longest go first.
    found = packing.choose_items([Size(1, 1)] * 60 + [Size(30, 30)] * 20, pack)
    assert found[:60] == [*range(60)]
    assert len(found) == 61


def test_every_image_comes_once_in_a_round_and_rows_are_full(encoder):
    """A lane of a quarter of 40 images holds each once before any comes again."""
    batches = take(feed(encoder, count=40, batch=1), 30)
    rows = lane(batches, 0)
    seen = []
    for row in rows:
        for number in range(row.images.image.max() + 1):
            mine = row.images.image == number
            seen.append(row.images.patches[mine].tobytes())
    assert len(set(seen[: 40 - 2 * PACK.ahead])) == 40 - 2 * PACK.ahead
    assert len(set(seen)) == 40
    used = np.mean([(row.tokens.segments > 0).mean() for row in rows])
    alone = np.mean([len(packed_images.piece(encoder, n).weights) for n in range(40)])
    assert used > 0.8 > alone / PACK.tokens + 0.2


def test_batches_do_not_depend_on_threads_and_are_unlike_each_other(encoder, wanted):
    assert_same(take(feed(encoder, threads=0), 4), wanted)
    assert_same(take(feed(encoder, threads=5), 4), wanted)
    rows = {row.tobytes() for batch in wanted for row in batch.tokens.ids}
    assert len(rows) == 16


def test_processes_put_together_have_the_batch_of_one_in_its_order(encoder, wanted):
    parts = [take(feed(encoder, held=held), 4) for held in ([0, 1], [2], [3])]
    for step, batch in enumerate(wanted):
        together = jax.tree.map(lambda *x: np.concatenate(x), *(part[step] for part in parts))
        assert_same(batch, together)


def test_it_resumes_exactly_on_any_number_of_processes(encoder, wanted):
    alone = feed(encoder)
    take(alone, 2)
    position = json.loads(json.dumps(alone.get_state()))
    assert position["batches"] == 2
    assert any(len(numbers) > 1 for numbers in position["lanes"]), "some images wait"
    assert_same(take(alone, 2), wanted[2:])
    again = feed(encoder, threads=0)
    again.set_state(position)
    assert_same(take(again, 2), wanted[2:])
    # Two processes tell each other of their lanes, and three go on from what they had.
    parts = {}

    def gather(mine):
        return json.loads(json.dumps([*parts.values()]))

    pair = [feed(encoder, held=held, gather=gather) for held in ([0, 3], [1, 2])]
    for number, one in enumerate(pair):
        take(one, 2)
        parts[number] = one._own_state()
    assert pair[0].get_state() == pair[1].get_state() == position
    for held in ([0], [1, 3], [2]):
        one = feed(encoder, held=held)
        one.set_state(pair[1].get_state())
        for batch in wanted[2:]:
            assert_same(next(one), [leaf[held] for leaf in jax.tree.leaves(batch)])


@pytest.mark.slow
def test_worker_processes_change_nothing(encoder, wanted):
    state = None
    # Each goes on where the one before has stopped. Three do not divide four rows: two work.
    for workers, batches in ((3, slice(0, 2)), (1, slice(2, 3)), (2, slice(3, 4))):
        iterator = feed(encoder, workers=workers)
        if state is not None:
            iterator.set_state(state)
        assert_same(take(iterator, batches.stop - batches.start), wanted[batches])
        state = iterator.get_state()


def test_what_cannot_be_packed_is_refused_in_a_line(encoder):
    tight = dataclasses.replace(PACK, tokens=20)
    with pytest.raises(TooLong, match=r"raise feed\.pack\.tokens"):
        next(feed(encoder, pack=tight))
    with pytest.raises(ValueError, match="got both"):
        pipeline.Feed(pack=PACK, packed_rows=2)
    with pytest.raises(ValueError, match=r"feed\.pack: expected whole numbers >= 1"):
        Pack(ahead=0)
    both = packed_images.examples(0, 1) + packed_images.examples(1, 1)
    with pytest.raises(ValueError, match="one image"):
        packing.encode_item(encoder, both)
    with pytest.raises(ValueError, match="expected a position of 4 packed rows, got one of 0"):
        feed(encoder).set_state({"batches": 3})
