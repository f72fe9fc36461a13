"""Shows rows of a run beside the annotations that they were made of, and judges them (host)."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from seg_jax.data import encode, read_back
from seg_jax.data.encode import Encoder, Layout
from seg_jax.data.exports import overlay
from seg_jax.data.findings import Findings
from seg_jax.data.image_files import RgbImage, Rings
from seg_jax.data.pipeline import Made
from seg_jax.data.read_back import Conversation
from seg_jax.geometry import boxes, polygon
from seg_jax.records import Prompts, Sample, Verdict
from seg_jax.report import gallery
from seg_jax.report.exhibits import Exhibit, Panel
from seg_jax.tasks.task import Example, Task

_SHOWN_PX = 480
"""Longer side of an image that is kept to be shown."""
_SMALLER = 0.9
"""An image counts as made smaller that has less than this share of its pixels."""
_STRETCHED = 1.1
"""From this change of the ratio of its sides on an image counts as stretched."""


_NOT_TO_THE_PIXEL = "answer simplified or rounded: not the annotation to the pixel"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """One conversation of a row, and how well it fits what was annotated."""

    key: str
    """Key of the sample."""
    question: str
    answer: str
    verdict: Verdict | None
    """None for words that nothing reads, as names."""
    agreement: float | None
    """As `Task.agreement` says; None where nothing can be compared."""
    picture_error: float
    """Mean difference in grey levels, 0..255, between the image that the patches make and the
    sample's own, resized anew; 0: they are the same to the bit."""
    visual_tokens: int
    question_tokens: int
    answer_tokens: int

    @property
    def rank(self) -> tuple[float, ...]:
        """Least for the worst: a wrong image, an answer that cannot be read, then agreement."""
        agreement = 2.0 if self.agreement is None else self.agreement
        return (-self.picture_error, float(self.verdict in (None, Verdict.OK)), agreement)

    def as_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return {**vars(self), "verdict": None if self.verdict is None else self.verdict.name}


class Looks:
    """Looks at rows one by one, keeps all numbers and the images of the worst ones."""

    def __init__(self, task: Task, encoder: Encoder, *, shown: int):
        """Begins with none.

        Args:
          task: that asked.
          encoder: that made the rows.
          shown: conversations whose images are kept.
        """
        self.all: list[Look] = []
        self.images = 0
        """Images that were looked at."""
        self.met = Findings()
        """What rows lack of what was annotated, and how their images were changed."""
        self._task, self._encoder, self._shown = task, encoder, shown
        self._worst: list[tuple[tuple[float, ...], int, Exhibit]] = []

    def exhibits(self) -> tuple[Exhibit, ...]:
        """Returns the worst conversations, the worst of all first."""
        ranked = sorted(self._worst, key=lambda one: (one[0], one[1]), reverse=True)
        return tuple(exhibit for *_, exhibit in ranked)

    def ranked(self) -> list[Look]:
        """Returns all conversations, the worst first."""
        return sorted(self.all, key=lambda look: look.rank)

    def add(self, made: Made) -> None:
        """Looks at all conversations of a row."""
        found = read_back.conversations(self._encoder, made.row)
        for number, (sample, examples) in enumerate(zip(made.samples, made.examples, strict=True)):
            image = self._encoder.image_from_patches(_alone(made.row.images, number), number)
            error = _picture_error(image, examples[0].image, self._encoder.layout)
            self._note_image(sample, examples)
            mine = [one for one in found if one.image == number]
            if len(examples) > len(mine):
                self.met.add(
                    "question left out: its row has no room for it",
                    sample.key,
                    count=len(examples) - len(mine),
                    advice="raise feed.packed_rows or feed.packed_tokens",
                )
            for one, example in self._with_examples(mine, examples):
                self._add(one, example, sample, image=image, error=error, row=made.row)
            self.images += 1

    def _with_examples(
        self, found: Sequence[Conversation], examples: Sequence[Example]
    ) -> Iterator[tuple[Conversation, Example]]:
        """Yields conversations with the questions that they were made of, each of these once."""
        tokenizer = self._encoder.tokenizer
        left = [(tokenizer.decode(tokenizer.encode(e.question)).strip(), e) for e in examples]
        for one in found:
            alike = [
                place
                for place, (question, example) in enumerate(left)
                if question == one.question and one.answer in (None, example.answer)
            ]
            alike += [place for place, (question, _) in enumerate(left) if question == one.question]
            yield one, left.pop([*alike, 0][0])[1]

    def _note_image(self, sample: Sample, examples: Sequence[Example]) -> None:
        """Tells what becomes of the size of an image."""
        height, width = examples[0].image.shape[:2]
        fit = encode.fit_image(self._encoder.layout, height, width)
        sizes = f"{sample.key}: {_size(sample.image)} to {fit.framed[1]} x {fit.framed[0]}"
        if fit.scaled[0] * fit.scaled[1] < _SMALLER * height * width:
            self.met.add("image made smaller", sizes, advice="raise layout.max_pixels if it hurts")
        stored = sample.image.shape[0] / sample.image.shape[1]
        ratio = fit.scaled[0] / fit.scaled[1] / stored
        if max(ratio, 1 / ratio) > _STRETCHED:
            self.met.add("image stretched by more than a tenth", sizes)
        if fit.framed[0] < fit.scaled[0] or fit.framed[1] < fit.scaled[1]:
            self.met.add("edges of the image cut off", sizes, advice="set layout.native.pad")

    def _add(
        self,
        one: Conversation,
        example: Example,
        sample: Sample,
        *,
        image: RgbImage,
        error: float,
        row: Any,
    ) -> None:
        """Judges a conversation; its images are kept while it is one of the worst."""
        truth = row.truth if isinstance(row, Prompts) else None
        text = example.answer if one.answer is None else one.answer
        read, is_words = self._task.predict(example, text), getattr(example, "kind", 0) is None
        look = Look(
            key=sample.key,
            question=one.question,
            answer=text,
            verdict=None if is_words else read.verdict,
            agreement=self._task.agreement(example, text, truth=truth),
            picture_error=round(error, 3),
            visual_tokens=one.visual_tokens,
            question_tokens=one.question_tokens,
            answer_tokens=one.answer_tokens
            or len(self._encoder.tokenizer.encode(text)) + 1,  # It ends by a token more.
        )
        lost = self._task.losses(example)
        where = f"{sample.key}: {one.question}"
        for reason in lost:
            self.met.add(reason, where)
        if look.agreement is not None and look.agreement < 1:
            self.met.add(_NOT_TO_THE_PIXEL, f"{where}, {look.agreement:.3f}")
        worst, place = tuple(-part for part in look.rank), -len(self.all)
        self.all.append(look)
        full = len(self._worst) == self._shown
        if full and (worst, place) < self._worst[0][:2]:
            return
        rings = read.rings_unit if truth is None else self._task.truth_rings(truth)
        exhibit = self._exhibit(look, sample, example, image=image, rings=rings, lost=lost)
        put = heapq.heappushpop if full else heapq.heappush
        put(self._worst, (worst, place, exhibit))

    def _exhibit(
        self,
        look: Look,
        sample: Sample,
        example: Example,
        *,
        image: RgbImage,
        rings: Rings,
        lost: Iterable[str],
    ) -> Exhibit:
        """Returns what a row has beside what was annotated."""
        mask = getattr(example, "mask", None)
        own = _small(sample.image)
        drawn = _in_frame(rings, example.image.shape[:2], self._encoder.layout)
        panels = [
            Panel(
                "as the model gets it",
                drawn,
                iou=look.agreement,
                verdict=look.verdict,
                text=look.answer,
            ),
            Panel("annotation", [] if mask is None else _outlines(mask), image=own),
        ]
        if len(sample.masks) > 1:
            every = [ring for mask in sample.masks for ring in _outlines(mask)]
            names = itertools.zip_longest(sample.phrases, sample.names, fillvalue="")
            words = "\n".join(", ".join(filter(None, [*some, name])) for some, name in names)
            panels.append(
                Panel("all masks of the image", every, text=words, image=own, heading="Names")
            )
        note = [
            sample.key,
            f"{_size(sample.image)} as {_size(image)} pixels",
            f"tokens: {look.visual_tokens} image, {look.question_tokens} prompt, "
            f"{look.answer_tokens} answer",
            *([f"image differs by {look.picture_error} levels"] if look.picture_error else []),
            *lost,
        ]
        return Exhibit(_small(image), look.question, panels, note=" · ".join(note))


def _alone(images: Any, number: int) -> Any:
    """Returns the patches of one image of a row."""
    mine = images.image == number
    return type(images)(*(leaf[mine] for leaf in images))


def _picture_error(image: RgbImage, whole: RgbImage, layout: Layout) -> float:
    """Returns how far an image made of patches is from a whole one, in grey levels.

    The whole one is resized and framed by Pillow alone: what cut it into patches is not asked.
    """
    fit = encode.fit_image(layout, *whole.shape[:2])
    wanted, (rows, columns) = Image.fromarray(whole), fit.scaled
    if wanted.size != (columns, rows):
        wanted = wanted.resize((columns, rows), Image.Resampling.BICUBIC)
    left, top = _cut_px(fit)
    height, width = fit.framed
    framed = np.asarray(wanted.crop((left, top, left + width, top + height)))
    if framed.shape != image.shape:
        return 255.0
    if np.array_equal(framed, image):
        return 0.0
    return max(0.001, float(np.abs(framed.astype(np.int16) - image).mean()))


def _cut_px(fit: Any) -> tuple[int, int]:
    """Returns columns and rows that are cut off on the left and above."""
    top, left = (
        round(max(0, has - side) / 2) for has, side in zip(fit.scaled, fit.framed, strict=True)
    )
    return left, top


def _in_frame(rings: Rings, size: tuple[int, int], layout: Layout) -> list[np.ndarray]:
    """Returns rings, unit in an image, as they lie in its frame; corners of boxes as boxes."""
    fit = encode.fit_image(layout, *size)
    scaled, framed = np.array(fit.scaled[::-1]), np.array(fit.framed[::-1])
    whole = [boxes.corners(np.ravel(ring)) if len(ring) == 2 else ring for ring in rings]
    return [(np.asarray(ring) * scaled - _cut_px(fit)) / framed for ring in whole]


def _outlines(mask: Any) -> list[np.ndarray]:
    """Returns the outlines of a mask as fine as a page shows them, unit."""
    rings, side = gallery.outlines(mask), max(mask.shape)
    if side <= _SHOWN_PX:
        return rings
    size = np.array(mask.shape[::-1]) * _SHOWN_PX / side
    return [
        ring / size for ring in polygon.simplify_each([r * size for r in rings], [0.5] * len(rings))
    ]


def _small(image: RgbImage) -> RgbImage:
    """Returns an image as large as it is shown at most."""
    return overlay.resize(image, min(1.0, _SHOWN_PX / max(image.shape)))


def _size(image: RgbImage) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
