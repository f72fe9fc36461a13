"""Reinforcement by scores of a user's own: a killed run goes on, with the same functions only."""

import json

import pytest
from cheap_runs import CONFIG, curve_of, interrupt, weights_of

TEXT = """
import jax.numpy as jnp
from seg_jax.tasks.own_scores import on_host

def single(answer, truth, height, width):
    return {"single": 1.0 / (1.0 + answer.used.any(-1).sum(-1))}

@on_host
def drawn(answer, truth, height, width):
    return {"drawn": answer.used.any((-1, -2)).astype("float32")}
"""


@pytest.fixture
def words(given, tmp_path):
    """Returns a function (folder, more words) -> a command that reinforces by such scores."""
    config, mine = tmp_path / "four.py", tmp_path / "mine.py"
    config.write_text(CONFIG.replace("tiny_sft", "tiny_gspo"))
    mine.write_text(TEXT)

    def of(out, *more):
        rewards = "--reward", f"{mine}:single", f"{mine}:drawn", "--weights.drawn", "0.25"
        return "reinforce", config, "--checkpoint", given, "--out", tmp_path / out, *rewards, *more

    return of


def test_a_killed_run_goes_on_with_the_same_functions_only(
    run, fails, reinforcing, words, tmp_path
):
    assert run(*words("whole"))[0] == 0
    reinforcing[3] = interrupt
    assert run(*words("run"))[0] == 130
    reinforcing.clear()
    out, mine = tmp_path / "run", tmp_path / "mine.py"
    weights = json.loads((out / "config.json").read_text())["weights"]
    assert weights["single"] == 1.0
    assert weights["drawn"] == 0.25
    assert weights["iou"] == 1.0
    assert (out / "functions" / "1_mine.py").read_text() == TEXT
    before = curve_of(out)
    mine.write_text(TEXT.replace("1.0 /", "0.5 /"))
    line = fails(*words("run", "--resume"))
    assert "mine.py as it was when the run in" in line
    assert "got another text (SHA-256 " in line
    assert "; do: put the old one back from" in line
    assert curve_of(out) == before
    mine.write_text(TEXT)
    line = fails(*words("run", "--resume", "--weights.drawn", "0.5"))
    assert "expected the configuration that the run began with, got another weights.drawn" in line
    assert run(*words("run", "--resume"))[0] == 0
    assert weights_of(out) == weights_of(tmp_path / "whole")
    assert curve_of(out) == curve_of(tmp_path / "whole")


def test_mistakes_are_told_before_a_folder_is_made(fails, reinforcing, words, tmp_path):
    assert "got drwn; do: leave it out" in fails(*words("run", "--weights.drwn", "1"))
    taken = tmp_path / "mine.py"
    taken.write_text(TEXT.replace('"single"', '"iou"'))
    assert "single: expected names of its own, got iou" in fails(*words("run"))
    taken.write_text(TEXT.replace("def drawn", "def drown"))
    assert "expected a function drawn in" in fails(*words("run"))
    assert not (tmp_path / "run").exists()
