"""Holds the reader of torch's archives to torch.load, and proves that hostile ones run nothing."""

from __future__ import annotations

import collections
import io
import os
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from seg_jax.models.io import torch_archive


def read(path: Path) -> dict[str, np.ndarray]:
    """Returns all tensors of an archive, whole."""
    archive = torch_archive.Archive(path)
    found = {}
    for name in archive.names():
        blocks = [block for _, block in archive.blocks(name)]
        found[name] = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        assert found[name].shape == archive.shape(name)
        assert found[name].dtype == archive.dtype(name)
    return found


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


@pytest.fixture
def tensors():
    """Returns tensors of every kind that is read: views, parts of one storage, none."""
    torch.manual_seed(0)
    whole = torch.randn(6, 4)
    return {
        "plain": torch.randn(3, 5, 2),
        "transposed": whole.T,
        "part": whole[2:5, 1:3],
        "every other": whole[::2],
        "double": torch.randn(4).double(),
        "half": torch.randn(4, 2).half(),
        "bfloat16": torch.randn(7, 3).bfloat16(),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
    }


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("within", [False, True])
def test_what_torch_saves_is_read(tensors, within, protocol, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_archive.safetensors, "BLOCK_BYTES", 40)  # Of several blocks.
    path = tmp_path / "weights.pt"
    counters = {"steps": torch.tensor([7])}
    state = {"model": tensors | counters, "epoch": 3, "note": None} if within else tensors
    torch.save(state, path, pickle_protocol=protocol)
    found = read(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        want = as_numpy(tensor)
        assert found[name].dtype == want.dtype
        np.testing.assert_array_equal(found[name], want)
    archive = torch_archive.Archive(path)
    rows = [(first, block.copy()) for first, block in archive.blocks("plain", 1, 3)]
    assert [first for first, _ in rows] == [1, 2]
    np.testing.assert_array_equal(np.concatenate([b for _, b in rows]), tensors["plain"][1:3])


def test_a_state_dict_of_a_module_is_read(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save(module.state_dict(), tmp_path / "weights.pth")  # With the versions of its modules.
    found = read(tmp_path / "weights.pth")
    want = {n: t for n, t in module.state_dict().items() if t.is_floating_point()}
    assert found.keys() == want.keys()
    for name, tensor in want.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_tensors_are_put_together_row_behind_row(tmp_path):
    parts = {"a": torch.randn(2, 3), "b": torch.randn(4, 3), "c": torch.randn(1, 2)}
    torch.save(parts, tmp_path / "weights.pt")
    archive = torch_archive.Archive(tmp_path / "weights.pt")
    named = torch_archive.Renamed(archive, {"whole": ("a", "b"), "c": ("c",), "odd": ("a", "c")})
    assert (named.shape("whole"), named.shape("c"), named.shape("odd")) == ((6, 3), (1, 2), (-1,))
    want = torch.cat([parts["a"], parts["b"]]).numpy()
    for begin, end in ((0, None), (1, 5), (2, 6), (0, 2), (3, 4)):
        blocks = list(named.blocks("whole", begin, end))
        assert blocks[0][0] == begin
        np.testing.assert_array_equal(np.concatenate([b for _, b in blocks]), want[begin:end])


class _Runs:
    """Unpickled by Python it runs a command."""

    def __init__(self, what, *arguments):
        self.what, self.arguments = what, arguments

    def __reduce__(self):
        return self.what, self.arguments


def spoil(path: Path, pickled: bytes, *, name="data.pkl", data=b"\0" * 16, **options) -> Path:
    """Writes an archive with a pickle of ours and one storage."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr(f"archive/{name}", pickled)
        archive.writestr("archive/data/0", data)
    return path


def tensor_pickle(*, count=4, offset=0, shape=(2, 2), strides=(2, 1), kind="FloatStorage", key="0"):
    """Returns a pickle of one tensor, written by hand as torch writes it."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if value == "STORAGE":
                return ("storage", getattr(torch, kind), key, "cpu", count)
            return None

    class Tensor:
        def __reduce__(self):
            build = torch._utils._rebuild_tensor_v2
            return build, ("STORAGE", offset, shape, strides, False, collections.OrderedDict())

    out = io.BytesIO()
    Pickler(out, 2).dump({"w": Tensor()})
    return out.getvalue()


def test_the_pickle_written_by_hand_is_as_torch_has_it(tmp_path):
    data = np.arange(4, dtype=np.float32)
    spoil(tmp_path / "w.pt", tensor_pickle(), data=data.tobytes())
    np.testing.assert_array_equal(read(tmp_path / "w.pt")["w"], data.reshape(2, 2))


@pytest.mark.parametrize("block", [7, 1 << 20])
@pytest.mark.parametrize("place", [0, 13, -1])
def test_a_changed_bit_of_a_storage_is_noticed(place, block, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_archive, "_CRC_BYTES", block)
    path, numbers = tmp_path / "w.pt", np.arange(1, 7, dtype=np.float32)
    torch.save({"whole": torch.tensor(numbers), "other": torch.ones(2)}, path)
    data = bytearray(path.read_bytes())
    begin = data.index(numbers.tobytes())
    data[begin + place % numbers.nbytes] ^= 4
    path.write_bytes(data)
    archive = torch_archive.Archive(path)
    (_, other), *_ = archive.blocks("other")
    np.testing.assert_array_equal(other, [1, 1])
    with pytest.raises(ValueError, match=r"w.pt: expected the storage '0' as it was saved, got .*"):
        list(archive.blocks("whole"))


HOSTILE = [
    _Runs(os.system, "touch {}"),
    _Runs(eval, "open('{}', 'w')"),
    _Runs(torch.load, "{}"),
    _Runs(getattr, "text", "upper"),
    _Runs(torch._utils._rebuild_tensor_v2, _Runs(os.system, "touch {}"), 0, (1,), (1,)),
    _Runs(collections.OrderedDict, [[_Runs(os.mkdir, "{}"), 1]]),
]


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("attack", range(len(HOSTILE)))
def test_nothing_in_an_archive_is_run(attack, protocol, tmp_path):
    made = tmp_path / "made"

    def aimed(value):
        if isinstance(value, str):
            return value.replace("{}", str(made))
        if isinstance(value, list):
            return [aimed(one) for one in value]
        return (
            _Runs(value.what, *map(aimed, value.arguments)) if isinstance(value, _Runs) else value
        )

    pickled = pickle.dumps({"model": {"w": aimed(HOSTILE[attack])}}, protocol)
    path = spoil(tmp_path / "evil.pt", pickled)
    with pytest.raises(ValueError, match=r"could run code; none was run; do: ") as caught:
        torch_archive.Archive(path)
    assert str(caught.value).startswith(f"{path}: expected ")
    assert not made.exists()


BROKEN = {
    "no pickle": (lambda p: spoil(p, b".", name="other.pkl"), "0 entries data.pkl"),
    "compressed": (
        lambda p: spoil(p, tensor_pickle(), compression=zipfile.ZIP_DEFLATED),
        "compressed or encrypted",
    ),
    "beyond": (lambda p: spoil(p, tensor_pickle(offset=1)), "a tensor beyond its storage"),
    "strides": (lambda p: spoil(p, tensor_pickle(strides=(3, 1))), "a tensor beyond its storage"),
    "spread": (lambda p: spoil(p, tensor_pickle(shape=(9, 9), strides=(0, 0))), "a tensor larger"),
    "negative": (lambda p: spoil(p, tensor_pickle(strides=(-2, 1))), "in place of a count"),
    "huge": (lambda p: spoil(p, tensor_pickle(shape=(2**60, 2))), "in place of a count"),
    "axes": (lambda p: spoil(p, tensor_pickle(shape=(1,) * 9, strides=(1,) * 9)), "strides of"),
    "short": (lambda p: spoil(p, tensor_pickle(), data=b"\0" * 15), "15 bytes of the storage '0'"),
    "lost": (lambda p: spoil(p, tensor_pickle(key="1")), "-1 bytes of the storage '1'"),
    "other kind": (lambda p: spoil(p, tensor_pickle(kind="DoubleStorage")), "16 bytes of the"),
    "no dict": (lambda p: spoil(p, pickle.dumps([1], 2)), "a list of 1 in place of a dict"),
    "no tensor": (lambda p: spoil(p, pickle.dumps({"a": 1}, 2)), "no tensor"),
    "cut pickle": (lambda p: spoil(p, tensor_pickle()[:-9]), "expected a whole pickle"),
    "no archive": (lambda p: p.write_bytes(b"\x80\x02}."), "BadZipFile"),
    "empty": (lambda p: p.write_bytes(b""), "BadZipFile"),
    "a folder": (lambda p: p.mkdir(), "no file, a folder or a pipe"),
    "a pipe": (os.mkfifo, "no file, a folder or a pipe"),
    "nothing": (lambda p: None, "no file, a folder or a pipe"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_archives_are_told_in_one_line(kind, tmp_path):
    make, reason = BROKEN[kind]
    path = tmp_path / "broken.pt"
    make(path)
    with pytest.raises(ValueError) as caught:
        torch_archive.Archive(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: expected weights as torch.save writes them, got "), line
    assert reason in line
    assert line.endswith("; do: get the file from where it was published")
    assert "\n" not in line


def test_numbers_of_the_other_byte_order_are_refused(tmp_path):
    path = spoil(tmp_path / "w.pt", tensor_pickle())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(ValueError, match="numbers whose first byte is the largest"):
        torch_archive.Archive(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["archive/data/0", "archive/version"])
def test_an_entry_that_is_there_twice_is_refused(tmp_path, name):
    path = spoil(tmp_path / "w.pt", tensor_pickle())
    for _ in range(2):
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, bytes(24))
    with pytest.raises(ValueError, match="got two entries of one name; do: "):
        torch_archive.Archive(path)
