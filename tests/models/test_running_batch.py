"""Answers that come and go in a running batch are those that the sampler gives alone."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import small_run
from flax import nnx
from jax import monitoring

from seg_jax.data import buckets
from seg_jax.models.vlm import running_batch, sampler
from seg_jax.models.vlm.running_batch import Sizes, Wanted
from seg_jax.records import Kind

MOST = 12


@pytest.fixture(scope="module")
def rows():
    """Returns prompts about seven images, a batch axis of 1 each."""
    encoder = small_run.bundle().encoder
    rng = np.random.default_rng(0)
    found = []
    for number in range(7):
        image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        row = encoder.question(image, f"the red star {'a' * number}")
        found.append(jax.tree.map(lambda leaf: np.asarray(leaf)[None], row))
    return found


def make(rows, *, grammar=None, **sizes):
    bundle = small_run.bundle()
    batch = running_batch.RunningBatch(
        bundle.graph,
        bundle.params,
        max_tokens=MOST,
        end_ids=bundle.end_ids,
        words=bundle.layout.max_question,
        sizes=Sizes(**{"slots": 4, "chunk": 3, "together": 2, **sizes}),
        pad_id=bundle.tokenizer.pad_id,
        grammar=grammar,
    )
    names = list(batch.compile_for(rows[:1]))
    assert {name.split()[0] for name in names} == {"look", "read", "place", "decode"}
    return batch


@pytest.fixture(scope="module")
def batch(rows):
    return make(rows)


@pytest.fixture(scope="module")
def alone(rows):
    """Returns a function: a prompt's answer by the sampler, alone."""
    bundle = small_run.bundle()

    @jax.jit
    def generate(params, tokens, images):
        return sampler.generate(
            nnx.merge(bundle.graph, params),
            tokens,
            images,
            answers=1,
            max_tokens=MOST,
            sampler=sampler.Greedy(),
            end_ids=bundle.end_ids,
            key=jax.random.key(0),
        )

    def answer(row):
        rollout = generate(bundle.params, *row)
        used = np.asarray(rollout.used)[0, 0]
        return np.asarray(rollout.ids)[0, 0][used], np.asarray(rollout.logp)[0, 0][used]

    return answer


class Run:
    """Answers on their way, by the numbers of their slots."""

    def __init__(self, batch):
        self.batch, self.ids, self.logp, self.live = batch, {}, {}, np.zeros(4, bool)
        self.over = {}

    def join(self, slot, prefix, which, wanted):
        drawn = self.batch.place(prefix, which, slot=slot, wanted=wanted)
        self.ids[slot], self.logp[slot] = drawn.ids[0].tolist(), drawn.logp[0].tolist()
        self.live[slot] = drawn.live[0]

    def step(self):
        drawn = self.batch.decode(self.live)
        for slot in np.flatnonzero(self.live):
            count = drawn.count[slot]
            self.ids[slot] += drawn.ids[slot, :count].tolist()
            self.logp[slot] += drawn.logp[slot, :count].tolist()
        self.live[: len(drawn.live)] = drawn.live

    def to_the_end(self):
        while self.live.any():
            self.step()


def test_answers_that_join_at_any_time_are_those_of_the_sampler(batch, rows, alone):
    run = Run(batch)
    run.join(0, batch.read(rows[:1]), 0, Wanted(MOST))
    run.step()
    both = batch.read(rows[1:3])
    run.join(3, both, 1, Wanted(MOST))
    run.step()
    run.join(1, both, 0, Wanted(MOST))
    run.to_the_end()
    for slot, number in ((0, 0), (1, 1), (3, 2)):
        ids, logp = alone(rows[number])
        np.testing.assert_array_equal(run.ids[slot], ids)
        np.testing.assert_allclose(run.logp[slot], logp, atol=1e-4)
    # A slot that others had before.
    again = Run(batch)
    again.join(3, batch.read(rows[4:5]), 0, Wanted(MOST))
    again.join(0, batch.read(rows[5:6]), 0, Wanted(5))
    again.to_the_end()
    np.testing.assert_array_equal(again.ids[3], alone(rows[4])[0])
    np.testing.assert_array_equal(again.ids[0], alone(rows[5])[0][:5])


def test_random_tokens_depend_on_seed_and_number_alone(batch, rows):
    wanted = Wanted(MOST, temperature=1.0, seed=3)
    one, other = Run(batch), Run(batch)
    prefix = batch.read(rows[:1])
    one.join(2, prefix, 0, wanted)
    one.to_the_end()
    for slot, change in enumerate(({}, {"number": 1}, {"seed": 4}, {"temperature": 0.0})):
        other.join(slot, prefix, 0, wanted._replace(**change))
        other.step()
    other.to_the_end()
    assert one.ids[2] == other.ids[0]
    assert len({tuple(ids) for ids in other.ids.values()}) == 4


def test_given_up_answers_leave_the_others_alone(batch, rows, alone):
    run = Run(batch)
    prefix = batch.read(rows[:2])
    run.join(0, prefix, 0, Wanted(MOST))
    run.join(1, prefix, 1, Wanted(MOST))
    run.step()
    run.live[0] = False
    run.to_the_end()
    np.testing.assert_array_equal(run.ids[1], alone(rows[1])[0])
    assert len(run.ids[0]) < MOST


def test_nothing_is_compiled_once_all_programs_are(batch, rows):
    seen = []

    def listen(event, *_, **__):
        if "compile" in event:
            seen.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        for count in (1, 2):
            run = Run(batch)
            prefix = batch.read(rows[:count])
            run.join(count, prefix, count - 1, Wanted(4, temperature=float(count)))
            run.to_the_end()
        batch.clear()
        assert seen == []
        jax.jit(lambda x: x + len(seen))(np.ones(3))
        assert seen != []
    finally:
        monitoring.unregister_event_duration_listener(listen)


def test_shorter_prompts_are_read_into_the_same_slots(rows, alone):
    layout = small_run.bundle().layout
    halves = type(layout)(**{**vars(layout), "buckets": 2})
    short, whole = buckets.lengths(halves)
    assert short[0] < whole[0] == layout.max_prompt
    tokens, images = rows[0]
    first = np.count_nonzero(tokens.segments[0] == 0)
    columns = layout.max_prompt - first
    cut = type(tokens)(*(leaf[..., -columns:] for leaf in tokens)), images
    bundle = small_run.bundle()
    batch = running_batch.RunningBatch(
        bundle.graph,
        bundle.params,
        max_tokens=MOST,
        end_ids=bundle.end_ids,
        words=bundle.layout.max_question,
        sizes=Sizes(slots=1, chunk=4, together=1),
    )
    list(batch.compile_for([cut, rows[0]]))
    run = Run(batch)
    run.live = np.zeros(1, bool)
    run.join(0, batch.read([cut]), 0, Wanted(MOST))
    run.to_the_end()
    np.testing.assert_array_equal(run.ids[0], alone(rows[0])[0])


def test_a_picture_is_read_once_for_all_questions_about_it(rows, alone, monkeypatch):
    batch = make(rows, pictures=2)
    tokens, images = rows[0]
    ids = tokens.ids.copy()
    ids[0, np.flatnonzero(tokens.visual_tokens[0] >= 0).max() + 3] = 5  # A word of the question.
    other = tokens._replace(ids=ids), images
    looked = []
    look = batch._look_at

    def listen(heads):
        looked.append(len(heads))
        look(heads)

    monkeypatch.setattr(batch, "_look_at", listen)

    def answer(row):
        run = Run(batch)
        run.join(0, batch.read([row]), 0, Wanted(MOST))
        run.to_the_end()
        np.testing.assert_array_equal(run.ids[0], alone(row)[0])
        np.testing.assert_allclose(run.logp[0], alone(row)[1], atol=1e-4)

    for row in (rows[0], other, rows[1], rows[0], rows[2], rows[1], rows[0]):
        answer(row)
    # The third picture took the place of the second, which nobody had asked about for longest.
    assert looked == [1, 0, 1, 0, 1, 1, 1]
    batch.read([rows[3], rows[3]])
    assert looked[-1] == 1
    batch.clear()
    batch.read([rows[3]])
    assert looked[-2:] == [1, 1]


def test_pictures_are_told_apart_by_what_is_read_of_them(rows):
    divide = running_batch._divide
    tokens, images = rows[0]
    part = divide(rows[0], 60, 0)
    visual = np.flatnonzero(tokens.visual_tokens[0] >= 0)
    assert part.count == tokens.ids.shape[1] - visual.max() - 1
    np.testing.assert_array_equal(part.words[0, : part.count], tokens.ids[0, -part.count :])
    head = part.head[0]
    np.testing.assert_array_equal(head.ids[0, part.count :], tokens.ids[0, : -part.count])
    assert (head.segments[0, : part.count] == 0).all()
    assert (head.visual_tokens[0, : part.count] == -1).all()
    # Padding does not count, any pixel, turn of the picture or word before it does.
    padding = np.count_nonzero(tokens.segments[0] == 0)
    assert padding
    short = type(tokens)(*(leaf[..., padding:] for leaf in tokens)), images
    assert divide(short, 60, 0).key == part.key
    patches = images.patches.copy()
    patches[0, 0, 0] ^= 1
    assert divide((tokens, images._replace(patches=patches)), 60, 0).key != part.key
    place = images.place[..., ::-1].copy()
    assert divide((tokens, images._replace(place=place)), 60, 0).key != part.key
    before = tokens.ids.copy()
    before[0, visual.min() - 2] += 1
    assert divide((tokens._replace(ids=before), images), 60, 0).key != part.key
    # Of a long question the first words are read with the picture.
    assert divide(rows[0], 4, 0).count == 4
    assert divide(rows[0], 4, 0).key != part.key


@pytest.mark.parametrize("family", ["qwen", "kimi"])
def test_words_behind_a_picture_are_read_as_with_it(rows, family):
    """In both kinds of caches: keys and values of heads, and latents."""
    bundle = small_run.bundle()
    graph, params = {"qwen": small_run.model, "kimi": small_run.kimi}[family]()[1:]
    words = bundle.layout.max_question
    batch = running_batch.RunningBatch(
        graph, params, max_tokens=4, end_ids=(1,), words=words, sizes=Sizes()
    )
    read = jax.jit(batch._prefill)
    parts = [running_batch._divide(row, words, 0) for row in (rows[0], rows[6])]
    count = np.array([part.count for part in parts], np.int32)
    assert count[0] != count[1]
    heads = tuple(read(params, *part.head) for part in parts)
    asked = np.concatenate([part.words for part in parts])
    found = jax.jit(batch._read)(batch._weights, heads, asked, count)
    length = bundle.layout.max_prompt
    for number, row in enumerate((rows[0], rows[6])):
        want = read(params, *row)
        mine = jax.tree.map(lambda leaf, at=number: np.asarray(leaf)[at : at + 1], found)
        np.testing.assert_array_equal(mine.used, want.used)
        np.testing.assert_array_equal(mine.following, want.following)
        np.testing.assert_allclose(mine.hidden, want.hidden, atol=1e-4)
        told = np.flatnonzero(want.used[0])
        for one, other in zip(*map(jax.tree.leaves, (mine.cache, want.cache)), strict=True):
            assert one.shape == other.shape
            axis = other.shape.index(length)
            both = (np.take(np.asarray(leaf), told, axis) for leaf in (one, other))
            np.testing.assert_allclose(*both, atol=1e-4)


def test_answers_are_held_to_the_grammar_that_each_asks_for(rows):
    bundle = small_run.bundle()
    grammar = bundle.task.grammar(bundle.tokenizer.pieces, bundle.end_ids, nothing=False)
    batch = make(rows, grammar=grammar)
    run = Run(batch)
    prefix = batch.read(rows[:1])
    run.join(0, prefix, 0, Wanted(MOST, kind=int(Kind.POINT)))
    run.join(1, prefix, 0, Wanted(MOST, temperature=2.0, kind=int(Kind.POINT)))
    run.join(2, prefix, 0, Wanted(MOST))
    run.to_the_end()
    texts = [bundle.tokenizer.decode(run.ids[slot]) for slot in range(3)]
    for text in texts[:2]:
        assert text.startswith("[0.") or text.startswith("[1.")
        assert "]" in text
    assert not texts[2].startswith("[")


def test_a_number_of_pictures_is_none_or_more(rows, alone):
    with pytest.raises(ValueError, match="expected 0 pictures or more"):
        Sizes(pictures=-1)
    batch = make(rows, pictures=0)
    run = Run(batch)
    run.join(0, batch.read(rows[:2]), 1, Wanted(MOST))
    run.to_the_end()
    np.testing.assert_array_equal(run.ids[0], alone(rows[1])[0])


@pytest.mark.parametrize("sizes", [{"slots": 0}, {"chunk": 0}, {"together": 0}])
def test_sizes_of_nothing_are_refused(sizes):
    with pytest.raises(ValueError, match="of at least 1"):
        Sizes(**sizes)
    assert Sizes(slots=20).widths == (1, 4, 16, 20)
    assert Sizes(together=1).batches == (1,)
