"""Formats of labelling tools, with what reads them (fuzzer's helper)."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import data_formats
import image_mutations
import json_mutations
import label_folders
from byte_mutations import mutated
from harness import Format

_WORDS = (b"0", b"1", b"-1", b"1e999", b"nan", b"0.5", b"a", b"*x", b"&x", b"!!str", b"\xff", b"")


def mutated_words(data: bytes, rng: random.Random) -> bytes:
    """Returns a text with a word exchanged, repeated or gone, or changed byte by byte."""
    if rng.random() < 0.4:
        return mutated(data, rng)
    words = data.split(b" ")
    place = rng.randrange(len(words))
    words[place : place + 1] = [rng.choice(_WORDS), words[place]][: rng.randint(0, 2)]
    return b" ".join(words)


def _maker(name: str) -> Callable[[Path], None]:
    """Returns what writes a folder of one or two images."""

    def make(folder: Path) -> None:
        getattr(label_folders, name)(folder, label_folders.pictures()[:2])
        shutil.rmtree(folder / "out", ignore_errors=True)

    return make


def _format(name: str, **changes: object) -> Format:
    form = Format(
        name=name,
        make=_maker(name),
        mutations={"*.json": json_mutations.mutated_json},
        read=data_formats.build_reader(name),
    )
    return dataclasses.replace(form, **changes)


FORMATS = {
    form.name: form
    for form in (
        _format("yolo", mutations={"*.txt": mutated_words, "*.yaml": mutated_words}),
        _format("labelme"),
        _format("label_studio"),
        _format("cvat", mutations={"*.xml": mutated_words}),
        _format("voc", mutations={"*.txt": mutated_words, "Seg*.png": image_mutations.mutated_png}),
        _format("conversations", read=data_formats.build_reader("conversations", boxes=True)),
    )
}
"""Formats of labelling tools that the fuzzer knows, by name (helper)."""
