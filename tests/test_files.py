"""Files of JSON, good and bad; files that are written whole or not at all."""

import errno
import os

import pytest

from seg_jax import files


def test_json_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"é": [1, 2.5, None]})
    assert files.read_json(path) == files.read_json_object(path) == {"é": [1, 2.5, None]}
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (None, "expected a file, got none"),
        (b"{", "expected JSON, got "),
        (b"\xff", "expected JSON, got bytes that are no text at byte 0; do: "),
        (b"[" * 100_000, "expected JSON, got "),
        (b"[1]", "expected a JSON object, got "),
        (b'{"a": 1, "a": 1}', "expected JSON, got an object with the name 'a' twice"),
        (b'[{"b": {"": 1, "": %s}}]' % (b"9" * 5000), "expected JSON, got an object with the name"),
        (b'{"a": 1,\n "b" 2}', "expected JSON, got Expecting ':' delimiter at line 2, character 6"),
        (b'{"a": ' + b"[" * 200_000, "expected JSON, got lists or objects nested too deep"),
    ],
)
def test_what_is_no_json_is_named_with_advice(tmp_path, data, got):
    path = tmp_path / "a.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        files.read_json_object(path, advice="copy it again")
    text = str(caught.value)
    assert text.startswith(f"{path}: {got}")
    assert text.endswith("; do: copy it again")
    assert "\n" not in text


def test_a_folder_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="expected a file, got a folder; do: fetch it again"):
        files.read_json(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
def test_encodings_of_json_are_read(tmp_path, encoding):
    """As Windows' editors and PowerShell write it."""
    (tmp_path / "a.json").write_bytes('{"é": "☕"}'.encode(encoding))
    assert files.read_json(tmp_path / "a.json") == {"é": "☕"}


def test_numbers_beyond_all_bounds_do_not_spoil_the_file(tmp_path):
    """top-1: they become infinite, and whoever checks the value refuses their place alone."""
    text = f"[1e999, -{'9' * 5000}, {'9' * 5000}, {2**70}, 7]"
    (tmp_path / "a.json").write_text(text)
    inf = float("inf")
    assert files.read_json(tmp_path / "a.json") == [inf, -inf, inf, 2**70, 7]


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(ValueError, match="expected a file, got a pipe or a device; do: fetch"):
        files.read_json(tmp_path / "a.json")


def test_a_file_of_too_many_bytes_is_not_read(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(files.MOST_BYTES + 1)
    with pytest.raises(ValueError, match="expected a file, got 2147483649 bytes, more than 2147"):
        files.read_json(tmp_path / "a.json")


def test_a_text_is_read_without_the_mark_before_it(tmp_path):
    """bom-1: what Windows' editors put before a text is no part of it."""
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffé\r\n".encode())
    assert files.read_text(path) == "é\r\n"
    assert files.parse_json("\ufeff[1]", where="here") == [1]
    path.write_bytes(b"ab\xff")
    with pytest.raises(
        ValueError, match=r"a.txt: expected a list, got other bytes at byte 2; do: "
    ):
        files.read_text(path, expected="a list")
    with pytest.raises(ValueError, match="expected a list, got no file; do: check the path"):
        files.read_text(tmp_path / "none", expected="a list")


def test_paths_that_no_file_can_have_are_told(tmp_path):
    for name in ("nul\0byte", "\ud800", "long" * 100):
        with pytest.raises(ValueError, match="expected a file, got "):
            files.read_bytes(tmp_path / name)
    (tmp_path / "a").write_bytes(b"abc")
    with pytest.raises(ValueError, match="got 3 bytes, more than 2"):
        files.read_bytes(tmp_path / "a", most=2)
    assert files.read_bytes(tmp_path / "a", most=3) == b"abc"


@pytest.mark.parametrize("aside", [False, True])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch, aside):
    path, folder = tmp_path / "a.txt", tmp_path / "unfinished"
    files.write_text(path, "before")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="expected to write 5 bytes, got No space left") as caught:
        files.write_bytes(path, b"after", aside=folder if aside else None)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "before"
    monkeypatch.undo()
    files.write_bytes(path, b"after", aside=folder if aside else None)
    assert path.read_text() == "after"
    assert [one.name for one in tmp_path.rglob("*") if one.is_file()] == ["a.txt"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["nothing", "file", "folder", "link", "pipe", "nowhere", "itself"])
def test_whatever_stands_in_a_place_is_removed(tmp_path, kind):
    """`shutil.rmtree` waits for ever at a pipe; what a link leads to stays."""
    kept, place = tmp_path / "kept", tmp_path / "place"
    kept.mkdir()
    (kept / "a").write_text("a")
    match kind:
        case "file":
            place.write_text("a")
        case "folder":
            (place / "inner").mkdir(parents=True)
            (place / "inner" / "link").symlink_to(kept)
            os.mkfifo(place / "inner" / "pipe")
        case "link":
            place.symlink_to(kept)
        case "pipe":
            os.mkfifo(place)
        case "nowhere":
            place.symlink_to(tmp_path / "gone")
        case "itself":
            place.symlink_to(place)
    files.remove(place)
    assert [one.name for one in tmp_path.iterdir()] == ["kept"]
    assert (kept / "a").read_text() == "a"
