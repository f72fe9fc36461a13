"""Claims folders of runs in which other people keep their files."""

import dataclasses
import json
import pathlib
from types import SimpleNamespace

import pytest
import small_run

from seg_jax.data.sources import Built, Mixed
from seg_jax.models.adapters.lora import LoRA
from seg_jax.runs import datasets, run_folder, stage


@dataclasses.dataclass(frozen=True)
class Options:
    """Stands for a configuration."""

    out: str = ""
    resume: bool = False
    anew: bool = False
    lr: float = 1.0


def claim(folder, config, **options):
    with run_folder.hold(folder, config, **options):
        pass


@pytest.mark.parametrize(
    "files",
    [
        {"thesis.tex": "x"},
        {"config.json": '{"model_type": "qwen2_5_vl"}', "checkpoint": "x"},
        {"config.json": "no json"},
        {"metrics.jsonl": "{}"},
    ],
)
def test_foreign_files_are_never_removed(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for choice in ({"resume": True}, {"anew": True}, {}):
        with pytest.raises(ValueError):
            claim(tmp_path, Options(), **({"resume": False, "anew": False} | choice))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket/run"])
def test_a_bucket_is_no_folder_of_this_machine(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=f"expected a folder, got the address {address}; do: mount"
    ):
        claim(pathlib.Path(address), Options(), resume=False, anew=False)
    assert not [*tmp_path.iterdir()]


def test_a_run_that_was_refused_before_it_wrote_anything_may_begin_corrected(tmp_path):
    def refused(error, *, written=()):
        def work():
            with run_folder.hold(tmp_path, Options(lr=2.0), resume=False, anew=False):
                for name in written:
                    (tmp_path / name).write_text("{}")
                raise error

        with pytest.raises(error):
            work()

    refused(ValueError)
    assert not [*tmp_path.iterdir()]
    refused(ValueError, written=["models.json"])
    claim(tmp_path, Options(), resume=False, anew=False)
    # What goes on keeps its records, and so does what has begun to write, or was interrupted.
    with (
        pytest.raises(ValueError, match="damaged"),
        run_folder.hold(tmp_path, Options(), resume=True, anew=False),
    ):
        raise ValueError("damaged")
    assert (tmp_path / "config.json").exists()
    for error, written in ((ValueError, ["metrics.jsonl"]), (KeyboardInterrupt, [])):
        claim(tmp_path, Options(), resume=False, anew=True)
        for path in tmp_path.iterdir():
            path.unlink()
        refused(error, written=written)
        assert (tmp_path / "config.json").exists()


def test_a_foreign_file_in_a_run_is_never_removed(tmp_path):
    claim(tmp_path / "run", Options(), resume=False, anew=False)
    (tmp_path / "run" / "state").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        claim(tmp_path / "run", Options(), resume=False, anew=True)
    assert len(list((tmp_path / "run").iterdir())) == 3
    (tmp_path / "run" / "notes.txt").unlink()
    claim(tmp_path / "run", Options(lr=2.0), resume=False, anew=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [run_folder.RECORD]


def test_a_run_never_replaces_the_data_that_it_reads(tmp_path):
    """--anew would have removed a data set that was built below the run's own folders."""
    run = tmp_path / "run"
    claim(run, Options(), resume=False, anew=False)
    data, second = run / "checkpoint" / "data", tmp_path / "second"
    data.mkdir(parents=True)
    parts = (Built(folders=(second,)), Built(folders=(data,)))
    config = SimpleNamespace(
        source=Mixed(parts=parts, weights=(1.0, 1.0)),
        checkpoint=tmp_path / "c",
        adapter=LoRA(folder=tmp_path / "a"),
    )
    reads = datasets.folders_read(config)
    assert reads == [second, data]
    models = {"checkpoint": tmp_path / "c", "adapter.folder": tmp_path / "a"}
    assert stage.models_read(config) == models
    with pytest.raises(ValueError, match="does not read from, got --anew, .* remove .*data; do"):
        claim(run, Options(), resume=False, anew=True, reads=reads)
    assert data.exists()


def test_a_run_of_an_earlier_version_resumes_or_says_what_to_do(tmp_path):
    run = small_run.gspo_config()
    claim(tmp_path, run, resume=False, anew=False)
    record = json.loads((tmp_path / run_folder.RECORD).read_text())
    # As the versions before wrote it.
    record["layout"]["window_cells"] = record["layout"].pop("window_tokens")
    record["mixture"] = record["task"]["mixture"]
    record["task"]["mixture"] = run_folder.plain(small_run.TINY.TASK.mixture)
    record["weights"] = {"class": "Weights", **record["weights"]}
    (tmp_path / run_folder.RECORD).write_text(json.dumps(record))
    claim(tmp_path, run, resume=True, anew=False)
    record["mixture"] = run_folder.plain(small_run.TINY.TASK.mixture)
    (tmp_path / run_folder.RECORD).write_text(json.dumps(record))
    with pytest.raises(ValueError, match="got another task.mixture.box_mask"):
        claim(tmp_path, run, resume=True, anew=False)
    (tmp_path / run_folder.RECORD).write_text(json.dumps(record | {"lessons": 3}))
    with pytest.raises(ValueError, match=r"with other options \(lessons\); do: finish it with"):
        claim(tmp_path, run, resume=True, anew=False)


@pytest.mark.parametrize("record", ["[]", "null", "[" * 100_000, ""])
def test_a_record_that_is_none_is_named(tmp_path, record):
    claim(tmp_path, Options(), resume=False, anew=False)
    (tmp_path / run_folder.RECORD).write_text(record)
    with pytest.raises(ValueError, match=r"config.json: expected .*JSON.*, got .*; do: start anew"):
        claim(tmp_path, Options(), resume=True, anew=False)
