"""Builds data sets and reads what was made, for tests."""

from array_record.python.array_record_module import ArrayRecordReader

from seg_jax.data import record_schema
from seg_jax.data.build import dataset


def build(asked, *, workers=1):
    """Returns the report of a build."""
    with dataset.claim_build(asked, anew=False):
        cut = dataset.plan_files(asked)
        parts = dataset.make_files(cut.tasks, workers=workers, progress=lambda done: None)
        return dataset.finish_build(asked, cut, parts)


def records(out, name, split):
    """Returns what a build holds of a split, in order."""
    found = []
    for path in sorted(out.glob(f"{name}-{split}.array_record-*")):
        reader = ArrayRecordReader(str(path))
        found += [record_schema.decode(data) for data in reader.read_all()]
        reader.close()
    return found


def tree(folder):
    """Returns the bytes of every file in a folder but its lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
