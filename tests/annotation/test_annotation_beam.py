"""Holds annotations by Apache Beam to those by processes, byte for byte."""

import shutil
import sys
import types

import known_scenes as known
import pytest
from test_annotating import annotate, tree

from seg_jax.annotation import jobs, results
from seg_jax.data import image_lists
from seg_jax.data.build import claims


class Collection(list):
    """Elements; in place of the real engine only what the pipeline here uses."""

    def __or__(self, step):
        return step(self)


class Pipeline:
    """Runs steps on the elements, out of order as engines do."""

    def __init__(self, options):
        self.options = options

    def __enter__(self):
        return Collection()

    def __exit__(self, *error):
        return False


class Step:
    """A named step, as `"Name" >> step` has it."""

    def __init__(self, run):
        self.run = run

    def __rrshift__(self, name):
        return self

    def __call__(self, elements):
        return Collection(self.run(elements))


@pytest.fixture
def engine(monkeypatch):
    """Puts a stand-in for Beam in place where it is not installed; returns what it was asked."""
    try:
        import apache_beam  # noqa: F401

        return None
    except ModuleNotFoundError:
        pass
    flags, counted = [], {}
    beam = types.ModuleType("apache_beam")
    beam.Pipeline = Pipeline
    beam.Create = lambda elements: Step(lambda _: elements)
    beam.Reshuffle = lambda: Step(lambda elements: list(elements)[::-1])
    beam.Map = lambda function, *rest: Step(lambda some: [function(one, *rest) for one in some])
    options = types.ModuleType("apache_beam.options.pipeline_options")
    options.PipelineOptions = lambda given: flags.extend(given)
    metrics = types.ModuleType("apache_beam.metrics")

    class Counter:
        def __init__(self, name):
            self.name = name

        def inc(self, count):
            counted[self.name] = counted.get(self.name, 0) + count

    metrics.Metrics = types.SimpleNamespace(counter=lambda space, name: Counter(name))
    for name, module in {
        "apache_beam": beam,
        "apache_beam.options": types.ModuleType("apache_beam.options"),
        "apache_beam.options.pipeline_options": options,
        "apache_beam.metrics": metrics,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    return types.SimpleNamespace(flags=flags, counted=counted)


def by_beam(images, job, options=()):
    """Annotates by a pipeline, data set and all."""
    from seg_jax.annotation import beam
    from seg_jax.data.build import beam as storing

    with jobs.claim_folder(job, anew=False):
        found = image_lists.list_images(str(images))
        every = jobs.cut_into_shards(found, job.records)
        jobs.write_list(found, job)
        beam.annotate_shards(every, job, runner="DirectRunner", options=options)
        results.gather_shards(every, job, results.Splits())
        results.build_dataset(
            job, lambda plan, tasks: storing.make_files(plan, tasks, runner="DirectRunner")
        )


def test_a_pipeline_annotates_what_processes_annotate(engine, tmp_path):
    known.make(tmp_path / "web", 5)
    (tmp_path / "web" / "001.png").write_bytes(b"no image")
    job = known.job(tmp_path / "out", 5, talking=True)
    annotate(tmp_path / "web", job)
    first = tree(job.out)
    shutil.rmtree(job.out)
    by_beam(tmp_path / "web", job, ["direct_num_workers=1"])
    made = tree(job.out)
    assert made.pop(jobs.LIST)
    assert made == first
    if engine is not None:
        assert engine.flags[:2] == ["--runner=DirectRunner", "--direct_num_workers=1"]
        assert (engine.counted["images"], engine.counted["failed"]) == (5, 1)


def test_a_pipeline_annotates_only_what_is_missing(engine, tmp_path):
    known.make(tmp_path / "web", 5)
    job = known.job(tmp_path / "out", 5)
    annotate(tmp_path / "web", job)
    whole = tree(job.out)
    (job.out / jobs.DONE / "000001.jsonl").unlink()
    times = {path: path.stat().st_mtime_ns for path in (job.out / jobs.DONE).iterdir()}
    by_beam(tmp_path / "web", job)
    made = tree(job.out)
    made.pop(jobs.LIST)
    assert made == whole
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_shards_that_nobody_made_are_told(engine, tmp_path, monkeypatch):
    from seg_jax.annotation import beam

    known.make(tmp_path / "web", 3)
    job = known.job(tmp_path / "out", 3)
    found = image_lists.list_images(str(tmp_path / "web"))
    jobs.write_list(found, job)
    monkeypatch.setattr(jobs, "is_whole", lambda shard, job: False)
    with pytest.raises(ValueError, match="do: check that its workers see this folder"):
        beam.annotate_shards(jobs.cut_into_shards(found, 2), job, runner="DirectRunner")
    assert claims.CLAIM not in {path.name for path in job.out.iterdir()}
