"""Questions about what is not in the image and about several things: asked and judged."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from seg_jax.grammar import chat, outline
from seg_jax.records import Kind, Polygons, Sample, Verdict
from seg_jax.tasks import masks
from seg_jax.tasks.referring import Mixture, Referring, Truth

LEFT, RIGHT = (np.zeros((64, 64), bool) for _ in range(2))
LEFT[10:30, 5:25] = True
RIGHT[10:30, 35:60] = True
NONE = np.zeros((64, 64), bool)


def sample(**changes):
    """Two cats, both cats, and a dog that is not there."""
    given = Sample(
        key="cats",
        image=np.zeros((64, 64, 3), np.uint8),
        masks=np.stack([LEFT, RIGHT, LEFT | RIGHT, NONE]),
        phrases=(("left cat",), ("right cat",), ("both cats", "the cats"), ("dog", "the dog")),
        names=("cat", "cat", "cat", ""),
        together=(False, False, True, False),
    )
    return dataclasses.replace(given, **changes)


def drawn(task, count, given=None, seed=0):
    rng = np.random.default_rng(seed)
    return [task.example(given or sample(), rng) for _ in range(count)]


def test_absent_things_are_asked_about_in_their_share():
    mixture = Mixture(text_mask=0.5, text_box=0.25, text_point=0.25, absent=0.5)
    examples = drawn(Referring(mixture=mixture), 1500)
    denied = [example for example in examples if not example.mask.any()]
    assert abs(len(denied) / len(examples) - 1 / 3) < 0.04
    assert all("dog" in example.question for example in denied)
    assert not any("dog" in e.question for e in examples if e.mask.any())
    kinds = [sum(e.kind == kind for e in denied) / len(denied) for kind in Kind]
    np.testing.assert_allclose(kinds, [0.25, 0.25, 0.5], atol=0.07)
    told = {e.answer for e in denied}
    assert told == {chat.denial(index=index) for index in range(len(chat.DENIALS))}
    assert all(outline.read(e.answer, e.kind).says_nothing for e in denied)
    assert not any(outline.read(e.answer, e.kind).says_nothing for e in examples if e.mask.any())


def test_without_a_share_nothing_is_denied_and_every_draw_is_as_it_was():
    plain = sample(
        masks=np.stack([LEFT, RIGHT]),
        phrases=(("left cat",), ("right cat",)),
        names=("cat", "cat"),
        together=(),
    )
    task = Referring(mixture=Mixture(text_point=1.0, point_mask=1.0, box_name=1.0))
    more = dataclasses.replace(task, mixture=dataclasses.replace(task.mixture, absent=0.7))
    for one, other in zip(drawn(task, 60, plain), drawn(more, 60, plain), strict=True):
        assert (one.question, one.answer) == (other.question, other.answer)
    assert all(example.mask.any() for example in drawn(task, 60))
    # What the first questions of a seed are is part of every run that was ever made.
    rng = np.random.default_rng(5)
    which, phrase = int(rng.choice([0, 1])), int(rng.integers(1))
    share = np.searchsorted(np.cumsum([1.0, 0, 1.0, 1.0, 0, 0, 1.0]), rng.random() * 4.0, "right")
    usual = Mixture(text_point=1.0, text_mask=1.0, point_mask=1.0, box_name=1.0)
    example = Referring(mixture=usual, wordings="one").example(plain, np.random.default_rng(5))
    assert example.kind == {0: Kind.POINT, 2: Kind.MASK, 3: Kind.MASK, 6: None}[int(share)]
    assert phrase == 0
    np.testing.assert_array_equal(example.mask, plain.masks[which])


def test_an_image_is_asked_what_it_allows_for():
    mixture = Mixture(text_mask=1.0, point_mask=1.0, box_mask=1.0, absent=0.1)
    # Nothing but what is not there.
    empty = sample(masks=NONE[None], phrases=(("dog",),), names=(), together=())
    assert not any(example.mask.any() for example in drawn(Referring(mixture=mixture), 20, empty))
    with pytest.raises(ValueError, match=r"sample cats: expected an object .* got 0 masks"):
        drawn(Referring(), 1, empty)
    # No expressions: points and boxes tell.
    silent = sample(phrases=((), (), (), ()))
    asked = {
        example.question.split(" of ")[-1][:15]
        for example in drawn(Referring(mixture=mixture, wordings="one"), 60, silent)
    }
    assert asked == {"the object at p", "the object in b"}
    with pytest.raises(ValueError, match=r"for one of text_point, .*, got 3 masks, 0 with phrases"):
        drawn(Referring(), 1, silent)


def test_several_things_are_told_by_text_alone_and_have_a_ring_each():
    mixture = Mixture(text_mask=1.0, point_mask=1.0, box_mask=1.0)
    both = LEFT | RIGHT
    examples = drawn(Referring(mixture=mixture, wordings="one"), 200)
    united = [example for example in examples if (example.mask == both).all()]
    assert 10 < len(united) < 100
    assert {example.question for example in united} == {
        chat.question(Kind.MASK, phrase) for phrase in ("both cats", "the cats")
    }
    (answer,) = {example.answer for example in united}
    assert len(outline.read(answer, Kind.MASK).rings) == 2


def test_only_text_can_tell_what_is_absent():
    with pytest.raises(ValueError, match="expected a share of text_mask, text_box or text_point"):
        Mixture(text_mask=0.0, point_mask=1.0, absent=0.5)
    with pytest.raises(ValueError, match="expected shares >= 0"):
        Mixture(absent=-0.5)
    task = Referring(mixture=Mixture(absent=0.5))
    assert (task.kinds, task.nothing, Referring().nothing) == ((Kind.MASK,), True, False)


RINGS = {
    Kind.POINT: [[0.2, 0.3]],
    Kind.BOX: [[0.1, 0.2], [0.4, 0.45]],
    Kind.MASK: [[0.1, 0.2], [0.4, 0.2], [0.4, 0.45], [0.1, 0.45]],
}
ANSWERS = {"says": Verdict.OK, "shows": Verdict.OK, "unread": Verdict.EMPTY}


def judged(kind, mask, answer):
    rings, verdict = [RINGS[kind]] if answer == "shows" else [], ANSWERS[answer]
    unit, used = np.zeros((1, 2, 8, 2), np.float32), np.zeros((1, 2, 8), bool)
    for index, ring in enumerate(rings):
        unit[0, index, : len(ring)], used[0, index, : len(ring)] = ring, True
    truth = Truth(masks.pack(mask, (64, 64))[None], np.array([[64, 64]]), np.array([kind]))
    answer = Polygons(jnp.asarray(unit), jnp.asarray(used))
    out = Referring().judge(answer, jnp.array([int(verdict)]), truth)
    return {name: float(value[0]) for name, value in out.scores.items()}, out


@pytest.mark.parametrize("kind", Kind)
def test_scores_of_what_is_said_to_be_absent(kind):
    full = {"iou": 1.0, "distance": 1.0, "format": 1.0}
    nothing = {"iou": 0.0, "distance": 0.0, "format": 1.0}
    assert judged(kind, NONE, "says")[0] == full
    assert judged(kind, NONE, "shows")[0] == nothing
    assert judged(kind, NONE, "unread")[0] == nothing | {"format": 0.0}
    assert judged(kind, LEFT, "says")[0] == nothing
    assert judged(kind, LEFT, "unread")[0] == nothing | {"format": 0.0}
    right, out = judged(kind, LEFT, "shows")
    assert right["iou"] > 0.5
    assert right["distance"] > 0.9
    for answer in ANSWERS:
        _, out = judged(kind, NONE, answer)
        assert np.isnan(out.measures["centroid_error"]).all()
        assert out.measures["intersection"].tolist() == [0]
        assert (out.measures["union"][0] > 0) == (kind == Kind.MASK and answer == "shows")
