"""Lays images out as patches, windows and rotary positions (host).

An image of `gh` x `gw` patches becomes one language token per cell of `merge` x `merge` patches.
In merge-block order the patches of a cell are neighbours (row by row within it), and cells run
row by row: this is the order of `records.Images`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8

MAX_ASPECT = 200
MAX_SIDE = 512
"""Patches that a side of an image kept at its size stays below: MoonViT turns no further."""


class Fit(NamedTuple):
    """How an image becomes one of whole cells: height and width in pixels."""

    scaled: tuple[int, int]
    """What it is resampled to."""
    framed: tuple[int, int]
    """What it is padded or cut to after that."""


class Layout(NamedTuple):
    """Rotary positions of a token row."""

    positions: Int32[np.ndarray, "3 T"]
    """Position along time, height and width."""
    following: int
    """Position of the first token after the row."""


def smart_resize(
    height: int, width: int, *, patch: int, merge: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Returns the size near height and width that whole cells cover within the pixel budget.

    Both sides are multiples of `patch * merge`: rounded to the nearest (halves to even) where that
    fits the budget, else scaled to it and rounded towards it. A side that rounds to nothing counts
    as too few pixels, so no side is ever 0.

    Args:
      height: of the image in pixels, at least 1.
      width: of the image in pixels, at least 1.
      patch: side of a patch in pixels.
      merge: side of a cell in patches.
      min_pixels: least area of the result.
      max_pixels: largest area of the result; a side is never less than one cell, though.

    Raises:
      ValueError: an empty image, or one side more than 200 times the other.

    Source: Qwen2-VL image processor (`smart_resize`), kept to the last rounding.
    """
    if min(height, width) < 1:
        raise ValueError(
            f"grid.smart_resize: expected an image of at least 1x1, got {height}x{width}; do: drop "
            "it"
        )
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(
            f"grid.smart_resize: expected an aspect ratio of at most {MAX_ASPECT}, got "
            f"{height}x{width}; do: crop or drop the image"
        )
    cell = patch * merge
    new_height, new_width = round(height / cell) * cell, round(width / cell) * cell
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(cell, math.floor(height / shrink / cell) * cell)
        new_width = max(cell, math.floor(width / shrink / cell) * cell)
    elif new_height * new_width < min_pixels:
        stretch = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * stretch / cell) * cell
        new_width = math.ceil(width * stretch / cell) * cell
    return new_height, new_width


def native_fit(height: int, width: int, *, patch: int, merge: int, limit: int, pad: bool) -> Fit:
    """Returns the size of an image kept as it is where it can be, in a frame of whole cells.

    Only an image of more whole patches than `limit` is scaled down, both sides alike, to about
    as many. What a side lacks to whole cells is added right and below, or what is too much is cut
    off on both sides.

    Args:
      height: of the image in pixels, at least 1.
      width: of the image in pixels, at least 1.
      patch: side of a patch in pixels.
      merge: side of a cell in patches.
      limit: whole patches that need no scaling.
      pad: whether to add rather than to cut.

    Raises:
      ValueError: an empty image, one with a side of 512 patches or more, or one that has no cell
        once it is cut.

    Source: the image processor published with Kimi-VL-A3B, kept to the last rounding.
    Differs: that one cuts to whole patches, and its model fails where they make no whole cells.
    """
    if min(height, width) < 1:
        raise ValueError(
            f"grid.native_fit: expected an image of at least 1x1, got {height}x{width}; do: drop it"
        )
    scaled, count = (height, width), (height // patch) * (width // patch)
    if count > limit:
        shrink = math.sqrt(limit / count)
        scaled = max(1, int(height * shrink)), max(1, int(width * shrink))
    cell = patch * merge
    rows, columns = (-(-side // cell) if pad else side // cell for side in scaled)
    if not rows * columns:
        raise ValueError(
            f"grid.native_fit: expected an image of at least {cell}x{cell} to cut to whole cells, "
            f"got {height}x{width}; do: drop it"
        )
    if max(rows, columns) * merge >= MAX_SIDE:
        raise ValueError(
            f"grid.native_fit: expected fewer than {MAX_SIDE} patches a side, got "
            f"{rows * merge}x{columns * merge} of an image of {height}x{width}; do: crop or drop "
            "the image"
        )
    return Fit(scaled, (rows * cell, columns * cell))


def patch_positions(gh: int, gw: int, merge: int) -> Int32[np.ndarray, "S 2"]:
    """Returns row and column of every patch, in merge-block order.

    Raises:
      ValueError: gh or gw is no multiple of merge.
    """
    row, column = np.indices((gh, gw), np.int32)
    return np.stack([_merge_order(row, merge), _merge_order(column, merge)], axis=-1)


def windows(gh: int, gw: int, *, merge: int, window_tokens: int) -> Int32[np.ndarray, " S"]:
    """Returns the attention window of every patch, in merge-block order.

    Squares of `window_tokens` cells a side tile the image from its top left corner; those at the
    right and the bottom edge may be smaller. They are numbered row by row from 0.

    Raises:
      ValueError: gh or gw is no multiple of merge.

    Source: Qwen2.5-VL technical report 2025, section 2.1.1 (window attention).
    """
    row, column = patch_positions(gh, gw, merge).T // np.int32(merge * window_tokens)
    across = -(-gw // (merge * window_tokens))
    return row * np.int32(across) + column


def rotary_positions(
    is_visual: Bool[np.ndarray, " T"], grids: Sequence[tuple[int, int]], *, merge: int
) -> Layout:
    """Returns the rotary positions (M-RoPE) of one conversation with images in it.

    Text counts up equally on all three axes. The cells of an image share one time, and their row
    and column are added to it; what follows continues after the longer side of the image, not
    after its number of cells.

    Args:
      is_visual: True where a cell of an image stands rather than text.
      grids: rows and columns of each image in patches, in the order of the row.
      merge: side of a cell in patches.

    Raises:
      ValueError: the images do not have as many cells as the row.

    Source: Qwen2-VL, Wang et al. 2024, section 2.1 (multimodal rotary position embedding).
    """
    for gh, gw in grids:
        _check_multiple(gh, gw, merge, unit="patches")
    sides = [(gh // merge, gw // merge) for gh, gw in grids]
    visual_tokens = sum(rows * columns for rows, columns in sides)
    if (seen := np.count_nonzero(is_visual)) != visual_tokens:
        raise ValueError(
            f"grid.rotary_positions: expected {visual_tokens} visual tokens for images of {sides}, "
            f"got {seen} in the row; do: give each image's grid in patches and one placeholder for "
            "each"
        )
    out = np.empty((3, is_visual.size), np.int32)
    at, following = 0, 0
    spots = np.flatnonzero(is_visual)
    for rows, columns in sides:
        begin, end = int(spots[0]), int(spots[0]) + rows * columns
        if not is_visual[begin:end].all():
            raise ValueError(
                f"grid.rotary_positions: expected the {rows}x{columns} visual tokens of an image "
                f"without a break, got text among them at {begin}..{end}; do: keep placeholders "
                "together"
            )
        out[:, at:begin] = np.arange(following, following + begin - at)
        following += begin - at
        row, column = np.divmod(np.arange(rows * columns), columns)
        out[:, begin:end] = following + np.stack([np.zeros_like(row), row, column])
        following += max(rows, columns)
        at, spots = end, spots[rows * columns :]
    out[:, at:] = np.arange(following, following + is_visual.size - at)
    return Layout(out, following + is_visual.size - at)


def patchify(image: UInt8[np.ndarray, "H W 3"], patch: int, merge: int) -> UInt8[np.ndarray, "S C"]:
    """Returns the patches of an image in merge-block order, each channel first (3, patch, patch).

    Raises:
      ValueError: a side of the image is no multiple of `patch * merge`.
    """
    height, width, channels = image.shape
    _check_multiple(height, width, patch * merge, unit="pixels")
    rows, columns = height // (patch * merge), width // (patch * merge)
    # Channels apart first: the second copy then moves whole lines of patches, not single bytes.
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    split = planes.reshape(channels, rows, merge, patch, columns, merge, patch)
    return split.transpose(1, 4, 2, 5, 0, 3, 6).reshape(-1, channels * patch * patch)


def _merge_order(values: Int[np.ndarray, "h w"], merge: int) -> Int[np.ndarray, " S"]:
    """Returns the entries of a patch grid in merge-block order."""
    gh, gw = values.shape
    _check_multiple(gh, gw, merge, unit="patches")
    blocks = values.reshape(gh // merge, merge, gw // merge, merge)
    return blocks.transpose(0, 2, 1, 3).reshape(-1)


def _check_multiple(height: int, width: int, divisor: int, *, unit: str) -> None:
    if height % divisor or width % divisor:
        raise ValueError(
            f"grid: expected multiples of {divisor} {unit}, got {height}x{width}; "
            "do: resize the image to whole cells"
        )
