"""A real model behind HTTP gives what `predict` gives, and compiles nothing for it."""

from __future__ import annotations

import concurrent.futures

import numpy as np
import scripted
import small_run
from jax import monitoring

from seg_jax.data import image_files
from seg_jax.inference import predictor
from seg_jax.serving.limits import Limits


def test_answers_are_those_of_predict_and_nothing_is_compiled(monkeypatch):
    bundle = small_run.bundle()
    alone = predictor.Predictor(bundle)
    asked = []
    for number, size in enumerate([(32, 32), (20, 40), (64, 16), (33, 31), (48, 48)]):
        rng = np.random.default_rng(number)
        data = scripted.picture_of(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        asked.append((data, f"the {['red', 'blue'][number % 2]} star"))
    want = [alone.predict_one(image_files.read(data), text).as_json() for data, text in asked]
    compiled = []

    def listen(event, *_, **__):
        if "compile" in event:
            compiled.append(event)

    limits = Limits(waiting=32)
    with (
        scripted.serve(monkeypatch, real=True, asked=bundle, limits=limits) as served,
        concurrent.futures.ThreadPoolExecutor(5) as pool,
    ):
        monitoring.register_event_duration_secs_listener(listen)
        try:
            bodies = [{"image": scripted.data_uri(data), "text": text} for data, text in asked]
            replies = [*pool.map(lambda body: served.send("/v1/segment", body), 2 * bodies)]
        finally:
            monitoring.unregister_event_duration_listener(listen)
    for (status, told, _), wanted in zip(replies, 2 * want, strict=True):
        assert status == 200
        (one,) = told["objects"]
        assert {name: one[name] for name in wanted} == wanted
    assert compiled == []
