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


def test_tensorboard_has_the_numbers_at_once(tmp_path):
    with Log(tmp_path) as log:
        log.write("sft", 1, {"loss": 2.5, "length/mean": 3.0})
        log.write("sft", 2, {"loss": math.nan})
        version, *found = events(tmp_path)
    assert version.file_version == "brain.Event:2"
    told = [(one.step, {x.tag: x.simple_value for x in one.summary.value}) for one in found]
    assert told[0] == (1, {"sft/loss": 2.5, "sft/length/mean": 3.0})
    assert told[1][0] == 2
    assert math.isnan(told[1][1]["sft/loss"])


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


def test_it_is_asked_for_only_where_it_is_wanted_and_missed_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with Log(tmp_path / "plain") as log:
        log.write("gspo", 1, {"loss": 2.5})
    Board().check()
    for act in (Board(wandb=True).check, lambda: Log(tmp_path, Board(wandb=True))):
        with pytest.raises(ValueError, match="expected the package wandb, got none; do: pip"):
            act()
