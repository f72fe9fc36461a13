"""The published form of SPEC is read from a zip or a folder; what is wrong with it is named."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from seg_jax.data.formats import spec


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 9, 3), shade, np.uint8)).save(out, "PNG")
    return out.getvalue()


IMAGES = ["images/a.png", "images/b.png"]
TEXTS = ["there is a cat", "there is no cat"]


def contents(root="", **changes) -> dict[str, bytes]:
    """Returns the files of a small data set of one case of each of two subsets."""
    found = {}
    for subset in ("existence", "count"):
        place = f"{root}{subset}/"
        found |= {place + name: png(50 * n) for n, name in enumerate(IMAGES, 1)}
        to_text = [{"query": name, "keys": TEXTS, "label": n} for n, name in enumerate(IMAGES)]
        to_image = [{"query": text, "keys": IMAGES, "label": n} for n, text in enumerate(TEXTS)]
        found[place + "image2text.json"] = json.dumps(to_text).encode()
        found[place + "text2image.json"] = json.dumps(to_image).encode()
    return found | {f"{root}{name}": value for name, value in changes.items()}


def archive(path, found, **options):
    with zipfile.ZipFile(path, "w", **options) as out:
        for name, data in found.items():
            out.writestr(name, data)
    return path


def folder(path, found):
    for name, data in found.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.mark.parametrize("root", ["", "data/"])
@pytest.mark.parametrize("kind", ["stored", "deflated", "folder"])
def test_choices_and_images_are_read(kind, root, tmp_path):
    found = contents(root)
    if kind == "folder":
        source = folder(tmp_path / "data", found)
    else:
        method = zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED
        source = archive(tmp_path / "data.zip", found, compression=method)
    data = spec.Published(source)
    assert len(data.choices) == 8
    assert [one.subset for one in data.choices] == ["existence"] * 4 + ["count"] * 4
    first, _, third, _ = data.choices[:4]
    assert (first.direction, first.label, first.keys) == ("image_to_text", 0, tuple(TEXTS))
    assert first.images == (f"{root}existence/images/a.png",)
    assert (first.texts, third.texts) == (tuple(TEXTS), (TEXTS[0],))
    assert third.images == tuple(f"{root}existence/{name}" for name in IMAGES)
    assert (data.image(third.images[1]) == 100).all()
    assert {path.name for path in tmp_path.iterdir()} == {source.name}


def test_paths_may_be_relative_to_the_folder_above(tmp_path):
    found = contents()
    value = [{"query": f"existence/{name}", "keys": TEXTS, "label": 0} for name in IMAGES[:1]]
    found["existence/image2text.json"] = json.dumps(value).encode()
    data = spec.Published(archive(tmp_path / "data.zip", found))
    assert data.choices[0].images == ("existence/images/a.png",)


RECORD = {"query": IMAGES[0], "keys": TEXTS, "label": 0}
WRONG = {
    "label": ({"label": 2}, r"record 1: expected a label below its 2 keys, got 2"),
    "one key": ({"keys": TEXTS[:1]}, r"record 1, keys: expected list of length >= 2, got"),
    "twice": ({"keys": TEXTS[:1] * 2}, r"record 1: expected different keys, got one twice"),
    "leaves": ({"query": "../../secret.png"}, r"record 1: expected a path within the data"),
    "absolute": ({"query": "/etc/passwd"}, r"record 1: expected a path within the data"),
    "missing": ({"query": "images/c.png"}, r"record 1: expected the image .*images/c.png', got"),
    "kind": ({"label": "0"}, r"record 1, .*expected .*int"),
    "other answer": ({"label": 1}, r"record 1: expected the answer of the same question before"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_records_that_make_no_sense_are_named(kind, tmp_path):
    change, told = WRONG[kind]
    value = json.dumps([RECORD, RECORD | change]).encode()
    source = archive(tmp_path / "data.zip", contents() | {"count/image2text.json": value})
    with pytest.raises(ValueError, match=rf"data\.zip, count/image2text\.json, {told}") as caught:
        spec.Published(source)
    assert "; do: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_such_data_is_named(tmp_path):
    def refused(source) -> str:
        with pytest.raises(ValueError) as caught:
            spec.Published(source)
        return str(caught.value)

    assert "expected data.zip of wjpoom/SPEC or its folder, got none" in refused(tmp_path / "no")
    (tmp_path / "junk.zip").write_bytes(b"PK junk")
    assert "expected a zip archive, got BadZipFile" in refused(tmp_path / "junk.zip")
    empty = archive(tmp_path / "empty.zip", {"readme": b"hello"})
    assert "expected folders with image2text.json and text2image.json" in refused(empty)
    twice = archive(tmp_path / "twice.zip", contents() | contents("more/"))
    assert "expected one folder existence" in refused(twice)
    texts = archive(tmp_path / "b.zip", contents() | {"count/text2image.json": b"\xff\xfe\xfa"})
    assert "count/text2image.json: expected JSON, got" in refused(texts)
    texts = archive(tmp_path / "l.zip", contents() | {"count/text2image.json": b"{}"})
    assert "expected a list of records, got" in refused(texts)


def test_broken_images_and_bombs_are_named(tmp_path, monkeypatch):
    found = contents() | {"count/images/a.png": png(1)[:40]}
    data = spec.Published(archive(tmp_path / "a.zip", found))
    with pytest.raises(ValueError, match=r"a\.zip, count/images/a\.png: expected"):
        data.image("count/images/a.png")
    monkeypatch.setattr(spec, "MOST_JSON_BYTES", 100)
    with pytest.raises(ValueError, match="expected at most 100 bytes, got more"):
        spec.Published(tmp_path / "a.zip")
    monkeypatch.setattr(spec, "MOST_ENTRIES", 3)
    with pytest.raises(ValueError, match="expected at most 3 entries, got 8"):
        spec.Published(tmp_path / "a.zip")
