"""Every option of build acts for each family of formats, or is refused.

Annotations are read for true, from tiny data sets in the published formats; files are not made.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import types
from pathlib import Path

import fingerprints
import label_folders
import published_formats as formats
import pyarrow.parquet
import pytest

from seg_jax import files
from seg_jax.cli import build
from seg_jax.data.build import beam, claims, dataset, token_budget
from seg_jax.data.formats import refer
from seg_jax.data.formats.conventions import Numbers
from seg_jax.runs import console, run_folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Returns a folder with a data set of every family; train images of one are val of another."""
    root = tmp_path_factory.mktemp("formats")
    first = {"refcoco_unc": 7, "refcocog_umd": 5, "grefcoco_unc": 3, "refcocoplus_unc": 0}
    for name, number in first.items():
        formats.refer(root / "refer", name, images=3, first=number)
    for name, number in {"refclef_unc": 3, "refclef_berkeley": 1}.items():
        formats.refer(root / "clef", name, images=2, first=number)
    formats.reasonseg(root / "reasonseg")
    for split in ("train2017", "val2017"):
        formats.instances(root / "instances", split)
        _draw_a_box_alone(root / "instances" / "annotations" / f"instances_{split}.json")
        formats.panoptic(root / "panoptic", split, images=3)
    formats.folder(root / "folder")
    for name in ("yolo", "labelme", "label_studio", "cvat", "voc", "conversations"):
        getattr(label_folders, name)(root / name, label_folders.pictures(boxes=True))
    for name in ("cod10k", "ecssd"):
        formats.masks(root / name, name)
    _make_tables(root / "tables")
    return root


def _draw_a_box_alone(path):
    told = json.loads(path.read_text())
    told["annotations"][0]["segmentation"] = []
    path.write_text(json.dumps(told))


def _make_tables(folder):
    """Writes a table of objects and one of conversations, as the hub has them."""
    folder.mkdir()
    image = {"bytes": formats.image(folder / "a.jpg", 1).read_bytes()}
    objects = [{"bbox": [x, 10.0, 16.0, 20.0], "category": "cup"} for x in (30.0, 45.0)]
    talk = [
        {"role": "user", "content": "Where is the cup?"},
        {"role": "assistant", "content": "[8, 10, 24, 30]"},
    ]
    for name, column in {"train": {"objects": objects}, "val": {"messages": talk}}.items():
        table = pyarrow.Table.from_pylist([{"image": image} | column] * 2)
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet")


@pytest.fixture
def prints(monkeypatch, tmp_path, root):
    """Returns a function (program, config) -> what the stages of a build receive."""

    def before(config):
        for place in ("given", "elsewhere"):
            Path(place).symlink_to(root / config.source.name)
        for place in root.iterdir():
            Path(place.name).symlink_to(place)

    note = fingerprints.Notes(monkeypatch, tmp_path, before=before)
    _stand_ins(monkeypatch, note)
    return note.of


def _note_tasks(note, tasks):
    for one in tasks:
        images = [
            (i.key, i.image, i.upright, i.expressions, [thing.outline for thing in i.objects])
            for i in one.images
        ]
        note("file", one.name, one.split, one.index, one.files, one.out, one.strict, images)


def _stand_ins(patch, note):
    """Notes the files that would be made, how, and where numbers go; no echo of options."""
    references = refer.references

    def make_files(tasks, *, workers, progress):
        note("processes", workers)
        _note_tasks(note, tasks)
        return []

    def by_beam(plan, tasks, *, runner, options):
        note("beam", runner, options)
        _note_tasks(note, dataset.plan_files(plan).tasks)  # As its workers do.
        return []

    def claim(out, wanted, *, anew, **_):
        note("claim", out, anew)
        return contextlib.nullcontext()

    def read(source, edition):
        note("references", source, edition.folder, edition.by)
        return references(source, edition)

    def measure(source, task, *, objects, progress):
        note("measure", source.folders, source.split, objects)
        return [collections.defaultdict(float)]

    patch.setattr(dataset, "make_files", make_files)
    patch.setattr(beam, "make_files", by_beam)
    patch.setattr(claims, "claim_folder", claim)
    patch.setattr(refer, "references", read)
    patch.setattr(token_budget, "measure", measure)
    patch.setattr(dataset, "finish_build", lambda *_: {"splits": {"train": {}}})
    patch.setattr(build, "say_leaks", lambda report: None)
    patch.setattr(build, "show", lambda name, report: None)
    patch.setattr(files, "write_json", lambda path, value: note("write", path))
    patch.setattr(run_folder, "check_json", lambda path: None)
    patch.setattr(run_folder, "versions", dict)
    patch.setattr(console, "progress", lambda *_: contextlib.nullcontext(lambda *_: None))
    patch.setattr(console, "table", lambda *_: None)
    patch.setattr(os, "cpu_count", lambda: 5)


def config(name, source, **options):
    return build.Config(name=name, source=Path(source), out=Path("out"), records=1, **options)


_RESIZED = Numbers(meaning="resized", least_pixels=1_000_000)
BUILD = {
    "refcoco": config("refcoco_unc", "refer"),
    "refcocog": config("refcocog_umd", "refer"),
    "grefcoco": config("grefcoco_unc", "refer"),
    "refclef": config("refclef_unc", "clef"),
    "reasonseg": config("reasonseg", "reasonseg"),
    "instances": config("coco_instances", "instances"),
    "instances beside a family": config("coco_instances", "instances", family=Path("refer")),
    "panoptic": config("coco_panoptic", "panoptic"),
    "panoptic beside a family": config("coco_panoptic", "panoptic", family=Path("refer")),
    "folder": config("folder", "folder"),
    "yolo": config("yolo", "yolo"),
    "labelme": config("labelme", "labelme"),
    "label_studio": config("label_studio", "label_studio"),
    "cvat": config("cvat", "cvat"),
    "voc": config("voc", "voc"),
    "conversations": config(
        "conversations",
        "conversations",
        numbers=_RESIZED,
        boxes=True,
    ),
    "huggingface": config("huggingface", "tables", numbers=_RESIZED, boxes=True),
    "masks in splits": config("cod10k", "cod10k"),
    "masks in one split": config("ecssd", "ecssd"),
    "one edition": config("refcoco_unc", "refer", held_out=("refcocog_umd",)),
    "no train split": config("refcoco_unc", "refer", splits=("val",)),
    "no train split of COCO": config("coco_instances", "instances", splits=("val2017",)),
    "by Beam": config("refcoco_unc", "refer", runner="DirectRunner", runner_options=("x=1",)),
    "a folder by Beam": config("folder", "folder", runner="DirectRunner"),
    "with outlines measured": config("folder", "folder", stats=4),
}
"""Modes: families of formats, and ways to make files."""


_SIZES = "numbers.least_pixels", "numbers.most_pixels"
ALIASES = {
    "yolo": ("upright",),
    "conversations": (*_SIZES, "numbers.factor", "numbers.order", "numbers.boxes", "upright"),
    "huggingface": (*_SIZES, "numbers.factor", "numbers.order", "numbers.boxes", "upright"),
}
"""Options that have a value without effect there: YOLO's outlines are of turned images, images
are resized alike within a little more or less, and boxes are what they are taken for."""


@pytest.mark.parametrize("mode", BUILD)
def test_every_option_of_build(mode, prints):
    fingerprints.walk(prints, build, BUILD[mode], aliases=ALIASES.get(mode, ()))


def test_an_option_of_build_that_nothing_reads_is_found(prints):
    def dropping(config):
        build.main(BUILD["refcoco"] if config.paper else config)

    program = types.SimpleNamespace(main=dropping)
    with pytest.raises(AssertionError, match="paper: read and dropped"):
        fingerprints.walk(prints, program, BUILD["refcoco"])
