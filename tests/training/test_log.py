"""The log of a run: what it holds, what a killed process leaves, what a resumed run forgets."""

import errno
import importlib.machinery
import importlib.util
import json
import math
import struct
import sys
import types

import pytest
from tensorboardX.proto.event_pb2 import Event

from seg_jax.training.log import Board, Log


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_numbers_reach_the_disk_at_once_and_nan_is_null(tmp_path):
    with Log(tmp_path) as log:
        log.write("sft", 1, {"loss": 2.5, "bad": math.nan})
        (found,) = records(tmp_path)
    assert found.pop("seconds") >= 0
    assert found == {"stage": "sft", "step": 1, "loss": 2.5, "bad": None}
    assert list((tmp_path / "tensorboard").iterdir())


def events(folder):
    """Yields what TensorBoard would read: length, its checksum, an event, its checksum."""
    (path,) = (folder / "tensorboard").iterdir()
    data = path.read_bytes()
    while data:
        (size,) = struct.unpack_from("<Q", data)
        yield Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]


def test_tensorboard_has_the_numbers_at_once(tmp_path, caplog):
    with Log(tmp_path) as log:
        log.write("sft", 1, {"loss": 2.5, "length/mean": 3.0})
        log.write("sft", 2, {"loss": math.nan})
        version, *found = events(tmp_path)
    assert version.file_version == "brain.Event:2"
    told = [(one.step, {x.tag: x.simple_value for x in one.summary.value}) for one in found]
    assert told[0] == (1, {"sft/loss": 2.5, "sft/length/mean": 3.0})
    assert told[1][0] == 2
    assert math.isnan(told[1][1]["sft/loss"])
    assert caplog.records == [], "its writer warned of NaN on the terminal"


def test_a_file_that_cannot_be_closed_leaves_none_open(tmp_path, monkeypatch):
    def close():
        raise OSError(errno.ENOSPC, "No space left on device")

    log = Log(tmp_path)
    monkeypatch.setattr(log._board, "close", close)
    with pytest.raises(OSError, match="No space left"):
        log.close()
    assert log._file.closed


def test_a_torn_last_line_is_cut_and_the_rest_goes_on(tmp_path):
    with Log(tmp_path) as log:
        log.write("sft", 1, {"loss": 2.5})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"stage": "sft", "st')
    with Log(tmp_path) as log:
        log.write("sft", 2, {"loss": 1.5})
    assert [record["step"] for record in records(tmp_path)] == [1, 2]
    path.write_text('{"stage"')
    with Log(tmp_path):
        assert path.read_text() == ""


def test_a_resumed_stage_forgets_only_its_own_records_beyond_its_checkpoint(tmp_path):
    with Log(tmp_path) as log:
        for stage in ("sft", "gspo"):
            for step in (1, 2, 3):
                log.write(stage, step, {"loss": float(step)})
        log.forget_after("gspo", 1)
        log.write("gspo", 2, {"loss": -2.0})
    found = [(record["stage"], record["step"], record["loss"]) for record in records(tmp_path)]
    assert found == [("sft", 1, 1), ("sft", 2, 2), ("sft", 3, 3), ("gspo", 1, 1), ("gspo", 2, -2)]
    assert not (tmp_path / "metrics.tmp").exists()


def test_a_second_writer_loses_no_line_to_one_that_forgets(tmp_path):
    """lock-1: where no lock keeps a second run away, its lines stay."""
    with Log(tmp_path) as one, Log(tmp_path) as other:
        for step in (1, 2, 3):
            one.write("sft", step, {"loss": 1.0})
        before = (tmp_path / "metrics.jsonl").stat().st_ino
        other.forget_after("sft", 1)
        one.write("sft", 2, {"loss": 2.0})
        other.write("gspo", 1, {"loss": 3.0})
        after = (tmp_path / "metrics.jsonl").stat().st_ino
        assert after == before, "the file is cut in its place, not replaced"
        # Records between others cannot be cut: the file is replaced, and found again.
        other.forget_after("sft", 1)
        one.write("sft", 2, {"loss": 4.0})
    found = [(one["stage"], one["step"], one["loss"]) for one in records(tmp_path)]
    assert found == [("sft", 1, 1), ("gspo", 1, 3), ("sft", 2, 4)]


@pytest.mark.parametrize("line", ["no json", "[]", "3", '{"stage": 3}', "[" * 100_000, "\udce9"])
def test_what_is_no_record_stays_in_the_log_and_breaks_nothing(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    with Log(tmp_path) as log:
        log.write("sft", 1, {"loss": 1.0})
    strange = f"{line}\n".encode(errors="surrogateescape")
    path.write_bytes(path.read_bytes() + strange)
    with Log(tmp_path) as log:
        log.write("sft", 2, {"loss": 1.0})
        log.forget_after("sft", 1)
    assert path.read_bytes().splitlines(keepends=True)[1:] == [strange]


def test_a_full_disk_is_told_with_the_file_and_leaves_no_half_line(tmp_path, monkeypatch):
    with Log(tmp_path) as log:
        log.write("sft", 1, {"loss": 1.0})
        before = (tmp_path / "metrics.jsonl").read_bytes()

        class Full:
            def __init__(self, file):
                self.file = file

            def write(self, data):
                if len(data) < 10:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return self.file.write(data[:-5])

            def __getattr__(self, name):
                return getattr(self.file, name)

        monkeypatch.setattr(log, "_file", Full(log._file))
        with pytest.raises(OSError, match=r"No space left.*metrics.jsonl"):
            log.write("sft", 2, {"loss": 1.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


class FakeWandb(types.ModuleType):
    """As much of Weights & Biases as the log calls."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.begun, self.logged, self.ended = [], [], 0

    def init(self, **given):
        self.begun.append(given)
        return self

    def define_metric(self, name, *, step_metric):
        assert name.removesuffix("*") + "step" == step_metric

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.ended += 1


def test_weights_and_biases_gets_the_numbers_and_a_resumed_run_is_the_same(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    board = Board(wandb=True, project="shapes")
    for step in (1, 2):
        with Log(tmp_path, board) as log:
            log.write("gspo", step, {"loss": 2.5})
    assert fake.logged == [{"gspo/loss": 2.5, "gspo/step": step} for step in (1, 2)]
    assert fake.ended == 2
    first, again = fake.begun
    assert first == again
    assert (first["project"], first["resume"], first["dir"]) == ("shapes", "allow", tmp_path)
    with Log(tmp_path / "other", board):
        assert fake.begun[2]["id"] != first["id"]


def test_a_name_of_a_run_that_is_none_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb())
    (tmp_path / "wandb").mkdir()
    for text in ("../other", "", "x" * 2000, "a\nb"):
        (tmp_path / "wandb" / "id").write_text(text)
        with pytest.raises(ValueError, match=r"wandb.id: expected .*; do: remove it"):
            Log(tmp_path, Board(wandb=True))


def test_it_is_asked_for_only_where_it_is_wanted_and_missed_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with Log(tmp_path / "plain") as log:
        log.write("gspo", 1, {"loss": 2.5})
    Board().check()
    for act in (Board(wandb=True).check, lambda: Log(tmp_path, Board(wandb=True))):
        with pytest.raises(ValueError, match="expected the package wandb, got none; do: pip"):
            act()
