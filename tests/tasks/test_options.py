"""Options of true answers: order, start, holes, tracing, wordings; none makes a target vanish."""

import dataclasses

import numpy as np
import pytest

from seg_jax.data import sources
from seg_jax.geometry import contour, polygon, simpleseg_tracing
from seg_jax.grammar import chat, outline
from seg_jax.records import Kind
from seg_jax.runs import supervised
from seg_jax.tasks.referring import Mixture, Referring, box_unit, outline_text, rings_unit

SCENES = sources.Scenes(seed=3, count=40)
MASKS = [mask for index in range(6) for mask in SCENES[index].masks]


def hollow():
    """A disc with a hole in which an island lies."""
    rows, columns = np.mgrid[:64, :64] - 32
    distance = rows**2 + columns**2
    return ((distance < 700) & (distance > 260)) | (distance < 60)


@pytest.mark.parametrize("mask", MASKS[:4])
def test_the_order_is_one_of_two(mask):
    rings = {order: rings_unit(mask, Referring(order=order)) for order in ORDERS}
    for one, other in zip(*rings.values(), strict=True):
        assert polygon.is_clockwise(one)
        assert not polygon.is_clockwise(other)
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1:], other[1:][::-1])


ORDERS = ("clockwise", "counterclockwise")


def test_shuffled_vertices_are_the_same_ones_in_another_order():
    plain, shuffled = Referring(wordings="one"), Referring(order="shuffled", wordings="one")
    ring = outline.read(outline_text(MASKS[0], Kind.MASK, plain), Kind.MASK).rings[0]
    seen = set()
    for seed in range(8):
        text = outline_text(MASKS[0], Kind.MASK, shuffled, rng=np.random.default_rng(seed))
        other = outline.read(text, Kind.MASK).rings[0]
        assert sorted(map(tuple, other)) == sorted(map(tuple, ring))
        seen.add(text)
    assert len(seen) > 4
    assert outline_text(MASKS[0], Kind.MASK, shuffled) == outline_text(MASKS[0], Kind.MASK, plain)
    with pytest.raises(ValueError, match=r"task\.start: expected 'first' beside a shuffled order"):
        Referring(order="shuffled", start="random")


def test_rings_start_anywhere_where_that_is_random():
    task = Referring(start="random", wordings="one")
    first = outline.read(outline_text(MASKS[0], Kind.MASK, task), Kind.MASK).rings
    assert outline_text(MASKS[0], Kind.MASK, task) == outline_text(
        MASKS[0], Kind.MASK, Referring(), rng=np.random.default_rng(0)
    )
    starts = set()
    for seed in range(60):
        text = outline_text(MASKS[0], Kind.MASK, task, rng=np.random.default_rng(seed))
        again = outline.read(text, Kind.MASK).rings
        for one, other in zip(first, again, strict=True):
            (shift,) = np.flatnonzero((one == other[0]).all(1))
            np.testing.assert_array_equal(np.roll(one, -shift, axis=0), other)
        starts.add(tuple(again[0][0]))
    assert len(starts) > 0.7 * len(first[0])
    # Questions of a run draw it too.
    rng, sample = np.random.default_rng(0), SCENES[0]
    answers = {task.example(sample, rng).answer for _ in range(40)}
    assert len(answers) > 4 > len(sample.masks)


def test_holes_are_left_out_with_all_that_lies_in_them():
    mask = hollow()
    assert len(rings_unit(mask, Referring())) == 3
    (whole,) = rings_unit(mask, Referring(holes=False))
    rows, columns = np.mgrid[:64, :64] - 32
    disc = rows**2 + columns**2 < 700
    np.testing.assert_array_equal(contour.fill_holes(mask), disc)
    np.testing.assert_array_equal(whole, rings_unit(disc, Referring())[0])
    # Without holes nothing changes.
    assert contour.fill_holes(disc) is disc


@pytest.mark.parametrize("mask", [*MASKS[:4], hollow()])
def test_the_release_is_traced_as_its_script_does(mask):
    task = Referring(tracing="released", epsilon=0.001, max_points=500)
    wanted = [ring for ring in simpleseg_tracing.trace(mask, epsilon_ratio=0.001) if len(ring) > 2]
    found = rings_unit(mask, task)
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    few = rings_unit(mask, dataclasses.replace(task, max_points=9))
    assert 3 <= sum(len(ring) for ring in few) <= 9


@pytest.mark.parametrize(
    "unread", [{"min_area": 5.0}, {"holes": False}, {"order": "counterclockwise"}]
)
def test_training_refuses_what_the_tracing_of_the_release_does_not_read(unread):
    (name,) = unread
    with pytest.raises(ValueError, match=f"task.{name}: expected .* beside task.tracing released"):
        supervised.Config(task=Referring(tracing="released", **unread))
    supervised.Config(task=Referring(tracing="exact", **unread))
    supervised.Config(task=Referring(tracing="released"))


@pytest.mark.parametrize("tracing", ["exact", "released"])
@pytest.mark.parametrize("digits", [1, 2, 3])
def test_a_target_is_never_written_as_nothing(tracing, digits):
    task = Referring(tracing=tracing, digits=digits)
    for height, width, rows, columns in [
        (64, 64, slice(3, 4), slice(5, 6)),
        (400, 600, slice(200, 201), slice(599, 600)),
        (400, 600, slice(0, 1), slice(0, 180)),
    ]:
        mask = np.zeros((height, width), bool)
        mask[rows, columns] = True
        reading = outline.read(outline_text(mask, Kind.MASK, task), Kind.MASK)
        assert not reading.says_nothing
        corners = np.concatenate(reading.rings)
        low, high = np.split(np.array(box_unit(mask)), 2)
        assert (np.abs(corners.min(0) - low) <= 1.51 * 10.0**-digits).all()
        assert (np.abs(corners.max(0) - high) <= 1.51 * 10.0**-digits + 1 / 64).all()


def test_wordings_go_from_one_to_all():
    asked = {}
    for wordings in ("one", "many", "more"):
        task = Referring(wordings=wordings, mixture=Mixture(text_point=1.0))
        rng = np.random.default_rng(0)
        examples = [task.example(SCENES[0], rng) for _ in range(600)]
        phrases = sorted({p for some in SCENES[0].phrases for p in some}, key=len, reverse=True)
        asked[wordings] = set()
        for example in examples:
            told = next(phrase for phrase in phrases if phrase in example.question)
            asked[wordings].add((example.kind, example.question.replace(told, "{clue}")))
    released_forms = {
        (kind, form.format(clue="{clue}", noun=chat.NOUNS[kind]))
        for kind in (Kind.POINT, Kind.MASK)
        for form in chat.QUESTIONS
    }
    own = {(kind, form) for kind in (Kind.POINT, Kind.MASK) for form in chat.PARAPHRASES[kind]}
    assert asked["one"] == {(k, f) for k, f in released_forms if f.startswith('"{clue}"')}
    assert asked["many"] == released_forms
    assert asked["more"] == released_forms | own
