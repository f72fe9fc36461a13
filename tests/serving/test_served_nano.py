"""The model of the package behind HTTP: its answers to scenes are those of `predict`, and good."""

from __future__ import annotations

import concurrent.futures

import numpy as np
import pytest
import scripted
from pycocotools import mask as coco

from seg_jax.inference import bundle as bundles
from seg_jax.inference import predictor
from seg_jax.models.vlm.running_batch import Sizes
from seg_jax.runs import experiments
from seg_jax.serving import examples

COUNT = 6


@pytest.mark.slow
def test_nano_outlines_scenes_as_predict_does(monkeypatch):
    bundle = bundles.load(experiments.NANO)
    scenes = experiments.load("simpleseg/nano_sft.py").scenes(seed=examples.SEED)
    asked = [(scenes[n], next(t[0] for t in scenes[n].phrases if t)) for n in range(COUNT)]
    alone = predictor.Predictor(bundle)
    want = [alone.predict_one(sample.image, text).as_json() for sample, text in asked]
    sizes = Sizes(slots=4, together=2)
    with (
        scripted.serve(monkeypatch, real=True, asked=bundle, sizes=sizes) as served,
        concurrent.futures.ThreadPoolExecutor(COUNT) as pool,
    ):
        bodies = [
            {"image": scripted.data_uri(scripted.picture_of(sample.image)), "text": text}
            for sample, text in asked
        ]
        replies = [*pool.map(lambda body: served.send("/v1/segment", body), bodies)]
    overlaps = []
    for (status, told, _), wanted, (sample, _) in zip(replies, want, asked, strict=True):
        assert status == 200
        (one,) = told["objects"]
        assert one["text"] == wanted["text"]
        assert one["rle"] == wanted["rle"]
        drawn = coco.decode(one["rle"]).astype(bool)
        truth = sample.masks[next(n for n, some in enumerate(sample.phrases) if some)]
        overlaps.append((drawn & truth).sum() / (drawn | truth).sum())
    assert np.mean(overlaps) > 0.6
