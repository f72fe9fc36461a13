"""Proves annotations of many images: whole, the same whatever happened, and read as they are."""

import dataclasses
import functools
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import known_scenes as known
import many_processes
import numpy as np
import pytest
from PIL import Image

from seg_jax.annotation import jobs, results
from seg_jax.annotation.results import Splits
from seg_jax.annotation.stages import Stages, Unusable
from seg_jax.data import image_lists
from seg_jax.data.build import claims, dataset
from seg_jax.data.sources import Built


def annotate(images, job, *, workers=1, splits=None, anew=False, retry=False):
    """Returns the summary of an annotation."""
    with jobs.claim_folder(job, anew=anew):
        every = jobs.cut_into_shards(image_lists.list_images(str(images)), job.records)
        if retry:
            jobs.forget_failures(every, job)
        jobs.annotate_shards(every, job, workers=workers, progress=lambda done: None)
        summary = results.gather_shards(every, job, splits or Splits())
        make = functools.partial(dataset.make_files, workers=1, progress=lambda done: None)
        results.build_dataset(job, lambda plan, tasks: make(tasks))
    return summary


def tree(folder):
    """Returns the bytes of every file in a folder but its lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def letters(job):
    return [json.loads(line) for line in (job.out / results.LETTERS).read_text().splitlines()]


def test_training_reads_what_was_annotated(tmp_path):
    samples = known.make(tmp_path / "web", 5)
    job = known.job(tmp_path / "out", 5)
    summary = annotate(tmp_path / "web", job)
    assert summary["splits"] == {"train": {"images": 5, "objects": 10, "phrases": 10}}
    assert (summary["images"], summary["annotated"], summary["failed"]) == (5, 5, 0)
    source = Built(folders=(job.out,))
    assert len(source) == 5
    for index, sample in enumerate(samples):
        read = source[index]
        assert read.key == f"out/train/{index:03d}.png"
        np.testing.assert_array_equal(read.image, sample.image)
        np.testing.assert_array_equal(read.masks, sample.masks)
        assert read.names == sample.names
        assert read.phrases == tuple((name,) for name in sample.names)


def test_the_plain_folder_is_one_that_build_reads(tmp_path):
    known.make(tmp_path / "web", 3)
    job = known.job(tmp_path / "out", 3)
    annotate(tmp_path / "web", job)
    asked = dataset.Plan(name="folder", source=job.out / "annotations", out=tmp_path / "built")
    with dataset.claim_build(asked, anew=False):
        cut = dataset.plan_files(asked)
        parts = dataset.make_files(cut.tasks, workers=1, progress=lambda done: None)
        dataset.finish_build(asked, cut, parts)
    for path in asked.out.glob("*.array_record-*"):
        assert path.read_bytes() == (job.out / path.name).read_bytes()
    (line, *_) = (job.out / "annotations" / "train.jsonl").read_text().splitlines()
    assert json.loads(line)["image"] == "../../web/000.png"


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_workers_and_repetition_change_nothing(tmp_path, workers):
    known.make(tmp_path / "web", 5)
    job = known.job(tmp_path / "out", 5, talking=True)
    annotate(tmp_path / "web", job)
    first = tree(job.out)
    assert {"dataset_info.json", "annotations/train.jsonl", "summary.json"} <= first.keys()
    annotate(tmp_path / "web", job)
    assert tree(job.out) == first
    shutil.rmtree(job.out)
    annotate(tmp_path / "web", job, workers=workers)
    assert tree(job.out) == first


def survive(tmp_path, *, kills, workers, rng):
    """Kills an annotation so many times, at random; returns the shards made before each kill."""
    web, out = tmp_path / "web", tmp_path / "out"
    known.make(web, 12)
    annotate(web, known.job(out, 12))
    whole = tree(out)
    shutil.rmtree(out)
    seen = []
    for kill in range(kills + 1):
        job = known.job(out, 12, seconds=0.02)
        child = many_processes.nursery().Process(
            target=annotate, args=(web, job), kwargs={"workers": workers}
        )
        child.start()
        if kill == kills:
            child.join(timeout=300)
            assert child.exitcode == 0
            break
        # At some moment after some shard.
        wanted = len(seen) * 6 // (kills + 1) + 1
        while child.is_alive() and len([*out.glob(f"{jobs.DONE}/*")]) < wanted:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        child.kill()
        child.join()
        seen.append(len([*out.glob(f"{jobs.DONE}/*")]))
        for path in out.glob(f"{jobs.DONE}/*"):
            assert path.read_bytes() == whole[path.relative_to(out).as_posix()]
    assert tree(out) == whole
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "workers"), [(2, 1), (3, 2)])
def test_a_killed_annotation_goes_on(tmp_path, kills, workers):
    seen = survive(tmp_path, kills=kills, workers=workers, rng=random.Random(kills))
    assert 0 < seen[0] < 6
    assert sorted(seen) == seen


@pytest.mark.parametrize("until", [0, 1, 2, 5])
def test_an_annotation_that_was_stopped_goes_on(tmp_path, until):
    known.make(tmp_path / "web", 5)
    job = known.job(tmp_path / "out", 5)
    annotate(tmp_path / "web", job)
    whole = tree(job.out)
    shutil.rmtree(job.out)
    tasks = []

    class Stopped(BaseException):
        pass

    def progress(done):
        tasks.append(done)
        if done >= until:
            raise Stopped

    every = jobs.cut_into_shards(image_lists.list_images(str(tmp_path / "web")), job.records)
    with jobs.claim_folder(job, anew=False), pytest.raises(Stopped):
        jobs.annotate_shards(every, job, workers=1, progress=progress)
    assert not (job.out / "dataset_info.json").exists()
    times = {path: path.stat().st_mtime_ns for path in (job.out / jobs.DONE).iterdir()}
    annotate(tmp_path / "web", job)
    assert tree(job.out) == whole
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_half_written_shard_is_never_taken_for_whole(tmp_path):
    known.make(tmp_path / "web", 4)
    job = known.job(tmp_path / "out", 4)
    annotate(tmp_path / "web", job)
    whole = tree(job.out)
    (job.out / jobs.DONE / "000000.jsonl").write_text("{")
    (job.out / jobs.DONE / "000001.jsonl").write_text('{"digest": "another", "counts": {}}\n')
    annotate(tmp_path / "web", job)
    assert tree(job.out) == whole


def test_more_images_are_added(tmp_path):
    known.make(tmp_path / "web", 6)
    late = [tmp_path / "web" / f"00{n}.png" for n in (4, 5)]
    for path in late:
        path.rename(tmp_path / path.name)
    job = known.job(tmp_path / "out", 6)
    assert annotate(tmp_path / "web", job)["annotated"] == 4
    times = {path: path.stat().st_mtime_ns for path in (job.out / jobs.DONE).iterdir()}
    for path in late:
        (tmp_path / path.name).rename(path)
    assert annotate(tmp_path / "web", job)["annotated"] == 6
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert len(Built(folders=(job.out,))) == 6
    grown = tree(job.out)
    shutil.rmtree(job.out)
    annotate(tmp_path / "web", job)
    assert tree(job.out) == grown


def test_dead_letters_tell_what_failed(tmp_path):
    known.make(tmp_path / "web", 4)
    (tmp_path / "web" / "001.png").write_bytes(b"no image")
    (tmp_path / "list.txt").write_text("web/000.png\nweb/001.png\n\nweb/gone.png\nweb/003.png\n")
    job = known.job(tmp_path / "out", 4)
    summary = annotate(tmp_path / "list.txt", job)
    assert {one["key"]: one["reason"] for one in letters(job)} == {
        "web/001.png": (
            "expected an image (PNG, JPEG, WEBP, BMP, GIF, TIFF, PPM), got something else"
        ),
        "web/gone.png": "expected an image, got no file",
    }
    assert summary["dead_letters"] == {"read": 2}
    assert (summary["images"], summary["failed"], summary["annotated"]) == (4, 2, 2)
    assert len(Built(folders=(job.out,))) == 2


def test_an_image_with_the_bytes_of_another_is_left_out(tmp_path):
    known.make(tmp_path / "web", 3)
    shutil.copy(tmp_path / "web" / "000.png", tmp_path / "web" / "copy.png")
    summary = annotate(tmp_path / "web", known.job(tmp_path / "out", 3))
    assert (summary["annotated"], summary["repeated"]) == (4, 1)
    assert summary["splits"]["train"]["images"] == 3


def test_a_turned_image_is_stored_as_it_was_seen(tmp_path):
    (sample,) = known.make(tmp_path / "web", 1)
    turned = Image.fromarray(np.rot90(sample.image))
    exif = turned.getexif()
    exif[0x0112] = 6  # To be turned by a quarter, clockwise.
    turned.save(tmp_path / "web" / "000.png", exif=exif)
    job = known.job(tmp_path / "out", 1)
    annotate(tmp_path / "web", job)
    read = Built(folders=(job.out,))[0]
    np.testing.assert_array_equal(read.image, sample.image)
    np.testing.assert_array_equal(read.masks, sample.masks)


def test_a_share_is_held_out_by_bytes(tmp_path):
    known.make(tmp_path / "web", 8)
    job = known.job(tmp_path / "out", 8)
    summary = annotate(tmp_path / "web", job, splits=Splits(share=0.4))
    held = Built(folders=(job.out,), split="val")
    train = Built(folders=(job.out,))
    assert 0 < len(held) < 8
    assert len(held) + len(train) == 8
    assert summary["splits"]["val"]["images"] == len(held)
    keys = {held[n].key.rpartition("/")[2] for n in range(len(held))}
    for path in (tmp_path / "web").iterdir():
        if path.name in keys:
            path.rename(path.with_name(f"renamed-{path.name}"))
    annotate(tmp_path / "web", job, splits=Splits(share=0.4))
    again = Built(folders=(job.out,), split="val")
    assert {again[n].key.rpartition("/")[2] for n in range(len(again))} == {
        f"renamed-{key}" for key in keys
    }
    annotate(tmp_path / "web", job)
    assert len(Built(folders=(job.out,))) == 8
    assert not [*job.out.glob("*-val.*")]


@dataclasses.dataclass(frozen=True)
class Flaky:
    """Loads stages whose segmenter fails while a file is there."""

    file: Path
    count: int

    def __call__(self) -> Stages:
        stages = known.Load(self.count)()
        return stages._replace(segmenter=FlakyMasks(self.file, stages.segmenter))


@dataclasses.dataclass(frozen=True)
class FlakyMasks:
    file: Path
    true: known.Masks

    def segment(self, image, boxes_px):
        if self.file.exists():
            raise RuntimeError("out of memory")
        return self.true.segment(image, boxes_px)


def test_failures_of_models_are_tried_again_when_asked_for(tmp_path):
    known.make(tmp_path / "web", 4)
    (tmp_path / "web" / "003.png").write_bytes(b"no image")
    job = known.job(tmp_path / "out", 4)
    flaky = dataclasses.replace(job, load=Flaky(tmp_path / "fail", 4))
    (tmp_path / "fail").touch()
    with pytest.raises(ValueError, match="expected images with objects, got none of 4, 4 failed"):
        annotate(tmp_path / "web", flaky)
    assert [one["stage"] for one in letters(job)] == ["segmenter"] * 3 + ["read"]
    (tmp_path / "fail").unlink()
    with pytest.raises(ValueError, match="expected images with objects"):
        annotate(tmp_path / "web", flaky)
    summary = annotate(tmp_path / "web", flaky, retry=True)
    assert (summary["annotated"], summary["dead_letters"]) == (3, {"read": 1})
    times = {path: path.stat().st_mtime_ns for path in (job.out / jobs.DONE).iterdir()}
    # What is broken stays so: nothing is left to try again.
    annotate(tmp_path / "web", flaky, retry=True)
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_model_that_fails_on_all_stops_the_run(tmp_path):
    known.make(tmp_path / "web", 8)
    job = known.job(tmp_path / "out", 8, patience=3)
    job = dataclasses.replace(job, load=Flaky(tmp_path / "stop", 8))
    (tmp_path / "stop").touch()
    with pytest.raises(Unusable, match=r"3 failures in a row, the last one: RuntimeError: out of"):
        annotate(tmp_path / "web", job)
    assert len([*(job.out / jobs.DONE).iterdir()]) == 1
    (tmp_path / "stop").unlink()
    summary = annotate(tmp_path / "web", job, retry=True)
    assert (summary["annotated"], summary["failed"]) == (8, 0)


@dataclasses.dataclass(frozen=True)
class Dying:
    """Loads nothing: its process dies as one without memory does."""

    def __call__(self) -> Stages:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.mark.slow
def test_a_worker_that_dies_is_told(tmp_path):
    known.make(tmp_path / "web", 4)
    job = dataclasses.replace(known.job(tmp_path / "out", 4), load=Dying())
    with pytest.raises(Unusable, match="got one that died, .* with fewer --workers"):
        annotate(tmp_path / "web", job, workers=2)


def test_a_folder_belongs_to_one_annotation(tmp_path):
    known.make(tmp_path / "web", 2)
    job = known.job(tmp_path / "out", 2)
    annotate(tmp_path / "web", job)
    other = dataclasses.replace(job, models=known.TALKING)
    with pytest.raises(ValueError, match="the build of models.*, as before, got models"):
        annotate(tmp_path / "web", other)
    with jobs.claim_folder(job, anew=False), pytest.raises(ValueError, match="to work alone"):
        annotate(tmp_path / "web", job)
    annotate(tmp_path / "web", other, anew=True)
    # Another version of the code goes on: records tell which one made them.
    annotate(tmp_path / "web", dataclasses.replace(other, code="seg-jax next"))
    line = (job.out / "annotations" / "train.jsonl").read_text().splitlines()[0]
    assert json.loads(line)["provenance"]["code"] == "seg-jax test"


def test_anew_removes_what_annotations_make_and_nothing_else(tmp_path):
    known.make(tmp_path / "web", 3)
    job = known.job(tmp_path / "out", 3)
    annotate(tmp_path / "web", job)
    for name in ("labels.txt", "annotations/notes.txt"):
        (job.out / name).write_text("mine")
    with jobs.claim_folder(job, anew=True):
        assert set(tree(job.out)) == {"labels.txt", "annotations/notes.txt", claims.CLAIM}


def test_images_are_listed_by_folder_pattern_and_list(tmp_path):
    known.make(tmp_path / "web" / "a", 2)
    known.make(tmp_path / "web" / "b", 1)
    (tmp_path / "web" / "b" / "note.txt").write_text("a/000.png\n../a/001.png\na/000.png\n")
    found = image_lists.list_images(str(tmp_path / "web"))
    assert [one.key for one in found] == ["a/000.png", "a/001.png", "b/000.png"]
    assert found[2].path == tmp_path / "web" / "b" / "000.png"
    assert [
        one.key for one in image_lists.list_images(str(tmp_path / "web" / "*" / "000.png"))
    ] == [
        "a/000.png",
        "b/000.png",
    ]
    listed = image_lists.list_images(str(tmp_path / "web" / "b" / "note.txt"))
    assert [one.key for one in listed] == ["../a/001.png", "a/000.png"]
    assert listed[0].path == tmp_path / "web" / "b" / "../a/001.png"
    (one,) = image_lists.list_images(str(tmp_path / "web" / "a" / "000.png"))
    assert one.key == "000.png"
    for nothing in ("none", "web/*.jpg", "*/none/*"):
        with pytest.raises(ValueError, match="expected a folder, a pattern or a list of images"):
            image_lists.list_images(str(tmp_path / nothing))
    job = known.job(tmp_path / "out", 2)
    jobs.write_list(found, job)
    assert jobs.read_list(job) == found


def test_file_names_of_any_bytes_are_survived(tmp_path):
    known.make(tmp_path / "web", 2)
    odd = os.fsdecode(os.fsencode(tmp_path / "web") + b"/\xff\xfe.png")
    os.rename(tmp_path / "web" / "001.png", odd)  # noqa: PTH104
    summary = annotate(tmp_path / "web", known.job(tmp_path / "out", 2))
    assert (summary["annotated"], summary["failed"]) == (1, 1)


def test_splits_that_make_no_sense_are_told():
    with pytest.raises(ValueError, match="splits: expected two names"):
        Splits(val="train")
    with pytest.raises(ValueError, match=r"splits.share: expected 0 to 1"):
        Splits(share=1.0)
