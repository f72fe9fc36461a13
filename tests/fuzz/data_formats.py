"""Formats of annotations, images and built data sets, with what reads them (fuzzer's helper)."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import container_mutations
import image_mutations
import json_mutations
import numpy as np
import parquet_mutations
import published_formats
from byte_mutations import mutated
from harness import Format, Mutation
from PIL import Image

from seg_jax.data import image_files, record_schema, sources
from seg_jax.data.build import claims, dataset, record_files
from seg_jax.records import Trace

_JSON = json_mutations.mutated_json
_LINES = json_mutations.mutated_lines


def build_reader(name: dataset.Name, **options: Any) -> Callable[[Path], Iterator[str]]:
    """Returns what builds a data set but writes no files; it yields what it tells."""

    def build(source: Path) -> Iterator[str]:
        plan = dataset.Plan(name=name, source=source, out=source / "out", **options)
        planned = dataset.plan_files(plan)
        yield from texts(planned.report)
        met = planned.findings
        for task in planned.tasks:
            for image in task.images:
                try:
                    record, counts = record_files.build_record(image, met)
                except record_files.BrokenImage as error:
                    met.add(error.reason, error.got)
                    continue
                yield from texts(counts)
                record_schema.decode(record_schema.encode(record))
        yield from met.lines()

    return build


def texts(value: Any) -> Iterator[str]:
    """Yields all texts within a report."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from texts([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for one in value:
            yield from texts(one)


def _make_instances(folder: Path) -> None:
    published_formats.instances(folder, images=2)
    path = folder / "annotations" / "instances_train2017.json"
    value = json.loads(path.read_bytes())
    value["annotations"][0]["segmentation"] = {"size": [48, 64], "counts": "PPYo1"}
    path.write_text(json.dumps(value))


def _make_parquet(folder: Path) -> None:
    import pyarrow.parquet

    folder.joinpath("data").mkdir()
    image = published_formats.image(folder / "one.jpg", 0)
    rows = [
        {"image": {"bytes": image.read_bytes(), "path": f"{n}.jpg"}}
        | {"problem": f"Question {n}?", "thinking": "One thing.", "solution": "[[1,2,3,4]]"}
        for n in range(3)
    ]
    image.unlink()
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(
        table, folder / "data" / "train-00000-of-00001.parquet", row_group_size=2
    )


def _make_folder(folder: Path) -> None:
    published_formats.folder(folder)
    for split in ("train", "val"):  # An image that is named once is decoded once.
        path = folder / f"{split}.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))


_ANNOTATIONS = (
    Format(
        name="coco",
        make=_make_instances,
        mutations={"*.json": _JSON},
        read=build_reader("coco_instances"),
    ),
    Format(
        name="panoptic",
        make=lambda folder: published_formats.panoptic(folder, images=2),
        mutations={"*.json": _JSON, "annotations/*/*.png": image_mutations.mutated_png},
        read=build_reader("coco_panoptic"),
    ),
    Format(
        name="refer",
        make=lambda folder: published_formats.refer(folder, "refcoco_unc", images=1),
        mutations={"*.json": _JSON, "*.p": container_mutations.mutated_pickle},
        read=build_reader("refcoco_unc"),
    ),
    Format(
        name="refclef",
        make=lambda folder: published_formats.refer(folder, "refclef_unc", images=1),
        mutations={"*.json": _JSON, "*.p": container_mutations.mutated_pickle},
        read=build_reader("refclef_unc"),
    ),
    Format(
        name="grefs",
        make=lambda folder: published_formats.refer(folder, "grefcoco_unc", images=1),
        mutations={"*.json": _JSON},
        read=build_reader("grefcoco_unc"),
    ),
    Format(
        name="masks",
        make=lambda folder: published_formats.masks(folder, "ecssd", images=1),
        mutations={"*.png": image_mutations.mutated_png},
        read=build_reader("ecssd"),
    ),
    Format(
        name="reasonseg",
        make=lambda folder: published_formats.reasonseg(folder, images=2),
        mutations={"*.json": lambda data, rng: _JSON(_utf8(data), rng)},
        read=build_reader("reasonseg"),
    ),
    Format(
        name="folder",
        make=_make_folder,
        mutations={"*.jsonl": _LINES},
        read=build_reader("folder"),
    ),
)
_PARQUET = Format(
    name="parquet",
    make=_make_parquet,
    mutations={"*.parquet": parquet_mutations.mutated_parquet},
    read=build_reader("fcot"),
)
_ROWS = (_PARQUET,) if importlib.util.find_spec("pyarrow") else ()


def _utf8(data: bytes) -> bytes:
    """Returns a JSON file of ReasonSeg, whose files are of two encodings, in UTF-8."""
    try:
        return data.decode().encode()
    except UnicodeDecodeError:
        return data.decode("cp1252").encode()


_MODES = {
    "png": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "jpeg": ("RGB", "L", "CMYK"),
    "webp": ("RGB", "RGBA"),
    "bmp": ("RGB", "L", "P", "1"),
    "gif": ("P", "L"),
    "tiff": ("RGB", "RGBA", "L", "1", "CMYK", "I;16", "F"),
    "ppm": ("RGB", "L", "1"),
}


def _make_images(kind: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 255, (9, 14, 3), dtype=np.uint8)
        for mode in _MODES[kind]:
            if mode in ("I;16", "F"):
                grey = pixels[..., 0].astype(np.uint16 if mode == "I;16" else np.float32)
                image = Image.fromarray(grey * 200)
            else:
                image = Image.fromarray(pixels).convert(mode)
            name = mode.replace(";", "")
            image.save(folder / f"{name}.{kind}", kind.upper())
        for number, more in enumerate(_MORE.get(kind, ())):
            Image.fromarray(pixels).save(folder / f"more{number}.{kind}", kind.upper(), **more)

    return make


_SECOND = Image.new("RGB", (14, 9), "red")
_MORE: dict[str, tuple[dict[str, Any], ...]] = {
    "png": ({"save_all": True, "append_images": [_SECOND]},),
    "jpeg": ({"progressive": True}, {"subsampling": 2, "restart_marker_rows": 1}),
    "webp": ({"lossless": True}, {"save_all": True, "append_images": [_SECOND]}),
    "gif": ({"save_all": True, "append_images": [_SECOND], "transparency": 0},),
    "tiff": tuple({"compression": name} for name in ("tiff_lzw", "jpeg", "packbits", "zstd")),
}


def _read_image(folder: Path) -> None:
    """Reads the one image as programs do that show it, and as a build does that stores it."""
    (path,) = folder.iterdir()
    pixels = image_files.read(path)
    assert pixels.dtype == np.uint8
    assert pixels.size
    if pixels.size > 30_000_000:  # Each of the two is allowed the time that both would take.
        return
    stored = image_files.storable(path.read_bytes(), upright=True)
    assert np.array_equal(image_files.read(stored.data, upright=False), pixels)


_IMAGE_MUTATIONS: dict[str, Mutation] = {
    "png": image_mutations.mutated_png,
    "jpeg": image_mutations.mutated_jpeg,
    "tiff": image_mutations.mutated_tiff,
}
_IMAGES = tuple(
    Format(
        name=kind,
        make=_make_images(kind),
        mutations={"*": _IMAGE_MUTATIONS.get(kind, mutated)},
        read=_read_image,
        alone=True,
    )
    for kind in _MODES
)


def _make_built(folder: Path) -> None:
    """Builds a data set of two files, whose parts stay."""
    source = folder / "source"
    published_formats.folder(source)
    plan = dataset.Plan(name="folder", source=source, out=folder / "built", records=2)
    with dataset.claim_build(plan, anew=False):
        planned = dataset.plan_files(plan)
        parts = dataset.make_files(planned.tasks, workers=1, progress=lambda done: None)
        dataset.finish_build(plan, planned, parts)


def _read_built(folder: Path) -> None:
    """Reads every sample of a data set, as training does."""
    source = sources.Built(folders=(folder / "built",), absent=True)
    for index in range(min(len(source), 8)):
        source[index]
    source.absent_count()


def _continue_build(folder: Path) -> Iterator[str]:
    """Begins the same build again where another one has left its parts."""
    plan = dataset.Plan(name="folder", source=folder / "source", out=folder / "built", records=2)
    with dataset.claim_build(plan, anew=False):
        planned = dataset.plan_files(plan)
        parts = dataset.make_files(planned.tasks, workers=1, progress=lambda done: None)
        yield from texts(dataset.finish_build(plan, planned, parts))


def _make_example(folder: Path) -> None:
    _make_built(folder / "all")
    source = sources.Built(folders=(folder / "all" / "built",), absent=True)
    for index in range(2):
        (folder / f"{index}.example").write_bytes(record_schema.encode(source.record(index)))
    told = dataclasses.replace(source.record(0), traces=(Trace("What?", "One.", "[[1, 2]]"),) * 2)
    (folder / "traces.example").write_bytes(record_schema.encode(told))
    shutil.rmtree(folder / "all")
    mask = io.BytesIO()
    Image.new("L", (64, 48), 255).save(mask, "PNG")
    (folder / "tfds.example").write_bytes(_ref_coco(mask.getvalue()))


def _ref_coco(png: bytes) -> bytes:
    """Returns an image as TFDS's ref_coco stores it."""
    integers = {"image/id": [7], "objects/id": [1, 2]}
    return record_schema.tf_example.encode(
        {
            "image": [png],
            "objects/mask": [png, png],
            "objects/bbox": np.array([0.1, 0.2, 0.5, 0.6] * 2, np.float32),
            "objects/refexp/refexp_id/ragged_flat_values": np.array([1, 2, 3]),
            "objects/refexp/refexp_id/ragged_row_lengths_0": np.array([2, 1]),
            "objects/refexp/raw/ragged_flat_values": [b"one", b"two", b"three"],
            "objects/refexp/raw/ragged_row_lengths_0": np.array([2, 1]),
            **{name: np.array(values) for name, values in integers.items()},
        }
    )


def _read_example(folder: Path) -> None:
    """Reads one stored example as a sample of a data set of one."""
    (path,) = folder.iterdir()
    record = record_schema.decode(path.read_bytes())
    source = sources.Built(folders=(folder,), absent=True)
    source.__dict__["_ends"] = [1]
    source.sample(0, record, record.pixels())


_BUILT = (
    Format(
        name="built",
        make=_make_built,
        mutations={"built/dataset_info.json": _JSON, "built/build.json": _JSON},
        read=_read_built,
    ),
    Format(
        name="array_record",
        make=_make_built,
        mutations={"built/*.array_record*": mutated},
        read=_read_built,
    ),
    Format(
        name="example",
        make=_make_example,
        mutations={"*.example": container_mutations.mutated_example},
        read=_read_example,
        alone=True,
    ),
    Format(
        name="parts",
        make=_make_built,
        mutations={"built/.parts/*.json": _JSON, f"built/{claims.CLAIM}": _JSON},
        read=_continue_build,
    ),
)

FORMATS = {form.name: form for form in (*_ANNOTATIONS, *_ROWS, *_IMAGES, *_BUILT)}
