"""Checkpoints with a bit, a file or a record damaged are noticed, told and passed over."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_checkpoints import assert_same, first, numbers, run

from seg_jax import checksums
from seg_jax.training import checkpoint_seal
from seg_jax.training.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns a folder of the checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("saved") / "state"
    checkpoints, iterator = Checkpoints(folder), numbers()
    for step in (1, 2):
        next(iterator)
        checkpoints.save(first(step), iterator, {"seconds": float(step)}, score=float(step))
    checkpoints.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "state")


def restored(folder):
    """Returns state and record of the newest whole checkpoint of a folder, and the warnings."""
    warned = []
    checkpoints = Checkpoints(folder)
    try:
        state, record = checkpoints.restore(first(), numbers(), warn=warned.append)
    finally:
        checkpoints.close()
    return state, record, warned


def flip(path, at=0.5):
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 4
    path.write_bytes(data)


DAMAGES = {
    "first bit": lambda path: flip(path, 0),
    "a bit": flip,
    "last bit": lambda path: flip(path, 1),
    "braces": lambda path: path.write_text("{}"),
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "lost": Path.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


def test_a_whole_one_is_taken_without_a_word(folder):
    state, record, warned = restored(folder)
    assert_same(state, first(2))
    assert record == {"seconds": 2.0}
    assert not warned


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_any_file_is_told_and_the_one_before_is_taken(saved, tmp_path, damage):
    """ckpt-1."""
    names = sorted(path.relative_to(saved / "2") for path in (saved / "2").rglob("*"))
    names = [name for name in names if (saved / "2" / name).is_file()]
    assert len(names) > 15
    told = 0
    for number, name in enumerate(names):
        if damage == "braces" and (saved / "2" / name).read_text("latin1").strip() == "{}":
            continue
        folder = shutil.copytree(saved, tmp_path / str(number))
        DAMAGES[damage](folder / "2" / name)
        state, record, warned = restored(folder)
        (line,) = warned
        assert line.startswith(f"{folder / '2'}: damaged ({name}: "), (name, line)
        assert line.endswith("; moved to damaged-2, going on from step 1")
        assert "\n" not in line
        assert_same(state, first(1))
        assert record == {"seconds": 1.0}
        told += 1
    assert told > 15


@pytest.mark.parametrize("text", ['{"metrics": 5}', "[]", "[" * 100_000, "\udcff"])
def test_metadata_that_keep_orbax_from_opening_the_folder_are_damage(folder, text):
    """Found by fuzzing: not one checkpoint could be read for the metadata of another."""
    path = folder / "2" / "_CHECKPOINT_METADATA"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    state, record, warned = restored(folder)
    assert_same(state, first(1))
    assert record["seconds"] == 1.0
    assert [("damaged" in line, "moved to damaged-2" in line) for line in warned] == [(True, True)]


def test_a_file_that_does_not_belong_is_told_but_for_hidden_ones(folder):
    (folder / "2" / ".nfs0001").write_text("x")
    assert not restored(folder)[2]
    (folder / "2" / "state" / "junk").write_text("x")
    (line,) = restored(folder)[2]
    assert "damaged (state/junk: expected no such file)" in line


def as_older_versions_save(step):
    """Takes away from a checkpoint what they do not write."""
    (step / checksums.FILE).unlink()
    path = step / "_CHECKPOINT_METADATA"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"custom_metadata": {}}))


def test_one_without_checksums_is_taken_with_a_note(folder):
    as_older_versions_save(folder / "2")
    state, _, (line,) = restored(folder)
    assert_same(state, first(2))
    assert line.startswith(f"{folder / '2'}: has no checksums, as older versions of seg-jax save")


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("data/metadata", "{}", "KeyError"),
        ("data/metadata", "[1]", ""),
        ("data/metadata", "null", ""),
        ("record/metadata", '{"seconds": "x"}', "record, seconds: expected float, got 'x'"),
        ("record/metadata", '{"seconds": -1}', "record, seconds: expected float >= 0.0, got -1"),
        ("record/metadata", '{"versions": {"jax": 3}}', "expected str, got"),
        ("record/metadata", "[]", "expected object"),
        ("state/_METADATA", "{}", ""),
        ("state/manifest.ocdbt", "x", ""),
    ],
)
def test_one_without_checksums_that_cannot_be_read_is_passed_over(folder, name, text, why):
    """ckpt-1, of older versions."""
    as_older_versions_save(folder / "2")
    (folder / "2" / name).write_text(text)
    state, record, (line,) = restored(folder)
    assert f"{folder / '2'}: damaged (" in line
    assert why in line
    assert_same(state, first(1))
    assert record == {"seconds": 1.0}


def test_a_step_under_another_name_is_no_step(folder):
    (folder / "2").rename(folder / "7")
    (line,) = restored(folder)[2]
    assert f"{folder / '7'}: damaged (state: expected step 7, got 2); moved to damaged-7" in line


def test_where_all_are_damaged_one_line_says_so_and_nothing_is_lost(folder):
    for step in ("1", "2"):
        flip(folder / step / "state" / "_METADATA")
    with pytest.raises(ValueError) as refused:
        restored(folder)
    assert str(refused.value).startswith(
        f"{folder / '2'}: expected a whole checkpoint of this run, got a damaged or another one "
        "(state/_METADATA: its checksum differs), and none before it is"
    )
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_the_last_whole_one_outlives_damaged_ones_and_the_saves_that_follow(folder):
    flip(folder / "2" / "state" / "_METADATA")
    (folder / "damaged-2").mkdir()
    checkpoints, warned = Checkpoints(folder, keep=1), []
    state, _ = checkpoints.restore(first(), numbers(), warn=warned.append)
    assert_same(state, first(1))
    assert "moved to damaged-2-2" in warned[0]
    assert (folder / "1").is_dir()
    checkpoints.save(first(2), numbers(), {})
    checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["2", "damaged-2", "damaged-2-2"]
    assert not restored(folder)[2]


@pytest.mark.parametrize("text", ["{}", "x", "", '{"score": "x"}', '{"score": NaN}', "[]"])
def test_a_score_that_cannot_be_read_is_the_worst(folder, text):
    (folder / "1" / "record" / "metadata").write_text(text)
    checkpoints = Checkpoints(folder, keep=1, keep_best=1)
    assert checkpoints.best() == 2
    checkpoints.save(first(3), numbers(), {}, score=0.5)
    checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]


def test_what_is_no_step_is_left_alone(folder):
    (folder / "junk").mkdir()
    (folder / "9").write_text("x")
    (folder / "08").mkdir()
    (folder / "10").mkdir()
    state, _, (line,) = restored(folder)
    assert_same(state, first(2))
    assert f"{folder / '10'}: damaged (" in line
    names = {path.name for path in folder.iterdir()}
    assert {"junk", "9", "08", "damaged-10", "1", "2"} <= names


def test_the_list_names_every_file(saved):
    listed = json.loads((saved / "2" / checksums.FILE).read_text())["files"]
    there = checksums.files_of(saved / "2")
    assert sorted([*listed, checksums.FILE]) == there
    assert {"_CHECKPOINT_METADATA", "commit_success.txt"} < set(listed)


def test_a_save_that_was_killed_before_the_last_two_files_were_listed_is_whole(folder):
    path = folder / "2" / checksums.FILE
    sums = checksums.read(path)
    for name in checkpoint_seal._LATE:
        del sums[name]
    checksums.write(path, sums)
    assert not restored(folder)[2]
    (folder / "2" / "commit_success.txt").unlink()
    assert "commit_success.txt: expected a file, got none" in restored(folder)[2][0]


def test_each_process_reads_what_it_wrote_and_the_first_one_the_rest(tmp_path, monkeypatch):
    values = tmp_path / "5.orbax-checkpoint-tmp" / "state.orbax-checkpoint-tmp"
    for index in (0, 1):
        (values / f"ocdbt.process_{index}" / "d").mkdir(parents=True)
        (values / f"ocdbt.process_{index}" / "d" / "ab").write_text(f"values {index}")
        (values / f"ocdbt.process_{index}" / "manifest.ocdbt").write_text("m")
    waited, multihost = [], checkpoint_seal.ocp.multihost
    monkeypatch.setattr(multihost, "get_barrier_sync_fn", lambda: lambda **key: waited.append(key))
    for index in (0, 1):
        monkeypatch.setattr(checkpoint_seal.jax, "process_index", lambda index=index: index)
        seal = checkpoint_seal.Seal(tmp_path)
        seal.begin(5)
        for key in ("save_start", "async_write_complete.5"):
            seal.barrier()(key=key, timeout_ms=1)
    assert len(waited) == 4
    values.rename(values.with_name("state"))
    read, of_files = [], checksums.of_files

    def noted(folder, names):
        read.extend(names)
        return of_files(folder, names)

    monkeypatch.setattr(checksums, "of_files", noted)
    seal.close()
    assert sorted(read) == [f"state/ocdbt.process_{index}/manifest.ocdbt" for index in (0, 1)]
    values.parent.rename(tmp_path / "5")
    assert sorted(path.name for path in (tmp_path / "5").iterdir()) == ["checksums.json", "state"]
    for name in checkpoint_seal._LATE:
        (tmp_path / "5" / name).write_text("x")
    assert not checkpoint_seal.find_damage(tmp_path / "5")
    flip(tmp_path / "5" / "state" / "ocdbt.process_1" / "d" / "ab")
    monkeypatch.setattr(checkpoint_seal.jax, "process_count", lambda: 2)
    found = []
    for index in (0, 1):
        monkeypatch.setattr(checkpoint_seal.jax, "process_index", lambda index=index: index)
        found.append(checkpoint_seal.find_damage(tmp_path / "5"))
    assert sorted(found) == [
        "",
        "state/ocdbt.process_1/d/ab: its checksum differs",
    ]


SAVING = """
import sys
from pathlib import Path
import test_checkpoints
from seg_jax.training.checkpoints import Checkpoints

checkpoints = Checkpoints(Path(sys.argv[1]))
print("begun", flush=True)
for step in range(1, 1000):
    checkpoints.save(test_checkpoints.first(step, 20_000), test_checkpoints.numbers(), {})
"""


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.35, 0.5])
def test_a_kill_while_saving_leaves_what_is_whole(tmp_path, seconds):
    here = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", SAVING, str(tmp_path / "state")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "begun\n"
    while not (tmp_path / "state" / "2").exists():
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    checkpoints, warned = Checkpoints(tmp_path / "state"), []
    latest = checkpoints.latest()
    state, _ = checkpoints.restore(first(width=20_000), numbers(), warn=warned.append)
    assert latest >= 2
    assert not warned
    assert_same(state, first(latest, width=20_000))
    checkpoints.close()


LIMITED = """
import os, resource, signal, sys
from pathlib import Path
import test_checkpoints
from seg_jax.training.checkpoints import Checkpoints

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.save(test_checkpoints.first(1), test_checkpoints.numbers(), {})
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
try:
    checkpoints.save(test_checkpoints.first(2), test_checkpoints.numbers(), {})
    checkpoints.wait()
except Exception as error:
    print(type(error).__name__, error, flush=True)
    os._exit(7)
"""


def test_a_file_that_may_not_grow_is_told_and_the_one_before_stays(tmp_path):
    assert resource.RLIMIT_FSIZE is not None
    done = run(LIMITED, tmp_path / "state")
    assert done.returncode == 7, done.stderr
    assert "File too large" in done.stdout
    state, _, warned = restored(tmp_path / "state")
    assert_same(state, first(1))
    assert not warned
