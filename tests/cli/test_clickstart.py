"""The clickstart end to end, killed and resumed, with wrong words; what its numbers say."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import small_run
import stand_in_segmenter
from cheap_runs import curve_of, interrupt

from seg_jax.cli import clickstart_results as results
from seg_jax.data import image_files
from seg_jax.inference import bundle as bundles
from seg_jax.inference import frozen_segmenter
from seg_jax.runs import experiments, pointing
from seg_jax.tasks.prompted import Prompted
from seg_jax.training import optimizers

STAGES = ("seg_r1/clickstart_sft.py", "seg_r1/clickstart_rl.py")


@pytest.fixture(autouse=True, scope="module")
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        small_run.on_one_device(patch)
        yield


@pytest.fixture
def little(monkeypatch):
    """Gives the stages a plain optimizer, few rows and answers, and room to spell tags out."""

    def lessened(real):
        def config(**words):
            base = real(**words)
            feed = dataclasses.replace(base.feed, batch=2)
            layout = dataclasses.replace(base.layout, max_answer=50)
            changes = {"feed": feed, "optimizer": optimizers.AdamW(), "layout": layout}
            if hasattr(base, "sampling"):
                changes["sampling"] = dataclasses.replace(base.sampling, answers=2, max_tokens=50)
            return dataclasses.replace(base, **changes)

        return config

    for name in STAGES:
        experiment = experiments.load(name)
        monkeypatch.setattr(experiment, "config", lessened(experiment.config))


def words(given, out, *more):
    some = ("--sft-steps", 3, "--rl-steps", 3, "--scenes", 4, "--blind-scenes", 2, "--gallery", 2)
    return "clickstart", "--start", given, "--out", out, *some, *more


@pytest.fixture
def asked(monkeypatch):
    """Puts empty answers in the place of a model's; `asked[n]` is called at the n-th evaluation."""
    events, titles = {}, []

    def answered(self, params, *, title, shuffled=False):
        titles.append(title)
        events.get(len(titles), lambda: None)()
        nothing = np.zeros(len(self.examples), np.float32)
        scores: dict[str, np.ndarray] = {}
        scores |= dict.fromkeys(("reward", "iou", "structure", "format"), nothing)
        masks = np.stack([self.truth(row).words for row in range(len(self.examples))])
        return pointing.Answered([""] * len(nothing), scores, masks)

    monkeypatch.setattr(pointing.Questions, "answered", answered)
    return events


@pytest.mark.slow
def test_a_clickstart_that_is_interrupted_in_every_stage_resumes(
    run, little, steps, reinforcing, asked, given, tmp_path, monkeypatch
):
    monkeypatch.setattr(frozen_segmenter, "check", lambda *_: None)
    monkeypatch.setattr(frozen_segmenter, "load", lambda *_, **__: stand_in_segmenter.FROZEN)
    out = tmp_path / "run"
    places = [(steps, 2), (asked, 1), (reinforcing, 2), (asked, 4)]
    for begun, (events, number) in enumerate(places):
        events[number] = interrupt
        status, printed, line = run(*words(given, out, *["--resume"][:begun]))
        assert (begun, status, printed) == (begun, 130, "")
        assert line.startswith("seg-jax clickstart: interrupted")
        assert not (out / "report.html").exists()
        events.clear()
    assert run(*words(given, out))[0] != 0  # Neither --resume nor --anew.
    assert run(*words(given, out, "--resume"))[0] == 0
    task = bundles.load(out / "checkpoint").task
    assert task == experiments.load(STAGES[0]).TASK
    assert bundles.load(out / "sft").task == task
    curve = [(line["stage"], line["step"]) for line in curve_of(out) if "loss" in line]
    assert len(set(curve)) == len(curve)
    assert {("sft", 3), ("rl", 3)} >= {max(c for c in curve if c[0] == s) for s in ("sft", "rl")}
    told = json.loads((out / "summary.json").read_text())
    assert told["after"]["reward"]["mean"] == 0.0
    assert told["perfect"]["reward"]["mean"] > told["blind"]["reward"]["mean"] > 0
    assert not told["gate"]["passed"]
    assert "not passed" in (out / "report.html").read_text()
    assert image_files.read(out / "gallery.png").shape[0] > 100


@pytest.mark.slow
def test_two_steps_of_a_clickstart_with_the_model_that_draws_in_the_package(
    run, little, given, tmp_path
):
    out = tmp_path / "run"
    assert run(*words(given, out, "--sft-steps", 2, "--rl-steps", 2))[0] == 0
    told = json.loads((out / "summary.json").read_text())
    assert told["steps"] == 2
    assert told["answers_tried"] == 2 * 2 * 2
    assert told["perfect"]["iou"]["mean"] > 0.6
    for name in results.CAPTIONS:
        weighted = 0.7 * told[name]["iou"]["mean"] + 0.3 * told[name]["structure"]["mean"]
        assert abs(told[name]["reward"]["mean"] - weighted) < 2e-4
    assert isinstance(bundles.load(out / "checkpoint").task, Prompted)


def test_the_gate_asks_for_twice_the_reward_and_more_than_any_blind_prompt():
    def passes(**means):
        return results.gate({"before": 0.2, "blind": 0.3, "blind_box": 0.25, **means})

    assert passes(after=0.62)["passed"]
    assert passes(after=0.62) | {"passed": 0} == {
        "times_before": 3.1,
        "over_blind": 0.32,
        "passed": 0,
    }
    assert not passes(after=0.59)["passed"]
    assert not passes(after=0.62, blind_box=0.4)["passed"]
    assert not passes(after=0.62, before=0.32)["passed"]


def test_a_clickstart_refuses_wrong_models_before_it_works(fails, given, tmp_path):
    out = tmp_path / "out"
    line = fails("clickstart", "--start", tmp_path / "none", "--out", out)
    assert "expected a checkpoint folder" in line
    line = fails("clickstart", "--start", given, "--segmenter", given, "--out", out)
    assert line.startswith("segmenter: ")
    name = "facebook/sam2.1-hiera-large"  # Its sizes are known, for compile.
    line = fails("clickstart", "--start", given, "--segmenter", name, "--out", out)
    assert "a name that only compile takes" in line
    damaged = shutil.copytree(experiments.TOY_SAM2, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"")
    line = fails("clickstart", "--start", given, "--segmenter", damaged, "--out", out)
    assert "expected a whole safetensors file" in line
    assert not out.exists()


def test_random_clicks_know_nothing_of_the_picture():
    format_alone = experiments.load(STAGES[0])
    task, scene = format_alone.config().task, format_alone.scenes(seed=1)[0]
    found = [task.example(scene, np.random.default_rng(n)) for n in range(200)]
    spots = np.array([task.predict(one, one.answer).points_unit[0] for one in found])
    assert spots.min() < 0.05
    assert spots.max() > 0.95
    np.testing.assert_allclose(spots.mean(0), 0.5, atol=0.07)
