"""Holds what is taken from models' texts to plain expressions, and views to what they show."""

import numpy as np
import pytest

from seg_jax.annotation import words
from seg_jax.annotation.stages import Answer, Failed
from seg_jax.annotation.words import Wording


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("the red cup", "the red cup"),
        ('  "The red\n cup."  ', "The red cup"),
        ("\u201cder rote Becher\u201d", "der rote Becher"),
        ("cafe\u0301 chair", "caf\u00e9 chair"),
        ("number 7.", "number 7"),
        ("the dog's bowl", "the dog's bowl"),
    ],
)
def test_an_expression_is_cleaned(text, taken):
    assert words.read_description(Answer(text), Wording()) == taken


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "in words, got nothing"),
        (" \n\t ", "in words, got nothing"),
        ('"."', "in words, got nothing"),
        ("---", "in words, got nothing"),
        ("[[[0.12, 0.34]]].", "in words, got nothing"),
        ("a cup\x00", "U+0000"),
        ("a cup\x1b[31m", "U+001B"),
        ("a \u202ecup", "U+202E"),
        ("a cup\u200b x", "U+200B"),
        ("a cup\ud800", "U+D800"),
        ("<think>hm</think> a cup", "markup"),
        ("a cup<|im_end|>", "markup"),
        ("a " * 200, "at most 200 characters, got 399"),
    ],
)
def test_what_is_no_expression_is_refused(text, told):
    with pytest.raises(Failed, match=told.replace("+", r"\+")):
        words.read_description(Answer(text), Wording())


def test_what_was_cut_off_is_refused():
    with pytest.raises(Failed, match="cut off"):
        words.read_description(Answer("a cup on the", finished=False), Wording())


def test_the_label_stands_in_the_question():
    assert (
        words.question_text(Wording(question="What {label}? {0}"), "dog {x}") == "What dog {x}? {0}"
    )


def test_a_view_frames_the_box_and_changes_nothing_else():
    image = np.random.default_rng(0).integers(0, 200, (64, 96, 3), dtype=np.uint8)
    shown = words.draw_view(image, (10.0, 20.0, 30.0, 50.0), Wording())
    changed = (shown != image).any(-1)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (19, 50, 9, 30)
    assert not changed[20:50, 10:30].any()
    assert (shown[changed] == [255, 0, 0]).all()
    assert changed.sum() == 2 * 22 + 2 * 30


def test_a_view_is_scaled_down():
    image = np.zeros((100, 400, 3), np.uint8)
    shown = words.draw_view(image, (0.0, 0.0, 400.0, 100.0), Wording(view_px=200))
    assert shown.shape == (50, 200, 3)


def test_wordings_that_make_no_sense_are_told():
    with pytest.raises(ValueError, match=r"wording.question: expected a question"):
        Wording(question=" ")
    with pytest.raises(ValueError, match="view_px of at least 28"):
        Wording(view_px=1)
