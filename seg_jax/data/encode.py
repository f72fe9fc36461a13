"""The one encoder: questions, answers and pictures to the arrays that a model reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8, UInt32

from seg_jax.geometry import grid
from seg_jax.grammar import chat
from seg_jax.grammar.tokens import Tokenizer
from seg_jax.records import Batch, Kind, Packing, Pictures, Prompts, Tokens, Truth
from seg_jax.tasks.task import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Static shapes of a row and how its pictures are cut."""

    patch: int = 14
    """Side of a patch in pixels."""
    merge: int = 2
    """Patches per side that become one language token."""
    window_cells: int = 4
    """Merged cells per side of an attention window."""
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    max_patches: int = 5120
    """Patches per row, padding included."""
    max_prompt: int = 1536
    """Tokens of a prompt, picture tokens included."""
    max_question: int = 128
    """Of these the tokens from the question on."""
    max_answer: int = 1024
    """Tokens of an answer, end token included."""
    canvas: tuple[int, int] = (1024, 1024)
    """Height and width of the canvas that true masks are packed on."""

    def __post_init__(self):
        if self.max_patches % self.merge**2:
            raise ValueError(
                f"layout.max_patches: expected a multiple of {self.merge**2}, "
                f"got {self.max_patches}"
            )
        if self.canvas[0] % 32:
            raise ValueError(f"layout.canvas: expected a height in 32s, got {self.canvas[0]}")


PatchGrid = tuple[int, int]
"""Rows and columns of a picture in patches."""


class TooLong(ValueError):
    """An example does not fit its row."""


class Turn(NamedTuple):
    """Token ids of one conversation, prompt up to where the answer begins."""

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
        """Returns an SFT row (no batch axis): a picture and the questions about it.

        Args:
          examples: about one picture.
          rows: to pack the questions into, the longest first, each where it still fits; what
            fits in none is left out. None: a row each.
          length: tokens of such a row; None: the layout's longest question and answer.

        Raises:
          TooLong: prompt, answer or picture exceeds the layout, or a question the row.
          ValueError: the examples are not about one picture.
        """
        image = examples[0].image
        if any(example.image is not image for example in examples):
            raise ValueError("expected examples about one picture, got several; encode each alone")
        pictures, patches = self.picture(image)
        turns = [self.turn(e.question, patches, e.answer) for e in examples]
        # All turns begin alike, up to the question; the picture must be in that part.
        split = max(
            i for i, token in enumerate(turns[0].prompt) if token == self.tokenizer.image_id
        )
        head = turns[0].prompt[: split + 2]
        if any(turn.prompt[: split + 2] != head for turn in turns):
            raise ValueError("expected a chat template with the picture before the question")
        length = length or self.layout.max_question + self.layout.max_answer
        packed = self._packed(turns, len(head), rows or len(turns), length)
        room = self.layout.max_prompt - self.layout.max_question
        if len(head) > room:
            raise TooLong(
                f"expected at most {room} tokens before the question, got {len(head)}; "
                "raise layout.max_prompt"
            )
        tokens = self._tokens(head, patches, start=room - len(head), length=room)
        return Batch(tokens, pictures, *packed)

    def _packed(self, turns: list[Turn], head: int, rows: int, length: int):
        """Returns ids, targets, weights and packing of questions and answers without the head."""
        ids, targets = np.full((2, rows, length), self.tokenizer.pad_id, np.int32)
        weights = np.zeros((rows, length), np.float32)
        packing = Packing(*np.zeros((2, rows, length), np.int32))
        filled, alone = np.zeros(rows, int), rows == len(turns)
        for turn in turns if alone else sorted(turns, key=lambda turn: -sum(map(len, turn))):
            told, asked = [*turn.prompt[head:], *turn.answer], len(turn.prompt) - head
            if asked > self.layout.max_question:
                raise TooLong(
                    f"expected at most {self.layout.max_question} tokens in the question, got "
                    f"{asked}; raise layout.max_question"
                )
            if len(told) > length:
                raise TooLong(
                    f"expected at most {length} tokens in a row, got a question and answer of "
                    f"{len(told)}; raise feed.packed_tokens"
                )
            row = int(np.argmin(filled))
            begin, end = filled[row], filled[row] + len(told)
            if end > length:
                continue
            filled[row] = end
            ids[row, begin:end] = told
            targets[row, begin : end - 1] = told[1:]
            weights[row, begin + asked - 1 : end - 1] = 1.0
            packing.segments[row, begin:end] = packing.segments[row].max() + 1
            packing.columns[row, begin:end] = np.arange(len(told))
        return ids, targets, weights, packing

    def prompt_row(self, example: Example) -> Prompts:
        """Returns a prompt (no batch axis), right-aligned, with the truth.

        Raises:
          TooLong: prompt or picture exceeds the layout.
        """
        if example.kind is None:
            raise ValueError(
                f"sample {example.key}: expected a question whose answer is judged, "
                f"got {example.question!r}"
            )
        tokens, pictures = self.question(example.image, example.question)
        truth = Truth(
            words=pack(example.mask, self.layout.canvas),
            size=np.array(example.mask.shape, np.int32),
            kind=np.array(example.kind, np.int32),
        )
        return Prompts(tokens, pictures, truth)

    def blank_truth(self, kind: Kind) -> Truth:
        """Returns an empty truth for questions whose answer is not known (no batch axis)."""
        height, width = self.layout.canvas
        words = np.zeros((height // 32, width), np.uint32)
        return Truth(words, np.array([height, width], np.int32), np.array(kind, np.int32))

    def question(self, image: UInt8[np.ndarray, "H W 3"], text: str) -> tuple[Tokens, Pictures]:
        """Returns the prompt for a question about a picture, right-aligned (no batch axis)."""
        pictures, patches = self.picture(image)
        prompt = self.turn(text, patches).prompt
        start = self.layout.max_prompt - len(prompt)
        return self._tokens(prompt, patches, start=start, length=self.layout.max_prompt), pictures

    def picture(self, image: UInt8[np.ndarray, "H W 3"]) -> tuple[Pictures, PatchGrid]:
        """Returns the picture as padded patches (no batch axis) and how many rows and columns."""
        layout = self.layout
        height, width = grid.smart_resize(
            *image.shape[:2],
            patch=layout.patch,
            merge=layout.merge,
            min_pixels=layout.min_pixels,
            max_pixels=layout.max_pixels,
        )
        rows, columns = height // layout.patch, width // layout.patch
        count = rows * columns
        if count > layout.max_patches:
            raise TooLong(
                f"expected at most {layout.max_patches} patches, got {count} ({height} x {width} "
                "pixels); lower layout.max_pixels or raise layout.max_patches"
            )
        patches = grid.patchify(_resize(image, height, width), layout.patch, layout.merge)
        pad = layout.max_patches - count
        pictures = Pictures(
            patches=np.pad(patches, ((0, pad), (0, 0))),
            place=np.pad(grid.places(rows, columns, layout.merge), ((0, pad), (0, 0))),
            window=np.pad(
                grid.windows(rows, columns, layout.merge, layout.window_cells),
                (0, pad),
                constant_values=-1,
            ),
            picture=np.pad(np.zeros(count, np.int32), (0, pad), constant_values=-1),
        )
        return pictures, (rows, columns)

    def turn(self, question: str, patches: PatchGrid, answer: str | None = None) -> Turn:
        """Returns the ids of a question about one picture and, if given, of its answer.

        Raises:
          TooLong: the prompt or the answer exceeds the layout.
        """
        prompt, answer_ids = chat.turn(
            self.tokenizer,
            question,
            cells=patches[0] * patches[1] // self.layout.merge**2,
            answer=answer,
        )
        for name, ids, most in (
            ("prompt", prompt, self.layout.max_prompt),
            ("answer", answer_ids, self.layout.max_answer),
        ):
            if len(ids) > most:
                raise TooLong(
                    f"expected at most {most} tokens in the {name}, got {len(ids)}; "
                    f"raise layout.max_{name}"
                )
        return Turn(prompt, answer_ids)

    def _tokens(self, ids: list[int], patches: PatchGrid, *, start: int, length: int) -> Tokens:
        row = np.full(length, self.tokenizer.pad_id, np.int32)
        row[start : start + len(ids)] = ids
        segments = np.zeros(length, np.int32)
        segments[start : start + len(ids)] = 1
        is_cell = np.asarray(ids) == self.tokenizer.image_id
        where = np.full(length, -1, np.int32)
        where[start : start + len(ids)][is_cell] = np.arange(int(is_cell.sum()))
        positions = np.zeros((3, length), np.int32)
        laid = grid.positions(is_cell, [patches], merge=self.layout.merge)
        positions[:, start : start + len(ids)] = laid.positions
        return Tokens(row, segments, positions, where)


def pack(
    mask: Bool[np.ndarray, "H W"], canvas: tuple[int, int]
) -> UInt32[np.ndarray, "K canvas_width"]:
    """Returns the mask packed on a canvas, without a device.

    Raises:
      TooLong: the mask is larger than the canvas.
    """
    height, width = canvas
    if mask.shape[0] > height or mask.shape[1] > width:
        raise TooLong(
            f"expected masks within {canvas}, got {mask.shape}; raise layout.canvas or resize"
        )
    full = np.zeros((height // 32, 4, 8, width), np.uint8)
    full.reshape(height, width)[: mask.shape[0], : mask.shape[1]] = mask
    octets = np.packbits(full, axis=2, bitorder="little")[:, :, 0].astype(np.uint32)
    shifts = np.arange(4, dtype=np.uint32)[:, None] * 8
    return np.bitwise_or.reduce(octets << shifts, axis=1)


def _resize(image: UInt8[np.ndarray, "H W 3"], height: int, width: int):
    """Returns the picture at the size, resampled as the official processor does."""
    if image.shape[:2] == (height, width):
        return image
    from PIL import Image

    # Only Pillow's bicubic on uint8 matches the processors that checkpoints were trained with.
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)
