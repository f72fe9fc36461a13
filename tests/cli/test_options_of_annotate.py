"""Every option of annotate acts in each of its modes, or is refused.

Images are annotated for true, by stand-ins for the models; no file of a data set is made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import types
from pathlib import Path

import fingerprints
import pytest

from seg_jax import files
from seg_jax.annotation import (
    annotator,
    beam,
    captioner,
    choice,
    endpoint,
    filters,
    grounding,
    hub,
    jobs,
    results,
    words,
)
from seg_jax.annotation.stages import Model
from seg_jax.cli import annotate
from seg_jax.data.build import beam as build_beam
from seg_jax.data.build import claims, dataset
from seg_jax.runs import console, run_folder

sys.path.append(str(Path(__file__).parents[1] / "annotation"))
import known_scenes as known

IMAGES = 2


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """Returns a folder of images whose masks are known."""
    folder = tmp_path_factory.mktemp("web")
    known.make(folder, IMAGES)
    return folder


@pytest.fixture
def prints(monkeypatch, tmp_path, web):
    """Returns a function (program, config) -> what the stages of an annotation receive."""

    def before(config):
        for place in ("web", "val"):
            Path(place).symlink_to(web)
        if config.labels is not None:
            config.labels.write_text("a thing of a file\n")
        jobs._worker.cache_clear()

    note = fingerprints.Notes(monkeypatch, tmp_path, before=before)
    _stand_for_models(monkeypatch, note)
    _note_settings(monkeypatch, note)
    _stand_for_workers(monkeypatch, note)
    return note.of


def _stand_for_models(patch, note):
    """Notes which models are loaded, how, and what they are asked."""

    class Boxes(known.Boxes):
        def __init__(self, folder, *, device):
            note("detector", folder, device)
            super().__init__(IMAGES)

        def detect(self, image, labels):
            note("detect", labels)
            return super().detect(image, labels)

    class Masks(known.Masks):
        def __init__(self, folder, *, device):
            note("segmenter", folder, device)
            super().__init__(IMAGES)

    class Endpoint(endpoint.Endpoint):
        def __init__(self, url, settings):
            self.given = url, settings

        def model(self):
            note("endpoint", *self.given)
            return Model(self.given[1].model or "served", "")

        def describe(self, questions):
            note("describe", *self.given)
            return known.Words().describe(questions)

    class Captioner(captioner.Captioner):
        def __init__(self):
            """Has no model."""

        @classmethod
        def load(cls, folder, *, max_tokens):
            note("captioner", folder, max_tokens)
            return cls()

        def describe(self, questions):
            return known.Words().describe(questions)

    patch.setattr(hub, "fingerprint", lambda folder: Model(str(folder), "1"))
    patch.setattr(grounding, "GroundingDino", Boxes)
    patch.setattr(choice, "segmenter", Masks)
    patch.setattr(endpoint, "Endpoint", Endpoint)
    patch.setattr(captioner, "Captioner", Captioner)


def _note_settings(patch, note):
    """Notes settings where the functions of an annotation receive them."""

    def noting(module, name, place):
        function = getattr(module, name)

        def noted(*values, **named):
            note(name, values[place])
            return function(*values, **named)

        patch.setattr(module, name, noted)

    noting(filters, "choose_detections", 1)
    noting(filters, "choose_segments", 2)
    noting(annotator, "clean_outline", 1)
    noting(words, "draw_view", 2)
    noting(words, "question_text", 0)
    noting(words, "read_description", 1)
    noting(results.Splits, "choose", 0)
    noting(jobs, "write_list", 0)
    noting(jobs, "forget_failures", 0)


def _stand_for_workers(patch, note):
    """Notes what would be sent to other processes, and annotates the images here."""

    def annotate_here(every, job):
        note("job", job.records, job.patience, job.out)
        for shard in every:
            note("shard", shard.index, shard.images)
            jobs.annotate_shard(shard, job)

    def annotate_shards(every, job, *, workers, progress):
        note("processes", workers)
        annotate_here(every, job)

    def by_beam(every, job, *, runner, options):
        note("beam", runner, options)
        annotate_here(every, job)

    def make_files(tasks, *, workers, progress):
        note("make", [(one.split, len(one.images), one.out) for one in tasks])
        return []

    def make_by_beam(plan, tasks, *, runner, options):
        note("make by beam", runner, options)
        return []

    def claim(out, wanted, *, anew, **_):
        note("claim", out, anew)
        out.mkdir(exist_ok=True)
        return contextlib.nullcontext()

    patch.setattr(jobs, "annotate_shards", annotate_shards)
    patch.setattr(beam, "annotate_shards", by_beam)
    patch.setattr(dataset, "make_files", make_files)
    patch.setattr(build_beam, "make_files", make_by_beam)
    patch.setattr(dataset, "finish_build", lambda *_: {})
    patch.setattr(claims, "claim_folder", claim)
    patch.setattr(annotate, "show", lambda *_: None)
    patch.setattr(files, "write_json", lambda path, value: note("write", path))
    patch.setattr(run_folder, "check_json", lambda path: None)
    patch.setattr(run_folder, "versions", dict)
    patch.setattr(run_folder, "commit", lambda: "")
    patch.setattr(console, "progress", lambda *_: contextlib.nullcontext(lambda *_: None))


BASE = annotate.Config(
    images="web",
    out=Path("out"),
    prompts=("a thing",),
    detector=Path("detector"),
    segmenter=Path("segmenter"),
    filters=known.settings().filters,
    contour=known.settings().contour,
    records=1,
)
ADDRESS = "http://host:8000/v1"
VERY = words.Wording(question="the very {label}")
ANNOTATE = {
    "names alone": BASE,
    "two splits": dataclasses.replace(BASE, splits=results.Splits(share=0.5)),
    "an endpoint": dataclasses.replace(BASE, describer=ADDRESS, wording=VERY),
    "a folder's model": dataclasses.replace(BASE, describer="describer", wording=VERY),
    "by Beam": dataclasses.replace(BASE, runner="DirectRunner", runner_options=("x=1",)),
    "an endpoint by Beam": dataclasses.replace(
        BASE, describer=ADDRESS, wording=VERY, runner="DirectRunner"
    ),
}
"""Modes: who describes objects, and who does the work."""


@pytest.mark.parametrize("mode", ANNOTATE)
def test_every_option_of_annotate(mode, prints):
    fingerprints.walk(prints, annotate, ANNOTATE[mode])


def test_an_option_of_annotate_that_nothing_reads_is_found(prints):
    def dropping(config):
        annotate.main(dataclasses.replace(config, patience=BASE.patience))

    program = types.SimpleNamespace(main=dropping)
    with pytest.raises(AssertionError, match="patience: read and dropped"):
        fingerprints.walk(prints, program, BASE, parts=("patience",))
