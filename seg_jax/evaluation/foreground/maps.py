"""Answers as grey maps: those of a folder, or masks of a model's outlines, boxes or clicks (host).

Whatever else answers yields the same: samples with a map each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from seg_jax.data import grey_images, image_files, sources
from seg_jax.data.findings import Findings
from seg_jax.data.sources import Source
from seg_jax.evaluation.referring import protocols
from seg_jax.evaluation.referring.answers import Answered
from seg_jax.evaluation.referring.protocols import Question
from seg_jax.records import Kind, Sample
from seg_jax.tasks.prompted import Prompted
from seg_jax.tasks.referring import draw
from seg_jax.tasks.task import Draw

_IMAGE = re.compile(r"[^.].*\.(png|jpe?g|bmp|webp|tiff?)", re.IGNORECASE)
Mapped = tuple[Sample, UInt8[np.ndarray, "H W"]]
"""A sample and its map, of the image's size."""


class MapFolder:
    """A folder of maps, each named as its image, for one data set or with a folder for each."""

    def __init__(self, path: Path, sets: Sequence[str]):
        """Looks through the folder.

        Args:
          path: of the folder.
          sets: names of the data sets' folders; maps of several lie in folders of these names.

        Raises:
          ValueError: there is no such folder, or none for a data set.
        """
        self._path = path
        self._files: dict[str, dict[str, Path]] = {}
        self._doubles: list[Path] = []
        """Files whose maps have the name of another one, which counts."""
        if not path.is_dir():
            raise ValueError(f"{path}: expected a folder of maps, got no folder; do: check --maps")
        for name in sets:
            inner = path / name
            if not inner.is_dir() and len(sets) > 1:
                raise ValueError(
                    f"{path}: expected a folder {name} in it, as there are {len(sets)} data sets, "
                    "got none; do: put the maps of each data set into a folder of its name"
                )
            folder = inner if inner.is_dir() else path
            files = sorted(one for one in folder.iterdir() if _IMAGE.fullmatch(one.name))
            # Of a name with two endings the PNG counts.
            files.sort(key=lambda one: one.suffix.lower() != ".png")
            first: dict[str, Path] = {}
            self._doubles += [one for one in files if first.setdefault(one.stem, one) is not one]
            self._files[name] = first

    def answers(self, source: Source, met: Findings, *, released: bool = False) -> Iterator[Mapped]:
        """Yields every sample with its map; one that has none counts as one without foreground.

        Args:
          source: of the samples.
          met: is told of maps that are missing, damaged, dull, of another size, of no image or of
            several.
          released: whether maps of another size are scaled by the nearest pixel, not linearly.

        Raises:
          ValueError: no sample has a map.
        """
        unused = {name: {*files} for name, files in self._files.items()}
        taken = 0
        for one in self._doubles:
            met.add("map left out: another one has its name", str(one))
        for _, sample in sources.readable(source, range(len(source)), met):
            name, stem = sample.key.partition("/")[0], Path(sample.key).stem
            file = self._files[name].get(stem)
            if file is not None and stem not in unused[name]:
                met.add("map taken for several images, whose names are alike", str(file))
            unused[name].discard(stem)
            taken += file is not None
            yield sample, self._read(sample, file, met, released=released)
        for name, stems in unused.items():
            for stem in sorted(stems):
                met.add("map of no image of the data is left out", str(self._files[name][stem]))
        if not taken:
            raise ValueError(
                f"{self._path}: expected maps named as the images, got none of {len(source)}; do: "
                "name each map as its image, as COD10K-CAM-1-Aquatic-1-BatFish-1.png"
            )

    def _read(
        self, sample: Sample, file: Path | None, met: Findings, *, released: bool
    ) -> UInt8[np.ndarray, "H W"]:
        height, width = sample.image.shape[:2]
        nothing = np.zeros((height, width), np.uint8)
        if file is None:
            met.add("no map: counted as one without foreground", sample.key)
            return nothing
        try:
            grey = grey_images.read(file).pixels
        except image_files.Unreadable as error:
            met.add(f"{error.reason}: counted as one without foreground", f"{file}: {error.fault}")
            return nothing
        if 0 < grey.max() <= 1:
            met.add("map has greys of 0 and 1 alone, of 255", str(file))
        if grey.shape == (height, width):
            return grey
        met.add(
            "map of another size than its image: scaled",
            f"{file}: {grey.shape[0]}x{grey.shape[1]} for {height}x{width}",
        )
        return scaled_map(grey, (height, width), nearest=released)


def scaled_map(
    grey: UInt8[np.ndarray, "h w"], size: tuple[int, int], *, nearest: bool = False
) -> UInt8[np.ndarray, "H W"]:
    """Returns a map at another size, height and width, as OpenCV scales it."""
    import cv2

    how = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(grey, size[::-1], interpolation=how), np.uint8)


def of_outlines(answered: Iterable[Answered]) -> Iterator[Mapped]:
    """Yields samples with the masks that answers outline, 0 and 255.

    Args:
      answered: questions about samples with their answers, see `referring.answers`.
    """
    for question, text, _ in answered:
        drawn = draw(text, question.kind, question.sample.image.shape[:2])
        yield question.sample, 255 * drawn.mask.astype(np.uint8)


def pointing_questions(source: Source, task: Prompted, met: Findings) -> Iterator[Question]:
    """Yields one question about each image as a whole, answered by boxes and clicks.

    Args:
      source: of the samples.
      task: whose words it has.
      met: is told of samples that cannot be read, which are passed over.
    """
    for index, sample in sources.readable(source, range(len(source)), met):
        named = Question(sample, index, 0, "text", Kind.MASK, "", "", "")
        yield protocols.pointing_question(task, named)


def of_clicks(answered: Iterable[Answered], task: Prompted, draw: Draw) -> Iterator[Mapped]:
    """Yields samples with the maps that a model draws of boxes and clicks.

    Args:
      answered: questions about samples with their answers.
      task: that reads them.
      draw: the model that draws.
    """
    for question, text, _ in answered:
        found = task.predict(question.example, text, draw=draw)
        assert found.grey is not None
        yield question.sample, found.grey
