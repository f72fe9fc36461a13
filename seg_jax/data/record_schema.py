"""How a built data set stores an image: as flat features, with files that describe them.

| feature | holds |
|---|---|
| `key`, `split` | its name within the data set; its split |
| `image` | the encoded image, JPEG or PNG, three channels of eight bits |
| `image/id`, `image/name`, `image/height`, `image/width` | its number, file name, rows, columns |
| `object/id`, `object/name`, `object/role` | of each outlined object; a `Role` |
| `object/counts`, `object/area` | its mask as compressed COCO run lengths, and their pixels |
| `object/box` | its annotated box, x0 y0 x1 y1 in pixels |
| `phrase/id`, `phrase/ref`, `phrase/text`, `phrase/sentence` | of each expression |
| `phrase/count`, `phrase/objects` | how many objects each means, and their places, run together |
| `trace/question`, `trace/thought`, `trace/answer` | of each conversation; in sets of these |
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from seg_jax import schemas
from seg_jax.data import image_files, tf_example
from seg_jax.data.formats.annotations import Role
from seg_jax.geometry import bitmask
from seg_jax.records import Trace

FILE_FORMAT = "array_record"
VERSION = "1.0.0"
INFO = "dataset_info.json"
"""File that makes a folder a data set; it is written last, and gone while files change."""
FEATURES = "features.json"
"""File that tells TFDS what a record holds."""
REPORT = "build.json"
"""File of a data set with the report of its build."""
SIZES = "sizes.json"
"""File of a data set with the `Size` of each record, by split, in order."""
_ONE, _LIST = False, True
_FEATURES: dict[str, tuple[str, bool]] = {
    "key": ("text", _ONE),
    "split": ("text", _ONE),
    "image": ("image", _ONE),
    "image/id": ("int64", _ONE),
    "image/name": ("text", _ONE),
    "image/height": ("int64", _ONE),
    "image/width": ("int64", _ONE),
    "object/id": ("int64", _LIST),
    "object/name": ("text", _LIST),
    "object/role": ("int64", _LIST),
    "object/counts": ("text", _LIST),
    "object/area": ("int64", _LIST),
    "object/box": ("box", _LIST),
    "phrase/id": ("int64", _LIST),
    "phrase/ref": ("int64", _LIST),
    "phrase/text": ("text", _LIST),
    "phrase/sentence": ("int64", _LIST),
    "phrase/count": ("int64", _LIST),
    "phrase/objects": ("int64", _LIST),
}
"""Kind of each feature, and whether it is a list."""
_TRACE_FEATURES = {f"trace/{name}": ("text", _LIST) for name in Trace._fields}
"""The same of data sets of conversations."""


class Expression(NamedTuple):
    """An expression of a stored image."""

    id: int
    text: str
    objects: tuple[int, ...]
    """Places of the objects that it means; none: it fits nothing in the image."""
    ref: int = -1
    sentence: bool = False


@dataclasses.dataclass(frozen=True)
class Record:
    """A stored image."""

    key: str
    split: str
    image: bytes
    """The encoded image, JPEG or PNG."""
    image_id: int
    name: str
    height: int
    width: int
    ids: tuple[int, ...]
    names: tuple[str, ...]
    roles: tuple[Role, ...]
    counts: tuple[bytes, ...]
    """Compressed COCO run lengths of each object's mask."""
    areas: tuple[int, ...]
    """Number of pixels of each mask."""
    boxes_px: Float[np.ndarray, "M 4"]
    """Annotated boxes, x0 y0 x1 y1."""
    expressions: tuple[Expression, ...]
    traces: tuple[Trace, ...] = ()

    def rle(self, which: int) -> dict[str, Any]:
        """Returns the mask of an object as COCO run lengths."""
        return {"size": [self.height, self.width], "counts": self.counts[which]}

    def pixels(self) -> UInt8[np.ndarray, "H W 3"]:
        """Returns the decoded image.

        Raises:
          ValueError: it is damaged, or of another size than the record says.
        """
        where = f"record {self.key!r}"
        found = image_files.read(self.image, upright=False, where=where, formats=image_files.STORED)
        if found.shape[:2] != (self.height, self.width):
            raise ValueError(
                f"{where}: expected an image of {self.height}x{self.width}, got "
                f"{found.shape[0]}x{found.shape[1]}; do: build the data set anew"
            )
        return found


def encode(record: Record) -> bytes:
    """Returns the bytes of a stored image."""
    expressions = record.expressions
    traces = {
        f"trace/{name}": [getattr(one, name).encode() for one in record.traces]
        for name in (Trace._fields if record.traces else ())
    }
    return tf_example.encode(
        traces
        | {
            "key": [record.key.encode()],
            "split": [record.split.encode()],
            "image": [record.image],
            "image/id": _int64([record.image_id]),
            "image/name": [record.name.encode()],
            "image/height": _int64([record.height]),
            "image/width": _int64([record.width]),
            "object/id": _int64(record.ids),
            "object/name": [name.encode() for name in record.names],
            "object/role": _int64(record.roles),
            "object/counts": list(record.counts),
            "object/area": _int64(record.areas),
            "object/box": record.boxes_px.astype(np.float32).ravel(),
            "phrase/id": _int64([one.id for one in expressions]),
            "phrase/ref": _int64([one.ref for one in expressions]),
            "phrase/text": [one.text.encode() for one in expressions],
            "phrase/sentence": _int64([one.sentence for one in expressions]),
            "phrase/count": _int64([len(one.objects) for one in expressions]),
            "phrase/objects": _int64([place for one in expressions for place in one.objects]),
        }
    )


class Size(NamedTuple):
    """What decides whether an image fits the rows of a model; `SIZES` holds it of each record."""

    height: int
    width: int
    groups: int
    """Masks that a sample of it has: one for each set of objects that expressions mean, or for each
    object, whichever are more."""
    text: int
    """Bytes of its longest expression, or question of a conversation."""


def size_of(record: Record) -> Size:
    """Returns what decides whether a record fits the rows of a model."""
    groups = len({tuple(sorted({*one.objects})) for one in record.expressions})
    asked = [one.text for one in record.expressions] + [one.question for one in record.traces]
    longest = max((len(text.encode()) for text in asked), default=0)
    return Size(record.height, record.width, max(groups, len(record.ids)), longest)


def size_of_bytes(data: bytes) -> Size:
    """Returns the size of a stored image, without its masks being decoded.

    Raises:
      ValueError: as `decode`, but for what is wrong with masks.
    """
    features = tf_example.decode(data)
    if "objects/mask" not in features:
        return size_of(decode(data))
    try:
        header = _ref_coco_header(features)
        texts = [text for some in _ragged(features, "objects/refexp/raw") for text in some]
    except image_files.Unreadable:
        raise
    except (AttributeError, LookupError, TypeError, OverflowError, ValueError) as error:
        raise _no_record(error) from None
    longest = max(map(len, texts), default=0)
    return Size(header.height, header.width, len(_bytes(features["objects/mask"])), longest)


def decode(data: bytes) -> Record:
    """Returns a stored image; one of the official TFDS `ref_coco` too.

    Raises:
      ValueError: the bytes are of neither.
    """
    features = tf_example.decode(data)
    try:
        record = (_decode_ref_coco if "objects/mask" in features else _decode_own)(features)
    except image_files.Unreadable:
        raise
    except (AttributeError, LookupError, TypeError, OverflowError, ValueError) as error:
        raise _no_record(error) from None
    _check_record(record)
    return record


def _no_record(error: Exception) -> ValueError:
    return ValueError(
        "record: expected an image that seg-jax build or TFDS ref_coco stored, got none "
        f"({type(error).__name__}: {schemas.short_repr(str(error))}); do: build the data set anew"
    )


def _check_record(record: Record) -> None:
    """Raises ValueError if parts of a record do not belong together, or sizes are absurd."""
    objects = len(record.ids)
    parts = (record.names, record.roles, record.counts, record.areas, record.boxes_px)
    pixels = record.height * record.width
    places = [place for one in record.expressions for place in one.objects]
    for expected, got, holds in (
        (
            "an image with pixels",
            f"{record.height}x{record.width}",
            0 < pixels <= image_files.MAX_PIXELS,
        ),
        (f"{objects} of all that objects have", "others", {*map(len, parts)} <= {objects}),
        (
            "boxes of finite pixels",
            "others",
            bool((np.abs(record.boxes_px) <= image_files.MAX_PIXELS).all()),
        ),
        (f"places of {objects} objects", "others", all(0 <= one < objects for one in places)),
    ):
        if not holds:
            raise ValueError(
                f"record {schemas.short_repr(record.key)}: expected {expected}, got {got}; do: "
                "build the data set anew"
            )


def _decode_own(features: dict[str, tf_example.Value]) -> Record:
    """Returns an image as `encode` stores it."""
    text, whole = _texts(features), _integers(features)
    return Record(
        key=text["key"][0],
        split=text["split"][0],
        image=_bytes(features["image"])[0],
        image_id=int(whole["image/id"][0]),
        name=text["image/name"][0],
        height=int(whole["image/height"][0]),
        width=int(whole["image/width"][0]),
        ids=tuple(whole["object/id"].tolist()),
        names=tuple(text["object/name"]),
        roles=tuple(Role(int(role)) for role in whole["object/role"]),
        counts=tuple(_bytes(features["object/counts"])),
        areas=tuple(whole["object/area"].tolist()),
        boxes_px=np.asarray(features["object/box"], np.float32).reshape(-1, 4),
        expressions=_decode_expressions(text["phrase/text"], whole),
        traces=_decode_traces(features),
    )


def _decode_traces(features: dict[str, tf_example.Value]) -> tuple[Trace, ...]:
    """Returns the conversations about an image; most data sets have none."""
    if not _TRACE_FEATURES.keys() & features.keys():
        return ()
    columns = ([one.decode() for one in _bytes(features[name])] for name in _TRACE_FEATURES)
    return tuple(Trace(*one) for one in zip(*columns, strict=True))


def _decode_expressions(
    texts: list[str], whole: dict[str, Int[np.ndarray, " _"]]
) -> tuple[Expression, ...]:
    """Returns the expressions of an image from the features that hold them."""
    counts, places = whole["phrase/count"], whole["phrase/objects"]
    _check_counts(counts, len(places))
    ends = np.cumsum(counts)
    return tuple(
        Expression(
            id=int(whole["phrase/id"][number]),
            text=text,
            objects=tuple(places[end - counts[number] : end].tolist()),
            ref=int(whole["phrase/ref"][number]),
            sentence=bool(whole["phrase/sentence"][number]),
        )
        for number, (text, end) in enumerate(zip(texts, ends, strict=True))
    )


def features_json(*, traces: bool = False) -> str:
    """Returns the file `features.json` that TFDS reads, of conversations or without any."""
    every = _FEATURES | (_TRACE_FEATURES if traces else {})
    inner = {name: _feature_json(*spec) for name, spec in every.items()}
    whole = {
        "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "content": {"features": inner},
        "proto_cls": "tensorflow_datasets.FeaturesDict",
    }
    return json.dumps(whole, indent=4, sort_keys=True) + "\n"


def info_json(name: str, description: str, shards: Sequence[tuple[str, list[int], int]]) -> str:
    """Returns the file `dataset_info.json` that TFDS reads.

    Args:
      name: name of the data set.
      description: a sentence or two.
      shards: name of each split, numbers of records of its files, and bytes of all its records.
    """
    whole = {
        "description": description,
        "fileFormat": FILE_FORMAT,
        "moduleName": "seg_jax.data.record_schema",
        "name": name,
        "releaseNotes": {VERSION: "As seg-jax builds it."},
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(size),
                "shardLengths": [str(length) for length in lengths],
            }
            for split, lengths, size in shards
        ],
        "version": VERSION,
    }
    return json.dumps(whole, indent=2, sort_keys=True) + "\n"


def file_name(name: str, split: str, *, index: int, count: int) -> str:
    """Returns the name of a file of a split, as TFDS names it."""
    return f"{name}-{split}.{FILE_FORMAT}-{index:05d}-of-{count:05d}"


def _feature_json(kind: str, listed: bool) -> dict[str, Any]:
    core = "tensorflow_datasets.core.features"
    if kind == "image":
        image = {"dtype": "uint8", "shape": {"dimensions": ["-1", "-1", "3"]}}
        return {"pythonClassName": f"{core}.image_feature.Image", "image": image}
    if kind == "text" and not listed:
        return {"pythonClassName": f"{core}.text_feature.Text", "text": {}}
    shape = ["-1"] * listed + ["4"] * (kind == "box")
    dtype = {"text": "string", "box": "float32"}.get(kind, kind)
    tensor = {"dtype": dtype, "encoding": "none", "shape": {"dimensions": shape} if shape else {}}
    return {"pythonClassName": f"{core}.tensor_feature.Tensor", "tensor": tensor}


def _decode_ref_coco(features: dict[str, tf_example.Value]) -> Record:
    """Returns an image of TFDS's ref_coco: each reference with its mask as a PNG."""
    whole = _integers(features)
    number = int(whole["image/id"][0])
    where = f"record {number}"
    masks = [image_files.read_mask(png, where=where) for png in _bytes(features["objects/mask"])]
    numbers = _ragged(features, "objects/refexp/refexp_id")
    texts = _ragged(features, "objects/refexp/raw")
    expressions = [
        Expression(int(number), text.decode(), (place,), int(whole["objects/id"][place]))
        for place, (some, phrases) in enumerate(zip(numbers, texts, strict=True))
        for number, text in zip(some, phrases, strict=True)
    ]
    image, header = _bytes(features["image"])[0], _ref_coco_header(features)
    height, width = header.height, header.width
    # TFDS's boxes are ymin, xmin, ymax, xmax as fractions; absurd ones would overflow.
    box = np.asarray(features["objects/bbox"], np.float32).reshape(-1, 4)[:, [1, 0, 3, 2]]
    return Record(
        key=str(number),
        split="",
        image=image,
        image_id=number,
        name=f"{number}.jpg",
        height=height,
        width=width,
        ids=tuple(whole["objects/id"].tolist()),
        names=("",) * len(masks),
        roles=(Role.OBJECT,) * len(masks),
        counts=tuple(bitmask.to_rle(mask)["counts"] for mask in masks),
        areas=tuple(int(mask.sum()) for mask in masks),
        boxes_px=box.clip(-9, 9) * np.array([width, height] * 2, np.float32),
        expressions=tuple(expressions),
    )


def _ref_coco_header(features: dict[str, tf_example.Value]) -> image_files.Header:
    """Returns what the header of the image says."""
    image, where = _bytes(features["image"])[0], f"record {_integers(features)['image/id'][0]}"
    return image_files.read_header(image, where=where, formats=image_files.STORED)


def _ragged(features: dict[str, tf_example.Value], name: str) -> list[Any]:
    """Returns the lists in a list of lists, as TFDS flattens it."""
    values = features[f"{name}/ragged_flat_values"]
    lengths = np.asarray(features[f"{name}/ragged_row_lengths_0"], np.int64)
    _check_counts(lengths, len(values))
    ends = np.cumsum(lengths)
    return [values[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _check_counts(counts: Int[np.ndarray, " n"], total: int) -> None:
    """Raises ValueError unless counts divide a list of a length into lists."""
    if not ((counts >= 0) & (counts <= total)).all() or counts.sum() != total:
        raise ValueError(
            f"record: expected counts that divide a list of {total}, got others; do: build the "
            "data set anew"
        )


def _int64(values: Any) -> Int[np.ndarray, " n"]:
    return np.array([int(value) for value in values], np.int64)


def _texts(features: dict[str, tf_example.Value]) -> dict[str, list[str]]:
    kinds = ("text",)
    return {
        name: [one.decode() for one in _bytes(features[name])]
        for name, (kind, _) in _FEATURES.items()
        if kind in kinds and name != "object/counts"
    }


def _integers(features: dict[str, tf_example.Value]) -> dict[str, Int[np.ndarray, " _"]]:
    """Returns the integers; a list without any has no kind of its own."""
    return {
        name: np.asarray(value, np.int64)
        for name, value in features.items()
        if not len(value) or (isinstance(value, np.ndarray) and value.dtype == np.int64)
    }


def _bytes(value: tf_example.Value) -> list[bytes]:
    return list(value) if isinstance(value, list) else []
