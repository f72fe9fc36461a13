"""Every option of evaluate and predict acts in each of their modes, or is refused.

Models, data sets and files are stand-ins that note what they receive; what is written is no proof:
an echo of the options in a summary counts for nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
from pathlib import Path

import fingerprints
import numpy as np
import pytest
import run_stand_ins
import small_run

from seg_jax.cli import evaluate, model_options, predict
from seg_jax.data import fitting, image_files, image_lists, question_lists, split_files
from seg_jax.data.exports import overlay
from seg_jax.data.findings import Findings
from seg_jax.data.sources import Built, Scenes
from seg_jax.evaluation import task_metrics
from seg_jax.evaluation.foreground import maps, scoring
from seg_jax.evaluation.referring import answers, protocols
from seg_jax.inference import bundle as bundles
from seg_jax.inference import frozen_segmenter, predictor, segmenter
from seg_jax.inference.frozen_segmenter import NOTHING, Frozen
from seg_jax.models import families
from seg_jax.models.sam2 import config as sam2_config
from seg_jax.runs import (
    console,
    evaluation,
    foreground,
    predictions,
    protocol,
    run_folder,
    sampled_answers,
)
from seg_jax.tasks.prompted import Prompted

CHECKPOINT, DATA, ANSWERS = Path("checkpoint"), (Path("one"),), Path("answers.jsonl")
CLICKS, HUB, SAM = Path("clicks"), Path("hub"), Path("sam2")
"""A model of boxes and clicks, one that says nothing of its task, and one that draws."""
OUT = Path("out")


@pytest.fixture
def prints(monkeypatch, tmp_path):
    """Returns a function (program, config) -> what the stages of the program receive."""
    note = fingerprints.Notes(monkeypatch, tmp_path)
    _stand_for_models(monkeypatch, note)
    _stand_for_data(monkeypatch, note)
    _stand_for_answers(monkeypatch, note)
    _stand_for_files(monkeypatch, note)
    _stand_for_many(monkeypatch, note)
    return note.of


def _stand_for_models(patch, note):
    """Notes how a model is loaded, laid over devices and asked."""
    given = small_run.bundle()

    class Predictor(predictor.Predictor):
        def __init__(self, bundle, *, grammar, nothing, refill, frozen=NOTHING, segmenter=None):
            note("predictor", grammar, nothing, refill, bundle.layout, segmenter is not None)
            self.bundle, self.frozen = bundle, frozen

        def predict_one(self, image, clue, kind):
            note("predict", image, clue if isinstance(clue, str) else clue.tolist(), kind)
            note("asked of", self.bundle.task)
            return types.SimpleNamespace(as_json=dict, rings_unit=[])

    def own_task(folder, kind=None, *, adapter=None):
        return {CLICKS: Prompted(frame=96), HUB: None}.get(folder, given.task)

    def load_frozen(task, folder, *, on):
        note("frozen", task, folder)
        return Frozen(segment=lambda *_: None, params=())

    def load_segmenter(folder):
        note("segmenter", folder)
        return types.SimpleNamespace(union=lambda image, prompts: image[..., 0] > 0)

    def load(folder, *, compute, on, visual_tokens, task_kind, adapter):
        note("load", folder, compute, on is not None, visual_tokens, task_kind, adapter)
        return given

    patch.setattr(model_options, "Predictor", Predictor)
    patch.setattr(bundles, "load", load)
    patch.setattr(bundles, "own_task", own_task)
    patch.setattr(frozen_segmenter, "load", load_frozen)
    patch.setattr(families, "read", lambda folder: sam2_config.Config())
    patch.setattr(segmenter, "load", load_segmenter)
    patch.setattr(families, "noted_dtype", lambda folder: "bfloat16")
    run_stand_ins.put_mesh(patch, note)


def _stand_for_data(patch, note):
    """Stands for two samples in the place of data sets, and of as many scenes as are wanted."""
    drawn = Scenes(count=2)
    samples = [drawn[0], drawn[1]]

    def info(folder):
        note("info", folder)
        return split_files.Info(name="refcoco_unc", splits=[])

    for kind in (Built, Scenes):
        patch.setattr(kind, "__len__", lambda self: 2)
        patch.setattr(kind, "__getitem__", lambda self, index: samples[index])
    patch.setattr(Built, "absent_count", lambda self: 1)
    patch.setattr(split_files, "read_info", info)
    patch.setattr(fitting, "fitting_source", lambda source, *_, **__: (source, Findings()))


def _stand_for_answers(patch, note):
    """Notes which questions are asked, in which batches, and what is known before."""

    def answer_greedily(predictor, source, *, title, task, batch, mesh, findings):
        note("greedy", source, task, batch)

    def beside_greedy(predictor, source, outcome, *, task, sampling, batch, mesh):
        note("drawn", source, task, sampling, batch)
        return {}

    def answer_and_judge(asking, answered, folder, *, findings):
        source = asking.source
        if isinstance(source, Built):  # All drawn samples stand for data sets.
            source = source.folders, source.split, source.absent, source.singly
        note("source", asking.protocol, source, asking.task, asking.pointed is not None)
        for one in asking.questions():
            clue = one.clue if isinstance(one.clue, str) else np.asarray(one.clue).tolist()
            note("question", one.index, one.which, one.given, one.phrase, one.text, clue)
        note("answers", folder)
        return iter(())

    class Saved(answers.Saved):
        def __init__(self, path):
            self.too_long = 0
            note("saved", path)

        def findings(self):
            return Findings()

    class Model(answers.Model):
        def __init__(self, answer, encoder, task, *, batch, saved):
            self.too_long, self._findings = 0, Findings()
            note("model", batch, saved is not None)

    questions = protocols.questions

    def asked(protocol, source, *, task, form=0, **more):
        note("asked", protocol.name, form, getattr(source, "folders", ()))
        note("split", getattr(source, "split", ""))
        return questions(protocol, source, task=task, form=form, **more)

    class MapFolder(maps.MapFolder):
        def __init__(self, path, sets):
            note("maps", path, sets)

        def answers(self, source, met, *, released):
            note("mapped", source.folders, source.split, released)
            return iter(())

    def judged_rows(mapped, count, *, name, released):
        note("judged", name, released)
        return []

    def of_outlines(answered):
        note("outlines")
        return iter(())

    def of_clicks(answered, task, draw):
        note("clicks", task)
        return iter(())

    def pointing_questions(source, task, met):
        note("whole", source.folders, source.split)
        return iter(())

    patch.setattr(maps, "of_clicks", of_clicks)
    patch.setattr(maps, "pointing_questions", pointing_questions)
    patch.setattr(protocols, "questions", asked)
    patch.setattr(maps, "MapFolder", MapFolder)
    patch.setattr(maps, "of_outlines", of_outlines)
    patch.setattr(foreground, "judged_rows", judged_rows)
    patch.setattr(evaluation, "answer_greedily", answer_greedily)
    patch.setattr(sampled_answers, "beside_greedy", beside_greedy)
    patch.setattr(protocol, "answer_and_judge", answer_and_judge)
    patch.setattr(evaluate, "Saved", Saved)
    patch.setattr(evaluate, "Model", Model)


def _stand_for_many(patch, note):
    """Notes which pictures are listed, which questions are planned, and what becomes of them."""

    def listed(source, met):
        note("listed", source)
        return [(name, Path(source) / name) for name in ("a.png", "b.png")]

    def read(path, met, *, whole):
        note("read", path, whole)
        return question_lists.of_images([Path("a.png")], ["the red star"], answer=None)

    def run(job, load, *, anew):
        note("job", [one.questions for one in job.pictures], job.out, job.batch, job.formats, anew)
        load()
        return {"answered": 1, "failed": 0, "masks": 1, "findings": {}}

    patch.setattr(image_lists, "list_images", listed)
    patch.setattr(question_lists, "read", read)
    patch.setattr(predictions, "run", run)
    patch.setattr(console, "tell", lambda result: note("told", result))


def _stand_for_files(patch, note):
    """Notes what is read, drawn and written, but no echo of options in it."""

    def read(folder):
        note("beside", folder)
        return {}

    def write(folder, asking, rows, *, others, each, **_):
        note("write", folder, len(others), each)

    def tell(summary, path):
        note("numbers", path, *(summary.get(name) for name in ("model", "split", "set")))

    def draw(image, rings):
        note("overlay")
        return np.zeros((2, 2, 3), np.uint8)

    def read_image(path):
        note("image", path)
        return np.zeros((2, 2, 3), np.uint8)

    patch.setattr(foreground, "read", read)
    patch.setattr(foreground, "show", lambda summary, title: None)
    patch.setattr(scoring, "summarise", lambda rows: {})
    patch.setattr(
        foreground, "write", lambda folder, rows, *, summary, others: note("write", folder, others)
    )
    patch.setattr(protocol, "read", read)
    patch.setattr(protocol, "write", write)
    patch.setattr(protocol, "numbers", lambda rows, asking, **more: more)
    patch.setattr(task_metrics, "summarise", lambda task, outcome: {})
    patch.setattr(run_folder, "tell_json", tell)
    patch.setattr(run_folder, "versions", dict)
    patch.setattr(console, "table", lambda *_: None)
    patch.setattr(console, "progress", lambda *_: contextlib.nullcontext(lambda *_: None))
    patch.setattr(overlay, "draw", draw)
    patch.setattr(image_files, "read", read_image)
    patch.setattr(image_files, "write", lambda path, image: note("write", path))


EVALUATE = {
    "scenes": {"checkpoint": CHECKPOINT},
    "scenes of the package's model": {},
    "scenes by name": {"world": "easy"},
    "refilled rows": {"rows": 8},
    "drawn answers": {"samples": 8},
    "data": {"data": DATA},
    **{f"protocol {name} on scenes": {"protocol": name} for name in protocols.PROTOCOLS},
    **{
        f"protocol {name} on data": {"protocol": name, "data": DATA} for name in protocols.PROTOCOLS
    },
    "a protocol with files": {"protocol": "res", "out": OUT, "checkpoint": CHECKPOINT},
    "a protocol on data with files": {"protocol": "text4seg", "out": OUT, "data": DATA},
    "a protocol's answers": {"protocol": "res", "answers": ANSWERS},
    "a protocol's answers on data": {"protocol": "gres", "answers": ANSWERS, "data": DATA},
    "answers to points": {"protocol": "point_mask", "answers": ANSWERS, "data": DATA},
    "maps": {"protocol": "cod", "data": DATA, "maps": Path("maps")},
    "maps with files": {"protocol": "sod", "data": DATA, "maps": Path("maps"), "out": OUT},
    "outlines as maps": {"protocol": "cod", "data": DATA},
    "answers as maps": {"protocol": "sod", "data": DATA, "answers": ANSWERS, "out": OUT},
    "clicks": {"checkpoint": CLICKS, "segmenter": SAM},
    "clicks on data": {"checkpoint": CLICKS, "segmenter": SAM, "data": DATA, "samples": 2},
    "clicks for res": {"checkpoint": CLICKS, "segmenter": SAM, "protocol": "res"},
    "clicks for reasonseg": {
        "checkpoint": HUB,
        "segmenter": SAM,
        "protocol": "reasonseg",
        "data": DATA,
        "out": OUT,
    },
    "clicks as maps": {"checkpoint": HUB, "segmenter": SAM, "protocol": "sod", "data": DATA},
    "answers of clicks": {"answers": ANSWERS, "segmenter": SAM, "protocol": "res"},
    "some answers": {"protocol": "res", "answers": ANSWERS, "checkpoint": CHECKPOINT, "out": OUT},
}
PREDICT = {
    "text": {"text": "the red star"},
    "point": {"point": (0.5, 0.5)},
    "box": {"box": (0.1, 0.1, 0.5, 0.5)},
    "an overlay": {"text": "the red star", "out": OUT},
    "all that is there": {"checkpoint": CLICKS},
    "masks of all that is there": {"checkpoint": CLICKS, "segmenter": SAM, "out": OUT},
    "a folder of the hub": {"checkpoint": HUB, "segmenter": SAM, "text": "the red star"},
    "a box as an answer": {"text": "the red star", "answer": "box", "checkpoint": CHECKPOINT},
    "many pictures": {"images": ("web",), "text": "the red star", "out": OUT},
    "texts of many pictures": {
        "images": ("web", "more"),
        "texts": ("the red star", "a ring"),
        "out": OUT,
        "formats": ("coco",),
    },
    "all that is there in many": {"images": ("web",), "checkpoint": CLICKS, "out": OUT},
    "questions of a file": {"questions": Path("questions.jsonl"), "out": OUT},
}
"""Modes, by the options that choose them."""
ALIASES = ("world", "dtype")
"""Left out they say what one of their values says."""


@pytest.mark.parametrize("mode", EVALUATE)
def test_every_option_of_evaluate(mode, prints):
    base = evaluate.Config(**EVALUATE[mode])
    fingerprints.walk(prints, evaluate, base, aliases=ALIASES)


@pytest.mark.parametrize("mode", PREDICT)
def test_every_option_of_predict(mode, prints):
    many = "images" in PREDICT[mode] or "questions" in PREDICT[mode]
    base = predict.Config(image=None if many else Path("image.png"), **PREDICT[mode])
    fingerprints.walk(prints, predict, base, aliases=ALIASES)


@pytest.mark.parametrize("name", ["grammar", "rows", "gallery"])
def test_an_option_of_evaluate_that_nothing_reads_is_found(name, prints):
    """The stages of another configuration, with the option's default, stand for a program."""

    def dropping(config):
        evaluate.main(dataclasses.replace(config, **{name: getattr(evaluate.Config(), name)}))

    program = types.SimpleNamespace(main=dropping)
    base = evaluate.Config(protocol="res", out=OUT)
    with pytest.raises(AssertionError, match=f"{name}: read and dropped"):
        fingerprints.walk(prints, program, base, aliases=ALIASES)
