"""Written conversations are taught by the programs: built, looked at, learnt, gone on with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import small_run
from built_data import build
from cheap_runs import curve_of, interrupt, weights_of

from seg_jax.cli import main
from seg_jax.data.build import dataset
from seg_jax.inference import bundle as bundles
from seg_jax.tasks.prompted import Mixture, Prompted
from seg_jax.training import steps

sys.path.append(str(Path(__file__).parents[1] / "data"))
pytest.importorskip("pyarrow")
import test_fcot

CONFIG = """
import dataclasses
import small_run
from seg_jax.data.pipeline import Feed
from seg_jax.tasks.prompted import Mixture, Prompted
from seg_jax.training import loop, optimizers

def config():
    base = small_run.sft_config()
    return dataclasses.replace(
        base,
        task=Prompted(stage="sft", frame=96, mixture=Mixture(whole=0.0, trace=1.0)),
        layout=dataclasses.replace(
            base.layout, max_prompt=1200, max_question=400, max_answer=200
        ),
        feed=Feed(batch=2),
        optimizer=optimizers.AdamW(),
        loop=loop.Loop(steps=2, log_every=1),
    )
"""


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    small_run.on_one_device(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Returns the folder of a built set of conversations, one of which has no answer."""
    root = tmp_path_factory.mktemp("fcot")
    rows = test_fcot.rows(root)
    rows[3] = (*rows[3][:3], " ")
    test_fcot.write(root, rows)
    build(dataset.Plan(name="fcot", source=root, out=root / "out"))
    return root / "out"


def test_a_page_shows_what_was_written(data, tmp_path, capsys):
    page = tmp_path / "preview.html"
    assert main.main(["preview", str(data), "--out", str(tmp_path)]) == 0
    assert "conversation left out: it has no question or no answer" in capsys.readouterr().err
    text = page.read_text()
    for wanted in ("about 4 images", "Question 0?", "The thing is 2 high.", "[[5,6]]"):
        assert wanted in text


@pytest.mark.slow
def test_conversations_are_learnt_and_a_run_goes_on(data, tmp_path, monkeypatch, capsys):
    (tmp_path / "sft.py").write_text(CONFIG)
    words = ["finetune", str(tmp_path / "sft.py"), "--data", str(data), "--out"]
    assert main.main([*words, str(tmp_path / "whole")]) == 0
    real, done = steps.supervised_step, []

    def once_interrupted(*options):
        step = real(*options)

        def stopping(*given):
            done.append(1)
            if len(done) == 1:
                interrupt()
            return step(*given)

        stopping.lower = step.lower
        return stopping

    with monkeypatch.context() as patch:
        patch.setattr(steps, "supervised_step", once_interrupted)
        assert main.main([*words, str(tmp_path / "run")]) == 130
    assert "sft stopped after step 1, which is saved" in capsys.readouterr().err
    assert main.main([*words, str(tmp_path / "run"), "--resume"]) == 0
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert [line["step"] for line in curve_of(run)] == [1, 2]
    assert curve_of(run) == curve_of(whole)
    assert weights_of(run) == weights_of(whole)
    # Answers alone are learnt, and the model remembers what it was taught.
    tokens = [line["answer_tokens"] for line in curve_of(whole)]
    assert all(2 * 20 < count < 2 * 200 for count in tokens)
    _, task = bundles.describe(whole / "checkpoint")
    assert task == Prompted(stage="sft", frame=96, mixture=Mixture(whole=0.0, trace=1.0))
    saved = json.loads((whole / "config.json").read_text())
    assert str(data) in json.dumps(saved)
