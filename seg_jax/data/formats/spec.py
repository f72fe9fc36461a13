"""Reads SPEC as it is published: one zip, or its unpacked folder, of images and of choices.

A folder for each subset holds `image2text.json` and `text2image.json`, lists of {"query", "keys",
"label"}: the query is an image and the keys are texts, or the other way round. Paths of images are
relative to the subset's folder, or to the one above.

Source: huggingface.co/datasets/wjpoom/SPEC (data.zip).
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import UInt8
from msgspec import Meta

from seg_jax import files, schemas
from seg_jax.data import image_files

FILES = {"image_to_text": "image2text.json", "text_to_image": "text2image.json"}
SUBSETS = (
    "absolute_size",
    "relative_size",
    "absolute_spatial",
    "relative_spatial",
    "existence",
    "count",
)
MOST_ENTRIES = 200_000
MOST_JSON_BYTES = 64 << 20
_ADVICE = "fetch data.zip of wjpoom/SPEC again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A question of one subset: a query, and keys of which one fits."""

    subset: str
    direction: Literal["image_to_text", "text_to_image"]
    query: str
    """A text, or the path of an image within the data."""
    keys: tuple[str, ...]
    """Texts, or paths."""
    label: int
    where: str
    """File and record, for messages."""

    @property
    def images(self) -> tuple[str, ...]:
        """Paths of the images that it needs."""
        return (self.query,) if self.direction == "image_to_text" else self.keys

    @property
    def texts(self) -> tuple[str, ...]:
        """Texts that it needs."""
        return self.keys if self.direction == "image_to_text" else (self.query,)


_Key = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00\ud800-\udfff]+\Z")]


class _Record(schemas.Record, frozen=True):
    query: _Key
    keys: Annotated[tuple[_Key, ...], Meta(min_length=2, max_length=1000)]
    label: Annotated[int, Meta(ge=0)]


class Published:
    """The choices of the published data; images are read one at a time, nothing is unpacked."""

    def __init__(self, source: Path):
        """Reads all choices and knows that their images are there.

        Raises:
          ValueError: no such data, a record that makes no sense, two that contradict each other, a
            path that leaves the data, an image that is missing. File and record are named.
        """
        self.source = source
        self._entries = _Zip(source) if source.is_file() else _Folder(source)
        roots = self._roots()
        if not roots:
            raise ValueError(
                f"{source}: expected folders with {' and '.join(FILES.values())}, as {SUBSETS[0]}, "
                "got none; do: give data.zip of wjpoom/SPEC, or the folder it was unpacked to"
            )
        self.choices: list[Choice] = []
        for subset, root in roots.items():
            for direction, name in FILES.items():
                path = f"{root}{name}"
                if self._entries.has(path):
                    self.choices += self._read(path, subset, direction, root)
        _check_agreement(self.choices)

    def image(self, path: str) -> UInt8[np.ndarray, "H W 3"]:
        """Returns an image that a choice names.

        Raises:
          ValueError: it is none, or a broken one.
        """
        where = f"{self.source}, {path}"
        return image_files.read(self._entries.read(path, most=image_files.MAX_BYTES), where=where)

    def _roots(self) -> dict[str, str]:
        """Returns the folders of the subsets, which may lie within one another."""
        found: dict[str, str] = {}
        for path in self._entries.names():
            *above, last = PurePosixPath(path).parts
            if last in FILES.values() and above and above[-1] in SUBSETS:
                root = "/".join(above) + "/"
                if found.setdefault(above[-1], root) != root:
                    raise ValueError(
                        f"{self.source}: expected one folder {above[-1]}, got {found[above[-1]]} "
                        f"and {root}; do: remove one"
                    )
        return {name: found[name] for name in SUBSETS if name in found}

    def _read(self, path: str, subset: str, direction: Any, root: str) -> list[Choice]:
        """Returns the choices of a file."""
        file = f"{self.source}, {path}"
        data = self._entries.read(path, most=MOST_JSON_BYTES)
        values = files.parse_json(data, where=file, advice=_ADVICE)
        if not isinstance(values, list) or not values:
            raise ValueError(
                f"{file}: expected a list of records, got {schemas.short_repr(values)}; do: "
                f"{_ADVICE}"
            )
        return [
            self._choice(value, f"{file}, record {number}", subset, direction, root)
            for number, value in enumerate(values)
        ]

    def _choice(self, value: Any, where: str, subset: str, direction: Any, root: str) -> Choice:
        told = schemas.check(value, _Record, where=where, advice=_ADVICE)
        if told.label >= len(told.keys):
            raise ValueError(
                f"{where}: expected a label below its {len(told.keys)} keys, got {told.label}; do: "
                f"{_ADVICE}"
            )
        if len(set(told.keys)) != len(told.keys):
            raise ValueError(f"{where}: expected different keys, got one twice; do: {_ADVICE}")
        query, keys = told.query, told.keys
        if direction == "image_to_text":
            query = self._place(query, root, where)
        else:
            keys = tuple(self._place(key, root, where) for key in keys)
        return Choice(
            subset=subset,
            direction=direction,
            query=query,
            keys=keys,
            label=told.label,
            where=where,
        )

    def _place(self, name: str, root: str, where: str) -> str:
        """Returns where an image lies within the data."""
        parts = PurePosixPath(name).parts
        if PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name:
            raise ValueError(
                f"{where}: expected a path within the data, got {schemas.short_repr(name)}; do: "
                f"{_ADVICE}"
            )
        above = root.rstrip("/").rpartition("/")[0]
        places = [f"{root}{name}", f"{above}/{name}" if above else name]
        for place in places:
            if self._entries.has(place):
                return place
        raise ValueError(
            f"{where}: expected the image {schemas.short_repr(places[0])}, got none; do: {_ADVICE}"
        )


class _Folder:
    """Files below a folder."""

    def __init__(self, source: Path):
        if not source.is_dir():
            raise ValueError(
                f"{source}: expected data.zip of wjpoom/SPEC or its folder, got none; do: check "
                "the path"
            )
        self._source = source

    def names(self) -> Sequence[str]:
        """Returns the paths of the files of choices."""
        found = [path for name in FILES.values() for path in sorted(self._source.rglob(name))]
        return [path.relative_to(self._source).as_posix() for path in found]

    def has(self, path: str) -> bool:
        """Returns whether there is a file."""
        return (self._source / path).is_file()

    def read(self, path: str, *, most: int) -> bytes:
        """Returns the bytes of a file."""
        return files.read_bytes(self._source / path, most=most, advice=_ADVICE)


class _Zip:
    """Entries of an archive, read as they are asked for."""

    def __init__(self, source: Path):
        self._source = source
        try:
            self._archive = zipfile.ZipFile(source)
            entries = self._archive.infolist()
        except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{source}: expected a zip archive, got {type(error).__name__}: {error}; do: "
                f"{_ADVICE}"
            ) from None
        if len(entries) > MOST_ENTRIES:
            raise ValueError(
                f"{source}: expected at most {MOST_ENTRIES} entries, got {len(entries)}; do: "
                f"{_ADVICE}"
            )
        self._entries = {one.filename: one for one in entries if not one.is_dir()}

    def names(self) -> Sequence[str]:
        """Returns the paths of the files of choices."""
        return [name for name in self._entries if name.endswith(tuple(FILES.values()))]

    def has(self, path: str) -> bool:
        """Returns whether there is an entry."""
        return path in self._entries

    def read(self, path: str, *, most: int) -> bytes:
        """Returns the bytes of an entry, which are bounded while they are inflated."""
        where = f"{self._source}, {path}"
        try:
            with self._archive.open(self._entries[path]) as file:
                data = file.read(most + 1)
        except Exception as error:  # A damaged or encrypted entry fails in many ways.
            raise ValueError(
                f"{where}: expected a whole entry, got {type(error).__name__}: {error}; do: "
                f"{_ADVICE}"
            ) from None
        if len(data) > most:
            raise ValueError(f"{where}: expected at most {most} bytes, got more; do: {_ADVICE}")
        return data


def _check_agreement(choices: Sequence[Choice]) -> None:
    """Raises ValueError where the same question has two answers."""
    known: dict[tuple[str, str, str, tuple[str, ...]], Choice] = {}
    for one in choices:
        key = one.subset, one.direction, one.query, tuple(sorted(one.keys))
        other = known.setdefault(key, one)
        if other.keys[other.label] != one.keys[one.label]:
            raise ValueError(
                f"{one.where}: expected the answer of the same question before ({other.where}), "
                f"got another; do: {_ADVICE}"
            )
