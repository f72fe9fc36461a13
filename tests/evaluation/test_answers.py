"""Files of answers, good and hostile: each works, or gives one line that names file and line."""

import json

import numpy as np
import pytest

from seg_jax.evaluation.referring import text4seg
from seg_jax.evaluation.referring.answers import Saved
from seg_jax.evaluation.referring.protocols import Question
from seg_jax.records import Kind, Sample

GOOD = {"key": "k", "which": 0, "given": "text", "kind": "mask", "phrase": "a cup", "text": "[]"}


def question(**changes):
    line = GOOD | changes
    image, masks = np.zeros((4, 4, 3), np.uint8), np.ones((2, 4, 4), bool)
    return Question(
        sample=Sample(line["key"], image, masks, ((line["phrase"],), ("else",))),
        index=0,
        which=line["which"],
        given=line["given"],
        kind=Kind[line["kind"].upper()],
        phrase=line["phrase"],
        clue=line["phrase"],
        text="Where is it?",
    )


def read(path, *lines, end="\n"):
    whole = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_bytes((end.join(whole)).encode("utf-8", "surrogatepass"))
    return Saved(path)


def test_answers_are_found_by_their_questions(tmp_path):
    """bom-1: a mark before the file, Windows' ends of lines, empty lines and no last end."""
    other = GOOD | {"phrase": "b", "tokens": 3, "fault": "format"}
    for end in ("\n", "\r\n"):
        saved = read(tmp_path / "a", "\ufeff" + json.dumps(GOOD), "", other, GOOD, end=end)
        assert saved.find(question()) == ("[]", 0)
        assert saved.find(question(phrase="b")) == ("[]", 3)
        assert saved.find(question(kind="box")) is None
        assert saved.findings().lines() == []


def test_what_is_left_out_is_told(tmp_path):
    saved = read(tmp_path / "a", GOOD, GOOD | {"which": 1}, '{"key": "k')
    saved.find(question())
    torn, unasked = saved.findings().lines()
    assert "1 x a last line that breaks off is left out" in torn or "breaks off" in unasked
    told = json.dumps(saved.findings().as_json())
    assert "k, mask 1, mask by text 'a cup'" in told
    assert "a, line 3" in told


def test_half_a_surrogate_in_an_answer_is_the_models_mistake(tmp_path):
    saved = read(tmp_path / "a", json.dumps(GOOD | {"text": "[[\ud800"}), "")
    assert saved.find(question()) == ("[[?", 0)


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{}", "expected a field 'key', got none"),
        ("7", "expected object, got 7"),
        ("null", "expected object, got None"),
        (DEEP, "got lists or objects nested too deep"),
        (json.dumps(GOOD)[:-1] + ', "more": ' + "[" * 500 + "]" * 500 + "}", None),
        (GOOD | {"text": 7}, "text: expected str, got 7"),
        (GOOD | {"text": ["[]"]}, "text: expected str, got a list of 1"),
        (GOOD | {"text": "x" * 1_000_001}, "text: expected str of length <= 1000000"),
        (GOOD | {"which": -1}, "which: expected int >= 0, got -1"),
        (GOOD | {"which": "0"}, "which: expected int, got '0'"),
        (GOOD | {"which": [0]}, "which: expected int, got a list of 1"),
        (GOOD | {"tokens": 1e999}, "tokens: expected int"),
        (GOOD | {"tokens": 2**70}, "tokens: expected "),
        (GOOD | {"tokens": None}, "tokens: expected int, got None"),
        (GOOD | {"key": {}}, "key: expected str, got a dict of 0"),
        (GOOD | {"key": "\ud800"}, "key: expected str without lone surrogates"),
        (GOOD | {"phrase": "x" * 100_001}, "phrase: expected str of length <= 100000"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, told):
    """top-1: values of any kind at any depth."""
    if told is None:
        assert read(tmp_path / "a", GOOD, line, GOOD).find(question())
        return
    with pytest.raises(ValueError) as caught:
        read(tmp_path / "a", GOOD | {"phrase": "before"}, line, GOOD)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'a'}, line 2")
    assert told in text
    assert "; do: " in text
    assert "\n" not in text
    assert len(text) < 400


def test_other_files_are_one_line(tmp_path):
    for name in ("none", "nul\0", "."):
        with pytest.raises(ValueError, match="expected answers, a JSON object a line, got"):
            Saved(tmp_path / name)
    (tmp_path / "a").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="other bytes at byte 0"):
        Saved(tmp_path / "a")


def test_released_polygons_of_odd_numbers_are_none():
    """Numbers that a float does not hold lose the answer, as the release loses it."""
    assert len(text4seg.polygons("[[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]]")) == 1
    for number in ("9" * 400, "9" * 5000, "00.5"):
        assert text4seg.polygons(f"[[{number}, 0.1], [0.9, 0.1], [0.9, 0.9]]") == []
    assert np.isfinite(text4seg.polygons("[[7.0, 0.1], [0.9, 0.1], [0.9, 0.9]]")).all()
