"""The one encoder: questions, answers and images to the arrays that a model reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from seg_jax.geometry import grid
from seg_jax.grammar import chat
from seg_jax.grammar.tokenizer.tokens import Tokenizer
from seg_jax.models.facts.image_layout import ImageLayout
from seg_jax.records import (
    Batch,
    Images,
    Packing,
    Prompts,
    Tokens,
    WrittenAnswer,
    check_least,
)
from seg_jax.tasks.task import Example, Task, TooLong, Unfit

VISUAL_TOKENS = 1280
"""Most visual tokens of a row for a published checkpoint's images, where nothing else is set."""
MAX_VISUAL_TOKENS = 2**16
"""More visual tokens than any published checkpoint's images have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Native:
    """Images keep their size, in a frame of whole visual tokens (Kimi)."""

    limit: int = 4096
    """Most whole patches of an image; a larger one is scaled down (`in_token_limit`)."""
    pad: bool = True
    """Whether black fills the frame right and below (`pad_input`); else the edges are cut off."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Static shapes of a row and how its images are cut."""

    patch: int = 14
    """Side of a patch in pixels."""
    merge: int = 2
    """Patches per side that become one language token."""
    window_tokens: int = 4
    """Merged visual tokens per side of an attention window."""
    min_pixels: int = 56 * 56
    """Least area of an image once its sides are scaled to whole visual tokens (Qwen)."""
    max_pixels: int = 28 * 28 * VISUAL_TOKENS
    """Largest area of an image once its sides are scaled to whole visual tokens (Qwen)."""
    native: Native | None = None
    """How images are kept at their size instead (Kimi); None: they are scaled."""
    max_patches: int = 5120
    """Patches per row, padding included."""
    max_prompt: int = 1536
    """Tokens of a prompt, image tokens included."""
    max_question: int = 128
    """Tokens of a prompt from the question on; `max_prompt` counts them too."""
    max_answer: int = 1024
    """Tokens of an answer, end token included."""
    canvas: tuple[int, int] = (1024, 1024)
    """Height and width of the canvas that true masks are packed on."""
    buckets: int = 1
    """Number of lengths that a batch of prompts may have when answers are sampled or evaluated:
    max_prompt and max_patches in so many equal steps. Each batch takes the least that holds it."""

    def __post_init__(self):
        sizes = ("patch", "merge", "window_tokens", "min_pixels", "max_pixels", "buckets")
        sizes += ("max_patches", "max_prompt", "max_question", "max_answer")
        check_least(self, "layout", **dict.fromkeys(sizes, 1))
        if self.max_patches % self.merge**2:
            raise ValueError(
                f"layout.max_patches: expected a multiple of {self.merge**2}, "
                f"got {self.max_patches}"
                f"; do: take {-(-self.max_patches // self.merge**2) * self.merge**2}"
            )
        if self.canvas[0] % 32 or min(self.canvas) < 1:
            raise ValueError(
                f"layout.canvas: expected a height in 32s and a width, got {self.canvas}"
                "; do: give a height that 32 divides and a width of 1 or more"
            )

    def check_areas(self) -> None:
        """Raises ValueError for areas that mean nothing: native images keep their size.

        A run is held to it. A stored layout is not: folders with both are read as they are.
        """
        areas = (self.min_pixels, self.max_pixels)
        if self.native is not None and areas != (Layout.min_pixels, Layout.max_pixels):
            raise ValueError(
                "layout.min_pixels, max_pixels: expected their defaults beside native, which "
                f"keeps images at their size, got {areas}; do: set layout.native.limit"
            )


PatchGrid = tuple[int, int]
"""Rows and columns of an image in patches."""


class PatchedImage(NamedTuple):
    """An image at the size that a model sees, cut into patches in merge-block order (host)."""

    patches: UInt8[np.ndarray, "S C"]
    grid: PatchGrid


class Turn(NamedTuple):
    """Token ids of one conversation; the prompt ends where the answer begins."""

    prompt: list[int]
    answer: list[int]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Tokenizer and layout together; every route to a model goes through here."""

    tokenizer: Tokenizer
    layout: Layout

    def batch_row(
        self, examples: Sequence[Example], *, rows: int | None = None, length: int | None = None
    ) -> Batch:
        """Returns an SFT row (no batch axis): an image and the questions about it.

        Args:
          examples: questions about one image.
          rows: number of rows to pack the questions into, the longest first, each where it still
            fits; what fits in none is left out. None: a row each.
          length: tokens of a row; None: the layout's longest question and answer.

        Raises:
          TooLong: prompt, answer or image exceeds the layout, or a question the row.
          ValueError: the examples are not about one image.
        """
        image = examples[0].image
        # A task that stretches images does so for each question.
        others = [example.image for example in examples if example.image is not image]
        if not all(np.array_equal(other, image) for other in others):
            raise ValueError(
                f"sample {examples[0].key}: expected examples about one image, got several; "
                "do: encode the examples of each image on their own"
            )
        images, patches = self.image(image)
        turns = [self.turn(e.question, patches, e.answer, system=e.system) for e in examples]
        # All turns begin alike, up to the question; the image must be in that part.
        head = self._head(turns[0].prompt)
        if any(turn.prompt[: len(head)] != head for turn in turns):
            raise ValueError(
                "tokenizer: expected a chat template with the image before the question, got "
                "another"
                "; do: take a model whose template has the image first"
            )
        length = length or self.layout.max_question + self.layout.max_answer
        packed = self._packed(turns, len(head), rows=rows or len(turns), length=length)
        room = self.layout.max_prompt - self.layout.max_question
        tokens = self._tokens(head, patches, start=room - len(head), length=room)
        return Batch(tokens, images, *packed)

    def _head(self, prompt: list[int]) -> list[int]:
        """Returns the part of a prompt that questions about an image share in SFT rows.

        Raises:
          TooLong: it is longer than the layout allows.
        """
        last = max(i for i, token in enumerate(prompt) if token == self.tokenizer.image_id)
        head, room = prompt[: last + 2], self.layout.max_prompt - self.layout.max_question
        if len(head) > room:
            raise TooLong(
                f"prompt: expected at most {room} tokens before the question, got {len(head)}; "
                "do: raise layout.max_prompt"
            )
        return head

    def least_size(self, height: int, width: int, *, shared: bool = False) -> tuple[int, int]:
        """Returns the least tokens and patches that a row about an image of a size takes.

        Args:
          height: of the image in pixels.
          width: of the image in pixels.
          shared: whether questions share the image, as in SFT rows of one image.

        Raises:
          Unfit: no row of the layout can hold it.
        """
        fit = fit_image(self.layout, height, width)
        rows, columns = (side // self.layout.patch for side in fit.framed)
        prompt = self.turn("", (rows, columns)).prompt
        if shared:
            self._head(prompt)
        return len(prompt), rows * columns

    def _packed(self, turns: list[Turn], head: int, *, rows: int, length: int):
        """Returns ids, targets, weights and packing of questions and answers without the head."""
        ids, targets = np.full((2, rows, length), self.tokenizer.pad_id, np.int32)
        weights = np.zeros((rows, length), np.float32)
        packing = Packing(*np.zeros((2, rows, length), np.int32))
        filled, alone = np.zeros(rows, int), rows == len(turns)
        for turn in turns if alone else sorted(turns, key=lambda turn: -sum(map(len, turn))):
            row_ids, asked = [*turn.prompt[head:], *turn.answer], len(turn.prompt) - head
            if asked > self.layout.max_question:
                raise TooLong(
                    f"question: expected at most {self.layout.max_question} tokens, got "
                    f"{asked}; do: raise layout.max_question"
                )
            if len(row_ids) > length:
                raise TooLong(
                    f"question: expected at most {length} tokens in a row, got a question and "
                    f"answer of {len(row_ids)}; do: raise feed.packed_tokens"
                )
            row = int(np.argmin(filled))
            begin, end = filled[row], filled[row] + len(row_ids)
            if end > length:
                continue
            filled[row] = end
            ids[row, begin:end] = row_ids
            targets[row, begin : end - 1] = row_ids[1:]
            weights[row, begin + asked - 1 : end - 1] = 1.0
            packing.segments[row, begin:end] = packing.segments[row].max() + 1
            packing.columns[row, begin:end] = np.arange(len(row_ids))
        return ids, targets, weights, packing

    def prompt_row(
        self, task: Task, example: Example, *, answer_tokens: int | None = None
    ) -> Prompts:
        """Returns a prompt (no batch axis), right-aligned, with the task's truth record.

        Args:
          task: that asks and judges.
          example: its question.
          answer_tokens: columns for the true answer as it is written; None: without it.

        Raises:
          TooLong: prompt, image, truth or its answer exceeds the layout.
          ValueError: nothing judges the answer.
        """
        truth = task.truth(example, canvas=self.layout.canvas)
        tokens, images = self.question(example.image, example.question, system=example.system)
        if answer_tokens is None:
            return Prompts(tokens, images, truth)
        return Prompts(tokens, images, truth, self._answer_row(example, answer_tokens))

    def _answer_row(self, example: Example, length: int) -> WrittenAnswer:
        """Returns the true answer of an example in so many columns (no batch axis)."""
        one = (self.layout.merge, self.layout.merge)  # The image's size is in the prompt alone.
        ids = self.turn(example.question, one, example.answer).answer
        if len(ids) > length:
            raise TooLong(
                f"answer: expected at most {length} tokens in the true answer, got {len(ids)}; "
                "do: raise sampling.max_tokens, or leave policy.truth out"
            )
        row = np.full(length, self.tokenizer.pad_id, np.int32)
        row[: len(ids)] = ids
        return WrittenAnswer(row, np.arange(length) < len(ids))

    def question(
        self, image: UInt8[np.ndarray, "H W 3"], text: str, *, system: str | None = None
    ) -> tuple[Tokens, Images]:
        """Returns the prompt for a question about an image, right-aligned (no batch axis)."""
        images, patches = self.image(image)
        prompt = self.turn(text, patches, system=system).prompt
        start = self.layout.max_prompt - len(prompt)
        return self._tokens(prompt, patches, start=start, length=self.layout.max_prompt), images

    def image(self, image: UInt8[np.ndarray, "H W 3"]) -> tuple[Images, PatchGrid]:
        """Returns the image as padded patches (no batch axis), and its rows and columns of them."""
        layout = self.layout
        patches, (rows, columns) = self.image_patches(image)
        count = rows * columns
        pad = layout.max_patches - count
        images = Images(
            patches=np.pad(patches, ((0, pad), (0, 0))),
            place=np.pad(grid.patch_positions(rows, columns, layout.merge), ((0, pad), (0, 0))),
            window=np.pad(
                grid.windows(rows, columns, merge=layout.merge, window_tokens=layout.window_tokens),
                (0, pad),
                constant_values=-1,
            ),
            image=np.pad(np.zeros(count, np.int32), (0, pad), constant_values=-1),
        )
        return images, (rows, columns)

    def image_patches(self, image: UInt8[np.ndarray, "H W 3"]) -> PatchedImage:
        """Returns an image at the size that the model sees, cut into patches.

        Raises:
          TooLong: there are more patches than the layout has room for.
          Unfit: no image of this shape can be cut.
        """
        layout = self.layout
        scaled, (height, width) = fit_image(layout, *image.shape[:2])
        whole = _frame(_resize(image, *scaled), height, width)
        size = height // layout.patch, width // layout.patch
        return PatchedImage(grid.patchify(whole, layout.patch, layout.merge), size)

    def image_from_patches(self, images: Images, number: int = 0) -> UInt8[np.ndarray, "H W 3"]:
        """Returns an image of a row (no batch axis), put together from its patches.

        It is what the model sees: the inverse of `image`, up to the resizing.

        Args:
          images: of the row.
          number: of the image within the row.
        """
        mine = images.image == number
        place, patch = images.place[mine], self.layout.patch
        rows, columns = place.max(0) + 1
        image = np.zeros((rows, columns, 3, patch, patch), np.uint8)
        image[place[:, 0], place[:, 1]] = images.patches[mine].reshape(-1, 3, patch, patch)
        return image.transpose(0, 3, 1, 4, 2).reshape(rows * patch, columns * patch, 3)

    def turn(
        self,
        question: str,
        patches: PatchGrid,
        answer: str | None = None,
        *,
        system: str | None = None,
    ) -> Turn:
        """Returns the ids of a question about one image and, if given, of its answer.

        Args:
          question: of the user.
          patches: rows and columns of the image.
          answer: of the assistant.
          system: what the system turn says; None: what the chat template has.

        Raises:
          TooLong: the prompt or the answer exceeds the layout.
        """
        prompt, answer_ids = chat.turn(
            self.tokenizer,
            question,
            visual_tokens=patches[0] * patches[1] // self.layout.merge**2,
            answer=answer,
            system=system,
        )
        for name, ids, most in (
            ("prompt", prompt, self.layout.max_prompt),
            ("answer", answer_ids, self.layout.max_answer),
        ):
            if len(ids) > most:
                raise TooLong(
                    f"{name}: expected at most {most} tokens in the {name}, got {len(ids)}; "
                    f"do: raise layout.max_{name}"
                )
        return Turn(prompt, answer_ids)

    def _tokens(self, ids: list[int], patches: PatchGrid, *, start: int, length: int) -> Tokens:
        row = np.full(length, self.tokenizer.pad_id, np.int32)
        row[start : start + len(ids)] = ids
        segments = np.zeros(length, np.int32)
        segments[start : start + len(ids)] = 1
        is_visual = np.asarray(ids) == self.tokenizer.image_id
        where = np.full(length, -1, np.int32)
        where[start : start + len(ids)][is_visual] = np.arange(int(is_visual.sum()))
        positions = np.zeros((3, length), np.int32)
        placed = grid.rotary_positions(is_visual, [patches], merge=self.layout.merge)
        positions[:, start : start + len(ids)] = placed.positions
        return Tokens(row, segments, positions, where)


def fit_image(layout: Layout, height: int, width: int) -> grid.Fit:
    """Returns the sizes of an image on its way to whole visual tokens.

    Raises:
      TooLong: there are more patches than the layout has room for.
      Unfit: no image of this shape can be cut.
    """
    try:
        fit = _whole_cells(layout, height, width)
    except ValueError as error:
        raise Unfit(str(error)) from None
    rows, columns = (side // layout.patch for side in fit.framed)
    if rows * columns > layout.max_patches:
        knob = "max_pixels" if layout.native is None else "native.limit"
        raise TooLong(
            f"image: expected at most {layout.max_patches} patches, got {rows * columns} "
            f"({fit.framed[0]} x {fit.framed[1]} pixels); do: lower layout.{knob} or raise "
            "layout.max_patches"
        )
    return fit


def _whole_cells(layout: Layout, height: int, width: int) -> grid.Fit:
    if layout.native is not None:
        return grid.native_fit(
            height,
            width,
            patch=layout.patch,
            merge=layout.merge,
            limit=layout.native.limit,
            pad=layout.native.pad,
        )
    whole = grid.smart_resize(
        height,
        width,
        patch=layout.patch,
        merge=layout.merge,
        min_pixels=layout.min_pixels,
        max_pixels=layout.max_pixels,
    )
    return grid.Fit(whole, whole)


def _resize(image: UInt8[np.ndarray, "H W 3"], height: int, width: int):
    """Returns the image at the size, resampled as the official processors do."""
    if image.shape[:2] == (height, width):
        return image
    from PIL import Image

    # Only Pillow's bicubic on uint8 matches the processors that checkpoints were trained with.
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def _frame(image: UInt8[np.ndarray, "H W 3"], height: int, width: int):
    """Returns the image with black right and below it, or its middle, at the size."""
    lost = [max(0, has - side) for has, side in zip(image.shape, (height, width), strict=False)]
    top, left = (round(pixels / 2) for pixels in lost)
    image = image[top : top + height, left : left + width]
    lacking = height - image.shape[0], width - image.shape[1]
    return np.pad(image, ((0, lacking[0]), (0, lacking[1]), (0, 0))) if any(lacking) else image


def layout_of(images: ImageLayout, *, window_tokens: int = 4) -> Layout:
    """Returns rows for one image as a published checkpoint cuts it.

    Args:
      images: how it cuts images.
      window_tokens: visual tokens per side of an attention window.
    """
    shape: dict[str, Any] = {}
    if images.native_limit is not None:
        shape["native"] = Native(limit=images.native_limit, pad=images.native_pad)
    if images.min_pixels is not None and images.max_pixels is not None:
        shape |= {"min_pixels": images.min_pixels, "max_pixels": images.max_pixels}
    return Layout(
        patch=images.patch,
        merge=images.merge,
        window_tokens=window_tokens,
        max_patches=images.max_patches,
        max_prompt=images.max_patches // images.merge**2 + 2 * Layout.max_question,
        **shape,
    )
