"""A segmenter is taught on drawn scenes: the program from end to end."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import small_run
import tiny_sam2
from cheap_runs import curve_of, interrupt, moved, weights_of

from seg_jax.cli import main
from seg_jax.inference import segmenter
from seg_jax.runs import teaching
from seg_jax.scenes import world
from seg_jax.training import mask_learning
from seg_jax.training.loop import Loop
from seg_jax.training.mask_learning import Objective

SIDE = 32
TINY = dataclasses.replace(
    tiny_sam2.CONFIG,
    side=SIDE,
    backbone=dataclasses.replace(tiny_sam2.HIERA, window_size_per_stage=(4, 4, 2, 1)),
)
SMALL = teaching.Config(
    model=TINY,
    world=world.Config(height=48, width=40, size_unit=(0.4, 0.45)),
    feed=teaching.Feed(batch=2, objects=2),
    objective=Objective(corrections=1),
    loop=Loop(steps=4, log_every=1),
    held_out=2,
)
RUN = """\
import test_teach


def config():
    return test_teach.SMALL
"""


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    small_run.on_one_device(monkeypatch)


def test_a_run_stops_goes_on_and_leaves_a_segmenter(tmp_path, capsys):
    path, out = tmp_path / "run.py", tmp_path / "out"
    path.write_text(RUN)
    words = ["teach", str(path), "--out", str(out)]
    assert main.main(words) == 0
    assert capsys.readouterr().out == f"{out / 'checkpoint'}\n"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all(0 <= line[name] <= 1 for line in steps for name in ("iou", "iou/first", "dice"))
    told = json.loads((out / "summary.json").read_text())
    assert told["steps"] == 4
    assert {"iou_box", "iou_click", "seconds"} <= set(told)
    model = segmenter.load(out / "checkpoint")
    drawn = model.draw(
        np.zeros((20, 30, 3), np.uint8), [segmenter.prompt(box_px=np.array([1.0, 1.0, 9.0, 9.0]))]
    )
    assert drawn[0].mask.shape == (20, 30)
    assert main.main(words) == 1
    assert "--resume" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_as_if_undisturbed(tmp_path, monkeypatch, capsys):
    """A step stands in that costs nothing: weights move with what is drawn and with the step."""
    path, stops = tmp_path / "run.py", []
    path.write_text(RUN)
    words = ["teach", str(path), "--out"]

    def step(before, objects):
        if int(before.step) in stops:
            interrupt()
        drawn = float(objects.images.mean()) * 1e-4 + float(objects.masks.mean())
        params = moved(before.params, drawn * (1 + float(before.step)))
        return before._replace(step=before.step + 1, params=params), {"loss": drawn}

    monkeypatch.setattr(mask_learning, "step", lambda *_, **__: step)
    monkeypatch.setattr(teaching, "tried", lambda run, model: {})
    assert main.main([*words, str(tmp_path / "whole")]) == 0
    stops.append(1)
    assert main.main([*words, str(tmp_path / "run")]) == 130
    assert "stopped after step 2, which is saved" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoint").exists()
    stops.clear()
    assert main.main([*words, str(tmp_path / "run"), "--resume"]) == 0
    assert [line["step"] for line in curve_of(tmp_path / "run")] == [1, 2, 3, 4]
    assert curve_of(tmp_path / "run") == curve_of(tmp_path / "whole")
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "whole")


def test_scenes_go_on_where_they_stood():
    scenes = teaching.Scenes(SMALL, SIDE)
    first = next(scenes)
    assert first.images.shape == (2, SIDE, SIDE, 3)
    assert first.masks.shape == (2, 2, SIDE, SIDE)
    assert first.masks.any((-2, -1)).all()
    again = teaching.Scenes(SMALL, SIDE)
    again.set_state(json.loads(json.dumps(scenes.get_state())))
    for one, other in zip(next(scenes), next(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_ground_is_asked_for_in_its_share():
    asked = dataclasses.replace(SMALL, feed=dataclasses.replace(SMALL.feed, batch=200, ground=0.3))
    scenes, things = teaching.Scenes(asked, SIDE), teaching.Scenes(SMALL, SIDE)
    batch, grounds = next(scenes), 0
    for number, masks in enumerate(batch.masks):
        _, found = teaching.scene(asked, number, seed=asked.feed.seed, side=SIDE)
        ground = ~found.any(0)
        for mask in masks:
            grounds += (mask == ground).all()
            assert (mask == ground).all() or (mask == found).all((-2, -1)).any()
    assert 0.2 < grounds / (200 * SMALL.feed.objects) < 0.4
    # Without a share nothing else changes.
    np.testing.assert_array_equal(next(things).images, batch.images[: SMALL.feed.batch])


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_ground_that_is_no_share_is_refused(share):
    with pytest.raises(ValueError, match=r"^feed.ground: expected .*, got .*; do: "):
        teaching.Feed(ground=share)


def test_scenes_whose_things_vanish_are_passed_over(monkeypatch):
    small = world.Config(height=1024, width=1024, count=(1, 1), size_unit=(0.01, 0.012))
    run = dataclasses.replace(SMALL, world=small)
    scenes = teaching.Scenes(run, SIDE)
    assert next(scenes).masks.any((-2, -1)).all()
    assert scenes.get_state()["drawn"] > 2, "the test needs scenes of which nothing is left"
    monkeypatch.setattr(teaching, "MOST_EMPTY", 1)
    with pytest.raises(ValueError, match=r"^world: expected things .*, got none in 1 scenes; do: "):
        next(teaching.Scenes(run, SIDE))


def test_the_innermost_pixel_is_within():
    mask = np.zeros((20, 20), bool)
    mask[3:14, 2:9] = True
    ((x, y),) = teaching._inner(mask)
    assert (x, y) == (5.5, 8.5)
    alone = np.zeros((5, 5), bool)
    alone[4, 0] = True
    np.testing.assert_array_equal(teaching._inner(alone), [[0.5, 4.5]])
