"""Reads data sets of Hugging Face's hub: tables of images with conversations or objects.

Tables are Parquet, as the hub has them, or Arrow, as `save_to_disk` writes them. Columns are
`image` (or `images`, of which each row has one) and `messages` or `conversations`, or a question
and an answer, as `conversations.py` reads them, or `objects` (`hub_objects.py`). What else a table
has is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seg_jax.data.formats import (
    conversations,
    drawn,
    foreign,
    hub_objects,
    picture_paths,
    table_rows,
)
from seg_jax.data.formats.annotations import Annotations
from seg_jax.data.formats.conversations import Book, Picture, Rules

IMAGES = ("image", "images")
TALKS = ("messages", "conversations")
_FILE = re.compile(r"(\w+?)(-\d+-of-\d+)?\.(parquet|arrow)")
_SHARD = re.compile(r"data-\d+-of-\d+\.arrow|cache-.*")
"""Files of `save_to_disk`, and what datasets keep of maps beside them, which is passed over."""


def read(source: Path, *, rules: Rules) -> Annotations:
    """Returns the images of every Parquet and Arrow file below a folder.

    SPLIT-00000-of-00002.parquet is of that split, as is what lies in a folder named train, val, ..

    Args:
      source: the folder.
      rules: how conversations are read.

    Raises:
      ValueError: there is no such file, one is damaged or has no such columns, or pyarrow is not
        there.
    """
    found = Annotations([])
    ending = r"(?!cache-).+\.(parquet|arrow)"
    every = picture_paths.files_below(source, ending=ending, met=found.findings)
    if not every:
        what, advice = foreign.found_instead(source)
        raise ValueError(
            f"{source}: expected Parquet or Arrow files, as data/train-00000-of-00001.parquet, got "
            f"{what}; do: {advice}"
        )
    books: dict[str, Book] = {}
    for path in every:
        image, *named = _columns(path)
        split = _split(path.relative_to(source))
        book = books.setdefault(split, Book(rules, found.findings))
        kinds = hub_objects.class_names(path) if named == [hub_objects.COLUMN] else None
        for row, value in enumerate(table_rows.texts(path, named, image)):
            where = f"{path}, row {row}"
            name = f"{path.relative_to(source).with_suffix('').as_posix()}/{row}"
            picture = Picture(name, path, row, image)
            if kinds is not None:
                told = hub_objects.regions_of(
                    value[hub_objects.COLUMN], kinds, where=where, met=found.findings
                )
                book.add_objects(told, where, picture=picture)
            else:
                book.add(_plain(value), where, folders=[path.parent], picture=picture)
    for split, book in books.items():
        found.images += book.images(split)
    return found


def _split(place: Path) -> str:
    """Returns the split that a file is of, by its name or by a folder."""
    match = None if _SHARD.fullmatch(place.name) else _FILE.fullmatch(place.name)
    name = match[1] if match else ""
    if name and not name.isdigit():
        return drawn.SPLITS.get(name.lower(), name)
    return drawn.split_of(place.parent)


def _columns(path: Path) -> list[str]:
    """Returns the names of the columns that are read, that of the image first.

    Raises:
      ValueError: they are not there.
    """
    there = table_rows.columns(path)
    images = [name for name in IMAGES if name in there]
    talks = [[name] for name in TALKS if name in there]
    talks += [[*pair] for pair in conversations.PAIRS if {*pair} <= {*there}]
    talks += [[hub_objects.COLUMN]] * (hub_objects.COLUMN in there)
    if not images or not talks:
        raise ValueError(
            f"{path}: expected columns image and messages, conversations, objects, or a question "
            f"and an answer, got {', '.join(there)[:200]}; do: rename or make them"
        )
    return [images[0], *talks[0]]


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row as a conversation: lists of structs as lists of objects."""
    found = dict(value)
    for name in TALKS:
        turns = found.get(name)
        if isinstance(turns, Mapping):  # A struct of lists, as older tables have sequences.
            found[name] = hub_objects.rows_of(turns)
    return found
