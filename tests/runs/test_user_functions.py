"""Functions of a user's files: loaded, kept with a run, compared when it goes on."""

from __future__ import annotations

import hashlib
import json

import pytest

from seg_jax.runs import user_functions

TEXT = "import math\n\nTEN = 10\n\n\ndef ten():\n    return TEN\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(TEXT)
    return path


def test_a_function_is_loaded_with_its_text(file):
    found = user_functions.load(f"{file}:ten", option="reward")
    assert found.function() == 10
    assert found.sha256 == hashlib.sha256(TEXT.encode()).hexdigest()


WRONG = {
    "": "reward: expected FILE.py:FUNCTION, got ''; do: name a file and a function",
    "{0}": "expected FILE.py:FUNCTION",
    "{0}:": "expected FILE.py:FUNCTION",
    "{0}:twelve": "reward: expected a function twelve in {0}, got none; do: define it there",
    "{0}:TEN": "expected a function TEN in {0}, got int; do: define it there",
    "none.py:ten": "none.py: expected a Python file, got no file; do: correct --reward",
    "{1}:ten": "reward: expected a program that runs, got {1}, line 2: ZeroDivisionError: ",
    "{2}:ten": "reward: expected a program that runs, got {2}, line 1: SyntaxError: ",
}


@pytest.mark.parametrize("title", WRONG)
def test_what_cannot_be_loaded_is_refused_in_one_line(title, file, tmp_path):
    fails, broken = tmp_path / "fails.py", tmp_path / "broken.py"
    fails.write_text("TEN = 10\nTEN / 0\n")
    broken.write_text("def ten(:\n")
    with pytest.raises(ValueError) as caught:
        user_functions.load(title.format(file, fails, broken), option="reward")
    assert WRONG[title].format(file, fails, broken) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_keeps_the_text_and_refuses_another(file, tmp_path):
    out = tmp_path / "run"
    out.mkdir()

    def note(*titles):
        found = [user_functions.load(title, option="reward") for title in titles]
        user_functions.note(out, found, option="reward")

    note()
    assert list(out.iterdir()) == []
    note(f"{file}:ten")
    (record,) = json.loads((out / "functions.json").read_text())
    assert record["sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()
    assert (out / record["kept"]).read_text() == TEXT
    note(f"{file}:ten")
    moved = file.rename(tmp_path / "moved.py")
    note(f"{moved}:ten")
    with pytest.raises(ValueError, match="expected ten, as when the run in .* began, got none; do"):
        note()
    moved.write_text(TEXT.replace("10", "11"))
    with pytest.raises(ValueError, match="moved.py as it was when the run in .* got another text"):
        note(f"{moved}:ten")
    moved.write_bytes((out / record["kept"]).read_bytes())
    note(f"{moved}:ten")
