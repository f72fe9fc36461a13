"""FCoT: conversations and images of Parquet files, kept as they were written, bad rows told."""

import io
import subprocess
import sys

import numpy as np
import published_formats as formats
import pytest
from PIL import Image
from test_mask_folders import build

from seg_jax.data import held_out, record_schema, sources
from seg_jax.data.formats import fcot, table_rows

pyarrow = pytest.importorskip("pyarrow")


def picture(tmp_path, seed):
    return formats.image(tmp_path / "one.jpg", seed).read_bytes()


def write(tmp_path, rows, name="data/train-00000-of-00001.parquet", group=2, **columns):
    """Writes rows (image, problem, thinking, solution) as the hub's files have them."""
    import pyarrow.parquet

    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": image, "path": f"{n}.jpg"} for n, (image, *_) in enumerate(rows)]
    table = {"image": images}
    for place, column in enumerate(fcot.COLUMNS, 1):
        table[column] = [row[place] for row in rows]
    table = pyarrow.table({name: values for name, values in (table | columns).items() if values})
    pyarrow.parquet.write_table(table, path, row_group_size=group)
    return path


def rows(tmp_path, count=5):
    return [
        (
            picture(tmp_path, number),
            f"Question {number}?",
            f"The thing is {number} high.",
            f"<bbox>[{number},1,30,40]</bbox>, <points>[[5,6]]</points>, <labels>[1]</labels>",
        )
        for number in range(count)
    ]


def test_conversations_and_images_are_kept_as_they_are_written(tmp_path):
    given = rows(tmp_path)
    write(tmp_path, given)
    report = build(tmp_path, "fcot")
    assert report["findings"] == {}
    assert report["splits"]["train"]["traces"] == 5
    assert report["warnings"] == ["fcot train: expected 1500 images as published, got 5"]
    source = sources.Built(folders=(tmp_path / "out",))
    assert len(source) == 5
    for number, (image, *texts) in enumerate(given):
        sample = source[number]
        assert sample.traces == (tuple(texts),)
        assert sample.masks.shape == (0, 48, 64)
        np.testing.assert_array_equal(sample.image, np.asarray(Image.open(io.BytesIO(image))))
    features = (tmp_path / "out" / record_schema.FEATURES).read_text()
    assert '"trace/answer"' in features
    assert '"trace/answer"' not in record_schema.features_json()


def test_a_question_that_no_usual_row_holds_is_told_when_it_is_built(tmp_path):
    given = rows(tmp_path, 2)
    given[1] = (given[1][0], "what is " * 1000, *given[1][2:])
    write(tmp_path, given)
    report = build(tmp_path, "fcot")
    told = {reason: one["count"] for reason, one in report["limits"].items()}
    assert told == {"expression passed over unless layout.max_question is raised": 1}


def test_images_of_one_file_are_held_out_one_by_one(tmp_path):
    folders = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, rows(tmp_path, 6))
        build(tmp_path / name, "fcot")
        folders.append((tmp_path / name / "out").rename(tmp_path / f"set-{name}"))
    learnt, asked = held_out.hold_out(sources.Built(folders=tuple(folders)), 2)
    names = [{part.record(n).name for n in range(len(part))} for part in (learnt, asked)]
    assert (len(names[0]), len(names[1]), len(asked)) == (6 - len(names[1]), len(names[1]), 2)
    assert not names[0] & names[1]


def test_bad_rows_cost_themselves(tmp_path):
    given = rows(tmp_path)
    given[0] = (b"no image", *given[0][1:])
    given[1] = (None, *given[1][1:])
    given[2] = (*given[2][:3], " ")
    given[3] = (*given[3][:2], None, given[3][3])
    write(tmp_path, given)
    report = build(tmp_path, "fcot")
    assert {reason: told["count"] for reason, told in report["findings"].items()} == {
        "image left out: file is no image that is read": 1,
        "image left out: image is missing": 1,
        "conversation left out: it has no question or no answer": 1,
        "conversation without a thought": 1,
    }
    assert report["splits"]["train"]["records"] == 2


def test_files_that_are_none_are_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"expected data/train-\*.parquet, got an empty folder"):
        fcot.read(tmp_path)
    path = write(tmp_path, rows(tmp_path))
    data = path.read_bytes()
    for bad in (b"", b"PAR1", data[: len(data) // 2], data[:-8] + b"\xff" * 8):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"expected a Parquet file, got a damaged one.*; do: "):
            fcot.read(tmp_path)
    write(tmp_path, rows(tmp_path), solution=[])
    with pytest.raises(ValueError, match=r"got none named solution; do: "):
        fcot.read(tmp_path)


def test_damage_within_a_file_costs_rows_or_the_file_and_never_more(tmp_path):
    path = write(tmp_path, rows(tmp_path, 3))
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        spoilt = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            spoilt[place] ^= int(rng.integers(1, 256))
        path.write_bytes(spoilt)
        told = "; do: "
        try:
            for image in fcot.read(tmp_path).images:
                table_rows.image_bytes(image.image, image.row)
        except ValueError as error:
            told = str(error)
        assert "; do: " in told
        assert "\n" not in told


def test_names_of_files_are_those_of_the_hub_and_others_are_told(tmp_path):
    for name in (
        "data/train-00000-of-00003-0123456789abcdef.parquet",
        "data/train-00002-of-00003.parquet",
        "test.parquet",
        "data/train copy.parquet",
    ):
        write(tmp_path, rows(tmp_path, 1), name)
    read = fcot.read(tmp_path)
    assert [image.split for image in read.images] == ["train", "train", "test"]
    assert read.findings.counts == {
        "file left out: its name is none of a split": 1,
        "files of a split are missing": 1,
    }
    assert "train: 2 of 3 are there" in str(read.findings.as_json())


BOMB = """
import resource, sys
from pathlib import Path
import pyarrow, pyarrow.parquet
from seg_jax.data.formats import parquet_rows, table_rows
path, rows = Path(sys.argv[1]), 300
ones = pyarrow.array([0] * rows, pyarrow.int32())
def table(value):
    return pyarrow.DictionaryArray.from_arrays(ones, pyarrow.array([value]))
pyarrow.parquet.write_table(
    pyarrow.table({"image": table(bytes(16 << 20)), "problem": table("x" * (16 << 20))}),
    path, compression="zstd", dictionary_pagesize_limit=1 << 30, store_schema=False,
)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_AS, (8 << 30,) * 2)
assert path.stat().st_size < 100_000
assert sum(1 for _ in parquet_rows.texts(path, ["problem"], "image")) == rows
assert len(table_rows.image_bytes(path, rows - 1)) == 16 << 20
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before >> 10)
"""
"""A small file whose rows all name one long value; twice 4.7 GiB if they are decoded at once."""


def test_rows_that_share_a_long_value_are_decoded_one_at_a_time(tmp_path):
    command = [sys.executable, "-c", BOMB, str(tmp_path / "a.parquet")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300


def test_images_are_the_same_in_whatever_order_they_are_read(tmp_path):
    given = rows(tmp_path, 7)
    path = write(tmp_path, given, group=3)
    for row in (0, 1, 2, 3, 6, 5, 4, 4, 0, 6):
        assert table_rows.image_bytes(path, row) == given[row][0]
    with pytest.raises(ValueError, match="image is missing|expected the bytes of an image") as told:
        table_rows.image_bytes(path, 7)
    assert "a row below 7" in str(told.value)
    assert table_rows.image_bytes(path, 6) == given[6][0]


def test_a_release_of_pyarrow_that_runs_what_it_reads_is_refused(tmp_path, monkeypatch):
    write(tmp_path, rows(tmp_path, 1))
    for version in ("14.0.0", "0.17.1", "9.0.0.dev3"):
        monkeypatch.setattr(pyarrow, "__version__", version)
        with pytest.raises(ValueError, match=rf"14.0.1 or newer, got {version}; do: pip install"):
            fcot.read(tmp_path)
    monkeypatch.setattr(pyarrow, "__version__", "14.0.1")
    assert len(fcot.read(tmp_path).images) == 1


def test_without_pyarrow_it_is_told_what_to_install(tmp_path, monkeypatch):
    write(tmp_path, rows(tmp_path, 1))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"do: pip install 'seg-jax\[parquet\]'"):
        fcot.read(tmp_path)


def test_other_sets_store_the_bytes_that_they_stored(tmp_path):
    formats.masks(tmp_path, "ecssd", images=1)
    build(tmp_path, "ecssd")
    assert "trace" not in (tmp_path / "out" / record_schema.FEATURES).read_text()
    assert sources.Built(folders=(tmp_path / "out",), split="test")[0].traces == ()
