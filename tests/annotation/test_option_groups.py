"""Every option of a group that a program hands on whole changes what its functions do.

`annotate` hands filters, wording and settings of an endpoint to functions of this room; that it
does so, and that each function gets them, is held by `tests/cli/test_options_of_annotate.py`.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import types

import fingerprints
import numpy as np
import pytest
from PIL import Image

from seg_jax.annotation import annotator, endpoint, filters, http_exchange, words
from seg_jax.annotation.stages import (
    Answer,
    Detection,
    Failed,
    Model,
    Models,
    Question,
    Segment,
    Stages,
    Unusable,
)
from seg_jax.data import image_lists

KEYS = {"SEG_JAX_DESCRIBER_KEY": "one", "1:2": "two"}


def walk(outcome, base):
    """Asserts of every option of a group that it changes an outcome, or is refused."""
    fingerprints.walk(lambda program, group: outcome(group), None, base)


def _detections():
    """Returns boxes of all sizes, scores and overlaps in an image of 100 x 100 pixels."""
    places = range(0, 95, 5)
    apart = [Detection((0, y, 100, y + 1), "cup", 0.05 + y / 100) for y in places]
    sizes = [Detection((0, 0, s, s), "cup", 0.9) for s in range(2, 101, 2)]
    return [*apart, *sizes]


def _segments():
    """Returns detections with masks of all areas, qualities, stabilities, overlaps and places."""
    kept, drawn = [], []

    def add(rows, columns, quality=1.0, stability=1.0, box=(0, 0, 100, 100)):
        mask = np.zeros((100, 100), bool)
        mask[rows, columns] = True
        kept.append(Detection(tuple(map(float, box)), "cup", 0.9))
        drawn.append(Segment(mask, quality, stability))

    for step in range(20):
        row = np.s_[5 * step : 5 * step + 4]
        share = step / 20
        add(row, np.s_[:20], quality=share)
        add(row, np.s_[20:40], stability=share)
        add(row, np.s_[40:60], box=(40 + step, 0, 100, 100))
        add(np.s_[5 * step : 5 * step + 1], np.s_[60 : 61 + step])
        add(np.s_[:100], np.s_[80 : 81 + step])
    return kept, drawn


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """Returns the file of an image whose lesser side has 40 pixels."""
    path = tmp_path_factory.mktemp("image") / "image.png"
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(path)
    return image_lists.ImageFile("image", path)


def test_every_filter_changes_what_is_kept(image):
    nothing = types.SimpleNamespace(detect=lambda image, labels: [])
    models = Models(Model("a", ""), Model("b", ""), None)

    def outcome(chosen):
        settings = annotator.Settings(labels=("cup",), filters=chosen)
        stages = Stages(nothing, None, None)
        boxes = filters.choose_detections(_detections(), chosen, height=100, width=100)
        masks = filters.choose_segments(*_segments(), chosen)
        small = annotator.annotate(image, stages, settings, models=models).dropped
        return boxes, masks, dict(small)

    walk(outcome, filters.Filters(min_side_px=40, max_objects=4, min_box=0.01, min_mask=0.001))


def test_every_wording_changes_questions_or_what_is_accepted():
    answer = Answer("a" * 21, finished=True)
    scene = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)

    def outcome(wording):
        try:
            read = words.read_description(answer, wording)
        except Failed as error:
            read = str(error)
        view = words.draw_view(scene, (10.0, 10.0, 50.0, 50.0), wording)
        digest = hashlib.sha256(view.tobytes()).hexdigest()
        return words.question_text(wording, "cup"), read, view.shape, digest

    walk(outcome, words.Wording(max_characters=20, view_px=50))


class _Pool(contextlib.nullcontext):
    """Notes how many threads there may be, and works in the test's own."""

    sizes: tuple[int, ...] = ()

    def __init__(self, most):
        type(self).sizes += (most,)
        super().__init__(self)

    def submit(self, function, *values):
        future = concurrent.futures.Future()
        try:
            future.set_result(function(*values))
        except Failed as error:
            future.set_exception(error)
        return future

    def shutdown(self, **_):
        """Has nothing to end."""


def _asked(settings, seen, patch):
    """Asks an endpoint that lists its models, and fails in three of four other requests."""
    sleeps, tries = [], []

    def response(url, data, headers, *, seconds):
        seen.append((url, data, headers, seconds))
        if url.endswith("models"):
            return _response({"data": [{"id": "vlm"}, {"id": "1:2"}]})
        tries.append(1)
        if len(tries) % 4:
            raise http_exchange.NoResponse("none")
        return _response({"choices": [{"message": {"content": "the cup"}}]})

    patch.setattr(http_exchange, "response", response)
    patch.setattr(endpoint.random.Random, "uniform", lambda self, low, high: high)
    client = endpoint.Endpoint("http://host/v1", settings, sleep=sleeps.append)
    question = Question(np.zeros((4, 4, 3), np.uint8), "what?")
    try:
        answers = [client.describe([question] * 12), client.model()]
    except (Failed, Unusable) as error:
        answers = str(error)
    return answers, sleeps


def _response(value):
    return http_exchange.Response(200, json.dumps(value).encode(), None)


def test_every_setting_of_an_endpoint_changes_its_requests(monkeypatch):
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    monkeypatch.setattr(endpoint.concurrent.futures, "ThreadPoolExecutor", _Pool)

    def outcome(settings):
        seen: list = []
        _Pool.sizes = ()
        answers, sleeps = _asked(settings, seen, monkeypatch)
        return answers, sleeps, seen, _Pool.sizes

    walk(outcome, endpoint.Settings(tries=3, requests=2, most_wait_seconds=1.5))


def test_a_setting_that_nothing_reads_is_found():
    """Both ways to lose one: a function that has another in its place, and one that has none."""
    base = filters.Filters(max_objects=4)

    def outcome(chosen):
        lost = dataclasses.replace(chosen, max_box_iou=base.max_box_iou)
        return filters.choose_detections(_detections(), lost, height=100, width=100)

    with pytest.raises(AssertionError, match="max_box_iou: read and dropped"):
        fingerprints.walk(lambda _, group: outcome(group), None, base, parts=("max_box_iou",))
    with pytest.raises(AssertionError, match="min_quality: read and dropped"):
        fingerprints.walk(lambda _, group: outcome(group), None, base, parts=("min_quality",))
