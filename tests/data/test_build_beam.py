"""Holds builds by Apache Beam to builds by processes, byte for byte."""

import published_formats as formats
import pytest

from seg_jax.cli import main as shell
from seg_jax.data.build import dataset, record_files

pytest.importorskip("apache_beam", reason="seg-jax[beam] is not installed")


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_a_pipeline_builds_what_processes_build(tmp_path, capsys):
    formats.refer(tmp_path, "grefcoco_unc", images=4)
    words = ["build", "grefcoco_unc", "--source", str(tmp_path), "--records", "2", "--out"]
    assert shell.main([*words, str(tmp_path / "a"), "--workers", "1"]) == 0
    beam = ["--runner", "DirectRunner", "--runner-options", "direct_num_workers=1"]
    assert shell.main([*words, str(tmp_path / "b"), *beam]) == 0
    capsys.readouterr()
    assert tree(tmp_path / "b") == tree(tmp_path / "a")
    assert len([*(tmp_path / "b").glob("*.array_record-*")]) == 8


def test_a_pipeline_makes_only_what_is_missing(tmp_path, monkeypatch):
    from seg_jax.data.build import beam

    formats.folder(tmp_path)
    asked = dataset.Plan(name="folder", source=tmp_path, out=tmp_path / "out", records=1)
    tasks = dataset.plan_files(asked).tasks
    for task in tasks:
        record_files.make_file(task)
    first = tasks[0].file_path.read_bytes()
    tasks[0].file_path.unlink()
    times = [task.file_path.stat().st_mtime_ns for task in tasks[1:]]
    parts = beam.make_files(asked, tasks, runner="DirectRunner")
    assert tasks[0].file_path.read_bytes() == first
    assert [task.file_path.stat().st_mtime_ns for task in tasks[1:]] == times
    assert [part["records"] for part in parts] == [1] * 4


def test_files_that_nobody_made_are_told(tmp_path, monkeypatch):
    from seg_jax.data.build import beam

    formats.folder(tmp_path)
    asked = dataset.Plan(name="folder", source=tmp_path, out=tmp_path / "out")
    tasks = dataset.plan_files(asked).tasks
    monkeypatch.setattr(record_files, "is_whole", lambda task: False)
    with pytest.raises(ValueError, match="do: check that its workers see this folder"):
        beam.make_files(asked, tasks, runner="DirectRunner")
